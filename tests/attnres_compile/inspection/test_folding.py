"""Repeated layers are folded by the numbers in their paths, whatever the model is called and however it is built."""

from __future__ import annotations

import pytest

from attnres_compile.inspection.facts.facts import Site
from attnres_compile.inspection.fold.folding import ExpandError, check_expand, fold


def sites(*modules: str) -> list[Site]:
    """A read for each path with a norm in it, a write for any other; one source line per kind and last name."""
    made = []
    state = 0
    for module in modules:
        kind = "read" if any(word in module for word in ("norm", "ln")) else "write"
        state += kind == "write"
        sources = 1 + state if kind == "read" else None
        last = [part for part in module.split(".") if not part.isdecimal()][-1]
        made.append(
            Site(kind, module, f"model.py:{len(last)}", state or 1, state, "f32[1]", sources, kind == "read" or None)
        )
    return made


def layers(pattern: str, count: int, first: int = 0) -> list[str]:
    return [
        f"{pattern.format(k)}.{part}" for k in range(first, first + count) for part in ("ln_1", "attn", "ln_2", "mlp")
    ]


def folded(found: list[Site], *expand: str) -> list[tuple[str, int, list[str]]]:
    """Label, repeats and modules of every layer."""
    return [(one.label, one.repeats, [row.module for row in one.rows]) for one in fold(found, expand)]


def test_the_first_layer_has_a_read_of_its_own_kind_and_the_others_fold() -> None:
    found = folded(sites(*layers("model.h.{}", 36), "model.ln_f"))
    assert [(label, repeats) for label, repeats, _ in found] == [("model.h.0", 1), ("model.h.1-35", 35), ("", 1)]
    assert found[1][2] == [f"model.h.1-35.{part}" for part in ("ln_1", "attn", "ln_2", "mlp")]


def test_ranges_of_blocks_and_sources() -> None:
    layer = fold(sites(*layers("h.{}", 5), "ln_f"))[1]
    assert [(row.block, row.sources) for row in layer.rows] == [
        ("2-8", "3-9"),
        ("3-9", ""),
        ("3-9", "4-10"),
        ("4-10", ""),
    ]


def test_no_site_is_lost_and_order_is_kept() -> None:
    paths = [*layers("a.0.blocks.{}", 2), "a.0.down", *layers("a.1.blocks.{}", 6), *layers("a.2.blocks.{}", 2), "norm"]
    found = sites(*paths)
    unfolded = [[row.sites[k] for row in layer.rows] for layer in fold(found) for k in range(layer.repeats)]
    assert [site for layer in unfolded for site in layer] == found


def test_layers_of_stages() -> None:
    paths = [
        *layers("layers.0.blocks.{}", 2),
        *layers("layers.1.blocks.{}", 2),
        *layers("layers.2.blocks.{}", 6),
        "norm",
    ]
    found = [(label, repeats) for label, repeats, _ in folded(sites(*paths))]
    assert found == [
        ("layers.0.blocks.0", 1),
        ("layers.0.blocks.1", 1),
        ("layers.1.blocks.0-1", 2),
        ("layers.2.blocks.0-5", 6),
        ("", 1),
    ]


def test_lists_of_sublayers_beside_each_other() -> None:
    paths = [path for k in range(1, 7) for path in (f"norms.{k}", f"linears.{k}")]
    *_, found = folded(sites(*paths))
    assert found == ("norms.2-6, linears.2-6", 5, ["norms.2-6", "linears.2-6"])


def test_two_norms_of_one_list_per_layer() -> None:
    paths = [path for k in range(1, 5) for path in (f"norms.{2 * k}", f"attn.{k}", f"norms.{2 * k + 1}", f"mlp.{k}")]
    *_, (label, repeats, modules) = folded(sites(*paths))
    assert repeats == 3
    assert modules == ["norms.4,6..8", "attn.2-4", "norms.5,7..9", "mlp.2-4"]
    assert label == "norms.4,6..8, attn.2-4, norms.5,7..9, mlp.2-4"


def test_one_layer_applied_again_and_again() -> None:
    found = folded(sites(*(["layer.ln_1", "layer.attn"] * 5)))
    parts = ["layer.ln_1", "layer.attn"]
    assert found == [("", 1, parts), ("layer", 4, parts)]


def test_units_begin_where_layers_do() -> None:
    """The first layer has no norm of its own, so a unit that begins with its MLP would repeat as well."""
    paths = ["layers.0.attn", "layers.0.ln_2", "layers.0.mlp", *layers("layers.{}", 4, first=1), "ln_f"]
    found = [(label, repeats) for label, repeats, _ in folded(sites(*paths))]
    assert found == [("layers.0", 1), ("layers.1-4", 4), ("", 1)]


def test_layers_of_two_kinds_fold_in_pairs() -> None:
    paths = [f"h.{k}.{part}" for k in range(1, 9) for part in ("ln", "attn" if k % 2 else "conv")]
    *first, found = folded(sites(*paths))
    assert [label for label, _, _ in first] == ["h.1", "h.2"]
    assert found == ("h.3,5..7, h.4,6..8", 3, ["h.3,5..7.ln", "h.3,5..7.attn", "h.4,6..8.ln", "h.4,6..8.conv"])


def test_a_model_without_numbers_is_left_as_it_is() -> None:
    paths = ["first.ln", "first.attn", "second.ln", "second.attn"]
    assert folded(sites(*paths)) == [("", 1, paths)]


@pytest.mark.parametrize("name", ["3", "h.3", "model.h.3"])
def test_expanding_a_layer(name: str) -> None:
    found = folded(sites(*layers("model.h.{}", 6)), name)
    assert [label for label, _, _ in found] == ["model.h.0", "model.h.1-2", "model.h.3", "model.h.4-5"]
    assert found[2][2] == [f"model.h.3.{part}" for part in ("ln_1", "attn", "ln_2", "mlp")]


def test_expanding_everything_and_the_ends() -> None:
    model = sites(*layers("model.h.{}", 4))
    assert [repeats for _, repeats, _ in folded(model, "all")] == [1, 1, 1, 1]
    assert [label for label, _, _ in folded(model, "1")] == ["model.h.0", "model.h.1", "model.h.2-3"]
    assert [label for label, _, _ in folded(model, "3", "0")] == ["model.h.0", "model.h.1-2", "model.h.3"]


def test_a_layer_that_there_is_not() -> None:
    model = sites(*layers("model.h.{}", 4))
    check_expand([model], ["3", "h.0", "all"])
    with pytest.raises(ExpandError, match=r"--expand h\.9: .*folded are model\.h\.1-3, or give 'all'"):
        check_expand([model], ["h.9"])
