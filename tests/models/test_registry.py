"""Every model has a complete spec, and its rules are those that published models were trained and tested with."""

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from videoattn.config import Config
from videoattn.config.load import load_config
from videoattn.engine.optim import build_optimizer
from videoattn.models import MODELS, ModelSpec
from videoattn.models.registry import adapter_of, find_spec, list_families, list_model_types

ROOT = Path(__file__).parents[2]
# Settings, and below the groups of parameters that they make of each model: SHA-256, first 16 digits, of the weight
# decay, scale of the learning rate, and names of each group. Computed when rules were still found by regular
# expressions over the names of models and parameters.
SETTINGS: list[list[object]] = [
    [],
    ["SOLVER.ZERO_WD_1D_PARAM", "True", "SOLVER.LAYER_DECAY", "0.75"],
    ["SOLVER.LAYER_DECAY", "0.75", "MVIT.ZERO_DECAY_POS_CLS", "False"],
]
_TIMESFORMER = ("dcf981ad5638dfda", "d69ce9bc3bf29f4a", "c6e70675fe9ac8f3")
_MVIT_V1 = ("23794f40062e0e5b", "0fb86cc229c70900", "d840085981a374ab")
_X3D = ("0a8211d2d1482360", "1cb10fddcee44658", "b09833f168bd2c0a")
# The clip that a model is published for, the scores that are combined, and the groups.
EXPECTED: dict[str, tuple[tuple[int, int, int], str, tuple[str, str, str]]] = {
    "timesformer_tiny": ((8, 224, 224), "logits", _TIMESFORMER),
    "timesformer_small": ((8, 224, 224), "logits", _TIMESFORMER),
    "timesformer_base": ((8, 224, 224), "logits", _TIMESFORMER),
    "timesformer_base_hr": ((16, 448, 448), "logits", _TIMESFORMER),
    "timesformer_base_l": ((96, 224, 224), "logits", _TIMESFORMER),
    "mvit": ((16, 224, 224), "probabilities", ("074d71096bfb15eb", "be9c5905b909d99b", "7a00421de16503eb")),
    "mvit_v1_b": ((16, 224, 224), "probabilities", _MVIT_V1),
    "mvit_v1_b_32x3": ((32, 224, 224), "probabilities", ("226aedbb767f2448", "d0efaa1859d0771a", "6c0c2befebcf2953")),
    "mvit_v1_b_32x3_depth16": ((32, 224, 224), "probabilities", _MVIT_V1),
    "mvit_v2_s": ((16, 224, 224), "probabilities", ("5cff56582d08b9c9", "c841e1210f8283ae", "ad6706333387273e")),
    "mvit_v2_b": ((32, 224, 224), "probabilities", ("9bf47694a56864bd", "fb9553aaf5c2f958", "9e45f006abd131a0")),
    "mvit_v2_l": ((40, 312, 312), "probabilities", ("8159aa50643f467f", "0153e2190786111b", "6ff0160e6474bab8")),
    "videomae_small": ((16, 224, 224), "probabilities", ("88030425c6aca7c9", "15a51aa9a080832b", "b5fec0f203cc2080")),
    "videomae_base": ((16, 224, 224), "probabilities", ("88030425c6aca7c9", "15a51aa9a080832b", "b5fec0f203cc2080")),
    "videomae_large": ((16, 224, 224), "probabilities", ("b4f19f97232a2e15", "f638439cd723cb02", "a6fd31a8a36488c6")),
    "videomae_huge": ((16, 224, 224), "probabilities", ("edf35e69f2cc5345", "31f4b7d684c604e6", "68f37ec1abadda2f")),
    "vjepa2_large": ((64, 256, 256), "probabilities", ("33a43bd7155797bd", "fccbf9f6df3ca462", "06a1cb6096c7f5aa")),
    "vjepa2_huge": ((64, 256, 256), "probabilities", ("9a906e51a759dca0", "bafe1f9e24cac3fa", "5f67aec09bfa9fa5")),
    "vjepa2_giant": ((64, 256, 256), "probabilities", ("bb097e2a37c4a691", "1d21d549ffa6aa14", "2fe58a74f54ebd72")),
    "vjepa2_giant_384": ((64, 384, 384), "probabilities", ("bb097e2a37c4a691", "1d21d549ffa6aa14", "2fe58a74f54ebd72")),
    "vjepa2_1_base": ((64, 384, 384), "probabilities", ("b3356a32abe9ff86", "4d57a0382773b648", "5a616424858d22cc")),
    "vjepa2_1_large": ((64, 384, 384), "probabilities", ("541ed2b2a85c5c97", "46cb02415886969a", "a4351437d4ebb542")),
    "vjepa2_1_giant": ((64, 384, 384), "probabilities", ("ea34ab0fc74e77d8", "12ec92fde02c552f", "0da136bbf552357a")),
    "vjepa2_1_gigantic": (
        (64, 384, 384),
        "probabilities",
        ("73edea9d597f217e", "4a425109051210cc", "688702d8c775c734"),
    ),
    "pytorchvideo/slow_r50": (
        (8, 224, 224),
        "probabilities",
        ("d93d219206e1723e", "227e444d741ac1d2", "12e55f9405bba09b"),
    ),
    "pytorchvideo/slowfast_r50": (
        (32, 224, 224),
        "probabilities",
        ("a59169567de304bf", "b921e1a60d5f5c9f", "caecb44772926687"),
    ),
    "pytorchvideo/x3d_xs": ((4, 160, 160), "probabilities", _X3D),
    "pytorchvideo/x3d_s": ((13, 160, 160), "probabilities", _X3D),
    "pytorchvideo/x3d_m": ((16, 224, 224), "probabilities", _X3D),
    "pytorchvideo/x3d_l": (
        (16, 312, 312),
        "probabilities",
        ("ebecec7cd2e58abf", "b392050b2a95b098", "edd25257d867d017"),
    ),
    "pytorchvideo/r2plus1d_r50": (
        (16, 224, 224),
        "probabilities",
        ("fe7314eee85d09df", "638e3592df18972a", "9069aa8cf1fb094c"),
    ),
    "pytorchvideo/csn_r101": (
        (32, 224, 224),
        "probabilities",
        ("7aeed7fdd1cd97c0", "00407306a754bada", "03b13d70c3b2f4ee"),
    ),
    "pytorchvideo/mvit_base_16x4": (
        (16, 224, 224),
        "probabilities",
        ("ba7bb6dbd29bbc74", "18fb3dbc55e68006", "4e26617eee10e040"),
    ),
}


