"""What keeps a ledger: backups, snapshots, export, verification, repair and pruning, beside its work or without it."""
