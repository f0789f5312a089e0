"""Commands that join several parts of the package."""
