"""A graph, run: slots, memory, threads."""
