"""Files of VideoMAE and V-JEPA 2: every tensor is used and filled, or named; others are refused in one line."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.models.small_models import assert_same, save
from tests.models.video_vit.test_video_vit import KINDS, SMALL, clip_of, small
from videoattn.cli import convert
from videoattn.cli.run_tool import run_tool
from videoattn.grid import Axis
from videoattn.models.video_vit.model import VideoViT
from videoattn.models.video_vit.names import from_ours
from videoattn.models.weights.load import CheckpointError, from_checkpoint, load_weights, save_weights
from videoattn.operators import OPERATORS

State = dict[str, Tensor]
FAMILY = {"videomae": "videomae", "vjepa2": "vjepa2", "vjepa2_1": "vjepa2"}
POOLER = ("pooler.", "linear.")


def published(kind: str, **changes: Any) -> State:
    heads = changes.get("num_heads", 3)
    return from_ours(small(kind, **changes).state_dict(), FAMILY[kind], num_heads=heads)


def encoder_of(state: State) -> State:
    return {name: value for name, value in state.items() if not name.startswith(POOLER)}


def write_vjepa2(folder: Path, state: State, key: str = "target_encoder") -> tuple[Path, Path]:
    """Write an encoder's and a probe's file in their publisher's containers."""
    encoder = {f"module.backbone.{name}": value for name, value in encoder_of(state).items()}
    probe = {f"module.{name}": value for name, value in state.items() if name.startswith(POOLER)}
    other = {name: torch.zeros_like(value) for name, value in encoder.items()}
    save({"encoder": other, key: encoder, "predictor": {}, "epoch": 3}, folder / "encoder.pt")
    save({"classifiers": [probe, {}], "opt": None, "epoch": 3}, folder / "probe.pt")
    return folder / "encoder.pt", folder / "probe.pt"


@pytest.mark.parametrize("kind", FAMILY)
def test_weights_come_back_from_their_publishers_names(kind: str, tmp_path: Path) -> None:
    source, target = small(kind), small(kind)
    nn.init.zeros_(target.head.weight)  # type: ignore[union-attr]
    save_weights(source.state_dict(), tmp_path / "a.safetensors", FAMILY[kind], num_heads=3)
    report = load_weights(target, tmp_path / "a.safetensors")
    assert report.family == FAMILY[kind] and set(report.loaded) == source.state_dict().keys()
    assert not (report.dropped or report.initialised or report.resized)
    assert_same(target.state_dict(), source.state_dict())


@pytest.mark.parametrize(("kind", "key"), [("vjepa2", "target_encoder"), ("vjepa2_1", "ema_encoder")])
def test_an_encoder_and_a_probe_make_one_model(kind: str, key: str, tmp_path: Path) -> None:
    source = small(kind)
    encoder, probe = write_vjepa2(tmp_path, published(kind), key)
    target = VideoViT(**SMALL | KINDS[kind]).eval()
    assert "encoder.pt with " in load_weights(target, encoder, probe=probe).source
    assert_same(target.state_dict(), source.state_dict())
    built = from_checkpoint(
        encoder, probe=probe, clip_size=(8, 32, 48), num_heads=3, probe_heads=3, levels=KINDS[kind].get("levels", (2,))
    )
    clip = clip_of(source)
    torch.testing.assert_close(built(clip), source(clip), rtol=0, atol=0)
    alone = from_checkpoint(encoder, clip_size=(8, 32, 48), num_heads=3, levels=KINDS[kind].get("levels", (2,)))
    torch.testing.assert_close(alone.forward_tokens(clip), source.forward_tokens(clip), rtol=0, atol=0)  # type: ignore[operator]


