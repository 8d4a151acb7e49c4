"""``attnres bench kernels``: the gate, what is timed, the bytes it counts, its record and table, in the interpreter."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from attnres_compile.bench.kernels import arms as kernel_arms
from attnres_compile.bench.kernels import gate as kernel_gate
from attnres_compile.bench.kernels import peers as kernel_peers
from attnres_compile.bench.kernels import run as kernel_run
from attnres_compile.bench.kernels import timing as kernel_timing
from attnres_compile.bench.kernels.arms import KERNELS, PEER, TORCH, Arm
from attnres_compile.bench.kernels.bytes import Moved, grouping, moved_by_kernels, moved_by_own_read, moved_ideally
from attnres_compile.bench.kernels.run import KernelJob, bench_kernels
from attnres_compile.bench.kernels.table import kernels_table
from attnres_compile.bench.kernels.timing import CudaClock, Taken, Timed, time_in_turn
from attnres_compile.bench.kernels.work import BLOCK, FORWARD, OP, TRAINING, Shape, definition, make_inputs
from attnres_compile.bench.measure import MeasureError
from attnres_compile.cli import main as cli
from attnres_kernels.depth_attention import cost
from attnres_kernels.depth_attention.generated import (
    launch_own_read,
    launch_phase_1,
    launch_read,
    launch_sources_backward,
    tiling,
)

CPU = torch.device("cpu")
OPTIONS = ("--device", "cpu", "--width", "24", "--sources", "3", "--reads", "3", "--tokens", "5", "--rounds", "2")


def small(**changes) -> KernelJob:
    values = {"tokens": (5,), "width": (24,), "sources": (3,), "reads": (3,), "dtype": ("float32",)}
    return KernelJob(**values | {"rounds": 2, "device": "cpu", "level": (OP,)} | changes)


def attnres(capsys, *words: str) -> tuple[int, str, str]:
    code = cli.main(words)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


# --- our arms ---


@pytest.mark.interpreter
@pytest.mark.parametrize(("level", "dtype"), [(OP, "float32"), (BLOCK, "float32"), (BLOCK, "bfloat16")])
@pytest.mark.parametrize("direction", [FORWARD, TRAINING])
def test_all_forms_of_ours_pass_the_gate_and_are_timed(level, dtype, direction):
    job = small(level=(level,), direction=(direction,), dtype=(dtype,), rounds=1, peers=False)
    (cell,) = bench_kernels(job)["cells"]
    arms = {arm["name"]: arm for arm in cell["arms"]}
    direct, two_phase, auto = (arms.pop(f"kernels, {name}") for name in ("direct", "two_phase", "auto"))
    assert auto["status"] == "same", "with so few reads one of the two is the cheaper"
    assert auto["reason"] == "the same calls as kernels, " + ("two_phase" if level == BLOCK else "direct")
    for arm in (direct, two_phase, *arms.values()):
        assert arm["status"] == "measured", arm
        assert set(arm["errors"]) == ({"outputs", "gradients"} if direction == TRAINING else {"outputs"})
        assert set(arm["seconds"]) == ({"forward", "backward", "step"} if direction == TRAINING else {"forward"})
    others = {"naive, eager", "logits first, eager", "two phases, eager"}
    assert set(arms) == others | ({"kernels, logits known", "kernels, one launch"} if level == OP else set())


class Launches:
    """Counts the tensors ``[T, d]`` that kernels are given, each once per launch, as the unit of moved bytes does."""

    def __init__(self, monkeypatch, shape: Shape) -> None:
        self.size, self.wide, self.names = shape.tokens * shape.width, 0, []
        for module in (launch_phase_1, launch_own_read, launch_read, launch_sources_backward):
            honest = module.launchable
            monkeypatch.setattr(module, "launchable", lambda text, honest=honest: self.counted(text, honest(text)))

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
    found = kernel_gate.errors(wanted, shape, inputs, lambda: arm.call(inputs, state), True)
    assert max(found.values()) < 1e-5
    # The two gradients of the second read's partial sum are added by the graph, and not by a kernel of ours.
    assert launches.wide == arm.moved.forward + arm.moved.backward - 3
    makes_phase_1_again = sum(name.startswith("phase_1") for name in launches.names)
    assert makes_phase_1_again == (2 if schedule == "two_phase" else 2 * reads if wide else 0)


@pytest.mark.interpreter
@pytest.mark.parametrize("sources", [2, 4])
def test_a_read_with_own_logits_is_given_the_counted_bytes_in_one_launch_each_way(monkeypatch, sources):
    shape = Shape(OP, 11, 32, sources, 1, "float32")
    (arm,) = (arm for arm in kernel_arms.kernel_arms(shape, "aot_eager") if arm.name == "kernels, one launch")
    inputs = make_inputs(shape, CPU, True)
    wanted = kernel_gate.reference(shape, inputs, True)
    launches = Launches(monkeypatch, shape)
    found = kernel_gate.errors(wanted, shape, inputs, lambda: arm.call(inputs, []), True)
    assert max(found.values()) < 1e-5
    assert len(launches.names) == 2
    assert launches.wide == arm.moved.forward + arm.moved.backward == (sources + 2) + (2 * (sources + 1) + 1)


def test_a_read_with_more_sources_than_registers_hold_is_no_arm_of_one_launch():
    shape = Shape(OP, 11, 8192, 10, 1, "bfloat16")
    (arm,) = (arm for arm in kernel_arms.kernel_arms(shape, "eager") if arm.name == "kernels, one launch")
    assert arm.unsupported == "makes its own logits of up to 10 sources of this width"


@pytest.mark.parametrize("sources", [2, 4, 8])
@pytest.mark.parametrize("reads", [2, 6, 16])
def test_bytes_of_a_block_follow_the_cost_model(sources, reads):
    shape = Shape(BLOCK, 8192, 2048, sources, reads, "bfloat16")
    completed = [sources] * reads
    direct, two_phase = moved_by_kernels(shape, "direct"), moved_by_kernels(shape, "two_phase")
    assert direct.forward == cost.group(0, completed) - 2 == reads * cost.direct(sources) - 2
    assert two_phase.forward == cost.group(sources, completed) - 2 == reads * cost.two_phase(sources, reads) - 2
    assert moved_ideally(shape).forward == min(direct.forward, two_phase.forward)
    # Of two reads the kernels move no more than they must: one launch gives the gradients of all blocks and keys.
    best = min(direct.backward, two_phase.backward)
    assert moved_ideally(shape).backward == best if reads == 2 else moved_ideally(shape).backward < best
    assert moved_by_kernels(shape, "auto").forward == moved_ideally(shape).forward
    assert direct.parts(shape, False) == {"forward": direct.forward * 8192 * 2048 * 2}


def test_bytes_of_one_read():
    shape = Shape(OP, 8192, 2048, 4, 1, "bfloat16")
    assert moved_ideally(shape) == moved_by_own_read(shape) == Moved(forward=4 + 1 + 1, backward=5 + 1 + 5)
    assert moved_by_kernels(shape, "direct", makes_logits=True).forward == 4 + 4 + 1 + 1
    assert moved_by_kernels(shape, "two_phase").forward == 4 + 1 + 1 + 1 + 1
    assert moved_by_kernels(shape, "direct").backward == (4 + 4) + (4 + 1 + 4)


# --- the gate ---


def arm_of(name, change=lambda outputs: outputs, kind=TORCH, **fields) -> Arm:
    return Arm(name, kind, Moved(1, 1), lambda inputs, _: change(definition(inputs)), **fields)


def one_wrong_row(outputs):
    """Right but for the last token."""
    return [torch.cat([outputs[0][:-1], 1.5 * outputs[0][-1:]])]


def wrong_gradient(outputs):
    """The right value, and 1.5 times its gradients."""
    return [1.5 * outputs[0] - 0.5 * outputs[0].detach()]


def raises(_outputs):
    raise RuntimeError("no kernel image is available\nfor /opt/somewhere/kernel.py in detail")


def test_what_is_wrong_fails_or_cannot_is_listed_with_its_reason_and_not_timed():
    calls: dict[str, int] = {}

    def counted(arm: Arm) -> Arm:
        def call(inputs, given):
            calls[arm.name] = calls.get(arm.name, 0) + 1
            return arm.call(inputs, given)

        return replace(arm, call=call)

    given = [
        arm_of("right"),
        arm_of("wrong row", one_wrong_row),
        arm_of("wrong gradient", wrong_gradient, KERNELS),
        arm_of("no gradient", lambda outputs: [outputs[0].detach().requires_grad_()]),
        arm_of("not a number", lambda outputs: [outputs[0] / 0 * 0]),
        arm_of("too few", lambda outputs: []),
        arm_of("raises", raises, PEER),
        arm_of("cannot", raises, PEER, unsupported="takes bfloat16 only"),
    ]
    record = bench_kernels(small(direction=(TRAINING,)), arms=lambda shape, device: list(map(counted, given)))
    arms = {arm["name"]: arm for arm in record["cells"][0]["arms"]}
    assert {name: arm["status"] for name, arm in arms.items()} == {
        "right": "measured",
        **dict.fromkeys(("wrong row", "wrong gradient", "no gradient", "not a number"), "wrong"),
        **dict.fromkeys(("too few", "raises"), "failed"),
        "cannot": "unsupported",
    }
    assert arms["wrong row"]["reason"].startswith("largest relative error of outputs 0.5")
    assert arms["wrong gradient"]["errors"]["outputs"] < 1e-5
    assert "gradients 0.5" in arms["wrong gradient"]["reason"]
    assert "gradients inf" in arms["no gradient"]["reason"]
    assert arms["raises"]["reason"] == "RuntimeError: no kernel image is available"
    assert calls["right"] == 1 + 1 + 2, "the gate, a warm-up and two rounds"
    assert all(calls.get(name, 0) <= 1 for name in calls if name != "right")
    assert not any("seconds" in arm for name, arm in arms.items() if name != "right")
    assert kernel_run.has_failures(record), "the wrong gradient is a kernel's"
    table = kernels_table(record)
    assert "raises: failed, RuntimeError: no kernel image is available (1 of 1 cells)" in table
    assert "cannot: unsupported, takes bfloat16 only (1 of 1 cells)" in table


def test_an_arm_that_fails_while_it_is_timed_leaves_the_others_alone():
    left = {"fails": 2}

    def fails_later(outputs):
        left["fails"] -= 1
        return raises(outputs) if left["fails"] < 0 else outputs

    job = small(direction=(FORWARD,), rounds=4)
    record = bench_kernels(job, arms=lambda shape, device: [arm_of("fails", fails_later), arm_of("right")])
    fails, right = record["cells"][0]["arms"]
    assert fails["status"] == "failed"
    assert fails["reason"] == "while it was timed: RuntimeError: no kernel image is available"
    assert len(right["seconds"]["forward"]) == 4


@pytest.mark.parametrize("row", [0, 7, 60, 99])
def test_of_many_tokens_a_sample_is_compared_and_all_must_be_finite(monkeypatch, row):
    monkeypatch.setattr(kernel_gate, "KEPT_TOKENS", 32)
    monkeypatch.setattr(kernel_gate, "_CHUNK_BYTES", {"cpu": 1 << 16})
    shape = Shape(OP, 100, 24, 2, 1, "float32")
    inputs = make_inputs(shape, CPU, True)
    wanted = kernel_gate.reference(shape, inputs, True)
    whole = torch.autograd.grad(definition(inputs), inputs.queries, wanted.output_grads)[0]
    torch.testing.assert_close(wanted.gradients["query 0"].float(), whole)  # over all tokens, in chunks

    def errors(value: float) -> dict[str, float]:
        def call():
            outputs = definition(inputs)
            return [torch.where(torch.arange(100)[:, None] == row, value * outputs[0], outputs[0])]

        return kernel_gate.errors(wanted, shape, inputs, call, True)

    assert max(errors(1.0).values()) < 1e-4
    assert errors(float("nan"))["outputs"] == float("inf")
    is_kept = row in wanted.tokens
    assert is_kept == (row != 60)
    assert (errors(2.0)["outputs"] > 0.5) == is_kept
    assert errors(2.0)["gradients"] > 1e-3, "the parameters' gradients are over all tokens"


# --- peers ---


def test_a_peer_that_cannot_do_a_shape_says_why(monkeypatch):
    cuda = torch.device("cuda")

    def reasons(width: int, dtype: str, device=cuda) -> dict[str, str]:
        arms = kernel_peers.peer_arms(Shape(BLOCK, 8, width, 2, 2, dtype), device, "inductor")
        return {arm.name: arm.unsupported for arm in arms if arm.unsupported}

    assert set(reasons(64, "bfloat16").values()) == {"not installed: pip install 'attnres-compile[bench]'"}
    monkeypatch.setattr(kernel_peers, "package_version", lambda package: "1.0")
    assert reasons(64, "bfloat16") == {}
    assert reasons(7168, "bfloat16") == {"flash-attn-res": "takes widths that are powers of two"}
    assert reasons(16384, "bfloat16") == {"fast-attnres": "takes widths up to 8192"}
    assert set(reasons(64, "float32")) == {"flash-attn-res", "fast-attnres"}
    assert set(reasons(64, "bfloat16", CPU).values()) == {"runs on a GPU only, not on cpu"}
    monkeypatch.setenv("FLA_GLUON", "1")
    assert "FLA_GLUON is set" in reasons(64, "bfloat16")["fla-core triton"]


@pytest.mark.parametrize("level", [OP, BLOCK])
def test_a_peer_runs_per_read_and_one_that_does_not_import_is_kept(monkeypatch, level):
    """A peer that knows one read, with and without a norm of its own; and one whose import fails."""
    from attnres_compile.bench.kernels.work import EPS
    from attnres_kernels.depth_attention import naive, scheduled

    def read(sources, query, key_weight, norm_weight):
        value = naive.naive_read(sources, query, key_weight, EPS, "mean")
        return value if norm_weight is None else scheduled.normalise(value, "rms", EPS, norm_weight, None)

    def missing():
        raise ImportError("cannot import name 'fused_attnres'")

    def peer(name, load, **fields):
        return kernel_peers.Peer(name, "torch", load, lambda shape: "", **fields)

    peers = (
        peer("plain", lambda: read),
        peer("norms", lambda: read, norms=True),
        peer("whole", lambda: read, in_one_graph=True),
        peer("missing", missing),
    )
    given = kernel_peers.peer_arms(Shape(level, 5, 24, 3, 3, "float32"), torch.device("cuda"), "aot_eager", peers)
    job = small(level=(level,), direction=(TRAINING,), rounds=1)
    arms = bench_kernels(job, arms=lambda shape, device: given)["cells"][0]["arms"]
    names = ["plain", "norms", "whole", *(["whole, one graph"] if level == BLOCK else []), "missing"]
    assert [arm["name"] for arm in arms] == names
    assert all(arm["status"] == "measured" for arm in arms[:-1]), arms
    assert arms[-1]["reason"] == "ImportError: cannot import name 'fused_attnres'"


# --- timing ---


def test_arms_are_timed_in_turn_forwards_and_backwards():
    order = []
    calls = {name: Timed(lambda name=name: order.append(name) or []) for name in "abc"}
    taken = time_in_turn(calls, 3, kernel_timing.CpuClock())
    assert "".join(order) == "abc" + "abc" + "cba" + "abc"
    assert all(len(one.seconds["forward"]) == 3 for one in taken.values())


def test_on_a_gpu_the_cache_is_overwritten_and_the_queue_filled_before_each_sample(monkeypatch):
    """Without a GPU: torch's events and streams are stood in for by a log."""
    log, clock = [], [0.0]

    class Event:
        dry = False

        def __init__(self, enable_timing):
            self.at = None

        def record(self):
            log.append("event")
            self.at = clock[0]

        def query(self):
            return Event.dry

        def elapsed_time(self, other):
            return 1000 * (other.at - self.at)

    class Buffer:
        def zero_(self):
            log.append("flush")
            clock[0] += 0.001

    for name, stand_in in {
        "Event": Event,
        "synchronize": lambda: log.append("wait"),
        "get_device_properties": lambda device: type("Properties", (), {"L2_cache_size": 50 << 20})(),
    }.items():
        monkeypatch.setattr(torch.cuda, name, stand_in)
    empty = torch.empty
    sizes = []
    monkeypatch.setattr(
        torch, "empty", lambda *size, device, **more: (sizes.append(size), Buffer() if device == cuda else empty())[1]
    )
    cuda = torch.device("cuda")
    gpu = CudaClock(cuda)
    assert sizes == [(512 << 20,)], "more than four times the cache"
    assert gpu.flush_seconds == pytest.approx(0.001)

    def work(name, seconds):
        def run(*_):
            log.append(name)
            clock[0] += seconds
            return []

        return run

    call = Timed(work("forward", 0.002), work("backward", 0.005))
    monkeypatch.setattr(kernel_timing.time, "perf_counter", lambda: clock[0])
    taken = Taken(lead=gpu.lead(call))
    assert taken.lead == 1 + 14, "twice the 7 ms that this host takes to queue a call"
    log.clear()
    gpu.sample(call, taken)
    assert log == ["wait", *["flush"] * 15, "event", "forward", "event", "backward", "event", "wait"]
    assert {part: times[0] for part, times in taken.seconds.items()} == pytest.approx(
        {"forward": 0.002, "backward": 0.005, "step": 0.007}
    )
    assert taken.late == 0
    Event.dry = True
    gpu.sample(call, taken)
    assert taken.late == 1


