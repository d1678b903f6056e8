import argparse
import errno
import json
import os
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from tests.models.small_models import ATTENTION_TYPES, SMALL, random_clip, randomize, small_model
from videoattn import config_file
from videoattn.grid import Axis
from videoattn.layers.mixer import reorder_qkv_rows
from videoattn.layers.position import resize_space, resize_time
from videoattn.models import TimeSformer
from videoattn.models import checkpoints as module
from videoattn.models.checkpoints import (
    CheckpointError,
    from_checkpoint,
    from_ours,
    load_imagenet_vit,
    load_weights,
    save_weights,
    to_ours,
)
from videoattn.models.weight_names import find_family
from videoattn.operators import FibonacciAttention

State = dict[str, Tensor]


def assert_same(state: State, other: State) -> None:
    assert state.keys() == other.keys()
    for name, value in state.items():
        assert torch.equal(value, other[name]), name


def released(model: nn.Module) -> State:
    return from_ours(model.state_dict(), "timesformer", num_heads=3)


def image_vit(num_classes: int = 9, side: int = 3, seed: int = 3) -> State:
    """An image ViT's tensors in timm's names."""
    model = small_model("space_only", seed, clip_size=(1, 8 * side, 8 * side), num_classes=num_classes)
    return from_ours(model.state_dict(), "vit", num_heads=3)


def save(content: Any, path: Path) -> Path:
    torch.save(content, path)
    return path


# Names


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


# Files and containers


@pytest.mark.parametrize("prefix", ["", "model.", "module.", "module.model.", "_orig_mod."])
@pytest.mark.parametrize("container", ["model_state", "state_dict", "model", "module", None])
def test_containers_and_wrappers_make_no_difference(tmp_path: Path, container: str | None, prefix: str) -> None:
    source, target = small_model(), small_model(seed=5)
    state = {prefix + name: value for name, value in released(source).items()}
    path = save({"epoch": 3, container: state} if container else state, tmp_path / "a.pyth")
    report = load_weights(target, path)
    assert_same(target.state_dict(), source.state_dict())
    assert report.family == "timesformer"
    assert sorted(report.loaded) == sorted(target.state_dict())
    assert not (report.resized or report.initialised or report.dropped)


def test_only_a_prefix_of_all_names_is_a_wrapper(tmp_path: Path) -> None:
    state = released(small_model()) | {"model.extra": torch.zeros(1)}
    with pytest.raises(CheckpointError, match="model.extra"):
        load_weights(small_model(), save(state, tmp_path / "a.pyth"))


@pytest.mark.parametrize("suffix", [".pyth", ".pt", ".pth", ".safetensors"])
@pytest.mark.parametrize("family", ["videoattn", "timesformer", "huggingface"])
def test_saved_weights_load_again(tmp_path: Path, family: Any, suffix: str) -> None:
    source, target = small_model(), small_model(seed=5)
    path = tmp_path / f"a{suffix}"
    save_weights(source.state_dict(), path, family, num_heads=3)
    assert load_weights(target, path).family == family
    assert_same(target.state_dict(), source.state_dict())


def test_the_legacy_format_of_torch_loads(tmp_path: Path) -> None:
    source, target = small_model(), small_model(seed=5)
    torch.save(source.state_dict(), tmp_path / "a.pth", _use_new_zipfile_serialization=False)
    load_weights(target, tmp_path / "a.pth")
    assert_same(target.state_dict(), source.state_dict())


def test_averaged_weights_are_taken_as_asked(tmp_path: Path) -> None:
    raw, averaged, target = small_model(seed=1), small_model(seed=2), small_model(seed=3)
    content = {"epoch": 1, "model_state": raw.state_dict(), "ema_state": averaged.state_dict()}
    path = save(content, tmp_path / "a.pyth")
    assert load_weights(target, path).ema
    assert_same(target.state_dict(), averaged.state_dict())
    assert not load_weights(target, path, ema=False).ema
    assert_same(target.state_dict(), raw.state_dict())
    bare = save(raw.state_dict(), tmp_path / "b.pyth")
    assert not load_weights(target, bare).ema
    with pytest.raises(CheckpointError, match=r"b\.pyth holds no averaged weights"):
        load_weights(target, bare, ema=True)


class Payload:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (os.environ["PAYLOAD"],)