def test_a_fine_tuned_videomae_is_built_from_its_file_and_its_namespace_runs_no_code(tmp_path: Path) -> None:
    source = small("videomae")
    content = {"model": published("videomae"), "args": argparse.Namespace(model="vit_tiny"), "epoch": 1}
    path = save(content, tmp_path / "a.pth")
    built = from_checkpoint(path, clip_size=(8, 32, 48), num_heads=3)
    clip = clip_of(source)
    torch.testing.assert_close(built(clip), source(clip), rtol=0, atol=0)
    with pytest.raises(CheckpointError, match="the clip size can't be told from the tensors: pass clip_size="):
        from_checkpoint(path, num_heads=3)
    with pytest.raises(CheckpointError, match="the number of heads can't be told from width 48: pass num_heads="):
        from_checkpoint(path, clip_size=(8, 32, 48))


@pytest.mark.parametrize("container", ["module", "model"])
def test_a_pretrained_videomae_starts_a_classifier_and_names_what_it_leaves(container: str, tmp_path: Path) -> None:
    state = published("videomae")
    encoder = {f"encoder.{name}": value for name, value in encoder_of(state).items() if "fc_norm" not in name}
    encoder = {name: value for name, value in encoder.items() if "head" not in name}
    rest = {
        "encoder.norm.weight": torch.ones(48), "encoder.norm.bias": torch.ones(48), "mask_token": torch.zeros(1, 1, 24),
        "encoder_to_decoder.weight": torch.zeros(24, 48), "decoder.blocks.0.attn.qkv.weight": torch.zeros(72, 24),
    }  # fmt: skip
    path = save({container: encoder | rest}, tmp_path / "pretrained.pth")
    model = VideoViT(**SMALL | KINDS["videomae"])
    with pytest.raises(CheckpointError, match="the heads differ .allow_new_head=True"):
        load_weights(model, path)
    report = load_weights(model, path, allow_new_head=True)
    assert set(report.dropped) == rest.keys()
    assert set(report.initialised) == {"fc_norm.weight", "fc_norm.bias", "head.weight", "head.bias"}
    assert torch.equal(model.patch_embed.proj.weight, small("videomae").patch_embed.proj.weight)


def test_an_encoder_starts_another_head_and_other_classes_start_a_new_one(tmp_path: Path) -> None:
    encoder, probe = write_vjepa2(tmp_path, published("vjepa2"))
    report = load_weights(small("vjepa2"), encoder, allow_new_head=True)
    assert any(name.startswith("pooler.") for name in report.initialised) and "norms.0.weight" in report.loaded
    more = small("vjepa2", num_classes=7)
    with pytest.raises(CheckpointError, match="the classes differ"):
        load_weights(more, encoder, probe=probe)
    report = load_weights(more, encoder, probe=probe, allow_new_head=True)
    assert set(report.initialised) == {"head.weight", "head.bias"} == set(report.dropped)


def test_a_table_of_positions_beside_rotary_ones_is_left_out_by_name(tmp_path: Path) -> None:
    state = published("vjepa2") | {"pos_embed": torch.zeros(1, 24, 48)}
    encoder, probe = write_vjepa2(tmp_path, state)
    assert load_weights(small("vjepa2"), encoder, probe=probe).dropped == ["pos_embed"]


def test_dense_weights_fill_a_model_with_another_operator(tmp_path: Path) -> None:
    path = save({"model": published("videomae")}, tmp_path / "a.pth")
    model = small("videomae", operators={Axis.JOINT: OPERATORS["lisa"]})
    report = load_weights(model, path)
    assert report.initialised and all(".operator." in name for name in report.initialised)


