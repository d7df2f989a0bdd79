"""What plugin authors touch: the interface of each kind of part, cards, and their host."""
