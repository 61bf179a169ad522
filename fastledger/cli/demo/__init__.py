"""The demonstrations: a hospital day through one ledger, and a federation of four organisations."""
