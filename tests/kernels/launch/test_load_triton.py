"""What making a kernel sets in its process."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

SCRIPT = "import os; import attnres_kernels.launch.load_triton as t; print(os.environ[t.FUSION_VARIABLE])"


@pytest.mark.parametrize(("given", "expected"), [({}, "1"), ({"TRITON_DEFAULT_FP_FUSION": "0"}, "0")])
def test_fusion_is_asked_for_unless_the_user_has_said_otherwise(given: dict[str, str], expected: str) -> None:
    inherited = {name: value for name, value in os.environ.items() if name != "TRITON_DEFAULT_FP_FUSION"}
    environment = {**inherited, **given, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    result = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, env=environment, check=True)
    assert result.stdout.strip() == expected
