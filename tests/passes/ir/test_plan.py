"""The plan as data and as a table."""

from __future__ import annotations

import copy
import dataclasses
import json

import pytest

from attnres_passes.ir.config import AttnResConfig
from attnres_passes.ir.plan import SCHEMA_VERSION, Decline, LeftOut, Plan, Read, Reason, Stream, Write, short_source

STREAM = Stream(
    name="h",
    width=16,
    writes=(Write("h.0.attn", "/models/gpt.py:31", 1), Write("h.0.mlp", "/models/gpt.py:33", 2)),
    reads=(
        Read("h.0.ln_1", "/models/gpt.py:30", 1, 1, 0, True),
        Read("h.0.ln_2", "/models/gpt.py:32", 2, 2, 1, True),
        Read("", "/models/gpt.py:35", 3, None, 2, False),
    ),
    block_size=1,
    num_blocks=2,
)
DECLINE = Decline(Reason.POST_NORM, "the norm follows.", "encoder.0", "/models/bert.py:12", 3)
PLAN = Plan((STREAM,), (DECLINE,), AttnResConfig(block_size=1, streams=("h",), scale="sum"))


PIECE = dataclasses.replace(
    STREAM,
    left_out=(*(LeftOut(f"h.{k}.mlp", "/models/gpt.py:33") for k in (1, 2, 3, 3, 4)), LeftOut("", "a.py:1")),
)
PARTIAL = Plan((STREAM, PIECE), (), AttnResConfig())


@pytest.mark.parametrize(
    "plan", [PLAN, PARTIAL, Plan((), (), AttnResConfig()), Plan((STREAM, STREAM), (), AttnResConfig())]
)
def test_plain_data_gives_an_equal_plan(plan: Plan) -> None:
    assert Plan.from_dict(plan.to_dict()) == plan
    assert Plan.from_dict(json.loads(json.dumps(plan.to_dict()))) == plan


def test_a_block_behind_the_last_one_in_older_data_is_none() -> None:
    data = copy.deepcopy(PLAN.to_dict())
    data["streams"][0]["reads"][2]["block"] = 3
    assert Plan.from_dict(data) == PLAN


def test_plain_data_is_versioned_and_complete() -> None:
    data = PLAN.to_dict()
    assert data["schema_version"] == SCHEMA_VERSION == 1
    assert data["streams"][0]["writes"][1] == {"module": "h.0.mlp", "source": "/models/gpt.py:33", "block": 2}
    assert data["declined"][0]["reason"] == "post_norm"
    assert data["config"]["scale"] == "sum"


def test_a_piece_of_a_stream_is_the_first_thing_that_is_said() -> None:
    assert PARTIAL.partial
    assert PARTIAL.to_dict()["partial"]
    assert (
        str(PARTIAL).splitlines()[0]
        == PARTIAL.partial_text
        == (
            "partly rewritten: stream h holds 2 writes, and 6 more additions of its chain are left out "
            "(h.1.mlp [gpt.py:33], h.2.mlp [gpt.py:33], h.3.mlp [gpt.py:33], ..)"
        )
    )
    one = Plan((dataclasses.replace(STREAM, left_out=(LeftOut("", "/a/b.py:1"),)),), (), AttnResConfig())
    assert one.partial_text.endswith("and 1 more addition of its chain is left out (b.py:1)")


def test_a_decline_alone_makes_no_plan_partial() -> None:
    assert not PLAN.partial
    assert not PLAN.to_dict()["partial"]
    assert PLAN.partial_text == ""
    assert str(PLAN).startswith("stream h: ")


def test_data_of_a_version_without_pieces_is_read() -> None:
    data = copy.deepcopy(PLAN.to_dict())
    del data["partial"], data["streams"][0]["left_out"]
    assert Plan.from_dict(data) == PLAN


@pytest.mark.parametrize("missing", ["streams", "declined", "config"])
def test_data_with_a_missing_part_is_refused(missing: str) -> None:
    data = PLAN.to_dict()
    del data[missing]
    with pytest.raises(KeyError):
        Plan.from_dict(data)


def test_data_with_an_unknown_field_is_refused() -> None:
    data = copy.deepcopy(PLAN.to_dict())
    data["streams"][0]["reads"][0]["colour"] = "red"
    with pytest.raises(TypeError):
        Plan.from_dict(data)


def test_reads_with_two_sources_or_more_own_parameters() -> None:
    assert STREAM.parametrized_reads == STREAM.reads[1:]


TEXT = """\
stream h: width 16, 2 writes in 2 blocks of 1, 3 reads, 64 parameters added
       module    source     block    sources    normed
-----  --------  ---------  -------  ---------  --------
read   h.0.ln_1  gpt.py:30  1        1          yes
write  h.0.attn  gpt.py:31  1
read   h.0.ln_2  gpt.py:32  2        2          yes
write  h.0.mlp   gpt.py:33  2
read             gpt.py:35           3          no

declined:
  - post_norm: the norm follows. [encoder.0, bert.py:12]"""


def test_text_shows_every_read_write_and_decline() -> None:
    assert "\n".join(line.rstrip() for line in str(PLAN).splitlines()) == TEXT


def test_empty_plan_says_that_there_is_nothing_to_rewrite() -> None:
    assert str(Plan((), (), AttnResConfig())) == "nothing to rewrite"


def test_decline_without_a_place_has_no_brackets() -> None:
    assert str(Decline(Reason.OPAQUE, "hidden.", "", "")) == "opaque: hidden."
    assert str(Decline(Reason.OPAQUE, "hidden.", "", "/a/b.py:3")) == "opaque: hidden. [b.py:3]"


def test_reason_prints_as_its_value() -> None:
    assert [str(reason) for reason in Reason] == [reason.value for reason in Reason]


def test_short_source_is_the_file_name_and_line() -> None:
    assert short_source("/a/b/modeling_gpt2.py:388") == "modeling_gpt2.py:388"
    assert short_source("") == ""
