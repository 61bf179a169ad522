"""The node's configuration: one TOML file, read, checked and explained."""
