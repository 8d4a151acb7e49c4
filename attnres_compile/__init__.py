"""Block Attention Residuals for any PreNorm transformer, by ``torch.compile(model, backend="attnres")``.

    plan = attnres_compile.prepare(model, kwargs=dict(input_ids=ids), num_blocks=8)
    model.compile(backend="attnres")

Attention Residuals: Kimi Team, arXiv 2603.15031.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from attnres_compile.api.explanation import Explanation, explain
    from attnres_compile.api.model_status import Status, status
    from attnres_compile.api.optimizers import param_groups
    from attnres_compile.api.preparation import prepare, unprepare
    from attnres_compile.api.save_load import load, save
    from attnres_compile.api.verification import Verification, verify
    from attnres_compile.measure.overhead import overhead
    from attnres_compile.pipelines.pipeline import Pipeline, pipeline
    from attnres_compile.recording.live import Recording, depth_weights
    from attnres_compile.recording.record import DepthWeights
    from attnres_compile.report.table import OverheadReport
    from attnres_kernels.errors import AttnResError
    from attnres_passes.ir.config import AttnResConfig
    from attnres_passes.ir.plan import Plan

# Loaded when first used, so that the command line answers without loading torch.
_HOMES = {
    "AttnResConfig": "attnres_passes.ir.config",
    "AttnResError": "attnres_kernels.errors",
    "DepthWeights": "attnres_compile.recording.record",
    "Explanation": "attnres_compile.api.explanation",
    "OverheadReport": "attnres_compile.report.table",
    "Pipeline": "attnres_compile.pipelines.pipeline",
    "Plan": "attnres_passes.ir.plan",
    "Recording": "attnres_compile.recording.live",
    "Status": "attnres_compile.api.model_status",
    "Verification": "attnres_compile.api.verification",
    "depth_weights": "attnres_compile.recording.live",
    "explain": "attnres_compile.api.explanation",
    "load": "attnres_compile.api.save_load",
    "overhead": "attnres_compile.measure.overhead",
    "param_groups": "attnres_compile.api.optimizers",
    "pipeline": "attnres_compile.pipelines.pipeline",
    "prepare": "attnres_compile.api.preparation",
    "save": "attnres_compile.api.save_load",
    "status": "attnres_compile.api.model_status",
    "unprepare": "attnres_compile.api.preparation",
    "verify": "attnres_compile.api.verification",
}

__all__ = [
    "AttnResConfig",
    "AttnResError",
    "DepthWeights",
    "Explanation",
    "OverheadReport",
    "Pipeline",
    "Plan",
    "Recording",
    "Status",
    "Verification",
    "depth_weights",
    "explain",
    "load",
    "overhead",
    "param_groups",
    "pipeline",
    "prepare",
    "save",
    "status",
    "unprepare",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
