"""All transformers cases, in one tuple."""

from __future__ import annotations

from tests.zoo import hf_decoders, hf_encoders, hf_mixed
from tests.zoo.case import Case

CASES: tuple[Case, ...] = (*hf_decoders.CASES, *hf_mixed.CASES, *hf_encoders.CASES)
