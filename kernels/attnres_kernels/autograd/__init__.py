"""Forward and backward tied together: what the nodes of a lowered graph call.

``keys`` comes first in a graph; then ``generated_reads`` on generated kernels or ``two_phase`` on torch calls;
``own_logits_reads`` are reads that share nothing with others.
"""
