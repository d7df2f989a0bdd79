"""What the kernels of ONNX Runtime do on this processor."""
