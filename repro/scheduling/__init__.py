"""Decides what trains where and when, launches it, and believes only what is on disk. Imports no torch."""
