"""Every schedule on a whole stream of reads against the definition: forward and every gradient."""

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from attnres_kernels.autograd import two_phase
from attnres_kernels.autograd.keys import key_matrix
from attnres_kernels.definition import naive, scheduled
from attnres_kernels.definition.read_parts import ReadForm
from attnres_kernels.errors import SecondDerivativeError

EPS = 1e-6
# A schedule reorders the sums over reads; low precision rounds a block's gradient once per block of reads.
TOLERANCE = {torch.float64: 1e-11, torch.float32: 1e-4, torch.bfloat16: 6e-2}
Layout = list[tuple[list[Tensor], list[Tensor | None]]]


def layout(writes: Sequence[Tensor], block_size: int) -> Layout:
    """Per block with reads of two sources or more: its completed blocks, and each read's partial sum."""
    done, partial, blocks = [writes[0]], None, []
    reads: list[Tensor | None] = []
    for number, write in enumerate(writes[1:], start=1):
        partial = write if partial is None else partial + write
        if number % block_size == 0:
            if reads:
                blocks.append((list(done), reads))
            done, partial, reads = [*done, partial], None, []
        reads.append(partial)
    blocks.append((list(done), reads))
    return blocks


def run(
    schedule: str,
    writes: Sequence[Tensor],
    queries: Sequence[Tensor],
    weights: Sequence[Tensor],
    block_size: int,
    scale: str,
) -> list[Tensor]:
    """All reads of a stream with two sources or more, one after every write."""
    blocks = layout(writes, block_size)
    total, number = len(queries), 0
    outputs, logits = [], []
    if schedule == "two_phase":
        counts = [len(reads) for _, reads in blocks]
        matrix, groups, rows = key_matrix(queries, weights, [(sum(counts[:i]), n) for i, n in enumerate(counts)])
    elif schedule == "direct":
        matrix = scheduled.key_matrix(queries, weights)
    sources: list[Tensor] = []
    for index, (done, partials) in enumerate(blocks):
        sources = [*sources, *done[len(sources) :]]
        if schedule != "naive":
            make = two_phase.source_logits if schedule == "two_phase" else scheduled.source_logits
            logits = [*logits, *(make(x, matrix, number, EPS) for x in done[len(logits) :])]
        if schedule == "two_phase":
            given_sources = sources
            inter, lse, sources = two_phase.inter_block(sources, logits, groups[index], number, total, EPS)
        for k, partial in enumerate(partials):
            read = [*done, *([] if partial is None else [partial])]
            factor = float(len(read)) if scale == "sum" else 1.0
            if schedule == "naive":
                out = naive.naive_read(read, queries[number], weights[number], EPS, scale)
            elif schedule == "direct":
                out = scheduled.direct_read(done, logits, partial, matrix, number, factor, EPS)
            elif partial is None:
                out = two_phase.close(inter[k], done[0], factor)
            else:
                held = (given_sources, logits)
                out = two_phase.merge(
                    inter[k], lse[k], partial, rows[number], *held, ReadForm(number, total, factor, EPS)
                )
            outputs.append(out)
            number += 1
    return outputs


def make(shape: Sequence[int], writes: int, dtype: torch.dtype, seed: int) -> list[list[Tensor]]:
    generator = torch.Generator().manual_seed(seed)

    def draw(size: Sequence[int]) -> Tensor:
        return torch.randn(*size, generator=generator, dtype=torch.float64).to(dtype)

    width = shape[-1:]
    return [
        [draw(shape) for _ in range(writes + 1)],
        [draw(width) for _ in range(writes)],
        [draw(width) for _ in range(writes)],
        [draw(shape) for _ in range(writes)],
    ]


