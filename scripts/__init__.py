"""Tools of the project: what makes the site and the pictures."""
