"""What a read is for, among several of one state: ``node.meta["attnres_argument"]`` of a captured graph.

Written where the norm behind a read is put apart for q, k and v, and read by the analysis that makes the plan.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch.fx import Node

KEY = "attnres_argument"


@dataclass(frozen=True)
class ReadArgument:
    """name: "q", "k" or "v" of an attention, "rest" for what else its norm leads to, "" of a read that is for all;
    one_query: then, why there is one query.
    """

    name: str = ""
    one_query: str = ""


FOR_ALL = ReadArgument()


def argument_of(node: Node) -> ReadArgument:
    """What a reading node is for.

    Args:
        node: of a captured graph.
    """
    argument = node.meta.get(KEY, FOR_ALL)
    assert isinstance(argument, ReadArgument)
    return argument


def is_told(node: Node) -> bool:
    """Whether it was found out what a reading node is for."""
    return KEY in node.meta


def tell(node: Node, argument: ReadArgument) -> None:
    """Say what a reading node is for."""
    node.meta[KEY] = argument
