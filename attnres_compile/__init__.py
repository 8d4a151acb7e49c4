"""Block Attention Residuals for any PreNorm transformer, by ``torch.compile(model, backend="attnres")``.

    plan = attnres_compile.prepare(model, kwargs=dict(input_ids=ids), num_blocks=8)
    model.compile(backend="attnres")

Attention Residuals: Kimi Team, arXiv 2603.15031.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from attnres_compile.api.explain import Explanation as Explanation
    from attnres_compile.api.explain import explain as explain
    from attnres_compile.api.optimizers import param_groups as param_groups
    from attnres_compile.api.plain import plain as plain
    from attnres_compile.api.prepare import prepare as prepare
    from attnres_compile.api.prepare import unprepare as unprepare
    from attnres_compile.api.save_load import load as load
    from attnres_compile.api.save_load import save as save
    from attnres_compile.api.status import status as status
    from attnres_compile.api.verification import Verification as Verification
    from attnres_compile.api.verify import verify as verify
    from attnres_compile.integrations.callback import AttnResCallback as AttnResCallback
    from attnres_compile.integrations.export import export_weights as export_weights
    from attnres_compile.integrations.pretrained import from_pretrained as from_pretrained
    from attnres_compile.measure.overhead import overhead as overhead
    from attnres_compile.model.status import Status as Status
    from attnres_compile.pipelines.pipeline import pipeline as pipeline
    from attnres_compile.pipelines.rank import Pipeline as Pipeline
    from attnres_compile.recording.live import Recording as Recording
    from attnres_compile.recording.live import depth_weights as depth_weights
    from attnres_compile.recording.weights import DepthWeights as DepthWeights
    from attnres_compile.report.parallel import Parallel as Parallel
    from attnres_compile.report.table import OverheadReport as OverheadReport
    from attnres_kernels.errors import AttnResError as AttnResError
    from attnres_passes.ir.config import AttnResConfig as AttnResConfig
    from attnres_passes.ir.plan import Plan as Plan

# Loaded when first used, so that the command line answers without loading torch.
_HOMES = {
    "AttnResCallback": "attnres_compile.integrations.callback",
    "AttnResConfig": "attnres_passes.ir.config",
    "AttnResError": "attnres_kernels.errors",
    "DepthWeights": "attnres_compile.recording.weights",
    "Explanation": "attnres_compile.api.explain",
    "OverheadReport": "attnres_compile.report.table",
    "Parallel": "attnres_compile.report.parallel",
    "Pipeline": "attnres_compile.pipelines.rank",
    "Plan": "attnres_passes.ir.plan",
    "Recording": "attnres_compile.recording.live",
    "Status": "attnres_compile.model.status",
    "Verification": "attnres_compile.api.verification",
    "depth_weights": "attnres_compile.recording.live",
    "explain": "attnres_compile.api.explain",
    "export_weights": "attnres_compile.integrations.export",
    "from_pretrained": "attnres_compile.integrations.pretrained",
    "load": "attnres_compile.api.save_load",
    "overhead": "attnres_compile.measure.overhead",
    "param_groups": "attnres_compile.api.optimizers",
    "pipeline": "attnres_compile.pipelines.pipeline",
    "plain": "attnres_compile.api.plain",
    "prepare": "attnres_compile.api.prepare",
    "save": "attnres_compile.api.save_load",
    "status": "attnres_compile.api.status",
    "unprepare": "attnres_compile.api.prepare",
    "verify": "attnres_compile.api.verify",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
