"""The end of a run: the best few are timed again, the winner is examined, the result is made."""
