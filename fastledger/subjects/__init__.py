"""The medical subjects, one module each: entities, kinds of transactions, rules, refusals, search terms."""
