"""Folders of transformers: written so that transformers loads them with our logits, read back strictly, or refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from tests.models.mvit.small_mvits import small_mvit
from tests.models.small_models import assert_same, random_clip, small_model
from tests.models.video_vit.test_video_vit import clip_of, small
from tests.models.video_vit.test_video_vit_weights import write_vjepa2
from videoattn.cli import convert
from videoattn.cli.run_tool import run_tool
from videoattn.compat import import_torchvision
from videoattn.grid import Axis
from videoattn.models.video_vit.model import VideoViT
from videoattn.models.video_vit.names import from_ours
from videoattn.models.weights.load import CheckpointError, from_checkpoint, load_weights, save_weights
from videoattn.models.weights.transformers_folder import CONFIG, INDEX, WEIGHTS
from videoattn.models.weights.write_folder import save_folder
from videoattn.operators import OPERATORS

import_torchvision()
transformers = pytest.importorskip("transformers", reason="transformers is not installed")

NAMES = ["wave", "clap hands", "jump", "run", "sit down"]
SQUARE = (4, 16, 16)
# how each model is made; the eps of its head, which transformers' class has no setting for
CLASSIFIERS: dict[str, tuple[Callable[[], Any], float | None]] = {
    "timesformer divided": (lambda: small_model(clip_size=SQUARE), None),
    "timesformer joint": (lambda: small_model("joint_space_time", clip_size=SQUARE), None),
    "videomae": (lambda: small("videomae"), 1e-6),
    "videomae wide": (lambda: small("videomae", mlp_dim=100, clip_size=(4, 32, 32)), 1e-6),
    "videomae token 0": (lambda: small("videomae", head="class_token"), None),
    "vjepa2": (lambda: small("vjepa2", clip_size=(8, 48, 48), mlp_dim=209), 1e-5),
}
ENCODERS: dict[str, Callable[[], Any]] = {
    "videomae": lambda: small("videomae", head="none"),
    "vjepa2": lambda: small("vjepa2", clip_size=(8, 48, 48), head="none"),
}


def loaded(auto: Any, folder: Path) -> nn.Module:
    """Return transformers' model of a folder, of which nothing is missing or left over."""
    model, told = auto.from_pretrained(folder, output_loading_info=True, local_files_only=True)
    assert not any(told[what] for what in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs")), told
    model.eval()
    return model  # type: ignore[no-any-return]


def set_head_eps(theirs: nn.Module, eps: float | None) -> None:
    for name, module in theirs.named_modules():
        if eps is not None and isinstance(module, nn.LayerNorm) and name.startswith(("fc_norm", "pooler.")):
            module.eps = eps


def clip_for(model: Any) -> Tensor:
    return random_clip(2, model.clip_size)


@pytest.mark.parametrize("what", CLASSIFIERS)
def test_transformers_loads_a_folder_with_our_logits(what: str, tmp_path: Path) -> None:
    make, head_eps = CLASSIFIERS[what]
    ours = make()
    save_folder(ours, tmp_path / "out", class_names=NAMES)
    theirs: Any = loaded(transformers.AutoModelForVideoClassification, tmp_path / "out")
    assert list(theirs.config.id2label.values()) == NAMES and theirs.config.num_labels == 5
    set_head_eps(theirs, head_eps)
    clip = clip_for(ours)
    with torch.no_grad():
        expected = ours(clip)
        found = theirs(clip.transpose(1, 2)).logits
    assert expected.std() > 0.1
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("what", ENCODERS)
def test_transformers_loads_an_encoder_with_our_tokens(what: str, tmp_path: Path) -> None:
    ours = ENCODERS[what]()
    save_folder(ours, tmp_path / "out")
    theirs: Any = loaded(transformers.AutoModel, tmp_path / "out")
    clip = clip_for(ours)
    with torch.no_grad():
        expected = ours.forward_tokens(clip)
        found = theirs(clip.transpose(1, 2)).last_hidden_state
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))
    assert_same(from_checkpoint(tmp_path / "out").state_dict(), ours.state_dict())


