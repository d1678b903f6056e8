import json
import logging
import os
import signal
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from videoattn.data.clips.batch import Batch, Failure, normalize
from videoattn.data.readers.open_video import DecodeError
from videoattn.engine.checkpoint.files import BEST, list_checkpoints, load_checkpoint, save_checkpoint
from videoattn.engine.distributed import init_distributed
from videoattn.engine.log import RunLog
from videoattn.engine.meters import TooManyBadClipsError
from videoattn.engine.optim import parameter_groups
from videoattn.engine.results import Results
from videoattn.engine.train import Interrupted, TrainingRun, TrainOptions, TrainState, restore_training, train
from videoattn.engine.trainer import Trainer
from videoattn.models import TimeSformer
from videoattn.models.weights.files import read_weight_file
from videoattn.seeding import derive_seed


class Clips:
    """A loader of made-up clips: the label is the brightest quarter of the frame."""

    def __init__(
        self, num_batches=6, batch_size=4, accumulate=1, rank=0, world_size=1, bad=0, sequential=(), on_batch=None
    ):
        self.num_batches, self.accumulate = num_batches, accumulate
        self.whole, self.rank, self.batch_size = batch_size, rank, batch_size // world_size
        self.bad, self.sequential, self.on_batch = bad, sequential, on_batch

    def epoch(self, epoch, start_batch=0):
        for i in range(start_batch, self.num_batches):
            if self.on_batch:
                self.on_batch(epoch, i)
            g = torch.Generator().manual_seed(derive_seed(7, epoch, i))
            clips = torch.randint(0, 100, (self.whole, 3, 2, 16, 16), dtype=torch.uint8, generator=g)
            labels = torch.randint(0, 4, (self.whole,), generator=g)
            for clip, label in zip(clips, labels, strict=True):
                y, x = divmod(int(label), 2)
                clip[..., 8 * y : 8 * y + 8, 8 * x : 8 * x + 8] += 100
            mine = slice(self.rank * self.batch_size, (self.rank + 1) * self.batch_size)
            failures = tuple(Failure(0, "bad.mp4", "bad.mp4: no frames") for _ in range(self.bad))
            count = len(labels[mine])
            zeros = torch.zeros(count, dtype=torch.int64)
            yield Batch(clips[mine], labels[mine], zeros, zeros, failures, 0, count, self.sequential)


def prepare(batch, seed):
    return normalize(batch.clips, (0.45,) * 3, (0.225,) * 3), batch.labels


def build_trainer(process=None, drop_path_rate=0.2, **keys):
    torch.manual_seed(0)
    model = TimeSformer((2, 16, 16), 8, 12, 2, 2, 4, drop_path_rate=drop_path_rate)
    optimizer = torch.optim.AdamW(parameter_groups(model, 0.01))
    return Trainer(model, optimizer, process or init_distributed(device="cpu"), prepare, F.cross_entropy, **keys)


def run(folder, trainer=None, loader=None, state=None, max_epoch=3, lr=3e-3, validate=None, names=None, **options):
    trainer = trainer or build_trainer()
    log = RunLog(folder)
    whole = TrainingRun(
        trainer, loader or Clips(), lambda epoch: lr, TrainOptions(max_epoch=max_epoch, **options),
        folder / "checkpoints", log, state or TrainState(), validate, config_text="A: 1\n", class_names=names,
    )  # fmt: skip
    train(whole)
    log.close()
    return trainer


