"""Which class of transformers a model type is made with, and what is said where there is none."""

from __future__ import annotations

import pytest

from attnres_compile.sweep.judge import judge
from attnres_compile.sweep.making.errors import NotMadeError
from attnres_compile.sweep.making.hf_models import small_model
from attnres_compile.sweep.record import Outcome

transformers = pytest.importorskip("transformers")


def test_a_class_that_transformers_lists_and_does_not_have_is_not_made(monkeypatch: pytest.MonkeyPatch) -> None:
    mapping = transformers.MODEL_MAPPING._model_mapping
    monkeypatch.setitem(mapping, "gpt2", "GPT2ModelOfNoModule")
    monkeypatch.setattr(transformers.MODEL_MAPPING, "_extra_content", {})
    with pytest.raises(NotMadeError, match=r"GPT2Config.*GPT2ModelOfNoModule.*adjustments\.json"):
        small_model("gpt2")
    record = judge("gpt2", "transformers", lambda: small_model("gpt2"))
    assert record.outcome is Outcome.NOT_MADE
