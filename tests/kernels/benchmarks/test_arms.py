"""Our arms of kernels against peers, and the bytes that are counted for them, in the interpreter."""

from __future__ import annotations

import pytest
import torch

from attnres_kernels.definition import cost
from attnres_kernels.launch import launch_own_logits_read, launch_phase_1, launch_read, launch_sources_backward, tiling
from kernels.benchmarks.against_peers import gate as kernel_gate
from kernels.benchmarks.against_peers.arms import generated as kernel_arms
from kernels.benchmarks.against_peers.arms.own_logits import traffic_of_own_logits
from kernels.benchmarks.against_peers.run import measure_kernels
from kernels.benchmarks.against_peers.traffic import ArmTraffic, ideal_traffic, read_groups, traffic_of_kernels
from kernels.benchmarks.against_peers.work import BLOCK, FORWARD, OP, TRAINING, Shape, make_inputs
from tests.kernels.benchmarks.kernel_jobs import CPU, small


@pytest.mark.interpreter
@pytest.mark.parametrize(("level", "dtype"), [(OP, "float32"), (BLOCK, "float32"), (BLOCK, "bfloat16")])
@pytest.mark.parametrize("direction", [FORWARD, TRAINING])
def test_all_forms_of_ours_pass_the_gate_and_are_timed(level, dtype, direction):
    job = small(level=(level,), direction=(direction,), dtype=(dtype,), rounds=1, peers=False)
    (cell,) = measure_kernels(job)["cells"]
    arms = {arm["name"]: arm for arm in cell["arms"]}
    direct, two_phase, auto = (arms.pop(f"kernels, {name}") for name in ("direct", "two_phase", "auto"))
    assert auto["status"] == "same", "with so few reads one of the two is the cheaper"
    assert auto["reason"] == "the same calls as kernels, " + ("two_phase" if level == BLOCK else "direct")
    for arm in (direct, two_phase, *arms.values()):
        assert arm["status"] == "measured", arm
        assert set(arm["errors"]) == ({"outputs", "gradients"} if direction == TRAINING else {"outputs"})
        assert set(arm["seconds"]) == ({"forward", "backward", "step"} if direction == TRAINING else {"forward"})
    others = {"naive, eager", "logits first, eager", "two phases, eager"}
    assert set(arms) == others | {"kernels, own logits"} | ({"kernels, logits known"} if level == OP else set())


class Launches:
    """Counts the tensors ``[T, d]`` that kernels are given, each once per launch, as the unit of moved bytes does."""

    def __init__(self, monkeypatch, shape: Shape) -> None:
        self.size, self.wide, self.names = shape.tokens * shape.width, 0, []
        for module in (launch_phase_1, launch_own_logits_read, launch_read, launch_sources_backward):
            honest = module.launchable
            monkeypatch.setattr(
                module, "launchable", lambda text, choices, honest=honest: self.counted(text, honest(text, choices))
            )

    def counted(self, text, kernel):
        counter = self

        class Counted:
            def __getitem__(self, grid):
                def launch(*args, **options):
                    wide = [x for x in args if isinstance(x, torch.Tensor) and x.numel() == counter.size]
                    counter.wide += len(wide)
                    counter.names.append(text.partition("def ")[2].partition("(")[0])
                    return kernel[grid](*args, **options)

                return launch

        return Counted()


@pytest.mark.interpreter
@pytest.mark.parametrize("schedule", ["direct", "two_phase"])
@pytest.mark.parametrize(("sources", "reads", "wide"), [(2, 3, False), (5, 3, True), (2, 9, False)])
def test_counted_bytes_are_those_that_the_kernels_of_a_compiled_block_are_given(
    monkeypatch, schedule, sources, reads, wide
):
    """aot_eager cuts and runs the graphs as Inductor would: phase 1 is made again in the backward."""
    if wide:
        monkeypatch.setattr(tiling, "WIDEST_HELD", 16)
    shape = Shape(BLOCK, 11, 32, sources, reads, "float32")
    arm = next(arm for arm in kernel_arms.kernel_arms(shape, "aot_eager") if arm.name.endswith(schedule))
    inputs = make_inputs(shape, CPU, True)
    wanted = kernel_gate.reference(shape, inputs, True)
    state = arm.prepare(inputs)
    launches = Launches(monkeypatch, shape)
    found = kernel_gate.errors(
        wanted, kernel_gate.results(wanted.output_grads, shape, inputs, lambda: arm.call(inputs, state), True)
    )
    assert max(found.values()) < 1e-5
    # The two gradients of the second read's partial sum are added by the graph, and not by a kernel of ours.
    assert launches.wide == arm.traffic.forward + arm.traffic.backward - 3
    makes_phase_1_again = sum(name.startswith("phase_1") for name in launches.names)
    assert makes_phase_1_again == (2 if schedule == "two_phase" else 2 * reads if wide else 0)


