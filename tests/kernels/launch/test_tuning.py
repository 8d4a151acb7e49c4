"""ATTNRES_AUTOTUNE=1 in Triton's interpreter, with a clock that says which choice was the fastest."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
import triton
from torch import Tensor

from attnres_kernels.autograd.own_logits_reads import own_logits_read
from attnres_kernels.definition.read_parts import Neighbours, OutputGradients, ReadParts
from attnres_kernels.errors import AttnResError
from attnres_kernels.launch import launch_read, tuning
from attnres_kernels.launch.launch_phase_1 import phase_1, source_logits
from attnres_kernels.launch.launch_read import read, read_backward
from attnres_kernels.launch.launch_sources_backward import sources_backward
from attnres_kernels.launch.tuning import Choice, TuningError
from tests.kernels.generation.sweep import EPS, assert_close

pytestmark = [pytest.mark.interpreter, pytest.mark.usefixtures("poisoned_outputs")]


class Clock:
    """Runs what it times twice, and finds every second one of a kernel faster than the first."""

    def __init__(self) -> None:
        self.timed = 0

    def __call__(self, call: Callable[[], None], quantiles: Sequence[float]) -> list[float]:
        call()
        call()
        self.timed += 1
        return [float(self.timed % 2)] * len(quantiles)


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing was tuned before."""
    tuning.tuned.cache_clear()
    monkeypatch.setattr(tuning, "_TUNERS", [])
    yield
    tuning.tuned.cache_clear()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch, fresh: None) -> Clock:
    clock = Clock()
    monkeypatch.setattr(tuning, "measure", clock)
    monkeypatch.setenv(tuning.AUTOTUNE_VARIABLE, "1")
    return clock


def draw(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + sum(shape))).to(dtype)


def one_read(rows: int, width: int, dtype: torch.dtype = torch.float32) -> Tensor:
    vectors = draw(width, seed=1).to(dtype), draw(width, seed=2).to(dtype)
    (value,) = own_logits_read([draw(rows, width, dtype=dtype)] * 2, None, *vectors, 1.0, EPS)
    return value


def everything(width: int = 300, count: int = 14) -> list[Tensor]:
    """All kinds of kernels; of phase 1 a launch that goes on from another one."""
    sources, keys = [draw(5, width, seed=i) for i in range(count)], draw(1, width) * width**-0.5
    partial, grad = draw(5, width, seed=count), draw(5, width, seed=count + 1)
    logits = [source_logits(x, keys, EPS) for x in sources]
    (inter,), log_sums = phase_1(sources, logits)
    parts = ReadParts(inter, log_sums[0], partial=partial, key=keys[0])
    behind, given = Neighbours(None, "rms", 1e-5, draw(width)), OutputGradients(grad, grad)
    made = read(parts, torch.float32, 1.0, EPS, behind)
    found = read_backward(parts, made.statistics, torch.float32, 1.0, given, False, behind)
    grads, of_keys = sources_backward(sources, logits, keys, [found.read], [found.scalars], [None] * count, EPS)
    vectors = (draw(width) * width**-0.5).requires_grad_(), draw(width)
    (value,) = own_logits_read(sources[:3], partial, *vectors, 1.0, EPS)
    (of_query,) = torch.autograd.grad(value.sum(), vectors[0])
    assert made.normed is not None
    assert found.key is not None
    return [inter, made.normed, found.read, found.key, *grads, of_keys, value.detach(), of_query]


