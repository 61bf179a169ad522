"""The keys of an identity, and the transactions and envelopes that they make."""
