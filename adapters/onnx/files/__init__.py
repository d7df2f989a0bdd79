"""Models as bytes: messages without large tensors, files written tensor by tensor, digests."""
