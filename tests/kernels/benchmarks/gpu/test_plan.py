"""The plan of a run on a GPU: by worth, all that the goals ask for, and commands that exist; its kept rehearsal."""

from __future__ import annotations

import itertools
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from attnres_compile.cli import main as attnres
from attnres_compile.report.comparison import MeasureError
from kernels.benchmarks.against_peers.run import KernelJob
from kernels.benchmarks.against_peers.work import BLOCK, DIRECTIONS, LEVELS, OP
from kernels.benchmarks.goals.project_goals import DTYPE, INPUT, MODELS, SOURCES, TOKENS, WIDTHS
from kernels.benchmarks.gpu import __main__ as command
from kernels.benchmarks.gpu import plan as gpu_plan
from kernels.benchmarks.gpu.plan import BLOCKS, CHECKS, CLASSES, WARM_UPS, Cell, make_plan
from kernels.benchmarks.gpu.record import RunRecord
from kernels.benchmarks.gpu.rehearsal import faults_of, pretended, rehearsed
from kernels.benchmarks.gpu.summary import FAULTS_SHOWN, has_faults, split, summary
from kernels.benchmarks.gpu.work import _KINDS, _tuples
from tests.kernels.benchmarks.gpu.made import ENVIRONMENT, made
from tests.kernels.benchmarks.gpu_records import GRID, cell, kernel_record, model_record

DOCS = Path(__file__).resolve().parents[4] / "docs"
LOG = DOCS / "benchmarks" / "gpu-rehearsal.txt"
MINUTES = 12


@pytest.fixture(scope="module")
def plan() -> list[Cell]:
    return make_plan()


def test_classes_come_in_the_order_of_their_worth(plan):
    groups = [key for key, _ in itertools.groupby(cell.group for cell in plan)]
    assert tuple(groups) == CLASSES
    assert len({cell.name for cell in plan}) == len(plan)
    assert {cell.work["do"] for cell in plan} | {"describe"} == set(_KINDS)
    assert all(0 < cell.seconds < cell.limit for cell in plan)


def test_every_goal_is_measured_and_every_shape_of_one_checked(plan):
    shapes = {(*place, way) for place in itertools.product(TOKENS, WIDTHS, SOURCES) for way in DIRECTIONS}
    jobs = [(one.group, KernelJob(**_tuples(one.work["job"]))) for one in plan if one.work["do"] == "kernels"]
    found: dict[tuple[bool, str], list] = {}
    for group, job in jobs:
        ((shape, way),) = job.cells()
        assert shape.dtype == DTYPE
        found.setdefault((group == BLOCKS, shape.level), []).append((shape.tokens, shape.width, shape.sources, way))
    assert set(found) == {(True, BLOCK), (False, BLOCK), (False, OP)}
    assert all(len(places) == len(shapes) and set(places) == shapes for places in found.values())
    checked = Counter(one.work["shape"]["level"] for one in plan if one.group == CHECKS and "shape" in one.work)
    assert checked == {OP: 18 + 3, BLOCK: 18 + 3 + 2}


def test_commands_of_models_can_be_parsed_and_measure_what_the_goals_ask_for(plan):
    commands = [one.work["words"] for one in plan if one.is_timed and "words" in one.work]
    parsed = [attnres.build_parser().parse_args(words[2:]) for words in commands]
    assert {(one.model, *one.workload) for one in parsed} == set(itertools.product(MODELS, gpu_plan.WORKLOADS))
    assert all(([one.batch, one.seq], one.dtype, one.device) == (INPUT, DTYPE, "cuda") for one in parsed)
    for one in plan:
        if one.group == WARM_UPS and "words" in one.work:
            assert attnres.build_parser().parse_args(one.work["words"][2:]).rounds == 1


def test_every_timed_cell_is_warmed_up_with_all_of_its_arms(plan):
    warm = {one.name: one.work for one in plan if one.group == WARM_UPS}
    timed = [one for one in plan if one.is_timed]
    assert list(warm) == [f"warm-up of {one.name}" for one in timed]
    for one in timed:
        assert warm[f"warm-up of {one.name}"].get("job") == one.work.get("job")


def test_only_what_is_still_to_be_timed_is_warmed_up_with_the_arms_that_it_has(plan):
    known = {one.name for one in plan if one.is_timed and one.group != BLOCKS}
    left = make_plan(known=known)
    warm = [one.work["job"] for one in left if one.group == WARM_UPS]
    assert len(warm) == 36
    assert not any(job["peers"] for job in warm)
    assert [one for one in left if one.group != WARM_UPS] == [one for one in plan if one.group != WARM_UPS]


def test_the_first_shapes_are_far_from_one_another():
    places = gpu_plan.spread()
    assert sorted(places) == sorted(itertools.product(TOKENS, WIDTHS, SOURCES))
    first = places[: gpu_plan.FIRST_PEERS]
    assert [len({place[axis] for place in first}) for axis in range(3)] == [2, 3, 3]


def test_a_rehearsal_has_the_plan_s_order_and_estimates_and_spoils_five_cells(plan):
    cells = rehearsed(plan)
    assert [(one.name, one.group, one.seconds, one.limit) for one in cells] == [
        (one.name, one.group, one.seconds, one.limit) for one in plan
    ]
    assert {one.name: one.work["fault"] for one in cells if "fault" in one.work} == faults_of(plan)
    assert len(faults_of(plan)) == 5
    for one in cells:
        if "job" in one.work:
            ((shape, _),) = KernelJob(**_tuples(one.work["job"])).cells()
            assert shape.tokens * shape.width < 100
        elif one.work["do"] == "command" and "bench" in one.work["words"]:
            assert attnres.build_parser().parse_args(one.work["words"][2:]).device == "cpu"


