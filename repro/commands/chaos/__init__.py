"""`repro selftest --chaos`: a small real sweep under random faults, and the audit of what it left."""
