"""A recipe carried out: quantized operations in the places of float ones."""
