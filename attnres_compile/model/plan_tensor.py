"""The plan as a tensor of the state dict, ``attnres.plan_tensor``: what the saved parameters mean.

Queries and key norms have the same names and shapes under many plans, and mean something else under each: a query
that was trained to choose among blocks of 4 says nothing about blocks of 8. So the plan goes wherever the parameters
go, by whatever saves and loads tensors.

The tensor has ``LENGTH`` elements, one per hexadecimal digit ``h`` of a text, with the value ``16 h + 8``. It is
floating, since torch's weight averaging divides buffers in place and fails on integers; its values are exact in every
dtype from bfloat16 on; and a digit stands in the middle of its range, since averages in low precision come out a
little lower. The text:

    version 2 | scale 1 | eps 16 (fp64) | streams 2 | 4 x (width 6, block_size 4, writes 4, reads 4) | fingerprint 32

Streams behind the fourth, and numbers too large for their digits, are told apart by the fingerprint alone. A mechanism
that is not the paper's follows, in ``mechanism_code.LENGTH`` more.
"""

from __future__ import annotations

import itertools
import math
import struct
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from attnres_compile.model.errors import SavedStateError
from attnres_kernels.definition.mechanism import PAPER, Mechanism
from attnres_passes.ir import mechanism_code
from attnres_passes.ir.plan import Plan
from attnres_passes.torch_private.example_values import is_fake

if TYPE_CHECKING:
    from attnres_compile.model.parameters import AttnResParameters

NAME = "plan_tensor"
"""Name of the buffer."""

LENGTH = 128
_VERSION = 1
_SCALES = ("mean", "sum")
_MAX_STREAMS = 4
_STREAM_DIGITS = (6, 4, 4, 4)
_FINGERPRINT_DIGITS = 32


@dataclass(frozen=True)
class StreamFacts:
    """Of one stream of a plan. writes, reads: their numbers."""

    width: int
    block_size: int
    writes: int
    reads: int


@dataclass(frozen=True)
class PlanFacts:
    """What of a plan can be read back from its tensor. streams: the first four at most, of ``num_streams``."""

    scale: str
    eps: float
    num_streams: int
    streams: tuple[StreamFacts, ...]
    fingerprint: str
    mechanism: Mechanism = PAPER


