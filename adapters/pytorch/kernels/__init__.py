"""Low-precision kernels as functions on plain tensors, and whether this device has them."""
