"""What the command line names: models, samples, scores, Python objects."""
