"""Models written as folders that transformers loads: config.json, model.safetensors and preprocessor_config.json."""

import json
import os
import shutil
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from videoattn.models.registry import adapter_of
from videoattn.models.weights.containers import CheckpointError, write_weight_file
from videoattn.models.weights.departures import refuse_replaced_attention
from videoattn.models.weights.transformers_folder import CONFIG, WEIGHTS

_PROCESSORS: dict[str, dict[str, Any]] = {
    "timesformer": {"image_processor_type": "VideoMAEImageProcessor"},
    "videomae": {"image_processor_type": "VideoMAEImageProcessor"},
    "vivit": {"image_processor_type": "VivitImageProcessor", "offset": False},
    "vjepa2": {"video_processor_type": "VJEPA2VideoProcessor"},
}
# as published: TimeSformer's own values, and those of ImageNet
_MEAN_STD: dict[str, tuple[Sequence[float], Sequence[float]]] = {
    "timesformer": ((0.45, 0.45, 0.45), (0.225, 0.225, 0.225)),
    "videomae": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "vivit": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "vjepa2": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}


def save_folder(
    model: Any, folder: str | os.PathLike[str], *, class_names: Sequence[str] | None = None,
    mean: Sequence[float] | None = None, std: Sequence[float] | None = None, as_dense: bool = False,
) -> None:  # fmt: skip
    """Write a model as a folder of transformers, whole or not at all; `from_checkpoint` reads it back.

    `class_names` become id2label, and `mean` and `std` those of preprocessor_config.json, by default the published
    ones of the type of model. Attention methods are left out with `as_dense`, else refused. Raises CheckpointError
    saying why transformers has no class for the model, ValueError for a folder that is not empty, OSError for one that
    can't be written.
    """
    folder, clip_size = Path(folder), model.clip_size
    check_target(folder)
    if not as_dense:
        refuse_replaced_attention(model, "huggingface")
    config, tensors = adapter_of(model).to_transformers(model)
    num_classes = len(class_names) if class_names else getattr(model, "num_classes", 0)
    if class_names and num_classes != model.num_classes:
        raise CheckpointError(f"there are {num_classes} class names for the {model.num_classes} classes of the model")
    if config["architectures"][0].endswith("ForVideoClassification"):
        names = class_names or [f"LABEL_{number}" for number in range(num_classes)]
        config |= {"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}}
    config["dtype"] = str(next(iter(tensors.values())).dtype).removeprefix("torch.")
    processor = _processor(config["model_type"], clip_size, mean, std)
    temporary = folder.parent / f".{folder.name}.{uuid.uuid4().hex}.tmp"
    temporary.mkdir()
    try:
        for name, content in ((CONFIG, config), ("preprocessor_config.json", processor)):
            (temporary / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        write_weight_file(tensors, temporary / WEIGHTS)
        os.replace(temporary, folder)
    except OSError as error:
        raise OSError(error.errno, f"can't write {folder}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def check_target(folder: Path) -> None:
    """Raise ValueError unless a folder can be written there: nothing, or an empty folder, inside an existing one."""
    if not folder.resolve().parent.is_dir():
        raise ValueError(f"OUT {folder}: there is no folder {folder.parent}")
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"OUT {folder}: expected a folder to write, and this is a file")
    if folder.is_dir() and any(folder.iterdir()):
        raise ValueError(f"OUT {folder} is a folder that is not empty, and nothing in it is replaced; name another one")


def _processor(
    model_type: str, clip_size: tuple[int, int, int], mean: Sequence[float] | None, std: Sequence[float] | None
) -> dict[str, Any]:
    """Return the preprocessor_config.json of a model: resizing, centre crop, mean and deviation."""
    _, height, width = clip_size
    means, deviations = _MEAN_STD.get(model_type, _MEAN_STD["videomae"])
    return {
        **_PROCESSORS.get(model_type, {}),
        "do_resize": True,
        "size": {"shortest_edge": max(height, width)},  # which every crop fits in
        "resample": 2,  # bilinear
        "do_center_crop": True,
        "crop_size": {"height": height, "width": width},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(mean or means),
        "image_std": list(std or deviations),
    }
