"""From any model file to a graph that computes the same in fewer forms."""