def test_ours_is_compared_with_the_fastest_of_each_kind_round_by_round():
    def result(name, kind, seconds):
        timed = {"seconds": {"step": seconds}, "median": {"step": sorted(seconds)[1]}}
        return {"name": name, "kind": kind, "status": "measured"} | timed

    ours = result("ours", KERNELS, [1.0, 2.0, 4.0])
    peers = [result("slow", PEER, [3.0, 6.0, 12.0]), result("fast", PEER, [1.5, 3.0, 8.0])]
    wrong = {"name": "wrong", "kind": TORCH, "status": "wrong"}
    kernel_run._compare([ours, *peers, wrong], "step")
    assert set(ours["speed_over"]) == {PEER}
    speed = ours["speed_over"][PEER]
    assert (speed["name"], speed["median"], speed["low"], speed["high"]) == ("fast", 1.5, 1.5, 2.0)
    assert "speed_over" not in peers[0]


# --- the command ---


@pytest.mark.interpreter
def test_the_command_keeps_a_record_whose_table_comes_from_it_alone(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ("bench", "kernels", *OPTIONS, "--dtype", "float32", "--level", "block", "--arms", "naive", "liger", "auto")
    words += ("direct", "--json", "kernels.json")
    code, table, _ = attnres(capsys, *words)
    record = json.loads((tmp_path / "kernels.json").read_text())
    assert code == 0
    assert (record["schema_version"], record["kind"]) == (1, "bench kernels")
    assert record["command"] == "attnres " + " ".join(words)
    assert set(record["environment"]["versions"]) >= {"torch", "triton", "fla-core", "fast-attnres", "cuda"}
    assert record["job"]["inner"] == "eager"
    forward, training = record["cells"]
    assert (forward["direction"], training["direction"]) == (FORWARD, TRAINING)
    direct = next(arm for arm in training["arms"] if arm["name"] == "kernels, direct")
    assert [len(direct["seconds"][part]) for part in ("forward", "backward", "step")] == [2, 2, 2]
    copied = training["copy"]
    for part in ("forward", "backward", "step"):
        moved = direct["bytes"][part] / direct["median"][part]
        assert direct["fraction"][part] == pytest.approx(moved / copied["bytes_per_second"])
    assert direct["speed_over"][TORCH]["name"] == "naive, eager"
    ratios = sorted(
        slow / fast
        for slow, fast in zip(training["arms"][-2]["seconds"]["step"], direct["seconds"]["step"], strict=True)
    )
    assert direct["speed_over"][TORCH]["median"] == pytest.approx(sum(ratios) / 2)
    assert "liger-kernel: unsupported, not installed" in table
    assert "block, training: T 5, d 24, n 3, S 3, float32; copy " in table
    assert "geometric mean of the speed over the fastest torch code" in table
    assert attnres(capsys, "bench", "show", "kernels.json") == (0, table, "")
    markdown = kernels_table(record, "md")
    assert "| kernels, direct" in markdown


def test_the_record_is_kept_after_every_cell_and_a_budget_ends_the_run(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(kernel_run.time, "monotonic", lambda: now.__setitem__(0, now[0] + 10) or now[0])
    kept = []
    job = small(tokens=(2, 3, 4), direction=(FORWARD,), budget=25)
    record = bench_kernels(
        job, keep=lambda record: kept.append(len(record["cells"])), arms=lambda shape, device: [arm_of("one")]
    )
    assert kept == [1, 2, 3]
    assert ["skipped" in cell for cell in record["cells"]] == [False, True, True]
    assert "T 4, d 24, n 3, float32: the budget of 25 s was spent" in kernels_table(record)


def test_a_shape_without_room_is_skipped_and_the_next_is_measured(monkeypatch):
    honest = kernel_run.make_inputs

    def make_inputs(shape, *rest):
        if shape.tokens == 3:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 TiB.")
        return honest(shape, *rest)

    monkeypatch.setattr(kernel_run, "make_inputs", make_inputs)
    job = small(tokens=(3, 4), direction=(FORWARD,))
    lacking, measured = bench_kernels(job, arms=lambda shape, device: [arm_of("one")])["cells"]
    assert lacking["skipped"] == "OutOfMemoryError: CUDA out of memory. Tried to allocate 1 TiB."
    assert measured["arms"][0]["status"] == "measured"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--rounds", "0"), "rounds is 0: pass at least 1"),
        (("--sources", "1"), "sources is 1: pass at least 2"),
        (("--reads", "1"), "reads is 1: pass at least 2"),
        (("--tokens", "0"), "tokens is 0: pass at least 1"),
        (("--budget", "0"), "budget is 0.0: pass seconds above 0"),
        (("--arms", "flashy"), "no arm has 'flashy' in its name: pass a part of kernels, direct, "),
        (("--device", "cuda"), "no CUDA device is available on this machine: pass --device cpu"),
        (("--device", "toaster"), "torch knows no device 'toaster'"),
        (("--json", "missing/kernels.json"), "pass a path in a directory you can write to"),
    ],
)
@pytest.mark.skipif(torch.cuda.is_available(), reason="asks for a GPU that is there")
def test_bad_options_are_one_line(capsys, tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    code, out, err = attnres(capsys, "bench", "kernels", *OPTIONS, *words)
    assert (code, out) == (1, "")
    assert err.startswith("attnres: error: ")
    assert message in err
    assert err.count("\n") == 1


def test_another_record_is_refused():
    with pytest.raises(MeasureError, match="no record of `attnres bench kernels` with schema_version 1"):
        kernels_table({"kind": "bench kernels", "schema_version": 2})


def test_the_schedules_are_those_of_the_passes():
    assert [group.schedule for group in grouping(Shape(BLOCK, 1, 64, 2, 6, "float32"), "auto").groups] == ["direct"]
    assert [group.schedule for group in grouping(Shape(BLOCK, 1, 64, 4, 6, "float32"), "auto").groups] == ["two_phase"]
