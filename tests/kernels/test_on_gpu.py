"""Generated kernels on a GPU, at real sizes; skipped, and said so, where there is none."""

from __future__ import annotations

import pytest
import torch

from tests.kernels.group_of_reads import largest_error

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
