"""Ways to call a prepared model, one function each: whatever they give is the rewrite, or they raise.

A way gets a prepared model that was not compiled yet, and the input ``[B, T, d]``; it returns what some call of the
model gave, as a tensor of the model's output, or as the tuple of that and the model whose parameters it went through.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import io
import pickle
import threading
from collections.abc import Callable
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

import attnres_compile as ac
from attnres_compile.compile.backend import attnres
from attnres_compile.model.parameters import AttnResParameters, ReadParameters

WIDTH = 8
EAGER = {"inner": "eager"}

Way = Callable[["Net", Tensor], Any]
WAYS: dict[str, Way] = {}


def way(function: Way) -> Way:
    WAYS[function.__name__] = function
    return function


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.mlp(self.norm(x))


class Body(nn.Module):
    """All writes of the stream, and the embedding before it."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Linear(WIDTH, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(3))
        self.norm = nn.LayerNorm(WIDTH)
        self.between: Callable[[int, Tensor], None] | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.between is not None:
            self.between(-1, x)
        x = self.embedding(x)
        for number, block in enumerate(self.blocks):
            x = block(x)
            if self.between is not None:
                self.between(number, x)
        return self.norm(x)


class Net(nn.Module):
    """A body with a head, as models of transformers are made."""

    def __init__(self) -> None:
        super().__init__()
        self.body = Body()
        self.head = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))

    def generate(self, x: Tensor) -> Tensor:
        return self(x)


def prepared(x: Tensor, **options: Any) -> Net:
    torch.manual_seed(0)
    model = Net().double()
    ac.prepare(model, (x,), **{"block_size": 1, "inner": "eager", **options})
    randomize(model)
    return model


def randomize(model: nn.Module) -> None:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.attnres.named_parameters():
            drawn = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
            parameter.copy_(drawn if name.endswith("query") else 1 + drawn / 4)


def by_hand(model: Net, x: Tensor) -> Tensor:
    """Full AttnRes (paper equation 4) of the model, with the queries and key norms that it has now."""
    body, sources = model.body, [model.body.embedding(x)]
    reads = iter(model.attnres.streams[0].reads)

    def read() -> Tensor:
        if len(sources) == 1:
            return sources[0]
        parameters = next(reads)
        values = torch.stack(sources)
        keys = values * (values.square().mean(-1, keepdim=True) + 1e-6).rsqrt() * parameters.key_norm.weight
        return ((keys @ parameters.query).softmax(0).unsqueeze(-1) * values).sum(0)

    for block in body.blocks:
        sources.append(block.mlp(block.norm(read())))
    return model.head(body.norm(read()))


def in_place(model: nn.Module, **options: Any) -> Any:
    model.compile(backend="attnres", options=EAGER, **options)
    return model


@way
def compiled_in_place(model: Net, x: Tensor) -> Any:
    return in_place(model)(x)


@way
def wrapper(model: Net, x: Tensor) -> Any:
    return torch.compile(model, backend="attnres", options=EAGER)(x)


@way
def wrapper_of_the_whole_graph(model: Net, x: Tensor) -> Any:
    return torch.compile(model, backend="attnres", options=EAGER, fullgraph=True)(x)


@way
def method_of_the_wrapper(model: Net, x: Tensor) -> Any:
    compiled = torch.compile(model, backend="attnres", options=EAGER)
    compiled(x)
    return compiled.generate(x)


@way
def method_after_compiling_in_place(model: Net, x: Tensor) -> Any:
    return in_place(model).generate(x)


@way
def module_behind_the_wrapper(model: Net, x: Tensor) -> Any:
    torch.compile(model, backend="attnres", options=EAGER)(x)
    return model(x)


@way
def never_compiled(model: Net, x: Tensor) -> Any:
    return model(x)


@way
def forward_past_the_compiled_call(model: Net, x: Tensor) -> Any:
    in_place(model)(x)
    return model.forward(x)


@way
def compiled_forward(model: Net, x: Tensor) -> Any:
    return torch.compile(model.forward, backend="attnres", options=EAGER)(x)


