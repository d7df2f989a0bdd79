"""Operators whose products are integer."""
