"""Rewrites of the float graph that keep its function, one pattern of nodes each."""
