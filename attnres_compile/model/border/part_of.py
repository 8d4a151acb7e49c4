"""Which prepared model a module is a part of: what compiles a layer by itself finds the model by it.

A name on every module says so, for nothing leads from a part to its model. Copies have the name of the model that they
were copied from until they are called, and then get one of their own.
"""

from __future__ import annotations

import uuid
import weakref

from torch import nn

PART_OF = "_attnres_part_of"
"""Name of the attribute by which every module of a prepared model says whose part it is."""

_roots: weakref.WeakValueDictionary[str, nn.Module] = weakref.WeakValueDictionary()


def mark_parts(model: nn.Module) -> None:
    """Give the modules of a prepared model a name by which it is found from them."""
    name = uuid.uuid4().hex
    for module in model.modules():
        # A plain string survives deepcopy and pickling.
        module.__dict__[PART_OF] = name
    _roots[name] = model


def mark_parts_of_copy(model: nn.Module) -> None:
    """The same for a prepared model that is called, if it was copied, or loaded from a pickle."""
    if _roots.get(model.__dict__.get(PART_OF, "")) is not model:
        mark_parts(model)


def unmark_parts(model: nn.Module) -> None:
    """Take the name off again."""
    for module in model.modules():
        module.__dict__.pop(PART_OF, None)


def is_part_of_prepared(module: nn.Module) -> bool:
    """Whether ``module`` was inside a model when that model was prepared."""
    return PART_OF in module.__dict__


def prepared_root_of(module: nn.Module) -> nn.Module | None:
    """The prepared model that ``module`` is a part of, if it is still there and still holds it.

    Args:
        module: a part, or what was put around one since (a checkpoint wrapper).
    """
    part = next((part for part in module.modules() if is_part_of_prepared(part)), module)
    root = _roots.get(part.__dict__.get(PART_OF, ""))
    if root is None or not any(part is module for part in root.modules()):
        return None
    return root
