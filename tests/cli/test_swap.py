"""`videoattn swap` on a row of the zoo and clips rendered for the test: its files, and what it refuses."""

import json
from pathlib import Path

import pytest

from videoattn.cli import motion, swap, test, train
from videoattn.cli.run_tool import run_tool
from videoattn.config.load import load_config
from videoattn.models.weights.load import from_checkpoint
from videoattn.operators import DenseHeadsAttention, FibonacciAttention

ROW = "zoo:motion_timesformer_dense"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("motion") / "clips"
    words = [str(folder), "--num-train", "16", "--num-val", "16", "--size", "32x32", "--num-workers", "1"]
    assert run_tool(motion.main, words) == 0
    return folder


def run_swap(data: Path, out: Path, *words: object, checkpoint: object = ROW) -> int:
    given = [
        checkpoint,
        "--method",
        "fibonacci",
        "--axis",
        "time",
        "--out",
        out,
        "--clips",
        16,
        "--test-clips",
        16,
        *words,
    ]
    given += ["DATA.PATH_TO_DATA_DIR", data, "DATA_LOADER.NUM_WORKERS", 0, "TRAIN.BATCH_SIZE", 4]
    return run_tool(swap.main, list(map(str, given)))


def test_a_swapped_checkpoint_is_evaluated_and_built_as_it_was_saved(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert run_swap(data, out, "--budgets", "0,0.01,0.27,1") == 0
    said = capsys.readouterr().out
    assert "3 of 12*" in said and "0 of 12" in said and "12 of 12" in said
    found = json.loads((out / "swap.json").read_text())
    assert len(found["effects_nats"]) == 12 and [point["num_dense"] for point in found["points"]] == [0, 3, 12]
    assert found["points"][2]["divergence"] < 1e-9 < found["points"][1]["divergence"] < found["points"][0]["divergence"]
    assert found["fitted_on"]["clips"] == found["judged_by"]["clips"] == 16
    assert (out / "swap.png").stat().st_size > 5000

    model = from_checkpoint(out / "swapped.safetensors")
    operators = [block.mixers["time"].operator for block in model.blocks]
    heads = [(i, head) for i, one in enumerate(operators) if isinstance(one, DenseHeadsAttention) for head in one.heads]
    assert heads == [tuple(pair) for pair in found["points"][1]["dense_heads"]["time"]] and len(heads) == 3
    sparse = [one.others if isinstance(one, DenseHeadsAttention) else one for one in operators]
    assert all(isinstance(one, FibonacciAttention) and one.semantics == "mean_logit" for one in sparse)

    words = ["--weights", out / "swapped.safetensors", "TEST.NUM_ENSEMBLE_VIEWS", 1, "TEST.SPLIT", "val"]
    assert run_tool(test.main, list(map(str, words))) == 0
    results = json.loads((out / "test" / "results.json").read_text())
    assert results["top1"] == pytest.approx(found["points"][1]["top1"]) and not results["departures"]
    cfg = load_config(out / "config.yaml")
    assert cfg.train.checkpoint_file_path == str(out / "swapped.safetensors")
    assert not cfg.data.random_flip  # which changes the classes of Motion
    assert cfg.solver.max_epoch == 1 and cfg.solver.base_lr == 3e-4 and not cfg.test.checkpoint_file_path
    assert run_tool(train.main, ["--cfg", str(out / "config.yaml"), "OUTPUT_DIR", str(tmp_path / "tuned")]) == 0
    assert "trained in" in capsys.readouterr().out

    # what it wrote is kept, and is not dense any more
    assert run_swap(data, out) == 2 and "holds an earlier swap; add --overwrite" in capsys.readouterr().err
    again = {"checkpoint": out / "swapped.safetensors"}
    assert run_swap(data, tmp_path / "again", **again) == 2
    assert "attention along time is fibonacci already; expected dense attention" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--budget", "2"], "a budget expects a share of the heads from 0 to 1, got 2.0"),
        (["--clips", "0"], "--clips expects at least 1, got 0"),
        (["--clips", "4"], "--clips 4 expects several batches of TRAIN.BATCH_SIZE 4 clips"),
        (["--axis", "joint"], "ATTENTION.JOINT asks for fibonacci, but"),
        (["ATTENTION.TIME.NAME", "lisa"], "ATTENTION.TIME.NAME: expected options of --method fibonacci"),
        (["ATTENTION.SPACE.NAME", "lisa"], "ATTENTION.SPACE.NAME: expected options of --method fibonacci"),
        (["ATTENTION.TIME.SEMANTICS", "mean"], "ATTENTION.TIME.SEMANTICS expects"),
        (["--budgets", "a,b"], "--budgets"),
    ],
)
def test_what_cannot_be_swapped_is_refused_in_one_line(
    words: list[str], message: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        status = run_swap(data, tmp_path / "out", *words)
    except SystemExit as end:
        status = int(end.code or 0)
    said = capsys.readouterr().err.strip().splitlines()
    assert status == 2 and message in said[-1]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("checkpoint", "message"),
    [
        ("zoo:motion_timesformer_dens", "did you mean motion_timesformer_dense"),
        ("nowhere.pyth", "nowhere.pyth: no such file or folder; expected a checkpoint, or zoo:NAME"),
        ("zoo:motion_timesformer_lisa", "attention along time is lisa already"),
    ],
)
def test_a_checkpoint_that_there_is_not_is_refused(
    checkpoint: str, message: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_swap(data, tmp_path / "out", checkpoint=checkpoint) == 2
    assert message in capsys.readouterr().err


def test_a_list_without_a_video_that_can_be_decoded_ends_in_one_line(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "data"
    broken.mkdir()
    (broken / "bad.mp4").write_bytes(b"no video")
    for name in ("train", "val"):
        (broken / f"{name}.csv").write_text("bad.mp4 0\n")
    assert run_swap(broken, tmp_path / "out") == 2
    assert "no video could be decoded" in capsys.readouterr().err.splitlines()[-1]
