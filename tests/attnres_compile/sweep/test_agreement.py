"""Labels rest on lines that exist, agreement is strict, and the page holds every disagreement."""

from __future__ import annotations

import ast
import importlib.metadata
import importlib.util
import re
from functools import cache
from pathlib import Path

import pytest

from attnres_compile.sweep.agreement import page as pages
from attnres_compile.sweep.agreement.labels import KINDS, Labels, LayerLabel, ModelLabel, OwnLabel, agrees, read_labels
from attnres_compile.sweep.record import Found, ModelRecord, Outcome, write_records

BLOCK, BERT = "transformers.models.gpt2.modeling_gpt2.GPT2Block", "transformers.models.bert.modeling_bert.BertLayer"


def record(
    outcome: Outcome = Outcome.REWRITTEN, writes: int = 4, layers: dict[str, int] | None = None, name: str = "toy"
) -> ModelRecord:
    streams = (Found("h", 8, writes, writes + 1, 0, 0, {}),) if writes else ()
    verified = {"checks": 4, "skipped": 0, "max_error": 1e-7} if writes else {}
    how = "widths / 8, on input_ids [1, 12]"
    return ModelRecord(
        name, "transformers", outcome, how, {BLOCK: 2} if layers is None else layers, streams, verified=verified
    )


@cache
def classes(file: Path) -> dict[str, list[ast.ClassDef]]:
    """By name: one that depends on what is installed (xLSTM's) has a definition in each branch."""
    found: dict[str, list[ast.ClassDef]] = {}
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ClassDef):
            found.setdefault(node.name, []).append(node)
    return found


def test_every_label_rests_on_lines_of_its_class() -> None:
    pytest.importorskip("transformers")
    labels = read_labels()
    if importlib.metadata.version("transformers") != labels.read_from["transformers"]:
        pytest.skip("the labels were read from another version of transformers")
    root = Path(importlib.util.find_spec("transformers").origin).parent / "models"
    wrong = []
    for name, label in labels.layers.items():
        if not name.startswith("transformers."):
            continue
        file, first, last = re.fullmatch(r"(.+\.py):(\d+)-(\d+)", label.at).groups()
        assert name.split(".")[2:4] == file[:-3].split("/")
        nodes = classes(root / file)[name.rpartition(".")[2]]
        if not any(node.lineno <= int(first) <= int(last) <= node.end_lineno for node in nodes):
            wrong.append(name)
    assert not wrong


def test_only_what_can_be_rewritten_has_writes() -> None:
    for name, label in read_labels().layers.items():
        assert (label.writes > 0) == (label.kind in ("prenorm", "sandwich")), name


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="no kind of layer"):
        LayerLabel("prenorn", 2, "a.py:1-2")


def test_the_label_of_a_model_counts_the_calls_of_its_layers() -> None:
    labels = read_labels()
    assert labels.of(record()) == ModelLabel(("prenorm",), 4, (labels.layers[BLOCK].at,))
    both = labels.of(record(layers={BLOCK: 3, BERT: 2}))
    assert (both.kind, both.writes) == ("prenorm + postnorm", 6)


@pytest.mark.parametrize("layers", [{}, {"somewhere.Unread": 2}, {BLOCK: 2, "somewhere.Unread": 1}])
def test_what_nobody_has_read_is_not_labelled(layers: dict[str, int]) -> None:
    assert read_labels().of(record(layers=layers)) is None


def test_a_configuration_may_decide() -> None:
    labels = Labels({BLOCK: LayerLabel("prenorm", 3, "a.py:1-2")}, {"toy": OwnLabel(4, "no encoder")}, {})
    assert labels.of(record()).writes == 4


