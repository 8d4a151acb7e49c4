"""Two builds in pairs: whose ratio is printed, over what its interval is, and that workers are of the builds named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kernels.benchmarks import builds


def start(this: float, other: float) -> dict[str, list[tuple[float, float]]]:
    return {"this": [(this, 2 * this)] * 3, "other": [(other, other)] * 3}


def test_the_ratio_is_of_this_build_over_the_other_and_its_interval_is_over_starts() -> None:
    starts = [start(3.0, 2.0), start(2.0, 2.0), start(1.0, 2.0)]
    assert builds.ratio_of_starts(starts, "processor") == (1.0, 0.5, 1.5)
    assert builds.ratio_of_starts(starts, "wall") == (2.0, 1.0, 3.0)


def test_a_slow_pair_does_not_move_the_ratio() -> None:
    samples = start(1.0, 1.0)
    samples["this"] = [*samples["this"][:2], (100.0, 100.0)]
    assert builds.ratio_of_starts([samples], "processor")[0] == 1.0


def test_a_build_is_paired_with_itself(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A whole run, and the record that it keeps."""
    kept = tmp_path / "builds.json"
    words = ["--workload", "decode", "--model", "llama-tiny", "--tokens", "8", "--starts", "1", "--pairs", "2"]
    builds.main([str(builds.THIS_BUILD), *words, "--json", str(kept)])
    assert "decode of llama-tiny, processor: this build" in capsys.readouterr().out
    record = json.loads(kept.read_text())
    assert [len(record["starts"][0][side]) for side in ("this", "other")] == [2, 2]
    assert record["kind"] == builds.KIND
    this, other = (record["starts"][0]["counts"][side] for side in ("this", "other"))
    assert this["operators"] == other["operators"] > 100
    assert this["call"] > 100


def test_a_folder_that_is_no_checkout_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="is that the root of a checkout"):
        builds.Worker(tmp_path, ["decode", "llama-tiny", "8", "1"]).wait_until_warm()
