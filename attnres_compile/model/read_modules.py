"""The modules that hold the parameters of reads: what ``model.attnres.streams`` is made of."""

from __future__ import annotations

import torch
from torch import nn

from attnres_kernels.definition.mechanism import PAPER, Mechanism
from attnres_passes.ir.config import AttnResConfig
from attnres_passes.ir.plan import Stream
from attnres_passes.ir.read_parameters import forms_of_read


class KeyNorm(nn.Module):
    """Weight and eps of the RMSNorm on the keys of one read (paper equation 3). weight: ``[d]``, ones, or None."""

    weight: nn.Parameter | None

    def __init__(self, eps: float) -> None:
        super().__init__()
        self.register_parameter("weight", None)
        self.eps = eps
        self.own: tuple[str, ...] = ()

    def extra_repr(self) -> str:
        width = "" if self.weight is None else f"{self.weight.shape[0]}, "
        return f"{width}eps={self.eps}"


class QueryProjection(nn.Module):
    """The matrix that makes a query of the newest source of a read. weight: ``[d, d]``, zeros."""

    def __init__(self) -> None:
        super().__init__()
        self.own: tuple[str, ...] = ()


class ReadParameters(nn.Module):
    """Pseudo-query and key norm of one read. query: ``[d]``, zeros: training starts at the uniform average.

    Which parameters there are is the mechanism's (``forms_of_read``): without a key norm there is no ``key_norm``, and
    in place of a learned query there may be a ``query_projection``. own: names of those of this module, be they there
    or moved into a FlatParameter by FSDP.
    """

    def __init__(
        self, width: int, eps: float, dtype: torch.dtype, device: torch.device, mechanism: Mechanism = PAPER
    ) -> None:
        super().__init__()
        self.own: tuple[str, ...] = ()
        if mechanism.key_norm != "none":
            self.key_norm = KeyNorm(eps)
        if mechanism.query == "input":
            self.query_projection = QueryProjection()
        for form in forms_of_read(mechanism, width):
            first = torch.zeros if form.first == "zeros" else torch.ones
            holder = self.get_submodule(form.holder)
            assert isinstance(holder, (KeyNorm, QueryProjection, ReadParameters))
            holder.own += (form.attribute,)
            holder.register_parameter(form.attribute, nn.Parameter(first(form.shape, dtype=dtype, device=device)))


class StreamParameters(nn.Module):
    """One ReadParameters per read with two sources or more, in read order."""

    def __init__(self, stream: Stream, config: AttnResConfig, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        self.reads = nn.ModuleList(
            ReadParameters(stream.width, config.eps, dtype, device, config.mechanism) for _ in stream.parametrized_reads
        )
