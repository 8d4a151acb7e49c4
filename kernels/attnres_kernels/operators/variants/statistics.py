"""What a recording of a model adds per read by another mechanism; ``operators.statistics`` has those of the paper's."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from attnres_kernels.definition.mechanism import Mechanism
from attnres_kernels.definition.naive import statistics_dtype
from attnres_kernels.definition.variants import variant_weights
from attnres_kernels.operators.definition import OperatorDefinition, torch_operator
from attnres_kernels.operators.statistics import READ_EXTRA, no_gradient, squares, without_gradient


class VariantStatistics(NamedTuple):
    """Arguments of what a recording keeps of a read by another mechanism.

    sources, value, eps: of `ReadStatistics`; parameters, how: of `variants.variant_weights`.
    """

    sources: Sequence[Tensor]
    parameters: Sequence[Tensor]
    value: Tensor
    eps: float
    how: Mechanism


def _run_variant(call: VariantStatistics) -> Tensor:
    """What `ReadStatistics` sums, of the weights under `scale="mean"`, averaged over heads.

    The entropy is that of the weights over their sum, which a softmax has as they are.

    Returns:
        `[n + 3]`.
    """
    sources, parameters, value, eps, how = call
    with torch.autocast(value.device.type, enabled=False):
        weights = variant_weights(sources, parameters, eps, how)
        entropy = torch.special.entr(weights / weights.sum(-1, keepdim=True)).sum(-1).mean(-1).sum()
        sums = weights.mean(-2).reshape(-1, len(sources)).sum(0)
        return torch.cat([sums, torch.stack([entropy, *squares(value)]).to(weights.dtype)])


VARIANT_STATISTICS = OperatorDefinition(
    "attnres::variant_statistics",
    VariantStatistics,
    Tensor,
    _run_variant,
    lambda call: call.value.new_empty([len(call.sources) + READ_EXTRA], dtype=statistics_dtype(call.value.dtype)),
    make=torch_operator(),
)

VARIANT_STATISTICS.operator.register_autograd(no_gradient, setup_context=without_gradient)
