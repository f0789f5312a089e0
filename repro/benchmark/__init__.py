"""Training speed on this machine, compared with the device's limits and with what public scripts reach."""
