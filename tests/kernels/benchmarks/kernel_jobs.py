"""The command line of the benchmarks in this process, small jobs, and arms that stand in for kernels."""

from __future__ import annotations

import torch

from kernels.benchmarks import command_line
from kernels.benchmarks.against_peers.arms.arm import TORCH, Arm
from kernels.benchmarks.against_peers.run import KernelJob
from kernels.benchmarks.against_peers.traffic import ArmTraffic
from kernels.benchmarks.against_peers.work import OP, definition

CPU = torch.device("cpu")


def small(**changes) -> KernelJob:
    """One shape, on the CPU."""
    values = {"tokens": (5,), "width": (24,), "sources": (3,), "reads": (3,), "dtype": ("float32",)}
    return KernelJob(**values | {"rounds": 2, "device": "cpu", "level": (OP,)} | changes)


def benchmarks(capsys, *words: str) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of one command line."""
    code = command_line.main(words)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def arm_of(name, change=lambda outputs: outputs, kind=TORCH, **fields) -> Arm:
    return Arm(name, kind, ArmTraffic(1, 1), lambda inputs, _: change(definition(inputs)), **fields)