def test_every_model_has_its_published_rules() -> None:
    assert list(MODELS) == list(EXPECTED)
    wrong = []
    for name, spec in MODELS.items():
        with torch.device("meta"):
            model: Any = MODELS[name](num_classes=400)  # a spec is called as its constructor
        assert isinstance(model, spec.model)
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        digests = []
        for settings in SETTINGS:
            cfg = load_config(None, ["MODEL.MODEL_NAME", name, "SOLVER.WEIGHT_DECAY", "0.05", *settings])
            groups = build_optimizer(cfg, model, spec).param_groups
            content = [[g["weight_decay"], g["lr_scale"], [names[id(p)] for p in g["params"]]] for g in groups]
            digests.append(hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16])
        found = (spec.clip_size, spec.aggregate, tuple(digests))
        if found != EXPECTED[name] or model.clip_size != spec.clip_size:
            wrong.append((name, found))
    assert not wrong


def test_every_spec_is_complete() -> None:
    for name, spec in MODELS.items():
        assert isinstance(spec, ModelSpec) and issubclass(spec.model, nn.Module)
        assert spec.section in ("", *Config.model_fields), name
        assert (spec.settings(Config()) is None) == (spec.section == "")
        assert spec.adapter.held and all(family in list_families() for family in spec.adapter.families)
    assert [kind.model.__name__ for kind in list_model_types()] == ["TimeSformer", "MViT", "VideoViT", "Baseline"]
    families = ["timesformer", "huggingface", "vit", "slowfast", "torchvision", "pytorchvideo", "videomae", "vjepa2"]
    assert list_families() == ["videoattn", *families]


def test_the_scale_of_learning_rates_falls_from_the_head_to_the_embeddings() -> None:
    for name in ("timesformer_tiny", "mvit_v1_b"):
        spec = MODELS[name]
        with torch.device("meta"):
            model: Any = spec.build()
        layers = {other: spec.layer_of(model, other) for other, _ in model.named_parameters()}
        depth = len(model.blocks)
        assert set(layers.values()) == set(range(depth + 2))
        assert layers["head.weight"] == 0 and layers["patch_embed.proj.weight"] == layers["cls_token"] == depth + 1
        assert layers[f"blocks.{depth - 1}.mlp.fc1.weight"] == 1 and layers["blocks.0.mlp.fc1.weight"] == depth


def test_an_unknown_name_is_refused_with_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"MODEL.MODEL_NAME expects one of .*did you mean pytorchvideo/x3d_m\?"):
        find_spec("x3d_m")
    with pytest.raises(ValueError, match=r"did you mean mvit_v2_s\?"):
        find_spec("mvitv2_s")
    with pytest.raises(ValueError, match="weights are loaded into models of this package, got Linear"):
        adapter_of(nn.Linear(2, 2))


def test_nobody_but_a_models_own_files_asks_for_names() -> None:
    """Names of models and of parameters are compared by prefix or pattern nowhere else."""
    asks = re.compile(
        r"model_name\.(starts|ends)with|re\.\w+\([^\n]*(blocks|embed|cls_token)|startswith\(\W*(blocks|head)"
    )
    own = re.compile(r"videoattn/models/(timesformer/|mvit/|video_vit/|baselines\.py)")
    files = [*(ROOT / "videoattn").rglob("*.py"), *(ROOT / "tools").glob("*.py")]
    asking = [str(file.relative_to(ROOT)) for file in files if asks.search(file.read_text(encoding="utf-8"))]
    assert [name for name in asking if not own.match(name)] == []
    assert asking  # the pattern finds those that may
