"""The parameters of a read, as a mechanism has them: names, places below the read's module, shapes, first values."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from attnres_kernels.definition.mechanism import Mechanism
from attnres_passes.ir.read_id import ParameterName


@dataclass(frozen=True)
class ParameterForm:
    """One parameter of every read of a stream. path: below the module of the read; first: what it begins as."""

    name: ParameterName
    path: str
    shape: tuple[int, ...]
    first: Literal["zeros", "ones"]

    @property
    def holder(self) -> str:
        """Path of the module that it is of, below that of the read; '' for that one."""
        return self.path.rpartition(".")[0]

    @property
    def attribute(self) -> str:
        """Its name there."""
        return self.path.rpartition(".")[2]

    @property
    def elements(self) -> int:
        """How many numbers it holds."""
        return math.prod(self.shape)


PATHS: dict[ParameterName, str] = {
    "query": "query",
    "query_matrix": "query_projection.weight",
    "key_weight": "key_norm.weight",
}
"""Where each is below the module of its read."""


def forms_of_read(mechanism: Mechanism, width: int) -> tuple[ParameterForm, ...]:
    """The parameters of a read, in the order of their placeholders.

    Training starts where the paper's does: with zero queries, all sources weigh alike.

    Args:
        mechanism: of the model.
        width: of the stream.
    """
    forms = [ParameterForm("query", PATHS["query"], (width,), "zeros")]
    if mechanism.query == "input":
        forms = [ParameterForm("query_matrix", PATHS["query_matrix"], (width, width), "zeros")]
    if mechanism.key_norm == "weight":
        forms.append(ParameterForm("key_weight", PATHS["key_weight"], (width,), "ones"))
    return tuple(forms)


def elements_of_read(mechanism: Mechanism, width: int) -> int:
    """Numbers that a read adds to the model.

    Args:
        mechanism: of the model.
        width: of the stream.
    """
    return sum(form.elements for form in forms_of_read(mechanism, width))