@pytest.mark.parametrize("what", CLASSIFIERS)
def test_a_folder_comes_back_with_its_eps_and_names(what: str, tmp_path: Path) -> None:
    ours = CLASSIFIERS[what][0]()
    save_folder(ours, tmp_path / "out", class_names=NAMES)
    again: Any = from_checkpoint(tmp_path / "out")
    assert_same(again.state_dict(), ours.state_dict())
    clip = clip_for(ours)
    with torch.no_grad():
        assert torch.equal(again(clip), ours(clip))
    report = load_weights(CLASSIFIERS[what][0](), tmp_path / "out")
    assert report.class_names == tuple(NAMES) and not report.departures and not report.initialised


@pytest.mark.parametrize("what", ["videomae", "vjepa2"])
def test_a_folder_of_theirs_gives_their_logits_with_their_eps(what: str, tmp_path: Path) -> None:
    """The folder's norms have an eps so large that another would be seen."""
    sizes: Any = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 3, "num_labels": 5}
    if what == "videomae":
        config = transformers.VideoMAEConfig(
            **sizes, image_size=(32, 48), num_frames=8, intermediate_size=100, layer_norm_eps=1e-2
        )
        theirs, size = transformers.VideoMAEForVideoClassification(config), (8, 32, 48)
    else:
        config = transformers.VJEPA2Config(
            **sizes, crop_size=48, frames_per_clip=8, layer_norm_eps=1e-2, num_pooler_layers=2, pred_hidden_size=24,
            pred_num_attention_heads=2, pred_num_hidden_layers=1,
        )  # fmt: skip
        theirs, size = transformers.VJEPA2ForVideoClassification(config), (8, 48, 48)
    for parameter in theirs.parameters():
        parameter.data.normal_(std=0.3, generator=torch.Generator().manual_seed(parameter.numel()))
    theirs.eval().save_pretrained(tmp_path / "theirs", max_shard_size="60KB")
    assert (tmp_path / "theirs" / INDEX).is_file()
    ours: Any = from_checkpoint(tmp_path / "theirs")
    clip = random_clip(2, size)
    with torch.no_grad():
        expected = theirs(clip.transpose(1, 2)).logits
        torch.testing.assert_close(ours(clip), expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))
    other = VideoViT(**{**ours.arguments, "norm_eps": 1e-6})
    report = load_weights(other, tmp_path / "theirs")
    assert [str(one) for one in report.departures or ()] == ["VIDEO_VIT.NORM_EPS: 1e-06 here, 0.01 in the checkpoint"]


def test_a_pretrained_videomae_of_theirs_is_an_encoder_with_its_norm(tmp_path: Path) -> None:
    config = transformers.VideoMAEConfig(
        hidden_size=48, num_hidden_layers=2, num_attention_heads=3, intermediate_size=96, image_size=(32, 48),
        num_frames=8, use_mean_pooling=False, decoder_hidden_size=24, decoder_num_attention_heads=2,
        decoder_num_hidden_layers=1, decoder_intermediate_size=48,
    )  # fmt: skip
    theirs = transformers.VideoMAEForPreTraining(config).eval()
    theirs.save_pretrained(tmp_path / "theirs")
    ours: Any = from_checkpoint(tmp_path / "theirs")
    clip = random_clip(2, (8, 32, 48))
    with torch.no_grad():
        expected = theirs.videomae(clip.transpose(1, 2)).last_hidden_state
        torch.testing.assert_close(ours.forward_tokens(clip), expected, rtol=1e-5, atol=1e-5)
    report = load_weights(VideoViT(**{**ours.arguments, "head": "mean"}), tmp_path / "theirs", allow_new_head=True)
    assert {name.partition(".")[0] for name in report.dropped} == {
        "mask_token", "encoder_to_decoder", "decoder", "norms"
    }  # fmt: skip


