"""Check other implementations: trace the reference, compare dumps with it, and diagnose what is wrong."""
