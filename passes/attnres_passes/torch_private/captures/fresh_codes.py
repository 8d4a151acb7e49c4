"""What Dynamo remembers of Python functions, kept out of a capture, and the capture kept out of it.

Dynamo keeps its memory at code objects: graphs, and whether it leaves the function to Python from now on. After a
graph break in a loop it does so, and then finds other graphs the next time, whoever compiled before.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from types import CodeType, FunctionType
from typing import Any

from torch._C._dynamo import eval_frame as c_eval_frame


@contextlib.contextmanager
def fresh_codes(functions: Iterable[FunctionType]) -> Iterator[None]:
    """Let Dynamo meet functions for the first time, and forget afterwards that it has.

    Each function runs a copy of its code meanwhile, so that what is remembered of the code itself is neither seen nor
    changed. Of other functions, those that Dynamo first meets meanwhile are forgotten; so are backends.

    Args:
        functions: those that may run; one that ``torch.compiler.disable`` marked keeps its code, and so its mark.
    """
    from torch._dynamo import convert_frame, eval_frame

    chosen = {id(one): one for one in functions if not getattr(one, "_torchdynamo_disable", False)}
    kept = [(function, function.__code__) for function in chosen.values()]
    copies: dict[int, CodeType] = {}
    met, backends = set(convert_frame.input_codes.seen_ids), set(eval_frame.cached_backends)
    try:
        for function, code in kept:
            function.__code__ = _copied(code, copies)
        yield
    finally:
        for function, code in kept:
            function.__code__ = code
        for reference in list(convert_frame.input_codes.seen):
            first_met = reference()
            if first_met is not None and id(first_met) not in met:
                c_eval_frame.reset_code(first_met)
        for backend in set(eval_frame.cached_backends) - backends:
            del eval_frame.cached_backends[backend]


def _copied(code: CodeType, copies: dict[int, CodeType]) -> CodeType:
    """A copy of a code object and of those inside it, which the functions that it defines run."""
    if id(code) not in copies:
        inner: tuple[Any, ...] = tuple(
            _copied(constant, copies) if isinstance(constant, CodeType) else constant for constant in code.co_consts
        )
        copies[id(code)] = code.replace(co_consts=inner)
    return copies[id(code)]
