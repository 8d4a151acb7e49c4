"""Ways to call a prepared model that was copied, changed, or called otherwise before; as in ``ways``."""

from __future__ import annotations

import copy
import functools
import io
import pickle
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

import attnres_compile as ac
from attnres_compile.model.parameters import AttnResParameters
from attnres_compile.model.read_modules import ReadParameters
from tests.end_to_end.guarded_model import EAGER, WIDTH, Net, in_place, randomize
from tests.end_to_end.ways import way


@way
def deepcopy(model: Net, x: Tensor) -> Any:
    in_place(model)(x)
    return copy.deepcopy(model)(x)


@way
def deepcopy_compiled(model: Net, x: Tensor) -> Any:
    in_place(model)(x)
    copied = in_place(copy.deepcopy(model))
    return copied(x), copied


@way
def shallow_copy(model: Net, x: Tensor) -> Any:
    in_place(model)(x)
    return copy.copy(model)(x)


@way
def pickled(model: Net, x: Tensor) -> Any:
    return pickle.loads(pickle.dumps(in_place(model)))(x)


@way
def pickled_and_compiled(model: Net, x: Tensor) -> Any:
    copied = in_place(pickle.loads(pickle.dumps(model)))
    return copied(x), copied


@way
def saved_whole(model: Net, x: Tensor) -> Any:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)(x)


@way
def average_of_weights(model: Net, x: Tensor) -> Any:
    in_place(model)(x)
    return torch.optim.swa_utils.AveragedModel(model)(x)


@way
def average_of_weights_compiled(model: Net, x: Tensor) -> Any:
    averaged = torch.optim.swa_utils.AveragedModel(model)
    in_place(averaged.module)
    return averaged(x), averaged.module


@way
def beyond_the_recompile_limit(model: Net, x: Tensor) -> Any:
    in_place(model)
    for count in range(torch._dynamo.config.recompile_limit + 2):
        model.body.blocks[0].norm.eps = 1e-5 * (1 + count)
        result = model(x)
    return result


@way
def error_that_torch_hides(model: Net, x: Tensor) -> Any:
    model.compile(backend="attnres", options={"num_blocks": 2})
    with torch._dynamo.config.patch(suppress_errors=True):
        return model(x)


@way
def another_plan(model: Net, x: Tensor) -> Any:
    in_place(model)(x)
    ac.unprepare(model)
    ac.prepare(model, (x,), block_size=1, inner="eager")
    randomize(model)
    return in_place(model)(x)


@way
def another_plan_behind_a_wrapper(model: Net, x: Tensor) -> Any:
    compiled = torch.compile(model, backend="attnres", options=EAGER)
    compiled(x)
    ac.unprepare(model)
    ac.prepare(model, (x,), block_size=1, inner="eager")
    randomize(model)
    return compiled(x)


@way
def other_parameters(model: Net, x: Tensor) -> Any:
    in_place(model)(x)
    with torch.no_grad():
        model.attnres = AttnResParameters(model.attnres.plan, torch.float64, torch.device("cpu"))
        for parameter in model.attnres.parameters():
            parameter.normal_()
    return model(x)


@way
def another_read(model: Net, x: Tensor) -> Any:
    in_place(model)(x)
    model.attnres.streams[0].reads[1] = ReadParameters(WIDTH, 1e-6, torch.float64, torch.device("cpu"))
    with torch.no_grad():
        model.attnres.streams[0].reads[1].query.fill_(2.0)
    return model(x)


@way
def another_query(model: Net, x: Tensor) -> Any:
    in_place(model)(x)
    read = model.attnres.streams[0].reads[0]
    read.query = nn.Parameter(torch.full_like(read.query, 2.0))
    return model(x)


@way
def break_before_the_stream(model: Net, x: Tensor) -> Any:
    model.body.between = lambda number, _: torch._dynamo.graph_break() if number < 0 else None
    return in_place(model)(x)


@way
def break_between_layers(model: Net, x: Tensor) -> Any:
    model.body.between = lambda number, _: torch._dynamo.graph_break() if number == 1 else None
    return in_place(model)(x)


@way
def after_a_reset(model: Net, x: Tensor) -> Any:
    in_place(model)(x)
    torch.compiler.reset()
    return model(x)


@way
def wrapper_after_a_reset(model: Net, x: Tensor) -> Any:
    compiled = torch.compile(model, backend="attnres", options=EAGER)
    compiled(x)
    torch.compiler.reset()
    return compiled(x)


@way
def two_models_of_a_class(model: Net, x: Tensor) -> Any:
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in other.attnres.parameters():
            parameter.normal_()
    in_place(other)(x)
    return in_place(model)(x)


@way
def hooks_on_the_model(model: Net, x: Tensor) -> Any:
    model.register_forward_pre_hook(lambda module, args: None)
    model.register_forward_hook(lambda module, args, output: output + 0)
    model.body.register_forward_hook(lambda module, args, output: None)
    return in_place(model)(x)


@way
def forward_replaced_before(model: Net, x: Tensor) -> Any:
    ac.unprepare(model)
    model.forward = MethodType(lambda self, value: self.head(self.body(value)), model)
    ac.prepare(model, (x,), block_size=1, inner="eager")
    randomize(model)
    return model(x)


@way
def forward_replaced_before_and_compiled(model: Net, x: Tensor) -> Any:
    ac.unprepare(model)
    model.forward = MethodType(lambda self, value: self.head(self.body(value)), model)
    ac.prepare(model, (x,), block_size=1, inner="eager")
    randomize(model)
    return in_place(model)(x)


@way
def forward_wrapped_afterwards(model: Net, x: Tensor) -> Any:
    """As accelerate does for mixed precision and for offloading."""
    forward = model.forward
    model.forward = functools.wraps(forward)(lambda value: forward(value))
    return in_place(model)(x)


@way
def forward_wrapped_afterwards_and_not_compiled(model: Net, x: Tensor) -> Any:
    forward = model.forward
    model.forward = functools.wraps(forward)(lambda value: forward(value))
    return model(x)


@way
def after_plain_on_purpose(model: Net, x: Tensor) -> Any:
    in_place(model)(x)
    with ac.plain(model):
        model(x)
    return model(x)


class Doubled(nn.Module):
    def forward(self, query: Tensor) -> Tensor:
        return 2 * query


@way
def parametrized_query(model: Net, x: Tensor) -> Any:
    """A query that is computed from another parameter is an attribute of its read, and no parameter."""
    read = model.attnres.streams[0].reads[0]
    nn.utils.parametrize.register_parametrization(read, "query", Doubled())
    return in_place(model)(x)
