"""Reproduces the tables and figures of Zhu et al. 2020 and says which of its claims hold."""

__version__ = "0.1.0"
