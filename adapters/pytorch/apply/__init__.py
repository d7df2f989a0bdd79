"""A recipe carried out: quantized layers in the places of float ones."""
