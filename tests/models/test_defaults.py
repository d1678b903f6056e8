"""Models of the default settings, and errors for settings of which no model can be built."""

from pathlib import Path

import pytest
import torch

from videoattn.config.load import load_config
from videoattn.models import build_model


def test_the_defaults_build() -> None:
    with torch.device("meta"):
        model = build_model(load_config(None))
    assert model.clip_size == (8, 224, 224)


MVIT = ["MODEL.MODEL_NAME", "mvit_v1_b", "DATA.NUM_FRAMES", 16]
X3D = ["MODEL.MODEL_NAME", "pytorchvideo/x3d_s", "DATA.NUM_FRAMES", 13]


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["TIMESFORMER.PATCH_SIZE", 100], "DATA.TRAIN_CROP_SIZE expects a multiple of TIMESFORMER.PATCH_SIZE, got 224"),
        (["TIMESFORMER.PATCH_SIZE", 448], "DATA.TRAIN_CROP_SIZE expects a multiple of TIMESFORMER.PATCH_SIZE, got 224"),
        (["TIMESFORMER.NUM_HEADS", 7], "TIMESFORMER.EMBED_DIM expects a multiple of TIMESFORMER.NUM_HEADS, got 768"),
        (["DATA.NUM_FRAMES", 10_000], "DATA.NUM_FRAMES 10000, .* make 1960000 tokens .* expects at most 1048576"),
        (
            ["DATA.NUM_FRAMES", 1000, "TIMESFORMER.ATTENTION_TYPE", "joint_space_time"],
            "make 196000 tokens of a clip; ATTENTION_TYPE joint expects at most 131072",
        ),
        ([*MVIT, "DATA.NUM_FRAMES", 5000], "MVIT.PATCH_STRIDE .* make 7840000 tokens"),
        ([*MVIT, "DATA.NUM_FRAMES", 15], "DATA.NUM_FRAMES 15, .*T expects a multiple of 2"),
        ([*MVIT, "MVIT.PATCH_PADDING", [0, 0, 0]], "MODEL_NAME mvit_v1_b .*PATCH_PADDING"),
        ([*MVIT, "MVIT.NUM_HEADS", 7], "heads do not divide: see EMBED_DIM, DIM_MUL, NUM_HEADS"),
        ([*MVIT, "MVIT.DEPTH", 3], "MVIT: DIM_MUL expects blocks 0 to 2 of a model of DEPTH 3"),
        (["ATTENTION.TIME", "{NAME: fibonacci, KEEP_SELF: False}"], "ATTENTION.TIME .NAME fibonacci, block 0"),
        (["MODEL.MODEL_NAME", "x3d_m"], "did you mean pytorchvideo/x3d_m"),
        (["MODEL.MODEL_NAME", "timesformer_bas"], "did you mean timesformer_base"),
    ],
)
def test_a_model_that_cannot_be_built_names_the_settings_at_fault(overrides: list[object], words: str) -> None:
    with torch.device("meta"), pytest.raises(ValueError, match=words):
        build_model(load_config(None, overrides))


@pytest.mark.parametrize("size", [1, 7])
def test_a_crop_that_pytorchvideo_refuses_is_an_error_of_the_settings(size: int) -> None:
    crops = ["DATA.TRAIN_CROP_SIZE", size, "DATA.TEST_CROP_SIZE", size]
    with (
        torch.device("meta"),
        pytest.raises(ValueError, match=rf"DATA.TRAIN_CROP_SIZE {size}\) can't be built: pytorchvideo/x3d_s"),
    ):
        build_model(load_config(None, [*X3D, *crops]))


def test_the_clips_config_cut_to_two_epochs_says_which_settings_to_change() -> None:
    path = Path(__file__).parents[2] / "configs" / "Clips" / "TimeSformer_from_K400.yaml"
    with pytest.raises(ValueError, match="SOLVER.WARMUP_EPOCHS 2 expects less than SOLVER.MAX_EPOCH 2.*to 0.2"):
        load_config(path, ["SOLVER.MAX_EPOCH", 2])
    load_config(path, ["SOLVER.MAX_EPOCH", 2, "SOLVER.WARMUP_EPOCHS", 0.2])
