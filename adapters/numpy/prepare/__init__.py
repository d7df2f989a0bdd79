"""From any graph to one that computes the same in fewer nodes."""
