"""Models with the residual streams their source code says they have.

The expectations were read off the models' source, not computed, so that they can judge an analysis.
"""

from __future__ import annotations

from tests.zoo import hf_in_pieces, hf_models, timm_models, toys
from tests.zoo.case import Case, Expected

_ALL: tuple[Case, ...] = (*toys.CASES, *hf_models.CASES, *timm_models.CASES)
IN_PIECES: tuple[Case, ...] = hf_in_pieces.CASES
_BY_NAME = {case.name: case for case in _ALL}
if len(_BY_NAME) != len(_ALL):
    raise ValueError("two cases of the zoo share a name")

ACCEPTED: tuple[Case, ...] = tuple(case for case in _ALL if case.declined is None)
DECLINED: tuple[Case, ...] = tuple(case for case in _ALL if case.declined is not None)


def by_name(name: str) -> Case:
    """The case called `name`."""
    return _BY_NAME[name]


__all__ = ["ACCEPTED", "DECLINED", "IN_PIECES", "Case", "Expected", "by_name"]
