"""The plan tensor says what the plan says, stays what it is through all that is done to a model, and harms nothing."""

from __future__ import annotations

import copy
import dataclasses
import pickle
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import (
    AveragedModel,
    get_ema_avg_fn,
    get_ema_multi_avg_fn,
    get_swa_avg_fn,
    get_swa_multi_avg_fn,
)

import attnres_compile as ac
from attnres_compile.capture.weightless import weightless_copy
from attnres_compile.model.errors import SavedStateError
from attnres_compile.model.plan_tensor import LENGTH, check_plan_tensor, differences, encode, facts_in, facts_of
from attnres_passes.ir.config import AttnResConfig
from attnres_passes.ir.plan import Decline, Plan, Read, Reason, Stream, Write
from tests.attnres_compile.api.plans import SAVED, assert_equal, prepared, values_of
from tests.end_to_end.models import PreNorm, tokens

CPU = torch.device("cpu")
PLAN = "attnres.plan_tensor"


def stream(width: int = 16, writes: int = 4, block_size: int = 2, name: str = "h") -> Stream:
    reads = tuple(Read(f"h.{k}.norm", f"/a/b.py:{k}", 1 + k, 1, k, True) for k in range(writes + 1))
    parts = tuple(Write(f"h.{k}", f"/a/b.py:{k}", 1 + k // block_size) for k in range(writes))
    return Stream(name, width, parts, reads, block_size, -(-writes // block_size))


def plan(*streams: Stream, **options: Any) -> Plan:
    return Plan(streams or (stream(),), (), AttnResConfig(**options))


def moved(one: Stream) -> Stream:
    """The same stream in another file, under other paths and another name."""
    return dataclasses.replace(
        one,
        name="other",
        writes=tuple(dataclasses.replace(write, module="x", source="/y.py:1") for write in one.writes),
        reads=tuple(dataclasses.replace(read, module="x", source="/y.py:1", normed=False) for read in one.reads),
    )


def test_the_fingerprint_is_the_same_everywhere() -> None:
    assert plan().fingerprint == "216ce793a324afaf6240b019473787ff"


@pytest.mark.parametrize(
    "same",
    [
        plan(moved(stream())),
        plan(schedule="naive", inner="eager", allow_unnormed=True, stages=2, on_plain="warn"),
        plan(num_blocks=2),
        plan(block_size=2),
        plan(streams=["h"]),
        dataclasses.replace(plan(), declined=(Decline(Reason.OPAQUE, "", "", ""),)),
    ],
)
def test_what_does_not_change_what_is_computed_is_not_in_the_fingerprint(same: Plan) -> None:
    assert same.fingerprint == plan().fingerprint
    assert differences(facts_of(same), facts_of(plan())) == []


OTHER_READ = dataclasses.replace(stream(), reads=(*stream().reads[:-1], stream().reads[0]))


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (plan(scale="sum"), "scale='sum' was saved, this model has scale='mean'"),
        (plan(eps=0.0), "eps=0.0 was saved, this model has eps=1e-06"),
        (plan(eps=1e-6 * (1 + 1e-15)), "eps=1.000000000000001e-06 was saved, this model has eps=1e-06"),
        (plan(stream(width=32)), "stream 0: width 32 was saved, this model has 16"),
        (
            plan(stream(writes=5)),
            "stream 0: writes 5 was saved, this model has 4; stream 0: block_size 2 (num_blocks 3)",
        ),
        (
            plan(stream(block_size=4)),
            "stream 0: block_size 4 (num_blocks 1) was saved, this model has 2 (num_blocks 2)",
        ),
        (plan(stream(), stream()), "2 streams were saved, this model has 1"),
        (plan(OTHER_READ), "other streams or reads: plan "),
    ],
)
def test_differences_are_named(other: Plan, message: str) -> None:
    assert other.fingerprint != plan().fingerprint
    found = facts_in(encode(other, torch.float32, CPU))
    assert found is not None
    assert found == facts_of(other)
    assert "; ".join(differences(found, facts_of(plan()))).startswith(message)


def test_the_order_of_streams_counts_and_which_were_chosen() -> None:
    one, two = stream(width=8), stream(width=16)
    assert plan(one, two).fingerprint != plan(two, one).fingerprint
    left_out = (Decline(Reason.NOT_SELECTED, "", "", ""),)
    first, second = (
        dataclasses.replace(plan(stream(name=name), streams=[name]), declined=left_out)
        for name in ("encoder", "decoder")
    )
    assert differences(facts_of(first), facts_of(second))


def test_many_streams_and_large_numbers() -> None:
    many = [plan(*(stream(width=8 + k) for k in range(6))), plan(*(stream(width=8 + k + k // 5) for k in range(6)))]
    assert differences(facts_of(many[0]), facts_of(many[1]))[0].startswith("other streams or reads")
    large = [plan(stream(width=2**24 + k)) for k in (0, 1)]
    assert [len(encode(one, torch.float32, CPU)) for one in large] == [LENGTH] * 2
    assert differences(facts_of(large[0]), facts_of(large[1]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64, torch.float8_e4m3fn])
def test_exact_in_every_dtype_of_a_model(dtype: torch.dtype) -> None:
    tensor = encode(plan(), dtype, CPU)
    assert facts_in(tensor) == facts_of(plan())
    assert tensor.dtype == (torch.float32 if dtype.itemsize == 1 else dtype)
    for drift in (-7, 7):
        assert facts_in(tensor.double() + drift) == facts_of(plan()), "averages come out a little lower or higher"


def newer() -> torch.Tensor:
    tensor = encode(plan(), torch.float32, CPU)
    tensor[1] += 16
    return tensor


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (torch.zeros(3), r"holds a \(3,\) tensor"),
        (torch.zeros(LENGTH, dtype=torch.complex64), "tensor of torch.complex64"),
        (torch.full((LENGTH,), torch.nan), "values that are no plan"),
        (torch.full((LENGTH,), 256.0), "values that are no plan"),
        (torch.full((LENGTH,), 40), "of version 34, and this attnres_compile knows version 1"),
        (newer(), "of version 2, and this attnres_compile knows version 1"),
    ],
)
def test_what_is_no_plan(tensor: torch.Tensor, message: str) -> None:
    model = prepared(**SAVED)
    before = values_of(model)
    with pytest.raises(SavedStateError, match=message):
        model.load_state_dict({**before, PLAN: tensor}, strict=False)
    assert_equal(values_of(model), before)


def empty_on_meta(model: nn.Module) -> nn.Module:
    return copy.deepcopy(model).to("meta").to_empty(device="cpu")


CHANGES = [
    *(nn.Module.half, nn.Module.bfloat16, nn.Module.double, copy.deepcopy, nn.Module.share_memory),
    lambda model: model.to(torch.float8_e4m3fn),
    lambda model: model.type(torch.float16),
    lambda model: model.to_empty(device="cpu"),
    lambda model: pickle.loads(pickle.dumps(model)),
    empty_on_meta,
]


@pytest.fixture
def nan_where_nothing_was_written() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("nan_where_nothing_was_written")
@pytest.mark.parametrize("change", CHANGES)
def test_it_stays_through_what_is_done_to_a_model(change: Any) -> None:
    model = prepared(**SAVED)
    changed = change(model)
    check_plan_tensor(changed.attnres)
    assert facts_in(changed.state_dict()[PLAN]) == facts_of(model.attnres.plan)
    with pytest.raises(SavedStateError, match="scale='mean' was saved, this model has scale='sum'"):
        changed.load_state_dict(prepared(block_size=1).state_dict())
    changed.load_state_dict(prepared(**SAVED).state_dict())


def test_garbage_is_not_taken_for_a_plan() -> None:
    model = prepared(**SAVED)
    model.attnres.plan_tensor = torch.empty(LENGTH).fill_(torch.nan)
    with pytest.raises(SavedStateError, match=r"overwritten in place .*values that are no plan"):
        check_plan_tensor(model.attnres)


def test_without_data_nothing_is_compared() -> None:
    meta = weightless_copy(prepared(**SAVED))
    assert meta.attnres.plan_tensor.is_meta
    check_plan_tensor(meta.attnres)
    # A model on "meta" takes its values from the state dict.
    saved = prepared(**SAVED)
    meta.load_state_dict(saved.state_dict(), assign=True)
    assert_equal(values_of(meta), values_of(saved))
    with pytest.raises(SavedStateError, match="scale"):
        weightless_copy(saved).load_state_dict(prepared(block_size=1).state_dict(), assign=True)


def test_a_copy_of_the_parameters_alone_is_small() -> None:
    model = prepared(**SAVED)
    model.large = nn.Parameter(torch.zeros(100_000))
    assert len(pickle.dumps(model.attnres)) < 100_000
    check_plan_tensor(copy.deepcopy(model.attnres))


@pytest.mark.parametrize("use_buffers", [True, False])
@pytest.mark.parametrize(
    "how",
    [
        {},
        {"avg_fn": get_ema_avg_fn(0.999)},
        {"avg_fn": get_swa_avg_fn()},
        {"multi_avg_fn": get_ema_multi_avg_fn(0.9)},
        {"multi_avg_fn": get_swa_multi_avg_fn()},
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_averages(how: dict[str, Any], use_buffers: bool, dtype: torch.dtype) -> None:
    model = prepared(**SAVED).to(dtype)
    averaged = AveragedModel(model, use_buffers=use_buffers, **how)
    for _ in range(30):
        averaged.update_parameters(model)
    check_plan_tensor(averaged.module.attnres)
    model.load_state_dict(averaged.module.state_dict())
    with pytest.raises(SavedStateError, match="scale='sum' was saved"):
        prepared(block_size=1).load_state_dict(averaged.module.state_dict())


def test_an_average_of_two_plans_is_neither() -> None:
    averaged = AveragedModel(prepared(**SAVED), use_buffers=True)
    for _ in range(2):
        averaged.update_parameters(prepared(block_size=1))
    with pytest.raises(SavedStateError):
        check_plan_tensor(averaged.module.attnres)


def test_a_state_dict_without_a_plan() -> None:
    """Version 0.1.0 saved none."""
    saved, model = prepared(**SAVED), prepared(1, **SAVED)
    state = values_of(saved)
    del state[PLAN]
    expected = r"no attnres\.plan_tensor.*block_size=1, scale='sum', eps=1e-06.*strict=False"
    with pytest.warns(UserWarning, match=expected) as caught:
        model.load_state_dict(state, strict=False)
    assert len(caught) == 1
    assert_equal(values_of(model), values_of(saved))
    missing = pytest.raises(RuntimeError, match=rf'Missing key\(s\) in state_dict: "{PLAN}"')
    with missing, pytest.warns(UserWarning, match="no attnres"):
        model.load_state_dict(state)
    own = {name.removeprefix("attnres."): value for name, value in state.items() if name.startswith("attnres.")}
    with pytest.warns(UserWarning, match="no plan_tensor") as caught:
        model.attnres.load_state_dict(own, strict=False)
    assert len(caught) == 1

    for name, value in [
        ("attnres.streams.0.reads.0.query", torch.zeros(8)),
        ("attnres.streams.0.reads.7.query", torch.zeros(16)),
    ]:
        before = values_of(model)
        with pytest.raises(SavedStateError, match=r"streams\.0\.reads\.\d\.query have no place of that shape"):
            model.load_state_dict({**state, name: value}, strict=False)
        assert_equal(values_of(model), before)


def test_weights_of_the_plain_model_load_in_silence() -> None:
    model, plain = prepared(**SAVED), PreNorm()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        missing, unexpected = model.load_state_dict(plain.state_dict(), strict=False)
    assert unexpected == []
    assert set(missing) == {name for name in model.state_dict() if name.startswith("attnres.")}
    assert torch.equal(model.head.weight, plain.head.weight)


def test_unprepare_takes_every_trace_off() -> None:
    model = prepared(**SAVED)
    for one in (model, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert len(one._load_state_dict_pre_hooks) == 1
        ac.unprepare(one)
        assert not one._load_state_dict_pre_hooks
        assert not list(one.buffers())
    model.register_load_state_dict_pre_hook(lambda *_: None)
    ac.prepare(model, (tokens(),))
    ac.unprepare(model)
    assert len(model._load_state_dict_pre_hooks) == 1


def test_no_graph_takes_it_as_an_input() -> None:
    model = prepared(block_size=1)
    explanation = ac.explain(model, (tokens(),))
    for gm in (explanation.before, explanation.after):
        names = [node.name for node in gm.graph.nodes if node.op in ("placeholder", "get_attr")]
        assert names
        assert not [name for name in names if "plan" in name]
    groups = ac.param_groups(model, lr=1.0, weight_decay=0.1)
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))
