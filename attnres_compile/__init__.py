"""Block Attention Residuals for any PreNorm transformer, by ``torch.compile(model, backend="attnres")``.

    plan = attnres_compile.prepare(model, kwargs=dict(input_ids=ids), num_blocks=8)
    model.compile(backend="attnres")

Attention Residuals: Kimi Team, arXiv 2603.15031.
"""

from attnres_compile.explanation import Explanation, explain
from attnres_compile.model_status import Status, status
from attnres_compile.optimizers import param_groups
from attnres_compile.overhead import OverheadReport, overhead
from attnres_compile.preparation import prepare, unprepare
from attnres_compile.save_load import load, save
from attnres_compile.verification import Verification, verify
from attnres_kernels.errors import AttnResError
from attnres_passes.config import AttnResConfig

__all__ = [
    "AttnResConfig",
    "AttnResError",
    "Explanation",
    "OverheadReport",
    "Status",
    "Verification",
    "explain",
    "load",
    "overhead",
    "param_groups",
    "prepare",
    "save",
    "status",
    "unprepare",
    "verify",
]
