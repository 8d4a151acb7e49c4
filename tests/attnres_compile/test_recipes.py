"""The recipes of docs/recipes.md, run at small size with the real libraries, as their users run them."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import attnres_compile as ac
from attnres_compile.model.errors import NotInForceError, OptimizerError
from tests.attnres_compile.integrations.llama import plain, prepared, token_ids
from tests.attnres_compile.test_examples import EXAMPLES, run_example

ROOT = EXAMPLES.parent
SMALL = ("--layers", "2", "--inner", "eager")


def falling(out: str, pattern: str = r"loss (\d+\.\d+)", first: float = 5.0) -> None:
    losses = [float(value) for value in re.findall(pattern, out)]
    assert len(losses) >= 2, out
    assert first < losses[0] < 6.5
    assert losses[-1] < losses[0] - 0.3, out


def in_force(out: str) -> None:
    assert re.search(r"^rewritten: 4 reads", out, re.MULTILINE), out


def of_trainer(out: str) -> None:
    falling(out)
    assert "resumed from the middle: 0 of 30 tensors differ" in out
    assert "loaded from the last checkpoint: 0 tensors differ" in out


def of_accelerate(out: str) -> None:
    falling(out)
    first, again = re.search(r"twice: losses (\S+) and (\S+)", out).groups()
    assert first == again


def of_lightning(out: str) -> None:
    falling(out)
    assert "resumed behind the first epoch: 0 of 30 tensors differ" in out


def of_plain_loop(out: str) -> None:
    for dtype in ("bfloat16", "float16"):
        falling(out, rf"{dtype} step +\d+  loss (\S+)")
        assert f"torch.{dtype} resumed: 0 of 30 tensors differ" in out
    assert out.count("rewritten: 4 reads") == 2


def of_muon(out: str) -> None:
    falling(out)
    hidden = 2 * (4 * 64 * 64 + 3 * 64 * 128)
    assert f"Muon: {hidden:,} parameters" in out
    assert f"AdamW: {2 * 256 * 64 + 5 * 64 + 4 * 2 * 64:,} parameters" in out
    assert float(re.search(r"largest entry of a query: (\S+)", out)[1]) > 1e-3


def of_ema(out: str) -> None:
    falling(out, r"step +\d+  loss (\S+)")
    assert "the average is another model: 8 tensors" in out
    of_model, of_average = map(float, re.findall(r"loss (\S+) on other text", out))
    assert of_model != of_average < 5.5


def of_generate(out: str) -> None:
    assert "dynamic cache: 3 of 3 rows" in out
    assert "static cache: 3 of 3 rows" in out
    assert "3 of 3 prompts go on in a way of their own" in out


def of_lora(out: str) -> None:
    falling(out)
    loaded, merged = (float(re.search(rf"{name}: largest difference (\S+)", out)[1]) for name in ("loaded", "merged"))
    assert loaded == 0.0
    assert merged < 1e-4
    assert "merged: 8 AttnRes tensors are the tuned ones" in out


def of_timm(out: str) -> None:
    falling(out, first=2.0)
    assert float(re.search(r"accuracy (\S+)", out)[1]) > 0.3


def of_retrofit(out: str) -> None:
    """The conversion moves nothing but roundings, whatever the scale; both sides learn, and are compared by seed."""
    falling(out)
    moved = re.findall(r"(converted|sum to mean): logits moved by (\S+),", out)
    assert [name for name, _ in moved] == ["converted", "sum to mean"]
    assert all(float(value) < 1e-4 for name, value in moved if name == "converted"), moved
    assert all(float(value) < 1e-2 for _, value in moved), moved
    by_seed = re.findall(r"seed \d: AttnRes (\S+), plain (\S+) on held out", out)
    listed = re.search(r"^AttnRes less plain: (.*), mean (\S+)$", out, re.MULTILINE)
    differences = [float(one) - float(other) for one, other in by_seed]
    assert [float(one) for one in listed[1].split(", ")] == pytest.approx(differences, abs=2e-4)
    assert float(listed[2]) == pytest.approx(differences[0], abs=2e-4)


RECIPES: dict[str, tuple[str, tuple[str, ...], Callable[[str], None]]] = {
    "hf_trainer.py": ("accelerate", ("--steps", "6"), of_trainer),
    "accelerate_loop.py": ("accelerate", ("--steps", "6"), of_accelerate),
    "lightning_fit.py": ("pytorch_lightning", ("--steps", "6"), of_lightning),
    "plain_loop.py": ("transformers", ("--steps", "6"), of_plain_loop),
    "muon.py": ("transformers", ("--steps", "6"), of_muon),
    "ema.py": ("transformers", ("--steps", "6"), of_ema),
    "generate.py": ("transformers", (), of_generate),
    "retrofit.py": ("transformers", ("--steps", "8", "--seeds", "1"), of_retrofit),
    "lora.py": ("peft", ("--steps", "6"), of_lora),
    "timm_digits.py": ("sklearn", ("--steps", "60"), of_timm),
}


@pytest.mark.parametrize("name", RECIPES)
def test_recipe(name: str, child_environment: dict[str, str], tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    library, words, check = RECIPES[name]
    pytest.importorskip(library)
    environment = child_environment
    if name == "timm_digits.py":
        pytest.importorskip("timm")
        path = os.pathsep.join([environment["PYTHONPATH"], str(Path(sys.prefix) / "vision")])
        environment = {**environment, "PYTHONPATH": path}
    out = run_example(name, *words, *SMALL, environment=environment, directory=tmp_path)
    check(out)
    in_force(out)


def test_recipes_are_short_and_on_their_page() -> None:
    page = (ROOT / "docs" / "recipes.md").read_text()
    for name in RECIPES:
        assert len((EXAMPLES / name).read_text().splitlines()) <= 80, name
        assert f"](../examples/{name})" in page, name


def fit_compiled(model: Any, folder: Path) -> None:
    """Three steps of Lightning with all of the LightningModule compiled."""
    lightning = pytest.importorskip("pytorch_lightning")

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def training_step(self, batch: Any, index: int) -> Any:
            return self.model(input_ids=batch, labels=batch).loss

        def configure_optimizers(self) -> Any:
            return torch.optim.AdamW(self.parameters(), lr=1e-3)

    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = lightning.Trainer(
        max_steps=3, accelerator="cpu", enable_model_summary=False, default_root_dir=str(folder), **quiet
    )
    compiled = torch.compile(Module(), backend="attnres", options={"inner": "eager"})
    trainer.fit(compiled, torch.utils.data.DataLoader(token_ids().repeat(3, 1), batch_size=2))


class TestWhatBreaks:
    """What the page says of each library."""

    def test_a_compiled_lightning_module(self, tmp_path: Path) -> None:
        """Around a prepared model it is the rewrite; the optimizer of one that was not prepared misses parameters."""
        model = prepared().train()
        fit_compiled(model, tmp_path)
        assert ac.status(model).state == "rewritten"
        with pytest.raises(OptimizerError):
            fit_compiled(plain(), tmp_path)

    def test_an_average_is_not_compiled(self) -> None:
        model = prepared()
        model.compile(backend="attnres", options={"inner": "eager"})
        average = torch.optim.swa_utils.AveragedModel(model, use_buffers=True)
        with pytest.raises(NotInForceError):
            average(input_ids=token_ids())

    def test_a_wrapper_around_all_of_attnres(self) -> None:
        """``modules_to_save=["attnres"]`` puts a module of peft in the place of ours; its streams may be saved."""
        peft = pytest.importorskip("peft")
        model = prepared()
        wrapped = peft.get_peft_model(model, peft.LoraConfig(target_modules=["q_proj"], modules_to_save=["attnres"]))
        model.compile(backend="attnres", options={"inner": "eager"})
        with pytest.raises(ac.AttnResError):
            wrapped(input_ids=token_ids())

    def test_saved_from_and_loaded_into_a_peft_model(self, tmp_path: Path) -> None:
        """The parameters that are trained, under the names that they have without peft."""
        peft = pytest.importorskip("peft")
        model = prepared()
        saved = {"target_modules": ["q_proj"], "modules_to_save": ["attnres.streams.0"]}
        wrapped = peft.get_peft_model(model, peft.LoraConfig(**saved))
        with torch.no_grad():
            for parameter in wrapped.parameters():
                if parameter.requires_grad:
                    parameter.add_(1.0)
        ac.save(wrapped, tmp_path)
        base = plain()
        ac.load(base, tmp_path)
        trained = dict(wrapped.named_parameters())
        place = "base_model.model.attnres.streams.0.modules_to_save.default.reads"
        for index, read in enumerate(base.attnres.streams[0].reads):
            assert torch.equal(read.query, trained[f"{place}.{index}.query"])
        other = peft.get_peft_model(prepared(), peft.LoraConfig(**saved))
        ac.load(other.base_model.model, tmp_path)
        assert torch.equal(dict(other.named_parameters())[f"{place}.1.query"], trained[f"{place}.1.query"])


class UnnormedHead(torch.nn.Module):
    """Its last state leaves the stream without a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.norms = torch.nn.ModuleList(torch.nn.RMSNorm(8, eps=1e-3) for _ in range(4))
        self.layers = torch.nn.ModuleList(torch.nn.Linear(8, 8) for _ in range(4))
        self.head = torch.nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for norm, layer in zip(self.norms, self.layers, strict=True):
            x = x + layer(norm(x))
        return self.head(x)


