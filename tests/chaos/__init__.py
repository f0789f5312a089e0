"""A small real sweep under random faults, and the audit of what it left: `python -m chaos` in tests/."""
