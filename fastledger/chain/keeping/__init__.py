"""Operations on a ledger, beside its work or without it: backup, snapshot, export, verification, repair, pruning."""
