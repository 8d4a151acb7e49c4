"""The parts and the pictures of inspection.md: one report as text, and models drawn."""

from __future__ import annotations

import functools
import importlib.metadata
import re
from typing import Any

import example_variants
import torch
from example_model import TinyGPT, example
from torch.utils.checkpoint import checkpoint

import attnres_compile
from attnres_compile.models.load_options import LoadOptions
from attnres_compile.models.source import load_model
from parts import part, picture
from parts.how_it_works import explained
from parts.layout import fenced


@part
def inspection_version() -> str:
    torch_is, transformers_is = (
        ".".join(importlib.metadata.version(name).split(".")[:2]) for name in ("torch", "transformers")
    )
    return f"The pictures and texts of this page were made with torch {torch_is} and transformers {transformers_is}.\n"


@part
def inspection_text() -> str:
    return fenced(re.sub(r"^made with: .*$", "made with: ..", explained().report(), flags=re.MULTILINE))


@part
def inspection_borders() -> str:
    model = TinyGPT(layers=3)
    for block in model.h:
        block.forward = functools.partial(checkpoint, block.forward, use_reentrant=False)  # type: ignore[method-assign]
    _, args, kwargs = example()
    report = attnres_compile.explain(model, args, kwargs, block_size=3).report()
    return fenced(report.partition("\n\nparameters added")[0])


@part
def inspection_diff() -> str:
    return fenced(explained().diff(), "diff")


@functools.cache
def preset(name: str, seq: int | None = 64, **options: Any) -> attnres_compile.Explanation:
    loaded = load_model(name, LoadOptions(seq=seq))
    return attnres_compile.explain(loaded.model, loaded.args, loaded.kwargs, name=name, **options)


@picture
def gpt2() -> str:
    return preset("gpt2").to_svg()


@picture
def gpt2_unfolded() -> str:
    """The layers around the end of the first block and of the last one."""
    return preset("gpt2").to_svg(["1", "2", "11"])


@picture
def llama_full() -> str:
    return preset("llama-tiny", block_size=1).to_svg(["all"])


@picture
def whisper() -> str:
    return preset("whisper-tiny").to_svg()


@picture
def vit() -> str:
    return preset("vit-tiny", seq=None, num_blocks=3).to_svg(["all"])


@picture
def deep() -> str:
    return attnres_compile.explain(TinyGPT(layers=32), (torch.zeros(1, 8, dtype=torch.long),)).to_svg()


@picture
def declined_model() -> str:
    make, give, _ = example_variants.DECLINED["post_norm"]
    return attnres_compile.explain(make(), (give(),), on_decline="ignore").to_svg()
