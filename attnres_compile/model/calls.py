"""What the calls of a prepared model were: inside its rewrite, plain on purpose, or plain by mistake."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

LastCall = Literal["", "rewritten", "plain on purpose", "plain", "refused"]


@dataclass
class Calls:
    """Counts of the calls of one model since it was prepared or copied, and what the last one was.

    rewritten: inside a graph that holds its rewrite; plain_on_purpose: inside ``attnres_compile.plain``; plain: run
    plain under ``on_plain="warn"``; refused: stopped by NotInForceError.
    """

    rewritten: int = 0
    plain_on_purpose: int = 0
    plain: int = 0
    refused: int = 0
    last: LastCall = ""

    def __deepcopy__(self, memo: dict[int, Any]) -> Calls:
        """A copy of a model was never called."""
        return Calls()

    def __reduce__(self) -> tuple[type[Calls], tuple[()]]:
        return Calls, ()
