"""Reads whose module Python runs: the final norm of a model whose layers alone are compiled, behind a graph break.

Such a module is given the depth attention of the sources in place of the state, before its forward runs. Inside a
graph, the rewrite has seen to it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from attnres_compile.model.border.call_reads import note_reads
from attnres_compile.model.border.known_states import Sources, sources_of
from attnres_compile.model.errors import BorderError
from attnres_kernels.definition.naive import key_vector
from attnres_kernels.definition.variants import effective_weight
from attnres_passes.analyses.blocks import attended
from attnres_passes.ir.plan import Plan
from attnres_passes.ir.read_id import ReadId, ReadParameter
from attnres_passes.ir.read_parameters import forms_of_read
from attnres_passes.torch_private.borders.tensor_identity import tied
from attnres_passes.torch_private.frames import leave_to_python, never_traced

PATH = "_attnres_reads_in"
"""Name of the attribute by which a module that reads a stream knows its path in the plan."""

# What torch puts between a module and its parent, and into the paths of what is below.
_WRAPPERS = ("_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module")


def plain_path(path: str) -> str:
    """The path of a module without the wrappers that torch has put around modules on the way."""
    return ".".join(part for part in path.split(".") if part not in _WRAPPERS)


def install(module: nn.Module, path: str, plan: Plan) -> None:
    """Let the modules below one make the reads of the plan that are theirs, if Python runs them.

    A module with a write in it passes the stream on, and takes the state itself.

    Args:
        module: guarded, about to be run by Python.
        path: of it in the model.
        plan: of the model.
    """
    writes = [write.module for stream in plan.streams for write in stream.writes]
    readers = {read.module for read in plan.depth_reads.values()}
    readers = {reader for reader in readers if not any(f"{write}.".startswith(f"{reader}.") for write in writes)}
    for name, part in module.named_modules():
        place = plain_path(f"{path}.{name}" if path and name else path or name)
        if place in readers and PATH not in part.__dict__:
            part.__dict__[PATH] = place
            part.register_forward_pre_hook(_before_forward, with_kwargs=True)


def uninstall(model: nn.Module) -> None:
    """Take that off again."""
    for module in model.modules():
        if module.__dict__.pop(PATH, None) is not None:
            for number, hook in list(module._forward_pre_hooks.items()):
                if hook is _before_forward:
                    del module._forward_pre_hooks[number]
                    module._forward_pre_hooks_with_kwargs.pop(number, None)


def _before_forward(
    module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """A function of the module, so that models can be pickled."""
    return None if torch.compiler.is_dynamo_compiling() else _with_reads(module, args, kwargs)


leave_to_python(_before_forward.__code__)


@never_traced
def _with_reads(
    module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """The arguments with the depth attention in place of a state; None if none is a state that the module reads."""
    path = module.__dict__[PATH]
    values = [*args, *kwargs.values()]
    changed = [_read(path, value) for value in values]
    if all(new is old for new, old in zip(changed, values, strict=True)):
        return None
    return tuple(changed[: len(args)]), dict(zip(kwargs, changed[len(args) :], strict=True))


def _read(path: str, value: Any) -> Any:
    sources = sources_of(value) if isinstance(value, Tensor) else None
    if sources is None:
        return value
    plan = sources.added.plan
    reads = [
        read_id
        for read_id, read in plan.depth_reads.items()
        if read_id.stream == sources.stream and read.module == path and read.state == sources.state
    ]
    if len(reads) > 1:
        raise BorderError(
            f"{path} reads the state after {sources.state} writes {len(reads)} times, and runs outside of any compiled "
            "part of the model: which of them its input is for cannot be told. Compile it."
        )
    return tied(depth_read(sources, reads[0]), value) if reads else value


def depth_read(sources: Sources, read_id: ReadId) -> Tensor:
    """A read of the plan, made now, by the operator that graphs hold (paper equations 2 to 4).

    Args:
        sources: of the state that is read.
        read_id: of the read in the plan.
    """
    added = sources.added
    stream, config = added.plan.streams[read_id.stream], added.plan.config
    forms = forms_of_read(config.mechanism, stream.width)
    parameters = {form.name: added.parameter(ReadParameter(read_id, form.name)) for form in forms}
    tensors = attended(sources.tensors, sources.state, stream.block_size, config.window)
    note_reads(added.calls, [read_id])
    value: Tensor
    if config.mechanism.by_definition:
        value = torch.ops.attnres.variant_attention(
            tensors, list(parameters.values()), config.eps, config.scale, *config.mechanism
        )
        return value
    weight = effective_weight(parameters["query"], parameters.get("key_weight"), config.logit_scale)
    key = key_vector(parameters["query"], weight)
    value = torch.ops.attnres.depth_attention(tensors, key, config.eps, config.scale)
    return value
