"""Consensus engines as pure state machines: events in, actions out."""
