"""The benchmark of regions runs, in turn and apart, at the smallest size."""

from __future__ import annotations

import pytest

from kernels.benchmarks import regions

TINY = ["--layers", "1", "--width", "64", "--tokens", "8", "--batch", "1", "--threads", "1", "--inner", "aot_eager"]


def test_both_forms_step_in_turn(capsys: pytest.CaptureFixture[str]) -> None:
    regions.main(["steady", *TINY, "--rounds", "2"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == ["training step, processor", "training step, wall"]


def test_the_first_step_is_made_in_a_process_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    regions.main(["first", *TINY, "--forms", "plain"])
    _, _, row = capsys.readouterr().out.splitlines()
    assert row.split()[:2] == ["1", "plain"]
    assert row.split()[4:] == ["1.000", "1.000"]
