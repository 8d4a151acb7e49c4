"""What ``verify`` holds normed values against: torch's own norm of every source, outside of the read.

With normed values, zero queries do not give back the plain sum. So ``verify`` goes two steps, which the names of its
checks say: with values as they are, zero queries give back the plain model, so that reads have the right sources; and
with random queries, reads of normed values are the weights of values as they are over sources that torch has normed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.fx import GraphModule

from attnres_compile.api.verification import Check
from attnres_kernels.definition.mechanism import Mechanism
from attnres_kernels.definition.naive import autocast_device
from attnres_kernels.definition.variants import variant_weights
from attnres_passes.ir.config import AttnResConfig
from attnres_passes.ir.levels import is_variant_attention

NAME = "random queries, value_norm='plain' = weights of values as they are, over sources normed by torch"


def norm_by_torch(gm: GraphModule) -> None:
    """Put reads of sources that torch has normed in place of a rewritten graph's reads of normed values.

    Args:
        gm: rewritten, by a mechanism that is computed by its definition; changed in place.
    """
    for node in gm.graph.nodes:
        if is_variant_attention(node):
            node.target = _weights_over_normed
    gm.recompile()


def _weights_over_normed(
    sources: Sequence[Tensor], parameters: Sequence[Tensor], eps: float, scale: str, *how: object
) -> Tensor:
    """A read, the arguments being those of ``attnres::variant_attention``."""
    mechanism = Mechanism(*how)._replace(value_norm="none")  # type: ignore[arg-type]
    with torch.autocast(autocast_device(sources[0]), enabled=False):
        weights = variant_weights(sources, parameters, eps, mechanism)
        width = sources[0].shape[-1]
        normed = torch.stack([torch.nn.functional.rms_norm(x.to(weights.dtype), (width,), eps=eps) for x in sources])
        over_heads = normed.reshape(*normed.shape[:-1], mechanism.heads, -1)
        mixed = torch.einsum("...hn,n...hc->...hc", weights, over_heads).flatten(-2)
        return (mixed * len(sources) if scale == "sum" else mixed).to(sources[0].dtype)


def of_parts(config: AttnResConfig) -> Iterator[Check]:
    """What there is to say of a model of several graphs, of which no single reads are compared.

    Args:
        config: of the verification.
    """
    if config.value_norm != "none":
        reason = "the model is of several graphs, and reads are compared one by one in a single one"
        yield Check(NAME, "", False, float("nan"), 0.0, skipped=reason)
