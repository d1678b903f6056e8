import csv
import hashlib
import json
import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing as mp
from torch import Tensor, nn

from tests.data.conftest import write_video
from tests.engine.test_distributed import free_port, join
from videoattn.cli.run_tool import run_tool
from videoattn.cli.test import main
from videoattn.config.load import dump_config, load_config
from videoattn.data.build import build_loader
from videoattn.data.clips.batch import Batch, Failure, normalize
from videoattn.engine.checkpoint.files import save_checkpoint
from videoattn.engine.distributed import Process, shutdown
from videoattn.engine.evaluate import Evaluation, EvaluationOptions, evaluate
from videoattn.engine.results import Results
from videoattn.models import build_model
from videoattn.models.weights.load import load_weights
from videoattn.seeding import torch_seed

NUM_CLASSES = 3


class Videos:
    def __init__(self, labels: Sequence[int], paths: Sequence[str] | None = None) -> None:
        self.labels = labels
        self.paths = paths or [f"video{i}.mp4" for i in range(len(labels))]

    def path(self, index: int) -> str:
        return self.paths[index]

    def label(self, index: int) -> int:
        return self.labels[index]


class FakeLoader:
    """Batches made beforehand; a clip's bytes are its logits + 128, which `ReadLogits` takes out again."""

    def __init__(self, batches: list[Batch], labels: Sequence[int], paths: Sequence[str] | None = None) -> None:
        self.batches = batches
        self.videos = Videos(labels, paths)
        self.num_videos = len(labels)

    def epoch(self, epoch: int) -> Iterator[Batch]:
        return iter(self.batches)


