"""A recipe carried out: quantized nodes in the places of float ones."""
