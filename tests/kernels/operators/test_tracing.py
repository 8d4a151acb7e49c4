"""What a compiler sees of the operators: every kernel, and that it writes its results and nothing else."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from attnres_kernels.generation.specs import Phase1Spec
from attnres_kernels.launch import candidates
from attnres_kernels.launch.tuning import AUTOTUNE_VARIABLE, Choice

SCRIPT = Path(__file__).with_name("traced_kernels.py")
INDUCTOR_SCRIPT = Path(__file__).with_name("inductor_kernels.py")
WRITTEN = re.compile(
    r"source_grad_\d+|output_\d+|log_sums|logits|source|statistics|value|normed|new_partial|partial_grad|read_grad"
    r"|scalars|weights|to_keys|to_selves|(key|norm_weight|norm_bias)_grads"
)


def printed_by(script: Path, *words: int, autotune: str) -> Any:
    """What a script prints last, as JSON."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-W", "ignore", script, *map(str, words)]
    environment |= {AUTOTUNE_VARIABLE: autotune, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize(
    ("width", "sources", "launches", "autotune"),
    [
        # Logits of each source, and of a block that is completed; phase 1; two reads. Backwards: two reads, and each
        # set of blocks. A read with own logits, and its backward.
        (256, 3, 3 + 1 + 1 + 2 + 2 + 2 + 2, "0"),
        (256, 3, 3 + 1 + 1 + 2 + 2 + 2 + 2, "1"),
        # Wide rows have no registers for sums for the keys: two more kernels.
        (16384, 3, 3 + 1 + 1 + 2 + 2 + 2 + 2 + 2, "0"),
        # More sources than one launch takes: phase 1 goes on once, and the sources' backward has a second part.
        (64, 14, 14 + 1 + 2 + 2 + 2 + 3 + 2, "0"),
    ],
)
def test_a_compiler_takes_only_results_to_be_written_and_any_number_of_tokens(
    width: int, sources: int, launches: int, autotune: str
) -> None:
    """An argument taken to be written would be copied before every launch."""
    traced = printed_by(SCRIPT, width, sources, autotune=autotune)
    # Tensors have equally many tokens; how many stays open, so that another number compiles nothing again.
    assert all(re.fullmatch(r"Eq\((\d+\*)?s\d+, (\d+\*)?s\d+\)", guard) for guard in traced["guards"]), traced["guards"]
    assert traced["constants"] == 0, "a GPU that is given a tensor of the host waits for it, and records no graph"
    seen = traced["launches"]
    assert len(seen) == launches
    for written in seen:
        assert written
        assert all(WRITTEN.fullmatch(name) for name in written), written
        # "source" is a result where a block is completed, and only there.
        assert "source" not in written or written == ["source", "logits"]
    assert any(count > 1 for count in traced["choices"]) == (autotune == "1")


def test_inductor_times_all_choices_each_with_its_grid() -> None:
    phase_1, logits, own_logits = printed_by(INDUCTOR_SCRIPT, autotune="1")
    rest = {"num_stages": 3}
    assert phase_1["kernel"] == "phase_1_n2_s2_0"
    spec = Phase1Spec(2, 2)
    for found, choices in (
        (phase_1, candidates.phase_1(spec, 4096)),
        (logits, candidates.logits(3)),
        (own_logits, candidates.own_logits_read(4096, torch.bfloat16)),
    ):
        assert len(choices) > 1
        assert [x | rest for x in map(Choice.numbers, choices)] == found["configs"]
    tiles = [-(-4096 // choice.numbers()["BLOCK_D"]) for choice in candidates.phase_1(spec, 4096)]
    assert [int(grid[1]) for grid in phase_1["grids"]] == tiles
    assert len(set(tiles)) > 1
    assert phase_1["tokens_open"]
    assert logits["tokens_open"]


def test_inductor_is_given_the_static_choice_alone_if_nothing_is_tuned() -> None:
    for found in printed_by(INDUCTOR_SCRIPT, autotune="0"):
        assert found["grids"] == []
        assert len(found["configs"]) == 1