def test_the_kept_rehearsal_kept_its_budget_and_survived_what_went_wrong(plan):
    text = LOG.read_text()
    log, _, screen = text.partition("\n\n")
    seconds = [60 * int(minutes) + int(rest) for minutes, rest in re.findall(r"^\[(\d\d):(\d\d)\]", log, re.MULTILINE)]
    assert seconds == sorted(seconds)
    assert 0.95 * 60 * MINUTES <= seconds[-1] <= 60 * MINUTES
    faults = faults_of(plan)
    for name, status in zip(faults, ("wrong", "failed", "killed", "failed", "wrong"), strict=True):
        assert re.search(rf"^\[.....\] {status} .* {re.escape(name)}: ", log, re.MULTILINE), name
    began = re.findall(r"(?:measured|killed|failed|wrong) .* s of +\d+  (.*)", log)
    timed = [one.name for one in plan if one.is_timed]
    order = [name for line in began for name in timed if line == name or line.startswith(f"{name}: ")]
    assert order == [name for name in timed if name in order], "by worth"
    assert set(order) >= {one.name for one in plan if one.group in (BLOCKS, "model")}
    assert max(map(len, screen.splitlines())) <= 80
    assert len(screen.splitlines()) <= 27


class Kept:
    """A record with cells as a GPU's, whose numbers are made up."""

    def __init__(self, path: Path | None = None) -> None:
        self.record = RunRecord(None if path is None else str(path), ENVIRONMENT, "abc", ["toy"])
        answers = {
            "block": {"status": "measured", "record": kernel_record([cell(BLOCK, "forward", GRID[0], forward=0.8)])},
            "model": {"status": "measured", "record": model_record(MODELS[0])},
            "bad": {"status": "wrong", "reason": "kernels, direct: largest relative error " + 20 * "of something "},
        }
        self.plan = [made(name) for name in answers] + [made("not begun")]
        for one, answer in zip(self.plan, answers.values(), strict=False):
            self.record.add(one, answer, 3)

    def screen(self) -> str:
        return summary(self.record, self.plan, (700, 720), self.record.records())


def test_the_summary_fits_a_screen_and_says_what_decides_each_goal():
    kept = Kept()
    for number in range(10):
        kept.record.add(made(f"hangs {number}"), {"status": "killed", "reason": "killed after 30 s"}, 30)
    screen = kept.screen()
    assert len(screen.splitlines()) <= 27
    assert max(map(len, screen.splitlines())) <= 80
    assert "11:40 of 12:00 min; 4 cells: 2 measured, 1 wrong, 1 not begun" in screen
    assert re.search(r"block, forward: of copy +85.0 % +80.0 % +missed by 5.0 % +1 of 18", screen)
    assert re.search(r"op, forward: of copy +85.0 % +not measured +0 of 18", screen)
    assert re.search(r"gpt2-2048 +\+2.0 % reached +\+1.0 % reached +\+4.0 % reached +\+2.0 % reached", screen)
    assert f"and {11 - FAULTS_SHOWN} more that are wrong, failed or were killed" in screen
    assert has_faults(kept.record)


def test_records_are_written_as_other_commands_keep_them(tmp_path):
    paths = split(Kept().record, str(tmp_path))
    assert sorted(Path(path).name for path in paths) == ["gpu-gpt2-2048.json", "gpu-kernels.json"]
    from attnres_compile.cli.output import read_record
    from kernels.benchmarks.goals.project_goals import project_goals

    (goals,) = project_goals([read_record(path) for path in paths]).values()
    assert sum(bool(goal.values) for goal in goals) >= 3


def test_a_rehearsal_s_numbers_are_never_those_of_a_gpu(plan):
    record = RunRecord(None, ENVIRONMENT, "abc", ["toy"])
    one = next(one for one in plan if one.group == BLOCKS)
    record.add(one, {"status": "measured", "record": kernel_record([cell(BLOCK, "forward", (2, 8, 2))], "cpu")}, 3)
    (shown,) = pretended(record, plan)
    assert "rehearsal" in shown["environment"]["device"]
    assert shown["cells"][0]["tokens"] == one.work["job"]["tokens"][0]


def test_the_plan_is_listed_without_a_gpu(capsys):
    assert command.main(["--plan", "--only", "blocks"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 * 36
    assert lines[-1].startswith("blocks")


def test_minutes_are_above_zero(capsys):
    assert command.main(["--minutes", "0"]) == 1
    assert "minutes is 0: pass more than 0" in capsys.readouterr().err


def test_the_workers_start_without_torch():
    code = "import sys, kernels.benchmarks.gpu.worker; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, cwd=command.ROOT).returncode == 0


def test_a_file_that_is_no_record_of_a_run_ends_it_before_it_begins(tmp_path):
    (tmp_path / "run.json").write_text("[]")
    with pytest.raises(MeasureError, match="name another file"):
        RunRecord(str(tmp_path / "run.json"), ENVIRONMENT, "abc", [])
    assert set(LEVELS) == {OP, BLOCK}
