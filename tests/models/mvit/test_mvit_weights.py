"""Files of MViTs: which names mean what, what is refused, and models built from what a file says."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from tests.models.mvit.small_mvits import SQUARE, V1, mvit_with, small_mvit, torchvisions
from tests.models.small_models import assert_same, changed, random_clip, save
from tests.samples import first_quick
from videoattn.config.load import dump_config, load_config
from videoattn.grid import Axis
from videoattn.layers.pooled_attention import resize_table
from videoattn.layers.position import resize_space, resize_time
from videoattn.layers.skip import SkipSettings
from videoattn.models import MODELS, MViT, build_model
from videoattn.models.mvit.names import MVIT_FAMILIES
from videoattn.models.registry import find_family
from videoattn.models.weights.files import Family
from videoattn.models.weights.load import (
    CheckpointError,
    from_checkpoint,
    load_weights,
    mvit_from_ours,
    mvit_to_ours,
    save_weights,
)
from videoattn.operators import OPERATORS

HOLDS: list[tuple[str, Family]] = [
    (kind, family) for kind in ("v1", "v2") for family in MVIT_FAMILIES if (kind, family) != ("v2", "pytorchvideo")
]


def separate(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """SlowFast's names with SEPARATE_QKV: q, k and v apart."""
    apart: dict[str, Tensor] = {}
    for name, value in state.items():
        if ".attn.qkv." in name:
            apart |= {name.replace("qkv", x): part for x, part in zip("qkv", value.chunk(3), strict=True)}
        else:
            apart[name] = value
    return apart


@pytest.mark.parametrize(("kind", "family"), HOLDS)
def test_names_and_rows_return_from_every_family(kind: str, family: Family) -> None:
    state = small_mvit(kind).state_dict()
    theirs = mvit_from_ours(state, family)
    assert find_family(theirs) == family and len(theirs) >= len(state)
    assert_same(mvit_to_ours(theirs, family), state)


@pytest.mark.parametrize("kind", ["v1", "v2"])
def test_projections_apart_or_packed_are_the_same(kind: str) -> None:
    state = small_mvit(kind).state_dict()
    theirs = separate(mvit_from_ours(state, "slowfast"))
    assert find_family(theirs) == "slowfast"
    assert_same(mvit_to_ours(theirs, "slowfast"), state)


def test_pytorchvideos_second_names_are_taken_for_the_same_tensors() -> None:
    state = small_mvit().state_dict()
    theirs = mvit_from_ours(state, "pytorchvideo")
    again = {
        name.replace(f".pool_{x}.", f"._attention_pool_{x}.pool.").replace(
            f".norm_{x}.", f"._attention_pool_{x}.norm."
        ): v
        for x in "qkv"
        for name, v in theirs.items()
        if f".pool_{x}." in name or f".norm_{x}." in name
    }
    assert again and all("_attention_pool_" in name for name in again)
    assert_same(mvit_to_ours({**theirs, **again}, "pytorchvideo"), state)
    name = next(iter(again))
    with pytest.raises(CheckpointError, match=f"{name} and .* differ here"):
        mvit_to_ours({**theirs, **again, name: again[name] + 1}, "pytorchvideo")


@pytest.mark.parametrize(("kind", "family"), HOLDS)
@pytest.mark.parametrize("wrapping", ["model_state", "module."])
def test_a_file_fills_every_tensor_and_is_used_up(tmp_path: Path, kind: str, family: Family, wrapping: str) -> None:
    source, target = small_mvit(kind, clip_size=SQUARE), small_mvit(kind, seed=5, clip_size=SQUARE)
    theirs = mvit_from_ours(source.state_dict(), family)
    wrapped: Any = (
        {"model_state": theirs} if wrapping == "model_state" else {f"module.{n}": v for n, v in theirs.items()}
    )
    report = load_weights(target, save(wrapped, tmp_path / "a.pyth"))
    assert (report.family, len(report.loaded)) == (family, len(source.state_dict()))
    assert report.resized == report.initialised == report.dropped == []
    assert_same(target.state_dict(), source.state_dict())


