"""The whole text of an inspection and of a rewritten graph, as it was accepted.

ATTNRES_ACCEPT='inspection_*,rewritten_*' python -m pytest tests/attnres_compile/inspection/test_golden.py accepts what
there is now.
"""

from __future__ import annotations

import re
from importlib.metadata import version
from pathlib import Path

import pytest

import attnres_compile as ac
from tests.golden_text import check_golden

PINS = Path(__file__).resolve().parents[3] / ".ci" / "constraints.txt"
MODELS = ("gpt2-tiny", "llama-tiny")


@pytest.fixture(scope="module", autouse=True)
def pinned_versions() -> None:
    """Graphs and source lines are those of one version of torch and transformers."""
    pytest.importorskip("transformers")
    pins = dict(re.findall(r"^(torch|transformers)==(\d+\.\d+)", PINS.read_text(), re.MULTILINE))
    for package, pinned in pins.items():
        if not version(package).startswith(f"{pinned}."):
            pytest.skip(f"the texts are those of {package} {pinned}, and {version(package)} is installed")


@pytest.fixture(scope="module", params=MODELS)
def explained(request: pytest.FixtureRequest) -> ac.Explanation:
    from attnres_compile.models.load_options import LoadOptions
    from attnres_compile.models.source import load_model

    loaded = load_model(request.param, LoadOptions(seq=16))
    return ac.explain(loaded.model, loaded.args, loaded.kwargs, name=loaded.name, block_size=2)


def test_the_text_of_an_inspection(explained: ac.Explanation) -> None:
    text = re.sub(r"^made with: .*$", "made with: ..", f"{explained}\n\n{explained.diff()}", flags=re.MULTILINE)
    check_golden(f"inspection_{explained.name}", text)


def test_the_text_of_a_rewritten_graph(explained: ac.Explanation) -> None:
    check_golden(f"rewritten_{explained.name}", explained.text("rewritten"))
