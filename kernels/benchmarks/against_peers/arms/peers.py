"""Adapters of other people's kernels; each is imported only when its arm is made.

A peer runs each read by itself, with the residual add and the RMSNorm around it compiled; ``flash-attn-res``, which has
two phases, runs them. Peers that are made for it also run with the whole block compiled in one graph. Whatever a peer
needs of its arguments (a stack of the sources, a folded key weight) is part of its time.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional

from attnres_compile.report.records import package_version

from ..traffic import ideal_traffic
from ..work import BLOCK, EPS, Inputs, Shape, block_by_reads
from .arm import EAGER, PEER, Arm, Call, compiled

PACKAGES = ("fla-core", "liger-kernel", "flash-attn-res", "fast-attnres")
NOT_INSTALLED = "not installed: pip install 'attnres-compile[bench]'"

Loaded = Callable[[list[Tensor], Tensor, Tensor, Tensor | None], Tensor]
"""One read: sources, query, key weight, and the norm's weight for a peer that fuses the norm, else None."""


@dataclass(frozen=True)
class Peer:
    """How to reach the kernels of a package."""

    name: str
    package: str
    load: Callable[[], Loaded]
    """Imports the package and gives its read."""
    limit: Callable[[Shape], str]
    """Why it cannot do this work, or ''."""
    norms: bool = False
    """Whether the norm behind a read is in its kernel."""
    in_one_graph: bool = False
    """Whether it is made to be compiled together with what is around it."""
    note: str = ""
    build: Callable[[Loaded, Shape, str], Call] | None = None


def _no_limit(_shape: Shape) -> str:
    return ""


def _offset_limit(shape: Shape, rows: int) -> str:
    """For kernels that reach ``rows`` tensors ``[T, d]`` in one by offsets of 32 bits: beyond, they touch memory that
    is not theirs, after which the process has no GPU any more.
    """
    too_far = rows * shape.tokens * shape.width > 2**31
    return f"its 32-bit offsets do not reach the end of {rows} tensors [T, d] in one" if too_far else ""


def _folded(query: Tensor, key_weight: Tensor) -> Tensor:
    """The effective key vector, for peers whose keys have no weight."""
    return query.float() * key_weight.float()


def _fla_limit(_shape: Shape) -> str:
    for name in ("FLA_GLUON", "FLA_ATTNRES_GLUON"):
        if os.environ.get(name, "0") != "0":
            return f"{name} is set, which sends its calls to Gluon: unset it"
    return ""


def _load_fla(checkpoint_level: int) -> Loaded:
    from fla.ops.attnres import fused_attnres

    def read(sources: list[Tensor], query: Tensor, key_weight: Tensor, norm_weight: Tensor | None) -> Tensor:
        value: Tensor = fused_attnres(
            query, sources, key_weight, norm_weight, rms_eps=EPS, checkpoint_level=checkpoint_level
        )
        return value

    return read


def _load_fla_gluon() -> Loaded:
    from fla.ops.attnres.backends.gluon import AttnResGluonBackend

    backend = AttnResGluonBackend()

    def read(sources: list[Tensor], query: Tensor, key_weight: Tensor, norm_weight: Tensor | None) -> Tensor:
        # Through the public entry a call that Gluon does not take would run on Triton in silence.
        accepted, reason = backend.fused_attnres_verifier(query, sources, key_weight, norm_weight, rms_eps=EPS)
        if not accepted:
            raise RuntimeError(reason)
        value: Tensor = backend.fused_attnres(query, sources, key_weight, norm_weight, rms_eps=EPS)
        return value

    return read


def _liger_limit(shape: Shape) -> str:
    return _offset_limit(shape, shape.sources + 1)


def _load_liger() -> Loaded:
    from liger_kernel.ops import LigerAttnResFunction

    def read(sources: list[Tensor], query: Tensor, key_weight: Tensor, _norm: Tensor | None) -> Tensor:
        value: Tensor = LigerAttnResFunction.apply(torch.stack(sources), query, key_weight, EPS)
        return value

    return read


def _fast_limit(shape: Shape) -> str:
    if shape.dtype != "bfloat16":
        return "takes bfloat16 only"
    return "takes widths up to 8192" if shape.width > 8192 else ""


def _load_fast() -> Loaded:
    from attnres import attnres

    def read(sources: list[Tensor], query: Tensor, key_weight: Tensor, _norm: Tensor | None) -> Tensor:
        value: Tensor = attnres(sources, _folded(query, key_weight).to(query.dtype), eps=EPS)
        return value

    return read


def _flash_limit(shape: Shape) -> str:
    if shape.dtype != "bfloat16":
        return "its kernels write bfloat16 only"
    if shape.width & (shape.width - 1):
        return "takes widths that are powers of two"
    return _offset_limit(shape, max(shape.sources + (shape.level != BLOCK), shape.reads))


def _load_flash() -> Loaded:
    from flash_attn_res import phase_1_batched_attention_triton_op as phase_1

    def read(sources: list[Tensor], query: Tensor, key_weight: Tensor, _norm: Tensor | None) -> Tensor:
        outputs, _ = phase_1(torch.stack(sources).unsqueeze(1), _folded(query, key_weight).unsqueeze(0), EPS)
        value: Tensor = outputs[0, 0]
        return value

    return read


