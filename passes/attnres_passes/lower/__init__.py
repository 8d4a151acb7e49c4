"""Scheduled -> lowered: ``lower`` binds every read, by ``bind_torch`` or by ``bind_kernels``.

``gradient_sets`` decides which reads give completed blocks their gradients in one pass of the backward.
"""
