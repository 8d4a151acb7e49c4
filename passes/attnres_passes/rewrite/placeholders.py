"""The parameters of the reads as placeholders behind those of the model, and the key vectors that are made of them.

Where reads are the paper's, or differ by no more than what their key vector is made of, a read is one operator on
sources and key vector (``attnres::depth_attention``); else it is one on sources and parameters
(``attnres::variant_attention``), which every pass leaves as it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch.fx import Graph, GraphModule, Node

import attnres_kernels.operators  # noqa: F401  (defines the operators)
from attnres_kernels.definition.mechanism import Mechanism
from attnres_kernels.definition.naive import key_vector
from attnres_kernels.definition.variants import effective_weight
from attnres_passes.ir.annotations import Annotation, annotate, annotation_of
from attnres_passes.ir.config import AttnResConfig
from attnres_passes.ir.plan import Plan
from attnres_passes.ir.read_id import ParameterName, ReadId, ReadParameter
from attnres_passes.ir.read_parameters import ParameterForm, forms_of_read
from attnres_passes.torch_private.graph_copies import mark_as_added

Asked = Node | tuple[Node, ...]
"""What the sources of a read are asked by: its key vector, or its parameters."""


def append_placeholders(graph: Graph, reads: Iterable[ReadId], mechanism: Mechanism) -> dict[ReadParameter, Node]:
    """The placeholders of each read with two sources or more, by what they stand for.

    Args:
        graph: that holds the placeholders of the model and nothing else.
        reads: of the graph, in read order.
        mechanism: of the reads.
    """
    names = [form.name for form in forms_of_read(mechanism, 1)]
    added = {}
    for read_id in reads:
        for name in names:
            node = graph.placeholder(f"{read_id.named('attnres')}_{name}")
            mark_as_added(node)
            added[ReadParameter(read_id, name)] = annotate(node, Annotation("parameter", read_id.stream, read=read_id))
    return added


def placeholders_of_parameters(gm: GraphModule, plan: Plan) -> Iterator[tuple[Node, ParameterForm]]:
    """The placeholders that stand for parameters of reads, and what they stand for.

    Args:
        gm: from the rewritten level on, of a model or of a part of one.
        plan: of the graph.
    """
    forms: list[ParameterForm] = []
    for node in gm.graph.nodes:
        annotation = annotation_of(node)
        if node.op == "placeholder" and annotation is not None and annotation.kind == "parameter":
            forms = forms or list(forms_of_read(plan.config.mechanism, plan.streams[annotation.stream].width))
            yield node, forms.pop(0)


def add_key_vectors(graph: Graph, placeholders: dict[ReadParameter, Node], mechanism: Mechanism) -> dict[ReadId, Asked]:
    """One effective key vector per read, query times key-norm weight (paper equations 2 and 3), or its parameters.

    Args:
        graph: with the placeholders.
        placeholders: those that ``append_placeholders`` gave.
        mechanism: of the reads.
    """
    parameters: dict[ReadId, dict[ParameterName, Node]] = {}
    for parameter, node in placeholders.items():
        parameters.setdefault(parameter.read, {})[parameter.name] = node
    if mechanism.by_definition:
        return {read_id: tuple(of_read.values()) for read_id, of_read in parameters.items()}
    keys: dict[ReadId, Asked] = {}
    for read_id, of_read in parameters.items():
        annotation = Annotation("key", read_id.stream, read=read_id)
        query, weight = of_read["query"], of_read.get("key_weight")
        if weight is None or mechanism.logit_scale != 1.0:
            arguments = query, weight, mechanism.logit_scale
            weight = graph.create_node("call_function", effective_weight, arguments, name=read_id.named("weight"))
            annotate(weight, annotation)
        node = graph.create_node("call_function", key_vector, (query, weight), name=read_id.named("key"))
        keys[read_id] = annotate(node, annotation)
    return keys


def read_call(sources: Sequence[Node], asked: Asked, config: AttnResConfig) -> tuple[Any, tuple[Any, ...]]:
    """The operator of a read, and its arguments.

    Args:
        sources: those that it attends to.
        asked: of ``add_key_vectors``.
        config: says scale, eps and mechanism.
    """
    if isinstance(asked, tuple):
        arguments = list(sources), list(asked), config.eps, config.scale, *config.mechanism
        return torch.ops.attnres.variant_attention.default, arguments
    return torch.ops.attnres.depth_attention.default, (list(sources), asked, config.eps, config.scale)