@way
def compiled_forward_of_another_backend(model: Net, x: Tensor) -> Any:
    return torch.compile(model.forward, backend="eager")(x)


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
def stance_of_eager(model: Net, x: Tensor) -> Any:
    in_place(model)(x)
    with torch.compiler.set_stance("force_eager"):
        return model(x)


@way
def stance_of_no_recompiles(model: Net, x: Tensor) -> Any:
    in_place(model, dynamic=False)(x[:1])
    with torch.compiler.set_stance("eager_on_recompile"):
        return model(x)


@way
def disabled_call(model: Net, x: Tensor) -> Any:
    return torch.compiler.disable(in_place(model))(x)


@way
def disabled_function_around(model: Net, x: Tensor) -> Any:
    in_place(model)
    return torch.compiler.disable(lambda value: model(value))(x)


@way
def dynamo_off(model: Net, x: Tensor) -> Any:
    in_place(model)
    with torch._dynamo.config.patch(disable=True):
        return model(x)


@way
def another_backend(model: Net, x: Tensor) -> Any:
    return torch.compile(model, backend="eager")(x)


@way
def another_backend_in_place(model: Net, x: Tensor) -> Any:
    model.compile(backend="aot_eager")
    return model(x)


@way
def backend_as_a_partial(model: Net, x: Tensor) -> Any:
    return torch.compile(model, backend=functools.partial(attnres, options=EAGER))(x)


@way
def backend_as_a_function(model: Net, x: Tensor) -> Any:
    return torch.compile(model, backend=attnres, options=EAGER)(x)


@way
def backend_that_wraps_ours(model: Net, x: Tensor) -> Any:
    @functools.wraps(attnres)
    def mine(gm: Any, inputs: Any) -> Any:
        return attnres(gm, inputs, options=EAGER)

    return torch.compile(model, backend=mine)(x)


@way
def backend_that_hides_ours(model: Net, x: Tensor) -> Any:
    return torch.compile(model, backend=lambda gm, inputs: attnres(gm, inputs, options=EAGER))(x)


@way
def step_of_another_backend(model: Net, x: Tensor) -> Any:
    in_place(model)
    step = torch.compile(lambda value: model(value) + 0, backend="aot_eager")
    step(x)
    return step(x)


@way
def step_of_another_backend_around_a_plain_module(model: Net, x: Tensor) -> Any:
    return torch.compile(lambda value: model(value) + 0, backend="aot_eager")(x)


@way
def whole_step_of_another_backend(model: Net, x: Tensor) -> Any:
    in_place(model)
    return torch.compile(lambda value: model(value) + 0, backend="aot_eager", fullgraph=True)(x)


@way
def step_of_ours(model: Net, x: Tensor) -> Any:
    return torch.compile(lambda value: model(value) + 0, backend="attnres", options=EAGER, fullgraph=True)(x)


@way
def step_of_ours_around_a_compiled_module(model: Net, x: Tensor) -> Any:
    in_place(model)
    return torch.compile(lambda value: model(value) + 0, backend="attnres", options=EAGER)(x)


