"""The training loop. Random choices derive from seed and step alone, so a resumed run repeats an uninterrupted one."""

import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

from torch import nn

from videoattn.data.batch import Batch
from videoattn.engine.checkpoint import copy_as_best, save_checkpoint
from videoattn.engine.distributed import Process, any_process
from videoattn.engine.log import RunLog, Stopwatch, logger, progress_bar
from videoattn.engine.meters import Meters, PendingMeters, check_bad_clips, check_loss
from videoattn.engine.optim import Schedule
from videoattn.engine.trainer import Trainer


class TrainingLoader(Protocol):
    """What `train` needs of a loader: `num_batches` an epoch, of which `accumulate` make an optimizer step."""

    num_batches: int
    accumulate: int

    def epoch(self, epoch: int, start_batch: int = 0) -> Iterator[Batch]: ...


class Interrupted(Exception):  # noqa: N818 - not an error
    """The run was asked to stop and has saved where it stood."""


@dataclass(frozen=True)
class TrainOptions:
    """Plain settings of the loop; periods are in epochs, optimizer steps or minutes as their names say."""

    max_epoch: int
    log_period_steps: int = 10
    eval_period_epochs: int = 1
    checkpoint_period_epochs: int = 1
    checkpoint_steps: int = 0
    checkpoint_minutes: float = 0.0
    keep_checkpoints: int = 3
    max_bad_fraction: float = 1.0


@dataclass
class TrainState:
    """Where a run stands: `epoch` finished epochs, `step` optimizer steps of the next one, and what goes with it."""

    epoch: int = 0
    step: int = 0
    best: float = -1.0
    meters: Meters = field(default_factory=Meters)


@dataclass
class Saver:
    """Writes checkpoints of a run from its main process, and knows when one within an epoch is due."""

    folder: Path
    trainer: Trainer
    options: TrainOptions
    process: Process
    config_text: str = ""
    class_names: Sequence[str] | None = None
    last: float = field(default_factory=time.monotonic)

    def due(self, step: int) -> bool:
        steps, minutes = self.options.checkpoint_steps, self.options.checkpoint_minutes
        return bool(steps and step % steps == 0) or bool(minutes and time.monotonic() - self.last >= 60 * minutes)

    def save(self, state: TrainState, best: bool = False) -> None:
        if self.process.is_main:
            content = self.trainer.state_dict() | {
                "epoch": state.epoch,
                "step": state.step,
                "best": state.best,
                "meters": asdict(state.meters),
                "cfg": self.config_text,
                "class_names": None if self.class_names is None else list(self.class_names),
            }
            path = save_checkpoint(
                self.folder, content, epoch=state.epoch, step=state.step, keep=self.options.keep_checkpoints
            )
            if best:
                copy_as_best(path)
        self.last = time.monotonic()


def restore(trainer: Trainer, checkpoint: dict[str, Any]) -> TrainState:
    """Put a checkpoint of `train` back into `trainer`, and say where the run stood."""
    trainer.load_state_dict(checkpoint)
    return TrainState(checkpoint["epoch"], checkpoint["step"], checkpoint["best"], Meters(**checkpoint["meters"]))


def train(
    trainer: Trainer,
    loader: TrainingLoader,
    schedule: Schedule,
    options: TrainOptions,
    *,
    folder: Path,
    state: TrainState,
    log: RunLog,
    validate: Callable[[nn.Module], dict[str, float]] | None = None,
    config_text: str = "",
    class_names: Sequence[str] | None = None,
) -> TrainState:
    """Train from `state` to `options.max_epoch`, logging, evaluating and saving checkpoints into `folder` on the way.

    `validate(model)` returns figures, of which "top1" chooses the best checkpoint. Raises TooManyBadClipsError,
    FloatingPointError on a loss that is not finite, and Interrupted after SIGINT or SIGTERM, with a checkpoint written.
    Checkpoints keep `config_text` and `class_names`.
    """
    saver = Saver(folder, trainer, options, trainer.process, config_text, class_names)
    reasons: set[str] = set()
    with StopRequest() as stop:
        while state.epoch < options.max_epoch:
            start = time.perf_counter()
            train_epoch(trainer, loader, schedule, options, state, saver, log, stop, reasons)
            minutes = (time.perf_counter() - start) / 60
            figures = {"loss": state.meters.mean_loss, "minutes": round(minutes, 2)}
            last = state.epoch + 1 == options.max_epoch
            if validate is not None and (last or (state.epoch + 1) % options.eval_period_epochs == 0):
                figures |= validate(trainer.averaged_model())
            best = figures.get("top1", -1.0) > state.best
            report_epoch(state, options, figures, log, trainer.process)
            state.best = max(state.best, figures.get("top1", -1.0))
            state.epoch, state.step, state.meters = state.epoch + 1, 0, Meters()
            stopping = any_process(stop.requested)
            if last or best or stopping or state.epoch % options.checkpoint_period_epochs == 0:
                saver.save(state, best)
            if stopping and not last:
                raise Interrupted(f"stopped after epoch {state.epoch} of {options.max_epoch}")
    return state


