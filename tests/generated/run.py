"""Thousands of generated models, one after the other or in several processes, and the record of what became of each."""

from __future__ import annotations

import hashlib
import json
import time
import traceback
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings

from tests.generated.description import Description, descriptions

FRONT_DOOR = 16
"""One model in so many is prepared, compiled and verified as a user would; the others go through the passes alone."""


@dataclass(frozen=True)
class Outcome:
    """What became of one model.

    key: of its description; outcome: "rewritten", "declined", "wrong" or "error"; message: what is wrong.
    """

    key: str
    outcome: str
    message: str
    seconds: float
    description: dict[str, Any]


def key_of(description: Description) -> str:
    """A short name of a description, the same in every run."""
    return hashlib.sha256(repr(description).encode()).hexdigest()[:12]


def drawn(number: int, from_seed: int) -> list[Description]:
    """Different descriptions, the same for a seed.

    Args:
        number: how many.
        from_seed: of the generator.
    """
    found: dict[str, Description] = {}
    part = 0
    while len(found) < number:
        # A new seed for each part, since one run of hypothesis varies what it has drawn before.
        for description in _part(from_seed * 100_000 + part):
            found.setdefault(key_of(description), description)
        part += 1
    return list(found.values())[:number]


def _part(from_seed: int) -> list[Description]:
    found: list[Description] = []

    @seed(from_seed)
    @settings(
        max_examples=50,
        database=None,
        deadline=None,
        phases=(Phase.generate,),
        suppress_health_check=list(HealthCheck),
    )
    @given(descriptions())
    def collect(description: Description) -> None:
        found.append(description)

    collect()
    return found


def judged(description: Description) -> Outcome:
    """Judge one model, and keep what is raised."""
    import torch

    from tests.generated.judge import judge

    torch.set_num_threads(1)
    key, began = key_of(description), time.monotonic()
    message = ""
    try:
        outcome = judge(description, through_front_door=int(key, 16) % FRONT_DOOR == 0)
    except AssertionError as error:
        outcome, message = "wrong", str(error)
    except Exception as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        outcome, message = "error", f"{type(error).__name__}: {error} ({Path(last.filename).name}:{last.lineno})"
    seconds = round(time.monotonic() - began, 2)
    return Outcome(key, outcome, message[:2000], seconds, asdict(description))


def judge_all(due: Sequence[Description], jobs: int) -> Iterator[Outcome]:
    """Judge models as they come.

    Args:
        due: their descriptions.
        jobs: processes; 1 for this one.
    """
    if jobs == 1:
        yield from map(judged, due)
        return
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        for future in as_completed([pool.submit(judged, one) for one in due]):
            yield future.result()


def read_record(path: Path) -> dict[str, Outcome]:
    """Outcomes by key, of a file of JSON lines; the last line of a run that was stopped may be cut."""
    found = {}
    for line in path.read_text(encoding="utf-8").split("\n")[:-1] if path.exists() else ():
        outcome = Outcome(**json.loads(line))
        found[outcome.key] = outcome
    return found


def append(outcome: Outcome, path: Path) -> None:
    """Put one outcome at the end of a record.

    Args:
        outcome: to keep.
        path: of the file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(asdict(outcome), separators=(",", ":")) + "\n")
