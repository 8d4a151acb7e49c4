"""Run in a process of its own, without Triton's interpreter: what Inductor makes of the kernels of three operators.

Prints, as JSON, by kernel the choices that Inductor times, and for each its grid; and whether the number of tokens
stayed open. No GPU is needed, since it ends where the code is written.
"""

from __future__ import annotations

import ast
import json
import re

import torch
import triton
from torch import Tensor
from torch._inductor import config
from torch._inductor.graph import GraphLowering
from traced_kernels import EPS, NoDevice

from attnres_kernels.autograd.own_logits_reads import own_logits_read
from attnres_kernels.operators.logits import GENERATED_LOGITS, Logits
from attnres_kernels.operators.phase_1 import GENERATED_PHASE_1, Phase1

TOKENS, WIDTH = 24, 4096


class Written(Exception):
    pass


def written(code: str) -> None:
    raise Written(code)


def made_of(function: object, *arguments: object) -> dict[str, object]:
    try:
        torch.compile(function, fullgraph=True, dynamic=True)(*arguments)
    except Exception as error:
        cause = error.__cause__ or error
        code = str(getattr(cause, "inner_exception", cause))
    else:
        raise AssertionError("nothing was written")
    (name, given) = re.findall(r"^ +(\w+)\.run\((.*)\)$", code, re.MULTILINE)[0]
    configs = re.findall(r"^ +configs=(\[.*\]),$", code, re.MULTILINE)
    grids = re.findall(r"'precomputed_grids': (\[\{.*?\}\]), 'extra", code)
    return {
        "kernel": name,
        "configs": ast.literal_eval(configs[0]),
        "grids": [x["python"] for x in ast.literal_eval(grids[0])] if grids else [],
        "tokens_open": re.search(r"\bs\d+\b", given) is not None,
    }


def main() -> None:
    triton.runtime.driver.set_active(NoDevice())
    config.fx_graph_cache = False
    GraphLowering.save_output_code = staticmethod(written)
    sources = [torch.randn(TOKENS, WIDTH, dtype=torch.bfloat16) for _ in range(2)]
    logits, vector = [torch.randn(TOKENS, 2) for _ in range(2)], torch.randn(WIDTH, dtype=torch.bfloat16)

    def own_logits(sources: list[Tensor], vector: Tensor) -> list[Tensor]:
        return list(own_logits_read(sources, None, vector, vector, 1.0, EPS))

    found = [
        made_of(lambda sources, logits: GENERATED_PHASE_1(Phase1(sources, logits, 0, 2, 2)), sources, logits),
        made_of(lambda source, keys: GENERATED_LOGITS(Logits(source, keys, 0, EPS)), sources[0], torch.randn(3, WIDTH)),
        made_of(own_logits, sources, vector),
    ]
    print(json.dumps(found))


if __name__ == "__main__":
    main()
