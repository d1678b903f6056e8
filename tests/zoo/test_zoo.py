"""The model zoo: its rows' numbers, protocols, page, and what is said where something is missing."""

import dataclasses
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.programs import run_program
from tests.zoo.loopback import Loopback, loopback, send
from videoattn.config.load import load_config
from videoattn.layers.attention import count_heads
from videoattn.models import build_model
from videoattn.models.registry import find_spec
from videoattn.models.weights.containers import read_container
from videoattn.models.weights.load import from_checkpoint, load_weights
from videoattn.profiling.profile import profile
from videoattn.zoo.hub import web_address
from videoattn.zoo.prepare import prepare_row
from videoattn.zoo.protocol import check_class_order, check_weights, compare, locate_weights
from videoattn.zoo.rows import ZOO, find_row, weights_file

ROOT = Path(__file__).parents[2]
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


# of each network one row is quick, and its larger rows are slow
QUICK_ROWS = {"timesformer_base_k400", "mvit_v2_s_16x4_k400", "videomae_base_k400", *(row.name for row in OURS)}
COUNTED = [pytest.param(row, id=row.name, marks=[pytest.mark.slow] * (row.name not in QUICK_ROWS)) for row in ROWS]


@pytest.mark.parametrize("row", COUNTED)
def test_parameters_and_multiply_accumulates_are_those_of_the_model(row: Any, counted: dict[Any, float]) -> None:
    with torch.device("meta"):
        model: Any = build_model(row.config())
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(row.parameters, abs=0.0051)
    if row.top1 is None:
        model.forward = model.forward_tokens  # an encoder gives no logits
    sizes = (
        row.model,
        model.clip_size,
        str(row.settings),
        row.protocol.num_segments,
    )  # rows that differ in the head alone are counted once
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
    done = run_program("docs/write_model_zoo.py", "--check")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("row", OURS, ids=lambda row: row.name)
def test_our_files_are_small_and_hold_the_model_of_their_row(row: Any) -> None:
    path = locate_weights(row)
    assert path.stat().st_size < 1e6
    model = build_model(row.config())
    report = load_weights(model, path)
    assert not report.resized and not report.initialised and not report.dropped
    assert "videoattn.sha256" in read_container(path, trust=False)[1]
    built = from_checkpoint(path)
    assert built.state_dict().keys() == model.state_dict().keys()


