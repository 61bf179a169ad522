"""What people and their software hold: wallets."""
