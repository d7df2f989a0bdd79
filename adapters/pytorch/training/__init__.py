"""What needs autograd: reconstruction, distillation, quantization-aware training, QLoRA."""
