"""From a recipe to quantized tensors: transforms, weight algorithms, the realizer that
calls both."""