def _flash_block(_read: Loaded, shape: Shape, inner: str) -> Call:
    """Phase 1 over a stack of the blocks, then phase 2 per read; all ``[1, T, d]``, as its kernels take them."""
    from flash_attn_res import phase_1_batched_attention_triton_op as phase_1
    from flash_attn_res import phase_2_online_softmax_merge_triton_op as phase_2

    norm, add = _glue(inner)

    def block(inputs: Inputs, _: list[Tensor]) -> list[Tensor]:
        pairs = zip(inputs.queries[: shape.reads], inputs.key_weights, strict=False)
        rows = torch.stack([_folded(query, weight) for query, weight in pairs])
        outputs, log_sums = phase_1(torch.stack(inputs.sources).unsqueeze(1), rows, EPS)

        def read(number: int, sources: list[Tensor]) -> Tensor:
            value = outputs[number]
            if number > 0:
                value = phase_2(sources[-1].unsqueeze(0), rows[number], value, log_sums[number], EPS)
            return norm(value[0], inputs.norm_weights[number])

        return block_by_reads(inputs, read, lambda partial, branch, _before: add(partial, branch))

    return block


def _norm(value: Tensor, weight: Tensor) -> Tensor:
    return functional.rms_norm(value, (value.shape[-1],), weight, EPS)


def _add(partial: Tensor, branch: Tensor) -> Tensor:
    return partial + branch


@functools.cache
def _glue(inner: str) -> tuple[Callable[..., Tensor], Callable[..., Tensor]]:
    """What stands around a read, compiled: the same two for all peers, so that they are compiled once per shape."""
    return compiled(_norm, inner), compiled(_add, inner)


PEERS = (
    Peer("fla-core triton", "fla-core", lambda: _load_fla(1), _fla_limit, norms=True),
    Peer(
        "fla-core triton, keeps mix",
        "fla-core",
        lambda: _load_fla(0),
        _fla_limit,
        norms=True,
        note="checkpoint_level=0: the weighted sum is kept for the backward",
    ),
    Peer("fla-core gluon", "fla-core", _load_fla_gluon, _no_limit, norms=True),
    Peer("liger-kernel", "liger-kernel", _load_liger, _liger_limit),
    Peer("flash-attn-res", "flash-attn-res", _load_flash, _flash_limit, in_one_graph=True, build=_flash_block),
    Peer(
        "fast-attnres",
        "fast-attnres",
        _load_fast,
        _fast_limit,
        in_one_graph=True,
        note="key vector rounded to bfloat16, the only dtype that it takes",
    ),
)


def peer_arms(shape: Shape, device: torch.device, inner: str, peers: tuple[Peer, ...] = PEERS) -> list[Arm]:
    """An arm per peer, and one more for those that run in one graph too; what cannot run says why.

    Args:
        shape: of the work.
        device: that it runs on.
        inner: the compiler around the kernels.
        peers: whose kernels run.
    """
    arms = []
    for peer in peers:
        arms.append(_arm(peer, shape, device, inner))
        if peer.in_one_graph and shape.level == BLOCK and inner != EAGER and not arms[-1].unsupported:
            whole = _peer_call(peer, shape, inner, one_graph=True)
            arms.append(replace(arms[-1], name=f"{peer.name}, one graph", call=whole))
    return arms


def _arm(peer: Peer, shape: Shape, device: torch.device, inner: str) -> Arm:
    arm = Arm(peer.name, PEER, ideal_traffic(shape), note=peer.note)
    if package_version(peer.package) is None:
        return replace(arm, unsupported=NOT_INSTALLED)
    if device.type != "cuda":
        return replace(arm, unsupported=f"runs on a GPU only, not on {device.type}")
    limit = peer.limit(shape)
    return replace(arm, unsupported=limit) if limit else replace(arm, call=_peer_call(peer, shape, inner))


def _peer_call(peer: Peer, shape: Shape, inner: str, one_graph: bool = False) -> Call:
    """The work on a peer, which is imported at the first call: what that raises is the arm's error.

    Args:
        peer: whose kernels run.
        shape: of the work.
        inner: the compiler around the kernels.
        one_graph: compile kernels and what is around them together.
    """
    made: list[Call] = []

    def call(inputs: Inputs, given: list[Tensor]) -> list[Tensor]:
        if not made:
            build = _op if shape.level != BLOCK else peer.build or (_norming_block if peer.norms else _block)
            of_peer = build(peer.load(), shape, EAGER if one_graph else inner)
            made.append(compiled(of_peer, inner) if one_graph else of_peer)
        return made[0](inputs, given)

    return call


def _op(read: Loaded, _shape: Shape, _inner: str) -> Call:
    def op(inputs: Inputs, _: list[Tensor]) -> list[Tensor]:
        return [read([*inputs.sources, *inputs.branches], inputs.queries[0], inputs.key_weights[0], None)]

    return op


def _block(read: Loaded, _shape: Shape, inner: str) -> Call:
    norm, add = _glue(inner)

    def block(inputs: Inputs, _: list[Tensor]) -> list[Tensor]:
        def normed(number: int, sources: list[Tensor]) -> Tensor:
            value = read(sources, inputs.queries[number], inputs.key_weights[number], None)
            return norm(value, inputs.norm_weights[number])

        return block_by_reads(inputs, normed, lambda partial, branch, _before: add(partial, branch))

    return block


def _norming_block(read: Loaded, _shape: Shape, inner: str) -> Call:
    _, add = _glue(inner)

    def block(inputs: Inputs, _: list[Tensor]) -> list[Tensor]:
        def normed(number: int, sources: list[Tensor]) -> Tensor:
            return read(sources, inputs.queries[number], inputs.key_weights[number], inputs.norm_weights[number])

        return block_by_reads(inputs, normed, lambda partial, branch, _before: add(partial, branch))

    return block
