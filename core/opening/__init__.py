"""What the user gives becomes settings, opened models and the spaces that may be searched."""
