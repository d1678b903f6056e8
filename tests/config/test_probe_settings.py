"""Settings of probes without an effect are refused when a config is read."""

import re

import pytest

from videoattn.config.load import load_config
from videoattn.models import build_model

FROZEN = ["MODEL.FREEZE", "encoder"]


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        (["PROBE.LRS", [0.1]], "PROBE.LRS expects MODEL.FREEZE encoder, got none"),
        (["PROBE.WEIGHT_DECAYS", [0.1]], "PROBE.WEIGHT_DECAYS expects MODEL.FREEZE encoder, got none"),
        (["PROBE.CACHE", "x"], "PROBE.CACHE expects MODEL.FREEZE encoder, got none"),
        ([*FROZEN, "PROBE.LRS", [0.1, 0.1]], "PROBE.LRS expects each value once, got [0.1, 0.1]"),
        ([*FROZEN, "PROBE.CACHE_EPOCHS", 2], "PROBE.CACHE_EPOCHS expects PROBE.CACHE"),
        (["PROBE.DEPTH", 2], "PROBE.DEPTH and PROBE.HEADS expect PROBE.TYPE attentive, got linear"),
        ([*FROZEN, "TRAIN.PRECISION", "fp16"], "TRAIN.PRECISION expects fp32 or bf16, since MODEL.FREEZE is encoder"),
        ([*FROZEN, "EMA.ENABLED", True], "EMA.ENABLED expects False, since MODEL.FREEZE is encoder"),
        ([*FROZEN, "SOLVER.LAYER_DECAY", 0.7], "SOLVER.LAYER_DECAY expects 1, since MODEL.FREEZE is encoder"),
        ([*FROZEN, "TIMESFORMER.PRETRAINED_MODEL", "timm:x"], "TIMESFORMER.PRETRAINED_MODEL expects ''"),
        ([*FROZEN, "SOLVER.BASE_LR", 0], "SOLVER.BASE_LR, whose schedule PROBE.LRS follow, expects more than 0"),
        ([*FROZEN, "PROBE.CACHE", "x", "MIXUP.ENABLE", True], "MIXUP.ENABLE expects False, since PROBE.CACHE keeps"),
    ],
)
def test_settings_of_probes_that_have_no_effect_are_refused(pairs: list[object], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        load_config(None, pairs)


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        (["MODEL.MODEL_NAME", "pytorchvideo/x3d_xs", *FROZEN], "MODEL.FREEZE expects none and PROBE.TYPE linear for p"),
        (["PROBE.TYPE", "attentive", "PROBE.HEADS", 7], "PROBE.HEADS expects a divisor of the model's width 768"),
        (["MODEL.MODEL_NAME", "videomae_small", "PROBE.TYPE", "attentive", "VIDEO_VIT.HEAD", "mean"],
         "VIDEO_VIT.HEAD can't stand beside PROBE.TYPE attentive"),
        (["MODEL.MODEL_NAME", "videomae_small", "PROBE.TYPE", "attentive", "VIDEO_VIT.PROBE_DEPTH", 2],
         "VIDEO_VIT.PROBE_DEPTH can't stand beside PROBE.TYPE attentive"),
        (["MODEL.MODEL_NAME", "videomae_small", *FROZEN, "VIDEO_VIT.HEAD", "attentive"],
         "VIDEO_VIT.HEAD attentive with MODEL.FREEZE encoder expects PROBE.TYPE attentive, got linear"),
    ],
)  # fmt: skip
def test_a_model_that_contradicts_its_probe_is_refused(pairs: list[object], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        build_model(load_config(None, pairs))


def test_a_grid_is_the_product_of_its_lists_and_of_the_solvers_values_where_there_is_none() -> None:
    cfg = load_config(None, [*FROZEN, "PROBE.LRS", [0.1, 0.2], "PROBE.WEIGHT_DECAYS", [0, 0.5]])
    assert cfg.probe.list_grid(1.0, 2.0) == [(0.1, 0.0), (0.1, 0.5), (0.2, 0.0), (0.2, 0.5)]
    assert load_config(None, FROZEN).probe.list_grid(1.0, 2.0) == [(1.0, 2.0)]
    assert load_config(None, [*FROZEN, "PROBE.LRS", [0.1]]).probe.list_grid(1.0, 2.0) == [(0.1, 2.0)]
