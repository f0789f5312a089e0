"""How fast training is here, beside what the device could do and what public scripts do on it."""