def test_a_pickle_that_needs_code_is_refused_and_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PAYLOAD", str(tmp_path / "ran"))
    path = save({"model": small_model().state_dict(), "args": Payload()}, tmp_path / "evil.pth")
    with pytest.raises(CheckpointError, match=rf"^{re.escape(str(path))} needs code.*\(\w+\.mkdir\).*trust=True"):
        load_weights(small_model(), path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("zipped", [True, False])
def test_a_harmless_pickle_loads_when_trusted(tmp_path: Path, zipped: bool) -> None:
    source, target = small_model(), small_model(seed=5)
    content = {"model": source.state_dict(), "args": argparse.Namespace(lr=1.0)}
    torch.save(content, tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match="argparse.Namespace"):
        load_weights(target, tmp_path / "a.pth")
    load_weights(target, tmp_path / "a.pth", trust=True)
    assert_same(target.state_dict(), source.state_dict())


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.pyth", b"", "is empty"),
        ("a.pyth", b"<!DOCTYPE html>", r"was not written by torch.save, it begins with b'<!DOCTYPE html>'"),
        ("a.pyth", "short", "is cut short"),
        ("a.pyth", "short legacy", "can't be read"),
        ("a.safetensors", b"", "is not a whole safetensors file"),
        ("a.safetensors", "short", "is not a whole safetensors file"),
        ("a.pyth", {"model_state": {}}, "holds no tensor"),
        ("a.pyth", [1, 2], "holds a list, expected tensors by name"),
        ("a.pyth", {"epoch": 3, "weights": "x"}, r"holds also epoch \(int\), weights \(str\)"),
        ("a.pyth", {"layer.weight": torch.ones(2)}, "expected a TimeSformer .* got layer.weight"),
        ("missing.pyth", None, "no such file"),
    ],
)
def test_what_is_no_checkpoint_is_named(tmp_path: Path, name: str, content: Any, message: str) -> None:
    path = tmp_path / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif isinstance(content, str):
        if path.suffix == ".safetensors":
            save_weights(small_model().state_dict(), path)
        else:
            torch.save(small_model().state_dict(), path, _use_new_zipfile_serialization=content == "short")
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif content is not None:
        torch.save(content, path)
    with pytest.raises(CheckpointError, match=f"^{re.escape(str(path))}.*{message}"):
        load_weights(small_model(), path)


@pytest.mark.parametrize(("suffix", "writer"), [(".pyth", "torch.save"), (".safetensors", "safetensors.torch.save_file")])
def test_a_full_disk_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, writer: str
) -> None:
    path = tmp_path / f"a{suffix}"
    old = small_model()
    save_weights(old.state_dict(), path)

    def fail(content: Any, target: Path, *rest: Any) -> None:
        Path(target).write_bytes(b"half of it")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(writer, fail)
    with pytest.raises(OSError, match=re.escape(f"can't write {path}: No space left")):
        save_weights(small_model(seed=9).state_dict(), path)
    assert os.listdir(tmp_path) == [path.name]
    target = small_model(seed=5)
    load_weights(target, path)
    assert_same(target.state_dict(), old.state_dict())


# Strictness


def changed(state: State, **changes: Tensor | None) -> State:
    return {name: value for name, value in (state | changes).items() if value is not None}


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
    report = load_weights(target, save(source.state_dict(), tmp_path / "a.pyth"))
    assert report.resized == ["time_embed", "pos_embed"]
    assert torch.equal(target.pos_embed, resize_space(source.pos_embed, (4, 6), (2, 3)))
    assert target.time_embed is not None and source.time_embed is not None
    assert torch.equal(target.time_embed, resize_time(source.time_embed, 4))


def test_square_positions_are_resized_to_a_grid_that_is_not_square(tmp_path: Path) -> None:
    source, target = small_model(clip_size=(4, 24, 24)), small_model(seed=5)
    load_weights(target, save(released(source), tmp_path / "a.pyth"))
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


# Image models


def test_an_image_vit_starts_a_divided_model_as_published(tmp_path: Path) -> None:
    vit = image_vit()
    target = small_model(seed=5)
    head = target.head.weight.clone()
    report = load_imagenet_vit(target, save({"model": vit}, tmp_path / "vit.pth"))
    state = target.state_dict()
    for block in range(2):
        rows = reorder_qkv_rows(vit[f"blocks.{block}.attn.qkv.weight"], 3)
        for axis in ("space", "time"):
            assert torch.equal(state[f"blocks.{block}.mixers.{axis}.qkv.weight"], rows)
            assert torch.equal(state[f"blocks.{block}.mixers.{axis}.norm.bias"], vit[f"blocks.{block}.norm1.bias"])
        assert not state[f"blocks.{block}.temporal_fc.weight"].any()
        assert not state[f"blocks.{block}.temporal_fc.bias"].any()
    assert not state["time_embed"].any()
    assert torch.equal(target.head.weight, head)
    assert torch.equal(state["pos_embed"], resize_space(vit["pos_embed"], (3, 3), (2, 3)))
    assert report.family == "vit"
    assert report.dropped == ["head.weight", "head.bias"]
    assert "time_embed" in report.initialised and "head.bias" in report.initialised
    assert len(report.initialised) == 2 * (6 + 2) + 1 + 2
    assert len(report.initialised) + len(report.loaded) + len(report.resized) == len(state)
    assert "blocks.*.mixers.time.qkv.weight (2)" in str(report)


