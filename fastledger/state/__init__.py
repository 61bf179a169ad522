"""The deterministic medical rules, one file a subject. Nothing here knows a clock, a float or chance."""
