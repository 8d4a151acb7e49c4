"""Generated Triton kernels, in Triton's interpreter, against the equations in fp64 and autograd's gradients of them."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor

from attnres_kernels.definition.read_parts import ALONE, Neighbours, OutputGradients, ReadParts
from attnres_kernels.errors import UnsupportedSourcesError
from attnres_kernels.launch import tiling
from attnres_kernels.launch.launch_phase_1 import complete_block, phase_1, source_logits
from attnres_kernels.launch.launch_read import ReadGradients, read, read_backward
from attnres_kernels.launch.launch_sources_backward import sources_backward
from tests.kernels.generation.sweep import DTYPES, EPS, NORMS, ROWS, TOLERANCES, WIDTHS, assert_close, norm_eps, sweep

pytestmark = [pytest.mark.interpreter, pytest.mark.usefixtures("poisoned_outputs")]

SOURCES = st.sampled_from((1, 2, 3, 4, 5, 6, 7, 8, 9, 33))
READS = st.integers(1, 6)


class Draw:
    """Random tensors of one dtype, reproducible by seed."""

    def __init__(self, seed: int, dtype: torch.dtype) -> None:
        self.generator, self.dtype = torch.Generator().manual_seed(seed), dtype

    def __call__(self, *shape: int, dtype: torch.dtype | None = None, spread: float = 1.0) -> Tensor:
        return (torch.randn(shape, generator=self.generator) * spread).to(dtype or self.dtype)


def exact(tensor: Tensor) -> Tensor:
    return tensor.detach().double().requires_grad_()


# Phase 1


def equations(sources: list[Tensor], keys: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """Equations 2 to 4 of the paper over completed blocks, and the log-sum-exp of the logits."""
    outputs, log_sums = [], []
    for key in keys:
        logits = torch.stack([(x * key).sum(-1) * torch.rsqrt(x.square().mean(-1) + EPS) for x in sources])
        weights = logits.softmax(0)
        outputs.append(sum(weight.unsqueeze(-1) * x for weight, x in zip(weights, sources, strict=True)))
        log_sums.append(logits.logsumexp(0))
    return outputs, log_sums


@sweep(25)
@given(ROWS, WIDTHS, SOURCES, READS, DTYPES, st.integers(0, 99))
@example(17, 100, 33, 6, torch.float32, 0)
@example(2, 8, 13, 2, torch.bfloat16, 1)
@example(1, 1, 1, 1, torch.float32, 2)
def test_phase_1(rows: int, width: int, count: int, reads: int, dtype: torch.dtype, seed: int) -> None:
    draw = Draw(seed, dtype)
    sources = [draw(rows, width) for _ in range(count)]
    keys = draw(reads, width, dtype=torch.float32, spread=width**-0.5)
    logits = [source_logits(x, keys, EPS) for x in sources]
    outputs, log_sums = phase_1(sources, logits)
    expected, expected_sums = equations([x.double() for x in sources], keys.double())
    for s in range(reads):
        assert_close(outputs[s], expected[s], TOLERANCES[dtype], f"output {s}")
        assert_close(log_sums[s], expected_sums[s], 2e-5, f"log-sum-exp {s}")


@sweep(25)
@given(ROWS, WIDTHS, READS, DTYPES, st.integers(0, 99))
def test_a_block_is_completed_with_its_logits(rows: int, width: int, reads: int, dtype: torch.dtype, seed: int) -> None:
    draw = Draw(seed, dtype)
    partial, branch = draw(rows, width), draw(rows, width)
    keys = draw(reads, width, dtype=torch.float32, spread=width**-0.5)
    block, logits = complete_block(partial, branch, keys, EPS)
    assert_close(block, partial.double() + branch.double(), TOLERANCES[dtype], "block")
    assert torch.equal(logits, source_logits(block, keys, EPS))


def test_logits_of_more_reads_than_a_program_makes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The block is written by one of the programs that make its logits."""
    draw = Draw(0, torch.float32)
    partial, branch, keys = draw(70, 33), draw(70, 33), draw(40, 33, spread=33**-0.5)
    block, logits = complete_block(partial, branch, keys, EPS)
    monkeypatch.setattr(tiling, "MOST_READS_OF_LOGITS", 16)
    in_parts = complete_block(partial, branch, keys, EPS)
    assert torch.equal(in_parts[0], block)
    assert torch.equal(in_parts[0], partial + branch)
    assert_close(in_parts[1], logits.double(), 1e-6, "logits")
    assert_close(source_logits(block, keys, EPS), logits.double(), 1e-6, "logits of the block")


