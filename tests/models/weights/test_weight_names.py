from typing import Any

import pytest
import torch

from tests.models.small_models import ATTENTION_TYPES, assert_same, released, small_model
from videoattn.models import TimeSformer
from videoattn.models.registry import find_family
from videoattn.models.weights.load import (
    CheckpointError,
    from_ours,
    to_ours,
)


def test_a_released_block_has_these_names() -> None:
    names = set(released(small_model(depth=1)))
    modules = [
        "patch_embed.proj", "norm", "head", "blocks.0.norm1", "blocks.0.attn.qkv", "blocks.0.attn.proj",
        "blocks.0.temporal_norm1", "blocks.0.temporal_attn.qkv", "blocks.0.temporal_attn.proj", "blocks.0.temporal_fc",
        "blocks.0.norm2", "blocks.0.mlp.fc1", "blocks.0.mlp.fc2",
    ]  # fmt: skip
    expected = {f"{name}.{kind}" for name in modules for kind in ("weight", "bias")}
    assert names == expected | {"cls_token", "pos_embed", "time_embed"}


def test_the_published_base_model_has_its_tensors_and_parameters() -> None:
    with torch.device("meta"):
        state = TimeSformer().state_dict()
    theirs = from_ours(state, "timesformer", num_heads=12)
    assert len(theirs) == 249
    assert round(sum(value.numel() for value in theirs.values()) / 1e6, 2) == 121.57
    assert tuple(theirs["blocks.11.temporal_attn.qkv.weight"].shape) == (2304, 768)


@pytest.mark.parametrize("attention_type", ATTENTION_TYPES)
@pytest.mark.parametrize("family", ["timesformer", "huggingface", "videoattn"])
def test_names_and_rows_go_there_and_back(family: Any, attention_type: str) -> None:
    state = small_model(attention_type).state_dict()
    assert_same(to_ours(from_ours(state, family, 3), family, 3), state)


def test_qkv_rows_of_every_head_move_together() -> None:
    model = small_model()
    ours = model.state_dict()["blocks.1.mixers.time.qkv.weight"]
    theirs = released(model)["blocks.1.temporal_attn.qkv.weight"]
    for head in range(3):
        for part in range(3):  # q, k, v
            rows = slice(8 * (3 * part + head), 8 * (3 * part + head + 1))
            assert torch.equal(theirs[rows], ours[8 * (3 * head + part) : 8 * (3 * head + part + 1)])


@pytest.mark.parametrize(
    ("attention_type", "family", "found"),
    [
        ("divided_space_time", "timesformer", "timesformer"),
        ("joint_space_time", "timesformer", "timesformer"),
        ("space_only", "timesformer", "vit"),
        ("divided_space_time", "huggingface", "huggingface"),
        ("joint_space_time", "videoattn", "videoattn"),
    ],
)
def test_the_family_is_told_from_the_names(attention_type: str, family: Any, found: str) -> None:
    assert find_family(from_ours(small_model(attention_type).state_dict(), family, 3)) == found


def test_an_operators_parameter_has_no_place_in_other_families() -> None:
    state = small_model().state_dict() | {"blocks.0.mixers.time.operator.table": torch.zeros(3)}
    with pytest.raises(CheckpointError, match="blocks.0.mixers.time.operator.table"):
        from_ours(state, "huggingface", 3)
