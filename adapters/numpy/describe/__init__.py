"""The graph as ops, values and groups."""