@pytest.mark.parametrize("what", ["timesformer divided", "videomae", "vjepa2"])
def test_preprocessing_of_a_folder_is_crop_mean_and_deviation(what: str, tmp_path: Path) -> None:
    ours = CLASSIFIERS[what][0]()
    save_folder(ours, tmp_path / "out", mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    auto = transformers.AutoVideoProcessor if what == "vjepa2" else transformers.AutoImageProcessor
    processor = auto.from_pretrained(tmp_path / "out", local_files_only=True)
    _, height, width = ours.clip_size
    frames = [torch.full((3, 100, 120), 51, dtype=torch.uint8) for _ in range(2)]
    batch = processor([torch.stack(frames)] if what == "vjepa2" else frames, return_tensors="pt")
    pixels = next(iter(batch.values()))
    assert pixels.shape == (1, 2, 3, height, width)
    expected = (torch.tensor([0.2, 0.2, 0.2]) - torch.tensor([0.1, 0.2, 0.3])) / torch.tensor([0.5, 0.6, 0.7])
    torch.testing.assert_close(pixels[0, 0, :, 0, 0], expected, rtol=1e-4, atol=1e-5)


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "2.1": (lambda: small("vjepa2_1"), "it knows V-JEPA 2, and this is V-JEPA 2.1"),
    "levels": (
        lambda: small("vjepa2", clip_size=(8, 48, 48), levels=(0, 2)), r"normalises the last block alone, .* \[0, 2\]"
    ),
    "probe heads": (lambda: small("vjepa2", clip_size=(8, 48, 48), probe_heads=6), "as many heads as the encoder, 3"),
    "oblong clips": (lambda: small("vjepa2"), "the model is for 32 x 48"),
    "a mean of V-JEPA 2": (
        lambda: small("vjepa2", clip_size=(8, 48, 48), head="mean"), "classifies by an attentive probe, and .* mean"
    ),
    "rotary positions of VideoMAE": (lambda: small("videomae", positions="rope_tiled"), "positions sincos_1d"),
    "a probe of VideoMAE": (lambda: small("videomae", head="attentive"), "has no attentive probe"),
    "a class token": (lambda: small("class token"), "its V-JEPA 2 has the positions rope_tiled"),
    "MViT": (small_mvit, "transformers has no class for the model, MViT"),
    "an operator": (
        lambda: small("videomae", operators={Axis.JOINT: OPERATORS["fibonacci"]}), "by ATTENTION.JOINT fibonacci"
    ),
    "frames apart": (lambda: small_model("space_only", clip_size=SQUARE), "does not average the frames of space_only"),
    "an oblong TimeSformer": (small_model, "square clips alone, and the model is for 16 x 24"),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_models_without_a_class_there_are_refused_in_one_line_and_nothing_is_written(what: str, tmp_path: Path) -> None:
    make, message = REFUSED[what]
    with pytest.raises(ValueError, match=message) as caught:
        save_folder(make(), tmp_path / "out")
    assert "\n" not in str(caught.value) and list(tmp_path.iterdir()) == []


def test_an_operator_with_parameters_is_refused_even_as_dense(tmp_path: Path) -> None:
    model = small("videomae", operators={Axis.JOINT: OPERATORS["lisa"]})
    with pytest.raises(CheckpointError, match="have no place in the videomae form of a video ViT: blocks.0.mixers"):
        save_folder(model, tmp_path / "out", as_dense=True)
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_replaced_or_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="full is a folder that is not empty"):
        save_folder(small("videomae"), tmp_path / "full")
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ValueError, match="file: expected a folder to write, and this is a file"):
        save_folder(small("videomae"), tmp_path / "file")
    with pytest.raises(ValueError, match="there is no folder"):
        save_folder(small("videomae"), tmp_path / "none" / "out")

    def fail(*arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("videoattn.models.weights.write_folder.write_weight_file", fail)
    with pytest.raises(OSError, match="can't write .*out: No space left"):
        save_folder(small("videomae"), tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "full"]
    monkeypatch.undo()
    (tmp_path / "empty").mkdir()
    save_folder(small("videomae"), tmp_path / "empty")
    assert (tmp_path / "empty" / WEIGHTS).is_file()


# ---- damaged, foreign and mixed-up folders


def change_config(folder: Path, **changes: Any) -> None:
    said = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps(said | changes))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def shard(folder: Path, **changes: Any) -> None:
    """Split the weights of a folder in two, with an index; `changes` of the place of one tensor make it wrong."""
    tensors = safetensors.torch.load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    names = sorted(tensors)
    places = {name: f"model-{1 + (i > 5)}.safetensors" for i, name in enumerate(names)}
    for place in set(places.values()):
        safetensors.torch.save_file({n: tensors[n] for n in names if places[n] == place}, folder / place)
    if changes:
        places[names[0]] = changes["first"]
    (folder / INDEX).write_text(json.dumps({"weight_map": places}))