@pytest.mark.parametrize("family", MVIT_FAMILIES)
@pytest.mark.parametrize("ending", ["pyth", "safetensors"])
def test_saved_files_load_again(tmp_path: Path, family: Family, ending: str) -> None:
    source, target = small_mvit(), small_mvit(seed=5)
    save_weights(source.state_dict(), tmp_path / f"a.{ending}", family)
    load_weights(target, tmp_path / f"a.{ending}")
    assert_same(target.state_dict(), source.state_dict())


@pytest.mark.parametrize("kind", ["v1", "v2"])
def test_positions_of_another_clip_size_are_resized_when_asked(tmp_path: Path, kind: str) -> None:
    source, target = small_mvit(kind, clip_size=(4, 48, 48)), small_mvit(kind, seed=5, clip_size=SQUARE)
    path = save(mvit_from_ours(source.state_dict(), "slowfast"), tmp_path / "a.pyth")
    with pytest.raises(
        CheckpointError, match=r"for clips of another size \(allow_resize=True, or .* resizes .* to \(6, 32, 32\)"
    ):
        load_weights(target, path)
    report = load_weights(target, path, allow_resize=True)
    state, old = target.state_dict(), source.state_dict()
    if kind == "v1":
        assert report.resized == ["pos_embed_spatial", "pos_embed_temporal"]
        assert torch.equal(state["pos_embed_temporal"], resize_time(old["pos_embed_temporal"], 3))
        assert torch.equal(
            state["pos_embed_spatial"], resize_space(old["pos_embed_spatial"], (12, 12), (8, 8), prefix=0)
        )
    else:
        name = "blocks.2.mixers.joint.relative.tables.h"
        assert name in report.resized and all(".relative.tables." in n for n in report.resized)
        assert torch.equal(state[name], resize_table(old[name], state[name].shape[0]))


def test_a_new_head_is_left_as_it_is_when_asked(tmp_path: Path) -> None:
    source, target = small_mvit(num_classes=9), small_mvit(seed=5)
    path, head = save(mvit_from_ours(source.state_dict(), "slowfast"), tmp_path / "a.pyth"), target.head.weight.clone()
    with pytest.raises(CheckpointError, match="the classes differ .* 9 classes; the model .* 5 classes"):
        load_weights(target, path)
    report = load_weights(target, path, allow_new_head=True)
    assert report.initialised == report.dropped == ["head.weight", "head.bias"]
    assert torch.equal(target.head.weight, head)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"blocks.1.attn.rel_pos_x": torch.ones(3)}, "1 tensors have no place in an MViT: blocks.1.attn.rel_pos_x"),
        ({"blocks.1.norm1.weight": None}, "1 missing: blocks.1.mixers.joint.norm.weight"),
        ({"patch_embed.proj.weight": None}, "there is no patch_embed.proj.weight"),
        ({"patch_embed.proj.weight": torch.ones(8, 3, 3, 9, 9)}, r"patch kernel: \(3, 9, 9\) and \(3, 7, 7\)"),
        ({"blocks.1.norm1.weight": torch.ones(3)}, "1 of another shape|no place"),
        ({"pos_embed_class": None}, "1 missing: pos_embed_class"),
    ],
)
def test_files_that_do_not_fit_are_refused_and_change_nothing(
    tmp_path: Path, changes: dict[str, Tensor | None], message: str
) -> None:
    target = small_mvit(seed=5)
    before = {name: value.clone() for name, value in target.state_dict().items()}
    path = save(changed(mvit_from_ours(small_mvit().state_dict(), "slowfast"), **changes), tmp_path / "a.pyth")
    with pytest.raises(CheckpointError, match=rf"a\.pyth: .*({message})"):
        load_weights(target, path)
    assert_same(target.state_dict(), before)


def test_an_mvit_is_not_saved_under_a_timesformers_names(tmp_path: Path) -> None:
    with pytest.raises(
        CheckpointError,
        match="huggingface names the tensors of a TimeSformer or an image ViT .*, and these are of an MViT",
    ):
        save_weights(small_mvit().state_dict(), tmp_path / "a.pyth", "huggingface", num_heads=3)
    assert not list(tmp_path.iterdir())


