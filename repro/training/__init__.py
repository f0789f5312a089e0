"""Trains one run."""
