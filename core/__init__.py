"""The core: knows no framework."""
