"""Generated kernels on a GPU, at real sizes; skipped, and said so, where there is none."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from attnres_kernels.autograd import own_logits_reads
from attnres_kernels.definition import scheduled
from attnres_kernels.definition.read_parts import Neighbours
from attnres_kernels.launch import tuning
from attnres_kernels.launch.launch_phase_1 import phase_1
from attnres_passes.torch_private.inner_compilers import traced_anew
from tests.kernels.operators.group_of_reads import EPS, NORM_EPS, Leaves, largest_error, leaves, with_gradients

pytestmark = pytest.mark.gpu

TOLERANCE = 1e-2


@pytest.mark.parametrize("two_phase", [False, True])
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize(
    ("tokens", "width", "blocks"), [(8192, 2048, 4), (4096, 4096, 8), (1000, 7168, 2), (17, 33, 3), (1, 2048, 2)]
)
def test_a_group_of_reads_and_every_gradient(
    tokens: int, width: int, blocks: int, compiled: bool, two_phase: bool
) -> None:
    assert largest_error(tokens, width, blocks, compiled, two_phase, "cuda") < TOLERANCE


@pytest.mark.parametrize(("tokens", "width", "blocks"), [(8192, 2048, 4), (1, 7168, 8), (1000, 7168, 2), (17, 33, 3)])
def test_a_read_with_own_logits_and_every_gradient(tokens: int, width: int, blocks: int) -> None:
    given = {
        name: part if name == "block" else part[:1] for name, part in leaves(tokens, width, blocks, "cuda").items()
    }

    def behind(x: Leaves) -> tuple[object, ...]:
        return 1.0, EPS, Neighbours(x["branch"][0], "rms", NORM_EPS, x["norm weight"][0])

    def on_kernels() -> list[Tensor]:
        *others, last = given["block"]
        return list(
            own_logits_reads.own_logits_read(others, last, given["query"][0], given["key weight"][0], *behind(given))
        )

    found, again = (with_gradients(on_kernels(), given) for _ in range(2))
    assert all(torch.equal(one, other) for one, other in zip(found, again, strict=True)), "two runs, different bits"
    exact = {name: [x.detach().float().requires_grad_() for x in part] for name, part in given.items()}
    key = exact["query"][0], exact["key weight"][0]
    expected = with_gradients(list(scheduled.fused_own_logits_read(exact["block"], *key, *behind(exact))), exact)
    for one, other in zip(found, expected, strict=True):
        assert (one.float() - other).norm() <= TOLERANCE * other.norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_compiled_model_uses_kernels_and_equals_torch(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    import attnres_compile as ac
    from tests.end_to_end.models import PreNorm, randomize, tokens

    model = PreNorm(layers=6, width=256).to("cuda", dtype)
    ids = tokens(4, 64).to("cuda")
    ac.prepare(model, (ids,), block_size=2)
    randomize(model)
    model.compile(backend="attnres")
    results = []
    for choice in ("", "torch"):
        monkeypatch.setenv("ATTNRES_KERNELS", choice)
        torch.compiler.reset()
        model.zero_grad()
        output = model(ids)
        output.float().square().mean().backward()
        results.append([output.detach(), *(parameter.grad.clone() for parameter in model.parameters())])
    tolerance = 1e-3 if dtype == torch.float32 else 5e-2
    for one, other in zip(*results, strict=True):
        assert (one - other).norm() <= tolerance * other.norm().clamp_min(1e-6)


def test_decoding_under_cuda_graphs() -> None:
    import attnres_compile as ac
    from tests.end_to_end.models import PreNorm, randomize, tokens

    model = PreNorm(layers=6, width=256).to("cuda").eval()
    ids = tokens(1, 1).to("cuda")
    ac.prepare(model, (ids,), block_size=2)
    randomize(model)
    model.compile(backend="attnres", mode="reduce-overhead")
    with torch.no_grad():
        outputs = [model(ids).clone() for _ in range(4)]
    assert all(torch.equal(outputs[0], x) for x in outputs[1:])


@pytest.mark.parametrize("compiled", [False, True])
def test_tuned_kernels_are_as_exact_and_deterministic(compiled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(tuning.AUTOTUNE_VARIABLE, "1")
    with traced_anew(True):
        assert largest_error(4096, 2048, 4, compiled, True, "cuda") < TOLERANCE
    by = "inductor" if compiled else "triton"
    names = {kernel["kernel"] for kernel in tuning.tuned_kernels() if kernel["by"] == by and kernel["chosen"]}
    assert any(name.startswith("phase_1") for name in names)
    assert any(name.startswith("read_backward") for name in names)


def test_a_capture_takes_kernels_that_were_tuned_before_and_no_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(tuning.AUTOTUNE_VARIABLE, "1")
    draw = torch.Generator(device="cuda").manual_seed(0)
    sources = [torch.randn(64, 3000, generator=draw, device="cuda") for _ in range(2)]
    logits = [torch.randn(64, 2, generator=draw, device="cuda") for _ in range(2)]
    with pytest.raises(tuning.TuningError, match="once before the capture"), torch.cuda.graph(torch.cuda.CUDAGraph()):
        phase_1(sources, logits)
    (expected, _), _ = phase_1(sources, logits)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        (captured, _), _ = phase_1(sources, logits)
    graph.replay()
    assert torch.equal(captured, expected)