def train_epoch(
    trainer: Trainer,
    loader: TrainingLoader,
    schedule: Schedule,
    options: TrainOptions,
    state: TrainState,
    saver: Saver,
    log: RunLog,
    stop: "StopRequest",
    reasons: set[str],
) -> None:
    """The steps of epoch `state.epoch` from `state.step` on; `reasons` are those that `report_videos` has logged."""
    process, total = trainer.process, loader.num_batches // loader.accumulate
    batches = loader.epoch(state.epoch, state.step * loader.accumulate)
    pending, stopwatch, title = PendingMeters(), Stopwatch(), f"epoch {state.epoch + 1}/{options.max_epoch}"
    with progress_bar(total, state.step, title, process.is_main) as bar:
        while state.step < total:
            lr, number = schedule(state.epoch + state.step / total), state.epoch * total + state.step
            loss, norm, seen = trainer.step(
                batches, number=number, num_micro=loader.accumulate, lr=lr, stopwatch=stopwatch
            )
            pending.count(loss, seen)
            report_videos(seen, reasons, log)
            state.step += 1
            bar.update()
            at_end = state.step == total
            stopping, due = any_process(stop.requested), any_process(saver.due(state.step))
            if not (at_end or stopping or due or state.step % options.log_period_steps == 0):
                continue
            recent = pending.reduce(process.world_size)
            state.meters.add(recent)
            check_loss(recent.mean_loss, state.epoch, state.step - 1, lr)
            check_bad_clips(state.meters, options.max_bad_fraction, at_end)
            lap = stopwatch.lap()
            figures = {"loss": round(recent.mean_loss, 4), "lr": float(f"{lr:.3e}"), **lap}
            bar.set_postfix(figures)
            log.write(
                "train", step=number + 1, epoch=state.epoch, grad_norm=norm, **figures | {"loss": recent.mean_loss}
            )
            if not at_end and (due or stopping):
                saver.save(state)
            if not at_end and stopping:
                raise Interrupted(f"stopped in epoch {state.epoch + 1} after step {state.step} of {total}")


def report_videos(batches: list[Batch], reasons: set[str], log: RunLog) -> None:
    """Log what could not be decoded, and each of the `reasons` for decoding from the start the first time it is met."""
    for batch in batches:
        for reason in set(batch.in_order) - reasons:
            logger.info("some videos are decoded from their start instead of sought in: %s", reason)
            reasons.add(reason)
        for failure in batch.failures:
            logger.warning("replaced a clip that can't be decoded: %s", failure.reason)
            log.write("bad_clip", path=failure.path, reason=failure.reason)


def report_epoch(
    state: TrainState, options: TrainOptions, figures: dict[str, float], log: RunLog, process: Process
) -> None:
    meters = state.meters
    counts = {"clips": meters.draws, "bad_clips": meters.bad, "short_clips": meters.short, "in_order": meters.in_order}
    log.write("epoch", step=state.epoch + 1, **counts, **figures)
    if process.is_main:
        text = ", ".join(f"{name} {value:.4g}" for name, value in figures.items())
        text += f", {meters.bad} of {meters.tried} clips bad" if meters.bad else ""
        text += f", {meters.short} clips longer than their video" if meters.short else ""
        text += f", {meters.in_order} videos decoded from their start" if meters.in_order else ""
        logger.info("epoch %d/%d: %s", state.epoch + 1, options.max_epoch, text)


class StopRequest:
    """Notes the first SIGINT or SIGTERM, so that a run can stop between two steps; a second one acts as usual."""

    def __init__(self) -> None:
        self.requested = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "StopRequest":
        for number in (signal.SIGINT, signal.SIGTERM):
            self._previous[number] = signal.signal(number, self._note)
        return self

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
        logger.info("stopping after this step; once more to stop at once")
        self.__exit__()

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()
