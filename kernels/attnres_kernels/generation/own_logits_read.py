"""Text of one read that makes the logits of all its sources itself: one launch, and one pass over memory.

For sources ``v_i`` of width ``d``, the completed blocks and the open partial sum, and the key ``k``, the query times
the weight of the key norm (equations 2 to 4 of the paper)::

    r_i = 1 / sqrt(mean(v_i^2) + eps)      l_i = (k . v_i) r_i      w = softmax(l)      o = c sum_i w_i v_i

A program holds whole rows in registers and sums the squares and the products with the key of all of them together,
which is one exchange between its threads and not two per source. Where registers do not hold all sources at once, it
takes them in groups, whose weights are put right by the usual update of a softmax.

In a model most logits are known when a read begins, made once per block for all reads (``logits``): that moves
less for many tokens. With few, or for a read on its own, what counts is that this is one launch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from attnres_kernels.generation.read import read_name
from attnres_kernels.generation.specs import OwnLogitsReadSpec, ReadSpec
from attnres_kernels.generation.triton_text import ROW, lines, load, load_vector, store, sum_together, with_additions

KEPT = 3
"""Statistics of a token before those of its sources: log-sum-exp, and mean and inverse deviation for the norm."""


def sources_of(spec: ReadSpec) -> list[str]:
    """Names of all sources, which are those of their tiles in the text, too."""
    return [*(f"source_{i}" for i in range(spec.sources)), *(["partial"] if spec.has_partial else [])]


def statistics_of(spec: ReadSpec) -> int:
    """Statistics of a token: ``KEPT``, the logit of each source, and the inverse RMS of each."""
    return KEPT + 2 * len(sources_of(spec))


def statistic(spec: ReadSpec, place: int) -> str:
    """The pointer to a statistic of ``row``.

    Args:
        spec: of the read.
        place: of the statistic, among ``statistics_of``.
    """
    return f"statistics + row * {statistics_of(spec)} + {place}"


def folded(tile: str) -> str:
    """Sums over the columns that one thread holds, which are ``FOLD`` neighbours for each time it loads."""
    return f"tl.sum(tl.sum(tl.reshape({tile}, (BLOCK_D // (LANES * FOLD), LANES, FOLD)), axis=2), axis=0)"


def sums(named: dict[str, str]) -> list[str]:
    """Sums over the row. named: per name the tile that it is the sum of."""
    together = sum_together({name: name for name in named})
    return [*(f"{name} = {folded(tile)}" for name, tile in named.items()), together]


def own_logits_read_text(spec: OwnLogitsReadSpec) -> str:
    """The depth-attended value ``[rows, width]``, normed and not, and the new partial sum, as the spec says; and
    ``statistics`` ``[rows, statistics_of]`` in fp32, for the backward.
    """
    read = spec.read
    sources = range(read.sources)
    arguments = [
        *(f"source_{i}" for i in sources),
        *(["partial"] if read.has_partial else []),
        "query",
        "key_weight",
        *(["branch"] if read.adds else []),
        *(["norm_weight"] if read.has_weight else []),
        *(["norm_bias"] if read.has_bias else []),
        *(["new_partial"] if read.adds else []),
        *(["value"] if read.returns_value else []),
        *(["normed"] if read.norm else []),
        "statistics",
        "rows",
        "width",
        *(f"source_stride_{i}" for i in sources),
        *(["partial_stride"] if read.has_partial else []),
        *(["branch_stride"] if read.adds else []),
    ]
    body = _groups(spec)
    body += ["log_total = largest + tl.log(total)", "merged = merged * (factor / total)"]
    if read.returns_value:
        body.append(store("value", "merged"))
    body += _norm(read) if read.norm else []
    body += _keep(read)
    return with_additions(f"""\
@triton.jit
def {read_name(read, "own_read")}(
    {", ".join(arguments)},
    factor: tl.constexpr, eps: tl.constexpr, norm_eps: tl.constexpr,
    BLOCK_D: tl.constexpr, LANES: tl.constexpr, FOLD: tl.constexpr,
):
    {ROW}
    column = tl.arange(0, BLOCK_D)
    inside = column < width
    {lines(body, 4)}
