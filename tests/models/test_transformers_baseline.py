"""Video classifiers of transformers behind our interface: strict weights, clips, attention replaced and counted."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor

from tests.models.small_models import assert_same, random_clip, randomize, save
from tests.models.transformers_folders import AXES, CLIP, CONFIGS, SIZES, settings, transformers, write_folders
from videoattn.config.load import dump_config
from videoattn.convert.stand_ins import ReplacedAttention
from videoattn.grid import Axis
from videoattn.models import build_model
from videoattn.models.hub import PREFIX, _fetch
from videoattn.models.registry import find_spec
from videoattn.models.transformers_baseline import TransformersClassifier, layer_of
from videoattn.models.weights.load import CheckpointError, from_checkpoint, load_weights, save_weights
from videoattn.models.weights.write_folder import save_folder
from videoattn.operators import OPERATORS
from videoattn.profiling.profile import profile


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folders(tmp_path_factory.mktemp("models"))


def theirs_of(folder: Path) -> Any:
    return transformers.AutoModelForVideoClassification.from_pretrained(folder, local_files_only=True).eval()


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_folder_gives_the_logits_of_transformers_and_every_parameter_a_gradient(kind: str, folders: Path) -> None:
    model = build_model(settings(folders / kind))
    report = load_weights(model, folders / kind)
    assert report.family == "huggingface" and not report.initialised
    assert all(".predictor." in name for name in report.dropped) and bool(report.dropped) == (kind == "vjepa2")
    clip = random_clip(2, CLIP)
    with torch.no_grad():
        torch.testing.assert_close(
            model.eval()(clip), theirs_of(folders / kind)(clip.transpose(1, 2)).logits, rtol=1e-6, atol=1e-6
        )
    model.train()(clip).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("kind", AXES)
def test_dense_attention_of_ours_changes_nothing_and_another_is_counted(kind: str, folders: Path) -> None:
    pairs = [x for axis in AXES[kind] for x in (f"ATTENTION.{axis}.NAME", "fibonacci", f"ATTENTION.{axis}.LAYERS", "0")]
    dense, sparse = build_model(settings(folders / kind)), build_model(settings(folders / kind, *pairs))
    for model in (dense, sparse):
        load_weights(model, folders / kind)
        model.eval()
    operators = [type(m.operator).__name__ for m in sparse.modules() if isinstance(m, ReplacedAttention)]
    assert operators == [name for name in ("FibonacciAttention", "DenseAttention") for _ in AXES[kind]]
    clip = random_clip(2, CLIP)
    assert not torch.allclose(dense(clip), sparse(clip))
    axes = {axis: OPERATORS["dense"] for axis in Axis if axis.name in AXES[kind]}
    ours = TransformersClassifier(f"{PREFIX}{folders / kind}", CLIP, 8, axes).eval()
    ours.load_state_dict(dense.state_dict())
    torch.testing.assert_close(ours(clip), dense(clip), rtol=1e-4, atol=1e-4)
    counts = [profile(model, CLIP) for model in (dense, ours, sparse)]
    assert 0 < counts[0].attention_executed == counts[1].attention_executed
    assert counts[2].attention_needed < counts[0].attention_needed
    assert counts[0].macs_executed == counts[1].macs_executed


def test_multiply_accumulates_are_those_of_the_formula(folders: Path) -> None:
    tokens, width = 4 * 4 * 4, 24
    with torch.device("meta"):
        model = build_model(settings(folders / "videomae"))
    blocks = 2 * (12 * width**2 * tokens + 2 * width * tokens**2)
    embedding, head = tokens * width * 3 * 2 * 8 * 8, 8 * width
    assert profile(model, CLIP).macs_executed == blocks + embedding + head


@pytest.mark.parametrize("kind", CONFIGS)
def test_layers_are_counted_from_the_head(kind: str, folders: Path) -> None:
    model: Any = build_model(settings(folders / kind))
    depths = {name: layer_of(model, name) for name, _ in model.named_parameters()}
    assert {depth for name, depth in depths.items() if "classifier" in name or "pooler" in name} == {0}
    blocks = 3 if kind == "videoprism" else 2
    for number in range(2):
        inside = [
            depth
            for name, depth in depths.items()
            if re.search(rf"(r\.layer|\.layers|spatial_layers)\.{number}\.", name)
        ]
        assert inside and set(inside) == {blocks - number}
    assert {depth for name, depth in depths.items() if "embeddings" in name} == {blocks + 1}


def test_attention_of_a_class_that_is_not_known_is_refused(folders: Path) -> None:
    if "videoprism" not in CONFIGS:
        pytest.skip("this release of transformers has no VideoPrism")
    with pytest.raises(
        ValueError, match="ATTENTION.JOINT asks for fibonacci, but .* has no attention that can be replaced"
    ):
        build_model(settings(folders / "videoprism", "ATTENTION.JOINT.NAME", "fibonacci"))


def test_other_classes_need_fine_tuning_and_the_new_head_is_reported(folders: Path) -> None:
    model = build_model(settings(folders / "videomae", "MODEL.NUM_CLASSES", 3))
    with pytest.raises(CheckpointError, match="the classes differ .*TRAIN.FINETUNE.*: 8 in the file, 3 in the model"):
        load_weights(model, folders / "videomae")
    report = load_weights(model, folders / "videomae", allow_new_head=True)
    assert report.initialised == report.dropped == ["network.classifier.weight", "network.classifier.bias"]
    assert model(random_clip(1, CLIP)).shape == (1, 3)


def test_a_pretraining_folder_starts_a_classifier_and_names_what_it_leaves(tmp_path: Path) -> None:
    config = transformers.VideoMAEConfig(**SIZES, decoder_hidden_size=24, decoder_num_attention_heads=3,
                                         decoder_num_hidden_layers=1, decoder_intermediate_size=48)  # fmt: skip
    theirs = transformers.VideoMAEForPreTraining(config)
    theirs.save_pretrained(tmp_path / "pretrained")
    model: Any = build_model(settings(tmp_path / "pretrained"))
    with pytest.raises(CheckpointError, match="4 missing: classifier.bias, .*unexpected: decoder"):
        load_weights(model, tmp_path / "pretrained")
    report = load_weights(model, tmp_path / "pretrained", allow_new_head=True)
    assert {name.split(".")[1] for name in report.initialised} == {"classifier", "fc_norm"}
    assert {name.split(".")[0] for name in report.dropped} == {"decoder", "encoder_to_decoder", "mask_token"}
    assert torch.equal(
        model.network.videomae.encoder.layer[1].output.dense.weight,
        theirs.videomae.encoder.layer[1].output.dense.weight,
    )


def change(folder: Path, **changes: Any) -> None:
    said = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({k: v for k, v in (said | changes).items() if v is not None}))


BROKEN: dict[str, tuple[Callable[[Path], Any], str]] = {
    "another type": (
        lambda folder: change(folder, model_type="vit"), "says model_type 'vit', and transformers' video classif"
    ),
    "no type": (lambda folder: change(folder, model_type=None), "says model_type None, and transformers' video"),
    "no JSON": (lambda folder: (folder / "config.json").write_text("<html>"), "is not JSON"),
    "no config.json": (lambda folder: (folder / "config.json").unlink(), "the folder has no config.json"),
    "a text as depth": (lambda folder: change(folder, num_hidden_layers="two"), "can't follow its config.json: .*"),
    "heads that do not fit": (lambda folder: change(folder, num_attention_heads=5), "can't follow its config.json: .*"),
    "other frames": (lambda folder: change(folder, num_frames=16), "is for clips of 16 x 32 x 32 .* got 8 x 32 x 32"),
    "no frames": (lambda folder: change(folder, num_frames=0), "says num_frames 0, expected positive whole numbers"),
}  # fmt: skip


@pytest.mark.parametrize("what", BROKEN)
def test_a_folder_that_is_no_video_classifier_gives_one_line(what: str, folders: Path, tmp_path: Path) -> None:
    damage, message = BROKEN[what]
    shutil.copytree(folders / "videomae", tmp_path / "m")
    damage(tmp_path / "m")
    with pytest.raises(ValueError, match=message) as caught:
        build_model(settings(tmp_path / "m"))
    assert "\n" not in str(caught.value) and str(tmp_path / "m") in str(caught.value)


def edit(folder: Path, edited: Callable[[dict[str, Tensor]], Any]) -> None:
    tensors = safetensors.torch.load_file(folder / "model.safetensors")
    edited(tensors)
    safetensors.torch.save_file(tensors, folder / "model.safetensors")


WRONG: dict[str, tuple[Callable[[dict[str, Tensor]], Any], str]] = {
    "missing": (lambda tensors: tensors.pop("fc_norm.bias"), "1 missing: fc_norm.bias"),
    "unexpected": (lambda tensors: tensors.update(other=torch.ones(2)), "1 unexpected: other"),
    "another shape": (
        lambda tensors: tensors.update({"fc_norm.bias": torch.ones(3)}),
        r"1 of another shape: fc_norm.bias \(3,\) instead of \(24,\)",
    ),
    "not finite": (
        lambda tensors: tensors["fc_norm.bias"].fill_(torch.nan), "1 not finite: network.fc_norm.bias"
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", WRONG)
def test_weights_that_do_not_fit_are_refused_in_one_line_and_change_nothing(
    what: str, folders: Path, tmp_path: Path
) -> None:
    edited, message = WRONG[what]
    shutil.copytree(folders / "videomae", tmp_path / "m")
    edit(tmp_path / "m", edited)
    model = build_model(settings(tmp_path / "m"))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(CheckpointError, match=f"m: .*{message}") as caught:
        load_weights(model, tmp_path / "m")
    assert "\n" not in str(caught.value)
    assert_same(model.state_dict(), before)


def test_weights_of_another_model_are_refused(folders: Path) -> None:
    model = build_model(settings(folders / "videomae"))
    with pytest.raises(CheckpointError, match="its config.json says model_type 'vjepa2'; the model is a videomae"):
        load_weights(model, folders / "vjepa2")


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        (["ATTENTION.TIME.NAME", "fibonacci"], "ATTENTION.TIME asks for fibonacci, but .* attends along JOINT alone"),
        (["ATTENTION.SKIP.JOINT", [1]], "ATTENTION.SKIP.JOINT: blocks of transformers' models can't skip attention"),
        (["ATTENTION.JOINT.NAME", "lisa", "ATTENTION.JOINT.LAYERS", "1-2"], "expects blocks 0 to 1 .*depth 2"),
    ],
)
def test_attention_that_it_cannot_have_is_refused(pairs: list[Any], message: str, folders: Path) -> None:
    with pytest.raises(ValueError, match=message):
        build_model(settings(folders / "videomae", *pairs))


def test_attention_that_replace_attention_refuses_is_refused_with_its_reason(folders: Path, tmp_path: Path) -> None:
    shutil.copytree(folders / "videomae", tmp_path / "m")
    change(tmp_path / "m", attention_probs_dropout_prob=0.1)
    build_model(settings(tmp_path / "m"))
    with pytest.raises(ValueError, match="drops attention weights with p = 0.1, which operators do not; set 0"):
        build_model(settings(tmp_path / "m", "ATTENTION.JOINT.NAME", "fibonacci"))


def test_a_checkpoint_of_ours_describes_the_network_and_its_attention(folders: Path, tmp_path: Path) -> None:
    cfg = settings(folders / "videomae", "ATTENTION.JOINT.NAME", "lisa")
    source: Any = randomize(build_model(cfg))
    save_weights(source.state_dict(), tmp_path / "a.pyth", cfg=dump_config(cfg))
    model, clip = from_checkpoint(tmp_path / "a.pyth"), random_clip(1, CLIP)
    with torch.no_grad():
        assert torch.equal(model(clip), source(clip))
    dense = build_model(settings(folders / "videomae"))
    with pytest.raises(CheckpointError, match="6 unexpected: network.videomae"):
        load_weights(dense, tmp_path / "a.pyth")
    focused = build_model(settings(folders / "videomae", "ATTENTION.JOINT.NAME", "fibonacci"))
    saved = save(
        {"model_state": dense.state_dict(), "cfg": dump_config(settings(folders / "videomae"))}, tmp_path / "b"
    )
    report = load_weights(focused, saved)
    assert [one.key for one in report.departures or ()] == []  # of dense attention nothing is said


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_network_goes_back_into_a_folder(kind: str, folders: Path, tmp_path: Path) -> None:
    source: Any = randomize(build_model(settings(folders / kind)), seed=3)
    save_folder(source, tmp_path / "out", class_names=[f"class {n}" for n in range(8)])
    theirs, told = transformers.AutoModelForVideoClassification.from_pretrained(
        tmp_path / "out", output_loading_info=True, local_files_only=True
    )
    assert not any(told.values()) and theirs.config.id2label[7] == "class 7"
    clip = random_clip(2, CLIP)
    with torch.no_grad():
        torch.testing.assert_close(theirs.eval()(clip.transpose(1, 2)).logits, source(clip), rtol=1e-6, atol=1e-6)


def test_replaced_attention_is_not_written_as_dense(folders: Path, tmp_path: Path) -> None:
    sparse = build_model(settings(folders / "vjepa2", "ATTENTION.JOINT.NAME", "fibonacci"))
    with pytest.raises(
        CheckpointError, match="VJEPA2ForVideoClassification does not attend by fibonacci; convert --to"
    ):
        save_folder(sparse, tmp_path / "out")
    assert not (tmp_path / "out").exists()


# ---- names


def test_a_repository_in_the_hubs_cache_is_used_and_a_local_folder_comes_first(
    folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    commit = "0123456789" * 4
    place = tmp_path / "cache" / "models--owner--name"
    shutil.copytree(folders / "videomae", place / "snapshots" / commit)
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text(commit)
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        monkeypatch.setattr(constants, name, str(tmp_path / "cache"), raising=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    _fetch.cache_clear()
    try:
        spec = find_spec(f"{PREFIX}owner/name")
        assert spec.clip_size == CLIP and spec.own_weights is not None
        assert spec.own_weights() == place / "snapshots" / commit
        shutil.copytree(folders / "vjepa2", tmp_path / "here" / "owner" / "name")
        monkeypatch.chdir(tmp_path / "here")
        model: Any = build_model(settings(Path("owner/name")))
        assert model.network.config.model_type == "vjepa2"
        with pytest.raises(ValueError, match="transformers/no/model: there is no folder no/model, and huggingface_hub"):
            find_spec(f"{PREFIX}no/model")
        with pytest.raises(ValueError, match=r"huggingface_hub can't fetch it from the hub: .*'a/b/c'"):
            find_spec(f"{PREFIX}a/b/c")
    finally:
        _fetch.cache_clear()


def test_without_transformers_the_error_says_so(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = settings(folders / "videomae")
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    with pytest.raises(ImportError, match="transformers/... needs transformers 5, which can't be imported"):
        build_model(cfg)


def test_code_of_a_folder_is_not_run(folders: Path, tmp_path: Path) -> None:
    shutil.copytree(folders / "videomae", tmp_path / "m")
    (tmp_path / "m" / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    change(tmp_path / "m", auto_map={"AutoModelForVideoClassification": "evil.Model", "AutoConfig": "evil.Config"})
    model = build_model(settings(tmp_path / "m"))
    assert type(model.network).__name__ == "VideoMAEForVideoClassification" and not (tmp_path / "ran").exists()
