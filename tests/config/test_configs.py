"""The configuration files that come with the project."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from videoattn.config.load import changed_keys, dump_config, load_config, load_config_with_report
from videoattn.grid import Axis
from videoattn.models import build_model
from videoattn.operators import OPERATORS

ROOT = Path(__file__).parents[2]
CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))
OFFICIAL = {  # name: frames, sampling rate, crop, classes
    "Kinetics/TimeSformer_divST_8x32_224": (8, 32, 224, 400),
    "Kinetics/TimeSformer_divST_8x32_224_4gpus": (8, 32, 224, 400),
    "Kinetics/TimeSformer_divST_8x32_224_TEST": (8, 32, 224, 400),
    "Kinetics/TimeSformer_divST_8x32_224_K600": (8, 32, 224, 600),
    "Kinetics/TimeSformer_jointST_8x32_224": (8, 32, 224, 400),
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
    assert (report.ignored, report.translated) == ((), ())
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


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_file_builds(path: Path) -> None:
    with torch.device("meta"):
        build_model(load_config(path))


BASES = {
    "Motion": ("divided", "joint"),
    "Kinetics": ("TimeSformer_divST_8x32_224", "TimeSformer_jointST_8x32_224"),
}


def method_files() -> Iterator[tuple[Path, Path, str, Axis]]:
    """The files named after a base, a method and an axis (none for JOINT), with their base, method and axis."""
    for folder, bases in BASES.items():
        for base, axis in zip((bases[0], *bases), (Axis.TIME, Axis.SPACE, Axis.JOINT), strict=True):
            for method in [*OPERATORS, "skipat"]:
                name = f"{base}_{method}" + ("" if axis is Axis.JOINT else f"_{axis.value}")
                if (path := ROOT / "configs" / folder / f"{name}.yaml").is_file():
                    yield path, ROOT / "configs" / folder / f"{base}.yaml", method, axis


METHOD_FILES = list(method_files())


def test_the_study_of_motion_has_a_file_for_methods_along_every_axis() -> None:
    found = {(path.parent.name, axis) for path, _, _, axis in METHOD_FILES}
    assert found >= {("Motion", axis) for axis in Axis} | {("Kinetics", Axis.JOINT)} and len(METHOD_FILES) >= 16


@pytest.mark.parametrize(("path", "base", "method", "axis"), METHOD_FILES, ids=[path.stem for path, *_ in METHOD_FILES])
def test_a_file_of_a_method_changes_nothing_else(path: Path, base: Path, method: str, axis: Axis) -> None:
    cfg, dense = load_config(path), load_config(base)
    changed = changed_keys(dump_config(dense), dump_config(cfg))
    where = f"ATTENTION.SKIP.{axis.name}" if method == "skipat" else f"ATTENTION.{axis.name}"
    assert {key for key in changed if not key.startswith(where)} == {"OUTPUT_DIR"}
    if method == "skipat":
        assert getattr(cfg.attention.skip, axis.value)
    else:
        assert [operator.name for operator in getattr(cfg.attention, axis.value)] == [method]