class ReadLogits(nn.Module):
    """Also notes how many clips came at once, and in which mode it was."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []
        self.modes: list[bool] = []

    def forward(self, clips: Tensor) -> Tensor:
        self.sizes.append(len(clips))
        self.modes.append(self.training or torch.is_grad_enabled())
        return clips[:, 0, 0, 0] - 128


def batch(
    rows: Sequence[tuple[int, int, Sequence[int]]], failures: Sequence[Failure] = (), num_short: int = 0
) -> Batch:
    """A batch of (video, view, logits)."""
    logits = torch.tensor([row[2] for row in rows], dtype=torch.int64).view(len(rows), 1, 1, 1, NUM_CLASSES)
    clips = (logits + 128).to(torch.uint8).expand(-1, 3, 2, 1, -1)
    return Batch(
        clips=clips,
        labels=torch.zeros(len(rows), dtype=torch.int64),
        videos=torch.tensor([row[0] for row in rows], dtype=torch.int64),
        views=torch.tensor([row[1] for row in rows], dtype=torch.int64),
        failures=tuple(failures),
        num_short=num_short,
    )


def prepare(batch: Batch, seed: int) -> tuple[Tensor, Tensor]:
    return normalize(batch.clips, (0.0,) * 3, (1 / 255,) * 3), batch.labels


def run(
    loader: FakeLoader, model: nn.Module | None = None, process: Process | None = None, progress: bool = False,
    **options: Any,
) -> Results:  # fmt: skip
    settings = EvaluationOptions(**{"num_classes": NUM_CLASSES, "num_views": 2, **options})
    return evaluate(model or ReadLogits(), loader, prepare, settings, process, progress=progress)


TWO_VIEWS = [(0, 0, [0, 2, -9]), (0, 1, [9, 8, -9])]


def test_sum_of_logits_adds_what_the_model_gives() -> None:
    results = run(FakeLoader([batch(TWO_VIEWS)], [1]), aggregate="logits")
    torch.testing.assert_close(results.scores, torch.tensor([[9, 10, -18]], dtype=torch.float64), atol=1e-3, rtol=0)
    assert results.top_k(1) == 1.0


def test_sum_of_probabilities_adds_each_views_softmax() -> None:
    views = [(0, 0, [0, 1, -9]), (0, 1, [9, 7, -9])]
    by_probability = run(FakeLoader([batch(views)], [0]), aggregate="probabilities").scores[0].tolist()
    weights = [[math.exp(x) for x in row] for _, _, row in views]
    expected = [sum(row[i] / sum(row) for row in weights) for i in range(3)]
    assert by_probability == pytest.approx(expected, abs=1e-5)
    assert sum(by_probability) == pytest.approx(2.0)


def test_logits_and_probabilities_can_disagree() -> None:
    views = [(0, 0, [0, 1, -9]), (0, 1, [9, 9, -9]), (0, 2, [20, 0, 0]), (0, 3, [0, 3, 0]), (0, 4, [0, 3, 0])]
    loader = FakeLoader([batch(views)], [0])
    assert run(loader, num_views=5, aggregate="logits").top_k(1) == 1.0
    assert run(loader, num_views=5, aggregate="probabilities").top_k(1) == 0.0


def test_max_of_negative_logits_is_the_largest_of_them() -> None:
    loader = FakeLoader([batch([(0, 0, [-5, -7, -9]), (0, 1, [-6, -2, -8])])], [1])
    results = run(loader, method="max")
    torch.testing.assert_close(results.scores, torch.tensor([[-5, -2, -8]], dtype=torch.float64), atol=1e-3, rtol=0)
    assert results.top_k(1) == 1.0


def test_a_view_that_comes_again_is_not_counted_twice() -> None:
    once = run(FakeLoader([batch(TWO_VIEWS)], [1]))
    again = run(FakeLoader([batch([TWO_VIEWS[0], TWO_VIEWS[0]]), batch([TWO_VIEWS[1]]), batch(TWO_VIEWS)], [1]))
    assert torch.equal(once.scores, again.scores) and again.videos == [0]


def test_views_are_regrouped_to_the_batch_size_across_videos() -> None:
    model = ReadLogits()
    rows = [(video, view, [video, view, 0]) for video in range(3) for view in range(2)]
    results = run(FakeLoader([batch(rows[:2]), batch(rows[2:4]), batch(rows[4:])], [0, 0, 1]), model, batch_size=4)
    assert model.sizes == [4, 2]
    expected = torch.tensor([[2 * video, 1, 0] for video in range(3)], dtype=torch.float64)
    torch.testing.assert_close(results.scores, expected, atol=1e-3, rtol=0)
    model.sizes.clear()
    run(FakeLoader([batch(rows)], [0, 0, 1]), model, batch_size=1)
    assert model.sizes == [1] * 6


def test_clips_are_prepared_in_the_chunks_that_the_model_sees_with_their_labels_and_no_seed() -> None:
    seen: list[tuple[list[int], list[int], int]] = []

    def note(batch: Batch, seed: int) -> tuple[Tensor, Tensor]:
        seen.append((batch.videos.tolist(), batch.labels.tolist(), seed))
        return prepare(batch, seed)

    rows = [(video, view, [video, view, 0]) for video in range(3) for view in range(2)]
    batches = [replace(batch(rows[i : i + 2]), labels=torch.tensor([i // 2] * 2)) for i in (0, 2, 4)]
    options = EvaluationOptions(NUM_CLASSES, num_views=2, batch_size=4)
    evaluate(ReadLogits(), FakeLoader(batches, [0, 1, 2]), note, options, progress=False)
    assert seen == [([0, 0, 1, 1], [0, 0, 1, 1], 0), ([2, 2], [2, 2], 0)]


def test_modes_of_all_modules_are_restored() -> None:
    model = nn.Sequential(ReadLogits(), nn.Dropout(0.5))
    model.train()
    model[1].eval()
    run(FakeLoader([batch(TWO_VIEWS)], [1]), model)
    assert (model.training, model[0].training, model[1].training) == (True, True, False)
    assert model[0].modes == [False]


def test_a_failed_video_is_excluded_listed_and_counted() -> None:
    failure = Failure(1, "video1.mp4", "video1.mp4: no video stream")
    batches = [batch(TWO_VIEWS), batch([], [failure], num_short=0), batch([(2, 0, [1, 0, 0]), (2, 1, [1, 0, 0])])]
    results = run(FakeLoader(batches, [1, 1, 1]))
    assert results.videos == [0, 2] and list(results.failures) == [failure]
    assert results.top_k(1) == 0.5
    assert results.top_k(1, failed_as_wrong=True) == pytest.approx(1 / 3)
    assert results.summary()["counts"] == {
        "listed": 3, "labelled": 3, "evaluated": 2, "failed": 1, "short_clips": 0,
    }  # fmt: skip
    assert results.lines()[0] == "evaluated 2 of 3 videos (1 failed: see results.json)"
    assert results.lines()[1:3] == ["top-1 50.00 %", "top-1 33.33 % with failed videos counted as wrong"]


def test_a_video_that_failed_once_is_excluded_even_if_its_views_arrive() -> None:
    results = run(FakeLoader([batch(TWO_VIEWS), batch([], [Failure(0, "video0.mp4", "flaky disk")])], [1]))
    assert results.videos == [] and results.failures[0].reason == "flaky disk" and results.top_k(1) is None


def test_a_video_with_some_of_its_views_has_failed_and_says_how_many_came() -> None:
    results = run(FakeLoader([batch([TWO_VIEWS[0]])], [1, 2]))
    assert results.videos == []
    assert [failure.reason for failure in results.failures] == [
        "only 1 of 2 views arrived",
        "only 0 of 2 views arrived",
    ]


def test_scores_that_are_not_finite_fail_the_video() -> None:
    evaluation = Evaluation(num_views=1, num_classes=2)
    evaluation.add(torch.tensor([0, 1]), torch.tensor([0, 0]), torch.tensor([[0.0, math.nan], [1.0, 2.0]]))
    scores, failures = evaluation.finish(2)
    assert list(scores) == [1] and failures == {0: "the model's scores are not finite"}


def test_short_clips_are_counted() -> None:
    results = run(FakeLoader([batch(TWO_VIEWS, num_short=2), batch([], num_short=1)], [1]))
    assert results.summary()["counts"]["short_clips"] == 3


def test_videos_decoded_from_their_start_are_counted_by_reason() -> None:
    first, second = (replace(batch(rows), sequential=("avi",)) for rows in (TWO_VIEWS, []))
    results = run(FakeLoader([first, replace(second, sequential=("avi", "hevc"))], [1]))
    assert results.summary()["sequential"] == {"avi": 2, "hevc": 1}


def test_wrong_methods_views_and_shapes_are_refused_with_their_values() -> None:
    with pytest.raises(ValueError, match="'mean' of 'logits'"):
        Evaluation(1, 2, method="mean")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"views 0\.\.1, got 2 of video 7"):
        Evaluation(2, 2).add(torch.tensor([7]), torch.tensor([2]), torch.zeros(1, 2))
    with pytest.raises(ValueError, match=r"= \[1, 5\] from the model, got \[1, 2\]"):
        Evaluation(2, 5).add(torch.tensor([7]), torch.tensor([0]), torch.zeros(1, 2))


def test_a_label_beyond_the_classes_is_refused_before_anything_runs() -> None:
    model = ReadLogits()
    with pytest.raises(ValueError, match=r"video1.mp4 has label 3, but the model has classes 0\.\.2"):
        run(FakeLoader([batch(TWO_VIEWS)], [0, 3]), model)
    assert model.sizes == []


def test_sixteen_bit_autocast_reaches_the_model() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 2 * 3, NUM_CLASSES))
    exact, rounded = (run(FakeLoader([batch(TWO_VIEWS)], [1]), model, precision=p).scores for p in ("fp32", "bf16"))
    assert not torch.equal(exact, rounded)
    torch.testing.assert_close(exact, rounded, rtol=0.05, atol=4.0)


# --- several processes

LABELS = [0, 1, 2, 1, 0]


def random_rows() -> list[tuple[int, int, list[int]]]:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randint(-100, 100, (len(LABELS), 4, NUM_CLASSES), generator=generator).tolist()
    return [(video, view, logits[video][view]) for video in range(len(LABELS)) for view in range(4)]


def shares() -> list[FakeLoader]:
    """Two processes' loaders: video 2 is split between them, 0 is given to both as a sampler that fills up does it."""
    rows, failure = random_rows(), Failure(3, "video3.mp4", "broken")
    first = [row for row in rows if row[0] == 0 or (row[0] == 2 and row[1] in (0, 3))]
    second = [row for row in rows if row[0] in (0, 1, 4) or (row[0] == 2 and row[1] in (1, 2))]
    return [
        FakeLoader([batch(first, num_short=1)], LABELS),
        FakeLoader([batch(second[:5]), batch(second[5:], [failure], num_short=2)], LABELS),
    ]


