"""Operators that walk over spatial axes: convolution, pooling, resizing."""
