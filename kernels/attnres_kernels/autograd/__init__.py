"""Forward and backward tied together: what the nodes of a lowered graph call.

``keys`` comes first in a graph; then ``generated_reads`` on generated kernels or ``two_phase`` on torch calls;
``own_logits_read`` is a read that shares nothing with others.
"""
