"""Running a model on ONNX Runtime: sessions that borrow its tensors, and what they are fed."""
