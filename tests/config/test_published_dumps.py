"""Settings as SlowFast and TimeSformer store them in checkpoints: all keys of theirs, and what constructors fill in."""

import inspect
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from tests.config.published_defaults import SLOWFAST_DEFAULTS, TIMESFORMER_DEFAULTS, dump_of, fill_kv_strides
from tests.config.test_published_keys import KINETICS, SSV2
from tests.config.test_published_keys import published as published_timesformer
from tests.config.test_published_mvit import NAMES as MVIT_NAMES
from tests.config.test_published_mvit import published as published_mvit
from videoattn.config import Config
from videoattn.config.ignored_keys import IGNORED
from videoattn.config.keys import list_fields
from videoattn.config.load import changed_keys, dump_config, format_report, load_config, load_config_with_report
from videoattn.config.published_keys import TRANSLATED
from videoattn.grid import TokenGrid
from videoattn.models import MODELS, MViT, TimeSformer, build_model
from videoattn.models.build import model_arguments, parse_description
from videoattn.models.mvit.names import mvit_from_ours
from videoattn.models.mvit.plan import plan_blocks
from videoattn.models.weights.load import CheckpointError, from_checkpoint, load_weights

TIMESFORMER_NAMES = KINETICS + SSV2


def mvit_dump(name: str, filled: bool) -> dict[str, Any]:
    dump = dump_of(published_mvit(name), SLOWFAST_DEFAULTS)
    return fill_kv_strides(dump) if filled else dump


def write(folder: Path, content: dict[str, Any]) -> Path:
    path = folder / "cfg.yaml"
    path.write_text(json.dumps(content))
    return path