def test_an_mvit_is_no_timesformer(tmp_path: Path) -> None:
    path = save(mvit_from_ours(small_mvit().state_dict(), "slowfast"), tmp_path / "a.pyth")
    with torch.device("meta"):
        model = MODELS["timesformer_tiny"]()
    with pytest.raises(CheckpointError, match=r"a\.pyth: .*MViT"):
        load_weights(model, path)


def test_a_timesformer_is_no_mvit(tmp_path: Path) -> None:
    from tests.models.small_models import released, small_model

    with pytest.raises(CheckpointError, match=r"a\.pyth: .*TimeSformer"):
        load_weights(small_mvit(), save(released(small_model()), tmp_path / "a.pyth"))


@pytest.mark.parametrize("kind", ["v1", "v2"])
def test_a_joint_model_starts_a_divided_one(tmp_path: Path, kind: str) -> None:
    joint = small_mvit(kind)
    path = save(mvit_from_ours(joint.state_dict(), "slowfast"), tmp_path / "a.pyth")
    divided = small_mvit(kind, seed=5, attention_type="divided")
    with pytest.raises(CheckpointError, match="can start a divided one but is none"):
        load_weights(divided, path)
    report = load_weights(divided, path, allow_new_head=True)
    block = divided.blocks[1]
    assert torch.equal(block.mixers["space"].qkv.weight, joint.blocks[1].mixers["joint"].qkv.weight)
    kernel = joint.blocks[1].mixers["joint"].pool_k.weight
    assert torch.equal(block.mixers["space"].pool_k.weight, kernel.sum(dim=2, keepdim=True))
    assert not block.temporal_fc.weight.any() and not block.temporal_fc.bias.any()
    assert "blocks.1.temporal_fc.weight" in report.initialised
    if kind == "v2":
        assert torch.equal(
            block.mixers["time"].relative.tables["t"], joint.blocks[1].mixers["joint"].relative.tables["t"]
        )


@pytest.mark.parametrize("name", [name for name in OPERATORS if name != "dense"])
def test_a_dense_file_fills_a_sparse_twin(tmp_path: Path, name: str) -> None:
    dense = small_mvit()
    twin = mvit_with(name, seed=5)
    report = load_weights(twin, save(mvit_from_ours(dense.state_dict(), "slowfast"), tmp_path / "a.pyth"))
    own = [n for n in twin.state_dict() if ".operator." in n]
    assert report.initialised == own and len(report.loaded) == len(dense.state_dict())


@pytest.mark.parametrize("phi", ["leff", "identity", "weights"])
def test_a_dense_file_fills_a_twin_that_skips(tmp_path: Path, phi: Any) -> None:
    from dataclasses import replace

    shape = replace(V1, depth=6)
    dense, twin = small_mvit(shape=shape), small_mvit(shape=shape, seed=5, skip={Axis.JOINT: SkipSettings((5,), phi)})
    report = load_weights(twin, save(dense.state_dict(), tmp_path / "a.pyth"))
    assert all(name.startswith("blocks.5.mixers.joint.") for name in report.dropped)
    if phi == "weights":
        rows = dense.blocks[5].mixers["joint"].qkv.weight.unflatten(0, (4, 3, -1))[:, 2].flatten(0, 1)
        assert torch.equal(twin.blocks[5].mixers["joint"].v.weight, rows)
        assert torch.equal(twin.blocks[5].mixers["joint"].pool_v.weight, dense.blocks[5].mixers["joint"].pool_v.weight)


def published_cfg(**mvit: Any) -> str:
    doubling = [[1, 2.0], [3, 2.0]]
    cfg = {
        "MVIT": {"EMBED_DIM": 8, "DEPTH": 4, "DIM_MUL": doubling, "HEAD_MUL": doubling, "SEP_POS_EMBED": True,
                 "POOL_Q_STRIDE": [[1, 1, 2, 2], [3, 1, 2, 2]], "POOL_KV_STRIDE_ADAPTIVE": [1, 4, 4],
                 "POOL_KVQ_KERNEL": [3, 3, 3], "SEPARATE_QKV": False, "REV": {"ENABLE": False}, **mvit},
        "MODEL": {"MODEL_NAME": "MViT", "NUM_CLASSES": 5, "HEAD_ACT": "softmax"},
        "DATA": {"NUM_FRAMES": 6, "TRAIN_CROP_SIZE": 32, "TEST_CROP_SIZE": 32, "DECODING_BACKEND": "torchvision"},
        "SOLVER": {"NO_SUCH_KEY_HERE": 1},
    }  # fmt: skip
    return yaml.safe_dump(yaml.safe_load(yaml.safe_dump(cfg, default_flow_style=True)))


