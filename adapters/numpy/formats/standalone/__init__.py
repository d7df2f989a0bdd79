"""Export of a saved model with a runner in one file that needs NumPy only."""

from .export import export

__all__ = ["export"]
