"""FastLedger: an embeddable, permissioned ledger engine for medical transactions."""