# Reads and their backward


@dataclass(frozen=True)
class Group:
    """Reads that share completed blocks, and what each attends to beside them. neighbours: of every read."""

    shared: list[Tensor]
    own: list[list[Tensor]]
    partials: list[Tensor | None]
    keys: Tensor
    neighbours: Neighbours
    factor: float

    def equations(self, s: int) -> tuple[Tensor, Tensor | None]:
        """Read ``s`` by equations 2 to 6 of the paper, and the norm behind."""
        partial = self.partials[s]
        values = [*self.shared, *self.own[s], *([] if partial is None else [partial])]
        (output,), _ = equations(values, self.keys[s : s + 1])
        value, behind = self.factor * output, self.neighbours
        if behind.norm is None:
            return value, None
        centered = value - value.mean(-1, keepdim=True) if behind.norm == "layer" else value
        out = centered * torch.rsqrt(centered.square().mean(-1, keepdim=True) + behind.norm_eps)
        out = out if behind.norm_weight is None else out * behind.norm_weight
        return value, out if behind.norm_bias is None else out + behind.norm_bias

    def exact(self) -> Group:
        behind = self.neighbours
        weight, bias = (None if x is None else exact(x) for x in (behind.norm_weight, behind.norm_bias))
        behind = behind._replace(norm_weight=weight, norm_bias=bias)
        partials = [None if x is None else exact(x) for x in self.partials]
        own = [[exact(x) for x in of_read] for of_read in self.own]
        return Group([exact(x) for x in self.shared], own, partials, exact(self.keys), behind, self.factor)


@sweep(25)
@given(ROWS, WIDTHS, SOURCES, READS, DTYPES, NORMS, st.booleans(), st.integers(0, 99))
@example(17, 100, 33, 6, torch.float32, ("layer", 1, 1), True, 0)
@example(17, 33, 4, 6, torch.float32, ("rms", 1, 0), True, 1)
@example(17, 33, 33, 3, torch.float32, None, False, 2)
@example(2, 64, 2, 3, torch.bfloat16, ("rms", 1, 0), False, 3)
@example(17, 100, 9, 5, torch.float32, ("rms", 1, 0), True, 4)
@example(2, 4100, 5, 2, torch.float32, ("layer", 1, 1), True, 5)
@example(5, 4100, 6, 2, torch.float32, ("rms", 1, 0), False, 6)
@example(2, 24, 10, 2, torch.float32, ("layer", 1, 1), True, 7)
def test_a_group_of_reads_and_every_gradient(
    rows: int,
    width: int,
    count: int,
    reads: int,
    dtype: torch.dtype,
    norm_spec: tuple[str, int, int] | None,
    two_phase: bool,
    seed: int,
) -> None:
    draw = Draw(seed, dtype)
    # In two phases, reads attend to blocks completed since; some reads have no open partial sum, others no gradient.
    own = [[draw(rows, width) for _ in range((seed + s) % 3 if two_phase else 0)] for s in range(reads)]
    partials = [None if (seed + s) % 4 == 1 else draw(rows, width) for s in range(reads)]
    keys = draw(reads, width, dtype=torch.float32, spread=width**-0.5)
    neighbours = ALONE
    if norm_spec is not None:
        kind, weight, bias = norm_spec
        vectors = draw(width) if weight else None, draw(width) if bias else None
        neighbours = Neighbours(None, kind, norm_eps(width), *vectors, returns_value=seed % 3 > 0)
    group = Group([draw(rows, width) for _ in range(count)], own, partials, keys, neighbours, 3.0 if seed % 2 else 1.0)
    _Comparison(group, dtype, draw, seed, two_phase).run()


