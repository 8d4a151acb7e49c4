"""The compiled graph at run time: the model's own arguments, and the parameters of the reads behind them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from attnres_compile.model.errors import StalePlanError
from attnres_compile.model.parameters import AttnResParameters
from attnres_compile.recording.graph import GraphRecorder
from attnres_compile.recording.live import open_recording
from attnres_passes.ir.read_id import ReadParameter


class CompiledGraph:
    """Calls what the inner compiler made.

    Parameters are looked up at every call, so that loading, moving and sharding them works as for any other
    parameter; the modules that hold them are looked up once, since a call may be one step of decoding. Dynamo has no
    guards on parameters; what a guard would check is checked here. While the model is recorded, the recorder of the
    graph is called instead.
    """

    def __init__(
        self,
        compiled: Callable[..., Any],
        parameters: AttnResParameters,
        added: tuple[ReadParameter, ...],
        recorder: GraphRecorder,
    ) -> None:
        self.compiled, self.added, self.parameters, self.recorder = compiled, added, parameters, recorder
        self.holders = [parameters.holder(parameter) for parameter in added]
        self.compiled_for = [_signature(getattr(module, name)) for module, name in self.holders]

    def __call__(self, *args: Any) -> Any:
        self.parameters.calls.rewritten += 1
        added = [getattr(module, name) for module, name in self.holders]
        if [_signature(parameter) for parameter in added] != self.compiled_for:
            self._refuse(added)
        recording = open_recording(self.parameters)
        if recording is not None:
            return self.recorder(recording, self.compiled, args, added)
        return self.compiled(*args, *added)

    def _refuse(self, added: list[Any]) -> None:
        """Raise StalePlanError for the first parameter that is not what the graph was compiled for."""
        changed = map(lambda parameter, signature: _signature(parameter) != signature, added, self.compiled_for)
        first = next(parameter for parameter, differs in zip(self.added, changed, strict=True) if differs)
        raise StalePlanError(
            f"attnres.{self.parameters.path(first.read)} ({first.name}) has changed its dtype, device or "
            "requires_grad since the model was compiled, and torch did not compile it again; if the whole model was "
            "changed, call torch.compiler.reset() first, else change the rest of it, too."
        )


def _signature(parameter: Any) -> tuple[Any, ...]:
    return parameter.dtype, parameter.device, parameter.requires_grad
