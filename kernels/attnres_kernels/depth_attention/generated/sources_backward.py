"""Text of the backward of several reads into completed blocks: kernels for scalars, for gradients and for keys.

With ``h_s``, ``D_s`` and ``L_s`` of read ``s`` as its own backward gives them, ``l_si`` the logit of source ``i``,
``r_i`` its inverse RMS and ``d`` the width::

    w_si = exp(l_si - L_s)    e_si = w_si (h_s . v_i - D_s)                             (gradient of logit l_si)
    dv_i = sum_s w_si h_s + sum_s e_si r_i k_s - (sum_s e_si l_si) r_i^2 / d v_i
    dk_s = sum_tokens sum_i e_si r_i v_i

No source needs another one's numbers, so that sources and reads are cut into launches freely; a launch adds to what the
launch before it, or a later group of reads, gave to a source. Sums over tokens are made in two stages, per program and
then over programs in a fixed order, so that two runs give the same bits.
"""

from __future__ import annotations

from attnres_kernels.depth_attention.generated.specs import SourcesBackwardSpec
from attnres_kernels.depth_attention.generated.writing import ROW, along, lines, load, load_vector, over_rows, store

FEW_SOURCES = 2


def _name(kind: str, spec: SourcesBackwardSpec) -> str:
    return f"{kind}_n{spec.sources}_s{'_'.join(map(str, spec.reads))}"


def scalars_text(spec: SourcesBackwardSpec) -> str:
    """Per token, source and read ``weights`` ``w_si`` and ``to_keys`` ``e_si r_i``, ``[rows, sources, reads]`` each,
    and ``to_selves`` ``[rows, sources]``, the factor of ``v_i`` in its own gradient. Those of a token are neighbours:
    the kernel that reads them has one address for all and not one each in its registers.

    Each thread sums its own eight columns in each step; threads are summed once, at the end.
    """
    sources, reads = range(spec.sources), range(len(spec.reads))
    arguments = [
        *(f"source_{i}" for i in sources),
        *(f"logits_{i}" for i in sources),
        *(f"read_grad_{s}" for s in reads),
        *(f"scalars_{s}" for s in reads),
        "weights",
        "to_keys",
        "to_selves",
        "rows",
        "width",
        *(f"source_stride_{i}" for i in sources),
        *(f"logits_stride_{i}" for i in sources),
        *(f"read_grad_stride_{s}" for s in reads),
    ]
    of_reads = [f"delta_{s} = tl.load(scalars_{s} + row)" for s in reads]
    of_reads += [f"log_total_{s} = tl.load(scalars_{s} + rows + row)" for s in reads]
    # Before the loop or behind it: for few sources ptxas spills registers with the one, for more with the other.
    start, end = (of_reads, []) if spec.sources > FEW_SOURCES else ([], of_reads)
    start = [*start, *(f"squares_{i} = tl.zeros([LANES], tl.float32)" for i in sources)]
    start += [f"products_{s}_{i} = tl.zeros([LANES], tl.float32)" for s in reads for i in sources]
    loop = [load(f"read_grad_{s}", f"read_grad_stride_{s}", f"grad_{s}") for s in reads]
    for i in reversed(sources):  # in the other order ptxas spills for some numbers of sources, too
        loop += [
            load(f"source_{i}", f"source_stride_{i}", "value"),
            f"squares_{i} += tl.sum(tl.reshape(value * value, (LANES, BLOCK_D // LANES)), axis=1)",
            *(
                f"products_{s}_{i} += tl.sum(tl.reshape(grad_{s} * value, (LANES, BLOCK_D // LANES)), axis=1)"
                for s in reads
            ),
        ]
    pairs = spec.sources * len(spec.reads)
    for i in sources:
        end += [
            f"inverse_rms = tl.rsqrt(tl.sum(squares_{i}) / width + eps)",
            "to_itself = 0.0",
        ]
        for s, read in enumerate(spec.reads):
            place = i * len(spec.reads) + s
            end += [
                f"logit = tl.load(logits_{i} + {along(f'logits_stride_{i}')} + {read})",
                f"weight = tl.exp(logit - log_total_{s})",
                f"logit_grad = weight * (tl.sum(products_{s}_{i}) - delta_{s})",
                "# With all the weight, a source has no gradient of its logit; rounding must not give it one.",
                "logit_grad = tl.where(weight == 1.0, 0.0, logit_grad)",
                "to_itself += logit_grad * logit",
                f"tl.store(weights + row * {pairs} + {place}, weight)",
                f"tl.store(to_keys + row * {pairs} + {place}, logit_grad * inverse_rms)",
            ]
        to_itself = "to_itself * inverse_rms * inverse_rms / width"
        end.append(f"tl.store(to_selves + row * {spec.sources} + {i}, {to_itself})")
    return f"""\
@triton.jit
def {_name("scalars", spec)}(
    {", ".join(arguments)},
    eps: tl.constexpr, BLOCK_D: tl.constexpr, LANES: tl.constexpr,
):
    {ROW}
    {lines(start, 4)}
    for start in range(0, width, BLOCK_D):
        column = start + tl.arange(0, BLOCK_D)
        inside = column < width
        {lines(loop, 8)}
    {lines(end, 4)}
"""


