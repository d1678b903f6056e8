import copy
import logging
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.operators.sites import other_values
from videoattn.config import Config
from videoattn.config.load import dump_config, load_config
from videoattn.grid import TokenGrid
from videoattn.models import build_model
from videoattn.models.weights.departures import describe_data
from videoattn.models.weights.load import CheckpointError, LoadReport, from_checkpoint, load_weights, save_weights
from videoattn.operators import OPERATORS, AttentionSite
from videoattn.operators.options import options_of
from videoattn.seeding import torch_seed

SMALL = (
    "MODEL.MODEL_NAME timesformer_tiny MODEL.NUM_CLASSES 3 TIMESFORMER.EMBED_DIM 24 TIMESFORMER.NUM_HEADS 3 "
    "TIMESFORMER.DEPTH 3 TIMESFORMER.PATCH_SIZE 8 DATA.NUM_FRAMES 4 DATA.SAMPLING_RATE 2 "
    "DATA.TRAIN_JITTER_SCALES [32,40] DATA.TRAIN_CROP_SIZE 24 DATA.TEST_CROP_SIZE 24 "
    "ATTENTION.TIME.NAME fibonacci ATTENTION.SPACE.NAME fibonacci"
).split()
JOINT = ["TIMESFORMER.ATTENTION_TYPE", "joint_space_time", "ATTENTION.SPACE.NAME", "dense", "ATTENTION.TIME.NAME",
         "dense", "ATTENTION.JOINT.NAME", "fibonacci"]  # fmt: skip
MVIT = (
    "MODEL.MODEL_NAME mvit MODEL.NUM_CLASSES 3 MVIT.EMBED_DIM 8 MVIT.DEPTH 2 MVIT.PATCH_KERNEL [3,7,7] "
    "MVIT.PATCH_STRIDE [2,4,4] MVIT.PATCH_PADDING [1,3,3] MVIT.POOL_Q_STRIDE [[1,1,2,2]] MVIT.POOL_KV_STRIDE_ADAPTIVE "
    "[1,2,2] MVIT.POOL_KVQ_KERNEL [3,3,3] MVIT.SEP_POS_EMBED True DATA.NUM_FRAMES 4 DATA.TRAIN_CROP_SIZE 32 "
    "DATA.TEST_CROP_SIZE 32 DATA.TRAIN_JITTER_SCALES [32,40]"
).split()


def saved(folder: Path, settings: list[str], **content: object) -> Path:
    """A training checkpoint of the model that the settings describe."""
    cfg = load_config(None, settings)
    with torch_seed(0):
        model = build_model(cfg)
    path = folder / "trained.pyth"
    torch.save({"model_state": model.state_dict(), "cfg": dump_config(cfg), **content}, path)
    return path


def loaded(path: Path, settings: list[str]) -> tuple[LoadReport, Config, nn.Module]:
    cfg = load_config(None, settings)
    model = build_model(cfg)
    return load_weights(model, path, data=describe_data(cfg, testing=True)), cfg, model


