"""The node: configuration, transport security, logs and metrics around an open ledger; it has no rules of its own."""
