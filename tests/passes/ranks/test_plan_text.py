"""A pipeline plan as a table and as a picture."""

from __future__ import annotations

from attnres_passes.ranks.layout import StageLayout, StageOrder
from attnres_passes.ranks.plan_text import keys_text, stage_picture, stage_table
from attnres_passes.ranks.transfers import OPEN, plan_stages
from tests.passes.ranks.stage_plans import plan_of

PICTURE = """\
            0>1    1>2    2>3    3>4    4>5    5>6    6>7
----------  -----  -----  -----  -----  -----  -----  -----
ranks       0>1    1>2    2>3    3>0    0>1    1>2    2>3
b0          #      #      #      -      -      -      -
b1                 #      #      #      -      -      -
b2                        #      #      #      -      -
b3                               #      #      #      -
b4                                             #      #
b5                                                    #
open        #      #      #             #      #      #
units sent  2      3      4      3      3      3      3
# sent   - the receiving rank has it   = handed over on one rank, nothing is sent"""


V_TABLE = """\
chunk    rank    sublayers    arrives    cached    produced    sends    keeps
-------  ------  -----------  ---------  --------  ----------  -------  -------
0        0       1-2: a .. b                       b0          b0 open  b0
1        1       3-4: c .. d  b0 open              b1          b1 open  b0
2        1       5: e         b1 open    b0                    b1 open
3        0       6: f         b1 open    b0        b2"""


def test_picture_of_twelve_layers() -> None:
    assert stage_picture(plan_of(4, 2, 24, 4)) == PICTURE


def test_table_in_v_order() -> None:
    plan = plan_stages(StageLayout(2, 2, StageOrder.V), [0, 2, 4, 5, 6], 3, "cached", list("abcdef"))
    head, _, table = stage_table(plan).partition("\n")
    assert [line.rstrip() for line in table.splitlines()] == V_TABLE.splitlines()
    assert head == f"2 ranks x 2 chunks, v order, cached transfer, 6 sublayers in blocks of 3, plan {plan.digest}"
    assert "=" in stage_picture(plan)


def test_keys_are_drawn_together() -> None:
    assert keys_text((0, 1, 2, 5, OPEN)) == "b0-b2 b5 open"
    assert keys_text(()) == ""
