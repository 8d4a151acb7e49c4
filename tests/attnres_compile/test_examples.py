"""The examples run as their users run them, in a process of their own, and leave nothing behind."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("transformers")

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def run_example(name: str, *words: str, environment: dict[str, str], directory: Path, launcher: tuple = ()) -> str:
    # PYTHONSAFEPATH would hide the example's own folder, which a user's call has on the path.
    environment = {key: value for key, value in environment.items() if key != "PYTHONSAFEPATH"}
    done = subprocess.run(
        [sys.executable, *launcher, str(EXAMPLES / name), *words],
        env=environment,
        cwd=directory,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert not list(directory.iterdir()), "an example leaves no files in the user's directory"
    assert "\r" not in done.stderr, "no bar where there is no terminal"
    return done.stdout


def test_quickstart(child_environment, tmp_path):
    """Without Inductor, under which tests/end_to_end compares the gradients: compiling its C++ takes a minute."""
    words = ("--inner", "aot_eager")
    out = run_example("quickstart.py", *words, environment=child_environment, directory=tmp_path)
    assert "8 writes in 4 blocks of 2" in out
    losses = [float(value) for value in re.findall(r"loss (\d+\.\d+)", out)]
    assert 5 < losses[0] < 6.5, "bytes under random weights cost about log(256)"
    assert losses[-1] < losses[0] - 1
    assert re.search(r"8 pseudo-queries started at zero; their largest entry is now 0\.0*[1-9]", out)


@pytest.mark.processes
def test_pipeline(child_environment, tmp_path):
    environment = {**child_environment, "GLOO_SOCKET_IFNAME": "lo"}
    meeting = ("--nproc-per-node", "2", "--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0")
    launcher = ("-m", "torch.distributed.run", *meeting)
    words = ("--layers", "2", "--steps", "6")
    out = run_example("pipeline.py", *words, environment=environment, directory=tmp_path, launcher=launcher)
    assert "2 ranks x 2 chunks, loop order, cached transfer, 4 sublayers in blocks of 1" in out
    assert "units sent  2      1      1" in out
    losses = [float(value) for value in re.findall(r"loss (\d+\.\d+)", out)]
    assert 5 < losses[0] < 6.5
    assert losses[-1] < losses[0] - 1


def test_demo(child_environment, tmp_path):
    """Every part by what it shows, with those of ``--full``; where there is no terminal, no bar is among them."""
    words = ("--tiny", "--full", "--steps", "20", "--rounds", "2", "--num-blocks", "2", "--inner", "eager")
    out = run_example("demo.py", *words, environment=child_environment, directory=tmp_path)
    heading, *parts = re.split(r"^=== (.*) \[after \d+ s\] ===$", out, flags=re.MULTILINE)
    assert heading.strip() == ""
    shown = dict(zip(parts[::2], parts[1::2], strict=True))
    assert [text.partition(" ")[0] for text in shown] == ["1.", "2.", "3.", "4.", "5.", "6.", "7.", "Done"]
    plan, counted, verified, trained, measured, verified_large, measured_large, _ = shown.values()
    assert "4 writes in 2 blocks of 2" in plan
    endings = [line.split()[-1] for line in counted.splitlines() if line.strip()]
    assert endings.count("counted") >= 4
    assert "measured" not in endings, "nothing is timed there"
    assert "COUNTED" in list(shown)[1]
    assert re.search(r"^verified, largest relative error", verified, re.MULTILINE)
    assert re.search(r"^verified, largest relative error", verified_large, re.MULTILINE)
    losses = [tuple(map(float, row)) for row in re.findall(r"^ *\d+ to +\d+ +(\S+) +(\S+)$", trained, re.MULTILINE)]
    assert len(losses) == 10
    assert all(5 < first < 6 for first in losses[0]), "bytes under random weights cost about log(256)"
    assert all(last < first for first, last in zip(losses[0], losses[-1], strict=True)), "both learn"
    assert re.search(r"largest entry is now 0\.0*[1-9]", trained)
    assert "MEASURED" in list(shown)[4]
    assert re.search(r"^ratio (≈ )?\d\.\d+ \[.*\] with \d+ % confidence, 2 paired rounds$", measured, re.MULTILINE)
    assert re.search(r"^measured on .+, \d+ threads$", measured, re.MULTILINE)
    assert sum(line.rstrip().endswith("measured") for line in measured_large.splitlines()) == 2


def test_depth_weights(child_environment, tmp_path):
    words = ("--layers", "2", "--steps", "3", "--recorded", "2")
    out = run_example("depth_weights.py", *words, environment=child_environment, directory=tmp_path)
    assert "stream transformer.h of GPT2LMHeadModel: 1,024 tokens, 2 backward passes" in out
    rows = [line.split() for line in out.splitlines() if line.startswith("transformer.h.")]
    assert [row[1] for row in rows if "ln_" in row[0]] == ["mlp", "attention", "mlp"]


@pytest.mark.processes
@pytest.mark.parametrize("name", ["fsdp_stack.py", "accelerate_stack.py"])
def test_stacks(name, child_environment, tmp_path):
    if name == "accelerate_stack.py":
        pytest.importorskip("accelerate")
    environment = {**child_environment, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    meeting = ("--nproc-per-node", "2", "--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0")
    launcher = ("-m", "torch.distributed.run", *meeting)
    out = run_example(name, environment=environment, directory=tmp_path, launcher=launcher)
    losses = [float(value) for value in re.findall(r"loss (\d+\.\d+)", out)]
    assert len(losses) == 8
    assert 5 < losses[0] < 6.5
    assert losses[-1] < losses[0] - 0.5
    assert re.search(r"rewritten: [78] reads, .* calls: 8 rewritten", out)
