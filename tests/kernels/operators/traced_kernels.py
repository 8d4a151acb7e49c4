"""Run in a process of its own, without Triton's interpreter: what a compiler sees of the kernels of a group of reads.

Prints, as JSON, for every kernel launch of the joint graph of forward and backward, the arguments that the compiler
takes to be written, and how many choices it has; the guards that it needs on the number of tokens, which is unknown;
and how many tensors the graph holds as constants, which are the host's. No GPU is needed: the analysis of what a kernel
writes asks for a target only.
"""

from __future__ import annotations

import json
import sys

import torch
import triton
from functorch.compile import aot_function
from torch import Tensor
from torch._dynamo.source import ConstantSource
from torch._higher_order_ops.triton_kernel_wrap import kernel_side_table
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext
from triton.backends.compiler import GPUTarget

from attnres_kernels.autograd import generated_reads, keys, own_logits_reads
from attnres_kernels.definition.read_parts import Neighbours, ReadForm, ReadParts

TOKENS, READS, EPS = 8, 2, 1e-6
ANYWHERE = ConstantSource("x")


class NoDevice:
    """Stands in for the driver of a GPU that is not there."""

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return 0


class Done(Exception):
    pass


def group(sources: list[Tensor], queries: list[Tensor], weights: list[Tensor], branch: Tensor, norm: Tensor) -> Tensor:
    matrix, of_ranges, rows = keys.key_matrix(queries, weights, [(0, READS), (1, 1)])
    logits = [generated_reads.source_logits(x, matrix, 0, EPS) for x in sources]
    block, of_block = generated_reads.complete_block(sources[0], branch, matrix, 1, EPS)
    links, _ = generated_reads.link_sources(sources, logits, of_ranges[0], 0, READS, EPS)
    later, _ = generated_reads.link_sources([block], [of_block], of_ranges[1], 1, READS, EPS)
    made = generated_reads.phase_1(sources, logits, 0, READS, READS)
    behind, like = Neighbours(branch, "layer", 1e-5, norm, norm), sources[0]
    parts = ReadParts(made[0], made[2], [], [], branch, rows[0])
    first = generated_reads.read([(links, 0)], parts, ReadForm(0, READS, 1.0, EPS), like, behind)
    parts = ReadParts(made[1], made[3], [block], [of_block])
    second = generated_reads.read([(links, 1), (later, 0)], parts, ReadForm(1, READS, 1.0, EPS), like)
    alone = own_logits_reads.own_logits_read(sources, like, queries[0], weights[0], 1.0, EPS, behind)
    return sum((x * x).sum() for x in (*first, *second, *alone))


def main(width: int, count: int) -> None:
    triton.runtime.driver.set_active(NoDevice())
    launches, choices, constants = [], [], []

    def look(joint: torch.fx.GraphModule, *_: object, **__: object) -> None:
        constants.extend(joint.graph.find_nodes(op="get_attr"))
        for node in joint.graph.nodes:
            if "triton_kernel_wrapper" in str(node.target):
                launches.append(node.kwargs["tensors_to_clone"])
                choices.append(len(kernel_side_table.get_kernel(node.kwargs["kernel_idx"]).configs))
        raise Done

    shapes = ShapeEnv()
    mode = FakeTensorMode(shape_env=shapes)
    with mode:

        def draw(*shape: int) -> Tensor:
            with unset_fake_temporarily():
                real = torch.empty(*shape, dtype=torch.bfloat16, requires_grad=True)
            sizes = [DimDynamic.STATIC] * len(shape) if len(shape) == 1 else [DimDynamic.DYNAMIC, DimDynamic.STATIC]
            return mode.from_tensor(real, symbolic_context=StatelessSymbolicContext(sizes), source=ANYWHERE)

        sources = [draw(TOKENS, width) for _ in range(count)]
        vectors = [[draw(width) for _ in range(READS)] for _ in range(2)]

        def flat(*leaves: Tensor) -> Tensor:
            queries, weights = leaves[count : count + READS], leaves[count + READS : count + 2 * READS]
            return group(list(leaves[:count]), list(queries), list(weights), *leaves[count + 2 * READS :])

        leaves = [*sources, *vectors[0], *vectors[1], draw(TOKENS, width), draw(width)]
        try:
            aot_function(flat, fw_compiler=None, partition_fn=look)(*leaves)
        except Done:
            guards = [str(guard.expr) for guard in shapes.guards]
            found = {"launches": launches, "choices": choices, "guards": guards, "constants": len(constants)}
            print(json.dumps(found))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
