"""The command: what it prints, keeps and exits with."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from attnres_compile.sweep import run
from attnres_compile.sweep.record import ModelRecord, Outcome, read_records
from tests.attnres_compile.cli.command_line import attnres

pytest.importorskip("transformers")


@pytest.fixture
def swept(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names that were swept; gpt2 is at fault, and all others are declined."""
    seen: list[str] = []

    def sweep(library: str, names: list[str], *_: Any) -> Iterator[ModelRecord]:
        for name in names:
            seen.append(name)
            yield ModelRecord(
                name, library, Outcome.FAULT if name == "gpt2" else Outcome.DECLINED, reason="KeyError: 1"
            )

    monkeypatch.setattr(run, "sweep", sweep)
    return seen


def test_the_pattern_chooses_and_the_exit_code_is_zero_without_a_fault(capsys, swept) -> None:
    code, out, _ = attnres(capsys, "sweep", "--only", "llama,gpt_neo*")
    assert code == 0
    assert swept == ["gpt_neo", "gpt_neox", "gpt_neox_japanese", "llama"]
    assert out.split() == ["outcome", "models", "---------", "--------", "declined", "4"]


def test_a_fault_is_named_and_is_exit_code_two(capsys, swept) -> None:
    code, out, _ = attnres(capsys, "sweep", "--only", "gpt2,llama")
    assert code == 2
    assert "gpt2: KeyError: 1" in out


def test_every_model_is_kept_as_it_is_done_and_not_swept_again(capsys, swept, tmp_path: Path) -> None:
    file = tmp_path / "sweep.jsonl"
    attnres(capsys, "sweep", "--only", "llama", "--out", str(file))
    code, out, _ = attnres(capsys, "sweep", "--only", "llama,mistral", "--out", str(file))
    assert code == 0
    assert swept == ["llama", "mistral"]
    assert [record.name for record in read_records(file)] == swept
    assert "2" in out.split()
    attnres(capsys, "sweep", "--only", "llama", "--out", str(file), "--again", "declined")
    assert swept == ["llama", "mistral", "llama"]


def test_the_page_of_a_file(capsys, swept, tmp_path: Path) -> None:
    file = tmp_path / "sweep.jsonl"
    attnres(capsys, "sweep", "--only", "llama", "--out", str(file))
    code, out, _ = attnres(capsys, "sweep", "--page", str(file))
    assert code == 0
    assert "## Disagreements" in out
    assert "- `llama`: declined" in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--jobs", "0"), "have to be positive"),
        (("--limit-seconds", "-1"), "have to be positive"),
        (("--only", "no-such-model"), "no model of transformers is named 'no-such-model'"),
        (("--page", "none.jsonl"), "none.jsonl cannot be read"),
    ],
)
def test_what_cannot_be_done_is_an_error_of_one_line(capsys, swept, words: tuple[str, ...], message: str) -> None:
    code, _, error = attnres(capsys, "sweep", *words)
    assert code == 1
    assert message in error
    assert error.count("\n") == 1
    assert swept == []
