"""Pass: scheduled -> lowered. Every node of the schedule is bound to a provider for the device.

``bind_kernels`` binds to generated Triton kernels, ``bind_torch`` to torch calls that the inner compiler fuses;
``schedule.provider`` says which, and why. What the schedule left as the definition (``naive``, and variants of the
mechanism) becomes torch calls.
"""

from __future__ import annotations

from torch.fx import GraphModule, Node

from attnres_kernels.definition import naive, variants
from attnres_kernels.definition.mechanism import Mechanism
from attnres_passes.ir.annotations import annotation_of
from attnres_passes.ir.levels import is_depth_attention
from attnres_passes.ir.plan import Plan
from attnres_passes.lower.bind_kernels import bind_kernels
from attnres_passes.lower.bind_torch import bind_torch
from attnres_passes.schedule.provider import Provider
from attnres_passes.schedule.scheduled_nodes import call
from attnres_passes.torch_private.graph_copies import copied


def lower(scheduled: GraphModule, plan: Plan, provider: Provider, keeps_values: bool = False) -> GraphModule:
    """A copy of a scheduled graph whose reads are bound to a provider.

    Args:
        scheduled: fused, if the provider is generated kernels.
        plan: of the whole model.
        provider: what the schedule was made for.
        keeps_values: keep the value of every read in the graph, also where only the norm fused with it needs it.
    """
    gm = copied(scheduled)
    for node in list(gm.graph.nodes):
        if is_depth_attention(node):
            _bind_definition(node)
    if provider is Provider.TRITON:
        bind_kernels(gm, plan, keeps_values)
    else:
        bind_torch(gm)
    for node in reversed(list(gm.graph.nodes)):
        annotation = annotation_of(node)
        if annotation is not None and annotation.kind in ("key", "schedule", "norm") and not node.users:
            gm.graph.erase_node(node)
    gm.recompile()
    return gm


def _bind_definition(node: Node) -> None:
    sources, asked, eps, scale, *how = node.args
    if isinstance(asked, Node):
        value = call(node, naive.naive_read, sources, *asked.args, eps, scale)
    else:
        value = call(node, variants.variant_read, sources, asked, eps, scale, Mechanism(*how))  # type: ignore[arg-type]
    value.meta.update(node.meta)
    node.replace_all_uses_with(value)
    node.graph.erase_node(node)
