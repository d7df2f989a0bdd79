"""Arithmetic on arrays, by the Array API standard: it knows no model and no backend."""
