"""What a compiler sees of the operators: every kernel, and that it writes its results and nothing else."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("traced_kernels.py")
WRITTEN = re.compile(
    r"source_grad_\d+|output_\d+|log_sums|logits|source|statistics|value|normed|new_partial|partial_grad|read_grad"
    r"|scalars|weights|to_keys|to_selves|(key|norm_weight|norm_bias)_grads"
)


@pytest.mark.parametrize(
    ("width", "sources", "launches"),
    [
        # Logits of each source, and of a block that is completed; phase 1; two reads. Backwards: two reads, and each
        # set of blocks. A read with own logits, and its backward.
        (256, 3, 3 + 1 + 1 + 2 + 2 + 2 + 2),
        # Wide rows have no registers for sums for the keys: two more kernels.
        (16384, 3, 3 + 1 + 1 + 2 + 2 + 2 + 2 + 2),
        # More sources than one launch takes: phase 1 goes on once, and the sources' backward has a second part.
        (64, 14, 14 + 1 + 2 + 2 + 2 + 3 + 2),
    ],
)
def test_a_compiler_takes_only_results_to_be_written_and_any_number_of_tokens(
    width: int, sources: int, launches: int
) -> None:
    """An argument taken to be written would be copied before every launch."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-W", "ignore", SCRIPT, str(width), str(sources)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    traced = json.loads(done.stdout.splitlines()[-1])
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
