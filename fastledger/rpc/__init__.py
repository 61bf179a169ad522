"""The thin RPC of a node: JSON-RPC 2.0, a binary batch endpoint, WebSocket subscriptions and envelopes."""
