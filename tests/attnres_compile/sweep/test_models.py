"""Models of the sweep, over its families: what becomes of each is what its source says, and what is rewritten is right.

Twenty-five of them here; `attnres sweep` takes all that there are.
"""

from __future__ import annotations

import pytest

from attnres_compile.sweep.agreement.labels import agrees, read_labels
from attnres_compile.sweep.judge import judge
from attnres_compile.sweep.names import make
from attnres_compile.sweep.record import Outcome

pytest.importorskip("transformers")

REWRITTEN = {
    "gpt2": 4,
    "gpt_neox": 2,
    "phi": 2,
    "cohere": 4,
    "bloom": 4,
    "gemma2": 8,
    "granite": 4,
    "mamba": 2,
    "t5": 10,
    "whisper": 10,
    "vit": 4,
    "clip": 8,
    "dinov2": 4,
    "roberta-prelayernorm": 4,
    "segformer": 16,
}
DECLINED = {
    "bert": "post_norm",
    "bart": "post_norm",
    "distilbert": "post_norm",
    "albert": "post_norm",
    "wav2vec2": "post_norm",
    "xlnet": "post_norm",
    "olmo2": "unnormed_read",
    "resnet": "channels_first",
    "convnext": "channels_first",
}
TIMM = {"mixer_s16_224": 4}


@pytest.mark.parametrize(("name", "writes"), REWRITTEN.items())
def test_rewritten(name: str, writes: int) -> None:
    assert_as_labelled("transformers", name, writes)


@pytest.mark.parametrize(("name", "reason"), DECLINED.items())
def test_declined(name: str, reason: str) -> None:
    record = assert_as_labelled("transformers", name, 0)
    assert record.declined[0][0] == reason


@pytest.mark.parametrize(("name", "writes"), TIMM.items())
def test_rewritten_of_timm(name: str, writes: int) -> None:
    from tests.zoo.torchvision_shim import ensure_torchvision_imports

    ensure_torchvision_imports()
    pytest.importorskip("timm")
    assert_as_labelled("timm", name, writes)


def assert_as_labelled(library: str, name: str, writes: int):
    record = judge(name, library, lambda: make(library, name))
    label = read_labels().of(record)
    assert label is not None, record.layers
    assert label.writes == writes
    assert agrees(record, label), record
    if writes:
        assert record.outcome is Outcome.REWRITTEN
        assert record.verified["checks"] >= 3
    return record