@pytest.mark.parametrize("settings", [SMALL, [*SMALL, *JOINT], MVIT], ids=["divided", "joint", "mvit"])
def test_a_files_own_settings_have_no_departure(
    tmp_path: Path, settings: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    report, _, _ = loaded(saved(tmp_path, settings), settings)
    assert report.departures == [] and not [one for one in caplog.records if "operators" not in one.name]


@pytest.mark.parametrize(
    "base, change, expected",
    [
        (SMALL, "ATTENTION.TIME.NAME dense", ("ATTENTION.TIME", "fibonacci", "dense")),
        (SMALL, "ATTENTION.SPACE.NAME dense", ("ATTENTION.SPACE", "fibonacci", "dense")),
        (SMALL, "ATTENTION.TIME.VARIANT wythoff", ("ATTENTION.TIME", "fibonacci", "fibonacci (VARIANT wythoff)")),
        (SMALL, "ATTENTION.TIME.SEMANTICS zero_logit",
         ("ATTENTION.TIME", "fibonacci", "fibonacci (SEMANTICS zero_logit)")),
        (SMALL, "ATTENTION.SPACE.HEADS_PERMUTATION none",
         ("ATTENTION.SPACE", "fibonacci", "fibonacci (HEADS_PERMUTATION none)")),
        (SMALL, "ATTENTION.SPACE.GEOMETRY axial", ("ATTENTION.SPACE", "fibonacci", "fibonacci (GEOMETRY axial)")),
        (SMALL, "ATTENTION.SPACE.LAYERS 0,2",
         ("ATTENTION.SPACE", "fibonacci", "fibonacci in blocks 0, 2, dense in block 1")),
        ([*SMALL, *JOINT], "ATTENTION.JOINT.ORDER hwt", ("ATTENTION.JOINT", "fibonacci", "fibonacci (ORDER hwt)")),
        (SMALL, "ATTENTION.SKIP.TIME 1-2 ATTENTION.SKIP.PHI identity",
         ("ATTENTION.TIME", "fibonacci", "fibonacci in block 0, skipped (PHI identity) in blocks 1-2")),
        (SMALL, "ATTENTION.SKIP.TIME 1 ATTENTION.SKIP.PHI weights",
         ("ATTENTION.TIME", "fibonacci", "fibonacci in blocks 0, 2, skipped (PHI weights) in block 1")),
        (SMALL, "DATA.SAMPLING_RATE 1", ("DATA.SAMPLING_RATE", "2", "1")),
        (SMALL, "DATA.TARGET_FPS 10", ("DATA.TARGET_FPS", "30.0", "10.0")),
        (SMALL, "DATA.MEAN [0.5,0.5,0.5]", ("DATA.MEAN", "[0.45, 0.45, 0.45]", "[0.5, 0.5, 0.5]")),
        (SMALL, "DATA.STD [0.2,0.2,0.2]", ("DATA.STD", "[0.225, 0.225, 0.225]", "[0.2, 0.2, 0.2]")),
        (SMALL, "DATA.REVERSE_INPUT_CHANNEL True", ("channel order (DATA.REVERSE_INPUT_CHANNEL)", "RGB", "BGR")),
        (SMALL, "TEST.DATASET ssv2", ("DATA.SAMPLING", "dense", "segments")),
        (SMALL, "TEST.NUM_SPATIAL_CROPS 1 DATA.TRAIN_JITTER_SCALES [64,80]",
         ("short side (DATA.TRAIN_JITTER_SCALES)", "32", "64")),
        (SMALL, "DATA.DECODING_SHORT_SIZE 24", ("DATA.DECODING_SHORT_SIZE", "0", "24")),
        (SMALL, "DATA.FRAMES_FPS 12", ("DATA.FRAMES_FPS", "0.0", "12.0")),
        (MVIT, "MVIT.PATCH_PADDING [1,2,2]", ("MVIT.PATCH_PADDING", "1x3x3", "1x2x2")),
        (MVIT, "MVIT.POOL_KV_STRIDE_ADAPTIVE [1,4,4]",
         ("MVIT.POOL_KV_STRIDE", "1x2x2 in block 0, 1x1x1 in block 1", "1x4x4 in block 0, 1x2x2 in block 1")),
        (MVIT, "MVIT.RESIDUAL_POOLING True", ("MVIT.RESIDUAL_POOLING", "False", "True")),
        (MVIT, "ATTENTION.JOINT.NAME fibonacci", ("ATTENTION.JOINT", "dense", "fibonacci")),
    ],
)  # fmt: skip
def test_a_changed_setting_is_named_once(
    tmp_path: Path, base: list[str], change: str, expected: tuple[str, str, str], caplog: pytest.LogCaptureFixture
) -> None:
    report, _, _ = loaded(saved(tmp_path, base), [*base, *change.split()])
    assert report.departures == [expected]
    records = [record for record in caplog.records if record.name == "videoattn.models.weights.load"]
    (warning,) = [record.getMessage() for record in records if record.levelno == logging.WARNING]
    assert f"{tmp_path}/trained.pyth: the weights were trained with other settings" in warning
    assert f"  {expected[0]}: {expected[2]} here, {expected[1]} in the checkpoint" in warning


def test_how_attention_is_computed_is_no_departure(tmp_path: Path) -> None:
    report, _, _ = loaded(saved(tmp_path, SMALL), [*SMALL, "ATTENTION.TIME.IMPLEMENTATION", "masked"])
    assert report.departures == []


def test_frames_and_crop_of_resized_weights_are_named(tmp_path: Path) -> None:
    path = saved(tmp_path, SMALL)
    cfg = load_config(None, [*SMALL, *"DATA.NUM_FRAMES 6 DATA.TRAIN_CROP_SIZE 32 DATA.TEST_CROP_SIZE 32".split()])
    report = load_weights(build_model(cfg), path, allow_resize=True, data=describe_data(cfg, testing=True))
    assert report.departures == [("DATA.NUM_FRAMES", "4", "6"), ("crop (DATA.TEST_CROP_SIZE)", "24", "32")]


def test_a_model_built_in_python_is_compared_by_what_it_is(tmp_path: Path) -> None:
    path = saved(tmp_path, SMALL)
    report = load_weights(build_model(load_config(None, [*SMALL, "ATTENTION.TIME.NAME", "dense"])), path)
    assert report.departures == [("ATTENTION.TIME", "fibonacci", "dense")]


def test_given_operators_of_from_checkpoint_are_compared(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    from_checkpoint(saved(tmp_path, SMALL), operators={})
    records = [record for record in caplog.records if record.name == "videoattn.models.weights.load"]
    (warning,) = [record.getMessage() for record in records if record.levelno == logging.WARNING]
    assert "ATTENTION.TIME: dense here, fibonacci in the checkpoint" in warning
    assert "ATTENTION.SPACE: dense here, fibonacci in the checkpoint" in warning


def test_other_class_names_are_named(tmp_path: Path) -> None:
    path = saved(tmp_path, SMALL, class_names=["open door", "close door", "wave"])
    cfg = load_config(None, SMALL)
    for names, expected in (
        (["open_door", "Close Door", "wave"], []),
        (["open door", "shut door", "greet"], [("name of class 1 and 1 more", "'close door'", "'shut door'")]),
        (None, []),
    ):
        data = describe_data(cfg, testing=True, class_names=names)
        assert load_weights(build_model(cfg), path, data=data).departures == expected


def test_a_bare_file_says_nothing_to_compare(tmp_path: Path) -> None:
    cfg = load_config(None, SMALL)
    path = tmp_path / "bare.pyth"
    torch.save({"model_state": build_model(cfg).state_dict()}, path)
    assert load_weights(build_model(cfg), path, data=describe_data(cfg, testing=True)).departures is None


def test_settings_that_cannot_be_read_are_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cfg = load_config(None, SMALL)
    path = tmp_path / "odd.pyth"
    torch.save({"model_state": build_model(cfg).state_dict(), "cfg": "DATA: {NUM_FRAMEZ: 4}"}, path)
    assert load_weights(build_model(cfg), path, data=describe_data(cfg, testing=True)).departures is None
    assert "its own settings can't be read, so they are not compared" in caplog.text and "NUM_FRAMEZ" in caplog.text


def test_layers_that_a_file_does_not_fill_are_refused_where_they_must_be_filled(tmp_path: Path) -> None:
    path = saved(tmp_path, [*SMALL, "ATTENTION.TIME.NAME", "dense"])
    model = build_model(load_config(None, [*SMALL, "ATTENTION.TIME.NAME", "lisa"]))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    message = r"trained.pyth: .* 9 tensors .*operator\.r1 \(3\).*TEST.ALLOW_NEW_LAYERS"
    with pytest.raises(CheckpointError, match=message):
        load_weights(model, path, allow_new_layers=False)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert len(load_weights(model, path).initialised) == 9


@pytest.mark.parametrize("name", OPERATORS)
def test_an_operator_keeps_every_option_that_changes_its_result(name: str) -> None:
    """A forgotten option would hide a departure."""
    site = AttentionSite(TokenGrid(2, 3, 4, 1), TokenGrid(2, 3, 4, 1), num_heads=2, head_dim=4, block=1)
    assert OPERATORS[name](site).options == {}
    for option in options_of(OPERATORS[name]).values():
        if option.name in OPERATORS[name].HOW:
            continue
        for other in other_values(option):
            operator = OPERATORS[name](site, **{option.name: other})
            assert operator.options == copy.deepcopy(operator).options == {option.name: other}
        assert OPERATORS[name](site, **{option.name: option.default}).options == {}


def test_integers_are_no_weights(tmp_path: Path) -> None:
    model = build_model(load_config(None, SMALL))
    state = model.state_dict()
    path = tmp_path / "integers.pyth"
    torch.save({"model_state": state | {"norm.weight": state["norm.weight"].long()}}, path)
    with pytest.raises(CheckpointError, match=r"of another type: norm.weight torch.int64 instead of torch.float32"):
        load_weights(model, path)


def test_a_file_that_says_only_its_clip_size_is_not_compared(tmp_path: Path) -> None:
    cfg = load_config(None, SMALL)
    model = build_model(cfg)
    path = tmp_path / "converted.pyth"
    save_weights(model.state_dict(), path, "timesformer", num_heads=3, clip_size=(4, 24, 24))
    assert load_weights(model, path, data=describe_data(cfg, testing=True)).departures is None


def test_a_model_that_this_version_does_not_have_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cfg = load_config(None, SMALL)
    path = tmp_path / "newer.pyth"
    text = dump_config(cfg).replace("timesformer_tiny", "timesformer_huge")
    torch.save({"model_state": build_model(cfg).state_dict(), "cfg": text}, path)
    assert load_weights(build_model(cfg), path).departures is None and "timesformer_huge" in caplog.text
    with pytest.raises(CheckpointError, match="newer.pyth: MODEL.MODEL_NAME expects one of .*timesformer_huge"):
        from_checkpoint(path)


def test_weights_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    model = build_model(load_config(None, SMALL))
    state = model.state_dict()
    torch.save({"model_state": state | {"norm.bias": state["norm.bias"] * torch.nan}}, tmp_path / "nan.pyth")
    with pytest.raises(CheckpointError, match="nan.pyth: .*1 not finite: norm.bias"):
        load_weights(model, tmp_path / "nan.pyth")
