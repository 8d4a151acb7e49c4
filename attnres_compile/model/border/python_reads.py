"""Reads that Python makes: of the final norm of a model whose layers alone are compiled, behind a graph break.

A module that reads is given the depth attention of the sources in place of the state, before its forward runs, and so
is the caller of a model that returns a state as it is. Inside a graph, the rewrite has seen to it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from attnres_compile.model.border.call_reads import CallReads, missing_reads, note_reads
from attnres_compile.model.border.known_states import Sources, sources_of
from attnres_compile.model.border.offloaded import check_loaded
from attnres_compile.model.border.own_values import own_values
from attnres_compile.model.errors import BorderError
from attnres_kernels.definition.naive import key_vector
from attnres_kernels.definition.variants import effective_weight
from attnres_passes.analyses.blocks import attended
from attnres_passes.ir.config import AttnResConfig
from attnres_passes.ir.plan import Plan
from attnres_passes.ir.read_id import ParameterName, ReadId, ReadParameter
from attnres_passes.ir.read_parameters import forms_of_read
from attnres_passes.torch_private.borders.tensor_identity import tied
from attnres_passes.torch_private.frames import leave_to_python, never_traced
from attnres_passes.torch_private.ranks.dtensors import cut_over, local_part, read_parts, spread_like

PATH = "_attnres_reads_in"
"""Name of the attribute by which a module that reads a stream knows its path in the plan."""

# What torch puts between a module and its parent, and into the paths of what is below.
_WRAPPERS = ("_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module")


def plain_path(path: str) -> str:
    """The path of a module without the wrappers that torch has put around modules on the way."""
    return ".".join(part for part in path.split(".") if part not in _WRAPPERS)


class Installed:
    """Where the modules that read a stream were found below one, so that a call need not look for them again.

    plan: that was installed; places: of each module on the way to one that reads, in the ``_modules`` of its parent.
    """

    def __init__(self, plan: Plan, places: Sequence[tuple[dict[str, nn.Module | None], str, nn.Module]]) -> None:
        self.plan, self.places = plan, places

    def is_current(self, plan: Plan) -> bool:
        """Whether nothing was replaced since."""
        return plan is self.plan and all(modules.get(name) is part for modules, name, part in self.places)

    def __reduce__(self) -> tuple[type[None], tuple[()]]:
        """A copy of the model finds its own."""
        return type(None), ()


def install(module: nn.Module, path: str, plan: Plan) -> Installed:
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
    places: dict[str, tuple[dict[str, nn.Module | None], str, nn.Module]] = {}
    for name, part in module.named_modules():
        place = plain_path(f"{path}.{name}" if path and name else path or name)
        if place not in readers:
            continue
        if PATH not in part.__dict__:
            part.__dict__[PATH] = place
            # Before what turns a tensor into a DTensor, which is no state any more.
            part.register_forward_pre_hook(_before_forward, with_kwargs=True, prepend=True)
        parent, way = module, ""
        for step in name.split(".") if name else ():
            way, child = f"{way}.{step}", parent._modules[step]
            assert child is not None
            places[way] = parent._modules, step, child
            parent = child
    return Installed(plan, tuple(places.values()))


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
    return tied(depth_read(value, sources, reads[0]), value) if reads else value


@never_traced
def with_reads_of_result(result: Any, of_call: CallReads, plan: Plan) -> Any:
    """What a model returns, with the depth attention in place of each state in it that no graph of it has read.

    A container that torch's pytrees do not know is left as it is, and what was to be read in it stays left out.

    Args:
        result: of the forward of the model, which Python ran.
        of_call: with the reads that its parts have made.
        plan: of the model.
    """
    missing = [one for one in missing_reads(of_call, plan, "") if plan.depth_reads[one].returned]
    if not missing or not of_call.pieces:
        return result
    read: dict[int, Tensor] = {}

    def given(state: Tensor) -> Tensor:
        sources = sources_of(state) if id(state) not in read else None
        if sources is not None and sources.added.calls is of_call.calls:
            reads = [
                one for one in missing if (one.stream, plan.depth_reads[one].state) == (sources.stream, sources.state)
            ]
            if len(reads) == 1:
                read[id(state)] = tied(depth_read(state, sources, reads[0]), state)
        return read.get(id(state), state)

    changed = tree_map_only(Tensor, given, result)
    return changed if read else result


def depth_read(state: Tensor, sources: Sources, read_id: ReadId) -> Tensor:
    """A read of the plan, made now, by the operator that graphs hold (paper equations 2 to 4).

    Args:
        state: that is read.
        sources: of the state.
        read_id: of the read in the plan.
    """
    added = sources.added
    stream, config = added.plan.streams[read_id.stream], added.plan.config
    own = [ReadParameter(read_id, form.name) for form in forms_of_read(config.mechanism, stream.width)]
    groups = (*sources.groups, *cut_over(state))
    held = list(map(added.parameter, own))
    check_loaded(added, own, held, [state])
    values = own_values(own, held, {read_id: groups})
    note_reads(added.calls, [read_id])
    tensors = attended(sources.tensors, sources.state, stream.block_size, config.window)
    parts = read_parts(state)
    given = [local_part(source, parts) for source in tensors]
    return spread_like(_read_by(given, dict(zip((one.name for one in own), values, strict=True)), config), state, parts)


def _read_by(sources: Sequence[Tensor], parameters: Mapping[ParameterName, Tensor], config: AttnResConfig) -> Tensor:
    """A read of sources that are here, by parameters that are.

    Args:
        sources: that it attends to.
        parameters: of the read, by name, in the order of its mechanism.
        config: of the plan.
    """
    value: Tensor
    if config.mechanism.by_definition:
        value = torch.ops.attnres.variant_attention(
            sources, list(parameters.values()), config.eps, config.scale, *config.mechanism
        )
        return value
    weight = effective_weight(parameters["query"], parameters.get("key_weight"), config.logit_scale)
    value = torch.ops.attnres.depth_attention(
        sources, key_vector(parameters["query"], weight), config.eps, config.scale
    )
    return value