def evaluate_share(rank: int, port: int, folder: str) -> None:
    process = join(rank, port)
    results = run(shares()[rank], num_views=4, aggregate="probabilities", process=process)
    torch.save((results.scores, results.videos, list(results.failures), results.num_short), Path(folder, f"{rank}.pt"))
    shutdown()


@pytest.mark.slow
def test_two_processes_give_exactly_the_result_of_one(tmp_path: Path) -> None:
    mp.spawn(evaluate_share, args=(free_port(), str(tmp_path)), nprocs=2)
    rows = [row for row in random_rows() if row[0] != 3]
    failure = Failure(3, "video3.mp4", "broken")
    alone = run(FakeLoader([batch(rows, [failure], num_short=3)], LABELS), num_views=4, aggregate="probabilities")
    assert alone.videos == [0, 1, 2, 4] and list(alone.failures) == [failure]
    for rank in range(2):
        scores, videos, failures, num_short = torch.load(tmp_path / f"{rank}.pt", weights_only=False)
        assert torch.equal(scores, alone.scores)
        assert (videos, failures, num_short) == (alone.videos, list(alone.failures), 3)


def test_merging_does_not_depend_on_the_order() -> None:
    parts = []
    for loader in shares():
        part = Evaluation(4, NUM_CLASSES)
        for piece in loader.batches:
            part.add(piece.videos, piece.views, piece.clips[:, 0, 0, 0].double())
        parts.append(part)
    merged = []
    for order in ((0, 1), (1, 0)):
        whole = Evaluation(4, NUM_CLASSES)
        for i in order:
            whole.merge(parts[i])
        merged.append(whole.finish(len(LABELS)))
    (scores, failures), (other_scores, other_failures) = merged
    assert failures == other_failures == {3: "only 0 of 4 views arrived"}
    assert list(scores) == list(other_scores) == [0, 1, 2, 4]
    assert all(torch.equal(scores[video], other_scores[video]) for video in scores)


