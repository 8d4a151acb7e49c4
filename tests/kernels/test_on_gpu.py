"""Generated kernels on a GPU, at real sizes; skipped, and said so, where there is none."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from attnres_kernels import tuning
from attnres_kernels.depth_attention import fused, keys, scheduled
from attnres_kernels.depth_attention.generated.launch_phase_1 import phase_1

pytestmark = pytest.mark.gpu

EPS, NORM_EPS, READS = 1e-6, 1e-5, 3
TOLERANCE = 1e-2

Leaves = dict[str, list[Tensor]]


def leaves(tokens: int, width: int, blocks: int) -> Leaves:
    generator = torch.Generator(device="cuda").manual_seed(0)

    def draw(*shape: int, spread: float = 1.0) -> Tensor:
        values = torch.randn(shape, generator=generator, device="cuda") * spread
        return values.to(torch.bfloat16).requires_grad_()

    return {
        "block": [draw(tokens, width) for _ in range(blocks)],
        "branch": [draw(tokens, width) for _ in range(READS)],
        "query": [draw(width, spread=width**-0.5) for _ in range(READS)],
        "key weight": [draw(width) for _ in range(READS)],
        "norm weight": [draw(width) for _ in range(READS)],
    }


def on_kernels(given: Leaves, two_phase: bool) -> list[Tensor]:
    """A group of reads with the adds before and the norms behind, as a lowered graph has it."""
    blocks, branches = given["block"], given["branch"]
    matrix, (of_set,), rows = keys.key_matrix(given["query"], given["key weight"], [(0, READS)])
    logits = [fused.source_logits(x, matrix, 0, EPS) for x in blocks]
    links, _ = fused.link_sources(blocks, logits, of_set, 0, READS, EPS)
    made = fused.phase_1(blocks, logits, 0, READS, READS) if two_phase else [None] * (2 * READS)
    in_place = ([], []) if two_phase else (blocks, logits)
    partial, outputs = branches[0], []
    for s in range(READS):
        branch = branches[s] if s else None
        read = made[s], made[READS + s], *in_place, partial, rows[s], s, READS, 1.0, EPS, blocks[0]
        behind = branch, "rms", NORM_EPS, given["norm weight"][s], None, False
        normed, *rest = fused.read([links], [s], *read, *behind)
        partial = rest[0] if rest else partial
        outputs.append(normed)
    return [*outputs, partial]


def definition(given: Leaves) -> list[Tensor]:
    blocks, branches = given["block"], given["branch"]
    matrix = scheduled.key_matrix(given["query"], given["key weight"])
    logits = [scheduled.source_logits(x, matrix, 0, EPS) for x in blocks]
    partial, outputs = branches[0], []
    for s in range(READS):
        partial = partial + branches[s] if s else partial
        value = scheduled.direct_read(blocks, logits, partial, matrix, s, 1.0, EPS)
        outputs.append(scheduled.normalise(value, "rms", NORM_EPS, given["norm weight"][s], None))
    return [*outputs, partial]


def with_gradients(outputs: list[Tensor], given: Leaves) -> list[Tensor]:
    flat = [x for part in given.values() for x in part]
    generator = torch.Generator(device="cuda").manual_seed(1)
    directions = [torch.randn(x.shape, generator=generator, device="cuda").to(x.dtype) for x in outputs]
    return [*(x.detach() for x in outputs), *torch.autograd.grad(outputs, flat, directions)]


@pytest.mark.parametrize("two_phase", [False, True])
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize(
    ("tokens", "width", "blocks"), [(8192, 2048, 4), (4096, 4096, 8), (1000, 7168, 2), (17, 33, 3)]
)
def test_a_group_of_reads_and_every_gradient(
    tokens: int, width: int, blocks: int, compiled: bool, two_phase: bool
) -> None:
    check_a_group(tokens, width, blocks, compiled, two_phase)


def check_a_group(tokens: int, width: int, blocks: int, compiled: bool, two_phase: bool) -> None:
    """Against the definition, and two runs bit by bit."""
    given = leaves(tokens, width, blocks)
    run = torch.compile(on_kernels, fullgraph=True) if compiled else on_kernels
    found = with_gradients(run(given, two_phase), given)
    again = with_gradients(run(given, two_phase), given)
    assert all(torch.equal(one, other) for one, other in zip(found, again, strict=True)), "two runs, different bits"
    exact = {name: [x.detach().float().requires_grad_() for x in part] for name, part in given.items()}
    expected = with_gradients(definition(exact), exact)
    for index, (one, other) in enumerate(zip(found, expected, strict=True)):
        error = (one.float() - other).norm() / other.norm()
        assert error < TOLERANCE, f"result {index} is off by {float(error):.1e}"


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
    with tuning.compiled_anew():
        check_a_group(4096, 2048, 4, compiled, two_phase=True)
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