def test_tuned_launches_give_what_untuned_ones_give(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the clock has run each choice of each kernel twice before."""
    tuned = everything()
    assert clock.timed > 10
    monkeypatch.setenv(tuning.AUTOTUNE_VARIABLE, "0")
    untuned = everything()
    for index, (one, other) in enumerate(zip(tuned, untuned, strict=True)):
        assert_close(one, other, 1e-5, f"result {index}")


def test_each_width_and_dtype_is_timed_once_whatever_the_number_of_tokens(clock: Clock) -> None:
    first = one_read(3, 300)
    of_one = clock.timed
    assert of_one == 2  # 512 columns: two warps, or one
    assert torch.equal(one_read(3, 300), first)
    one_read(4, 300)
    assert clock.timed == of_one
    for width, dtype in ((280, torch.float32), (300, torch.bfloat16), (600, torch.float32)):
        before = clock.timed
        one_read(3, width, dtype)
        assert clock.timed == before + 2, (width, dtype)


def test_what_was_tuned_is_listed_with_the_static_numbers(clock: Clock) -> None:
    one_read(3, 300)
    assert tuning.tuned_kernels() == [
        {
            "kernel": "own_read_n2",
            "by": "triton",
            "key": {"width": 300, "dtypes": ["float32"]},
            "chosen": {"BLOCK_D": 512, "LANES": 32, "FOLD": 4, "num_warps": 1},
            "static": {"BLOCK_D": 512, "LANES": 64, "FOLD": 4, "num_warps": 2},
        }
    ]


def test_what_inductor_chose_is_listed_too(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the autotuners in the modules that Inductor writes, which it makes of those that it was given."""
    from torch._inductor.codecache import PyCodeCache
    from torch._inductor.runtime.hints import DeviceProperties
    from torch._inductor.runtime.triton_heuristics import user_autotune

    one_read(3, 300)
    (tuner,) = tuning._TUNERS
    other = triton.jit(lambda x: x)
    module = ModuleType("written")
    for name, kernel in (("ours", tuner.fn), ("of_another", other)):
        inner = user_autotune(
            [{**config.kwargs, "num_warps": config.num_warps, "num_stages": 3} for config in tuner.configs],
            {"device": DeviceProperties.create(torch.device("cpu")), "signature": {"source_0": "*bf16", "rows": "i32"}},
            filename=__file__,
        )(kernel)
        setattr(module, name, inner)
    monkeypatch.setattr(PyCodeCache, "modules", [module, module])
    assert len(tuning.tuned_kernels()) == 1, "neither has run"
    for inner in (module.ours, module.of_another):
        inner.launchers = [SimpleNamespace(config=tuner.configs[1])]
    (_, compiled) = tuning.tuned_kernels()
    assert (compiled["kernel"], compiled["by"], compiled["key"]) == ("own_read_n2", "inductor", {"dtypes": ["bf16"]})
    assert (compiled["chosen"]["num_warps"], compiled["static"]["num_warps"]) == (1, 2)


# When nothing is tuned


@pytest.mark.parametrize("value", [None, "", "0"])
def test_without_the_variable_there_is_no_autotuner(
    value: str | None, monkeypatch: pytest.MonkeyPatch, fresh: None
) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("an autotuner was made")

    monkeypatch.setattr(triton, "autotune", refuse)
    monkeypatch.delenv(tuning.AUTOTUNE_VARIABLE, raising=False)
    if value is not None:
        monkeypatch.setenv(tuning.AUTOTUNE_VARIABLE, value)
    everything()
    assert not tuning.tuned_kernels()
    monkeypatch.setenv(tuning.AUTOTUNE_VARIABLE, "1")
    with pytest.raises(AssertionError, match="an autotuner was made"):
        one_read(3, 300)


@pytest.mark.parametrize("value", ["yes", "true", "2"])
def test_another_value_is_an_error_that_says_what_to_set(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(tuning.AUTOTUNE_VARIABLE, value)
    with pytest.raises(AttnResError, match=f"^ATTNRES_AUTOTUNE='{value}' is neither '0' nor '1'; set one of them, or"):
        one_read(3, 300)


def test_without_a_gpu_there_are_no_times(monkeypatch: pytest.MonkeyPatch, fresh: None) -> None:
    monkeypatch.setenv(tuning.AUTOTUNE_VARIABLE, "1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(TuningError, match="there is none; unset it"):
        one_read(3, 300)


def test_nothing_is_tuned_while_a_graph_is_captured(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    expected = one_read(3, 300)
    monkeypatch.undo()
    monkeypatch.setenv(tuning.AUTOTUNE_VARIABLE, "1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    assert torch.equal(one_read(3, 300), expected), "tuned before, so that it is captured as any launch is"
    launched: list[Any] = []
    monkeypatch.setattr(triton.runtime, "driver", SimpleNamespace(active=launched))
    with pytest.raises(TuningError, match="run the same shapes once before the capture"):
        one_read(3, 600)
    assert not launched


def test_a_choice_is_told_from_another_by_its_numbers() -> None:
    assert Choice.of(4, BLOCK_D=64).numbers() == {"BLOCK_D": 64, "num_warps": 4}
    assert Choice.of(4, BLOCK_D=64) == Choice.of(4, BLOCK_D=64) != Choice.of(2, BLOCK_D=64)
    assert launch_read.candidates.read(4096)[0] == Choice.of(16, BLOCK_D=4096)