@pytest.mark.interpreter
@pytest.mark.parametrize(("level", "sources", "reads"), [(OP, 2, 1), (OP, 4, 1), (BLOCK, 3, 4)])
def test_reads_with_own_logits_are_given_the_counted_bytes_in_one_launch_each_way(monkeypatch, level, sources, reads):
    shape = Shape(level, 11, 32, sources, reads, "float32")
    (arm,) = (arm for arm in kernel_arms.kernel_arms(shape, "aot_eager") if arm.name == "kernels, own logits")
    inputs = make_inputs(shape, CPU, True)
    wanted = kernel_gate.reference(shape, inputs, True)
    launches = Launches(monkeypatch, shape)
    found = kernel_gate.errors(
        wanted, kernel_gate.results(wanted.output_grads, shape, inputs, lambda: arm.call(inputs, []), True)
    )
    assert max(found.values()) < 1e-5
    assert len(launches.names) == 2 * reads
    # Additions of the graph's are not of our kernels: the last one, and those of gradients.
    added = 3 + 3 * (sources * (reads - 1) + 1) if level == BLOCK else 0
    assert launches.wide == arm.traffic.forward + arm.traffic.backward - added


def test_a_read_with_more_sources_than_registers_hold_is_no_arm_with_own_logits():
    shape = Shape(OP, 11, 8192, 10, 1, "bfloat16")
    (arm,) = (arm for arm in kernel_arms.kernel_arms(shape, "eager") if arm.name == "kernels, own logits")
    assert arm.unsupported == "makes its own logits of up to 10 sources of this width"


def test_of_our_arms_only_the_one_that_is_given_logits_leaves_work_out():
    """An arm with a note is not chosen as our fastest."""
    arms = kernel_arms.kernel_arms(Shape(OP, 11, 32, 3, 1, "bfloat16"), "eager")
    assert [arm.name for arm in arms if arm.note] == ["kernels, logits known"]


@pytest.mark.parametrize("sources", [2, 4, 8])
@pytest.mark.parametrize("reads", [2, 6, 16])
def test_bytes_of_a_block_follow_the_cost_model(sources, reads):
    shape = Shape(BLOCK, 8192, 2048, sources, reads, "bfloat16")
    completed = [sources] * reads
    direct, two_phase = traffic_of_kernels(shape, "direct"), traffic_of_kernels(shape, "two_phase")
    assert direct.forward == cost.group(0, completed) - 2 == reads * cost.direct(sources) - 2
    assert two_phase.forward == cost.group(sources, completed) - 2 == reads * cost.two_phase(sources, reads) - 2
    assert ideal_traffic(shape).forward == min(direct.forward, two_phase.forward)
    # Of two reads the kernels move no more than they must: one launch gives the gradients of all blocks and keys.
    best = min(direct.backward, two_phase.backward)
    assert ideal_traffic(shape).backward == best if reads == 2 else ideal_traffic(shape).backward < best
    assert traffic_of_kernels(shape, "auto").forward == ideal_traffic(shape).forward
    assert direct.parts(shape, False) == {"forward": direct.forward * 8192 * 2048 * 2}


def test_bytes_of_one_read():
    shape = Shape(OP, 8192, 2048, 4, 1, "bfloat16")
    assert ideal_traffic(shape) == traffic_of_own_logits(shape) == ArmTraffic(forward=4 + 1 + 1, backward=5 + 1 + 5)
    assert traffic_of_kernels(shape, "direct", makes_logits=True).forward == 4 + 4 + 1 + 1
    assert traffic_of_kernels(shape, "two_phase").forward == 4 + 1 + 1 + 1 + 1
    assert traffic_of_kernels(shape, "direct").backward == (4 + 4) + (4 + 1 + 4)


def test_the_schedules_are_those_of_the_passes():
    assert [group.schedule for group in read_groups(Shape(BLOCK, 1, 64, 2, 6, "float32"), "auto").groups] == ["direct"]
    assert [group.schedule for group in read_groups(Shape(BLOCK, 1, 64, 4, 6, "float32"), "auto").groups] == [
        "two_phase"
    ]
