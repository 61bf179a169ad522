"""What is asked of a chain: queries, entities, records, and what follows."""