def test_an_image_vit_starts_joint_and_space_only_models(tmp_path: Path) -> None:
    vit = image_vit()
    path = save(vit, tmp_path / "vit.pth")
    rows = reorder_qkv_rows(vit["blocks.1.attn.qkv.weight"], 3)
    joint, space = small_model("joint_space_time", 5), small_model("space_only", 5)
    report = load_imagenet_vit(joint, path)
    assert report.initialised == ["time_embed", "head.weight", "head.bias"]
    assert torch.equal(joint.state_dict()["blocks.1.mixers.joint.qkv.weight"], rows)
    assert load_imagenet_vit(space, path).initialised == ["head.weight", "head.bias"]
    assert torch.equal(space.state_dict()["blocks.1.mixers.space.qkv.weight"], rows)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"blocks.0.ls1.gamma": torch.ones(24)}, r"blocks.0.ls1.gamma; ViTs with layer scale, .* are other models"),
        ({"dist_token": torch.ones(1, 1, 24)}, "dist_token; ViTs with layer scale, distillation"),
        ({"cls_token": None}, "no cls_token"),
        ({"blocks.0.attn.qkv.bias": None}, "1 missing: blocks.0.mixers.space.qkv.bias"),
    ],
)
def test_vits_of_other_builds_are_refused(tmp_path: Path, changes: dict[str, Tensor | None], message: str) -> None:
    path = save(changed(image_vit(), **changes), tmp_path / "vit.pth")
    with pytest.raises(CheckpointError, match=message):
        load_imagenet_vit(small_model("space_only"), path)


def test_a_video_model_is_no_image_vit(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="expected an image ViT, got a timesformer video model"):
        load_imagenet_vit(small_model(), save(released(small_model()), tmp_path / "a.pyth"))


