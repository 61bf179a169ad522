"""The chain itself, in admission, execution and commitment, and the façade that embeds it."""
