"""What stands in for the process of a model: it answers, sleeps, dies or says how often it was started."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from attnres_compile.sweep.record import ModelRecord, Outcome


def child(library: str, name: str, limit_bytes: int, answer: Any) -> None:
    """By its name: ``sleeps`` sleeps, ``dies`` ends without a word, ``counted FILE`` adds a line to a file."""
    word, _, rest = name.partition(" ")
    if word == "sleeps":
        time.sleep(600)
    if word == "dies":
        os._exit(7)
    if word == "counted":
        with Path(rest).open("a") as file:
            file.write("started\n")
    answer.send(ModelRecord(name, library, Outcome.DECLINED, reason=f"{os.getpid()} of {limit_bytes}"))
    answer.close()
