"""The compiled graph at run time: the model's own arguments, and the parameters of the reads behind them."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

from torch import nn

from attnres_compile.model.border.offloaded import check_loaded
from attnres_compile.model.border.own_values import own_values
from attnres_compile.model.errors import StalePlanError
from attnres_compile.model.in_force.calls import Calls
from attnres_compile.model.parameters import NAME, AttnResParameters
from attnres_compile.recording.graph import GraphRecorder
from attnres_compile.recording.live import open_recording
from attnres_passes.ir.read_id import ReadParameter


class CompiledGraph:
    """Calls what the inner compiler made.

    Parameters are looked up at every call, so that loading, moving and sharding them works as for any other
    parameter; the modules that hold them are looked up again only when one was replaced, since a call may be one step
    of decoding. Dynamo has no guards on parameters; what a guard would check is checked here. While the model is
    recorded, the recorder of the graph is called instead.
    """

    def __init__(
        self,
        compiled: Callable[..., Any],
        model: nn.Module,
        parameters: AttnResParameters,
        added: tuple[ReadParameter, ...],
        recorder: GraphRecorder,
    ) -> None:
        self.compiled, self.added, self.parameters, self.recorder = compiled, added, parameters, recorder
        self.model = weakref.ref(model)
        self.streams = sorted({parameter.read.stream for parameter in added})
        self._find_holders()
        held = self._look_up()
        self.compiled_for = _signatures(held)
        self.without_data = any(value.is_meta for value in held)

    def _find_holders(self) -> None:
        holders = [self.parameters.holder(parameter) for parameter in self.added]
        self.holders = [(module._parameters, name, module) for module, name in holders]
        self.places = self.parameters.places(self.added)

    def _look_up(self) -> list[Any]:
        # A parameter that is computed from others, by torch's parametrizations, is an attribute only.
        return [
            parameters[name] if name in parameters else getattr(module, name)
            for parameters, name, module in self.holders
        ]

    def __call__(self, *args: Any) -> Any:
        model = self.model()
        if model is None or model._modules.get(NAME) is not self.parameters:
            raise StalePlanError(
                "this graph was compiled for other AttnRes parameters than its model has now; call "
                "torch.compiler.reset() before you call the model again."
            )
        if any(modules.get(name) is not module for modules, name, module in self.places):
            # A read, or its key norm, was replaced by another module.
            self._find_holders()
        added = self._look_up()
        if self.without_data:
            check_loaded(self.parameters, self.added, added, args)
        if _signatures(added) != self.compiled_for:
            check_loaded(self.parameters, self.added, added, args)
            self._refuse(added)
        added = own_values(self.recorder.rewritten.parameters, added, self.recorder.rewritten.groups)
        self.parameters.calls.note_run(self.streams)
        recording = open_recording(self.parameters)
        if recording is not None:
            return self.recorder(recording, self.compiled, args, added)
        return self.compiled(*args, *added)

    def _refuse(self, added: list[Any]) -> None:
        """Raise StalePlanError for the first parameter that is not what the graph was compiled for."""
        pairs = zip(self.added, _signatures(added), self.compiled_for, strict=True)
        first = next(parameter for parameter, now, then in pairs if now != then)
        raise StalePlanError(
            f"attnres.{self.parameters.path(first.read)} ({first.name}) has changed its dtype, device or "
            "requires_grad since the model was compiled, and torch did not compile it again; if the whole model was "
            "changed, call torch.compiler.reset() first, else change the rest of it, too."
        )


class PlainGraph:
    """A graph of a prepared model that was compiled inside ``attnres_compile.plain``, as it is.

    Args:
        compiled: what the inner compiler made.
        calls: of the model.
    """

    def __init__(self, compiled: Callable[..., Any], calls: Calls) -> None:
        self.compiled, self.calls = compiled, calls

    def __call__(self, *args: Any) -> Any:
        self.calls.note_plain_on_purpose()
        return self.compiled(*args)


def _signatures(parameters: list[Any]) -> list[tuple[Any, ...]]:
    return [(parameter.dtype, parameter.device, parameter.requires_grad) for parameter in parameters]
