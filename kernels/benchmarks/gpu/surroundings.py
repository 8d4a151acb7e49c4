"""What workers find around them: the packages of this checkout, peers from wheels, and one environment.

Wheels are installed into a folder of this run and nowhere else, each by itself, so that one that does not fit leaves
the others alone. Where the project is not installed, torch does not know its backend by name: then the metadata of the
project, and nothing else, is written into that folder by its own build backend.
"""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from ..against_peers.arms.peers import PACKAGES

_METADATA = "import sys; from setuptools.build_meta import prepare_metadata_for_build_wheel as m; m(sys.argv[1])"


@dataclass(frozen=True)
class Surroundings:
    """Of all workers of a run."""

    site: Path
    """A folder of packages, before those that are installed."""
    root: Path
    """Of the repository."""
    notes: tuple[str, ...]
    """What could not be had."""

    def environment(self, lanes: int, cores: int) -> dict[str, str]:
        """Of one worker.

        Args:
            lanes: workers beside each other, which share the cores.
            cores: of the machine.
        """
        folders = [self.site, self.root, self.root / "passes", self.root / "kernels"]
        paths = [*map(str, folders), *filter(None, [os.environ.get("PYTHONPATH")])]
        threads = str(max(1, cores // lanes))
        given = {
            "PYTHONPATH": os.pathsep.join(paths),
            "PYTHONUNBUFFERED": "1",
            # Peers that tune themselves keep on disk what they chose, so that it is chosen in the warm-ups.
            "TRITON_CACHE_AUTOTUNING": "1",
            "TORCHINDUCTOR_COMPILE_THREADS": threads,
        }
        return {**os.environ, **given} | ({"OMP_NUM_THREADS": threads} if lanes > 1 else {})

    def peers(self) -> list[str]:
        """Packages of other people's kernels that workers find."""
        found = importlib.metadata.distributions(path=[str(self.site), *sys.path])
        names = {(one.metadata["Name"] or "").lower().replace("_", "-") for one in found}
        return [package for package in PACKAGES if package in names]


def make_surroundings(root: Path, site: Path, wheels: str | None) -> Surroundings:
    """Install wheels and make the project known.

    Args:
        root: of the repository.
        site: an empty folder of this run.
        wheels: a folder of wheels of peers and what they need, or None.
    """
    notes = []
    found = sorted(Path(wheels).glob("*.whl")) if wheels is not None else []
    if wheels is not None and not found:
        notes.append(f"there are no wheels in {wheels}")
    for wheel in found:
        options = ["--quiet", "--no-index", "--no-deps", "--no-compile", "--upgrade", "--target", str(site)]
        notes += _failed(f"{wheel.name} was not installed", root, "-m", "pip", "install", *options, str(wheel))
    if not importlib.metadata.entry_points(group="torch_dynamo_backends", name="attnres"):
        notes += _failed("torch will not know the backend by its name", root, "-c", _METADATA, str(site))
    return Surroundings(site, root, tuple(notes))


def _failed(what: str, root: Path, *words: str) -> list[str]:
    done = subprocess.run([sys.executable, *words], cwd=root, capture_output=True, text=True, check=False)
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    return [f"{what}: {lines[-1] if lines else f'exit code {done.returncode}'}"] if done.returncode else []
