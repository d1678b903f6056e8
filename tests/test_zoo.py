"""The model zoo: its rows' numbers, protocols, page, and what is said where something is missing."""

import dataclasses
import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from videoattn.config_file import load_config
from videoattn.models import build_model
from videoattn.models.checkpoints import from_checkpoint, load_weights
from videoattn.profile import profile
from videoattn.zoo import check_class_order, compare, locate_weights
from videoattn.zoo_rows import ZOO, find_row, weights_file

ROOT = Path(__file__).parents[1]
ROWS = list(ZOO.values())
OURS = [row for row in ROWS if row.is_ours]
OFFICIAL = {  # the configuration that describes the same evaluation
    "timesformer_base_k400": "Kinetics/TimeSformer_divST_8x32_224",
    "timesformer_hr_k400": "Kinetics/TimeSformer_divST_16x16_448",
    "timesformer_l_k400": "Kinetics/TimeSformer_divST_96x4_224",
    "timesformer_base_k600": "Kinetics/TimeSformer_divST_8x32_224_K600",
    "timesformer_base_ssv2": "SSv2/TimeSformer_divST_8_224",
    "timesformer_hr_ssv2": "SSv2/TimeSformer_divST_16_448",
    "timesformer_l_ssv2": "SSv2/TimeSformer_divST_64_224",
    "mvit_v1_b_16x4_k400": "Kinetics/MVIT_B_16x4_CONV",
    "mvit_v1_b_32x3_k400": "Kinetics/MVIT_B_32x3_CONV",
    "mvit_v1_b_32x3_k600": "Kinetics/MVIT_B_32x3_CONV_K600",
    "mvit_v2_s_16x4_k400": "Kinetics/MVITv2_S_16x4",
    "mvit_v2_b_32x3_k400": "Kinetics/MVITv2_B_32x3",
    "mvit_v2_l_40x3_k400": "Kinetics/MVITv2_L_40x3_test",
    "mvit_v2_s_16x4_ssv2": "SSv2/MVITv2_S_16x4",
    "mvit_v2_b_32x3_ssv2": "SSv2/MVITv2_B_32x3",
    "mvit_v2_l_40x3_ssv2": "SSv2/MVITv2_L_40x3",
}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_parameters_and_multiply_accumulates_are_those_of_the_model(row: Any, counted: dict[Any, float]) -> None:
    with torch.device("meta"):
        model: Any = build_model(row.config())
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(row.parameters, abs=0.0051)
    sizes = (row.model, model.clip_size, str(row.settings))  # rows that differ in the head alone are counted once
    if sizes not in counted:
        counted[sizes] = profile(model, model.clip_size).macs_needed / 1e9
    assert counted[sizes] == pytest.approx(row.gmacs, rel=1e-4)


@pytest.fixture(scope="module")
def counted() -> dict[Any, float]:
    return {}


@pytest.mark.parametrize("name", OFFICIAL)
def test_a_row_is_evaluated_as_the_official_configuration_says(name: str) -> None:
    row, theirs = find_row(name).config(), load_config(ROOT / "configs" / f"{OFFICIAL[name]}.yaml")
    for key in ("num_ensemble_views", "num_spatial_crops"):
        assert getattr(row.test, key) == getattr(theirs.test, key)
    assert row.test.dataset == theirs.test.dataset
    dense = row.test.dataset == "kinetics"
    for key in ("num_frames", "test_crop_size", "mean", "std", "reverse_input_channel", "use_offset_sampling",
                "train_jitter_scales", *(["sampling_rate"] if dense else [])):  # fmt: skip
        assert getattr(row.data, key) == getattr(theirs.data, key), key
    assert row.model.num_classes == theirs.model.num_classes
    with torch.device("meta"):
        models = [build_model(cfg) for cfg in (row, theirs)]
    assert [p.shape for p in models[0].parameters()] == [p.shape for p in models[1].parameters()]


def test_the_page_is_what_the_rows_say() -> None:
    subprocess.run([sys.executable, ROOT / "docs/write_model_zoo.py", "--check"], check=True, cwd=ROOT)