def test_a_model_whose_layers_are_in_no_list_may_have_a_label_of_its_own() -> None:
    labels = Labels(
        {}, {"toy": OwnLabel(0, "called by its forward, a.py:3", kind="postnorm"), "bare": OwnLabel(0, "")}, {}
    )
    assert labels.of(record(layers={})) == ModelLabel(
        ("postnorm",), 0, ("called by its forward, a.py:3",), labels.models["toy"].why
    )
    assert labels.of(record(layers={}, name="bare")) is None
    with pytest.raises(ValueError, match="no kind of layer"):
        OwnLabel(0, "", kind="postnrom")


@pytest.mark.parametrize(
    ("outcome", "writes", "same"),
    [(Outcome.PARTIAL, 4, True), (Outcome.PARTIAL, 3, False), (Outcome.REWRITTEN, 4, False)],
)
def test_a_stream_that_its_source_cuts_is_rewritten_in_pieces(outcome: Outcome, writes: int, same: bool) -> None:
    labels = Labels({BLOCK: LayerLabel("prenorm", 3, "a.py:1-2")}, {"toy": OwnLabel(4, "cut at a.py:3", True)}, {})
    assert agrees(record(outcome, writes), labels.of(record())) is same


@pytest.mark.parametrize(
    ("outcome", "writes", "labelled", "same"),
    [
        (Outcome.REWRITTEN, 4, 4, True),
        (Outcome.REWRITTEN, 3, 4, False),
        (Outcome.REWRITTEN, 4, 0, False),
        (Outcome.PARTIAL, 4, 4, False),
        (Outcome.DECLINED, 0, 4, False),
        (Outcome.DECLINED, 0, 0, True),
        (Outcome.REFUSED, 0, 0, False),
        (Outcome.WRONG, 4, 4, False),
        (Outcome.FAULT, 0, 0, False),
    ],
)
def test_agreement_is_strict(outcome: Outcome, writes: int, labelled: int, same: bool) -> None:
    assert agrees(record(outcome, writes), ModelLabel((), labelled, ())) is same


def test_the_page_lists_disagreements_the_unread_and_what_was_not_made(tmp_path: Path) -> None:
    file = tmp_path / "sweep.jsonl"
    unmade = ModelRecord("nothing", "transformers", Outcome.NOT_MADE, reason="NotMadeError: needs natten; and more")
    short = record(writes=3, name="short")
    unread = record(layers={"somewhere.Unread": 2}, name="unread")
    write_records([record(), short, unread, unmade], file)
    text = pages.page(file)
    assert "| prenorm | 2 " in re.sub(" +", " ", text)
    assert "50.0 %" in text
    assert "- `short` (prenorm, 4 writes by gpt2/modeling_gpt2.py:" in text
    assert "): rewritten, 3 writes in 1 streams: h with 3" in text
    assert "- `unread`: rewritten, 4 writes (Unread)" in text
    assert "- `nothing`: NotMadeError: needs natten\n" in text + "\n"
    assert "`verify` passed 3 of the 3 models" in text


def test_the_summary_names_each_fault() -> None:
    faulty = ModelRecord("bad", "transformers", Outcome.FAULT, reason="KeyError: 'x' [chains.py:7]")
    assert "bad: KeyError: 'x' [chains.py:7]" in pages.summary([record(), faulty])


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ("widths / 8, on input_ids [1, 12]", "tokens"),
        ("widths / 8, on input_ids [1, 12], decoder_input_ids [1, 12]", "tokens and decoder tokens"),
        ("widths / 8, on input_ids [1, 12], pixel_values [1, 3, 64, 64]", "images, tokens"),
        ("widths / 1, images as they are, on pixel_values [1, 3, 224, 224]", "images"),
        ("widths / 8, on input_features [1, 80, 64], decoder_input_ids [1, 12]", "sound, tokens and decoder tokens"),
    ],
)
def test_models_are_grouped_by_what_they_run_on(how: str, expected: str) -> None:
    assert pages.input_of(ModelRecord("m", "transformers", Outcome.DECLINED, how)) == expected


def test_every_kind_has_words() -> None:
    assert all(KINDS.values())