# --- what is written


def results_of(labels: Sequence[int], predicted: Sequence[int], num_classes: int, **fields: Any) -> Results:
    """Results in which each video's score is 2 for the predicted class, and -i for each other class i."""
    scores = -torch.arange(num_classes, dtype=torch.float64).repeat(len(labels), 1)
    scores[torch.arange(len(labels)), torch.tensor(predicted)] = 2
    values: dict[str, Any] = {
        "paths": [f"video{i}.mp4" for i in range(len(labels))],
        "labels": labels,
        "videos": list(range(len(labels))),
        "scores": scores,
        "failures": [],
        "num_short": 0,
        "protocol": {"views": 1, "method": "sum", "aggregate": "logits", "precision": "fp32"},
        "speed": {"seconds": 1.0, "clips_per_second": 4.0, "data_wait": 0.25},
    }
    return Results(**values | fields)


def test_results_json_holds_figures_by_class_with_names(tmp_path: Path) -> None:
    results = results_of([0, 0, 1, 1], [0, 1, 1, 1], 3)
    results.write(tmp_path, ["left", "right $x_", "up"], {"protocol": {"crops": 1}, "checkpoint": {"path": "a.pyth"}})
    content = json.loads((tmp_path / "results.json").read_text())
    assert content["top1"] == 0.75 and content["top5"] == 1.0 and content["mean_class_accuracy"] == 0.75
    assert content["per_class"] == [
        {"class": 0, "name": "left", "videos": 2, "accuracy": 0.5},
        {"class": 1, "name": "right $x_", "videos": 2, "accuracy": 1.0},
        {"class": 2, "name": "up", "videos": 0, "accuracy": None},
    ]
    assert content["confusion_matrix"] == [[1, 1, 0], [0, 2, 0], [0, 0, 0]]
    assert content["protocol"] == dict(results.protocol) | {"crops": 1}
    assert content["checkpoint"] == {"path": "a.pyth"} and content["speed"] == dict(results.speed)
    assert content["versions"]["torch"] == torch.__version__ and content["machine"]["cores"] > 0
    assert (tmp_path / "confusion.png").read_bytes()[1:4] == b"PNG"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["confusion.png", "predictions.csv", "results.json"]