def equal_states(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal_states(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(equal_states, a, b))
    return a == b


def test_a_few_clips_are_memorised(tmp_path):
    class Same(Clips):
        def epoch(self, epoch, start_batch=0):
            return super().epoch(0, start_batch)

    trainer = run(tmp_path, build_trainer(drop_path_rate=0.0), Same(num_batches=1), max_epoch=30, lr=1e-2)
    clips, labels = prepare(next(Same().epoch(0)), 0)
    assert trainer.model.eval()(clips).argmax(1).equal(labels)


@pytest.mark.parametrize("keys", [{}, {"ema_decay": 0.9}], ids=["plain", "averaged"])
def test_a_run_stopped_within_an_epoch_repeats_the_whole_one_bit_for_bit(tmp_path, keys):
    whole = run(tmp_path / "whole", build_trainer(**keys))

    def interrupt(epoch, batch):
        if (epoch, batch) == (1, 3):
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(Interrupted, match="epoch 2 after step 4 of 6"):
        run(tmp_path / "parts", build_trainer(**keys), Clips(on_batch=interrupt))
    newest = list_checkpoints(tmp_path / "parts" / "checkpoints")[-1]
    assert (newest.epoch, newest.step) == (1, 4)
    resumed = build_trainer(**keys)
    state = restore_training(resumed, load_checkpoint(newest.path))
    run(tmp_path / "parts", resumed, state=state)
    assert equal_states(whole.state_dict(), resumed.state_dict())
    last = [load_checkpoint(list_checkpoints(tmp_path / d / "checkpoints")[-1].path) for d in ("whole", "parts")]
    assert equal_states(*last)


def test_signals_are_handled_as_before_after_training(tmp_path):
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    run(tmp_path, max_epoch=1)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


class HalfBatches:
    """The clips of `Clips` in batches half as large, two of which make an optimizer step."""

    num_batches, accumulate = 12, 2

    def epoch(self, epoch, start_batch=0):
        for batch in Clips().epoch(epoch, start_batch // 2):
            for half in (slice(0, 2), slice(2, 4)):
                zeros = torch.zeros(2, dtype=torch.int64)
                yield Batch(batch.clips[half], batch.labels[half], zeros, zeros, (), 0, 2)


def test_accumulated_batches_equal_one_large_batch(tmp_path):
    whole = run(tmp_path / "a", build_trainer(drop_path_rate=0.0))
    parts = run(tmp_path / "b", build_trainer(drop_path_rate=0.0), HalfBatches())
    for a, b in zip(whole.model.parameters(), parts.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-4)


class Unreadable(Clips):
    """Clips of which no more can be read by the process of rank 1 from the third batch on."""

    def epoch(self, epoch, start_batch=0):
        for number, batch in enumerate(super().epoch(epoch, start_batch)):
            if number == 2 and self.rank == 1:
                raise DecodeError("lost.mp4: the disk does not answer")
            yield batch


def two_processes(rank, folder, port):
    os.environ.update(
        RANK=str(rank), WORLD_SIZE="2", LOCAL_RANK=str(rank), LOCAL_WORLD_SIZE="2", MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
    )  # fmt: skip
    torch.set_num_threads(1)
    process = init_distributed(device="cpu")

    def train_in(name, loader):
        log = RunLog(folder / name if process.is_main else None)
        options = TrainOptions(max_epoch=2, log_period_steps=1)
        trainer = build_trainer(process, drop_path_rate=0.0)
        train(TrainingRun(trainer, loader, lambda epoch: 3e-3, options, folder / name / "checkpoints", log))
        log.close()

    train_in("two", Clips(rank=rank, world_size=2, bad=rank))
    for name, loader in (
        ("unreadable", Unreadable(rank=rank, world_size=2, bad=rank)),
        ("unwritable", Clips(rank=rank, world_size=2)),  # its folder of checkpoints is a file
    ):
        try:
            train_in(name, loader)
        except Exception as error:
            (folder / f"{name}_{rank}").write_text(f"{type(error).__name__}: {error}")
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """Return the folder of two processes that trained, could not read on, and could not save, one after the other."""
    folder = tmp_path_factory.mktemp("both")
    (folder / "unwritable").mkdir()
    (folder / "unwritable" / "checkpoints").write_text("")
    torch.multiprocessing.spawn(two_processes, (folder, 20000 + os.getpid() % 20000), nprocs=2)
    return folder


def events(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def losses(folder):
    return [e["loss"] for e in events(folder) if e["event"] == "train"]


def test_two_processes_have_the_loss_curve_of_one(tmp_path, both):
    run(tmp_path / "one", build_trainer(drop_path_rate=0.0), max_epoch=2, log_period_steps=1)
    one, two = losses(tmp_path / "one"), losses(both / "two")
    assert len(one) == 12 and one == pytest.approx(two, abs=1e-4)
    folders = (tmp_path / "one", both / "two")
    states = [load_checkpoint(list_checkpoints(folder / "checkpoints")[-1].path) for folder in folders]
    for name, tensor in states[0]["model_state"].items():
        torch.testing.assert_close(tensor, states[1]["model_state"][name], rtol=0, atol=1e-4)


def test_bad_clips_of_every_process_are_listed(both):
    bad = [event for event in events(both / "two") if event["event"] == "bad_clip"]
    assert [(event["path"], event["rank"]) for event in bad] == [("bad.mp4", 1)] * 12
    assert [event["bad_clips"] for event in events(both / "two") if event["event"] == "epoch"] == [6, 6]


def test_where_one_process_cannot_read_on_all_end_and_its_bad_clips_are_listed(both):
    assert (both / "unreadable_1").read_text() == "DecodeError: lost.mp4: the disk does not answer"
    assert (both / "unreadable_0").read_text() == "OtherProcessError: process 1: lost.mp4: the disk does not answer"
    assert [event["rank"] for event in events(both / "unreadable") if event["event"] == "bad_clip"] == [1, 1]


def test_where_the_main_process_cannot_save_all_end(both):
    assert (both / "unwritable_0").read_text().endswith("checkpoints is a file, expected a folder for checkpoints")
    assert (both / "unwritable_1").read_text().startswith("OtherProcessError: process 0: ")


def test_a_loss_that_is_not_finite_stops_the_run_before_anything_is_saved(tmp_path):
    trainer = build_trainer()
    nn.init.constant_(trainer.model.head.weight, float("nan"))
    with pytest.raises(FloatingPointError, match="nan in epoch 1 by step 1 .*SOLVER.BASE_LR"):
        run(tmp_path, trainer, log_period_steps=1)
    assert list_checkpoints(tmp_path / "checkpoints") == []


def test_too_many_bad_clips_stop_the_run_and_are_listed(tmp_path):
    with pytest.raises(TooManyBadClipsError, match="6 of 30 clips .*MAX_BAD_FRACTION 0.15"):
        run(tmp_path, loader=Clips(bad=1), max_bad_fraction=0.15)
    events = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [e["reason"] for e in events if e["event"] == "bad_clip"] == ["bad.mp4: no frames"] * 6


def test_videos_decoded_from_their_start_are_counted_and_each_reason_is_logged_once(tmp_path, monkeypatch):
    lines = []
    monkeypatch.setattr(logging.getLogger("videoattn"), "info", lambda text, *values: lines.append(text % values))
    run(tmp_path, loader=Clips(sequential=("container avi",)), max_epoch=2)
    events = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [event["sequential"] for event in events if event["event"] == "epoch"] == [6, 6]
    assert sum(line.endswith("since frames cannot be sought: container avi") for line in lines) == 1
    assert sum("6 videos decoded sequentially" in line for line in lines) == 2


def test_a_tolerable_share_of_bad_clips_is_counted(tmp_path):
    run(tmp_path, loader=Clips(bad=1), max_bad_fraction=0.25, max_epoch=1)
    events = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    (epoch,) = [e for e in events if e["event"] == "epoch"]
    assert (epoch["bad_clips"], epoch["clips"]) == (6, 24)


def test_checkpoints_keep_the_names_of_classes(tmp_path):
    run(tmp_path, max_epoch=1, names=("wave", "clap"))
    (saved,) = list_checkpoints(tmp_path / "checkpoints")
    assert read_weight_file(saved.path).class_names == ("wave", "clap")


def outcome(right, evaluated=10, listed=10):
    """Results of an evaluation of `evaluated` of `listed` videos of class 0, `right` of which got it."""
    scores = torch.tensor([[1.0, 0.0]] * right + [[0.0, 1.0]] * (evaluated - right), dtype=torch.float64)
    failures = [Failure(i, f"{i}.mp4", f"{i}.mp4: no frames") for i in range(evaluated, listed)]
    return Results(
        [f"{i}.mp4" for i in range(listed)], [0] * listed, range(evaluated), scores.reshape(-1, 2), failures, 0, {}, {}
    )


def test_failed_validation_videos_are_counted_in_every_epoch_and_listed_once(tmp_path, monkeypatch):
    lines = []
    monkeypatch.setattr(logging.getLogger("videoattn"), "info", lambda text, *values: lines.append(text % values))
    run(tmp_path, validate=lambda model: outcome(1, evaluated=4, listed=16), max_epoch=2)
    found = events(tmp_path)
    for event in (event for event in found if event["event"] == "epoch"):
        assert (event["val_videos"], event["val_evaluated"], event["val_failed"], event["top1"]) == (16, 4, 12, 0.25)
    failed = [(event["path"], event["reason"]) for event in found if event["event"] == "failed_video"]
    assert failed == [(f"{i}.mp4", f"{i}.mp4: no frames") for i in range(4, 16)]
    assert sum("top1 0.25" in line and "4 of 16 validation videos evaluated, 12 failed" in line for line in lines) == 2


def test_where_no_video_is_evaluated_there_is_no_best(tmp_path, monkeypatch):
    lines = []
    monkeypatch.setattr(logging.getLogger("videoattn"), "info", lambda text, *values: lines.append(text % values))
    run(tmp_path, validate=lambda model: outcome(0, evaluated=0, listed=3), max_epoch=1)
    (epoch,) = [event for event in events(tmp_path) if event["event"] == "epoch"]
    assert (epoch["top1"], epoch["top5"], epoch["val_evaluated"]) == (None, None, 0)
    assert not (tmp_path / "checkpoints" / BEST).exists()
    (saved,) = list_checkpoints(tmp_path / "checkpoints")
    assert load_checkpoint(saved.path)["best"] is None
    assert any("0 of 3 validation videos evaluated, 3 failed, so there is no validation figure" in x for x in lines)


def test_an_epoch_is_not_best_because_fewer_videos_were_evaluated(tmp_path):
    results = iter([outcome(5), outcome(4, evaluated=4), outcome(6, evaluated=9)])
    run(tmp_path, validate=lambda model: next(results), max_epoch=2)
    assert load_checkpoint(tmp_path / "checkpoints" / BEST)["epoch"] == 1
    state = restore_training(build_trainer(), load_checkpoint(list_checkpoints(tmp_path / "checkpoints")[-1].path))
    run(tmp_path, state=state, validate=lambda model: next(results), max_epoch=3)
    best = load_checkpoint(tmp_path / "checkpoints" / BEST)
    assert best["epoch"] == 3 and best["best"]["top1"] == pytest.approx(6 / 9) and best["best"]["score"] == 0.6


def test_the_best_epoch_is_kept_beside_the_newest(tmp_path):
    scores = iter([2, 9, 5, 6, 4])
    seen = []

    def validate(model):
        seen.append({k: v.clone() for k, v in model.state_dict().items()})
        return outcome(next(scores))

    run(tmp_path, validate=validate, max_epoch=5, keep_checkpoints=2)
    folder = tmp_path / "checkpoints"
    assert [c.epoch for c in list_checkpoints(folder)] == [4, 5]
    best = load_checkpoint(folder / BEST)
    assert best["epoch"] == 2 and equal_states(best["model_state"], seen[1])


def test_checkpoints_within_an_epoch_replace_each_other(tmp_path):
    state = {"model_state": {}, "optimizer_state": {}, "epoch": 0}
    for step in (2, 4):
        save_checkpoint(tmp_path, state, epoch=0, step=step)
    assert [(c.epoch, c.step) for c in list_checkpoints(tmp_path)] == [(0, 4)]
    save_checkpoint(tmp_path, state, epoch=1)
    assert [(c.epoch, c.step) for c in list_checkpoints(tmp_path)] == [(1, 0)]


def test_a_full_disk_leaves_the_older_checkpoint_and_no_piece_of_the_new(tmp_path, monkeypatch):
    state = {"model_state": {"w": torch.ones(3)}, "optimizer_state": {}, "epoch": 1}
    old = save_checkpoint(tmp_path, state, epoch=1)

    def full(content, path):
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="checkpoint_epoch_00002.pyth: No space left"):
        save_checkpoint(tmp_path, state, epoch=2)
    assert [p.name for p in tmp_path.iterdir()] == [old.name]
    assert load_checkpoint(old)["model_state"]["w"].equal(torch.ones(3))


def test_averaged_weights_are_evaluated_and_saved(tmp_path):
    trainer = run(tmp_path, build_trainer(ema_decay=0.5), max_epoch=1)
    state = load_checkpoint(list_checkpoints(tmp_path / "checkpoints")[-1].path)
    assert equal_states(state["ema_state"], trainer.averaged_model().state_dict())
    assert not equal_states(state["ema_state"], state["model_state"])


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_low_precision_steps_change_float32_weights(tmp_path, precision):
    trainer = build_trainer(precision=precision)
    before = {k: v.clone() for k, v in trainer.model.state_dict().items()}
    run(tmp_path, trainer, max_epoch=1)
    after = trainer.model.state_dict()
    assert all(v.dtype == torch.float32 and v.isfinite().all() for v in after.values())
    assert not equal_states(before, after)