def gradients_text(spec: SourcesBackwardSpec) -> str:
    """Gradients of the sources ``[rows, width]``; with few reads, those of the keys as ``keys_text``, too."""
    sources, reads = range(spec.sources), range(len(spec.reads))
    pointers = [
        *(f"source_{i}" for i in sources),
        *(f"read_grad_{s}" for s in reads),
        *(f"carried_{i}" for i in spec.carried),
        "keys",
        "weights",
        "to_keys",
        "to_selves",
        *(f"source_grad_{i}" for i in sources),
        *(["key_grads"] if spec.sums_keys else []),
    ]
    strides = [
        *(f"source_stride_{i}" for i in sources),
        *(f"read_grad_stride_{s}" for s in reads),
        *(f"carried_stride_{i}" for i in spec.carried),
    ]
    loop = _by_source(spec) if spec.sums_keys else _by_read(spec)
    return _kernel("gradients", spec, pointers, strides, loop, spec.sums_keys)


def keys_text(spec: SourcesBackwardSpec) -> str:
    """Per program the gradients of the keys ``[programs, reads, width]``."""
    sources = range(spec.sources)
    pointers = [*(f"source_{i}" for i in sources), "to_keys", "key_grads"]
    loop = []
    for i in sources:
        loop.append(load(f"source_{i}", f"source_stride_{i}", "value"))
        for s in range(len(spec.reads)):
            loop += [_scalar("to_key", spec, i, s), f"key_grad_{s} += to_key * value"]
    return _kernel("keys", spec, pointers, [f"source_stride_{i}" for i in sources], loop, True)


def _by_source(spec: SourcesBackwardSpec) -> list[str]:
    """One source after the other: registers hold the gradients of all reads, and sums for the keys."""
    reads = range(len(spec.reads))
    text = [load(f"read_grad_{s}", f"read_grad_stride_{s}", f"grad_{s}") for s in reads]
    for i in range(spec.sources):
        text += _start(spec, i)
        for s in reads:
            text += [_key(spec, s), *_add(spec, i, s), f"key_grad_{s} += to_key * value"]
        text.append(store(f"source_grad_{i}", f"total_{i}"))
    return text


def _by_read(spec: SourcesBackwardSpec) -> list[str]:
    """One read after the other, each key loaded once: registers hold the gradients of all sources."""
    text = []
    for i in range(spec.sources):
        text += _start(spec, i)
    for s in range(len(spec.reads)):
        text += [load(f"read_grad_{s}", f"read_grad_stride_{s}", f"grad_{s}"), _key(spec, s)]
        for i in range(spec.sources):
            text += _add(spec, i, s)
    return text + [store(f"source_grad_{i}", f"total_{i}") for i in range(spec.sources)]


def _start(spec: SourcesBackwardSpec, i: int) -> list[str]:
    """What the gradient of a source is before any read is added."""
    text = [
        load(f"source_{i}", f"source_stride_{i}", "value"),
        f"to_itself = tl.load(to_selves + row * {spec.sources} + {i})",
        f"total_{i} = -to_itself * value",
    ]
    if i in spec.carried:
        text += [load(f"carried_{i}", f"carried_stride_{i}", "later"), f"total_{i} += later"]
    return text


def _key(spec: SourcesBackwardSpec, s: int) -> str:
    return load_vector(f"keys + {spec.reads[s]} * width", "key")


def _add(spec: SourcesBackwardSpec, i: int, s: int) -> list[str]:
    add = f"total_{i} += weight * grad_{s} + to_key * key"
    return [_scalar("weight", spec, i, s), _scalar("to_key", spec, i, s), add]


def _scalar(name: str, spec: SourcesBackwardSpec, i: int, s: int) -> str:
    pairs = spec.sources * len(spec.reads)
    return f"{name} = tl.load({name}s + row * {pairs} + {i * len(spec.reads) + s})"


def _kernel(
    kind: str, spec: SourcesBackwardSpec, pointers: list[str], strides: list[str], loop: list[str], sums_keys: bool
) -> str:
    """A kernel whose programs go over rows of their own, and keep sums for the keys if they are to."""
    reads = range(len(spec.reads)) if sums_keys else ()
    start = [f"key_grad_{s} = tl.zeros([BLOCK_D], tl.float32)" for s in reads]
    end = [
        f"tl.store(key_grads + (program * {len(reads)} + {s}) * width + column, key_grad_{s}, mask=inside)"
        for s in reads
    ]
    return f"""\
@triton.jit
def {_name(kind, spec)}(
    {", ".join([*pointers, "rows", "width", "rows_per_program", "zero", *strides])},
    BLOCK_D: tl.constexpr,
):
{over_rows("tl.program_id(1)", start, loop, end)}"""
