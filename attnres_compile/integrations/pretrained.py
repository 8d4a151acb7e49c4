"""``from_pretrained``: a prepared model of transformers, as ``model.save_pretrained`` wrote it."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from attnres_compile.api import saved_directory
from attnres_compile.api.save_load import adopt, load
from attnres_compile.api.saved_directory import SavedDirectory
from attnres_compile.capture.analysis import plan_model
from attnres_compile.model import plan_tensor
from attnres_compile.model.errors import CaptureError, SavedStateError
from attnres_compile.model.left_out_weights import PREFIX, names_in, weight_files
from attnres_compile.model.optimizer_check import watch_optimizers
from attnres_compile.model.plan_tensor import PlanFacts
from attnres_passes.ir.config import AttnResConfig
from attnres_passes.ir.plan import Plan

_WITH_PLAN = "attnres_compile.save(model, directory) beside model.save_pretrained(directory)"


def from_pretrained(
    directory: str | Path, cls: Any, *, inputs: Mapping[str, Any] | None = None, **kwargs: Any
) -> nn.Module:
    """A prepared model of transformers with all of its weights, AttnRes parameters among them.

    ``model.save_pretrained(directory)`` of a prepared model writes its AttnRes parameters with the others, and a small
    tensor that says what they mean. The plan itself is read from what ``attnres_compile.save(model, directory)`` wrote
    into the same directory. Without that, the model is planned again with the saved blocks, scale and eps, and the
    plans are compared; a plan with ``streams=`` or ``allow_unnormed=`` needs the saved one.

    Args:
        directory: on this machine: of ``save_pretrained``, or a checkpoint of the Trainer. One in which
            ``save_pretrained`` wrote a plain model and ``attnres_compile.save`` the rest will do as well.
        cls: a class of transformers, or an Auto class.
        inputs: keywords of the forward to plan with; those of ``model.dummy_inputs`` if left out.
        kwargs: of ``cls.from_pretrained``.

    Returns:
        The model, prepared and not compiled, in evaluation mode as ``cls.from_pretrained`` returns it.

    Raises:
        SavedStateError: the directory holds no AttnRes parameters, or those of another plan than can be found for
            the model, or tensors that do not fit. No model is returned then.
    """
    folder = Path(directory)
    if not folder.is_dir():
        raise SavedStateError(
            f"{folder} is no directory; give one that model.save_pretrained wrote. "
            "huggingface_hub.snapshot_download(name) makes one of a repository on the Hub."
        )
    tensors, path = _read_tensors(folder, kwargs.get("variant"))
    has_plan = any((folder / name).exists() for name in (saved_directory.TENSOR_FILE, saved_directory.PLAN_FILE))
    if not tensors and not has_plan:
        raise SavedStateError(
            f"{folder} holds no AttnRes parameters: it was saved from a plain model. Load it with {cls.__name__}"
            ".from_pretrained, and call attnres_compile.prepare(model, ..)."
        )
    facts = _facts(tensors, path) if tensors else None
    saved = saved_directory.read(folder) if has_plan else None
    model = _load_plain(folder, cls, kwargs)
    if facts is None or path is None:
        load(model, folder)
    else:
        plan = _plan_again(model, facts, inputs, folder) if saved is None else saved.plan
        _check_same(facts, plan, folder, planned=saved is None)
        adopt(model, SavedDirectory(plan, tensors), path)
    watch_optimizers()
    return model


def _read_tensors(folder: Path, variant: str | None) -> tuple[dict[str, Tensor], Path | None]:
    """Tensors by their names below ``model.attnres``, and a file that holds some."""
    files = weight_files(folder, variant)
    if not files:
        raise SavedStateError(
            f"{folder} holds no model.safetensors or shards of it; give a directory that model.save_pretrained wrote."
        )
    tensors: dict[str, Tensor] = {}
    found = None
    for path in files:
        try:
            ours = [name for name in names_in(path) if name.startswith(PREFIX)]
            tensors |= {name.removeprefix(PREFIX): value for name, value in _values(path, ours).items()}
        except Exception as error:  # The parser's own error is no ValueError.
            raise SavedStateError(f"{path} cannot be read ({error}); take another copy of it.") from error
        found = path if ours else found
    return tensors, found


def _values(path: Path, names: list[str]) -> dict[str, Tensor]:
    from safetensors import safe_open

    file: Any
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in names}


def _facts(tensors: Mapping[str, Tensor], path: Path | None) -> PlanFacts:
    """What the tensors say of the plan that they belong to."""
    encoded = tensors.get(plan_tensor.NAME)
    if encoded is None:
        raise SavedStateError(
            f"{path} holds AttnRes parameters and no {PREFIX}{plan_tensor.NAME}, which says what they mean; save the "
            "model again with this attnres_compile."
        )
    try:
        facts = plan_tensor.facts_in(encoded)
    except SavedStateError as error:
        raise SavedStateError(f"{PREFIX}{plan_tensor.NAME} in {path} {error.message}; save the model again.") from error
    assert facts is not None
    return facts


def _load_plain(folder: Path, cls: Any, kwargs: Mapping[str, Any]) -> nn.Module:
    """What the library itself loads. Its report of weights without a place is shown if it has more than ours."""
    with _reports_kept() as reports:
        model, information = cls.from_pretrained(str(folder), output_loading_info=True, **kwargs)
    lists = [information.get(name) or () for name in ("missing_keys", "mismatched_keys", "error_msgs")]
    others = [name for name in information.get("unexpected_keys") or () if not name.startswith(PREFIX)]
    if others or any(lists):
        for logger, record in reports:
            logger.handle(record)
    loaded: nn.Module = model
    return loaded


@contextmanager
def _reports_kept() -> Iterator[list[tuple[logging.Logger, logging.LogRecord]]]:
    """Hold back the reports that transformers logs of a loaded model."""
    logger = logging.getLogger("transformers.modeling_utils")
    kept: list[tuple[logging.Logger, logging.LogRecord]] = []

    def keep(record: logging.LogRecord) -> bool:
        is_report = "LOAD REPORT" in record.getMessage()
        if is_report:
            kept.append((logger, record))
        return not is_report

    logger.addFilter(keep)
    try:
        yield kept
    finally:
        logger.removeFilter(keep)


def _plan_again(model: nn.Module, facts: PlanFacts, inputs: Mapping[str, Any] | None, folder: Path) -> Plan:
    """The plan of a model under the saved options, found as ``prepare`` finds it."""
    given = inputs if inputs is not None else getattr(model, "dummy_inputs", None)
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    placed = {
        name: value.to(device) if isinstance(value, Tensor) else value for name, value in dict(given or {}).items()
    }
    config = AttnResConfig(scale=facts.scale, eps=facts.eps, on_decline="ignore", **_blocks(facts, folder))  # type: ignore[arg-type]
    try:
        return plan_model(model, (), placed, config)
    except CaptureError as error:
        own = f"{type(model).__name__}.dummy_inputs" if inputs is None else "the inputs"
        raise SavedStateError(
            f"{folder} holds no plan of its own, and {type(model).__name__} cannot be planned with {own}: "
            f"{error.message} Give inputs= that its forward takes, or save with {_WITH_PLAN}."
        ) from error


def _blocks(facts: PlanFacts, folder: Path) -> dict[str, int]:
    """The option that gives every stream its saved size of blocks."""
    sizes = {(stream.writes, stream.block_size) for stream in facts.streams}
    if len({size for _, size in sizes}) == 1:
        return {"block_size": next(size for _, size in sizes)}
    for count in range(1, max(writes for writes, _ in sizes) + 1):
        if all(math.ceil(writes / count) == size for writes, size in sizes):
            return {"num_blocks": count}
    raise SavedStateError(
        f"{folder} holds streams in blocks of sizes that no one option gives; save it with {_WITH_PLAN}."
    )


def _check_same(facts: PlanFacts, plan: Plan, folder: Path, planned: bool) -> None:
    found = plan_tensor.differences(facts, plan_tensor.facts_of(plan))
    if not found:
        return
    advice = (
        f"Give inputs= like those that it was prepared with, and the class that it was saved from; or save it with "
        f"{_WITH_PLAN}, which keeps the plan."
        if planned
        else f"{saved_directory.PLAN_FILE} there is of another save; save both again."
    )
    raise SavedStateError(
        f"{folder} holds AttnRes parameters of another plan than {'was found for the model' if planned else 'beside'}: "
        f"{'; '.join(found)}. {advice}"
    )