class _Comparison:
    """The kernels on a group of reads, beside the equations in fp64."""

    def __init__(self, group: Group, dtype: torch.dtype, draw: Draw, seed: int, two_phase: bool) -> None:
        self.group, self.dtype, self.draw, self.seed = group, dtype, draw, seed
        self.returns_value, self.tolerance = group.neighbours.returns_value, TOLERANCES[dtype]
        self.reference = group.exact()
        self.loss = torch.zeros((), dtype=torch.float64)
        self.logits = [source_logits(x, group.keys, EPS) for x in group.shared]
        self.phase_1 = phase_1(group.shared, self.logits) if two_phase else None

    def run(self) -> None:
        reads = range(len(self.group.partials))
        found = [self.read(s) for s in reads]
        shape, count = self.group.shared[0].shape, len(self.group.shared)
        carried = [None if (self.seed + i) % 3 == 1 else self.draw(*shape) for i in range(count)]
        for x, grad in zip(self.reference.shared, carried, strict=True):
            self.add_to_loss(x, grad)
        if self.loss.requires_grad:
            self.compare_gradients(found, carried)

    def parts(self, s: int) -> ReadParts:
        group, partial = self.group, self.group.partials[s]
        key = None if partial is None else group.keys[s]
        if self.phase_1 is None:
            return ReadParts(sources=group.shared, logits=[x[:, s] for x in self.logits], partial=partial, key=key)
        logits = [source_logits(x, group.keys, EPS)[:, s] for x in group.own[s]]
        return ReadParts(self.phase_1[0][s], self.phase_1[1][s], group.own[s], logits, partial, key)

    def read(self, s: int) -> ReadGradients | None:
        """Compare what read ``s`` gives, and run its backward, if it has one."""
        parts, neighbours = self.parts(s), self.group.neighbours
        result = read(parts, self.dtype, self.group.factor, EPS, neighbours)
        value, normed = self.reference.equations(s)
        state = self.reference.partials[s]
        if self.returns_value:
            assert result.value is not None
            assert_close(result.value, value.detach(), self.tolerance, f"value {s}")
        if normed is not None:
            assert result.normed is not None
            assert_close(result.normed, normed.detach(), self.tolerance, f"normed value {s}")
        turn, shape = self.seed + s, value.shape
        value_grad = self.draw(*shape) if self.returns_value and turn % 3 else None
        normed_grad = self.draw(*shape) if neighbours.norm and turn % 5 != 3 else None
        later_grad = self.draw(*shape) if state is not None and turn % 2 else None
        given = (value_grad, normed_grad, later_grad)
        for x, grad in zip((value, normed, state), given, strict=True):
            self.add_to_loss(x, grad)
        if all(grad is None for grad in given):
            return None
        grads = OutputGradients(*given)
        return read_backward(parts, result.statistics, self.dtype, self.group.factor, grads, False, neighbours)

    def add_to_loss(self, x: Tensor | None, grad: Tensor | None) -> None:
        if x is not None and grad is not None:
            self.loss = self.loss + (x * grad.double()).sum()

    def compare_gradients(self, found: list[ReadGradients | None], carried: list[Tensor | None]) -> None:
        keys, reference = self.group.keys, self.reference
        grads, scalars = ([None if x is None else getattr(x, name) for x in found] for name in ("read", "scalars"))
        shared, key_grads = sources_backward(self.group.shared, self.logits, keys, grads, scalars, carried, EPS)
        for i, leaf in enumerate(reference.shared):
            self.compare(f"block {i}", shared[i], leaf)
        for s, gradients in enumerate(found):
            of_read = keys[s : s + 1], [grads[s]], [scalars[s]], [None]
            for i, (block, leaf) in enumerate(zip(self.group.own[s], reference.own[s], strict=True)):
                (grad,), of_keys = sources_backward([block], [source_logits(block, of_read[0], EPS)], *of_read, EPS)
                key_grads[s] += of_keys[0]
                self.compare(f"block {i} of read {s}", grad, leaf)
            state = reference.partials[s]
            if gradients is not None and state is not None:
                assert gradients.key is not None
                key_grads[s] += gradients.key
                self.compare(f"partial sum {s}", gradients.partial, state)
        self.compare("the keys", key_grads, reference.keys)
        for name in ("weight", "bias"):
            vector = getattr(reference.neighbours, f"norm_{name}")
            if vector is not None:
                of_reads = [getattr(x, f"norm_{name}") for x in found if x is not None]
                total = sum((x.double() for x in of_reads if x is not None), torch.zeros_like(vector))
                self.compare(f"the norm's {name}", total, vector)

    def compare(self, name: str, actual: Tensor | None, leaf: Tensor) -> None:
        arguments = {"retain_graph": True, "allow_unused": True, "materialize_grads": True}
        (wanted,) = torch.autograd.grad(self.loss, leaf, **arguments)
        assert actual is not None
        assert_close(actual.reshape(wanted.shape), wanted, self.tolerance, f"gradient of {name}")


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("returns_value", [False, True])
def test_the_add_before_is_the_same_as_an_add_of_its_own(dtype: torch.dtype, returns_value: bool) -> None:
    draw = Draw(0, dtype)
    inter, partial, branch = draw(17, 33), draw(17, 33), draw(17, 33)
    key, log_sum = draw(33, dtype=torch.float32), draw(17, dtype=torch.float32)
    behind = Neighbours(None, "rms", 1e-5, draw(33), None, returns_value)
    fused = read(ReadParts(inter, log_sum, partial=partial, key=key), dtype, 1.0, EPS, behind._replace(branch=branch))
    assert fused.partial is not None
    apart = read(ReadParts(inter, log_sum, partial=fused.partial, key=key), dtype, 1.0, EPS, behind)
    assert_close(fused.partial, partial.double() + branch.double(), TOLERANCES[dtype], "partial sum")
    for name in ("value", "normed", "statistics"):
        one, other = getattr(fused, name), getattr(apart, name)
        assert (one is None) == (other is None)
        assert one is None or torch.equal(torch.nan_to_num(one), torch.nan_to_num(other)), name


