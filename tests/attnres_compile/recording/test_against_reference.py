"""A recording against the hand-written model of tests/reference: weights, entropies, magnitudes, gradient norms."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel

import attnres_compile as ac
import tests.reference.gpt2 as reference
from tests.reference.block_attnres import BlockResiduals

BLOCK_SIZE, WIDTH, LAYERS = 3, 32, 2
SIZES = [(2, 11), (1, 7)]
"""Of the recorded steps: a mean over tokens is not a mean over steps."""


def gpt2() -> GPT2LMHeadModel:
    config = GPT2Config(n_layer=LAYERS, n_embd=WIDTH, n_head=4, n_positions=16, vocab_size=61, use_cache=False)
    torch.manual_seed(0)
    return GPT2LMHeadModel(config).double().eval()


class Watching(BlockResiduals):
    """Block residuals that keep what a recording should show. seen: of all steps."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)
        self.weights: list[Tensor] = []
        self.given: list[Tensor] = []
        self.outputs: list[Tensor] = []
        self.sums: list[Tensor] = []

    def read(self) -> Tensor:
        sources = torch.stack(self.sources)
        if len(sources) > 1:
            query, weight = self.parameters[self.reads_done]
            keys = sources * torch.rsqrt(sources.square().mean(-1, keepdim=True) + self.eps) * weight
            self.weights.append((keys @ query).softmax(0).flatten(1).detach())
        given = super().read()
        if len(sources) > 1:
            self.given.append(given.detach())
        return given

    def write(self, output: Tensor) -> None:
        output.retain_grad()
        self.outputs.append(output)
        self.sums.append(sum([*self.partial, output]).detach())
        super().write(output)


class Expected:
    """What a recording of ``steps`` should show, read by read and write by write."""

    def __init__(self, model: GPT2LMHeadModel, steps: Sequence[Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
        model = copy.deepcopy(model)
        runs: list[Watching] = []

        def make(root: Tensor, reads: list, block_size: int, eps: float, scale: str) -> Watching:
            runs.append(Watching(root, block_size, [q for q, _ in reads], [w for _, w in reads], eps, scale))
            return runs[-1]

        monkeypatch.setattr(reference, "make_residuals", make)
        reads = [(read.query, read.key_norm.weight) for read in model.attnres.streams[0].reads]
        for ids in steps:
            loss(reference.gpt2_logits(model, ids, reads, block_size=BLOCK_SIZE)).backward()
        weights = [torch.cat(of_read, 1) for of_read in zip(*(run.weights for run in runs), strict=True)]
        self.weights = [of_read.mean(1).tolist() for of_read in weights]
        self.entropy = [-(of_read * of_read.log()).sum(0).mean().item() for of_read in weights]
        self.read_magnitude = self.magnitudes(run.given for run in runs)
        self.output_magnitude = self.magnitudes(run.outputs for run in runs)
        self.block_magnitude = self.magnitudes(run.sums for run in runs)
        norms = [[output.grad.norm() for output in run.outputs] for run in runs]
        self.gradient_norm = [torch.stack(of_write).mean().item() for of_write in zip(*norms, strict=True)]

    @staticmethod
    def magnitudes(values: Sequence[list[Tensor]]) -> list[float]:
        flat = [torch.cat([part.detach().flatten() for part in parts]) for parts in zip(*values, strict=True)]
        return [value.square().mean().sqrt().item() for value in flat]


def loss(logits: Tensor) -> Tensor:
    return (logits * torch.linspace(-1, 1, logits.numel(), dtype=logits.dtype).view_as(logits)).sum()


def randomized(model: nn.Module) -> nn.Module:
    with torch.no_grad():
        for read in model.attnres.streams[0].reads:
            read.query.normal_(std=0.5)
            read.key_norm.weight.normal_(1.0, 0.25)
    return model


def prepared(schedule: str = "auto", inner: str = "eager", build: Callable[[], nn.Module] = gpt2) -> nn.Module:
    model = build()
    ac.prepare(model, kwargs={"input_ids": steps()[0]}, block_size=BLOCK_SIZE, schedule=schedule, inner=inner)
    model.compile(backend="attnres")
    return model


def steps() -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(0, 61, size, generator=generator) for size in SIZES]


@pytest.mark.parametrize(
    ("schedule", "inner"),
    [
        ("naive", "eager"),
        ("direct", "eager"),
        ("two_phase", "eager"),
        ("auto", "aot_eager"),
    ],
)
def test_all_numbers_under_every_schedule(schedule: str, inner: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = randomized(prepared(schedule, inner))
    expected = Expected(model, steps(), monkeypatch)
    with ac.depth_weights(model) as w:
        for ids in steps():
            loss(model(input_ids=ids).logits).backward()
    tokens = sum(rows * length for rows, length in SIZES)
    assert [read.tokens for read in w.reads] == [tokens] * (2 * LAYERS)
    assert [(write.tokens, write.backwards) for write in w.writes] == [(tokens, len(SIZES))] * (2 * LAYERS)
    assert [len(weights) for weights in w.weights] == [2, 2, 2, 3]
    for found, of_read in zip(w.weights, expected.weights, strict=True):
        assert found == pytest.approx(of_read, rel=1e-9)
        assert sum(found) == pytest.approx(1, abs=1e-12)
    assert w.entropy == pytest.approx(expected.entropy, rel=1e-9)
    assert [read.magnitude for read in w.reads] == pytest.approx(expected.read_magnitude, rel=1e-9)
    assert w.output_magnitude == pytest.approx(expected.output_magnitude, rel=1e-9)
    assert [write.block_magnitude for write in w.writes] == pytest.approx(expected.block_magnitude, rel=1e-9)
    # Probes are fp32.
    assert w.gradient_norm == pytest.approx(expected.gradient_norm, rel=1e-6)


def test_fresh_queries_are_uniform_and_attention_is_told_from_mlp() -> None:
    model = prepared()
    with ac.depth_weights(model) as w, torch.no_grad():
        model(input_ids=steps()[0])
    for read in w.reads:
        count = len(read.weights)
        assert read.weights == pytest.approx([1 / count] * count, rel=1e-12)
        assert read.entropy == pytest.approx(torch.tensor(float(count)).log().item(), rel=1e-6)
    assert w.gradient_norm == (None,) * (2 * LAYERS)
    assert [(read.module.split(".", 2)[-1], read.before, read.is_open) for read in w.reads] == [
        ("0.ln_2", "mlp", True),
        ("1.ln_1", "attention", True),
        ("1.ln_2", "mlp", False),
        ("ln_f", "output", True),
    ]
    assert [write.sublayer for write in w.writes] == ["attention", "mlp"] * LAYERS
