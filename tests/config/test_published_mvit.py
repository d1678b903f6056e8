"""SlowFast's files of MViT: what they are read as, and that ours mean the same."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from videoattn.config.load import ConfigError, changed_keys, dump_config, load_config, load_config_with_report
from videoattn.models import MViT, build_model

OURS = Path(__file__).parents[2] / "configs"
STAGES = {"S": (16, (1, 3, 14)), "B": (24, (2, 5, 21)), "L": (48, (2, 8, 44))}


def published(name: str) -> dict[str, Any]:
    """The keys and values of an official configuration of MViT, by the path of ours."""
    ssv2, v2, large = name.startswith("SSv2"), "MVITv2" in name, "_L_" in name
    frames, rate = map(int, name.split("_")[2].split("x"))
    depth, layers = STAGES["S" if frames == 16 else "L" if large else "B"]
    doubling = [[layer, 2.0] for layer in layers]
    every = [[i, 1, 2, 2] if i in layers else [i, 1, 1, 1] for i in range(depth)]
    jitter = [0.08, 1.0], [0.75, 1.3333]
    cfg: dict[str, Any] = {
        "TRAIN": {"ENABLE": "test" not in name},
        "DATA": {
            "DECODING_BACKEND": "torchvision", "NUM_FRAMES": frames, "SAMPLING_RATE": rate, "INPUT_CHANNEL_NUM": [3],
            "TRAIN_JITTER_SCALES": [356, 446] if large else [256, 320], "TRAIN_CROP_SIZE": 312 if large else 224,
            "TEST_CROP_SIZE": 312 if large else 224,
            **({"INV_UNIFORM_SAMPLE": True, "RANDOM_FLIP": False, "REVERSE_INPUT_CHANNEL": True} if ssv2 else {
                "USE_OFFSET_SAMPLING": True, "TRAIN_JITTER_SCALES_RELATIVE": jitter[0],
                "TRAIN_JITTER_ASPECT_RELATIVE": jitter[1],
            }),
            **({"MEAN": [0.485, 0.456, 0.406], "STD": [0.229, 0.224, 0.225]} if large else {}),
        },
        "MVIT": {
            "ZERO_DECAY_POS_CLS": False, "DEPTH": depth, "NUM_HEADS": 2 if large else 1,
            "EMBED_DIM": 144 if large else 96, "PATCH_KERNEL": [3, 7, 7], "PATCH_STRIDE": [2, 4, 4],
            "PATCH_PADDING": [1, 3, 3], "MLP_RATIO": 4.0, "QKV_BIAS": True, "NORM": "layernorm", "MODE": "conv",
            "DROPPATH_RATE": 0.75 if large else 0.4 if ssv2 else 0.2 if frames == 16 else 0.3,
            "CLS_EMBED_ON": True, "DIM_MUL": doubling, "HEAD_MUL": doubling, "POOL_KV_STRIDE_ADAPTIVE": [1, 8, 8],
            "DROPOUT_RATE": 0.0,
            **({"USE_ABS_POS": False, "REL_POS_SPATIAL": True, "REL_POS_TEMPORAL": True, "DIM_MUL_IN_ATT": True,
                "RESIDUAL_POOLING": True, "POOL_Q_STRIDE": every} if v2 else {
                "SEP_POS_EMBED": True, "POOL_Q_STRIDE": [[layer, 1, 2, 2] for layer in layers]}),
            **({"POOL_KVQ_KERNEL": [3, 3, 3]} if v2 or frames == 16 else {}),
        },
        "AUG": {"ENABLE": True, "COLOR_JITTER": 0.4, "AA_TYPE": "rand-m7-n4-mstd0.5-inc1", "INTERPOLATION": "bicubic",
                "NUM_SAMPLE": 1 if ssv2 or large else 2, "RE_PROB": 0.25, "RE_MODE": "pixel", "RE_COUNT": 1,
                "RE_SPLIT": False},
        "MIXUP": {"ENABLE": True, "ALPHA": 0.8, "CUTMIX_ALPHA": 1.0, "PROB": 0.0 if large else 1.0,
                  "SWITCH_PROB": 0.5, "LABEL_SMOOTH_VALUE": 0.1},
        "MODEL": {"NUM_CLASSES": 174 if ssv2 else 400, "ARCH": "mvit", "MODEL_NAME": "MViT",
                  "LOSS_FUNC": "soft_cross_entropy", "DROPOUT_RATE": 0.5},
        "TEST": {"ENABLE": True, "DATASET": "ssv2" if ssv2 else "kinetics", "BATCH_SIZE": 8 if large else 64,
                 "NUM_SPATIAL_CROPS": 3 if ssv2 or large else 1},
        "DATA_LOADER": {"NUM_WORKERS": 2 if ssv2 else 8, "PIN_MEMORY": True},
        "NUM_GPUS": 8, "NUM_SHARDS": 1, "RNG_SEED": 0, "OUTPUT_DIR": ".",
    }  # fmt: skip
    if v2 or ssv2:
        cfg["TEST"]["NUM_ENSEMBLE_VIEWS"] = 1 if ssv2 else 5
    if large:
        cfg["MODEL"]["ACT_CHECKPOINT"] = True
    if cfg["TRAIN"]["ENABLE"]:
        cfg["TRAIN"] |= {"DATASET": "ssv2" if ssv2 else "kinetics", "BATCH_SIZE": 8 if large else 16,
                         "EVAL_PERIOD": 2 if ssv2 else 10, "CHECKPOINT_PERIOD": 1 if large else 2 if ssv2 else 10,
                         "AUTO_RESUME": True}  # fmt: skip
        cfg["SOLVER"] = {
            "ZERO_WD_1D_PARAM": True, "BASE_LR_SCALE_NUM_SHARDS": True, "COSINE_AFTER_WARMUP": True,
            "COSINE_END_LR": 1e-6, "LR_POLICY": "cosine", "MOMENTUM": 0.9,
        }  # fmt: skip
        cfg["SOLVER"] |= {
            "BASE_LR": 0.00125 if large else 0.0025 if frames == 16 else 0.0015, "WARMUP_EPOCHS": 3.0,
            "WARMUP_START_LR": 1e-6 if large else 1e-4, "MAX_EPOCH": 40 if large else 100, "WEIGHT_DECAY": 1e-4,
            "OPTIMIZING_METHOD": "sgd",
        } if ssv2 else {
            "BASE_LR": 1e-4, "WARMUP_EPOCHS": 30.0, "WARMUP_START_LR": 1e-6, "MAX_EPOCH": 200, "WEIGHT_DECAY": 0.05,
            "OPTIMIZING_METHOD": "adamw",
        }  # fmt: skip
        if not ssv2 or large:
            cfg["SOLVER"]["CLIP_GRAD_L2NORM"] = 2.0 if large else 1.0
    if ssv2:
        cfg["TRAIN"] |= {"CHECKPOINT_TYPE": "pytorch", "CHECKPOINT_EPOCH_RESET": True}
        cfg["PREFETCH"] = {"NUM_LOADERS": 3}
        if large:
            cfg["TRAIN"]["CHECKPOINT_IN_INIT"] = True
    return cfg


NAMES = [path.relative_to(OURS).with_suffix("").as_posix() for path in sorted(OURS.glob("*/MVIT*.yaml"))
         if "K600" not in path.stem]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_an_official_file_loads_as_it_is_and_builds_the_model_that_ours_builds(tmp_path: Path, name: str) -> None:
    path = tmp_path / "cfg.yaml"
    path.write_text(json.dumps(published(name)))
    theirs, ours = load_config(path), load_config(OURS / f"{name}.yaml")
    with torch.device("meta"):
        models = [build_model(cfg) for cfg in (theirs, ours)]
    assert isinstance(models[0], MViT) and isinstance(models[1], MViT)
    shapes = [{key: value.shape for key, value in model.state_dict().items()} for model in models]
    assert shapes[0] == shapes[1]
    plans = [[block.plan for block in model.blocks] for model in models]
    assert plans[0] == plans[1]
    assert [block.drop_path.rate for block in models[0].blocks] == [block.drop_path.rate for block in models[1].blocks]


@pytest.mark.parametrize("name", NAMES)
def test_an_official_file_trains_and_evaluates_as_ours_does(tmp_path: Path, name: str) -> None:
    path = tmp_path / "cfg.yaml"
    path.write_text(json.dumps(published(name)))
    changed = changed_keys(dump_config(load_config(OURS / f"{name}.yaml")), dump_config(load_config(path)))
    allowed = {"OUTPUT_DIR", "MODEL.MODEL_NAME", "TRAIN.CHECKPOINT_EPOCH_RESET", "TRAIN.FINETUNE"}
    if "NUM_ENSEMBLE_VIEWS" not in published(name)["TEST"]:
        allowed |= {"TEST.NUM_ENSEMBLE_VIEWS"}  # our files have the number that the published accuracy is of
    if "test" in name:  # it holds no recipe
        allowed |= {"SOLVER", "TRAIN"}
    different = {key for key in changed if not key.startswith("MVIT.")}
    assert {key for key in different if key not in allowed and key.split(".")[0] not in allowed} == set()


def test_a_repeated_key_of_a_published_file_counts_last_and_is_reported(tmp_path: Path) -> None:
    path = tmp_path / "cfg.yaml"
    path.write_text("MODEL: {MODEL_NAME: MViT}\nMVIT:\n  DEPTH: 16\n  SEP_POS_EMBED: True\n  DEPTH: 24\n")
    cfg, report = load_config_with_report(path)
    assert cfg.mvit.depth == 24
    note = report.translated[0]
    assert (note.key, note.value, note.source) == ("MVIT.DEPTH", 24, f"{path}:5")
    assert note.reason == f"the last of several; it first stands at {path}:3"
    path.write_text("MODEL: {MODEL_NAME: mvit}\nMVIT:\n  DEPTH: 16\n  DEPTH: 24\n")
    with pytest.raises(ConfigError, match="MVIT.DEPTH is repeated"):
        load_config(path)


def test_channels_are_those_that_the_published_weights_saw() -> None:
    mvit = ["MODEL.MODEL_NAME", "MViT"]
    ssv2 = [*mvit, "TRAIN.DATASET", "ssv2"]
    assert load_config(None, mvit).data.reverse_input_channel is False
    assert load_config(None, ssv2).data.reverse_input_channel is True


@pytest.mark.parametrize(
    ("key", "value"),
    [("MVIT.MODE", "max"), ("MVIT.POOL_FIRST", "True"), ("MVIT.REV.ENABLE", "True"), ("MVIT.USE_MEAN_POOLING", "True")],
)
def test_what_only_other_mvits_have_is_refused(key: str, value: str) -> None:
    with pytest.raises(ConfigError, match=f"{key} expects .*not supported"):
        load_config(None, [key, value])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["MVIT.DIM_MUL", "[[16, 2.0]]"], "MVIT: DIM_MUL expects blocks 0 to 15 of a model of DEPTH 16"),
        (["MVIT.DIM_MUL", "[[2, 1.3]]"], "DIM_MUL 1.3 at block 2 does not make a whole number of"),
        (["MVIT.HEAD_MUL", "[[2, 5.0]]"], "heads do not divide"),
        (["DATA.NUM_FRAMES", "15"], "must divide the clip, got T x H x W = 15 x 224 x 224: T expects a multiple of 2"),
        (["MVIT.SEP_POS_EMBED", "False"], "MVIT.SEP_POS_EMBED expects True"),
        (["ATTENTION.TIME.NAME", "fibonacci"], "attends along JOINT alone"),
        (["MVIT.POOL_KV_STRIDE", "[[0, 1, 2, 2]]", "MVIT.POOL_KV_STRIDE_ADAPTIVE", "[1, 8, 8]"], "contradict"),
    ],
)
def test_settings_that_fit_no_model_are_refused_by_name(overrides: list[str], message: str) -> None:
    names = ["MODEL.MODEL_NAME", "mvit_v1_b", "DATA.NUM_FRAMES", "16", "DATA.TEST_CROP_SIZE", "224"]
    with torch.device("meta"), pytest.raises(ValueError, match=message.replace("[", r"\[")):
        build_model(load_config(None, [*names, *overrides]))
