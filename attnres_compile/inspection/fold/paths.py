"""The modules that are a stream's layers, such as ``transformer.h.0`` .. ``transformer.h.11``, from its plan alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from attnres_compile.inspection.facts.facts import Site
from attnres_compile.inspection.fold.folding import container_of, fold, within
from attnres_compile.inspection.fold.layers import moving
from attnres_passes.ir.plan import Stream
from attnres_passes.ir.provenance import common_prefix


def layer_paths(stream: Stream) -> tuple[str, ...]:
    """Paths of the layers of a stream, each once, in the order of its sites; () if no module holds a layer.

    A layer is what ``fold`` finds to repeat: the module whose number moves on from one repetition to the next, or the
    one module that is applied again and again. Where nothing repeats, in a model of one layer, it is the outermost
    module with a number that both reads the stream and adds to it.
    """
    sites = tuple(_sites(stream))
    containers, shared = [], []
    for layer in fold(sites):
        if layer.is_folded:
            found = [container for row in layer.rows if (container := container_of(row)) is not None]
            containers.extend(found)
            if all(moving(row) is None for row in layer.rows):
                shared.append(common_prefix([row.first.module for row in layer.rows]))
    paths = [_path(site.module, containers, shared) for site in sites]
    held = tuple(dict.fromkeys(path for path in paths if path and _is_layer(path, sites)))
    return held or tuple(dict.fromkeys(path for site in sites if (path := _numbered(site.module, sites))))


def _sites(stream: Stream) -> Iterator[Site]:
    """Reads of the root, then each write and the reads of the state that it makes; without shapes."""
    for state in range(len(stream.writes) + 1):
        if state:
            write = stream.writes[state - 1]
            yield Site("write", write.module, write.source, write.block, state, "")
        for read in stream.reads:
            if read.state == state:
                yield Site("read", read.module, read.source, read.block, state, "", read.num_sources, read.normed)


def _path(module: str, containers: Sequence[tuple[str, ...]], shared: Sequence[str]) -> str:
    """The layer that a module lies in; '' if it is in none."""
    numbered = next((path for container in containers if (path := within(module, container))), "")
    return numbered or next((path for path in shared if path and _lies_in(module, path)), "")


def _is_layer(path: str, sites: Sequence[Site]) -> bool:
    """Whether a module both reads the stream and adds to it, which a norm in a list of norms does not."""
    return {"read", "write"} == {site.kind for site in sites if _lies_in(site.module, path)}


def _numbered(module: str, sites: Sequence[Site]) -> str:
    parts = module.split(".")
    paths = [".".join(parts[: stop + 1]) for stop, part in enumerate(parts) if part.isdecimal()]
    return next((path for path in paths if _is_layer(path, sites)), "")


def _lies_in(module: str, path: str) -> bool:
    return f"{module}.".startswith(f"{path}.")
