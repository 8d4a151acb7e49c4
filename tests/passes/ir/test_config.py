"""Options: defaults, valid values, and what is said about the others."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from attnres_kernels.errors import AttnResError
from attnres_passes.ir.config import AttnResConfig, ConfigError

DEFAULTS = {
    "num_blocks": 8,
    "block_size": None,
    "scale": "mean",
    "schedule": "auto",
    "inner": "inductor",
    "stages": None,
    "on_decline": "error",
    "on_plain": "error",
    "allow_unnormed": False,
    "regions": None,
    "streams": None,
    "eps": 1e-6,
    "sequence_group": None,
}

VALID = [
    *[("num_blocks", value) for value in (1, 8, 1000)],
    *[("block_size", value) for value in (1, 6)],
    *[("scale", value) for value in ("mean", "sum")],
    *[("schedule", value) for value in ("auto", "direct", "two_phase", "naive")],
    *[("inner", value) for value in ("inductor", "aot_eager", "eager")],
    *[("stages", value) for value in (None, 1, 4)],
    *[("on_decline", value) for value in ("error", "warn", "ignore")],
    *[("on_plain", value) for value in ("error", "warn")],
    *[(name, value) for name in ("allow_unnormed", "regions") for value in (True, False)],
    ("regions", None),
    *[("streams", value) for value in (None, ("encoder",), ("a", "b"))],
    *[("eps", value) for value in (0.0, 1e-6, 0)],
    *[("sequence_group", value) for value in (None, "0")],
    *[("key_norm", value) for value in ("weight", "plain", "none")],
    *[("mixing", value) for value in ("softmax", "sigmoid")],
    *[("logit_scale", value) for value in (1, 0.125)],
    *[("window", value) for value in (None, 1, 8)],
    *[("heads", value) for value in (1, 16)],
    *[("query", value) for value in ("learned", "input")],
    *[("value_norm", value) for value in ("none", "plain")],
    *[("queries", value) for value in ("one", "qkv")],
]

INVALID: list[tuple[str, Any]] = [
    *[(name, value) for name in ("num_blocks", "block_size", "stages") for value in (0, -1, 1.5, "2", True)],
    *[(name, "nonsense") for name in ("scale", "schedule", "inner", "on_decline", "on_plain")],
    *[(name, None) for name in ("scale", "schedule", "inner", "on_decline", "on_plain")],
    ("streams", "encoder"),
    ("streams", 3),
    ("streams", [3]),
    ("eps", -1e-6),
    ("eps", "small"),
    ("eps", None),
    ("eps", float("nan")),
    *[(name, value) for name in ("allow_unnormed", "regions") for value in ("no", 1)],
    ("allow_unnormed", None),
    ("sequence_group", 0),
    *[
        (name, value)
        for name in ("key_norm", "mixing", "query", "value_norm", "queries")
        for value in ("nonsense", None)
    ],
    *[("logit_scale", value) for value in (0, -1.0, "small", None, True, float("nan"), float("inf"))],
    *[(name, value) for name in ("window", "heads") for value in (0, -1, 1.5, "2", True)],
    ("heads", None),
]


def test_nothing_is_compiled_in_parts_where_nothing_is_compiled() -> None:
    with pytest.raises(ConfigError, match="inner='eager' compiles nothing; leave one of them out"):
        AttnResConfig(inner="eager", regions=True)


@pytest.mark.parametrize("schedule", ["direct", "two_phase"])
@pytest.mark.parametrize(
    "variant",
    [{"key_norm": "none"}, {"mixing": "sigmoid"}, {"heads": 2}, {"query": "input"}, {"value_norm": "plain"}],
    ids=str,
)
def test_no_schedule_is_asked_for_that_cannot_be(variant: dict[str, Any], schedule: str) -> None:
    ((name, value),) = variant.items()
    with pytest.raises(ConfigError, match=f"schedule='{schedule}' is asked for, and {name}={value!r}: phase 1"):
        AttnResConfig(schedule=schedule, **variant)  # type: ignore[arg-type]


def test_no_sequence_shards_of_a_variant() -> None:
    with pytest.raises(ConfigError, match="sequence_group and window=2 are both given"):
        AttnResConfig(sequence_group="0", window=2)


def test_the_papers_mechanism_goes_without_saying() -> None:
    config = AttnResConfig(mixing="sigmoid", heads=1)
    assert config.to_dict() == {**DEFAULTS, "mixing": "sigmoid"}
    assert AttnResConfig.from_options(config.to_dict()) == config


def test_defaults() -> None:
    assert AttnResConfig().to_dict() == DEFAULTS


@pytest.mark.parametrize(("name", "value"), VALID)
def test_valid_value_is_kept(name: str, value: Any) -> None:
    assert getattr(AttnResConfig(**{name: value}), name) == value


def test_every_option_has_a_valid_case_and_an_invalid_one() -> None:
    names = {field.name for field in dataclasses.fields(AttnResConfig)}
    assert {name for name, _ in VALID} == names
    assert {name for name, _ in INVALID} == names


@pytest.mark.parametrize(("name", "value"), INVALID, ids=str)
def test_invalid_value_is_named_with_its_option(name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=rf"^{name}=") as caught:
        AttnResConfig(**{name: value})
    assert repr(value) in str(caught.value)
    assert len(str(caught.value).split(";")[-1].strip()) > 10, "it ends with what to do"


def test_config_error_is_one_of_ours_and_a_value_error() -> None:
    assert issubclass(ConfigError, AttnResError)
    assert issubclass(ConfigError, ValueError)


def test_number_and_size_of_blocks_exclude_each_other() -> None:
    with pytest.raises(ConfigError, match=r"num_blocks=8 and block_size=2 are both given.*give one of them"):
        AttnResConfig(num_blocks=8, block_size=2)


def test_number_of_blocks_is_open_when_their_size_is_given() -> None:
    assert AttnResConfig(block_size=2).num_blocks is None


def test_streams_may_be_a_list() -> None:
    assert AttnResConfig(streams=["a", "b"]).streams == ("a", "b")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("num_block", "num_blocks"),
        ("blocksize", "block_size"),
        ("on_declined", "on_decline"),
        ("scales", "scale"),
    ],
)
def test_unknown_option_names_the_closest_valid_one(given: str, meant: str) -> None:
    with pytest.raises(ConfigError) as caught:
        AttnResConfig.from_options({given: 2})
    assert caught.value.message == f"unknown option {given!r}; did you mean {meant!r}?"


def test_unknown_option_far_from_all_lists_them() -> None:
    with pytest.raises(ConfigError, match=r"unknown option 'zzz'; valid are 'num_blocks', .*'queries'\."):
        AttnResConfig.from_options({"zzz": 2})


@pytest.mark.parametrize(("given", "meant"), [("two-phase", "two_phase"), ("navie", "naive")])
def test_misspelt_choice_names_the_closest_valid_one(given: str, meant: str) -> None:
    with pytest.raises(ConfigError) as caught:
        AttnResConfig(schedule=given)  # type: ignore[arg-type]
    assert caught.value.message.endswith(f"did you mean {meant!r}?")
    assert "'auto', 'direct', 'two_phase', 'naive'" in str(caught.value)


def test_no_options_are_the_defaults() -> None:
    assert AttnResConfig.from_options(None) == AttnResConfig.from_options({}) == AttnResConfig()


@pytest.mark.parametrize(
    "options",
    [{}, {"block_size": 3}, {"streams": ("a",), "eps": 1e-5, "scale": "sum"}, {"stages": 2, "num_blocks": 4}],
)
def test_plain_data_gives_an_equal_config(options: dict[str, Any]) -> None:
    config = AttnResConfig(**options)
    assert AttnResConfig.from_options(config.to_dict()) == config
    assert AttnResConfig.from_options(json.loads(json.dumps(config.to_dict()))) == config


def test_config_is_frozen_and_hashable() -> None:
    config = AttnResConfig(streams=["a"])  # type: ignore[arg-type]
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.scale = "sum"  # type: ignore[misc]
    assert hash(config) == hash(AttnResConfig(streams=("a",)))
