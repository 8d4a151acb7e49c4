"""Peers of kernels against peers: without any of them installed."""

from __future__ import annotations

import pytest
import torch

from kernels.benchmarks.against_peers.arms import peers as kernel_peers
from kernels.benchmarks.against_peers.run import measure_kernels
from kernels.benchmarks.against_peers.work import BLOCK, OP, TRAINING, Shape
from tests.kernels.benchmarks.kernel_jobs import CPU, small


def test_a_peer_that_cannot_do_a_shape_says_why(monkeypatch):
    cuda = torch.device("cuda")

    def reasons(width: int, dtype: str, device=cuda, tokens: int = 8, level: str = BLOCK) -> dict[str, str]:
        shape = Shape(level, tokens, width, 7, 8 if level == BLOCK else 1, dtype)
        arms = kernel_peers.peer_arms(shape, device, "inductor")
        return {arm.name: arm.unsupported for arm in arms if arm.unsupported}

    assert set(reasons(64, "bfloat16").values()) == {"not installed: pip install 'attnres-compile[bench]'"}
    monkeypatch.setattr(kernel_peers, "package_version", lambda package: "1.0")
    assert reasons(64, "bfloat16") == {}
    assert reasons(7168, "bfloat16") == {"flash-attn-res": "takes widths that are powers of two"}
    assert reasons(16384, "bfloat16") == {"fast-attnres": "takes widths up to 8192"}
    # Eight tensors of 2^28 elements end at 2^31, which is the last that an offset of 32 bits reaches.
    assert reasons(8192, "bfloat16", tokens=1 << 15) == {}
    too_far = "its 32-bit offsets do not reach the end of 8 tensors [T, d] in one"
    assert reasons(8192, "bfloat16", tokens=(1 << 15) + 1) == {"liger-kernel": too_far, "flash-attn-res": too_far}
    assert set(reasons(8192, "bfloat16", tokens=(1 << 15) + 1, level=OP)) == {"liger-kernel", "flash-attn-res"}
    assert set(reasons(64, "float32")) == {"flash-attn-res", "fast-attnres"}
    assert set(reasons(64, "bfloat16", CPU).values()) == {"runs on a GPU only, not on cpu"}
    monkeypatch.setenv("FLA_GLUON", "1")
    assert "FLA_GLUON is set" in reasons(64, "bfloat16")["fla-core triton"]


@pytest.mark.parametrize("level", [OP, BLOCK])
def test_a_peer_runs_per_read_and_one_that_does_not_import_is_kept(monkeypatch, level):
    """A peer that knows one read, with and without a norm of its own; and one whose import fails."""
    from attnres_kernels.definition import naive, scheduled
    from kernels.benchmarks.against_peers.work import EPS

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
    arms = measure_kernels(job, arms=lambda shape, device: given)["cells"][0]["arms"]
    names = ["plain", "norms", "whole", *(["whole, one graph"] if level == BLOCK else []), "missing"]
    assert [arm["name"] for arm in arms] == names
    assert all(arm["status"] == "measured" for arm in arms[:-1]), arms
    assert arms[-1]["reason"] == "ImportError: cannot import name 'fused_attnres'"
