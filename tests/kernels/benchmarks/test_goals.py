"""The goals on a GPU, judged from records: what counts, what is missed by how much, what is not measured."""

from __future__ import annotations

import copy
import json

import pytest

from attnres_compile.measure.compile_time import PREFILL, TRAINING
from attnres_compile.measure.model import DECODE, ModelJob, measure_model
from attnres_compile.models.load_options import LoadOptions
from attnres_compile.report.comparison import MeasureError
from kernels.benchmarks.against_peers.arms.arm import KERNELS, PEER
from kernels.benchmarks.against_peers.run import measure_kernels
from kernels.benchmarks.against_peers.work import BLOCK, DIRECTIONS, FORWARD, OP
from kernels.benchmarks.against_peers.work import TRAINING as WITH_BACKWARD
from kernels.benchmarks.goals.goal import MISSED, NOT_MEASURED, PARTLY, REACHED, Goal, goals_table
from kernels.benchmarks.goals.project_goals import MODELS, project_goals
from tests.kernels.benchmarks.gpu_records import GPU, GRID, arm, cell, kernel_record, model_cell, model_record
from tests.kernels.benchmarks.kernel_jobs import arm_of, benchmarks, small

SHARE = "share of the copy bandwidth"
PLACE = GRID[0]


def goal_of(name: str, *records: dict) -> Goal:
    (found,) = (goal for goal in project_goals(records)[GPU] if goal.name == name)
    return found


def all_records() -> list[dict]:
    return [kernel_record(), *map(model_record, MODELS)]


def test_made_up_records_have_the_form_of_real_ones(in_directory):
    arms = [arm_of("kernels, direct", kind=KERNELS), arm_of("peer", kind=PEER)]
    real = measure_kernels(small(direction=(WITH_BACKWARD,)), arms=lambda shape, device: arms)
    made = kernel_record([cell(OP, WITH_BACKWARD, PLACE)])
    assert real.keys() == made.keys()
    assert made["environment"].keys() <= real["environment"].keys()
    (of_real,), (of_made,) = real["cells"], made["cells"]
    assert of_real.keys() == of_made.keys()
    assert of_real["copy"].keys() == of_made["copy"].keys()
    one, other = of_real["arms"][0], of_made["arms"][0]
    assert one.keys() == other.keys()
    assert one["fraction"].keys() == other["fraction"].keys()
    assert one["speed_over"][PEER].keys() == other["speed_over"][PEER].keys()
    job = ModelJob("toys:pre_norm", LoadOptions(), (PREFILL,), rounds=1, options={"inner": "eager"})
    real, made = measure_model(job), model_record(cells=[model_cell(PREFILL, 1.0)])
    assert real.keys() == made.keys()
    assert made["job"].keys() <= real["job"].keys()
    assert real["cells"][0].keys() == made["cells"][0].keys()
    assert real["cells"][0]["latency"].keys() == made["cells"][0]["latency"].keys()


def test_every_goal_can_be_reached():
    (found,) = project_goals(all_records()).values()
    assert len(found) == 10 + 4 * len(MODELS)
    assert {goal.name: goal.verdict for goal in found} == {goal.name: REACHED for goal in found}
    assert "| block, backward: share of the copy bandwidth" in goals_table(found, "md")
    assert found[0].to_dict()["values"]["T 8192, d 2048, n 2, S 6"]["number"] == 90


@pytest.mark.parametrize(
    "changes",
    [{"device": "cpu"}, {"interpreter": True}, {"device": "cpu", "interpreter": True}, {"interpreter": None}],
)
def test_the_cpu_and_the_interpreter_measure_no_goal(changes):
    job = {"device": changes.pop("device")} if "device" in changes else {}
    records = [kernel_record(**job), *(model_record(name, **job) for name in MODELS)]
    for record in records:
        record["environment"] |= {"triton_interpreter": changes.get("interpreter", False)}
    ((device, found),) = project_goals(records).items()
    assert device == "no GPU"
    assert {goal.state for goal in found} == {NOT_MEASURED}
    assert {goal.measured for goal in found} == {""}


