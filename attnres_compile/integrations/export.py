"""``export_weights``: queries and key norms under the names of another project, where they mean the same there.

What was read: flash-linear-attention 0.6.0 (``fla/models/*/modeling_*.py``, alike in 30 models), whose names are those
of the paper's pseudocode; transformers 5.23 (``models/inkling2/modeling_inkling2.py``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from attnres_compile.api.atomic_files import replace_files
from attnres_compile.api.save_load import whole_tensors
from attnres_compile.model.errors import ExportError
from attnres_compile.model.parameters import require_parameters
from attnres_passes.ir.plan import Plan, Reason, Stream

Exported = tuple[dict[str, Tensor], dict[str, Any]]
"""Tensors by the names of the other project, and what its configuration has to say."""


def export_weights(model: nn.Module, directory: str | Path, *, layout: str) -> dict[str, Any]:
    """Write the queries and key norms of a prepared model as another project names them.

    The file is ``attnres.<layout>.safetensors``. It holds nothing of the model's own weights, whose names in the other
    project are those of its models.

    Args:
        model: prepared.
        directory: made if it is not there.
        layout: "fla", the decoders of flash-linear-attention with ``attnres_block_size``:
            ``model.layers.3.attn_res_proj.weight`` ``[1, d]``, ``model.layers.3.attn_res_norm.weight`` ``[d]``, the
            same with ``mlp_``, and ``model.res_proj.weight``, ``model.res_norm.weight`` of the last read.

    Returns:
        The fields of the other project's configuration that the weights were trained under:
        ``{"attnres_block_size": 4, "norm_eps": 1e-06}``. There, one ``norm_eps`` serves all norms.

    Raises:
        NotPreparedError.
        ExportError: the layout is unknown, or these parameters mean something else in it; nothing is written.
        SavedStateError: the model has no data or weights of another plan.
    """
    if layout not in _LAYOUTS:
        raise ExportError(f"unknown layout {layout!r}; there are {', '.join(map(repr, _LAYOUTS))}.")
    added = require_parameters(model)
    tensors, configuration = _LAYOUTS[layout](added.plan, whole_tensors(added))
    try:
        from safetensors.torch import save
    except ImportError as error:
        raise ExportError(
            "the export needs the package safetensors; install it: pip install 'attnres-compile[hf]'."
        ) from error
    folder = Path(directory)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        replace_files(folder, {f"attnres.{layout}.safetensors": save(tensors, {"format": "pt"})})
    except OSError as error:
        raise ExportError(f"{folder} cannot be written ({error}); give a directory with room.") from error
    return configuration


def _fla(plan: Plan, tensors: Mapping[str, Tensor]) -> Exported:
    """Two sublayers a layer, a read before each and one behind the last; all over raw sources with normed keys."""
    stream = _only_stream(plan)
    size = stream.block_size
    if size > 1 and size % 2:
        raise _refused(f"blocks of {size} sublayers end inside a layer", "prepare it with an even block_size, or 1")
    names = [f"model.layers.{state // 2}.{('attn', 'mlp')[state % 2]}_res" for state in range(len(stream.writes))]
    found: dict[str, Tensor] = {}
    # The first read has one source and no parameters here, and parameters without an effect there.
    like = tensors["streams.0.reads.0.query"]
    for slot, name in enumerate([*names, "model.res"], start=-1):
        first = slot < 0
        query = torch.zeros_like(like) if first else tensors[f"streams.0.reads.{slot}.query"]
        weight = torch.ones_like(like) if first else tensors[f"streams.0.reads.{slot}.key_norm.weight"]
        found[f"{name}_proj.weight"] = query[None].contiguous()
        found[f"{name}_norm.weight"] = weight
    return found, {"attnres_block_size": size, "norm_eps": plan.config.eps}


def _inkling2(plan: Plan, tensors: Mapping[str, Tensor]) -> Exported:
    raise _refused(
        "inkling2 mixes normed sources, with logits divided by the square root of the width and without a key-norm "
        "weight, and asks with three queries before its full attention; queries that were trained to mix the sources "
        "themselves choose something else there",
        "export with layout='fla'",
    )


_LAYOUTS: dict[str, Callable[[Plan, Mapping[str, Tensor]], Exported]] = {"fla": _fla, "inkling2": _inkling2}


def _only_stream(plan: Plan) -> Stream:
    """The one stream of a plan, if it is that of a decoder: layers of two sublayers, each behind one normed read."""
    chosen = any(decline.reason is Reason.NOT_SELECTED for decline in plan.declined)
    if len(plan.streams) != 1 or chosen:
        count = "several streams" if chosen else f"{len(plan.streams)} streams"
        raise _refused(f"the model has {count}, and the layout has one", "export each from a model of its own")
    stream = plan.streams[0]
    if plan.partial:
        raise _refused(plan.partial_text, "export a model whose whole stream is rewritten")
    if plan.config.scale != "mean":
        raise _refused(
            f"scale={plan.config.scale!r} multiplies each read by its number of sources, and the layout does not",
            "train it with scale='mean'",
        )
    if not plan.config.mechanism.is_paper:
        raise _refused(
            f"the model was prepared with {plan.config.mechanism}, and the layout has the paper's mechanism",
            "train it without that",
        )
    unnormed = [read for read in stream.reads if not read.normed]
    if unnormed:
        raise _refused(
            f"{unnormed[0].module or 'a reader'} reads the stream without a norm, and the layout norms every read",
            "export a model whose reads are normed",
        )
    states = [read.state for read in stream.reads]
    if states != list(range(len(stream.writes) + 1)):
        raise _refused(
            f"its {len(stream.writes)} sublayers have reads of the states {states}, and the layout has one read before "
            "each sublayer and one behind the last",
            "export a model of such layers",
        )
    for first, second in zip(stream.writes[::2], [*stream.writes[1::2], None], strict=False):
        if second is None or _layer(first.module) != _layer(second.module):
            behind = "nothing" if second is None else second.module
            raise _refused(
                f"{first.module} is followed by {behind}, and the layout has two sublayers in each layer",
                "export a model of such layers",
            )
    return stream


def _layer(module: str) -> list[str]:
    """Path of the layer that a sublayer is in: up to its last number."""
    parts = module.split(".")
    last = max((place for place, part in enumerate(parts) if part.isdigit()), default=-1)
    return parts[: last + 1]


def _refused(found: str, advice: str) -> ExportError:
    return ExportError(f"the parameters mean something else in this layout: {found}; {advice}.")
