"""Training by an ordinary loop, by its public names."""
