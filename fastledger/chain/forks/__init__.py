"""A chain with forks: headers, blocks and transactions in; the best branch, templates and finality out."""