def test_one_source_gives_keys_no_gradient_at_all() -> None:
    """A softmax over one source is 1 whatever its logit is, so these are zeros and not small numbers."""
    draw = Draw(0, torch.float32)
    source, keys = draw(17, 33), draw(3, 33)
    logits = [source_logits(source, keys, EPS)]
    reads = [ReadParts(sources=[source], logits=[logits[0][:, s]]) for s in range(3)]
    found = []
    for parts in reads:
        result = read(parts, torch.float32, 1.0, EPS)
        assert_close(result.statistics[:, 0], logits[0][:, len(found)].double(), 1e-6, "log-sum-exp")
        found.append(read_backward(parts, result.statistics, torch.float32, 1.0, OutputGradients(draw(17, 33))))
    _, key_grads = sources_backward(
        [source], logits, keys, [x.read for x in found], [x.scalars for x in found], [None], EPS
    )
    assert torch.equal(key_grads, torch.zeros(3, 33))


def test_a_partial_sum_alone_gives_its_key_no_gradient_at_all() -> None:
    draw = Draw(0, torch.float32)
    parts = ReadParts(partial=draw(17, 33), key=draw(33))
    result = read(parts, torch.float32, 1.0, EPS)
    found = read_backward(parts, result.statistics, torch.float32, 1.0, OutputGradients(draw(17, 33)))
    assert found.key is not None
    assert torch.equal(found.key, torch.zeros(33))


def test_two_runs_give_the_same_bits() -> None:
    def gradients() -> list[Tensor]:
        draw = Draw(0, torch.float32)
        sources, keys, partial = [draw(50, 33) for _ in range(3)], draw(1, 33), draw(50, 33)
        logits = [source_logits(x, keys, EPS) for x in sources]
        parts = ReadParts(sources=sources, logits=[x[:, 0] for x in logits], partial=partial, key=keys[0])
        kept, given = read(parts, torch.float32, 1.0, EPS).statistics, OutputGradients(draw(50, 33))
        found = read_backward(parts, kept, torch.float32, 1.0, given)
        grads, of_keys = sources_backward(sources, logits, keys, [found.read], [found.scalars], [None] * 3, EPS)
        assert found.partial is not None
        assert found.key is not None
        return [*grads, of_keys, found.partial, found.key]

    assert all(torch.equal(one, other) for one, other in zip(gradients(), gradients(), strict=True))


# Inputs in any layout


def test_sources_are_read_in_place_whatever_their_strides() -> None:
    draw = Draw(0, torch.float32)
    wide, transposed, plain = draw(2, 5, 2 * 33)[..., :33], draw(2, 33, 5).transpose(1, 2), draw(5, 33).expand(2, 5, 33)
    sources = [wide, transposed, plain]
    keys = draw(2, 33)
    outputs, _ = phase_1(sources, [source_logits(x, keys, EPS) for x in sources])
    expected, _ = equations([x.double() for x in sources], keys.double())
    for output, wanted in zip(outputs, expected, strict=True):
        assert_close(output.view(2, 5, 33), wanted, 1e-5, "output")


@pytest.mark.parametrize(
    ("source", "words"), [(torch.zeros(2, 3, dtype=torch.float64), "float64"), (torch.zeros(1, 16385), "16385 wide")]
)
def test_what_the_kernels_cannot_take_is_said(source: Tensor, words: str) -> None:
    with pytest.raises(UnsupportedSourcesError, match=words):
        source_logits(source, torch.zeros(1, source.shape[1]), EPS)
