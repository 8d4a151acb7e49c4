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
    "beit": 4,
    "bloom": 4,
    "codegen": 2,
    "dia_encoder": 4,
    "gpt2": 4,
    "granite": 4,
    "roberta-prelayernorm": 4,
    "vit": 4,
    "whisper": 10,
}
DECLINED = {
    "albert": "post_norm",
    "bart": "post_norm",
    "bert": "post_norm",
    "bit": "channels_first",
    "convbert": "post_norm",
    "convnext": "channels_first",
    "data2vec-text": "post_norm",
    "deberta": "post_norm",
    "deepseek_v4": "lanes",
    "dinov3_convnext": "channels_first",
    "distilbert": "post_norm",
    "olmo2": "unnormed_read",
    "resnet": "channels_first",
    "wav2vec2": "post_norm",
    "xlnet": "post_norm",
}
TIMM = {"deit_tiny_patch16_224": 4}


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
