"""How much a model suffers when one unit takes one scheme."""
