"""The parameters of reads as graphs take them: plain tensors, whose gradients are those of the tokens of all ranks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from attnres_passes.ir.read_id import ReadId, ReadParameter
from attnres_passes.torch_private.ranks.dtensors import is_spread, on_own_tokens


def own_values(
    parameters: Sequence[ReadParameter], values: Sequence[Tensor], groups: Mapping[ReadId, tuple[str, ...]]
) -> list[Tensor]:
    """What a graph is given for the parameters of its reads.

    Args:
        parameters: of the graph.
        values: of them, which all ranks have whole.
        groups: of ranks over which the tokens of a read are cut, for reads whose tokens are.
    """
    if not groups and not any(map(is_spread, values)):
        return list(values)
    own = list(values)
    of_reads = [groups.get(parameter.read, ()) for parameter in parameters]
    for of_read in dict.fromkeys(of_reads):
        places = [place for place, found in enumerate(of_reads) if found == of_read]
        for place, value in zip(places, on_own_tokens([values[place] for place in places], of_read), strict=True):
            own[place] = value
    return own
