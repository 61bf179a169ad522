"""HTTP under the RPC: connections, routes, who may call what and how often."""
