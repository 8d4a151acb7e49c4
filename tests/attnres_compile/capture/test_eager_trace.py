"""The plan of a run by Python: equal to that of one graph where there is one, whatever Python does in between."""

from __future__ import annotations

import dataclasses
import gc
import threading
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import Phase, given, settings
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import attnres_compile as ac
from attnres_compile.capture.analysis import analyse_model, plan_eagerly, plan_of
from attnres_compile.capture.eager_trace import trace_eagerly
from attnres_compile.model.errors import CaptureError
from attnres_passes.ir.config import AttnResConfig
from attnres_passes.ir.plan import Plan, Reason
from tests.attnres_compile.capture.models import WIDTH, Block, Stack, ids
from tests.passes.rewrite.random_models import RandomModel, Spec, specs

CONFIG = AttnResConfig(num_blocks=2, on_decline="ignore")


def eager(model: nn.Module, *args: Any, **kwargs: Any) -> Plan:
    return plan_eagerly(model, args, kwargs, CONFIG)


def of_one_graph(model: nn.Module, *args: Any, **kwargs: Any) -> Plan:
    return plan_of(analyse_model(model, args, kwargs, CONFIG), CONFIG)


WHOLE = eager(Stack(), ids())


def states(*shape: int) -> Tensor:
    return torch.randn(*(shape or (2, 3, WIDTH)), generator=torch.Generator().manual_seed(0))


# What Python does between blocks, without changing what the layers add.


def prints(block: nn.Module, x: Tensor, index: int) -> Tensor:
    str(float(x.detach().norm()))
    return block(x)


def logs_nothing(block: nn.Module, x: Tensor, index: int) -> Tensor:
    """Makes a number and indices, which could be of numbers from a log."""
    return block(x.to(torch.tensor(1.0).dtype)).view(torch.tensor([2, 3, WIDTH]).tolist())


def logs_by_numpy(block: nn.Module, x: Tensor, index: int) -> Tensor:
    str(np.asarray(x.detach()).mean())
    return logs_nothing(block, x, index)


def runs_by_data(block: nn.Module, x: Tensor, index: int) -> Tensor:
    return block(x) if x.sum().item() < 1e9 else x


@torch.compiler.disable
def disabled(block: nn.Module, x: Tensor, index: int) -> Tensor:
    return block(x)


def compiled_by_itself(block: nn.Module, x: Tensor, index: int) -> Tensor:
    return torch.compile(lambda value: block(value), backend="eager")(x)


def checkpointed(block: nn.Module, x: Tensor, index: int) -> Tensor:
    return checkpoint(block, x, use_reentrant=False)


def checkpointed_reentrant(block: nn.Module, x: Tensor, index: int) -> Tensor:
    return checkpoint(block, x, use_reentrant=True)


BETWEEN = [prints, runs_by_data, disabled, compiled_by_itself, checkpointed, checkpointed_reentrant]


@pytest.mark.parametrize("between", BETWEEN)
@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_python_between_the_layers_changes_no_plan(between: Callable[..., Tensor], mode: Callable[[], Any]) -> None:
    with mode():
        assert eager(Stack(between), ids()) == WHOLE


def test_values_that_only_a_log_sees_are_no_reads() -> None:
    plans = [eager(Stack(between), ids()) for between in (logs_by_numpy, logs_nothing)]
    assert plans[0] == plans[1]
    assert [len(stream.writes) for stream in plans[0].streams] == [6]


@pytest.mark.parametrize(
    "back",
    [
        lambda x: torch.from_numpy(2 * x.detach().numpy()),
        lambda x: torch.from_dlpack(np.from_dlpack(x.detach().clone())),
        lambda x: torch.tensor(x.tolist()),
        lambda x: torch.as_tensor(np.asarray(x.detach())),
    ],
)
def test_state_that_comes_back_from_outside_of_torch_is_no_beginning(back: Callable[[Tensor], Tensor]) -> None:
    """It was made of the states before it, in a way that is not known; they are left alone, and said to be."""
    plan = eager(Stack(lambda block, x, index: block(back(x) if index == 1 else x)), ids())
    assert [(len(stream.writes), len(stream.left_out)) for stream in plan.streams] == [(4, 3)]
    assert [(decline.reason, decline.writes) for decline in plan.declined] == [(Reason.INTERRUPTED, 2)]


def test_data_that_is_replaced_is_no_beginning() -> None:
    def between(block: nn.Module, x: Tensor, index: int) -> Tensor:
        y = torch.zeros_like(x)
        y.data = 1 * x
        return block(y if index == 1 else x)

    assert eager(Stack(between), ids()).partial


class Routed(Block):
    """Experts by the tokens that there are for them; what each computes is scattered back."""

    def forward(self, x: Tensor) -> Tensor:
        h = self.norms[0](x)
        flat, out = h.flatten(0, 1), torch.zeros_like(h).flatten(0, 1)
        chosen = flat.sum(-1) > 0
        for expert in range(2):
            where = (chosen == bool(expert)).nonzero().squeeze(-1)
            if where.numel():
                out.index_add_(0, where, torch.tanh(self.linears[expert](flat[where])))
        return x + out.view_as(x)


