"""Exported weights do in another project's model what they do in ours, or are refused with the reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

import attnres_compile as ac
from attnres_compile.model.errors import ExportError, NotPreparedError
from tests.attnres_compile.integrations.llama import prepared
from tests.end_to_end.models import randomize

WIDTH, LAYERS = 16, 3


class Sublayer(nn.Module):
    """In the place of attention, so that the models differ in their residuals alone."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)

    def forward(self, hidden_states: Tensor, **_: Any) -> Tensor:
        return torch.tanh(self.linear(hidden_states))


class PlainLayer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attn_norm, self.mlp_norm = nn.RMSNorm(WIDTH, eps=1e-6), nn.RMSNorm(WIDTH, eps=1e-6)
        self.attn, self.mlp = Sublayer(), Sublayer()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.attn_norm(x))
        return x + self.mlp(self.mlp_norm(x))


class Plain(nn.Module):
    def __init__(self, layers: int = LAYERS) -> None:
        super().__init__()
        self.layers = nn.ModuleList(PlainLayer() for _ in range(layers))
        self.norm = nn.RMSNorm(WIDTH, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return self.norm(x)


class ByTheirNames(nn.Module):
    """Sources and reads as flash-linear-attention's TransformerModel has them, with the names of its parameters."""

    def __init__(self, block_size: int, eps: float) -> None:
        super().__init__()
        self.model = Plain()
        self.block_size = block_size
        for module in (*self.model.layers, self.model):
            for name in ("",) if module is self.model else ("attn_", "mlp_"):
                setattr(module, f"{name}res_proj", nn.Linear(WIDTH, 1, bias=False))
                setattr(module, f"{name}res_norm", nn.RMSNorm(WIDTH, eps=eps))

    def read(self, module: nn.Module, name: str, sources: list[Tensor]) -> Tensor:
        query, norm = getattr(module, f"{name}res_proj").weight, getattr(module, f"{name}res_norm")
        values = torch.stack(sources)
        weights = (F.rms_norm(values, (WIDTH,), norm.weight, norm.eps) @ query.flatten()).softmax(0)
        return (weights[..., None] * values).sum(0)

    def forward(self, x: Tensor) -> Tensor:
        completed: list[Tensor] = []
        running: Tensor | None = x
        for number, layer in enumerate(self.model.layers):
            for half, name in enumerate(("attn", "mlp")):
                assert running is not None
                sources = [*completed, running]
                if (2 * number + half) % self.block_size == 0:
                    completed, running = sources, None
                mixed = self.read(layer, f"{name}_", sources)
                written = getattr(layer, name)(getattr(layer, f"{name}_norm")(mixed))
                running = written if running is None else running + written
        assert running is not None
        return self.model.norm(self.read(self.model, "", [*completed, running]))


def assert_equal(found: Tensor, expected: Tensor) -> None:
    assert torch.allclose(found, expected, rtol=1e-12, atol=1e-12)
    assert not torch.allclose(expected, torch.zeros_like(expected), atol=1e-3)


@pytest.mark.parametrize("size", [1, 2, 4])
def test_values_by_their_names(size: int, tmp_path: Path) -> None:
    model, x = Plain().double(), torch.randn(2, 5, WIDTH, dtype=torch.double)
    ac.prepare(model, (x,), block_size=size, eps=1e-5)
    randomize(model)
    configuration = ac.export_weights(model, tmp_path, layout="fla")
    assert configuration == {"attnres_block_size": size, "norm_eps": 1e-5}
    other = ByTheirNames(size, configuration["norm_eps"]).double()
    own = {f"model.{name}": value for name, value in model.state_dict().items() if not name.startswith("attnres.")}
    other.load_state_dict(own | load_file(tmp_path / "attnres.fla.safetensors"))
    model.compile(backend="attnres", options={"inner": "eager"})
    assert_equal(other(x), model(x))


@pytest.mark.parametrize("size", [1, 2])
def test_values_in_their_own_model(size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their model with their own definition of the operator; what needs a GPU besides, the sublayers, is replaced."""
    theirs = pytest.importorskip("fla.models.transformer.modeling_transformer")
    from fla.models.transformer import TransformerConfig
    from fla.ops.attnres.naive import naive_attnres

    class MLP(Sublayer):
        def __init__(self, **_: Any) -> None:
            super().__init__()

    class Attention(MLP):
        def forward(self, hidden_states: Tensor, **_: Any) -> Any:
            return super().forward(hidden_states), None, None

    monkeypatch.setattr(theirs, "Attention", Attention)
    monkeypatch.setattr(theirs, "TransformerMLP", MLP)
    monkeypatch.setattr(theirs, "fused_attnres", naive_attnres)
    fusion = {"fuse_norm": False, "fuse_swiglu": False, "fuse_cross_entropy": False, "use_cache": False}
    sizes = {"hidden_size": WIDTH, "num_hidden_layers": LAYERS, "vocab_size": 32, "num_heads": 2}

    model = theirs.TransformerForCausalLM(TransformerConfig(**sizes, **fusion))
    ids = torch.randint(0, 32, (2, 5))
    ac.prepare(model, kwargs={"input_ids": ids}, block_size=size)
    randomize(model)
    configuration = ac.export_weights(model, tmp_path, layout="fla")
    other = theirs.TransformerForCausalLM(TransformerConfig(**sizes, **fusion, **configuration))
    own = {name: value for name, value in model.state_dict().items() if not name.startswith("attnres.")}
    other.load_state_dict(own | load_file(tmp_path / "attnres.fla.safetensors"))
    model.compile(backend="attnres", options={"inner": "eager"})
    assert torch.allclose(other(ids).logits, model(ids).logits, rtol=1e-5, atol=1e-6)


def test_names_of_a_llama(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    ac.export_weights(prepared(), tmp_path, layout="fla")
    tensors = load_file(tmp_path / "attnres.fla.safetensors")
    places = [f"model.layers.{layer}.{part}_res" for layer in range(2) for part in ("attn", "mlp")]
    names = {f"{place}_{kind}.weight" for place in (*places, "model.res") for kind in ("proj", "norm")}
    assert tensors.keys() == names
    assert {tuple(value.shape) for name, value in tensors.items() if "proj" in name} == {(1, 32)}


class Parallel(PlainLayer):
    def forward(self, x: Tensor) -> Tensor:
        return x + self.attn(self.attn_norm(x)) + self.mlp(self.mlp_norm(x))


class Unnormed(PlainLayer):
    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(x)
        return x + self.mlp(self.mlp_norm(x))


class OneSublayer(PlainLayer):
    def forward(self, x: Tensor) -> Tensor:
        return x + self.mlp(self.mlp_norm(x))


def of(layer: type[PlainLayer], layers: int = 4) -> Plain:
    model = Plain(layers)
    model.layers = nn.ModuleList(layer() for _ in range(layers))
    return model


class TwoStreams(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = Plain(), Plain()
        self.first, self.second = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.one(self.first(x)), self.other(self.second(x))])


REFUSED: dict[str, tuple[Any, dict[str, Any], str]] = {
    "sum": (Plain, {"scale": "sum"}, "scale='sum' multiplies"),
    "odd blocks": (Plain, {"block_size": 3}, "blocks of 3 sublayers end inside a layer"),
    "two streams": (TwoStreams, {}, "the model has 2 streams"),
    "one of two": (TwoStreams, {"streams": ["one.layers"]}, "the model has several streams"),
    "parallel": (lambda: of(Parallel), {}, "one read before each sublayer"),
    "unnormed": (lambda: of(Unnormed), {"allow_unnormed": True}, "reads the stream without a norm"),
    "one sublayer": (lambda: of(OneSublayer), {}, r"layers\.0.* is followed by layers\.1"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case: str, tmp_path: Path) -> None:
    make, options, message = REFUSED[case]
    model = make()
    ac.prepare(model, (torch.randn(2, 5, WIDTH),), **({"block_size": 2} | options))
    with pytest.raises(ExportError, match=message):
        ac.export_weights(model, tmp_path / "none", layout="fla")
    assert not (tmp_path / "none").exists()


def test_other_mechanism(tmp_path: Path) -> None:
    model = Plain()
    with pytest.raises(NotPreparedError):
        ac.export_weights(model, tmp_path, layout="fla")
    with pytest.raises(ExportError, match="unknown layout 'megatron'; there are 'fla', 'inkling2'"):
        ac.export_weights(model, tmp_path, layout="megatron")
    ac.prepare(model, (torch.randn(2, 5, WIDTH),))
    with pytest.raises(ExportError, match="mixes normed sources"):
        ac.export_weights(model, tmp_path, layout="inkling2")


def test_inkling2_mixes_normed_sources() -> None:
    """What the refusal says, of their own module: equal queries do not give our mix of the sources."""
    modeling = pytest.importorskip("transformers.models.inkling2.modeling_inkling2")
    config = modeling.Inkling2TextConfig(hidden_size=WIDTH)
    module = modeling.Inkling2BlockAttentionResidual(config)
    blocks, partial = 7 * torch.randn(2, 5, 3, WIDTH), torch.randn(2, 5, WIDTH)
    (mixed,) = module(blocks, partial)
    sources = torch.cat([blocks, partial[..., None, :]], -2)
    assert not torch.allclose(mixed, sources.mean(-2), atol=0.1), "zero queries: ours is the mean of the sources"
    assert torch.allclose(mixed, F.rms_norm(sources, (WIDTH,)).mean(-2), atol=1e-4)
