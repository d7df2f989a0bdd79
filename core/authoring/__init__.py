"""What authors of backends need, on plain arrays and names: written here once for all of them."""
