"""What a subject is made of, the registry of rules, and the transition function. No clock, float or chance in it."""
