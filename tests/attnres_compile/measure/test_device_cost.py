"""Memory and launches, as a benchmark counts them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from attnres_compile.measure import device_cost
from attnres_compile.measure.device_cost import count_launches, launches_in, model_bytes, peak_memory

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def test_memory_is_what_the_model_holds_and_what_the_call_allocates_beyond(monkeypatch):
    """With a second model on the device, and gradients of an earlier step."""
    model = nn.Linear(8, 8)
    model(torch.ones(1, 8)).sum().backward()
    at_entry: list[bool] = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    monkeypatch.setattr(
        torch.cuda, "memory_allocated", lambda device: at_entry.append(model.weight.grad is None) or 5000
    )
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: at_entry.append(True))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 5300)
    assert peak_memory(lambda: None, model, 40, CUDA) == {"model": 288, "held": 40, "step": 300, "peak": 628}
    assert at_entry == [True, True], "gradients of an earlier step were counted as there before the call"


def test_a_tied_weight_is_held_once():
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    assert model_bytes(model) == 128
    model[1].weight = model[0].weight
    assert model_bytes(model) == 64


def test_launches_are_counted_by_category():
    events = [
        *({"ph": "X", "cat": "kernel", "name": f"triton_{number}"} for number in range(5)),
        {"ph": "X", "cat": "gpu_memcpy", "name": "Memcpy DtoD"},
        {"ph": "X", "cat": "gpu_memset", "name": "Memset"},
        {"ph": "X", "cat": "gpu_user_annotation", "name": "## Call CompiledFxGraph"},
        {"ph": "X", "cat": "cuda_runtime", "name": "cudaGraphLaunch"},
        {"ph": "X", "cat": "cuda_runtime", "name": "cudaLaunchKernel"},
        {"ph": "f", "cat": "kernel", "name": "an arrow in the trace"},
    ]
    assert launches_in({"traceEvents": events}) == {"kernels": 5, "copies": 2, "graphs": 1}


@pytest.mark.parametrize("trace", [{}, {"traceEvents": [{"ph": "X", "cat": "cuda_runtime", "name": "cudaMalloc"}]}])
def test_no_kernel_seen_is_missing_and_not_0(trace):
    assert "may not be allowed to use CUPTI" in launches_in(trace)["missing"]


def test_launches_on_a_gpu_leave_out_what_comes_before_the_call(monkeypatch):
    order: list[str] = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: order.append("wait"))

    def traced(call, device):
        order.append("trace")
        call()
        return {"traceEvents": [{"ph": "X", "cat": "kernel", "name": "a"}]}

    monkeypatch.setattr(device_cost, "_traced", traced)
    counted = count_launches(lambda: order.append("call"), CUDA, before=lambda: order.append("before"))
    assert counted == {"kernels": 1, "copies": 0, "graphs": 0}
    assert order == ["before", "wait", "trace", "call"] * 2

    def failing(call, device):
        raise RuntimeError("CUPTI_ERROR_NOT_PERMITTED\nadvice")

    monkeypatch.setattr(device_cost, "_traced", failing)
    assert count_launches(lambda: None, CUDA) == {
        "missing": "the profiler failed (RuntimeError: CUPTI_ERROR_NOT_PERMITTED)"
    }


def test_a_trace_of_torchs_profiler_has_the_events_that_are_counted():
    """Of a CPU, whose operators stand where a GPU's kernels would."""
    x = torch.ones(4)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        x.add(x).mul(x)
    events = [event for event in device_cost.exported(profile)["traceEvents"] if event.get("cat") == "cpu_op"]
    assert [(event["ph"], event["name"]) for event in events] == [("X", "aten::add"), ("X", "aten::mul")]
    for event in events:
        event["cat"] = "kernel"
    assert launches_in({"traceEvents": events})["kernels"] == 2