REFUSED: dict[str, tuple[str, Callable[[State], State], str]] = {
    "a probe alone": (
        "vjepa2", lambda state: {k: v for k, v in state.items() if k.startswith(POOLER)},
        "there is no patch_embed.proj.weight among the tensors .a probe alone",
    ),
    "an encoder without a probe": ("vjepa2", encoder_of, "the heads differ .*probe= names the file of a probe"),
    "a probe of another width": (
        "vjepa2", lambda state: state | {"pooler.query_tokens": torch.zeros(1, 1, 24)},
        r"1 of another shape: pooler.query \(1, 1, 24\) instead of \(1, 1, 48\)",
    ),
    "a 2.1 file as 2": ("vjepa2_1", dict, "modality: True and False"),
    "a missing tensor": (
        "vjepa2", lambda state: {k: v for k, v in state.items() if k != "blocks.1.attn.proj.bias"},
        "1 missing: blocks.1.mixers.joint.proj.bias",
    ),
    "a foreign tensor": (
        "vjepa2", lambda state: state | {"blocks.0.gamma_1": torch.ones(48)},
        "1 tensors have no place in a video ViT: blocks.0.gamma_1",
    ),
    "not finite": (
        "vjepa2", lambda state: state | {"norm.bias": torch.full((48,), torch.nan)}, "1 not finite: norms.0.bias",
    ),
    "an image ViT": (
        "vjepa2", lambda state: encoder_of(state) | {"cls_token": torch.ones(1), "head.weight": torch.ones(5, 48)},
        "the file holds a TimeSformer or an image ViT; the model is a VideoViT",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_files_that_do_not_fit_are_refused_in_one_line_and_change_nothing(what: str, tmp_path: Path) -> None:
    kind, change, message = REFUSED[what]
    path = save(change(published(kind)), tmp_path / "a.pt")
    model = small("vjepa2")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(CheckpointError, match=f"a.pt.*{message}") as caught:
        load_weights(model, path)
    assert "\n" not in str(caught.value)
    assert_same(model.state_dict(), before)


def test_a_probe_of_another_encoder_is_refused_in_one_line_wherever_it_is_joined(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    encoder, _ = write_vjepa2(tmp_path / "a", published("vjepa2"))
    _, probe = write_vjepa2(tmp_path / "b", published("vjepa2", embed_dim=96))
    message = "encoder.pt with .*probe.pt: the probe is for tokens of width 96, and those of the encoder have 48$"
    with pytest.raises(CheckpointError, match=message):
        load_weights(small("vjepa2"), encoder, probe=probe)
    with pytest.raises(CheckpointError, match=message):
        from_checkpoint(encoder, probe=probe, clip_size=(8, 32, 48), num_heads=3, probe_heads=3)
    videomae = save({"model": published("videomae")}, tmp_path / "videomae.pth")
    with pytest.raises(CheckpointError, match="2 tensors have no place in a video ViT: head.weight, head.bias"):
        from_checkpoint(videomae, probe=encoder.parent / "probe.pt", clip_size=(8, 32, 48), num_heads=3)


def test_files_of_one_type_are_no_other_type_even_with_a_new_head(tmp_path: Path) -> None:
    for name in ("2", "2_1"):
        (tmp_path / name).mkdir()
    files = {
        "vjepa2": write_vjepa2(tmp_path / "2", published("vjepa2"))[0],
        "vjepa2_1": write_vjepa2(tmp_path / "2_1", published("vjepa2_1"), "ema_encoder")[0],
        "videomae": save({"model": published("videomae")}, tmp_path / "videomae.pth"),
    }
    for kind, path in files.items():
        for other in KINDS.keys() - {kind, "class token"}:
            for allow_new_head in (False, True):
                with pytest.raises(CheckpointError, match=r"(bias|modality): \w+ and \w+") as caught:
                    load_weights(small(other), path, allow_new_head=allow_new_head)
                assert "\n" not in str(caught.value)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
@pytest.mark.parametrize("ending", ["pt", "safetensors"])
def test_files_that_are_cut_short_give_one_line(ending: str, share: float, tmp_path: Path) -> None:
    path = tmp_path / f"a.{ending}"
    save_weights(small("vjepa2").state_dict(), path, "vjepa2", num_heads=3)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(CheckpointError, match=rf"a.{ending}.*(damaged or cut short|is not a whole)") as caught:
        from_checkpoint(path, clip_size=(8, 32, 48), num_heads=3, probe_heads=3)
    assert "\n" not in str(caught.value)


def test_two_encoders_are_no_encoder_and_probe(tmp_path: Path) -> None:
    encoder, _ = write_vjepa2(tmp_path, published("vjepa2"))
    with pytest.raises(CheckpointError, match="encoder.pt: expected a probe for .*encoder.pt, and both files hold"):
        load_weights(small("vjepa2"), encoder, probe=encoder)


def test_what_a_family_cannot_hold_is_refused(tmp_path: Path) -> None:
    state = small("videomae").state_dict()
    with pytest.raises(CheckpointError, match="vjepa2 has one bias of q, k and v, and the model has q_bias and v_bias"):
        save_weights(state, tmp_path / "a.pt", "vjepa2", num_heads=3)
    sparse = small("videomae", operators={Axis.JOINT: OPERATORS["lisa"]}).state_dict()
    with pytest.raises(CheckpointError, match="have no place in the videomae form of a video ViT: blocks.0.mixers"):
        save_weights(sparse, tmp_path / "a.pt", "videomae", num_heads=3)
    assert not (tmp_path / "a.pt").exists()


def test_the_program_joins_an_encoder_and_its_probe(tmp_path: Path) -> None:
    state = published("vjepa2", embed_dim=384, num_heads=6, probe_heads=16, depth=2)
    encoder, probe = write_vjepa2(tmp_path, state)
    size = ["--clip-size", "8", "32", "48"]
    arguments = [str(encoder), str(tmp_path / "a.safetensors"), "--probe", str(probe), *size, "--to"]
    assert run_tool(convert.main, [*arguments, "huggingface"]) == 2  # there a probe has the encoder's 6 heads
    assert run_tool(convert.main, [*arguments, "vjepa2"]) == 0
    assert run_tool(convert.main, [str(tmp_path / "a.safetensors"), str(tmp_path / "b.pt"), "--to", "vjepa2"]) == 0
    written = torch.load(tmp_path / "b.pt", weights_only=True)["model_state"]
    assert_same(dict(sorted(written.items())), dict(sorted(state.items())))


def test_positions_that_weights_were_not_trained_with_are_refused(tmp_path: Path) -> None:
    encoder, probe = write_vjepa2(tmp_path, published("vjepa2"))
    with pytest.raises(CheckpointError, match="trained with .*rope_tiled.*, and the model has .*rope_interleaved"):
        load_weights(small("vjepa2", positions="rope_interleaved"), encoder, probe=probe)
    path = save({"model": published("videomae")}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match="set VIDEO_VIT.POSITIONS sincos_1d"):
        load_weights(small("videomae", positions="learned"), path)
    changed = small("vjepa2_1", rotary_base=None)
    (tmp_path / "b").mkdir()
    encoder, probe = write_vjepa2(tmp_path / "b", published("vjepa2_1"))
    with pytest.raises(CheckpointError, match="rotary_base=16"):
        load_weights(changed, encoder, probe=probe)


@pytest.mark.parametrize("prefix", ["", "module."])
def test_averaged_weights_beside_the_others_are_used_if_they_are_those_of_all_tensors(
    prefix: str, tmp_path: Path
) -> None:
    state = published("videomae")
    averaged: dict[str, Any] = {f"{prefix}{name}": value + 1 for name, value in state.items()}
    averaged |= {"n_averaged": torch.tensor(3)} if prefix else {}
    model, path = small("videomae"), tmp_path / "a.pth"
    assert load_weights(model, save({"model": state, "model_ema": averaged}, path)).ema
    assert torch.equal(model.fc_norm.weight, state["fc_norm.weight"] + 1)  # type: ignore[union-attr]
    averaged.popitem()
    del averaged[f"{prefix}fc_norm.weight"]
    assert not load_weights(model, save({"model": state, "model_ema": averaged}, path)).ema