class Scattered(Block):
    """As in the issue: an index assignment at the places that a mask chooses."""

    def forward(self, x: Tensor) -> Tensor:
        h = self.norms[0](x)
        out, where = torch.zeros_like(h), torch.where(h.sum(-1) > 0)
        out[where] = torch.tanh(self.linears[0](h[where]))
        return x + out


@pytest.mark.parametrize("kind", [Routed, Scattered])
def test_routing_by_data_is_planned_whole(kind: type[Block]) -> None:
    model = Stack()
    model.blocks = nn.ModuleList(kind() for _ in range(3))
    plan = ac.prepare(model, (ids(),), num_blocks=2)
    (stream,) = plan.streams
    assert [write.block for write in stream.writes] == [1, 1, 2]
    assert [(read.module, read.normed) for read in stream.reads] == [
        *((f"blocks.{index}.norms.0", True) for index in range(3)),
        ("norm", True),
    ]
    assert not plan.declined


class Twice(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * 2 + 0 * x.mean()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad * 2


bound = Twice.apply


class Norming(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad


class Variant(Stack):
    """A model that Dynamo takes in whole. what: applied to each layer's input, and gives what is added."""

    def __init__(self, what: Callable[[Block, Tensor], Tensor]) -> None:
        super().__init__()
        self.what = what

    def forward(self, ids: Tensor) -> Any:
        x = self.embedding(ids)
        for block in self.blocks:
            x = x + self.what(block, x)
        return self.norm(x)


def under_no_grad(block: Block, x: Tensor) -> Tensor:
    with torch.no_grad():
        y = block.linears[1](block.norms[1](x))
    return block.linears[0](block.norms[0](x)) + y


def under_autocast(block: Block, x: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        y = block.linears[0](block.norms[0](x))
    return y.float()


VARIANTS: dict[str, Callable[[Block, Tensor], Tensor]] = {
    "an autograd function behind": lambda block, x: Twice.apply(block.linears[0](block.norms[0](x))),
    "one that is kept": lambda block, x: bound(block.linears[0](block.norms[0](x))),
    "one that norms": lambda block, x: block.linears[0](Norming.apply(x)),
    "forwards called as methods": lambda block, x: block.linears[0].forward(block.norms[0].forward(x)),
    "parts of a tuple": lambda block, x: torch.cat(block.linears[0](block.norms[0](x)).chunk(2, -1), -1),
    "dropout": lambda block, x: F.dropout(block.linears[0](block.norms[0](x)), 0.5),
    "attention": lambda block, x: F.scaled_dot_product_attention(
        block.norms[0](x), block.norms[1](x), block.norms[1](x)
    ),
    "vmap": lambda block, x: torch.vmap(block.linears[0])(block.norms[0](x)),
    "no_grad": under_no_grad,
    "autocast": under_autocast,
    "in place": lambda block, x: block.linears[0](block.norms[0](x)).mul_(2).add_(1),
    "the whole block": lambda block, x: block(x) - x,
}


@pytest.mark.parametrize("what", VARIANTS.values(), ids=VARIANTS)
@pytest.mark.parametrize("records", [True, False])
def test_plan_of_one_graph_is_found(what: Callable[[Block, Tensor], Tensor], records: bool) -> None:
    with torch.set_grad_enabled(records):
        model = Variant(what)
        assert eager(model, ids()) == of_one_graph(model, ids())


@settings(max_examples=12, deadline=None, derandomize=True, database=None, phases=(Phase.generate,))
@given(specs())
def test_plan_of_one_graph_is_found_in_random_models(spec: Spec) -> None:
    torch._dynamo.reset()
    config = AttnResConfig(block_size=spec.block_size, allow_unnormed=True, on_decline="ignore")
    model = RandomModel(spec)
    inputs = (model.example(),)
    assert plan_eagerly(model, inputs, {}, config) == plan_of(analyse_model(model, inputs, {}, config), config)


def torch_encoder() -> nn.Module:
    layer = nn.TransformerEncoderLayer(WIDTH, 2, 16, norm_first=True, batch_first=True)
    return nn.TransformerEncoder(layer, 2)


def torch_decoder() -> nn.Module:
    layer = nn.TransformerDecoderLayer(WIDTH, 2, 16, norm_first=True, batch_first=True)
    return nn.TransformerDecoder(layer, 2)


@pytest.mark.parametrize(("build", "inputs"), [(torch_encoder, 1), (torch_decoder, 2)])
@pytest.mark.parametrize("training", [True, False])
def test_layers_of_torch_itself(build: Callable[[], nn.Module], inputs: int, training: bool) -> None:
    """No line of the user's is inside, and the fast path of evaluation is not taken."""
    model = build().train(training)
    args = [states() for _ in range(inputs)]
    assert eager(model, *args) == of_one_graph(model, *args)


class Leaves(Stack):
    """Leaves states behind in ways that a graph hands over as well."""

    def forward(self, ids: Tensor, cache: list[Tensor]) -> Any:
        x = self.embedding(ids)
        for index, block in enumerate(self.blocks):
            x = block(x)
            if index == 0:
                self.kept = x
            if index == 1:
                cache.append(x)
        return Result(self.norm(x))


@dataclasses.dataclass
class Result:
    """An output that pytrees do not know."""

    last: Tensor


def test_what_a_run_leaves_behind_is_read() -> None:
    plans = [find(Leaves(), ids(), []) for find in (eager, of_one_graph)]
    assert plans[0] == plans[1]
    assert [(read.state, read.normed) for read in plans[0].streams[0].reads if not read.normed] == [
        (2, False),
        (4, False),
    ]


def test_lstm_that_dynamo_leaves_to_python() -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norms = nn.ModuleList(nn.RMSNorm(WIDTH) for _ in range(3))
            self.cells = nn.ModuleList(nn.LSTM(WIDTH, WIDTH, batch_first=True) for _ in range(3))
            self.norm = nn.RMSNorm(WIDTH)

        def forward(self, x: Tensor) -> Tensor:
            for norm, cell in zip(self.norms, self.cells, strict=True):
                x = x + cell(norm(x))[0]
            return self.norm(x)

    (stream,) = ac.prepare(Recurrent(), (states(),)).streams
    assert [write.module for write in stream.writes] == ["cells", "cells", "cells"]
    assert all(read.normed for read in stream.reads)


class Stateful(Stack):
    def __init__(self) -> None:
        super().__init__(prints)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, ids: Tensor) -> Any:
        self.calls += 1
        return F.dropout(super().forward(ids), 0.5)


def test_a_run_puts_back_what_it_changes() -> None:
    model = Stateful()
    call, apply = nn.Module.__call__, torch.autograd.Function.__dict__["apply"]
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    eager(model, ids())
    assert torch.equal(torch.rand(2), expected)
    assert model.calls == 0
    assert torch.is_grad_enabled()
    assert (nn.Module.__call__, torch.autograd.Function.__dict__["apply"]) == (call, apply)


def test_an_error_of_the_model_is_a_capture_error_and_leaves_nothing_patched() -> None:
    def failing(block: nn.Module, x: Tensor, index: int) -> Tensor:
        torch.set_grad_enabled(False)
        raise ValueError("no such layer")

    call = nn.Module.__call__
    with pytest.raises(CaptureError, match="Stack does not run on these inputs: ValueError: no such layer"):
        eager(Stack(failing), ids())
    assert nn.Module.__call__ is call
    assert torch.is_grad_enabled()


def test_prepared_and_compiled_models_run_plain_and_uncounted() -> None:
    model = Stack(prints)
    plan = ac.prepare(model, (ids(),), num_blocks=2)
    model.compile(backend="attnres", options={"inner": "eager"})
    for block in model.blocks:
        block.compile(backend="attnres", options={"inner": "eager"})
    assert ac.prepare(model, (ids(),), num_blocks=2) == plan
    assert ac.status(model).state == "prepared"


@pytest.fixture
def observed() -> tuple[Stack, list[int]]:
    """A model, and how many of its states are alive whenever a block is called."""
    seen: list[weakref.ref[Tensor]] = []
    alive: list[int] = []

    def observe(block: nn.Module, x: Tensor, index: int) -> Tensor:
        seen.append(weakref.ref(x))
        alive.append(sum(one() is not None for one in seen))
        return block(x)

    return Stack(observe, layers=6), alive


def test_a_run_keeps_no_tensor_alive(observed: tuple[Stack, list[int]]) -> None:
    model, alive = observed
    with torch.no_grad():
        assert len(eager(model, ids()).streams[0].writes) == 12
    assert alive == [1] * 6


def test_a_model_dies_behind_its_trace() -> None:
    model = Stack(prints)
    trace = trace_eagerly(model, (ids(),), {})
    seen = [weakref.ref(model), *map(weakref.ref, model.parameters())]
    del model
    gc.collect()
    assert not [one for one in seen if one() is not None]
    assert trace.ops


def test_calls_of_other_threads_are_not_seen() -> None:
    other = Block()

    def between(block: nn.Module, x: Tensor, index: int) -> Tensor:
        thread = threading.Thread(target=other, args=(states(),))
        thread.start()
        thread.join()
        return block(x)

    assert eager(Stack(between), ids()) == WHOLE


def test_work_is_linear_in_depth() -> None:
    counts = [len(trace_eagerly(Stack(prints, layers=layers), (ids(),), {}).ops) for layers in (4, 8, 16)]
    assert counts[2] - counts[1] == 2 * (counts[1] - counts[0])
