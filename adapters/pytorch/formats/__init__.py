"""Other tools' formats: checkpoints that transformers and vLLM read, and ONNX."""