def test_videos_without_labels_get_predictions_and_no_accuracy(tmp_path: Path) -> None:
    results = results_of([-1, -1], [1, 2], 3)
    results.write(tmp_path)
    content = json.loads((tmp_path / "results.json").read_text())
    accuracies = ("top1", "top5", "mean_class_accuracy", "top1_failed_as_wrong", "top5_failed_as_wrong")
    assert all(content[name] is None for name in accuracies)
    assert "confusion_matrix" not in content and content["counts"]["labelled"] == 0
    rows = list(csv.DictReader((tmp_path / "predictions.csv").open()))
    assert [(row["label"], row["class_1"]) for row in rows] == [("", "1"), ("", "2")]
    assert not (tmp_path / "confusion.png").exists()
    assert results.lines()[0] == "evaluated 2 of 2 videos" and "top-1" not in " ".join(results.lines())


def test_a_big_confusion_matrix_goes_to_its_own_file(tmp_path: Path) -> None:
    results_of([0, 50], [0, 1], 51).write(tmp_path)
    assert json.loads((tmp_path / "results.json").read_text())["confusion_matrix"] == "confusion.csv"
    table = [[int(cell) for cell in row] for row in csv.reader((tmp_path / "confusion.csv").open())]
    assert (len(table), table[0][0], table[50][1], sum(map(sum, table))) == (51, 1, 1, 2)


def test_more_than_a_hundred_classes_are_not_drawn_and_an_older_picture_goes(tmp_path: Path) -> None:
    results_of([0], [0], 3).write(tmp_path)
    results_of([0], [0], 101).write(tmp_path)
    assert not (tmp_path / "confusion.png").exists() and (tmp_path / "confusion.csv").exists()


def test_predictions_keep_awkward_paths_and_equal_basenames_apart(tmp_path: Path) -> None:
    paths = ['a,b/"clip" 1.mp4', "left/clip.mp4", "right/clip.mp4"]
    results_of([0, 1, 2], [0, 1, 0], 7, paths=paths).write(tmp_path, [f"class, {i}" for i in range(7)])
    rows = list(csv.DictReader((tmp_path / "predictions.csv").open(newline="")))
    assert [row["path"] for row in rows] == paths
    assert [row["label"] for row in rows] == ["0", "1", "2"]
    assert [rows[1][f"class_{k}"] for k in range(1, 6)] == ["1", "0", "2", "3", "4"]
    assert [float(rows[1][f"score_{k}"]) for k in range(1, 6)] == [2, 0, -2, -3, -4]
    assert rows[2]["name_1"] == "class, 0"


def test_evaluation_of_nothing_says_so() -> None:
    results = run(FakeLoader([], [0]))
    assert results.top_k(1) is None and results.top_k(1, failed_as_wrong=True) == 0.0
    assert results.lines()[0] == "evaluated 0 of 1 videos (1 failed: see results.json)"


# --- the program

SMALL = (
    "MODEL.MODEL_NAME timesformer_tiny MODEL.NUM_CLASSES 3 TIMESFORMER.DEPTH 1 DATA.NUM_FRAMES 2 DATA.SAMPLING_RATE 4 "
    "DATA.TRAIN_JITTER_SCALES [32,40] DATA.TRAIN_CROP_SIZE 32 DATA.TEST_CROP_SIZE 32 DATA_LOADER.NUM_WORKERS 0 "
    "TEST.NUM_ENSEMBLE_VIEWS 2 TEST.NUM_SPATIAL_CROPS 3 DEVICE cpu"
).split()