@pytest.mark.parametrize("row", OURS, ids=lambda row: row.name)
def test_our_files_are_small_and_hold_the_model_of_their_row(row: Any) -> None:
    path = locate_weights(row)
    assert path.stat().st_size < 1e6
    model = build_model(row.config())
    report = load_weights(model, path)
    assert not report.resized and not report.initialised and not report.dropped
    built = from_checkpoint(path)
    assert built.state_dict().keys() == model.state_dict().keys()


@pytest.mark.slow
@pytest.mark.parametrize("row", OURS, ids=lambda row: row.name)
def test_our_rows_reproduce_their_number(row: Any, tmp_path: Path) -> None:
    command = [sys.executable, "tools/test_net.py", "--zoo", row.name, "OUTPUT_DIR", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert f"{row.name}: reproduced, to the digit" in done.stdout


def run_test_net(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    import os

    command = [sys.executable, "tools/test_net.py", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, **environment})


def test_one_message_says_all_that_a_row_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = run_test_net(
        "--zoo", "timesformer_base_k400", VIDEOATTN_CACHE=str(tmp_path), https_proxy="http://127.0.0.1:9"
    )
    assert done.returncode == 2 and not done.stdout
    path = tmp_path / "TimeSformer_divST_8x32_224_K400.pyth"
    assert done.stderr.startswith(f"error: timesformer_base_k400 needs {path.name}, which is not at {path}, and ")
    assert f"put it at {path}, or name the file instead of the row" in done.stderr
    assert "timesformer_base_k400 needs DATA.PATH_TO_DATA_DIR FOLDER with test.csv of its validation" in done.stderr


def test_a_row_that_does_not_exist_is_told_from_its_neighbours() -> None:
    done = run_test_net("--zoo", "motion_timesformer_fibonaci")
    assert done.returncode == 2 and "did you mean motion_timesformer_fibonacci" in done.stderr
    done = run_test_net("--zoo", "motion_timesformer_fibonacci", "--cfg", "configs/Motion/divided.yaml")
    assert done.returncode == 2 and "expected no --cfg FILE besides" in done.stderr


def test_clips_of_our_rows_are_rendered_into_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIDEOATTN_CACHE", str(tmp_path))
    monkeypatch.setenv("LOCAL_RANK", "1")  # which may be here before rank 0
    row = find_row("motion_timesformer_fibonacci")
    few = dataclasses.replace(row, clips_from=("--num-train", "1", "--num-val", "8", "--size", "32x32"))
    before = sorted((ROOT / "datasets").iterdir())
    cfg, weights = load_tool("test_net").prepare_row(few, None, [])
    folder = Path(cfg.data.path_to_data_dir)
    assert weights == locate_weights(row) and folder.is_relative_to(tmp_path)
    assert len((folder / "test.csv").read_text().splitlines()) == 8
    assert sorted((ROOT / "datasets").iterdir()) == before


def load_tool(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run_train_net(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "tools/train_net.py", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def test_training_starts_from_a_row_with_other_classes_and_clips(tmp_path: Path) -> None:
    make = [sys.executable, "datasets/make_motion.py", tmp_path, "--num-train", "8", "--num-val", "8"]
    subprocess.run([*make, "--size", "64x64"], cwd=ROOT, check=True, capture_output=True)
    settings = dict(find_row("motion_timesformer_fibonacci").all_settings())
    settings |= {
        "MODEL.NUM_CLASSES": 9, "DATA.TRAIN_CROP_SIZE": 64, "DATA.TEST_CROP_SIZE": 64,
        "DATA.TRAIN_JITTER_SCALES": [64, 64], "DATA.PATH_TO_DATA_DIR": tmp_path, "OUTPUT_DIR": tmp_path / "run",
        "TRAIN.CHECKPOINT_FILE_PATH": "zoo:motion_timesformer_fibonacci", "SOLVER.MAX_EPOCH": 1,
        "DATA_LOADER.NUM_WORKERS": 0, "GLOBAL_BATCH_SIZE": 8,
    }  # fmt: skip
    pairs = [item for pair in settings.items() for item in pair]
    refused = run_train_net(*pairs)
    assert refused.returncode == 2 and "TRAIN.FINETUNE True" in refused.stderr
    done = run_train_net(*pairs, "TRAIN.FINETUNE", "True")
    assert done.returncode == 0, done.stderr
    said = done.stdout + done.stderr
    assert "motion_timesformer_fibonacci.safetensors" in said and "initialised: head.weight, head.bias" in said
    assert (tmp_path / "run/checkpoints/checkpoint_best.pyth").is_file()


def test_training_from_a_row_that_does_not_exist_is_told_from_its_neighbours(tmp_path: Path) -> None:
    make = [sys.executable, "datasets/make_motion.py", tmp_path, "--num-train", "16", "--num-val", "1"]
    subprocess.run([*make, "--size", "32x32"], cwd=ROOT, check=True, capture_output=True)
    done = run_train_net(
        "--cfg", "configs/Motion/divided.yaml", "DATA.PATH_TO_DATA_DIR", tmp_path, "OUTPUT_DIR", tmp_path / "run",
        "TRAIN.CHECKPOINT_FILE_PATH", "zoo:motion_timesformer_fibonaci", "DATA.CLASS_NAMES", "",
    )  # fmt: skip
    assert done.returncode == 2 and "did you mean motion_timesformer_fibonacci" in done.stderr


def test_a_file_is_itself_and_a_row_is_its_file() -> None:
    assert weights_file("runs/mine.pyth") == Path("runs/mine.pyth")
    row = find_row("motion_timesformer_dense")
    assert weights_file(f"zoo:{row.name}") == locate_weights(row)


class TestCompare:
    row = find_row("mvit_v2_s_16x4_k400")

    def test_an_accuracy_within_the_tolerance_is_reproduced(self) -> None:
        lines = compare(self.row, 80.7, 94.5, 19796, 19796, "PyAV")
        assert lines[1].split() == ["top-1", "81.00", "80.70", "-0.30"]
        assert lines[-1] == "mvit_v2_s_16x4_k400: reproduced, within 0.5 points"

    def test_a_difference_is_explained(self) -> None:
        text = "\n".join(compare(self.row, 79.0, 94.0, 19000, 19796, "decord"))
        assert "differs by 2.00 points, more than 0.5" in text
        assert "796 of 19796 listed videos could not be evaluated" in text
        assert "19000 videos were evaluated; the sets in use have 19404" in text
        assert "decoded by decord" in text

    def test_ours_are_held_to_the_digit(self) -> None:
        row = find_row("motion_timesformer_fibonacci")
        assert compare(row, row.top1, None, 400, 400, "PyAV")[-1].endswith("to the digit")
        assert "differs by 0.25 points" in "\n".join(compare(row, row.top1 - 0.25, None, 400, 400, "PyAV"))


def test_settings_that_leave_the_protocol_are_named() -> None:
    row = find_row("timesformer_base_k400")
    assert row.departures(["TEST.BATCH_SIZE", 4, "DATA.PATH_TO_DATA_DIR", "x"]) == []
    assert row.departures(["TEST.NUM_SPATIAL_CROPS", 1, "DATA.SAMPLING_RATE", 8]) == [
        "TEST.NUM_SPATIAL_CROPS", "DATA.SAMPLING_RATE",
    ]  # fmt: skip


def test_classes_in_another_order_are_refused() -> None:
    row = find_row("timesformer_base_k400")
    check_class_order(row, None)
    check_class_order(row, ["abseiling", "air drumming", "Answering_questions"])
    with pytest.raises(ValueError, match="classes 0 and 1 of the videos are 'zumba' and 'abseiling'"):
        check_class_order(row, ["zumba", "abseiling"])


def test_names_are_unique_and_files_have_one_row_each() -> None:
    assert len({row.file for row in ROWS}) == len(ROWS)
    assert all(row.name == name for name, row in ZOO.items())
