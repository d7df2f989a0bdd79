"""What a module looks like as ops, values and groups."""