@pytest.fixture
def logging_as_before() -> Iterator[None]:
    logger = logging.getLogger("videoattn")
    before = logger.level, logger.propagate, list(logger.handlers)
    yield
    for handler in logger.handlers:
        if handler not in before[2]:
            handler.close()
    logger.level, logger.propagate, logger.handlers = before


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    """Two folders with a video of the same name each, a damaged one, a list of the three, and a training checkpoint."""
    for number, name in enumerate(("left", "right")):
        (tmp_path / name).mkdir()
        write_video(tmp_path / name / "clip.mp4", seed=number)
    (tmp_path / "damaged.mp4").write_bytes((tmp_path / "left/clip.mp4").read_bytes()[:100])
    (tmp_path / "test.csv").write_text("left/clip.mp4 0\ndamaged.mp4 1\nright/clip.mp4 2\n")
    cfg = load_config(None, [*SMALL, "DATA.PATH_TO_DATA_DIR", str(tmp_path), "OUTPUT_DIR", str(tmp_path / "run")])
    with torch_seed(0):
        model = build_model(cfg)
        nn.init.normal_(model.get_parameter("head.weight"))
    state = {"model_state": model.state_dict(), "cfg": dump_config(cfg)}
    save_checkpoint(tmp_path / "run" / "checkpoints", state, epoch=1)
    return tmp_path


