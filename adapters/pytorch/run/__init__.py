"""How a module is called: batches, devices, and which methods it keeps once quantized."""
