"""Tensors that stand for weights which layers hold, and what calls do with such weights."""