class TestRetrofit:
    """What the page says of the scale."""

    def test_a_head_without_a_norm_takes_the_number_of_sources_in(self) -> None:
        torch.manual_seed(0)
        model, x = UnnormedHead().double(), torch.randn(2, 5, 8, dtype=torch.float64)
        expected = model(x)

        def converted(scale: str) -> torch.Tensor:
            self.plan = ac.prepare(model, (x,), num_blocks=4, scale=scale)
            model.compile(backend="attnres", options={"inner": "eager"})
            return model(x)

        torch.testing.assert_close(converted("sum"), expected, rtol=0, atol=1e-12)
        ac.unprepare(model)
        assert (converted("mean") - expected).abs().max() > 0.1
        last = self.plan.streams[0].reads[-1]
        assert (last.normed, last.num_sources) == (False, 5)
        with torch.no_grad():
            model.head.weight.mul_(last.num_sources)
        # What is left is the eps of the norms, which see the mean of up to four sources.
        left = (model(x) - expected).abs().max()
        assert 1e-6 < left < 0.05

    def test_what_a_norm_leaves_of_the_factor(self) -> None:
        """``eps (n^2 - 1) / 2m`` of the output."""
        torch.manual_seed(0)
        state, sources, eps = torch.randn(64, 512, dtype=torch.float64), 4, 1e-6
        norm = torch.nn.RMSNorm(512, eps=eps, dtype=torch.float64)
        moved = (norm(state) - norm(state / sources)) / norm(state)
        said = eps * (sources**2 - 1) / (2 * state.square().mean(-1, keepdim=True))
        torch.testing.assert_close(moved, said.expand_as(moved), rtol=1e-4, atol=0)