class TestFromCheckpoint:
    def same(self, model: Any, source: MViT) -> None:
        assert isinstance(model, MViT) and not model.training
        clip = random_clip(clip_size=SQUARE)
        with torch.no_grad():
            assert torch.equal(model(clip), source(clip))

    def test_slowfasts_embedded_settings_build_the_model(self, tmp_path: Path) -> None:
        source = small_mvit(clip_size=SQUARE)
        content = {"model_state": mvit_from_ours(source.state_dict(), "slowfast"), "cfg": published_cfg(), "epoch": 7}
        self.same(from_checkpoint(save(content, tmp_path / "a.pyth")), source)

    def test_settings_that_no_model_here_has_are_refused(self, tmp_path: Path) -> None:
        state = mvit_from_ours(small_mvit(clip_size=SQUARE).state_dict(), "slowfast")
        path = save({"model_state": state, "cfg": published_cfg(MODE="max")}, tmp_path / "a.pyth")
        with pytest.raises(CheckpointError, match="MVIT.MODE expects 'conv', got 'max'"):
            from_checkpoint(path)

    @pytest.mark.parametrize("family", ["slowfast", "torchvision"])
    @pytest.mark.parametrize("name", first_quick(["mvit_v2_s", "mvit_v1_b", "mvit_v1_b_32x3", "mvit_v2_b"]))
    def test_the_tensors_of_a_published_size_build_it(self, tmp_path: Path, name: str, family: Family) -> None:
        with torch.device("meta"):
            source: Any = MODELS[name](num_classes=7)
        theirs = mvit_from_ours({n: torch.zeros(v.shape) for n, v in source.state_dict().items()}, family)
        model: Any = from_checkpoint(save(theirs, tmp_path / "a.pyth"))
        assert model.clip_size == source.clip_size
        # all but the rate of drop path, which no tensor shows
        plans, expected = ([replace(block.plan, drop_path_rate=0) for block in m.blocks] for m in (model, source))
        assert plans == expected

    def test_our_own_files_say_everything(self, tmp_path: Path) -> None:
        cfg = load_config(None, [
            "MODEL.MODEL_NAME", "mvit_v2_s", "MVIT.DEPTH", 4, "MVIT.EMBED_DIM", 8, "MVIT.DIM_MUL", "[[1, 2.0]]",
            "MVIT.HEAD_MUL", "[[1, 2.0]]", "MVIT.POOL_Q_STRIDE", "[[1, 1, 2, 2]]", "MVIT.ATTENTION_TYPE", "divided",
            "MVIT.POOL_KV_STRIDE_ADAPTIVE", "[1, 4, 4]", "ATTENTION.TIME.NAME", "fibonacci", "DATA.NUM_FRAMES", 6,
            "DATA.TRAIN_CROP_SIZE", 32, "DATA.TEST_CROP_SIZE", 32, "MODEL.NUM_CLASSES", 5,
        ])  # fmt: skip
        source: Any = build_model(cfg).eval()
        save_weights(source.state_dict(), tmp_path / "a.safetensors", cfg=dump_config(cfg))
        self.same(from_checkpoint(tmp_path / "a.safetensors"), source)


def test_the_twins_of_torchvision_and_slowfast_agree() -> None:
    """Both families' names of one model lead to the same tensors."""
    source = small_mvit("v2", clip_size=SQUARE)
    theirs = torchvisions(source).state_dict()
    ours = mvit_to_ours(theirs, "torchvision")
    assert_same(mvit_to_ours(mvit_from_ours(ours, "slowfast"), "slowfast"), ours)
