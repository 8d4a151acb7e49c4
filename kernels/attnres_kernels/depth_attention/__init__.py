"""Depth attention: a softmax over the outputs of earlier sublayers, read by a learned pseudo-query.

`naive` is the definition, `op` the operator `attnres::depth_attention` of the rewritten graph, `scheduled` the
vocabulary of the scheduled level, `two_phase` and `fused` what it is bound to on torch and on generated kernels, `cost`
what a read moves.
"""

from attnres_kernels.depth_attention import cost
from attnres_kernels.depth_attention.naive import SCALES, depth_attention, depth_weights, key_vector
from attnres_kernels.depth_attention.op import depth_attention_op

__all__ = ["SCALES", "cost", "depth_attention", "depth_attention_op", "depth_weights", "key_vector"]