def test_the_program_evaluates_real_videos_as_the_model_scores_their_views(
    run_folder: Path, logging_as_before: None, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = str(run_folder / "run/checkpoints/checkpoint_epoch_00001.pyth")
    assert run_tool(main, ["--weights", weights, "TEST.BATCH_SIZE", "4"]) == 0
    folder = run_folder / "run/test"
    said = capsys.readouterr().out
    assert "evaluated 2 of 3 videos (1 failed: see results.json)" in said
    assert "6 views a video, sum of logits" in said and f"results in {folder}" in said

    content = json.loads((folder / "results.json").read_text())
    assert content["counts"] == {"listed": 3, "labelled": 3, "evaluated": 2, "failed": 1, "short_clips": 0}
    assert [(failed["index"], failed["path"]) for failed in content["failed"]] == [(1, str(run_folder / "damaged.mp4"))]
    expected = {"views": 6, "clips": 2, "crops": 3, "sampling": "dense", "channel_order": "RGB", "aggregate": "logits"}
    assert content["protocol"] | expected == content["protocol"]
    assert content["checkpoint"]["source"] == weights
    assert content["annotations"]["sha256"] == hashlib.sha256((run_folder / "test.csv").read_bytes()).hexdigest()

    cfg = load_config(folder / "config.yaml")
    model, loader = build_model(cfg).eval(), build_loader(cfg, "test")
    load_weights(model, weights)
    rows = list(csv.DictReader((folder / "predictions.csv").open(newline="")))
    assert [row["path"] for row in rows] == [str(run_folder / name / "clip.mp4") for name in ("left", "right")]
    for row, piece in zip(rows, [piece for piece in loader.epoch(0) if len(piece.videos)], strict=True):
        with torch.no_grad():
            scores = model(normalize(piece.clips, cfg.data.mean, cfg.data.std)).sum(dim=0)
        assert int(row["class_1"]) == int(scores.argmax())
        assert float(row["score_1"]) == pytest.approx(float(scores.max()), abs=1e-4)


def test_the_program_finds_the_runs_checkpoint_and_an_own_place_for_results(
    run_folder: Path, logging_as_before: None, capsys: pytest.CaptureFixture[str]
) -> None:
    (run_folder / "names.txt").write_text("left\nbroken\nright\n")
    settings = ["DATA.PATH_TO_DATA_DIR", str(run_folder), "OUTPUT_DIR", str(run_folder / "run"), "TEST.AGGREGATE",
                "probabilities", "DATA.ENSEMBLE_METHOD", "max", "TEST.SAVE_RESULTS_PATH", str(run_folder / "here"),
                "DATA.CLASS_NAMES", str(run_folder / "names.txt")]  # fmt: skip
    assert run_tool(main, [*SMALL, *settings]) == 0
    assert "max of probabilities" in capsys.readouterr().out
    content = json.loads((run_folder / "here/results.json").read_text())
    assert [entry["name"] for entry in content["per_class"]] == ["left", "broken", "right"]


def test_the_program_says_in_one_line_what_is_missing(
    run_folder: Path, logging_as_before: None, capsys: pytest.CaptureFixture[str]
) -> None:
    def error(*arguments: str) -> str:
        assert run_tool(main, arguments) == 2
        return capsys.readouterr().err

    data = ["DATA.PATH_TO_DATA_DIR", str(run_folder)]
    run = [*SMALL, *data, "OUTPUT_DIR", str(run_folder / "run")]
    nowhere = str(run_folder / "nowhere")
    assert f"{nowhere}/checkpoints holds no checkpoint; expected --weights FILE" in error("OUTPUT_DIR", nowhere)
    assert f"{nowhere}.pyth: no such file" in error("--weights", f"{nowhere}.pyth", *run)
    assert "nowhere/test.csv does not exist" in error(*run, "DATA.PATH_TO_DATA_DIR", nowhere)
    (run_folder / "names.txt").write_text("left\nright\n")
    message = error(*run, "DATA.CLASS_NAMES", str(run_folder / "names.txt"))
    assert "names.txt: 2 class names, expected MODEL.NUM_CLASSES 3" in message
    checkpoint = run_folder / "run/checkpoints/checkpoint_epoch_00001.pyth"
    torch.save(torch.load(checkpoint) | {"class_names": ["a", "b", "c"]}, checkpoint)
    (run_folder / "names.txt").write_text("a\nc\nb\n")
    message = error(*run, "DATA.CLASS_NAMES", str(run_folder / "names.txt"))
    assert f"class 1 is 'c' in {run_folder}/test.csv and 'b' in {checkpoint}; expected the same order" in message
    (run_folder / "test.csv").write_text("damaged.mp4 1\n")
    message = error(*run)
    assert "no video could be evaluated" in message and "damaged.mp4" in message and message.count("\n") == 1
    assert json.loads((run_folder / "run/test/results.json").read_text())["counts"]["failed"] == 1


def test_settings_that_the_checkpoint_contradicts_are_named_beside_the_accuracy(
    run_folder: Path, logging_as_before: None, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = str(run_folder / "run/checkpoints/checkpoint_epoch_00001.pyth")
    changes = ["ATTENTION.TIME.NAME", "fibonacci", "DATA.SAMPLING_RATE", "1", "DATA.REVERSE_INPUT_CHANNEL", "True"]
    assert run_tool(main, ["--weights", weights]) == 0
    said = capsys.readouterr().out
    assert "other settings" not in said and "not as trained" not in said
    assert json.loads((run_folder / "run/test/results.json").read_text())["departures"] == []
    assert run_tool(main, ["--weights", weights, *changes]) == 0
    said = capsys.readouterr().out
    assert said.count("the weights were trained with other settings than those in use") == 1
    (accuracy,) = [line for line in said.splitlines() if "top-1" in line and "as wrong" not in line]
    assert "(not as trained: ATTENTION.TIME fibonacci instead of dense; DATA.SAMPLING_RATE 1 instead of 4; " in accuracy
    assert json.loads((run_folder / "run/test/results.json").read_text())["departures"] == [
        {"key": "ATTENTION.TIME", "checkpoint": "dense", "here": "fibonacci"},
        {"key": "DATA.SAMPLING_RATE", "checkpoint": "4", "here": "1"},
        {"key": "channel order (DATA.REVERSE_INPUT_CHANNEL)", "checkpoint": "RGB", "here": "BGR"},
    ]


def test_an_error_in_the_settings_of_a_checkpoint_names_the_checkpoint(
    run_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = run_folder / "run/checkpoints/checkpoint_epoch_00001.pyth"
    text = "DATA: {NUM_FRAMES: 4}\nMODEL: {NUM_CLASES: 3}\n_BASE_: other.yaml\n"
    torch.save(torch.load(weights) | {"cfg": text}, weights)
    assert run_tool(main, ["--weights", str(weights)]) == 2
    error = capsys.readouterr().err
    assert f"the settings in {weights}:2: MODEL.NUM_CLASES is not a setting" in error
    assert f"the settings in {weights}:3: _BASE_ is not a setting" in error


def test_layers_with_random_initial_values_are_not_evaluated_unless_asked(
    run_folder: Path, logging_as_before: None, capsys: pytest.CaptureFixture[str]
) -> None:
    lisa = ["--weights", str(run_folder / "run/checkpoints/checkpoint_epoch_00001.pyth"), "ATTENTION.TIME.NAME", "lisa"]
    assert run_tool(main, lisa) == 2
    error = capsys.readouterr().err
    assert "blocks.*.mixers.time.operator.r1" in error and "TEST.ALLOW_NEW_LAYERS" in error and error.count("\n") == 1
    assert not (run_folder / "run/test/results.json").exists()
    assert run_tool(main, [*lisa, "TEST.ALLOW_NEW_LAYERS", "True"]) == 0
    assert "tensors have random initial values" in capsys.readouterr().out


def test_a_checkpoint_without_settings_is_said_not_to_be_compared(
    run_folder: Path, logging_as_before: None, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = run_folder / "bare.pyth"
    state = torch.load(run_folder / "run/checkpoints/checkpoint_epoch_00001.pyth")["model_state"]
    torch.save({"model_state": state}, weights)
    settings = [*SMALL, "DATA.PATH_TO_DATA_DIR", str(run_folder), "OUTPUT_DIR", str(run_folder / "run")]
    assert run_tool(main, [*settings, "TEST.CHECKPOINT_FILE_PATH", str(weights)]) == 0
    assert "(the checkpoint does not say its settings, so they were not compared)" in capsys.readouterr().out
    assert json.loads((run_folder / "run/test/results.json").read_text())["departures"] is None


def test_wrong_lists_and_missing_weights_are_found_before_the_model_is_built(
    run_folder: Path, logging_as_before: None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    built: list[object] = []
    monkeypatch.setattr("videoattn.cli.test.build_model", built.append)
    run = [*SMALL, "DATA.PATH_TO_DATA_DIR", str(run_folder), "OUTPUT_DIR", str(run_folder / "run")]
    for changes, message in (
        (["DATA.PATH_TO_DATA_DIR", str(run_folder / "nowhere")], "nowhere/test.csv does not exist"),
        (["TEST.CHECKPOINT_FILE_PATH", str(run_folder / "none.pyth")], "none.pyth: no such file"),
        (["MODEL.NUM_CLASSES", "2"], "test.csv:3: label '2'"),
    ):
        assert run_tool(main, [*run, *changes]) == 2
        assert message in capsys.readouterr().err and not built
        assert message in (run_folder / "run/test/run.log").read_text()
    (run_folder / "test.csv").write_text("gone.mp4 0\nlost.mp4 1\n")
    assert run_tool(main, run) == 2
    assert "2 of 2 videos" in capsys.readouterr().err and not built


def test_clips_longer_than_their_video_are_said() -> None:
    lines = run(FakeLoader([batch(TWO_VIEWS, num_short=2)], [1])).lines()
    assert "2 of the clips are longer than their video, so that frames repeat" in lines


def test_files_left_out_of_class_folders_are_said_with_the_accuracy(
    run_folder: Path, logging_as_before: None, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a", "b", "c"):
        (run_folder / "folders/test" / name).mkdir(parents=True)
        (run_folder / "folders/test" / name / "clip.mp4").write_bytes((run_folder / "left/clip.mp4").read_bytes())
    (run_folder / "folders/test/a/notes.docx").write_text("x")
    weights = str(run_folder / "run/checkpoints/checkpoint_epoch_00001.pyth")
    assert run_tool(main, ["--weights", weights, "DATA.PATH_TO_DATA_DIR", str(run_folder / "folders")]) == 0
    assert "ignored files that are not videos, by ending: 1 .docx" in capsys.readouterr().out
    assert json.loads((run_folder / "run/test/results.json").read_text())["annotations"]["left_out"] == {".docx": 1}
