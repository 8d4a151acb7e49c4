"""The parameters that the rewrite adds, as ordinary modules: ``model.attnres.streams[i].reads[k].query``."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Self

import torch
from torch import Tensor, nn

from attnres_compile.model import left_out_weights, plan_tensor
from attnres_compile.model.border.part_of import mark_parts, unmark_parts
from attnres_compile.model.errors import NotPreparedError, RegistrationError, StalePlanError
from attnres_compile.model.in_force import guard
from attnres_compile.model.in_force.calls import Calls
from attnres_compile.model.read_modules import StreamParameters
from attnres_passes.ir.plan import Plan
from attnres_passes.ir.read_id import ReadId, ReadParameter
from attnres_passes.ir.read_parameters import PATHS

NAME = "attnres"
"""Name of the submodule that holds the parameters."""

_prepared: set[weakref.ref[nn.Module]] = set()
"""No WeakSet: to go through one takes longer than all else that an optimizer's step is checked for."""


Place = tuple[Mapping[str, nn.Module | None], str, nn.Module]
"""Where a module hangs: the children of the module around it, its name among them, and itself."""


class AttnResParameters(nn.Module):
    """All parameters of a plan, and the plan. They live on the model and follow it everywhere.

    The buffer ``plan_tensor`` says in the state dict what the parameters mean; loading another plan's is an error.
    Here alone, reads have slots: ``streams[i].reads[k]`` is the k-th read of its stream with two sources or more.
    """

    def __init__(self, plan: Plan, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        self.plan = plan
        self.calls = Calls(len(plan.streams))
        self.streams = nn.ModuleList(StreamParameters(stream, plan.config, dtype, device) for stream in plan.streams)
        self.register_buffer(plan_tensor.NAME, plan_tensor.encode(plan, dtype, device))
        self.register_load_state_dict_pre_hook(_compare_own_plan)  # type: ignore[no-untyped-call]
        self.load_check = -1

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        trusted = plan_tensor.is_trusted(self)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        # to_empty() leaves garbage. What was wrong before stays wrong: the weights beside it are another plan's.
        if trusted:
            plan_tensor.restore(self)
        return self

    def forward(self, value: Any) -> Any:
        """Pass on what is given: a model that is an ``nn.Sequential`` calls all of its children in turn."""
        return value

    def path(self, read: ReadId) -> str:
        """``streams.0.reads.2``: where the parameters of a read are."""
        before = self.plan.streams[read.stream].reads[: read.index]
        return f"streams.{read.stream}.reads.{sum(one.num_sources > 1 for one in before)}"

    def holder(self, parameter: ReadParameter) -> tuple[nn.Module, str]:
        """The module that holds a parameter, and its name there."""
        return self.get_submodule(self.holder_path(parameter)), PATHS[parameter.name].rpartition(".")[2]

    def holder_path(self, parameter: ReadParameter) -> str:
        """Path of the module that holds a parameter."""
        return f"{self.path(parameter.read)}.{PATHS[parameter.name]}".rpartition(".")[0]

    def places(self, parameters: Iterable[ReadParameter]) -> list[Place]:
        """Where the modules around some parameters hang.

        Whoever keeps ``holder``'s answers can tell by these that none of the modules was replaced.
        """
        chains = {tuple(self.holder_path(parameter).split(".")) for parameter in parameters}
        links = {chain[:length] for chain in chains for length in range(1, len(chain) + 1)}
        return [
            (self.get_submodule(".".join(link[:-1]))._modules, link[-1], self.get_submodule(".".join(link)))
            for link in sorted(links)
        ]

    def parameter(self, parameter: ReadParameter) -> nn.Parameter:
        """What an appended placeholder stands for, looked up now."""
        found: nn.Parameter = getattr(*self.holder(parameter))
        return found

    def extra_repr(self) -> str:
        return ", ".join(stream.name for stream in self.plan.streams)


def _compare_own_plan(added: nn.Module, state: Mapping[str, Any], prefix: str, *_: Any) -> None:
    assert isinstance(added, AttnResParameters)
    # Below a prefix the model has compared before, and has warned.
    plan_tensor.check_state_dict(added, state, prefix, warn=not prefix)


def _compare_models_plan(model: nn.Module, state: Mapping[str, Any], prefix: str, *_: Any) -> None:
    """A function of the module, so that models can be pickled; at the model, since torch loads its weights first."""
    added = parameters_of(model)
    if added is not None:
        plan_tensor.check_state_dict(added, state, f"{prefix}{NAME}.", warn=True)


def unwrapped(model: nn.Module) -> nn.Module:
    """The module inside what ``torch.compile(model)`` returned; the model itself otherwise."""
    inner = getattr(model, "_orig_mod", None)
    return inner if isinstance(inner, nn.Module) else model


def parameters_of(model: nn.Module) -> AttnResParameters | None:
    """The AttnRes parameters registered on ``model`` itself, if it is prepared.

    Raises:
        StalePlanError: a wrapper stands in their place.
    """
    found = model._modules.get(NAME)
    if found is None or isinstance(found, AttnResParameters):
        return found
    if any(isinstance(inside, AttnResParameters) for inside in found.modules()):
        streams = [f"{NAME}.streams.{index}" for index in range(_num_streams(found))]
        raise StalePlanError(
            f"a {type(found).__name__} stands where prepare put {type(model).__name__}.{NAME}, and has the AttnRes "
            f"parameters inside. Wrap its streams and not the whole: for peft, modules_to_save={streams}."
        )
    return None


def _num_streams(wrapper: nn.Module) -> int:
    return next(len(inside.streams) for inside in wrapper.modules() if isinstance(inside, AttnResParameters))


def find_prepared(model: nn.Module) -> nn.Module | None:
    """The prepared model that is meant: ``model`` itself, or the only one in it.

    Args:
        model: may be what torch.compile, DDP, FSDP, peft or an average of weights put around it.
    """
    model = unwrapped(model)
    if parameters_of(model) is not None:
        return model
    found = [part for _, part in prepared_within(model)]
    return found[0] if len(found) == 1 else None


def require_prepared(model: nn.Module) -> nn.Module:
    """The prepared model that is meant by a wrapper around it. Raises NotPreparedError."""
    found = find_prepared(model)
    if found is None:
        name = type(unwrapped(model)).__name__
        several = sum(1 for _ in prepared_within(unwrapped(model)))
        raise NotPreparedError(
            f"{name} holds {several} prepared models; give the one that is meant."
            if several
            else f"{name} has no AttnRes parameters; call attnres_compile.prepare(model, ..) first."
        )
    return found


def require_parameters(model: nn.Module) -> AttnResParameters:
    """The AttnRes parameters of ``model``, or of the prepared model in a wrapper. Raises NotPreparedError."""
    found = parameters_of(require_prepared(model))
    assert found is not None
    return found


def register(model: nn.Module, plan: Plan, compiled_already: bool = False) -> AttnResParameters:
    """Make parameters and register them, and guard the model.

    Args:
        model: that they become ``model.attnres`` of, in its dtype and on its device.
        plan: that says which.
        compiled_already: whether a graph of the model is being compiled now.

    Raises:
        RegistrationError: the model has an attribute of that name.
        WeightsLeftOutError: with ``compiled_already``, those of ``left_out_weights.check_none_left_out``.
    """
    if compiled_already:
        left_out_weights.check_none_left_out(model)
    if hasattr(model, NAME):
        raise RegistrationError(
            f"{type(model).__name__} already has an attribute {NAME!r} of its own; rename it, since the parameters "
            "of the reads are registered under that name."
        )
    first = next((parameter for parameter in model.parameters() if parameter.is_floating_point()), None)
    dtype = torch.get_default_dtype() if first is None else first.dtype
    device = torch.device("cpu") if first is None else first.device
    parameters = AttnResParameters(plan, dtype, device)
    parameters.train(model.training)
    model.add_module(NAME, parameters)
    # The number and not the handle, which would make a copy of the parameters alone one of the whole model.
    handle = model.register_load_state_dict_pre_hook(_compare_models_plan)  # type: ignore[no-untyped-call]
    parameters.load_check = handle.id
    mark_parts(model)
    guard.install(model, plan, parameters.calls, compiled_already)
    note_prepared(model)
    return parameters


def note_prepared(model: nn.Module) -> None:
    """Remember a prepared model, for as long as it lives; a copy of one is first seen when it is compiled."""
    _prepared.add(weakref.ref(model, _prepared.discard))


def prepared_models() -> list[tuple[nn.Module, AttnResParameters]]:
    """All prepared models that are known and alive, and the parameters on them."""
    found = []
    for reference in tuple(_prepared):
        model = reference()
        added = None if model is None else model._modules.get(NAME)
        if model is not None and isinstance(added, AttnResParameters):
            found.append((model, added))
    return found


def remove(model: nn.Module) -> None:
    """Take the parameters and every trace of them off ``model``."""
    added = require_parameters(model)
    guard.uninstall(model)
    model._load_state_dict_pre_hooks.pop(added.load_check, None)
    _prepared.discard(weakref.ref(model))
    delattr(model, NAME)
    unmark_parts(model)


def is_in_use(added: AttnResParameters) -> bool:
    """Whether a prepared model that is alive has these parameters, and not others since."""
    return any(known is added for _, known in prepared_models())


def prepared_within(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Prepared models inside ``module``, itself included, with their paths."""
    for path, part in module.named_modules():
        if parameters_of(part) is not None:
            yield path, part
