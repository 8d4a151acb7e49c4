"""How kernels against peers takes time, and compares."""

from __future__ import annotations

import pytest
import torch

from kernels.benchmarks.against_peers import cell as kernel_cell
from kernels.benchmarks.against_peers import timing as kernel_timing
from kernels.benchmarks.against_peers.arms.arm import KERNELS, PEER, TORCH
from kernels.benchmarks.against_peers.timing import CudaClock, Taken, Timed, time_in_turn


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
    kernel_cell._compare([ours, *peers, wrong], "step")
    assert set(ours["speed_over"]) == {PEER}
    speed = ours["speed_over"][PEER]
    assert (speed["name"], speed["median"], speed["low"], speed["high"]) == ("fast", 1.5, 1.5, 2.0)
    assert "speed_over" not in peers[0]
