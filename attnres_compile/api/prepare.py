"""``prepare``: analyse a model once, register the parameters of its reads, and return the plan; ``unprepare``."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from attnres_compile.capture.analysis import apply_on_decline, plan_model, warn_if_partial
from attnres_compile.model import parameters
from attnres_compile.model.errors import AlreadyPreparedError
from attnres_compile.model.left_out_weights import check_none_left_out
from attnres_compile.model.optimizer_check import watch_optimizers
from attnres_compile.model.parameters import parameters_of, unwrapped
from attnres_passes.ir.config import AttnResConfig, ConfigError
from attnres_passes.ir.plan import Plan


def prepare(
    model: nn.Module,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    config: AttnResConfig | None = None,
    **options: Any,
) -> Plan:
    """Find the residual streams of ``model`` and register the parameters that depth attention adds, in place.

    The model is captured on ``model(*args, **kwargs)`` and not trained, compiled or otherwise changed. Where graph
    breaks leave no one graph, it is run once, and its buffers and the random state are put back. Call this before an
    optimizer, DDP or FSDP take the parameters, and before ``model.compile(backend="attnres")``.

    Args:
        model: any module; its forward on the example inputs is what is analysed.
        args, kwargs: example inputs; sizes may differ later, optional inputs and outputs should not.
        config: an AttnResConfig, or its fields as keywords in ``options``.

    Returns:
        The plan; a warning says if it is ``partial``. ``model.attnres.streams[i].reads[k]`` holds ``query`` ``[d]``
        (zeros) and ``key_norm.weight`` ``[d]`` (ones) of the k-th read with two sources or more of its i-th stream.

    Raises:
        ConfigError, CaptureError, NoStreamError (unless ``on_decline`` is "warn" or "ignore"), AlreadyPreparedError
        (with another plan), RegistrationError, WeightsLeftOutError (transformers loaded the model from a checkpoint
        with AttnRes parameters, without them). The model is then as it was.
    """
    chosen = config_from(config, options)
    model = unwrapped(model)
    if parameters_of(model) is None:
        check_none_left_out(model)
    plan = plan_model(model, args, kwargs, chosen)
    existing = parameters_of(model)
    if existing is not None:
        if dataclasses.replace(existing.plan, declined=()) != dataclasses.replace(plan, declined=()):
            raise AlreadyPreparedError(
                f"{type(model).__name__} is already prepared with another plan; call "
                "attnres_compile.unprepare(model) first, which drops the trained pseudo-queries."
            )
        return existing.plan
    if not plan.streams:
        apply_on_decline(plan)
        return plan
    parameters.register(model, plan)
    warn_if_partial(plan)
    watch_optimizers()
    return plan


def unprepare(model: nn.Module) -> None:
    """Take the AttnRes parameters off ``model``, which is then what it was before ``prepare``.

    Graphs that were compiled with them hold only for those parameters: Dynamo makes new ones at the next call.

    Args:
        model: prepared, or a wrapper around one prepared model.

    Raises:
        NotPreparedError.
    """
    model = parameters.require_prepared(model)
    parameters.remove(model)
    if model._compiled_call_impl is not None:
        model._compiled_call_impl = None


def config_from(config: AttnResConfig | None, options: Mapping[str, Any]) -> AttnResConfig:
    """One config from ``config=`` or keywords.

    Args:
        config: None where ``options`` count.
        options: fields of AttnResConfig.

    Raises:
        ConfigError: both are given, or an option is unknown or wrong.
    """
    if config is None:
        return AttnResConfig.from_options(options)
    if options:
        raise ConfigError(
            f"config= and the options {sorted(options)} are both given; give one of them, or use "
            "dataclasses.replace(config, ..)."
        )
    return config
