"""What kernels against peers lets pass to be timed, and what it lists with a reason."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from kernels.benchmarks.against_peers import gate as kernel_gate
from kernels.benchmarks.against_peers import run as kernel_run
from kernels.benchmarks.against_peers.arms.arm import KERNELS, PEER, Arm
from kernels.benchmarks.against_peers.run import measure_kernels
from kernels.benchmarks.against_peers.table import kernels_table
from kernels.benchmarks.against_peers.work import FORWARD, OP, TRAINING, Shape, definition, make_inputs
from tests.kernels.benchmarks.kernel_jobs import CPU, arm_of, small


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
    record = measure_kernels(small(direction=(TRAINING,)), arms=lambda shape, device: list(map(counted, given)))
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
    record = measure_kernels(job, arms=lambda shape, device: [arm_of("fails", fails_later), arm_of("right")])
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

        return kernel_gate.errors(wanted, kernel_gate.results(wanted.output_grads, shape, inputs, call, True))

    assert max(errors(1.0).values()) < 1e-4
    assert errors(float("nan"))["outputs"] == float("inf")
    is_kept = row in wanted.tokens
    assert is_kept == (row != 60)
    assert (errors(2.0)["outputs"] > 0.5) == is_kept
    assert errors(2.0)["gradients"] > 1e-3, "the parameters' gradients are over all tokens"
