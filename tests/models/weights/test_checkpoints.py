import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.models.small_models import assert_same, changed, released, save, small_model
from videoattn.grid import Axis
from videoattn.layers.position import resize_space, resize_time
from videoattn.models.weights.load import (
    CheckpointError,
    load_weights,
    save_weights,
)
from videoattn.operators import FibonacciAttention


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"blocks.1.norm2.bias": None}, "1 missing: blocks.1.norm_mlp.bias"),
        ({"blocks.1.norm3.bias": torch.zeros(24)}, "no place .*: blocks.1.norm3.bias"),
        ({"blocks.1.norm2.weigth": torch.zeros(24)}, "no place .*: blocks.1.norm2.weigth"),
        ({"norm.weight": torch.zeros(23)}, r"norm.weight \(23,\) instead of \(24,\)"),
        ({"blocks.0.attn.qkv.weight": torch.zeros(70, 24)}, "70 rows, no multiple of 3 x 3 heads"),
        ({"cls_token": None}, "no cls_token"),
    ],
)
def test_every_tensor_without_a_counterpart_is_an_error(
    tmp_path: Path, changes: dict[str, Tensor | None], message: str
) -> None:
    target = small_model(seed=5)
    before = {name: value.clone() for name, value in target.state_dict().items()}
    path = save(changed(released(small_model()), **changes), tmp_path / "a.pyth")
    with pytest.raises(CheckpointError, match=rf"^{re.escape(str(path))}: .*{message}"):
        load_weights(target, path)
    assert_same(target.state_dict(), before)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"depth": 3}, "the file has .* depth 3, .*the model has .* depth 2"),
        ({"embed_dim": 48}, "the file has .* width 48, .*the model has .* width 24"),
        ({"mlp_ratio": 2.0}, "the file has .* MLP width 48, .*the model has .* MLP width 96"),
        ({"patch_size": 4}, "the file has .* patch 4, .*the model has .* patch 8"),
        ({"num_classes": 6}, "the classes differ .*6 classes; .*5 classes"),
        ({"attention_type": "joint_space_time"}, "the file has joint_space_time, .*the model has divided_space_time"),
        ({"attention_type": "space_only"}, "a file without time can start a video model"),
    ],
)
def test_a_model_of_another_build_is_refused_with_both_builds(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    path = save(small_model(**changes).state_dict(), tmp_path / "a.pyth")
    with pytest.raises(CheckpointError, match=message):
        load_weights(small_model(), path)


def test_another_number_of_heads_is_refused_where_the_file_says_it(tmp_path: Path) -> None:
    save_weights(small_model(num_heads=4).state_dict(), tmp_path / "a.safetensors", num_heads=4)
    with pytest.raises(CheckpointError, match="the file has 4 heads, the model 3"):
        load_weights(small_model(), tmp_path / "a.safetensors")


def test_a_new_head_is_allowed_only_when_asked_and_is_reported(tmp_path: Path) -> None:
    source, target = small_model(num_classes=9), small_model(seed=5)
    head = target.head.weight.clone()
    report = load_weights(target, save(source.state_dict(), tmp_path / "a.pyth"), allow_new_head=True)
    assert report.initialised == report.dropped == ["head.weight", "head.bias"]
    assert torch.equal(target.head.weight, head)
    assert torch.equal(target.blocks[1].mlp.fc1.weight, source.blocks[1].mlp.fc1.weight)
    assert "2 initialised: head.weight, head.bias" in str(report)


def test_dense_weights_load_into_the_sparse_twin(tmp_path: Path) -> None:
    source, target = small_model(), small_model(seed=5, operators={Axis.TIME: FibonacciAttention})
    load_weights(target, save(source.state_dict(), tmp_path / "a.pyth"))
    assert_same(target.state_dict(), source.state_dict())


# Other sizes


def test_embeddings_of_another_clip_size_are_resized_in_their_dimensions(tmp_path: Path) -> None:
    source, target = small_model(clip_size=(6, 32, 48)), small_model(seed=5)
    path, before = save(source.state_dict(), tmp_path / "a.pyth"), target.pos_embed.clone()
    with pytest.raises(
        CheckpointError, match=r"of another size \(allow_resize=True, or .* resizes time_embed, pos_embed to"
    ):
        load_weights(target, path)
    assert torch.equal(target.pos_embed, before)
    report = load_weights(target, path, allow_resize=True)
    assert report.resized == ["time_embed", "pos_embed"]
    assert torch.equal(target.pos_embed, resize_space(source.pos_embed, (4, 6), (2, 3)))
    assert target.time_embed is not None and source.time_embed is not None
    assert torch.equal(target.time_embed, resize_time(source.time_embed, 4))


def test_square_positions_are_resized_to_a_grid_that_is_not_square(tmp_path: Path) -> None:
    source, target = small_model(clip_size=(4, 24, 24)), small_model(seed=5)
    load_weights(target, save(released(source), tmp_path / "a.pyth"), allow_resize=True)
    assert torch.equal(target.pos_embed, resize_space(source.pos_embed, (3, 3), (2, 3)))


def test_a_grid_that_may_be_two_things_is_asked_for(tmp_path: Path) -> None:
    source, target = small_model(clip_size=(4, 16, 64)), small_model(seed=5, clip_size=(4, 16, 64))
    path = save(source.state_dict(), tmp_path / "a.pyth")
    with pytest.raises(CheckpointError, match=r"16 positions, which may be 2 x 8 or 4 x 4, .* file_grid=\(h, w\)"):
        load_weights(target, path)
    load_weights(target, path, file_grid=(2, 8))
    assert torch.equal(target.pos_embed, source.pos_embed)
    with pytest.raises(CheckpointError, match="which are not 3 x 8"):
        load_weights(target, path, file_grid=(3, 8))
    save_weights(source.state_dict(), tmp_path / "b.safetensors", clip_size=(4, 16, 64))
    assert load_weights(target, tmp_path / "b.safetensors").resized == []


def test_a_grid_that_nothing_tells_is_asked_for(tmp_path: Path) -> None:
    path = save(small_model(clip_size=(4, 16, 40)).state_dict(), tmp_path / "a.pyth")
    with pytest.raises(CheckpointError, match="10 positions, which may be of any shape"):
        load_weights(small_model(), path)
