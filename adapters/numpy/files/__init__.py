"""Where graphs come from and go to: archives, ONNX files, estimators of scikit-learn."""
