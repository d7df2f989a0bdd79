"""What is true of any ``nn.Module``: trees that share tensors, wrappers, kinds of layers."""
