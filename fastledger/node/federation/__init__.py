"""A node's place in a federation: links to other organisations' nodes, envelopes, snapshots and mining."""
