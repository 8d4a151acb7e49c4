"""Ways in which the models of these tests are compiled. A model has layers ``h``, and may checkpoint them."""

from __future__ import annotations

from tests.variants.attending import Attending
from tests.variants.toy import Toy


def per_layer(model: Attending | Toy) -> None:
    for layer in model.h:
        layer.compile(backend="attnres", options={"inner": "eager"})


def checkpointed(model: Attending | Toy) -> None:
    model.checkpointed = True
    model.compile(backend="attnres", options={"inner": "eager"})


def in_regions(model: Attending | Toy) -> None:
    model.compile(backend="attnres", options={"inner": "aot_eager", "regions": True})
