"""What a run hands back: saved, loaded again, and read for its recipe."""
