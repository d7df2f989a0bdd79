"""Built-in backends, one folder each: a card that imports nothing, then the primitives."""
