"""A mechanism as hexadecimal digits, for the tensor that says in a state dict what its parameters mean.

key_norm 1 | mixing 1 | window 4 (0 for none) | heads 4 | logit_scale 16 (fp64) | query 1 | value_norm 1 |
queries 1 | zeros up to ``LENGTH``
"""

from __future__ import annotations

import struct

from attnres_kernels.definition.mechanism import (
    KEY_NORMS,
    MIXINGS,
    NUMBERS_OF_QUERIES,
    PAPER,
    QUERIES,
    VALUE_NORMS,
    Mechanism,
)

LENGTH = 32
_LARGEST = 16**4 - 1


def encode(mechanism: Mechanism) -> str:
    """``LENGTH`` digits, none for the paper's; numbers too large for their digits are cut off."""
    if mechanism.is_paper:
        return ""
    (scale,) = struct.unpack(">Q", struct.pack(">d", mechanism.logit_scale))
    choices = f"{KEY_NORMS.index(mechanism.key_norm):x}{MIXINGS.index(mechanism.mixing):x}"
    numbers = f"{min(mechanism.window or 0, _LARGEST):04x}{min(mechanism.heads, _LARGEST):04x}{scale:016x}"
    later = f"{QUERIES.index(mechanism.query):x}{VALUE_NORMS.index(mechanism.value_norm):x}"
    later += f"{NUMBERS_OF_QUERIES.index(mechanism.queries):x}"
    return f"{choices}{numbers}{later}".ljust(LENGTH, "0")


def decode(digits: str) -> Mechanism:
    """The mechanism of some digits.

    Raises:
        ValueError, IndexError: they are none that ``encode`` gave.
    """
    if not digits:
        return PAPER
    window, heads, scale = int(digits[2:6], 16), int(digits[6:10], 16), int(digits[10:26], 16)
    (logit_scale,) = struct.unpack(">d", struct.pack(">Q", scale))
    key_norm, mixing, query, value_norm, queries = (int(digits[place], 16) for place in (0, 1, 26, 27, 28))
    return Mechanism(
        KEY_NORMS[key_norm],
        logit_scale,
        MIXINGS[mixing],
        window or None,
        heads,
        QUERIES[query],
        VALUE_NORMS[value_norm],
        NUMBERS_OF_QUERIES[queries],
    )
