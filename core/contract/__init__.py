"""What plugin authors touch: the interface of each kind of part, cards, and the host that loads
them."""
