"""Runs `attnres` in this process, on models of the tests' own."""

from __future__ import annotations

from attnres_compile.cli import main as cli

FACTORIES = """
import torch
from torch import nn


class PreNorm(nn.Module):
    def __init__(self, width=8, post_norm=False, normed=True):
        super().__init__()
        self.linears = nn.ModuleList(nn.Linear(width, width) for _ in range(3))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(4))
        self.post_norm = post_norm

    def forward(self, x):
        for linear, norm in zip(self.linears, self.norms):
            x = norm(x + linear(x)) if self.post_norm else x + linear(norm(x))
        return self.norms[-1](x)


class Clamped(PreNorm):
    def forward(self, x):
        for clamps, linear, norm in zip((True, True, False, False), (*self.linears, self.linears[0]), self.norms):
            x = (x.clamp(-4, 4) if clamps else x) + linear(norm(x))
        return self.norms[-1](x)


class Mixed(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = PreNorm(8), PreNorm(8, post_norm=True)

    def forward(self, x):
        return self.second(self.first(x))


def inputs(batch):
    return (torch.randn(batch, 4, 8),), {}


def clamped(batch=2):
    return Clamped(), *inputs(batch)


def pre_norm(batch=2):
    return PreNorm(), *inputs(batch)


def post_norm(batch=2):
    return PreNorm(post_norm=True), *inputs(batch)


def mixed(batch=2):
    return Mixed(), *inputs(batch)


def no_residual(batch=2):
    return nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8)), *inputs(batch)


def failing():
    raise ValueError("no weights here")
"""


def attnres(capsys, *words: str) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of one command line."""
    code = cli.main(words)
    captured = capsys.readouterr()
    return code, captured.out, captured.err
