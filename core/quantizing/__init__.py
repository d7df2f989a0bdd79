"""From a recipe to quantized tensors: transforms, algorithms, the realizer that calls both."""