def meaning_of(arguments: dict[str, Any]) -> dict[str, Any]:
    """A model's arguments, its operators aside, with an MViT's blocks in place of their shape."""
    defaults = inspect.signature(MViT if "shape" in arguments else TimeSformer).parameters.values()
    meaning = {**{parameter.name: parameter.default for parameter in defaults}, **arguments, "operators": None}
    if "shape" in meaning:
        frames, height, width = arguments["clip_size"]
        meaning["shape"] = plan_blocks(meaning["shape"], TokenGrid(frames // 2, height // 4, width // 4, prefix=1))
    return meaning


def test_every_default_key_of_both_projects_is_known() -> None:
    known = {*list_fields(Config), *IGNORED, *(key for key, *_ in TRANSLATED)}
    assert {*SLOWFAST_DEFAULTS, *TIMESFORMER_DEFAULTS} - known == set()


def test_there_are_dumps_of_eight_mvits_and_ten_timesformers() -> None:
    assert (len(MVIT_NAMES), len(TIMESFORMER_NAMES)) == (8, 10)


@pytest.mark.parametrize("filled", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("name", MVIT_NAMES)
def test_a_dump_of_slowfast_means_what_its_file_means(tmp_path: Path, name: str, filled: bool) -> None:
    file = load_config(write(tmp_path, published_mvit(name)))
    dump = load_config(write(tmp_path, mvit_dump(name, filled)))
    assert {key for key in changed_keys(dump_config(file), dump_config(dump)) if not key.startswith("MVIT.")} == set()
    assert meaning_of(model_arguments(file)) == meaning_of(model_arguments(dump))


@pytest.mark.parametrize("name", TIMESFORMER_NAMES)
def test_a_dump_of_timesformer_means_what_its_file_means(tmp_path: Path, name: str) -> None:
    file = load_config(write(tmp_path, published_timesformer(name)))
    dump = load_config(write(tmp_path, dump_of(published_timesformer(name), TIMESFORMER_DEFAULTS)))
    assert changed_keys(dump_config(file), dump_config(dump)) in ([], ["DATA.DECODING_BACKEND"])  # theirs is PyAV
    assert meaning_of(model_arguments(file)) == meaning_of(model_arguments(dump))


@pytest.mark.parametrize("filled", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("name", MVIT_NAMES)
def test_a_dump_embedded_in_a_checkpoint_of_slowfast_describes_its_model(name: str, filled: bool) -> None:
    file = json.dumps(published_mvit(name))
    build, arguments = parse_description(json.dumps(mvit_dump(name, filled)))
    assert build is MODELS["mvit"] and meaning_of(arguments) == meaning_of(parse_description(file)[1])


@pytest.mark.parametrize("name", TIMESFORMER_NAMES)
def test_a_dump_embedded_in_a_checkpoint_of_timesformer_describes_its_model(name: str) -> None:
    file = json.dumps(published_timesformer(name))
    build, arguments = parse_description(json.dumps(dump_of(published_timesformer(name), TIMESFORMER_DEFAULTS)))
    assert build is MODELS["timesformer_base"] and meaning_of(arguments) == meaning_of(parse_description(file)[1])


SMALL = {
    "MODEL": {"MODEL_NAME": "MViT", "ARCH": "mvit", "NUM_CLASSES": 5},
    "DATA": {"NUM_FRAMES": 6, "TRAIN_CROP_SIZE": 32, "TEST_CROP_SIZE": 32, "INPUT_CHANNEL_NUM": [3]},
    "MVIT": {
        "EMBED_DIM": 8, "DEPTH": 4, "DIM_MUL": [[1, 2.0], [3, 2.0]], "HEAD_MUL": [[1, 2.0], [3, 2.0]],
        "PATCH_KERNEL": [3, 7, 7], "PATCH_STRIDE": [2, 4, 4], "PATCH_PADDING": [1, 3, 3], "SEP_POS_EMBED": True,
        "POOL_Q_STRIDE": [[1, 1, 2, 2], [3, 1, 2, 2]], "POOL_KV_STRIDE_ADAPTIVE": [1, 4, 4],
        "POOL_KVQ_KERNEL": [3, 3, 3],
    },
}  # fmt: skip


@pytest.mark.parametrize("filled", [False, True], ids=["before", "after"])
def test_a_training_checkpoint_of_slowfast_opens_and_fills_the_model_of_its_settings(
    tmp_path: Path, filled: bool
) -> None:
    dump = dump_of(SMALL, SLOWFAST_DEFAULTS)
    text = json.dumps(fill_kv_strides(dump) if filled else dump)
    build, arguments = parse_description(text)
    source = build(**arguments)
    content = {"epoch": 3, "model_state": mvit_from_ours(source.state_dict(), "slowfast"), "cfg": text}
    torch.save(content, tmp_path / "checkpoint_epoch_00003.pyth")
    opened = from_checkpoint(tmp_path / "checkpoint_epoch_00003.pyth")
    (tmp_path / "cfg.yaml").write_text(text)
    filled_model = build_model(load_config(tmp_path / "cfg.yaml"))
    load_weights(filled_model, tmp_path / "checkpoint_epoch_00003.pyth")
    for model in (opened, filled_model):
        assert all(torch.equal(value, source.state_dict()[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    "text", ["MODEL: 5", "MODEL: []\nDATA: x", "DATA: {NUM_FRAMES: 2024-01-01}", "MVIT: {DEPTH: {A: 3}}"]
)
def test_embedded_settings_of_the_wrong_kind_are_an_error_of_the_file(tmp_path: Path, text: str) -> None:
    dump = dump_of(SMALL, SLOWFAST_DEFAULTS)
    build, arguments = parse_description(json.dumps(dump))
    said = {"MVIT": dump["MVIT"], **yaml.safe_load(text)}
    state = mvit_from_ours(build(**arguments).state_dict(), "slowfast")
    torch.save({"model_state": state, "cfg": yaml.safe_dump(said)}, tmp_path / "a.pyth")
    with pytest.raises(CheckpointError, match="a.pyth"):
        from_checkpoint(tmp_path / "a.pyth")


def test_strides_of_keys_that_contradict_the_adaptive_ones_are_refused_by_both_names(tmp_path: Path) -> None:
    dump = mvit_dump("Kinetics/MVITv2_S_16x4", filled=True)
    dump["MVIT"]["POOL_KV_STRIDE"][3] = [3, 1, 8, 8]
    with pytest.raises(ValueError, match=r"MVIT: POOL_KV_STRIDE and POOL_KV_STRIDE_ADAPTIVE contradict.* at block 3"):
        build_model(load_config(write(tmp_path, dump)))
    del dump["MVIT"]["POOL_KV_STRIDE"][3]
    with pytest.raises(ValueError, match=r"at block 3: the list says nothing"):
        build_model(load_config(write(tmp_path, dump)))


@pytest.mark.parametrize("key", ["DATA.TRAIN_CROP_NUM_SPATIAL", "DATA.TRAIN_CROP_NUM_TEMPORAL", "VIS_MASK.ENABLE"])
def test_several_training_crops_and_drawn_masks_are_refused(tmp_path: Path, key: str) -> None:
    section, _, name = key.partition(".")
    dump = mvit_dump("Kinetics/MVIT_B_16x4_CONV", filled=True)
    dump[section][name] = True if name == "ENABLE" else 2
    with pytest.raises(ValueError, match=f"{key} expects .* not supported"):
        load_config(write(tmp_path, dump))


def test_a_dump_runs_where_there_is_no_gpu(tmp_path: Path) -> None:
    path = write(tmp_path, mvit_dump("Kinetics/MVIT_B_16x4_CONV", filled=True))
    assert load_config(path).dist_backend == "auto"
    assert load_config(path, ["DIST_BACKEND", "nccl"]).dist_backend == "nccl"


def test_the_ignored_keys_of_a_dump_are_one_short_line(tmp_path: Path) -> None:
    _, report = load_config_with_report(write(tmp_path, mvit_dump("Kinetics/MVIT_B_16x4_CONV", filled=True)))
    assert len(report.ignored) > 150
    lines = [line for line in format_report(report).splitlines() if "gnored" in line]
    assert len(lines) == 1 and len(lines[0]) < 600 and "AVA (18 keys)" in lines[0] and "--verbose" in lines[0]
    verbose = format_report(report, verbose=True)
    assert all(f"  {note.key} " in verbose and note.reason in verbose for note in report.ignored)
