"""The float model, watched: a few values at a time, gradients, values that are recalled."""