""")


def _keep(spec: ReadSpec) -> list[str]:
    """Store what the backward needs of the read as a whole."""
    of_norm = {"rms": {2: "inverse_deviation"}, "layer": {1: "mean", 2: "inverse_deviation"}}
    values = {0: "log_total"} | of_norm.get(spec.norm or "", {})
    return [f"tl.store({statistic(spec, place)}, {value})" for place, value in values.items()]


def once(statements: Sequence[str]) -> list[str]:
    """The statements in a loop of one round.

    A compiler cannot tell how many rounds it has. Without the loop it would load what follows too early, and registers
    have no room for that.
    """
    return ["for _ in range(0, tl.minimum(rows, 1)):", *(f"    {statement}" for statement in statements)]


def _groups(spec: OwnLogitsReadSpec) -> list[str]:
    """``merged``, the sum of the sources with the weights ``exp(l_i - largest)``, and ``total`` of these weights."""
    names = sources_of(spec.read)
    text = _group(spec.read, names[: spec.at_once], 0)
    for first in range(spec.at_once, len(names), spec.at_once):
        text += once(_group(spec.read, names[first : first + spec.at_once], first))
    return text


def _group(spec: ReadSpec, names: Sequence[str], first: int) -> list[str]:
    text = [load_vector("query", "key_row"), load_vector("key_weight", "key_weight_row")]
    for name in names:
        text += _partial(spec) if name == "partial" else [load(name, stride_of(name), tile(name))]
    text.append("key_row = key_row * key_weight_row")
    text += sums(
        {f"squares_{name}": f"{tile(name)} * {tile(name)}" for name in names}
        | {f"products_{name}": f"{tile(name)} * key_row" for name in names}
    )
    for name in names:
        text += [
            f"inverse_rms_{name} = tl.rsqrt(squares_{name} / width + eps)",
            f"logit_{name} = products_{name} * inverse_rms_{name}",
        ]
    text += _merge(names, is_first=first == 0)
    # Behind the sums: ptxas spills registers where stores stand among them.
    for place, name in enumerate(names, start=KEPT + first):
        text += [
            f"tl.store({statistic(spec, place)}, logit_{name})",
            f"tl.store({statistic(spec, place + len(sources_of(spec)))}, inverse_rms_{name})",
        ]
    return text


def _merge(names: Sequence[str], is_first: bool) -> list[str]:
    """Add the sources of a group, each with its weight; what there is of earlier groups is put right first."""
    given = [f"logit_{name}" for name in names]
    text = [f"largest = {given.pop(0)}"] if is_first else ["before = largest"]
    text += [f"largest = tl.maximum(largest, {logit})" for logit in given]
    text += [f"weight_{name} = tl.exp(logit_{name} - largest)" for name in names]
    weights, terms = ([f"weight_{name}{of}" for name, of in _of(names, kind)] for kind in ("", "tile"))
    if is_first:
        return [*text, f"total = {' + '.join(weights)}", f"merged = {terms[0]}", *_added(terms[1:])]
    rescale = "rescale = tl.exp(before - largest)"
    return [*text, rescale, f"total = total * rescale + {' + '.join(weights)}", "merged *= rescale", *_added(terms)]


def _of(names: Sequence[str], kind: str) -> Iterator[tuple[str, str]]:
    return ((name, f" * {tile(name)}" if kind else "") for name in names)


def _added(terms: Sequence[str]) -> list[str]:
    return [f"merged += {term}" for term in terms]


def tile(name: str) -> str:
    """The variable that holds a source's row."""
    return "state" if name == "partial" else name.replace("source", "block")


def stride_of(name: str) -> str:
    return "partial_stride" if name == "partial" else name.replace("source", "source_stride")


def _partial(spec: ReadSpec) -> list[str]:
    """``state``, the partial sum with the branch added."""
    text = [load("partial", "partial_stride", "state")]
    if spec.adds:
        text += [
            load("branch", "branch_stride", "added"),
            "# The sum is rounded before it is read, as it is where the add is a kernel of its own.",
            "rounded = (state + added).to(new_partial.dtype.element_ty)",
            "state = rounded.to(tl.float32)",
            store("new_partial", "rounded"),
        ]
    return text


def _norm(spec: ReadSpec) -> list[str]:
    """``normed``."""
    text = [load_vector("norm_weight", "weight")] if spec.has_weight else []
    text += [load_vector("norm_bias", "bias")] if spec.has_bias else []
    if spec.norm == "layer":
        text += [
            *sums({"mean": "merged"}),
            "mean = mean / width",
            "centered = tl.where(inside, merged - mean, 0.0)",
        ]
    else:
        text.append("centered = merged")
    return [
        *text,
        *sums({"squares": "centered * centered"}),
        "inverse_deviation = tl.rsqrt(squares / width + norm_eps)",
        "out = centered * inverse_deviation",
        *(["out *= weight"] if spec.has_weight else []),
        *(["out += bias"] if spec.has_bias else []),
        store("normed", "out"),
    ]