class Around(nn.Module):
    """A model with a temperature around another one."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.inside, self.temperature = model, nn.Parameter(torch.ones((), dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return self.inside(x) * self.temperature


@way
def module_around(model: Net, x: Tensor) -> Any:
    return Around(in_place(model))(x)


@way
def module_around_compiled(model: Net, x: Tensor) -> Any:
    return in_place(Around(model))(x)


@way
def module_around_compiled_by_another_backend(model: Net, x: Tensor) -> Any:
    around = Around(model)
    around.compile(backend="aot_eager")
    return around(x)


@way
def data_parallel(model: Net, x: Tensor) -> Any:
    return nn.DataParallel(in_place(model))(x)


@way
def vmap(model: Net, x: Tensor) -> Any:
    in_place(model)(x)
    return torch.func.vmap(model)(x.unsqueeze(0))[0]


@way
def call_after_vmap(model: Net, x: Tensor) -> Any:
    in_place(model)
    with contextlib.suppress(ac.AttnResError):
        torch.func.vmap(model)(x.unsqueeze(0))
    return model(x)


def function_of_ours_with_a_transform(model: Net) -> Callable[[Tensor], Any]:
    return torch.compile(lambda given: torch.func.vjp(model, given)[0], backend="attnres", options=EAGER)


@way
def transform_in_a_function_of_ours(model: Net, x: Tensor) -> Any:
    return function_of_ours_with_a_transform(model)(x)


@way
def call_after_a_transform_in_a_function_of_ours(model: Net, x: Tensor) -> Any:
    with contextlib.suppress(ac.AttnResError):
        function_of_ours_with_a_transform(model)(x)
    return in_place(model)(x)


@way
def functional_gradient(model: Net, x: Tensor) -> Any:
    in_place(model)(x)
    parameters = dict(model.named_parameters())
    return torch.func.vjp(lambda given: torch.func.functional_call(model, given, (x,)), parameters)[0]


@way
def functional_call(model: Net, x: Tensor) -> Any:
    in_place(model)(x)
    return torch.func.functional_call(model, dict(model.named_parameters()), (x,))


@way
def jvp(model: Net, x: Tensor) -> Any:
    in_place(model)(x)
    return torch.func.jvp(model, (x,), (torch.ones_like(x),))[0]


@way
def dual_numbers(model: Net, x: Tensor) -> Any:
    in_place(model)
    with forward_ad.dual_level():
        return forward_ad.unpack_dual(model(forward_ad.make_dual(x, torch.ones_like(x)))).primal


@way
def export(model: Net, x: Tensor) -> Any:
    return torch.export.export(model, (x,), strict=False).module()(x)


@way
def strict_export(model: Net, x: Tensor) -> Any:
    return torch.export.export(model, (x,), strict=True).module()(x)


@way
def torchscript(model: Net, x: Tensor) -> Any:
    return torch.jit.trace(model, (x,))(x)


@way
def symbolic_trace(model: Net, x: Tensor) -> Any:
    return torch.fx.symbolic_trace(model)(x)


@way
def beyond_the_recompile_limit(model: Net, x: Tensor) -> Any:
    in_place(model)
    for count in range(torch._dynamo.config.recompile_limit + 2):
        model.body.blocks[0].norm.eps = 1e-5 * (1 + count)
        result = model(x)
    return result


@way
def many_shapes(model: Net, x: Tensor) -> Any:
    in_place(model, dynamic=False)
    for length in range(2, 102):
        result = model(x[:, :1].expand(-1, length, -1))
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
def part_by_itself(model: Net, x: Tensor) -> Any:
    in_place(model)(x)
    return model.head(model.body(x))


@way
def part_compiled(model: Net, x: Tensor) -> Any:
    in_place(model.body)
    return model(x)


@way
def blocks_compiled(model: Net, x: Tensor) -> Any:
    for block in model.body.blocks:
        in_place(block)
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
def checkpoint_around_the_model(model: Net, x: Tensor) -> Any:
    in_place(model)
    return torch.utils.checkpoint.checkpoint(model, x, use_reentrant=False)


@way
def autocast(model: Net, x: Tensor) -> Any:
    in_place(model)
    with torch.autocast("cpu", enabled=False):
        return model(x)


@way
def another_thread(model: Net, x: Tensor) -> Any:
    in_place(model)
    result: list[Any] = []

    def call(enabled: bool) -> None:
        with torch.set_grad_enabled(enabled):
            result.append(model(x))

    thread = threading.Thread(target=call, args=(torch.is_grad_enabled(),))
    thread.start()
    thread.join()
    return result[0]


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
def reentrant_checkpoint_in_training(model: Net, x: Tensor) -> Any:
    in_place(model)
    return torch.utils.checkpoint.checkpoint(model, x.requires_grad_(torch.is_grad_enabled()), use_reentrant=True)


@way
def after_plain_on_purpose(model: Net, x: Tensor) -> Any:
    in_place(model)(x)
    with ac.plain(model):
        model(x)
    return model(x)
