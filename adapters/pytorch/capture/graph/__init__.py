"""Models that torch.fx can trace: the graph, and the layers and links that are read off it."""
