"""The configuration files that come with the project."""

import re
from pathlib import Path

import pytest

from videoattn.config_file import load_config_with_report

ROOT = Path(__file__).parents[1]
CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))
OFFICIAL = {  # name: frames, sampling rate, crop, classes
    "Kinetics/TimeSformer_divST_8x32_224": (8, 32, 224, 400),
    "Kinetics/TimeSformer_divST_8x32_224_4gpus": (8, 32, 224, 400),
    "Kinetics/TimeSformer_divST_8x32_224_TEST": (8, 32, 224, 400),
    "Kinetics/TimeSformer_divST_8x32_224_K600": (8, 32, 224, 600),
    "Kinetics/TimeSformer_divST_8x32_224_fibonacci_space": (8, 32, 224, 400),
    "Kinetics/TimeSformer_divST_8x32_224_fibonacci_time": (8, 32, 224, 400),
    "Kinetics/TimeSformer_jointST_8x32_224": (8, 32, 224, 400),
    "Kinetics/TimeSformer_jointST_8x32_224_fibonacci": (8, 32, 224, 400),
    "Kinetics/TimeSformer_spaceOnly_8x32_224": (8, 32, 224, 400),
    "Kinetics/TimeSformer_divST_16x16_448": (16, 16, 448, 400),
    "Kinetics/TimeSformer_divST_16x16_448_K600": (16, 16, 448, 600),
    "Kinetics/TimeSformer_divST_96x4_224": (96, 4, 224, 400),
    "Kinetics/TimeSformer_divST_96x4_224_K600": (96, 4, 224, 600),
    "SSv2/TimeSformer_divST_8_224": (8, 8, 224, 174),
    "SSv2/TimeSformer_divST_16_448": (16, 8, 448, 174),
    "SSv2/TimeSformer_divST_64_224": (64, 8, 224, 174),
}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_file_loads_under_our_own_names(path: Path) -> None:
    cfg, report = load_config_with_report(path)
    assert (report.inert, report.translated) == ((), ())
    assert Path(cfg.output_dir).parts[0] == "runs"


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_file_opens_with_method_result_and_command(path: Path) -> None:
    comment = path.read_text().split("\n_BASE_:")[0].split("\nTRAIN:")[0]
    lines = comment.split("\n")
    assert all(line.startswith("#") for line in lines)
    assert "Expected" in comment
    (command,) = re.findall(r"tools/\w+\.py[\s\\#]*--cfg (\S+)", comment)
    assert command == path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("name", OFFICIAL)
def test_official_files_have_the_published_values(name: str) -> None:
    cfg = load_config_with_report(ROOT / "configs" / f"{name}.yaml")[0]
    data, solver = cfg.data, cfg.solver
    assert (data.num_frames, data.sampling_rate, data.train_crop_size, cfg.model.num_classes) == OFFICIAL[name]
    assert data.test_crop_size == data.train_crop_size
    assert data.train_jitter_scales == ((448, 512) if data.train_crop_size == 448 else (256, 320))
    assert (solver.optimizing_method, solver.base_lr, solver.momentum, solver.weight_decay) == ("sgd", 0.005, 0.9, 1e-4)
    assert (solver.steps, solver.lrs, solver.max_epoch) == ((0, 11, 14), (1, 0.1, 0.01), 15)
    assert (cfg.test.num_ensemble_views, cfg.test.num_spatial_crops) == (1, 3)
    assert (cfg.aug.enable, cfg.mixup.enable, cfg.global_batch_size) == (False, False, 64)
    ssv2 = name.startswith("SSv2")
    assert cfg.train.dataset == cfg.test.dataset == ("ssv2" if ssv2 else "kinetics")
    assert (data.inv_uniform_sample, data.random_flip, data.reverse_input_channel) == (ssv2, not ssv2, ssv2)
    kind = {"d": "divided_space_time", "j": "joint_space_time", "s": "space_only"}[name.split("_")[1][0]]
    assert cfg.timesformer.attention_type == kind


def test_sparse_variants_change_the_attention_of_one_axis() -> None:
    names = {}
    for path in (ROOT / "configs" / "Kinetics").glob("*fibonacci*.yaml"):
        attention = load_config_with_report(path)[0].attention
        names[path.stem.rpartition("_224_")[2], path.stem.split("_")[1]] = [
            attention.space.name, attention.time.name, attention.joint.name,
        ]  # fmt: skip
    assert names == {
        ("fibonacci_space", "divST"): ["fibonacci", "dense", "dense"],
        ("fibonacci_time", "divST"): ["dense", "fibonacci", "dense"],
        ("fibonacci", "jointST"): ["dense", "dense", "fibonacci"],
    }
