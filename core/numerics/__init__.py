"""Quantization arithmetic on any array-API namespace (NumPy, torch)."""
