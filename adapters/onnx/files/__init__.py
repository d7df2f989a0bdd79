"""Models as bytes: messages without their large tensors, files written tensor by tensor, digests."""
