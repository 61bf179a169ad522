"""The command line: thin commands over the façade, the wallet and the ingest."""
