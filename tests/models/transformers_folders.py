"""Folders of transformers' video classifiers with random weights, one of each type that has attention to replace."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.models.small_models import randomize
from videoattn.compat import import_torchvision
from videoattn.config.load import load_config
from videoattn.models.hub import PREFIX

import_torchvision()
transformers = pytest.importorskip("transformers", reason="transformers is not installed")

SIZES: dict[str, Any] = {
    "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "num_labels": 8, "image_size": 32,
    "num_frames": 8, "patch_size": 8, "intermediate_size": 96,
}  # fmt: skip
WITHOUT = ("image_size", "num_frames", "intermediate_size")


def vjepa2_config() -> Any:
    return transformers.VJEPA2Config(
        **{name: value for name, value in SIZES.items() if name not in WITHOUT}, crop_size=32, frames_per_clip=8,
        num_pooler_layers=2, pred_hidden_size=24, pred_num_attention_heads=2, pred_num_hidden_layers=1,
    )  # fmt: skip


CONFIGS: dict[str, Callable[[], Any]] = {
    "videomae": lambda: transformers.VideoMAEConfig(**SIZES),
    "timesformer": lambda: transformers.TimesformerConfig(**SIZES),
    "vivit": lambda: transformers.VivitConfig(
        **{name: value for name, value in SIZES.items() if name != "patch_size"}, tubelet_size=[2, 8, 8]
    ),
    "vjepa2": vjepa2_config,
}
if hasattr(transformers, "VideoPrismVisionConfig"):  # newer releases
    CONFIGS["videoprism"] = lambda: transformers.VideoPrismVisionConfig(
        **{name: value for name, value in SIZES.items() if name not in ("patch_size", "num_hidden_layers")},
        tubelet_size=[1, 8, 8], num_spatial_layers=2, num_temporal_layers=1, num_auxiliary_layers=1,
    )  # fmt: skip
AXES = {"videomae": ("JOINT",), "timesformer": ("TIME", "SPACE"), "vivit": ("JOINT",), "vjepa2": ("JOINT",)}
CLIP = (8, 32, 32)
CROP: list[Any] = ["DATA.NUM_FRAMES", 8, "DATA.TRAIN_CROP_SIZE", 32, "DATA.TEST_CROP_SIZE", 32]


def write_folders(place: Path) -> Path:
    """Write a folder of each type, as transformers does; return the folder that they are in."""
    for name, config in CONFIGS.items():
        model = transformers.AutoModelForVideoClassification.from_config(config())
        randomize(model).save_pretrained(place / name)  # type: ignore[operator]
    return place


def settings(folder: Path, *more: Any) -> Any:
    return load_config(None, ["MODEL.MODEL_NAME", f"{PREFIX}{folder}", "MODEL.NUM_CLASSES", 8, *CROP, *more])
