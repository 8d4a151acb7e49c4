"""Run the test suite, folder by folder, in one environment per torch; `make versions` calls it.

    python .ci/versions.py [--torch 2.13.0 ..] [--folders tests/passes/ir ..] [--python VERSION=PATH ..]

Every folder of tests is a cell of docs/benchmarks/versions.json, kept as soon as it has run, with the commit that it
ran at. A cell that is there is not run again, so that an interrupted run goes on where it ended; `--again` runs it
anew. The table of docs/versions.md is made from the record by `python docs/regenerate.py`. Environments are in
build/versions, several GB each: torch from the index that pip knows, with the Triton that it asks for, and the newest
transformers.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RECORD = ROOT / "docs" / "benchmarks" / "versions.json"
ENVIRONMENTS = ROOT / "build" / "versions"
VERSIONS = ("2.11.0", "2.13.0", "2.14.1", "2.15.0")
BESIDE = (
    *("transformers", "safetensors", "accelerate", "peft", "pillow", "pytorch-lightning"),
    *("jinja2", "networkx", "tabulate", "tqdm", "matplotlib", "jsonschema", "pydot"),
    *("pytest", "pytest-xdist", "hypothesis", "setuptools>=77"),
)
NAMES = ("torch", "triton", "transformers")


def folders() -> list[str]:
    """Every folder that has tests of its own, in order."""
    found = {path.parent.relative_to(ROOT) for path in (ROOT / "tests").rglob("test_*.py")}
    return sorted(map(str, found))


def environment(version: str) -> Path:
    """The interpreter of an environment with this torch, made if it is not there."""
    folder = ENVIRONMENTS / version
    if not (folder / ".made").exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
        pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet"]
        subprocess.run([*pip, f"torch=={version}"], check=True)
        subprocess.run([*pip, f"torch=={version}", *BESIDE], check=True)
        subprocess.run([*pip, "--no-deps", "--no-build-isolation", "-e", str(ROOT)], check=True)
        (folder / ".made").touch()
    return folder / "bin" / "python"


def versions_of(python: Path) -> dict[str, str]:
    """Of the packages that matter, in an environment."""
    code = f"import importlib.metadata as m, json; print(json.dumps({{n: m.version(n) for n in {NAMES!r}}}))"
    out = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout
    return json.loads(out)  # type: ignore[no-any-return]


def run_folder(python: Path, folder: str, limit: int) -> dict[str, Any]:
    """Outcomes of the tests of one folder, without those of the folders in it."""
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as temporary:
        report = Path(temporary) / "report.xml"
        files = sorted(str(path.relative_to(ROOT)) for path in (ROOT / folder).glob("test_*.py"))
        words = [python, "-m", "pytest", "-q", f"--junitxml={report}", *files]
        roots = os.pathsep.join(str(ROOT / name) for name in ("", "passes", "kernels"))
        try:
            done = subprocess.run(words, cwd=ROOT, env={**os.environ, "PYTHONPATH": roots}, timeout=limit, check=False)
        except subprocess.TimeoutExpired:
            return {"error": f"ran past {limit} s"}
        if not report.exists():
            return {"error": f"pytest ended with {done.returncode} and no report"}
        cases = list(ET.parse(report).getroot().iter("testcase"))
    failed = [case for case in cases if case.find("failure") is not None or case.find("error") is not None]
    skipped = sum(case.find("skipped") is not None for case in cases)
    return {
        "passed": len(cases) - len(failed) - skipped,
        "skipped": skipped,
        "failed": [f"{case.get('classname')}::{case.get('name')}" for case in failed],
        "seconds": round(time.monotonic() - start),
    }


def commit() -> str:
    """Of the working tree, marked where other files than the record have changed since."""

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()

    changed = git("status", "--porcelain", "--untracked-files=no", "--", ".", f":!{RECORD.relative_to(ROOT)}")
    return git("rev-parse", "--short=12", "HEAD") + ("-changed" if changed else "")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--torch", nargs="+", default=list(VERSIONS), metavar="VERSION")
    parser.add_argument("--folders", nargs="+", default=folders(), metavar="FOLDER")
    parser.add_argument("--python", nargs="+", default=[], metavar="VERSION=PATH", help="environments that are there")
    parser.add_argument("--limit", type=int, default=3600, help="seconds of a folder (default 3600)")
    parser.add_argument("--again", action="store_true", help="run what the record has, too")
    given = parser.parse_args()
    there = dict(entry.split("=", 1) for entry in given.python)
    record = json.loads(RECORD.read_text()) if RECORD.exists() else {"kind": "versions", "torch": {}}
    red = 0
    for version in given.torch:
        python = Path(there[version]) if version in there else environment(version)
        of_version = record["torch"].setdefault(version, {"folders": {}})
        of_version["versions"] = versions_of(python)
        if re.split(r"\+", of_version["versions"]["torch"])[0] != version:
            parser.error(f"{python} has torch {of_version['versions']['torch']}, not {version}")
        for folder in given.folders:
            known = of_version["folders"].get(folder)
            if given.again or known is None or "error" in known:
                print(f"torch {version}: {folder}", flush=True)
                of_version["folders"][folder] = run_folder(python, folder, given.limit) | {"commit": commit()}
                RECORD.write_text(json.dumps(record, indent=1, sort_keys=True) + "\n")
            found = of_version["folders"][folder]
            red += "error" in found or bool(found["failed"])
    print(f"{red} folders are not green" if red else "all folders are green")
    return int(red > 0)


if __name__ == "__main__":
    sys.exit(main())
