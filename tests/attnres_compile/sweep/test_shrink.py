"""Configurations are made small by the names of their fields, and what has to fit still fits."""

from __future__ import annotations

import pytest

from attnres_compile.sweep.making.shrink import SIZES, Size, overridden, shrunk

EIGHTH = Size(8, images=True)


def test_widths_are_divided_and_heads_are_not() -> None:
    values = {"hidden_size": 4096, "intermediate_size": 11008, "num_attention_heads": 32, "head_dim": 128}
    small = shrunk(values, EIGHTH)
    assert small == {"hidden_size": 512, "intermediate_size": 1376, "num_attention_heads": 32, "head_dim": 16}
    assert small["num_attention_heads"] * small["head_dim"] == small["hidden_size"]


def test_lists_by_layer_keep_the_same_layers_two_of_each_kind() -> None:
    values = {
        "num_hidden_layers": 8,
        "layer_types": ["linear", "linear", "linear", "full"] * 2,
        "mlp_layer_types": ["dense"] * 8,
        "no_rope_layers": [1, 1, 1, 0] * 2,
    }
    small = shrunk(values, EIGHTH)
    assert small["num_hidden_layers"] == 4
    assert small["layer_types"] == ["linear", "linear", "full", "full"]
    assert small["no_rope_layers"] == [1, 1, 0, 0]
    assert small["mlp_layer_types"] == ["dense"] * 4


def test_layers_that_are_all_alike_become_two() -> None:
    assert shrunk({"n_layer": 12, "n_embd": 768}, EIGHTH) == {"n_layer": 2, "n_embd": 96}


def test_pyramids_keep_their_proportions() -> None:
    values = {"hidden_sizes": [96, 192, 384, 768], "depths": [3, 3, 9, 3], "num_heads": [3, 6, 12, 24]}
    small = shrunk(values, EIGHTH)
    assert small == {"hidden_sizes": [12, 24, 48, 96], "depths": [2, 2, 2, 2], "num_heads": [3, 6, 12, 24]}


def test_one_width_that_does_not_divide_leaves_its_list() -> None:
    assert shrunk({"hidden_sizes": [96, 100]}, EIGHTH) == {"hidden_sizes": [96, 100]}


def test_special_tokens_stay_apart_and_inside_the_vocabulary_of_all_parts() -> None:
    values = {
        "image_token_id": 151655,
        "video_token_id": 151656,
        "text_config": {"model_type": "text", "vocab_size": 152064, "image_token_id": 151655, "eos_token_id": 2},
    }
    small = shrunk(values, EIGHTH)
    text = small["text_config"]
    assert small["image_token_id"] == text["image_token_id"] != small["video_token_id"]
    assert max(small["image_token_id"], small["video_token_id"]) < text["vocab_size"]
    assert text["eos_token_id"] == 2


def test_experts_are_few_and_fewer_are_chosen() -> None:
    small = shrunk({"n_routed_experts": 256, "num_experts_per_tok": 8, "n_group": 8, "topk_group": 4}, EIGHTH)
    assert small == {"n_routed_experts": 8, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1}


@pytest.mark.parametrize(("images", "expected"), [(True, 64), (False, 1024)])
def test_images_are_small_only_where_asked(images: bool, expected: int) -> None:
    assert shrunk({"image_size": 1024, "patch_size": 16}, Size(8, images))["image_size"] == expected


def test_tables_that_name_layers_by_number_are_left_to_the_configuration() -> None:
    small = shrunk({"num_hidden_layers": 8, "per_layer_config": {5: {"head_dim": 512}}}, EIGHTH)
    assert small == {"num_hidden_layers": 2}


def test_flags_texts_and_small_numbers_stay() -> None:
    values = {"use_cache": True, "hidden_act": "silu", "rms_norm_eps": 1e-6, "num_channels": 3, "hidden_dim": 8}
    assert shrunk(values, EIGHTH) == values


def test_overrides_reach_into_parts_and_take_values_out() -> None:
    values = {"text_config": {"hidden_size": 64, "layer_types": ["full"]}, "depth": 2}
    changed = overridden(values, {"text_config": {"layer_types": "(default)", "eps": 0.1}, "depth": 3})
    assert changed == {"text_config": {"hidden_size": 64, "eps": 0.1}, "depth": 3}
    assert values["text_config"] == {"hidden_size": 64, "layer_types": ["full"]}


def test_the_smallest_size_is_tried_first() -> None:
    assert SIZES[0] == EIGHTH
    assert SIZES[-1] == Size(1, images=False)