def assert_close(actual: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    assert actual.dtype == expected.dtype
    assert actual.shape == expected.shape
    size = expected.double().abs().max().clamp(min=1.0) if expected.numel() else torch.tensor(1.0).double()
    torch.testing.assert_close(actual.double() / size, expected.double() / size, rtol=0.0, atol=TOLERANCE[dtype])


def check(
    schedule: str,
    shape: Sequence[int],
    writes: int,
    block_size: int,
    scale: str,
    dtype: torch.dtype,
    seed: int = 0,
) -> None:
    values, queries, weights, grads = make(shape, writes, dtype, seed)
    results = []
    for form in ("naive", schedule):
        leaves = [[x.clone().requires_grad_() for x in part] for part in (values, queries, weights)]
        outputs = run(form, *leaves, block_size, scale)
        flat = [x for part in leaves for x in part]
        results.append((outputs, torch.autograd.grad(outputs, flat, grads)))
    for expected, actual in zip(*results, strict=True):
        for wish, got in zip(expected, actual, strict=True):
            assert_close(got, wish, dtype)


@settings(max_examples=50, deadline=None)
@given(
    shape=st.lists(st.integers(0, 4), min_size=0, max_size=2),
    width=st.integers(3, 17),
    writes=st.integers(1, 9),
    block_size=st.integers(1, 10),
    scale=st.sampled_from(["mean", "sum"]),
    dtype=st.sampled_from(list(TOLERANCE)),
    schedule=st.sampled_from(["direct", "two_phase"]),
    seed=st.integers(0, 1000),
)
def test_forward_and_every_gradient(
    shape: list[int],
    width: int,
    writes: int,
    block_size: int,
    scale: str,
    dtype: torch.dtype,
    schedule: str,
    seed: int,
) -> None:
    check(schedule, [*shape, width], writes, block_size, scale, dtype, seed)


@pytest.mark.parametrize("schedule", ["direct", "two_phase"])
@pytest.mark.parametrize(
    ("shape", "writes", "block_size"),
    [
        ((0, 8), 6, 3),  # no tokens
        ((5, 1), 6, 2),  # width one
        ((1, 33), 24, 1),  # Full AttnRes: 25 sources
        ((40, 48), 7, 3),  # a short last block
    ],
)
def test_odd_shapes(schedule: str, shape: tuple[int, ...], writes: int, block_size: int) -> None:
    check(schedule, shape, writes, block_size, "mean", torch.float64)
    check(schedule, shape, writes, block_size, "sum", torch.float32)


def test_tiles_do_not_change_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("attnres_kernels.operators.tiles.TILE_BYTES", 1)
    check("two_phase", (3, 37, 5), 7, 3, "sum", torch.float64)


def test_extreme_logits_stay_finite() -> None:
    values, queries, weights, grads = make((4, 6), 5, torch.float32, 0)
    leaves = [[x.requires_grad_() for x in values], [(1e4 * x).requires_grad_() for x in queries], weights]
    outputs = run("two_phase", *leaves, 2, "mean")
    got = torch.autograd.grad(outputs, [*leaves[0], *leaves[1]], grads)
    assert all(bool(x.isfinite().all()) for x in [*outputs, *got])
    for actual, expected in zip(outputs, run("naive", *leaves, 2, "mean"), strict=True):
        assert_close(actual, expected, torch.float32)


@pytest.mark.parametrize("schedule", ["naive", "direct", "two_phase"])
def test_autocast_does_not_round(schedule: str) -> None:
    values, queries, weights, _ = make((16, 32), 6, torch.float32, 0)
    plain = run(schedule, values, queries, weights, 3, "mean")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = run(schedule, values, queries, weights, 3, "mean")
    assert all(torch.equal(a, b) for a, b in zip(plain, cast, strict=True))


@pytest.mark.parametrize("schedule", ["naive", "direct", "two_phase"])
def test_traced_with_dynamic_shapes(schedule: str) -> None:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compiled = torch.compile(lambda v, q, w: run(schedule, v, q, w, 3, "sum"), backend="aot_eager", dynamic=True)
    for tokens in (5, 9):
        values, queries, weights, grads = make((2, tokens, 8), 7, torch.float32, tokens)
        results = []
        for function in (lambda v, q, w: run("naive", v, q, w, 3, "sum"), compiled):
            leaves = [[x.clone().requires_grad_() for x in part] for part in (values, queries, weights)]
            outputs = function(*leaves)
            flat = [x for part in leaves for x in part]
            results.append([*outputs, *torch.autograd.grad(outputs, flat, grads)])
        for expected, actual in zip(*results, strict=True):
            assert_close(actual, expected, torch.float32)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


def test_operators_keep_their_contract() -> None:
    values, queries, weights, _ = make((2, 3, 8), 4, torch.float64, 0)
    ops = torch.ops.attnres
    checks = ("test_schema", "test_faketensor")
    matrix, group, *rows = ops.key_rows(queries, weights, [0, 4])
    torch.library.opcheck(ops.key_rows, (queries, weights, [0, 3, 1, 3]), test_utils=checks)
    logits = [ops.source_logits(x, matrix, 0, EPS) for x in values[:2]]
    torch.library.opcheck(ops.source_logits, (values[0], matrix, 1, EPS), test_utils=checks)
    torch.library.opcheck(ops.inter_block, (values[:2], logits, 0, 4, 4), test_utils=checks)
    arguments = (values[:2], logits, 0, 4, 4)
    outputs, log_sums, _ = two_phase.inter_block(*arguments[:2], group, 0, 4, EPS)
    results = [*outputs, *log_sums]
    backward = ([None, values[1]], results[:4], [None, *results[5:]], *arguments[:2], group, 0, 4, EPS)
    torch.library.opcheck(ops.inter_block_backward, backward, test_utils=checks)
    merge_backward = (values[3], values[:2], logits, values[2], rows[0], 0, 4, 3.0, EPS)
    torch.library.opcheck(ops.merge_backward, merge_backward, test_utils=checks)
    key_backward = ([group, None, *rows[1:]], queries, weights, [0, 4])
    torch.library.opcheck(ops.key_rows_backward, key_backward, test_utils=checks)


def penalty(form: str, parts: list[list[Tensor]], of: int) -> Tensor:
    """A gradient penalty on the sources, the queries or the key weights."""
    outputs = run(form, *parts, block_size=2, scale="mean")
    loss = torch.stack([(x.sin() * k).sum() for k, x in enumerate(outputs, start=1)]).sum()
    grads = torch.autograd.grad(loss, parts[of], create_graph=True, allow_unused=True)
    return torch.stack([grad.square().sum() for grad in grads if grad is not None]).sum()


@pytest.mark.parametrize("of", [0, 1, 2], ids=["sources", "queries", "key weights"])
def test_second_derivatives_of_the_direct_form_are_those_of_the_definition(of: int) -> None:
    values, queries, weights, _ = make((2, 3, 8), 5, torch.float64, seed=0)
    found = []
    for form in ("naive", "direct"):
        leaves = [[x.clone().requires_grad_() for x in part] for part in (values, queries, weights)]
        flat = [x for part in leaves for x in part]
        found.append(torch.autograd.grad(penalty(form, leaves, of), flat, allow_unused=True))
    for expected, actual in zip(*found, strict=True):
        assert_close(actual, expected, torch.float64)


@pytest.mark.parametrize("of", [0, 1, 2], ids=["sources", "queries", "key weights"])
def test_second_derivatives_in_two_phases_are_an_error(of: int) -> None:
    values, queries, weights, _ = make((2, 3, 8), 5, torch.float64, seed=0)
    leaves = [[x.clone().requires_grad_() for x in part] for part in (values, queries, weights)]
    value = penalty("two_phase", leaves, of)
    for part in leaves:
        with pytest.raises(SecondDerivativeError, match='"schedule": "naive", "inner": "eager"'):
            torch.autograd.grad(value, part, retain_graph=True, allow_unused=True)
