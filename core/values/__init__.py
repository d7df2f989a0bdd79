"""Values that travel through the whole engine: frozen, checked when they are made, JSON
both ways."""