def test_timm_is_asked_for_the_named_model(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    def create_model(name: str, **options: Any) -> nn.Module:
        asked.update(options, name=name)
        holder = nn.Module()
        holder.state_dict = lambda: {k: v for k, v in image_vit().items() if "head" not in k}  # type: ignore[assignment]
        return holder

    monkeypatch.setattr(module, "import_timm", lambda: SimpleNamespace(create_model=create_model))
    report = load_imagenet_vit(small_model(), "timm:vit_small")
    assert asked == {"name": "vit_small", "pretrained": True, "num_classes": 0}
    assert report.source == "timm:vit_small" and report.dropped == []


def test_a_failing_network_is_told_with_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def create_model(*args: Any, **options: Any) -> nn.Module:
        raise ConnectionError("no route to host")

    monkeypatch.setattr(module, "import_timm", lambda: SimpleNamespace(create_model=create_model))
    with pytest.raises(CheckpointError, match=r"timm:vit_small \(no route to host\).* path of the .safetensors"):
        load_imagenet_vit(small_model(), "timm:vit_small")


@pytest.mark.slow
def test_timms_vit_gives_the_logits_that_our_space_only_model_gives() -> None:
    vit = module.import_timm().create_model("vit_tiny_patch16_224", num_classes=5, img_size=(32, 48))
    randomize(vit)
    ours = TimeSformer((1, 32, 48), embed_dim=192, num_heads=3, num_classes=5, attention_type="space_only").eval()
    ours.load_state_dict(to_ours(vit.state_dict(), "vit", num_heads=3))
    clip = random_clip(2, (1, 32, 48))
    with torch.no_grad():
        torch.testing.assert_close(ours(clip), vit(clip[:, :, 0]), rtol=1e-5, atol=1e-5)


# Models from files


def test_our_training_checkpoint_describes_its_whole_model(tmp_path: Path) -> None:
    cfg = config_file.load_config(
        None,
        "DATA.NUM_FRAMES 4 DATA.TRAIN_CROP_SIZE 24 DATA.TEST_CROP_SIZE 24 MODEL.NUM_CLASSES 5 TIMESFORMER.PATCH_SIZE 8 "
        "TIMESFORMER.EMBED_DIM 24 TIMESFORMER.DEPTH 2 TIMESFORMER.NUM_HEADS 3 TIMESFORMER.MLP_RATIO 2.5 "
        "ATTENTION.TIME.NAME fibonacci ATTENTION.TIME.VARIANT wythoff".split(),
    )
    source = small_model(
        clip_size=(4, 24, 24), mlp_ratio=2.5, operators={Axis.TIME: lambda site: FibonacciAttention(site, "wythoff")}
    )
    path = save({"epoch": 1, "model_state": source.state_dict(), "cfg": config_file.dump_config(cfg)}, tmp_path / "a.pyth")
    state = torch.get_rng_state()
    model = from_checkpoint(path)
    assert torch.equal(torch.get_rng_state(), state)
    assert not model.training
    clip = random_clip(2, (4, 24, 24))
    with torch.no_grad():
        assert torch.equal(model(clip), source(clip))
    longer = from_checkpoint(path, clip_size=(6, 24, 24))
    assert isinstance(longer, TimeSformer) and longer.clip_size == (6, 24, 24)


@pytest.mark.parametrize("attention_type", ["divided_space_time", "joint_space_time"])
def test_tensors_describe_a_released_model_but_for_its_heads(tmp_path: Path, attention_type: str) -> None:
    source = small_model(attention_type, clip_size=(4, 24, 24))
    path = save({"model_state": released(source)}, tmp_path / "a.pyth")
    with pytest.raises(CheckpointError, match="pass num_heads="):
        from_checkpoint(path)
    model = from_checkpoint(path, num_heads=3)
    clip = random_clip(2, (4, 24, 24))
    with torch.no_grad():
        torch.testing.assert_close(model(clip), source(clip))


def test_the_cfg_of_a_released_file_gives_its_heads_and_frames(tmp_path: Path) -> None:
    cfg = {"MODEL": {"MODEL_NAME": "vit_base_patch16_224"}, "DATA": {"NUM_FRAMES": 8, "TRAIN_CROP_SIZE": 24}}
    source = small_model("space_only", clip_size=(8, 24, 24), num_heads=12)
    state = from_ours(source.state_dict(), "timesformer", num_heads=12)
    model = from_checkpoint(save({"model_state": state, "cfg": json.dumps(cfg)}, tmp_path / "a.pyth"))
    clip = random_clip(1, (8, 24, 24))
    with torch.no_grad():
        torch.testing.assert_close(model(clip), source(clip))


def test_a_standard_width_tells_the_heads_and_it_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = small_model(embed_dim=192, depth=1, clip_size=(2, 24, 24))
    caplog.set_level("INFO")
    model = from_checkpoint(save(released(source), tmp_path / "a.pyth"))
    assert module._num_heads(model) == 3  # type: ignore[arg-type]
    assert "3 heads assumed from width 192" in caplog.text


@pytest.mark.parametrize(
    ("attention_type", "clip_size", "message"),
    [
        ("space_only", (4, 24, 24), r"the number of frames can't be told .* clip_size=\(T, H, W\)"),
        ("divided_space_time", (4, 16, 24), r"the height and width of 6 positions can't be told .* clip_size="),
    ],
)
def test_what_tensors_do_not_say_is_asked_for(
    tmp_path: Path, attention_type: str, clip_size: tuple[int, int, int], message: str
) -> None:
    source = small_model(attention_type, clip_size=clip_size)
    path = save(released(source), tmp_path / "a.pyth")
    with pytest.raises(CheckpointError, match=message):
        from_checkpoint(path, num_heads=3)
    clip = random_clip(2, clip_size)
    with torch.no_grad():
        torch.testing.assert_close(from_checkpoint(path, num_heads=3, clip_size=clip_size)(clip), source(clip))


def test_our_bare_file_is_asked_for_its_operators(tmp_path: Path) -> None:
    source = small_model()
    save_weights(source.state_dict(), tmp_path / "a.safetensors", num_heads=3, clip_size=SMALL["clip_size"])
    with pytest.raises(CheckpointError, match="pass operators="):
        from_checkpoint(tmp_path / "a.safetensors")
    clip = random_clip()
    with torch.no_grad():
        assert torch.equal(from_checkpoint(tmp_path / "a.safetensors", operators={})(clip), source(clip))


def test_saved_files_hold_what_their_readers_expect(tmp_path: Path) -> None:
    state = small_model().state_dict()
    save_weights(state, tmp_path / "a.pyth", "timesformer", num_heads=3)
    content = torch.load(tmp_path / "a.pyth")
    assert all(name.startswith("model.") for name in content["model_state"])
    save_weights(state, tmp_path / "a.safetensors")
    assert_same(safetensors.torch.load_file(tmp_path / "a.safetensors"), state)
    with pytest.raises(ValueError, match=r"a\.txt: expected a name that ends in \.safetensors"):
        save_weights(state, tmp_path / "a.txt")
    with pytest.raises(ValueError, match="num_heads is needed"):
        save_weights(state, tmp_path / "a.pyth", "huggingface")
