"""What stands in for the process of a model: it answers, sleeps, dies or is killed."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

from attnres_compile.sweep.record import ModelRecord, Outcome


def child(library: str, name: str, limit_bytes: int, answer: Any) -> None:
    """Does what its name says, and answers if it still can."""
    if name == "sleeps":
        time.sleep(600)
    if name == "dies":
        os._exit(7)
    if name == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    answer.send(ModelRecord(name, library, Outcome.DECLINED, reason=f"{os.getpid()} of {limit_bytes}"))
    answer.close()