@pytest.mark.slow
@pytest.mark.parametrize("row", OURS, ids=lambda row: row.name)
def test_our_rows_reproduce_their_number(row: Any, tmp_path: Path) -> None:
    command = [sys.executable, "tools/test_net.py", "--zoo", row.name, "OUTPUT_DIR", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert f"{row.name}: reproduced, to the digit" in done.stdout


def test_one_message_says_all_that_a_row_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIDEOATTN_CACHE", str(tmp_path))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    done = run_program("tools/test_net.py", "--zoo", "timesformer_base_k400")
    assert done.returncode == 2 and not done.stdout
    path = tmp_path / "TimeSformer_divST_8x32_224_K400.pyth"
    assert done.stderr.startswith(f"error: timesformer_base_k400 needs {path.name}, which is not at {path}, and ")
    assert f"put it at {path}, or name the file instead of the row" in done.stderr
    assert "timesformer_base_k400 needs DATA.PATH_TO_DATA_DIR FOLDER with test.csv of its validation" in done.stderr


def test_a_row_that_does_not_exist_is_told_from_its_neighbours() -> None:
    done = run_program("tools/test_net.py", "--zoo", "motion_timesformer_fibonaci")
    assert done.returncode == 2 and "did you mean motion_timesformer_fibonacci" in done.stderr
    config = ["--cfg", "configs/Motion/divided.yaml"]
    done = run_program("tools/test_net.py", "--zoo", "motion_timesformer_fibonacci", *config)
    assert done.returncode == 2 and "expected KEY VALUE pairs and no --cfg FILE" in done.stderr


def test_clips_of_our_rows_are_rendered_into_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIDEOATTN_CACHE", str(tmp_path))
    monkeypatch.setenv("LOCAL_RANK", "1")  # which may be here before rank 0
    row = find_row("motion_timesformer_fibonacci")
    few = dataclasses.replace(row, clips_from=("--num-train", "1", "--num-val", "8", "--size", "32x32"))
    before = sorted((ROOT / "datasets").iterdir())
    cfg, weights, probe = prepare_row(few, None, [])
    folder = Path(cfg.data.path_to_data_dir)
    assert probe is None and weights == locate_weights(row) and folder.is_relative_to(tmp_path)
    assert len((folder / "test.csv").read_text().splitlines()) == 8
    assert sorted((ROOT / "datasets").iterdir()) == before


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("zoo") / "motion"
    sizes = ["--num-train", "16", "--num-val", "8", "--size", "64x64"]
    subprocess.run([sys.executable, "datasets/make_motion.py", folder, *sizes], cwd=ROOT, check=True)
    return folder


def test_training_starts_from_a_row_with_other_classes_and_clips(clips: Path, tmp_path: Path) -> None:
    settings = dict(find_row("motion_timesformer_fibonacci").all_settings())
    settings |= {
        "MODEL.NUM_CLASSES": 9, "DATA.TRAIN_CROP_SIZE": 64, "DATA.TEST_CROP_SIZE": 64,
        "DATA.TRAIN_JITTER_SCALES": [64, 64], "DATA.PATH_TO_DATA_DIR": clips, "OUTPUT_DIR": tmp_path / "run",
        "TRAIN.CHECKPOINT_FILE_PATH": "zoo:motion_timesformer_fibonacci", "SOLVER.MAX_EPOCH": 1,
        "DATA_LOADER.NUM_WORKERS": 0, "GLOBAL_BATCH_SIZE": 8,
    }  # fmt: skip
    pairs = [item for pair in settings.items() for item in pair]
    refused = run_program("tools/train_net.py", *pairs)
    assert refused.returncode == 2 and "TRAIN.FINETUNE True" in refused.stderr
    done = run_program("tools/train_net.py", *pairs, "TRAIN.FINETUNE", "True")
    assert done.returncode == 0, done.stderr
    said = done.stdout + done.stderr
    assert "motion_timesformer_fibonacci.safetensors" in said and "initialised: head.weight, head.bias" in said
    assert (tmp_path / "run/checkpoints/checkpoint_best.pyth").is_file()


def test_training_from_a_row_that_does_not_exist_is_told_from_its_neighbours(clips: Path, tmp_path: Path) -> None:
    done = run_program(
        "tools/train_net.py", "--cfg", "configs/Motion/divided.yaml",
        "DATA.PATH_TO_DATA_DIR", clips, "OUTPUT_DIR", tmp_path / "run",
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

    def test_a_handful_of_videos_is_not_compared_with_a_published_accuracy(self) -> None:
        (line,) = compare(self.row, 81.0, 94.9, 16, 16, "PyAV")
        assert "16 of 16 listed videos were evaluated, too few to compare with the published 81.00 %" in line
        assert "19404" in line and "reproduced" not in line


def test_settings_that_leave_the_protocol_are_named() -> None:
    row = find_row("timesformer_base_k400")
    assert row.departures(["TEST.BATCH_SIZE", 4, "DATA.PATH_TO_DATA_DIR", "x"]) == []
    assert row.departures(["TEST.NUM_SPATIAL_CROPS", 1, "DATA.SAMPLING_RATE", 8]) == [
        ("TEST.NUM_SPATIAL_CROPS", "3", "1"), ("DATA.SAMPLING_RATE", "32", "8"),
    ]  # fmt: skip


def test_classes_in_another_order_are_refused() -> None:
    row = find_row("timesformer_base_k400")
    check_class_order(row, None)
    check_class_order(row, ["abseiling", "air drumming", "Answering_questions"])
    with pytest.raises(ValueError, match="classes 0 and 1 of the videos are 'zumba' and 'abseiling'"):
        check_class_order(row, ["zumba", "abseiling"])


def test_every_address_is_encrypted() -> None:
    assert all(web_address(url).startswith("https://") for row in ROWS for url in row.urls)


FETCHED = [row for row in ROWS if not row.is_ours]


def save_like(row: Any, path: Path) -> tuple[Path, Path | None]:
    """Write files with the names and shapes of a row's model in its publisher's form; a few bytes for each tensor.

    Return the file of the model and None, or those of an encoder and its probe.
    """
    with torch.device("meta"):
        model: Any = build_model(row.config())
    adapter = find_spec(row.model).adapter
    named = adapter.from_ours(model.state_dict(), row.family, count_heads(model))
    zeros = {name: torch.zeros(1).expand(value.shape) for name, value in named.items()}
    if row.encoder is None:
        torch.save({"model_state": zeros}, path)
        return path, None
    of_probe = {name for name in zeros if name.startswith(("pooler.", "linear."))}
    torch.save({"classifiers": [{f"module.{name}": zeros[name] for name in of_probe}]}, path)
    encoder = path.with_name(row.encoder.file)
    rest = {f"module.backbone.{name}": value for name, value in zeros.items() if name not in of_probe}
    torch.save({"target_encoder": rest}, encoder)
    return encoder, path


# one of each family is quick
QUICK = {f"{name}_k400{by}" for name, by in (("timesformer_base", ""), ("mvit_v2_s_16x4", ""),
         ("mvit_v1_b_16x4", "_pytorchvideo"), ("mvit_v1_b_16x4", "_torchvision"), ("videomae_base", ""))}  # fmt: skip
QUICK |= {"vjepa2_1_base", "vjepa2_large_diving48", "videomae_v2_small_k710"}
MARKED = [pytest.param(row, marks=() if row.name in QUICK else pytest.mark.slow, id=row.name) for row in FETCHED]


@pytest.mark.parametrize("row", MARKED)
def test_a_file_in_the_form_of_its_row_is_accepted_and_that_of_another_row_is_not(row: Any, tmp_path: Path) -> None:
    path, probe = save_like(row, tmp_path / row.file)
    check_weights(row, path, probe)
    forms = {(other.model, other.dataset, other.protocol.num_frames, other.family): other for other in FETCHED}
    forms.pop((row.model, row.dataset, row.protocol.num_frames, row.family))
    near = [other for other in forms.values() if other.family == row.family or other.model == row.model]
    with pytest.raises(ValueError, match=re.escape(str(path))):
        check_weights(near[0], path, probe)


@pytest.fixture
def published(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[tuple[Any, Loopback, Path]]:
    """A row that is fetched from a server in this process, that server, and the path of the file in the cache."""
    monkeypatch.setenv("VIDEOATTN_CACHE", str(tmp_path))
    with loopback() as server:
        ours = find_row("motion_timesformer_dense")
        row = dataclasses.replace(ours, clips_from=(), sha256=None, urls=(f"{server.url}/weights",))
        monkeypatch.setitem(ZOO, row.name, row)
        yield row, server, tmp_path / row.file


RIGHT = (ROOT / "model_zoo/motion_timesformer_dense.safetensors").read_bytes()
WRONG = {
    "an HTML page": b"<!DOCTYPE html><html><body>quota exceeded</body></html>",
    "an XML document that begins with": b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>",
    "JSON that begins with": b'{"error": "not found"}',
    "an empty file came": b"",
    "not a whole safetensors file": RIGHT[: len(RIGHT) // 2],
    "is damaged": RIGHT[:-1] + bytes([RIGHT[-1] ^ 1]),
    "are not in both|of another model|missing|unexpected": (
        ROOT / "model_zoo/motion_timesformer_lisa.safetensors"
    ).read_bytes(),
    "holds an MViT": (ROOT / "model_zoo/motion_mvit_fibonacci.safetensors").read_bytes(),
}


@pytest.mark.parametrize("message", WRONG)
def test_a_download_that_is_not_the_checkpoint_of_its_row_is_refused_and_pins_nothing(
    published: tuple[Any, Loopback, Path], message: str
) -> None:
    row, server, path = published
    server.answers["/weights"] = lambda request: send(request, WRONG[message], length=None)
    for locate in (lambda: locate_weights(row), lambda: weights_file(f"zoo:{row.name}")):
        with pytest.raises(ValueError, match=f"(?s)^{row.name} needs {row.file}.*({message}).*put it at {path}"):
            locate()
    assert not path.exists() and not path.with_name(f"{path.name}.sha256").exists()
    server.answers["/weights"] = lambda request: send(request, RIGHT)
    assert locate_weights(row) == path and path.read_bytes() == RIGHT


def test_a_file_in_the_cache_is_checked_and_the_message_says_which_files_to_remove(
    published: tuple[Any, Loopback, Path],
) -> None:
    row, server, path = published
    path.write_bytes(WRONG["an HTML page"])
    with pytest.raises(ValueError, match=f"^{row.name} needs {row.file}: {path} is not .* HTML page.*remove it$"):
        locate_weights(row)
    path.write_bytes(RIGHT)
    locate_weights(row)
    path.write_bytes(RIGHT[:-1] + b"x")
    with pytest.raises(ValueError, match=f"^{row.name} needs .* but {path}.sha256 noted .* remove both .* or the note"):
        locate_weights(row)
    assert not server.asked


def test_our_files_are_verified_by_the_checksum_of_their_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row = find_row("motion_timesformer_dense")
    monkeypatch.setattr("videoattn.zoo.protocol.shipped_folder", tmp_path.joinpath)
    (tmp_path / "model_zoo").mkdir()
    damaged = tmp_path / "model_zoo" / row.file
    damaged.write_bytes(RIGHT)
    assert locate_weights(row) == damaged
    damaged.write_bytes(RIGHT[:-1] + b"x")
    with pytest.raises(ValueError, match=f"{damaged} has sha256 .*, expected {row.sha256}: install"):
        locate_weights(row)


def test_names_are_unique_and_files_have_one_row_each() -> None:
    assert len({row.file for row in ROWS}) == len(ROWS)
    assert all(row.name == name for name, row in ZOO.items())