DAMAGED: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no config.json": (lambda folder: (folder / CONFIG).unlink(), "a folder without config.json; expected a file of"),
    "no weights": (lambda folder: (folder / WEIGHTS).unlink(), "holds no weights; expected model.safetensors, or"),
    "cut weights": (lambda folder: cut(folder / WEIGHTS), "is not a whole safetensors file"),
    "cut config.json": (lambda folder: cut(folder / CONFIG), "config.json, which describes .*, is not JSON"),
    "a list as config.json": (lambda folder: (folder / CONFIG).write_text("[1]"), "config.json holds a list"),
    "another model's config.json": (
        lambda folder: change_config(folder, model_type="videomae"),
        "its config.json says model_type 'videomae'; its tensors are of vjepa2",
    ),
    "a type that we don't know": (
        lambda folder: change_config(folder, model_type="vivit"),
        "its config.json says model_type 'vivit', expected one of timesformer, videomae, vjepa2",
    ),
    "another activation": (
        lambda folder: change_config(folder, hidden_act="relu"), "says hidden_act 'relu', expected 'gelu'"
    ),
    "no eps": (lambda folder: change_config(folder, layer_norm_eps=0), "says layer_norm_eps 0, expected a number"),
    "no frames": (lambda folder: change_config(folder, frames_per_clip=0), "says frames_per_clip 0, expected positive"),
    "other heads": (lambda folder: change_config(folder, num_attention_heads=5), "even head dimension .* got 9"),
    "a shard elsewhere": (lambda folder: shard(folder, first="../x"), "names the file '../x', which is not in"),
    "a shard of other tensors": (
        lambda folder: shard(folder, first="model-2.safetensors"), "does not hold the tensors that model.safetens"
    ),
    "no weight_map": (
        lambda folder: (shard(folder), (folder / INDEX).write_text("{}")), "has no weight_map, expected the file of"
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", DAMAGED)
def test_damaged_and_foreign_folders_give_one_line(what: str, tmp_path: Path) -> None:
    damage, message = DAMAGED[what]
    save_folder(small("vjepa2", clip_size=(8, 48, 48)), tmp_path / "out")
    assert from_checkpoint(tmp_path / "out")
    damage(tmp_path / "out")
    with pytest.raises(CheckpointError, match=message) as caught:
        from_checkpoint(tmp_path / "out")
    assert "\n" not in str(caught.value) and "out" in str(caught.value)


def test_shards_with_an_index_are_one_state(tmp_path: Path) -> None:
    ours = small("vjepa2", clip_size=(8, 48, 48))
    save_folder(ours, tmp_path / "out")
    shard(tmp_path / "out")
    assert_same(from_checkpoint(tmp_path / "out").state_dict(), ours.state_dict())


# ---- the program


def test_the_program_writes_a_folder_and_reads_it_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = small("videomae")
    save_weights(source.state_dict(), tmp_path / "a.pth", "videomae", num_heads=3)
    size = ["--num-heads", "3", "--clip-size", "8", "32", "48"]
    out, back = tmp_path / "out", tmp_path / "b.pth"
    assert run_tool(convert.main, [str(tmp_path / "a.pth"), str(out), "--to", "huggingface", *size]) == 0
    assert sorted(path.name for path in out.iterdir()) == [CONFIG, WEIGHTS, "preprocessor_config.json"]
    assert run_tool(convert.main, [str(tmp_path / "a.pth"), str(out), "--to", "huggingface", *size, "--overwrite"]) == 2
    assert "is a folder that is not empty" in capsys.readouterr().err
    assert run_tool(convert.main, [str(out), str(back), "--to", "videomae"]) == 0
    states = [torch.load(path, weights_only=True)["model_state"] for path in (tmp_path / "a.pth", back)]
    assert_same(*states)


@pytest.mark.parametrize("kind", ["videomae", "vjepa2", "vjepa2_1", "class token"])
@pytest.mark.parametrize("ending", ["safetensors", "pyth"])
@pytest.mark.parametrize("encoder", [True, False])
def test_a_file_of_ours_describes_its_video_vit(kind: str, ending: str, encoder: bool, tmp_path: Path) -> None:
    changes: dict[str, Any] = {"head": "none"} if encoder else {}
    source = small(kind, norm_eps=1e-4, mlp_dim=100, **changes)
    save_weights(source.state_dict(), tmp_path / f"a.{ending}", arguments=source.arguments, class_names=NAMES)
    again: Any = from_checkpoint(tmp_path / f"a.{ending}")
    assert again.arguments == source.arguments
    clip = clip_of(source)
    assert torch.equal(again.forward_tokens(clip), source.forward_tokens(clip))
    assert load_weights(source, tmp_path / f"a.{ending}").class_names == tuple(NAMES)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"depth": "many"}, "the file notes depth 'many': Input should be a valid integer"),
        ({"dept": 3}, "the file notes 'dept', which is no argument of a video ViT"),
        ({"operators": {}}, "the file notes 'operators', which is no argument"),
        ([3], "expected arguments by name, got"),
    ],
)
def test_wrong_notes_on_the_model_give_one_line(arguments: Any, message: str, tmp_path: Path) -> None:
    save_weights(small("videomae").state_dict(), tmp_path / "a.safetensors", arguments=arguments)
    with pytest.raises(CheckpointError, match=f"a.safetensors.*{message}") as caught:
        from_checkpoint(tmp_path / "a.safetensors")
    assert "\n" not in str(caught.value)


