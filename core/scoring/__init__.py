"""Whether a candidate is good enough, and what it costs: scores, criteria, objectives."""
