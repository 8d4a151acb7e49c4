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
    """Columns of one stream. blocks_per_rail: 1 unless there are more blocks than rails; box_width: of both panels."""

    num_blocks: int
    box_width: int

    @classmethod
    def of(cls, stream: StreamFacts, labels: Iterable[str]) -> Geometry:
        """Columns wide enough.

        Args:
            stream: whose blocks get rails.
            labels: that fit into the boxes, clipped.
        """
        longest = max((len(clipped(label)) for label in labels), default=0)
        return cls(stream.num_blocks, max(100, math.ceil(longest * CHARACTER) + 18))

    @property
    def blocks_per_rail(self) -> int:
        return math.ceil(self.num_blocks / MOST_RAILS)

    @property
    def rails(self) -> int:
        """Rails without that of the root."""
        return math.ceil(self.num_blocks / self.blocks_per_rail)

    def rail_of(self, block: int) -> int:
        return 0 if block == 0 else (block - 1) // self.blocks_per_rail + 1

    def rail_name(self, rail: int) -> str:
        """The first block of a rail."""
        return f"{(rail - 1) * self.blocks_per_rail + 1 if rail else 0}"

    @property
    def spacing(self) -> int:
        return 18 if self.rails <= 12 else 13

    @property
    def box(self) -> int:
        """Left edge of the boxes of the panel before."""
        return _BOX

    @property
    def band(self) -> int:
        """Left edge of the panel after."""
        return self.box + self.box_width + _GAP

    def rail(self, index: int) -> int:
        return self.band + _BAND_LABEL + index * self.spacing

    @property
    def node(self) -> int:
        """Middle of the depth attention nodes."""
        return self.rail(self.rails) + _NODE

    @property
    def box_after(self) -> int:
        return self.node + _NODE

    @property
    def info(self) -> int:
        """Left edge of the words behind the boxes."""
        return self.box_after + self.box_width + 12

    @property
    def band_end(self) -> int:
        return self.info + _INFO - 12

    @property
    def width(self) -> int:
        return self.band_end + 4