def test_a_record_that_names_a_processor_is_none_of_a_gpu():
    record = kernel_record()
    record["environment"]["device"] = "CPU (AMD EPYC)"
    assert list(project_goals([record])) == ["no GPU"]


def test_the_backward_is_that_of_training_cells_alone_and_the_lowest_shape_decides():
    cells = [cell(BLOCK, WITH_BACKWARD, place) for place in GRID[1:]]
    cells += [cell(BLOCK, WITH_BACKWARD, PLACE, forward=0.1, backward=0.7)]
    record = kernel_record(cells)
    goal = goal_of(f"block, backward: {SHARE}", record)
    assert goal.state == MISSED
    assert goal.lacks == pytest.approx(5)
    assert goal.verdict == "missed by 5.00 points; 17 of 18 reach it"
    assert goal.measured == "70.0 % (T 8192, d 2048, n 2, S 6)"
    assert goal_of(f"block, forward: {SHARE}", record).state == NOT_MEASURED, "its forward keeps what a backward needs"


def test_an_arm_that_leaves_work_out_counts_for_nothing():
    one = cell(OP, FORWARD, PLACE, forward=0.6)
    known = arm("kernels, logits known", KERNELS, {"forward": 1e-4}, {"forward": 0.99}, note="logits given")
    one["arms"].append(known)
    assert goal_of(f"op, forward: {SHARE}", kernel_record([one])).measured == "60.0 %"
    known["note"] = ""
    assert goal_of(f"op, forward: {SHARE}", kernel_record([one])).measured == "99.0 %"


def test_what_was_not_measured_is_no_success():
    cells = [cell(BLOCK, FORWARD, place) for place in GRID[2:]]
    failed = cell(BLOCK, FORWARD, PLACE)
    failed["arms"] = [{"name": "kernels, direct", "kind": KERNELS, "note": "", "status": "wrong", "reason": "off by 1"}]
    goal = goal_of(f"block, forward: {SHARE}", kernel_record([failed, *cells]))
    assert goal.state == PARTLY
    assert goal.verdict == "reached where measured; 2 not measured; kernels, direct: wrong, off by 1"


def test_speed_over_peers():
    name = "block, training: speed over the fastest peer"
    cells = [cell(BLOCK, WITH_BACKWARD, place) for place in GRID]
    cells[4] = cell(BLOCK, WITH_BACKWARD, GRID[4], speed=0.9)
    goal = goal_of(name, kernel_record(cells))
    assert goal.verdict == "missed by 0.100x; 17 of 18 reach it"
    mean = goal_of("block, training: geometric mean of the speed over the fastest peer", kernel_record(cells))
    assert mean.state == REACHED
    assert mean.lacks == pytest.approx(1.2 - (1.3**17 * 0.9) ** (1 / 18))


@pytest.mark.parametrize(
    ("reason", "state", "verdict"),
    [
        (None, PARTLY, "reached where measured; 1 not measured; no peer was among the arms"),
        ("not installed: pip install 'attnres-compile[bench]'", PARTLY, "1 not measured; not installed: away"),
        ("takes bfloat16 only", REACHED, "reached"),
    ],
)
def test_a_shape_counts_where_a_peer_could_run(reason, state, verdict):
    cells = [cell(BLOCK, FORWARD, place) for place in GRID]
    ours = copy.deepcopy(cells[0]["arms"][0])
    del ours["speed_over"]
    away = {"name": "away", "kind": PEER, "note": "", "status": "unsupported", "reason": reason}
    cells[0]["arms"] = [ours] if reason is None else [ours, away]
    goal = goal_of("block, forward: speed over the fastest peer", kernel_record(cells))
    assert goal.state == state
    assert goal.verdict.endswith(verdict)


