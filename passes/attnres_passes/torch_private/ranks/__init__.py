"""Tensors that several ranks hold together."""
