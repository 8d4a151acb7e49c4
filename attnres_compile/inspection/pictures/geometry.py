"""Where things stand in the picture of one stream: columns in pixels, and which blocks share a rail.

Left the stream as it was, one spine; right the rewritten one, a rail per block from its first write on, ``b0`` first.
Many blocks share rails, so that a picture of any model fits on a page.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from attnres_compile.inspection.facts.facts import StreamFacts

ROW = 26
HEAD = 60
LAYER_HEAD = 28
BORDER = 30
MOST_RAILS = 24
SPINE = 26
CHARACTER = 7.25
LONGEST_LABEL = 34

_BOX, _GAP, _BAND_LABEL, _NODE, _INFO = 58, 44, 82, 24, 190


def clipped(label: str) -> str:
    """A label that fits into a box: its end, which tells more than its beginning."""
    return label if len(label) <= LONGEST_LABEL else f"…{label[1 - LONGEST_LABEL :]}"


@dataclass(frozen=True)
class Geometry:
    """Columns of one stream.

    blocks_per_rail: 1 unless there are more blocks than rails; rails: without that of the root; spacing: between rails;
    box_width: of both panels. Then left edges, from left to right: box: of the boxes of the panel before; band: of the
    panel after; node: the middle of the depth attentions; box_after: of the boxes of the panel after; info: of the
    words behind them; band_end: where the panel ends.
    """

    blocks_per_rail: int
    rails: int
    spacing: int
    box_width: int
    box: int
    band: int
    node: int
    box_after: int
    info: int
    band_end: int

    @classmethod
    def of(cls, stream: StreamFacts, labels: Iterable[str]) -> Geometry:
        """Columns wide enough.

        Args:
            stream: whose blocks get rails.
            labels: that fit into the boxes, clipped.
        """
        longest = max((len(clipped(label)) for label in labels), default=0)
        box_width = max(100, math.ceil(longest * CHARACTER) + 18)
        blocks_per_rail = math.ceil(stream.num_blocks / MOST_RAILS)
        rails = math.ceil(stream.num_blocks / blocks_per_rail)
        spacing = 18 if rails <= 12 else 13
        band = _BOX + box_width + _GAP
        node = band + _BAND_LABEL + rails * spacing + _NODE
        box_after = node + _NODE
        info = box_after + box_width + 12
        columns = _BOX, band, node, box_after, info, info + _INFO - 12
        return cls(blocks_per_rail, rails, spacing, box_width, *columns)

    @property
    def width(self) -> int:
        """Of the whole picture."""
        return self.band_end + 4

    def rail(self, index: int) -> int:
        """The middle of a rail, of which 0 is the root's."""
        return self.band + _BAND_LABEL + index * self.spacing

    def rail_of(self, block: int) -> int:
        """The rail that a block is on."""
        return 0 if block == 0 else (block - 1) // self.blocks_per_rail + 1

    def rail_name(self, rail: int) -> str:
        """The first block of a rail."""
        return f"{(rail - 1) * self.blocks_per_rail + 1 if rail else 0}"
