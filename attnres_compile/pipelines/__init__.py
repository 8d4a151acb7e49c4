"""Prepared models on torch.distributed.pipelining."""
