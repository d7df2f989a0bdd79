"""What a run does where no post-training recipe reaches the goal: the closest learn from data."""
