"""Scheduled to lowered: ``lower.py`` binds every node of ours to torch calls or to generated kernels.

``bind_torch.py`` and ``bind_kernels.py`` do so, one node each; ``gradient_sets.py`` says which reads share a backward.
"""
