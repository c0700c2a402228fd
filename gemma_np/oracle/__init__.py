"""Check other implementations: trace the reference, compare dumps with it, diagnose mistakes."""