def test_models():
    cells = [model_cell(PREFILL, 1.0213), model_cell(TRAINING, 1.02, memory=1.05), model_cell(TRAINING, 0.9, "direct")]
    without_graph = model_cell(DECODE, 1.0)
    without_graph["launches"]["attnres"]["graphs"] = 0
    record = model_record(MODELS[0], [*cells, without_graph])
    verdicts = {
        goal.name.partition(": ")[2]: goal for goal in project_goals([record])[GPU] if goal.name.startswith(MODELS[0])
    }
    prefill, step = verdicts["prefill over plain"], verdicts["training step over plain"]
    assert prefill.measured == "+2.13 % [+1.93, +2.33]"
    assert prefill.verdict == "missed by 0.13 points"
    assert (step.state, step.values[MODELS[0]].number) == (REACHED, 2.0), "of auto, and met to the last bit"
    assert verdicts["peak memory of a training step over plain"].verdict == "missed by 2.00 points"
    assert verdicts["decode step over plain"].verdict == "not measured; it ran without a CUDA graph"


@pytest.mark.parametrize("change", ["dtype", "inputs", "options", "model"])
def test_other_models_inputs_and_options_are_not_what_the_goals_ask_for(change):
    record = model_record()
    record |= {"inputs": {"input_ids": [1, 512]}} if change == "inputs" else {}
    record["job"]["load"]["dtype"] = "float32" if change == "dtype" else "bfloat16"
    record["job"]["options"] = {"num_blocks": 2} if change == "options" else {}
    record["model"]["name"] = "gpt2" if change == "model" else record["model"]["name"]
    assert {goal.state for goal in project_goals([record])[GPU]} == {NOT_MEASURED}


def test_the_newest_measurement_of_a_cell_counts_in_whatever_record_it_lies():
    older = kernel_record([cell(BLOCK, FORWARD, place, forward=0.5) for place in GRID], date="2026-12-01T09:00:00")
    lacking = {name: value for name, value in cell(BLOCK, FORWARD, GRID[1]).items() if name not in ("arms", "copy")}
    newer = [cell(BLOCK, FORWARD, PLACE, forward=0.88), lacking | {"skipped": "the budget of 5 s was spent"}]
    goal = goal_of(f"block, forward: {SHARE}", kernel_record(newer, date="2026-12-02T09:00:00"), older)
    numbers = [value.number for value in goal.values.values()]
    assert sorted(numbers) == [50.0] * 17 + [88.0]
    assert not goal.missing


def test_gpus_are_not_mixed():
    found = project_goals(
        [
            kernel_record(),
            kernel_record([cell(OP, direction, PLACE) for direction in DIRECTIONS])
            | {"environment": kernel_record()["environment"] | {"device": "Other GPU"}},
        ]
    )
    assert list(found) == ["Other GPU", GPU]
    assert found["Other GPU"][0].state == NOT_MEASURED
    assert found[GPU][0].state == REACHED


def test_records_of_another_version_are_refused():
    with pytest.raises(MeasureError, match="with schema_version 1: measure again"):
        project_goals([kernel_record() | {"schema_version": 2}])
    with pytest.raises(MeasureError, match="with schema_version 1 or 2: measure again"):
        project_goals([model_record() | {"schema_version": 3}])


def test_the_command_prints_the_goals_of_every_gpu(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    paths = []
    for number, record in enumerate(all_records()):
        paths.append(f"{number}.json")
        (tmp_path / paths[-1]).write_text(json.dumps(record))
    ((device, found),) = project_goals(all_records()).items()
    assert benchmarks(capsys, "goals", *paths) == (0, f"{device}\n\n{goals_table(found)}\n", "")
    (tmp_path / "list.json").write_text("[1]")
    code, _, err = benchmarks(capsys, "goals", "list.json")
    assert code == 1
    assert "list.json cannot be read here (its kind is None)" in err
