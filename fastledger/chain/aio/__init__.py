"""The façade for asyncio."""
