"""What a read computes: the paper's mechanism, and variants of it for people who compare (docs/variants.md).

One frozen value, read by the definition (``variants``), the parameters of a model, the rewrite and the reports.
"""

from __future__ import annotations

from typing import NamedTuple

KEY_NORMS = ("weight", "plain", "none")
MIXINGS = ("softmax", "sigmoid")
QUERIES = ("learned", "input")
VALUE_NORMS = ("none", "plain")
NUMBERS_OF_QUERIES = ("one", "qkv")


class Mechanism(NamedTuple):
    """How a read makes its weights, and what it weighs; the defaults are the paper's (equations 1 to 6).

    key_norm: the RMSNorm on the keys, with a learned weight, "plain" without one, or "none"; logit_scale: factor of the
    logits; mixing: "softmax" over the sources, or "sigmoid" of each logit by itself; window: completed blocks beside
    the root that a read attends to, the last ones, None for all; heads: parts of the width that have weights of their
    own; query: one learned vector, or "input", made of the newest source by a learned matrix; value_norm:
    "none" mixes the sources as they are, "plain" each over its root mean square, as key_norm="plain" has them; queries:
    "one" a read, or "qkv", a read each for the q, k and v of an attention, where these are told apart.
    """

    key_norm: str = "weight"
    logit_scale: float = 1.0
    mixing: str = "softmax"
    window: int | None = None
    heads: int = 1
    query: str = "learned"
    value_norm: str = "none"
    queries: str = "one"

    @property
    def is_paper(self) -> bool:
        """Whether it is the one of the paper."""
        return self == PAPER

    @property
    def by_definition(self) -> str:
        """Why reads are computed by their definition whatever the schedule; '' where every schedule will do.

        Phase 1, logits made first, and the generated kernels hold a softmax over the sources of the dot products of
        one vector with each source, over its root mean square.
        """
        if self.key_norm == "none":
            return "key_norm='none': phase 1 and the kernels divide logits by the root mean square of a source"
        if self.mixing == "sigmoid":
            return "mixing='sigmoid': phase 1 and the kernels merge by the sums of a softmax"
        if self.heads > 1:
            return f"heads={self.heads}: phase 1 and the kernels hold one weight per source and token"
        if self.query == "input":
            return "query='input': phase 1 and the kernels need the queries of later reads before these are reached"
        if self.value_norm == "plain":
            return "value_norm='plain': phase 1 and the kernels mix the sources as they are"
        return ""

    @property
    def differences(self) -> dict[str, object]:
        """What is not the paper's, by name."""
        return {name: value for name, value in self._asdict().items() if value != getattr(PAPER, name)}

    def __str__(self) -> str:
        return ", ".join(f"{name}={value!r}" for name, value in self.differences.items()) or "the paper's"


PAPER = Mechanism()