def encode(plan: Plan, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The tensor of a plan.

    Args:
        plan: to encode.
        dtype: of the model's parameters; the tensor's is float32 where that is too coarse for it.
        device: of the tensor.

    Returns:
        ``[LENGTH]``, or longer if the mechanism is not the paper's.
    """
    exact = dtype.is_floating_point and dtype.itemsize >= 2
    values = [16 * int(digit, 16) + 8 for digit in _text(plan)]
    return torch.tensor(values, dtype=dtype if exact else torch.float32, device=device)


def facts_of(plan: Plan) -> PlanFacts:
    """What the tensor of ``plan`` says."""
    return _facts(_text(plan))


def facts_in(tensor: Tensor) -> PlanFacts | None:
    """What a tensor says, None if it has no values to read: it is on the meta device, or fake.

    Args:
        tensor: that ``encode`` gave, in any dtype that holds its values.

    Raises:
        SavedStateError: it is no tensor of a plan, or one of a newer version; the message is a clause to go on from.
    """
    whole = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    if whole.is_meta or is_fake(whole):
        return None
    if whole.ndim != 1 or whole.shape[0] - LENGTH not in (0, mechanism_code.LENGTH) or whole.is_complex():
        raise SavedStateError(f"holds a {tuple(whole.shape)} tensor of {whole.dtype} where a plan has ({LENGTH},)")
    values = whole.detach().to(device="cpu", dtype=torch.float64).tolist()
    if not all(0 <= value < 256 for value in values):
        raise SavedStateError("holds values that are no plan")
    return _facts("".join(f"{int(value // 16):x}" for value in values))


def differences(saved: PlanFacts, own: PlanFacts) -> list[str]:
    """What two plans differ in, in words; nothing for plans that mean the same.

    Args:
        saved: of the state that is loaded.
        own: of the model that it is loaded into.
    """
    pairs: list[tuple[str, object, object]] = [("scale", saved.scale, own.scale), ("eps", saved.eps, own.eps)]
    pairs += zip(Mechanism._fields, saved.mechanism, own.mechanism, strict=True)
    found = [f"{name}={then!r} was saved, this model has {name}={now!r}" for name, then, now in pairs if then != now]
    if saved.num_streams != own.num_streams:
        found.append(f"{saved.num_streams} streams were saved, this model has {own.num_streams}")
    for index, (then, now) in enumerate(zip(saved.streams, own.streams, strict=False)):
        pairs = [(f"stream {index}: {name}", getattr(then, name), getattr(now, name)) for name in ("width", "writes")]
        pairs.append((f"stream {index}: block_size", _blocks(then), _blocks(now)))
        pairs.append((f"stream {index}: reads", then.reads, now.reads))
        found.extend(
            f"{name} {before} was saved, this model has {after}" for name, before, after in pairs if before != after
        )
    if not found and saved.fingerprint != own.fingerprint:
        prints = saved.fingerprint[:8], own.fingerprint[:8]
        found.append("other streams or reads: plan {} was saved, this model has {}".format(*prints))
    return found


def options_of(saved: PlanFacts) -> str:
    """The options to prepare a model with for a saved plan: ``block_size=2, scale='sum', eps=1e-06``."""
    sizes = {stream.block_size for stream in saved.streams}
    blocks = [f"block_size={size}" for size in sizes if len(sizes) == 1]
    differs = [] if saved.mechanism.is_paper else [str(saved.mechanism)]
    return ", ".join([*blocks, f"scale={saved.scale!r}", f"eps={saved.eps!r}", *differs])


def check_plan_tensor(added: AttnResParameters) -> None:
    """Find weights of another plan that came in place: by a distributed checkpoint, or by ``copy_``.

    Compares the buffer with the plan itself. A model on the meta device holds no weights, and passes.

    Raises:
        SavedStateError: names what differs.
    """
    tensor = added.get_buffer(NAME)
    found, saved = _compare(tensor, added.plan)
    if found:
        raise SavedStateError(
            f"the AttnRes parameters were overwritten in place with those of another plan: {found}. Load weights of "
            f"this plan into the model, or prepare it for those: {_advice(saved)}"
        )


def check_state_dict(added: AttnResParameters, state: Mapping[str, Any], prefix: str, warn: bool) -> None:
    """Compare a state dict with the plan, before any of it is loaded.

    Args:
        added: that it is about to be loaded into.
        state: as ``load_state_dict`` was given it, or the part of it below a wrapper.
        prefix: of the names of ``added`` in it, ``attnres.``.
        warn: whether to warn as well if nothing in it says what its AttnRes parameters mean.

    Raises:
        SavedStateError: the plans differ, or there is none and a parameter does not fit.
    """
    given = state.get(f"{prefix}{NAME}")
    if isinstance(given, Tensor):
        check_given(given, added.plan, _is_same_memory(given, added.get_buffer(NAME)))
        return
    ours = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    if ours and warn:
        _check_shapes(added, ours)
        warn_of_no_plan(added.plan, f"{prefix}{NAME}")


def check_given(given: Tensor, plan: Plan, in_place: bool = False) -> None:
    """Compare the plan tensor of a state dict with a plan.

    Args:
        given: of the state dict.
        plan: of the model that it is loaded into.
        in_place: whether the state dict holds the model's own tensors, already overwritten.

    Raises:
        SavedStateError: names what differs.
    """
    found, saved = _compare(given, plan)
    if found:
        done = "its tensors are the model's own and were overwritten before" if in_place else "nothing was loaded"
        raise SavedStateError(
            f"the state dict holds AttnRes parameters of another plan ({done}): {found}. {_advice(saved)}"
        )


def warn_of_no_plan(plan: Plan, name: str) -> None:
    """Warn of a state dict that does not say what its AttnRes parameters mean.

    Args:
        plan: of the model that it is loaded into.
        name: that a plan tensor would have in it.
    """
    warnings.warn(
        f"attnres: the state dict holds AttnRes parameters and no {name}, which says what they mean; version 0.1.0 "
        "saved none. Make sure that they were trained with the options of this model "
        f"({options_of(facts_of(plan))}), load them with strict=False, and save them again.",
        stacklevel=3,
    )


def is_trusted(added: AttnResParameters) -> bool:
    """Whether the buffer holds the plan of ``added``, or has no values yet."""
    return not _compare(added.get_buffer(NAME), added.plan)[0]


def restore(added: AttnResParameters) -> None:
    """Put the plan into a buffer that has lost it: by ``to_empty``, or a cast to a dtype too coarse for it."""
    tensor = added.get_buffer(NAME)
    if not is_trusted(added):
        setattr(added, NAME, encode(added.plan, tensor.dtype, tensor.device))


def _compare(tensor: Tensor, plan: Plan) -> tuple[str, PlanFacts | None]:
    """What differs in words, empty if nothing does, and what the tensor says if it says something."""
    try:
        saved = facts_in(tensor)
    except SavedStateError as error:
        return f"{NAME} {error}", None
    return ("; ".join(differences(saved, facts_of(plan))), saved) if saved is not None else ("", None)


def _advice(saved: PlanFacts | None) -> str:
    if saved is None:
        return "Save the weights again from the model that was trained."
    return f"Call attnres_compile.unprepare(model), then prepare(model, .., {options_of(saved)})."


def _is_same_memory(one: Tensor, other: Tensor) -> bool:
    """torch.distributed.checkpoint loads into the tensors of ``model.state_dict()``, which are the model's own."""
    if type(one) is not Tensor or type(other) is not Tensor:
        return one is other
    return one.device == other.device and one.data_ptr() == other.data_ptr()


def _check_shapes(added: AttnResParameters, given: Mapping[str, Any]) -> None:
    own = {name: tuple(value.shape) for name, value in added.named_parameters()}
    wrong = [name for name, value in given.items() if own.get(name) != tuple(getattr(value, "shape", ()))]
    if wrong:
        raise SavedStateError(
            f"the state dict holds AttnRes parameters of another plan (nothing was loaded): {', '.join(wrong[:4])} "
            f"{'and others ' if len(wrong) > 4 else ''}have no place of that shape in this model. Prepare the model "
            "with the options that it was trained with."
        )


def _blocks(stream: StreamFacts) -> str:
    """``2 (num_blocks 3)``."""
    return f"{stream.block_size} (num_blocks {math.ceil(stream.writes / max(stream.block_size, 1))})"


def _text(plan: Plan) -> str:
    (eps,) = struct.unpack(">Q", struct.pack(">d", plan.config.eps))
    parts = [(_VERSION, 2), (_SCALES.index(plan.config.scale), 1), (eps, 16), (len(plan.streams), 2)]
    for index in range(_MAX_STREAMS):
        numbers = (0, 0, 0, 0)
        if index < len(plan.streams):
            stream = plan.streams[index]
            numbers = (stream.width, stream.block_size, len(stream.writes), len(stream.reads))
        parts.extend(zip(numbers, _STREAM_DIGITS, strict=True))
    text = "".join(f"{min(number, 16**digits - 1):0{digits}x}" for number, digits in parts) + plan.fingerprint
    return text.ljust(LENGTH, "0") + mechanism_code.encode(plan.config.mechanism)


def _facts(text: str) -> PlanFacts:
    digits = iter(text)

    def number(count: int) -> int:
        return int("".join(itertools.islice(digits, count)), 16)

    version, scale, eps, num_streams = number(2), number(1), number(16), number(2)
    if version != _VERSION or scale >= len(_SCALES):
        raise SavedStateError(f"is of version {version}, and this attnres_compile knows version {_VERSION}; update it")
    streams = tuple(StreamFacts(*(number(count) for count in _STREAM_DIGITS)) for _ in range(_MAX_STREAMS))
    return PlanFacts(
        _SCALES[scale],
        struct.unpack(">d", struct.pack(">Q", eps))[0],
        num_streams,
        streams[:num_streams],
        "".join(itertools.islice(digits, _FINGERPRINT_DIGITS)),
        mechanism_code.decode(text[LENGTH:]),
    )
