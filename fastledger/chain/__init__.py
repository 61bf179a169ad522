"""Admission, execution, commitment: the chain itself, and the façade that embeds it."""
