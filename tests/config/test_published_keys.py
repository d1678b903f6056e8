"""Published SlowFast and TimeSformer files: how they are read, and which keys are reported or refused."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from videoattn.config import Config
from videoattn.config.ignored_keys import IGNORED, MODELS_OF_ARCH, UNSUPPORTED_MODELS
from videoattn.config.load import (
    ConfigError,
    changed_keys,
    dump_config,
    format_report,
    load_config,
    load_config_with_report,
)
from videoattn.config.published_keys import SLOWFAST_DEFAULTS, TIMESFORMER_DEFAULTS, TRANSLATED
from videoattn.models.baselines import BASELINES, PREFIX

IMAGENET_VIT = "timm:vit_base_patch16_224.orig_in21k_ft_in1k"


def write(folder: Path, text: str, name: str = "cfg.yaml") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def problems_of(path: Path | None, *overrides: object) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides)
    return list(caught.value.problems)


def published(name: str) -> dict[str, Any]:
    """The keys and values of an official TimeSformer configuration, by its name without `TimeSformer_`."""
    ssv2 = name in ("divST_8_224", "divST_16_448", "divST_64_224")
    frames = int(name.split("_")[1].split("x")[0])
    size = 448 if "448" in name else 224
    four = "4gpus" in name
    cfg: dict[str, Any] = {
        "TRAIN": {
            "ENABLE": "TEST" not in name, "DATASET": "ssv2" if ssv2 else "kinetics", "BATCH_SIZE": 4 if four else 8,
            "EVAL_PERIOD": 5, "CHECKPOINT_PERIOD": 5, "AUTO_RESUME": True,
        },
        "DATA": {
            "PATH_TO_DATA_DIR": "/path/to/kinetics/", "NUM_FRAMES": frames, "TEST_CROP_SIZE": size,
            "TRAIN_JITTER_SCALES": [448, 512] if size == 448 else [256, 320], "TRAIN_CROP_SIZE": size,
            "INPUT_CHANNEL_NUM": [3],
        },
        "TIMESFORMER": {
            "ATTENTION_TYPE": {"d": "divided_space_time", "j": "joint_space_time", "s": "space_only"}[name[0]],
        },
        "SOLVER": {
            "BASE_LR": 0.005, "LR_POLICY": "steps_with_relative_lrs", "STEPS": [0, 11, 14], "LRS": [1, 0.1, 0.01],
            "MAX_EPOCH": 15, "MOMENTUM": 0.9, "WEIGHT_DECAY": 1e-4, "OPTIMIZING_METHOD": "sgd",
        },
        "MODEL": {
            "MODEL_NAME": "vit_base_patch16_224", "NUM_CLASSES": 174 if ssv2 else 400, "ARCH": "vit",
            "LOSS_FUNC": "cross_entropy", "DROPOUT_RATE": 0.5,
        },
        "TEST": {
            "ENABLE": True, "DATASET": "ssv2" if ssv2 else "kinetics", "BATCH_SIZE": 4 if four else 8,
            "NUM_ENSEMBLE_VIEWS": 1, "NUM_SPATIAL_CROPS": 3,
        },
        "DATA_LOADER": {"NUM_WORKERS": 4 if four or ssv2 else 8, "PIN_MEMORY": True},
        "NUM_GPUS": 4 if four else 8, "NUM_SHARDS": 1, "RNG_SEED": 0, "OUTPUT_DIR": ".",
    }  # fmt: skip
    if ssv2:
        cfg["DATA"] |= {
            "PATH_TO_DATA_DIR": " /path/to/ssv2/annotations/", "PATH_PREFIX": "/path/to/ssv2/frames/",
            "INV_UNIFORM_SAMPLE": True, "RANDOM_FLIP": False, "REVERSE_INPUT_CHANNEL": True,
        }  # fmt: skip
    else:
        cfg["DATA"]["SAMPLING_RATE"] = int(name.split("_")[1].split("x")[1])
    if "TEST" in name:
        cfg["TEST"]["CHECKPOINT_FILE_PATH"] = "/checkpoints/checkpoint_epoch_00025.pyth"
    return cfg


KINETICS = [
    "divST_8x32_224", "divST_8x32_224_4gpus", "divST_8x32_224_TEST", "jointST_8x32_224", "spaceOnly_8x32_224",
    "divST_16x16_448", "divST_96x4_224",
]  # fmt: skip
SSV2 = ["divST_8_224", "divST_16_448", "divST_64_224"]
OURS = Path(__file__).parents[2] / "configs"


@pytest.mark.parametrize("name", KINETICS + SSV2)
def test_an_official_file_loads_as_it_is_and_means_what_ours_means(tmp_path: Path, name: str) -> None:
    original = published(name)
    cfg, report = load_config_with_report(write(tmp_path, yaml.safe_dump(original)))
    ours = load_config(OURS / ("SSv2" if name in SSV2 else "Kinetics") / f"TimeSformer_{name}.yaml")
    changed = changed_keys(dump_config(ours), dump_config(cfg))
    places = {"DATA.PATH_TO_DATA_DIR", "DATA.PATH_PREFIX", "OUTPUT_DIR", "TRAIN.CHECKPOINT_EPOCH_RESET"}
    if "TEST" in name:
        places |= {"TEST.CHECKPOINT_FILE_PATH", "TIMESFORMER.PRETRAINED_MODEL"}
    assert set(changed) <= places
    assert (cfg.model.model_name, cfg.global_batch_size) == ("timesformer_base", 64)
    assert cfg.timesformer.pretrained_model == IMAGENET_VIT

    ignored = {note.key: note.value for note in report.ignored}
    gpus = original["NUM_GPUS"]
    assert ignored == {
        "DATA.INPUT_CHANNEL_NUM": (3,), "MODEL.ARCH": "vit", "MODEL.LOSS_FUNC": "cross_entropy",
        "NUM_GPUS": gpus, "NUM_SHARDS": 1, "TEST.ENABLE": original["TEST"]["ENABLE"],
    }  # fmt: skip
    translated = [note.key for note in report.translated]
    paths = ["DATA.PATH_TO_DATA_DIR"] if name in SSV2 else []
    channels = ["DATA.REVERSE_INPUT_CHANNEL"] if name in SSV2 else []
    defaults = ["GLOBAL_BATCH_SIZE", "TIMESFORMER.PRETRAINED_MODEL", "TRAIN.CHECKPOINT_EPOCH_RESET"]
    assert translated == ["MODEL.MODEL_NAME", *paths, *defaults[:2], "MODEL.DROPOUT_RATE", *defaults[2:], *channels]
    assert cfg.data.path_to_data_dir == original["DATA"]["PATH_TO_DATA_DIR"].strip()
    assert cfg.data.reverse_input_channel == (name in SSV2)


def test_the_report_names_key_value_line_and_reason(tmp_path: Path) -> None:
    path = write(tmp_path, "NUM_GPUS: 8\nMODEL:\n  NUM_CLASSES: 5\n  HEAD_ACT: softmax\nMIXUP: {ENABLED: True}")
    cfg, report = load_config_with_report(path)
    assert cfg.mixup.enable is True
    assert format_report(report).splitlines() == [
        "Ignored keys: NUM_GPUS, MODEL.HEAD_ACT (--verbose says why)",
        "Published settings, as they are read here:",
        "  MIXUP.ENABLED True: read as MIXUP.ENABLE True: TimeSformer's name",
    ]
    assert format_report(report, verbose=True).splitlines() == [
        "Ignored keys:",
        f"  NUM_GPUS 8 ({path}:1): the launcher decides how many processes and machines there are",
        f"  MODEL.HEAD_ACT 'softmax' ({path}:4): models return logits here; "
        "TEST.AGGREGATE says what evaluation adds up",
        "Published settings, as they are read here:",
        f"  MIXUP.ENABLED True ({path}:5): read as MIXUP.ENABLE True: TimeSformer's name",
    ]
    assert format_report(load_config_with_report(None)[1]) == ""


OFFICIAL = ["MODEL.MODEL_NAME", "vit_base_patch16_224"]


@pytest.mark.parametrize(
    ("overrides", "key", "value"),
    [
        (["TRAIN.MIXED_PRECISION", "True"], "TRAIN.PRECISION", "fp16"),
        (["TRAIN.MIXED_PRECISION", "False"], "TRAIN.PRECISION", "fp32"),
        (["DATA.DECODING_BACKEND", "torchvision"], "DATA.DECODING_BACKEND", "auto"),
        (["SOLVER.OPTIMIZING_METHOD", "mt_adamw"], "SOLVER.OPTIMIZING_METHOD", "adamw"),
        (["NUM_GPUS", "0"], "DEVICE", "cpu"),
        (["MIXUP.ENABLED", "True"], "MIXUP.ENABLE", True),
        (OFFICIAL, "RNG_SEED", 1),
        (OFFICIAL, "TRAIN.BATCH_SIZE", 64),
        (OFFICIAL, "TRAIN.CHECKPOINT_EPOCH_RESET", False),
        ([*OFFICIAL, "TRAIN.FINETUNE", "True"], "TRAIN.CHECKPOINT_EPOCH_RESET", True),
        ([*OFFICIAL, "TIMESFORMER.PRETRAINED_MODEL", ""], "TIMESFORMER.PRETRAINED_MODEL", ""),
        ([*OFFICIAL, "TRAIN.DATASET", "ssv2"], "DATA.REVERSE_INPUT_CHANNEL", True),
        (["TRAIN.DATASET", "ssv2"], "DATA.REVERSE_INPUT_CHANNEL", False),
    ],
)
def test_published_settings_are_read_as_they_were_meant(overrides: list[str], key: str, value: object) -> None:
    section, _, name = key.lower().rpartition(".")
    cfg = load_config(None, overrides)
    assert getattr(getattr(cfg, section) if section else cfg, name) == value


def test_the_command_line_chooses_the_channel_order() -> None:
    cfg = load_config(None, [*OFFICIAL, "TRAIN.DATASET", "ssv2", "DATA.REVERSE_INPUT_CHANNEL", "False"])
    assert cfg.data.reverse_input_channel is False


def test_an_official_kinetics_file_feeds_rgb_whatever_it_says(tmp_path: Path) -> None:
    path = write(tmp_path, "MODEL: {MODEL_NAME: vit_base_patch16_224}\nDATA: {REVERSE_INPUT_CHANNEL: True}")
    assert load_config(path).data.reverse_input_channel is False


def test_an_empty_pretrained_model_in_an_official_file_is_the_imagenet_vit(tmp_path: Path) -> None:
    path = write(tmp_path, "MODEL: {MODEL_NAME: vit_base_patch16_224}\nTIMESFORMER: {PRETRAINED_MODEL: ''}")
    assert load_config(path).timesformer.pretrained_model == IMAGENET_VIT


@pytest.mark.parametrize("name", ["MViT", "vit_base_patch16_224"])
def test_official_files_decode_at_full_size_whatever_they_say(tmp_path: Path, name: str) -> None:
    path = write(tmp_path, f"MODEL: {{MODEL_NAME: {name}}}\nDATA: {{DECODING_SHORT_SIZE: 256}}")
    cfg, report = load_config_with_report(path)
    assert cfg.data.decoding_short_size == 0
    assert ("DATA.DECODING_SHORT_SIZE", 256) in [(note.key, note.value) for note in report.translated]
    assert load_config(path, ["DATA.DECODING_SHORT_SIZE", "320"]).data.decoding_short_size == 320
    ours = write(tmp_path, f"_BASE_: {path.name}\nDATA: {{DECODING_SHORT_SIZE: 288}}", "ours.yaml")
    assert load_config(ours).data.decoding_short_size == 288


@pytest.mark.parametrize(
    ("key", "ignored", "refused"),
    [
        ("DATA.MULTI_LABEL", "False", "True"),
        ("DATA.MULTI_LABEL", "False", "0"),
        ("DATA.INPUT_CHANNEL_NUM", "[3]", "[1]"),
        ("DATA.DEIT_TRANSFORMS", "False", "True"),
        ("MULTIGRID.SHORT_CYCLE", "False", "True"),
        ("MODEL.DETACH_FINAL_FC", "False", "True"),
        ("TRAIN.KILL_LOSS_EXPLOSION_FACTOR", "0.0", "4.0"),
        ("TRAIN.CHECKPOINT_TYPE", "pytorch", "caffe2"),
        ("TASK", "", "ssl"),
        ("MODEL.LOSS_FUNC", "soft_cross_entropy", "bce"),
    ],
)
def test_a_published_key_is_refused_at_values_that_would_matter(key: str, ignored: str, refused: str) -> None:
    _, report = load_config_with_report(None, [key, ignored])
    assert [note.key for note in report.ignored] == [key]
    (problem,) = problems_of(None, key, refused)
    assert problem.startswith(f"command line: {key} expects ") and problem.endswith("which is not supported")


@pytest.mark.parametrize(
    "key", ["BN.NUM_SPLITS", "MVIT.REV.RESPATH_FUSE", "AVA.BGR", "TENSORBOARD.MODEL_VIS.TOPK_PREDS", "PREFETCH"]
)
def test_sections_of_other_models_change_nothing(key: str) -> None:
    cfg, report = load_config_with_report(None, [key, "7"])
    assert cfg == Config() and [note.key for note in report.ignored] == [key]


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("DETECTION.ENABEL", "DETECTION.ENABLE"),
        ("MVIT.REV.ENABLED", "MVIT.REV.ENABLE"),
        ("MASK.ENABLE_", "MASK.ENABLE"),
        ("TENSORBOARD.LOG_DRI", "TENSORBOARD.LOG_DIR"),
        ("BN.NORM_TYP", "BN.NORM_TYPE"),
        ("MULTIGRID.SHORT_CYCEL", "MULTIGRID.SHORT_CYCLE"),
    ],
)
def test_a_misspelt_key_of_an_ignored_section_is_an_error(key: str, meant: str) -> None:
    assert problems_of(None, key, "True") == [f"command line: {key} is not a setting; did you mean {meant}?"]


def test_an_ignored_section_without_keys_changes_nothing_and_takes_no_value(tmp_path: Path) -> None:
    assert load_config(write(tmp_path, "BN:\nTENSORBOARD: {MODEL_VIS: {}}\nMVIT: {REV: }")) == Config()
    assert problems_of(None, "BN", "3") == ["command line: BN is a section and expects KEY: value lines, got 3"]


BUILT_INSTEAD = {
    "X3D": ("x3d_xs", "x3d_s", "x3d_m", "x3d_l"), "PTVX3D": ("x3d_xs", "x3d_s", "x3d_m", "x3d_l"),
    "SlowFast": ("slowfast_r50",), "PTVSlowFast": ("slowfast_r50",), "PTVR2plus1D": ("r2plus1d_r50",),
    "PTVCSN": ("csn_r101",), "ResNet": ("slow_r50",), "PTVResNet": ("slow_r50",), "PTVMViT": ("mvit_base_16x4",),
}  # fmt: skip


@pytest.mark.parametrize("name", BUILT_INSTEAD)
def test_a_published_convolutional_network_is_told_the_model_that_is_built_here(tmp_path: Path, name: str) -> None:
    (problem,) = problems_of(write(tmp_path, f"MODEL: {{MODEL_NAME: {name}}}\nTRAIN: {{NO_SUCH_KEY: 1}}"))
    assert problem.startswith(f"{tmp_path}/cfg.yaml:1: MODEL.MODEL_NAME: ")
    assert set(BUILT_INSTEAD[name]) <= set(BASELINES)
    assert all(f"{PREFIX}{built}" in problem for built in BUILT_INSTEAD[name])


@pytest.mark.parametrize(("arch", "name"), [*MODELS_OF_ARCH.items(), ("[csn]", "PTVCSN")])
def test_a_file_without_a_model_name_is_refused_by_its_arch(tmp_path: Path, arch: str, name: str) -> None:
    (problem,) = problems_of(write(tmp_path, f"DATA: {{NUM_FRAMES: 8}}\nMODEL:\n  ARCH: {arch}\n"))
    assert problem.startswith(f"{tmp_path}/cfg.yaml:3: MODEL.ARCH ") and problem.endswith(UNSUPPORTED_MODELS[name])


@pytest.mark.parametrize(("arch", "meant"), [("vit", "vit_base_patch16_224"), ("mvit", "MViT"), ("2.5", "missing")])
def test_an_arch_alone_chooses_no_model(tmp_path: Path, arch: str, meant: str) -> None:
    (problem,) = problems_of(write(tmp_path, f"MODEL: {{ARCH: {arch}}}"))
    assert "MODEL.ARCH" in problem and "MODEL.MODEL_NAME" in problem and meant in problem


def test_settings_of_convolutional_networks_without_a_model_name_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path, "SLOWFAST: {ALPHA: 8}")
    assert problems_of(path)[0].startswith(f"{path}:1: SLOWFAST.ALPHA without MODEL.MODEL_NAME")
    assert load_config(path, ["MODEL.MODEL_NAME", "timesformer_base"]) == Config()


def test_a_repeated_key_does_not_hide_the_name_of_the_model(tmp_path: Path) -> None:
    path = write(tmp_path, "MODEL: {MODEL_NAME: PTVX3D}\nRNG_SEED: 1\nRNG_SEED: 2")
    first, second = problems_of(path)
    assert "pytorchvideo/x3d_m" in first and second.startswith(f"{path}:3: RNG_SEED is repeated")
    path = write(tmp_path, "MODEL: {MODEL_NAME: X3D}\nMODEL: {NUM_CLASSES: 5}")
    first, second = problems_of(path)
    assert "pytorchvideo/x3d_m" in first and second.startswith(f"{path}:2: MODEL is repeated")
    path = write(tmp_path, "MODEL:\n  ARCH: slowfast\n  ARCH: slow\n")
    first, second = problems_of(path)
    assert "pytorchvideo/slow_r50" in first and second.startswith(f"{path}:3: MODEL.ARCH is repeated")


@pytest.mark.parametrize("name", ["MViT", "vit_base_patch16_224"])
def test_a_published_file_that_leaves_the_test_crop_out_means_256(tmp_path: Path, name: str) -> None:
    path = write(tmp_path, f"MODEL: {{MODEL_NAME: {name}}}")
    assert load_config(path).data.test_crop_size == 256
    assert load_config(None).data.test_crop_size == 224


def test_models_that_cannot_be_built_are_refused_before_their_keys(tmp_path: Path) -> None:
    path = write(tmp_path, "MODEL: {MODEL_NAME: MaskMViT}\nMVIT: {DEPTH: 16}\nTRAIN: {NO_SUCH_KEY: 1}")
    assert problems_of(path) == [
        f"{path}:1: MODEL.MODEL_NAME: MaskMViT is not supported; this project trains classifiers"
    ]


def test_two_names_of_one_setting_in_one_file_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path, "TRAIN:\n  MIXED_PRECISION: True\n  PRECISION: bf16")
    (problem,) = problems_of(path)
    assert problem.startswith(f"{path}:2: TRAIN.MIXED_PRECISION and TRAIN.PRECISION are one setting")
    path = write(tmp_path, "TRAIN: {MIXED_PRECISION: True}")
    assert load_config(path, ["TRAIN.PRECISION", "bf16"]).train.precision == "bf16"


def test_the_tables_agree_with_the_settings() -> None:
    ours = {f"{section}.{key}" for section, keys in Config().model_dump(by_alias=True).items() if isinstance(keys, dict)
            for key in keys} | set(Config().model_dump(by_alias=True))  # fmt: skip
    assert not ours & set(IGNORED)
    assert set(TIMESFORMER_DEFAULTS) | set(SLOWFAST_DEFAULTS) <= ours
    assert {ours_key for _, _, ours_key, _, _ in TRANSLATED} <= ours
