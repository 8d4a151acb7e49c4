"""The part of in_force.md: a verification of the model of how_it_works.md."""

from __future__ import annotations

import re

from example_model import example

import attnres_compile
from parts import part
from parts.how_it_works import OPTIONS
from parts.layout import fenced


@part
def verification() -> str:
    """Rounding differs from machine to machine, so the errors are blanked."""
    model, args, kwargs = example()
    text = str(attnres_compile.verify(model, args, kwargs, **OPTIONS))
    return fenced(re.sub(r"\d\.\de[+-]\d\d", "#.#e-##", text))
