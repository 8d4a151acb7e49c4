"""The faults as data."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = {"ATT": "attnres_compile", "PAS": "passes/attnres_passes", "KER": "kernels/attnres_kernels"}


class FaultError(ValueError):
    """A fault that does not apply to the code as it is: mend ``faults.toml``."""


@dataclass(frozen=True)
class Fault:
    """One line of a file with something wrong in it.

    file: from the root; line: as it is; faulty: what stands in its place; tests: of its area, for pytest.
    """

    name: str
    file: str
    line: str
    faulty: str
    tests: tuple[str, ...]

    def applied(self, text: str) -> str:
        """The text of the file with the fault in it. Raises FaultError if its line is not in it exactly once."""
        count = text.split("\n").count(self.line)
        if count != 1:
            raise FaultError(f"{self.name!r}: its line is {count} times in {self.file}; change it in faults.toml")
        return "\n".join(self.faulty if line == self.line else line for line in text.split("\n"))

    def put_into(self, root: Path) -> None:
        """Put the fault into the copy of the code at ``root``. Raises FaultError."""
        path = root / self.file
        path.write_text(self.applied(path.read_text(encoding="utf-8")), encoding="utf-8")


def all_faults() -> list[Fault]:
    """All of ``faults.toml``."""
    data = tomllib.loads((Path(__file__).parent / "faults.toml").read_text(encoding="utf-8"))
    return [
        Fault(
            one["name"],
            f"{FOLDERS[one['file'][:3]]}{one['file'][3:]}",
            one["line"],
            one["with"],
            tuple(f"tests/{test}" for test in one["tests"]),
        )
        for one in data["fault"]
    ]
