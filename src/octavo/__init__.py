"""octavo: accuracy-aware quantization tuning for PyTorch, ONNX and NumPy models."""

__version__ = "0.1.0"