def test_the_program_joins_encoder_and_probe_in_a_file_of_ours_and_a_folder(tmp_path: Path) -> None:
    source = small("vjepa2", embed_dim=96, num_heads=16, probe_heads=16, depth=2, clip_size=(8, 32, 32))
    encoder, probe = write_vjepa2(tmp_path, from_ours(source.state_dict(), "vjepa2", 16))
    size = ["--num-heads", "16", "--clip-size", "8", "32", "32"]
    clip = clip_of(source)
    for out in ("a.safetensors", "a.pyth"):
        arguments = [str(encoder), str(tmp_path / out), "--probe", str(probe), *size, "--to", "videoattn"]
        assert run_tool(convert.main, arguments) == 0
        assert torch.equal(from_checkpoint(tmp_path / out)(clip), source(clip))
    assert run_tool(convert.main, [str(encoder), str(tmp_path / "e.pyth"), *size, "--to", "videoattn"]) == 0
    alone: Any = from_checkpoint(tmp_path / "e.pyth")
    assert torch.equal(alone.forward_tokens(clip), source.forward_tokens(clip)) and alone.head is None
    arguments = [str(encoder), str(tmp_path / "folder"), "--probe", str(probe), *size, "--to", "huggingface"]
    assert run_tool(convert.main, arguments) == 0
    assert torch.equal(from_checkpoint(tmp_path / "folder")(clip), source(clip))
