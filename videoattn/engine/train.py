"""The training loop. Random choices derive from seed and step alone, so a resumed run repeats an uninterrupted one."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn

from videoattn.data.clips.batch import Batch
from videoattn.engine.checkpoint.check import check_content, check_fields
from videoattn.engine.checkpoint.files import BadCheckpointError, copy_as_best, save_checkpoint
from videoattn.engine.distributed import Process, shared_errors, vote
from videoattn.engine.log import RunLog, Stopwatch, progress_bar
from videoattn.engine.meters import Meters, PendingMeters, check_bad_clips, check_loss
from videoattn.engine.optim import Schedule
from videoattn.engine.reports import ClipReports, ValidationReports, report_epoch, shared_batches
from videoattn.engine.results import Results
from videoattn.engine.stop import Interrupted, StopRequest


class TrainingLoader(Protocol):
    """The loader of a run: `num_batches` an epoch, of which `accumulate` make an optimizer step."""

    num_batches: int
    accumulate: int

    def epoch(self, epoch: int, start_batch: int = 0) -> Iterator[Batch]: ...


class Steps(Protocol):
    """The trainer that the loop calls: a `Trainer`, or a `ProbeTrainer` in its place."""

    process: Process

    def step(
        self, batches: Iterator[Batch], *, number: int, num_micro: int, lr: float, stopwatch: Stopwatch
    ) -> tuple[Tensor, float, list[Batch]]: ...

    def averaged_model(self) -> nn.Module: ...

    def check_finite(self, batch: Batch, number: int) -> None: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


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


@dataclass(frozen=True)
class Best:
    """The best validation so far, after `epoch` epochs: top-1 of the `evaluated` among the `listed` videos.

    `score` decides which is best. Failed videos count as wrong in it, so that no epoch is best because fewer videos, or
    easier ones, were evaluated in it. Counts of 0 are not known: an older checkpoint does not say them.
    """

    score: float
    top1: float
    evaluated: int = 0
    listed: int = 0
    epoch: int = 0

    def __str__(self) -> str:
        text = f"{100 * self.top1:.2f} %" + (f" after epoch {self.epoch}" if self.epoch else "")
        return text + (f", of {self.evaluated} of {self.listed} videos" if self.evaluated < self.listed else "")


@dataclass
class TrainState:
    """Progress of a run: `epoch` finished epochs, `step` optimizer steps of the next one, and what goes with it."""

    epoch: int = 0
    step: int = 0
    best: Best | None = None
    meters: Meters = field(default_factory=Meters)


@dataclass
class TrainingRun:
    """A run of training: its trainer, loader, options, state and files.

    `validate(model)` evaluates; the top-1 accuracy of what it returns chooses the best checkpoint. Checkpoints go to
    `folder`, and keep `config_text`, `class_names` and `notes`, which are plain values.
    """

    trainer: Steps
    loader: TrainingLoader
    schedule: Schedule
    options: TrainOptions
    folder: Path
    log: RunLog
    state: TrainState = field(default_factory=TrainState)
    validate: Callable[[nn.Module], Results] | None = None
    config_text: str = ""
    class_names: Sequence[str] | None = None
    notes: Mapping[str, Any] = field(default_factory=dict)
    last_saved: float = field(default_factory=time.monotonic, init=False)

    def __post_init__(self) -> None:
        self.clip_reports, self.validation_reports = ClipReports(self.log), ValidationReports(self.log)

    @property
    def steps_per_epoch(self) -> int:
        """Return the number of optimizer steps of an epoch."""
        return self.loader.num_batches // self.loader.accumulate

    def is_checkpoint_due(self) -> bool:
        """Return whether a checkpoint within the epoch is due by this process's clock or the number of steps."""
        steps, minutes = self.options.checkpoint_steps, self.options.checkpoint_minutes
        by_step = bool(steps) and self.state.step % steps == 0
        return by_step or (bool(minutes) and time.monotonic() - self.last_saved >= 60 * minutes)

    def save(self, best: bool = False) -> None:
        """Write a checkpoint from the main process, and with `best` a copy of it as the best one."""
        with shared_errors():
            if self.trainer.process.is_main:
                path = save_checkpoint(
                    self.folder, self._content(), epoch=self.state.epoch, step=self.state.step,
                    keep=self.options.keep_checkpoints,
                )  # fmt: skip
                if best:
                    copy_as_best(path)
        self.last_saved = time.monotonic()

    def _content(self) -> dict[str, Any]:
        return self.trainer.state_dict() | {
            "epoch": self.state.epoch,
            "step": self.state.step,
            "best": None if self.state.best is None else asdict(self.state.best),
            "meters": asdict(self.state.meters),
            "cfg": self.config_text,
            "class_names": None if self.class_names is None else list(self.class_names),
            **self.notes,
        }


def restore_training(trainer: Steps, checkpoint: dict[str, Any]) -> TrainState:
    """Put a checkpoint of `train` back into `trainer`, and return the state that the run was in.

    Raises BadCheckpointError where it lacks something or does not fit.
    """
    check_content(checkpoint)
    meters, best = checkpoint["meters"], checkpoint["best"]
    check_fields(meters, dict.fromkeys(x.name for x in fields(Meters)), "meters")
    if not isinstance(best, Mapping):  # older checkpoints have the accuracy alone, -1 where there is none
        best = None if best is None or best < 0 else {"score": best, "top1": best}
    if best is not None:
        check_fields(best, dict.fromkeys(x.name for x in fields(Best)), "best")
        if not {"score", "top1"} <= set(best):
            raise BadCheckpointError(f"best is {best}, expected a score and top1")
    trainer.load_state_dict(checkpoint)
    return TrainState(checkpoint["epoch"], checkpoint["step"], Best(**best) if best else None, Meters(**meters))


def train(run: TrainingRun) -> TrainState:
    """Train from `run.state` to the last epoch, logging, evaluating and saving checkpoints on the way.

    Raises TooManyBadClipsError, FloatingPointError on gradients, weights or a loss that are not finite, before such
    weights are saved, and Interrupted after SIGINT or SIGTERM, with a checkpoint written.
    """
    options, state = run.options, run.state
    with StopRequest(run.trainer.process.is_main) as stop:
        while state.epoch < options.max_epoch:
            start = time.perf_counter()
            train_epoch(run, stop)
            minutes = (time.perf_counter() - start) / 60
            figures: dict[str, Any] = {"loss": state.meters.mean_loss, "minutes": round(minutes, 2)}
            last, best = state.epoch + 1 == options.max_epoch, None
            if run.validate is not None and (last or (state.epoch + 1) % options.eval_period_epochs == 0):
                results = run.validate(run.trainer.averaged_model())
                best = better(results, state.epoch + 1, state.best)
                with shared_errors():
                    figures |= run.validation_reports.figures(results, state.epoch + 1)
            with shared_errors():
                report_epoch(state.meters, state.epoch, options.max_epoch, figures, run.log)
            state.best = best or state.best
            state.epoch, state.step, state.meters = state.epoch + 1, 0, Meters()
            (stopping,) = vote(stop.requested)
            if last or best or stopping or state.epoch % options.checkpoint_period_epochs == 0:
                run.save(best is not None)
            if stopping and not last:
                raise Interrupted(f"stopped after epoch {state.epoch} of {options.max_epoch}")
    return state


def better(results: Results, epoch: int, best: Best | None) -> Best | None:
    """Return the figures of `results`, after `epoch` epochs, where they are better than `best`; else None."""
    top1, score = results.top_k(1), results.top_k(1, failed_as_wrong=True)
    if top1 is None or score is None or (best is not None and score <= best.score):
        return None
    return Best(score, top1, len(results.videos), len(results.paths), epoch)


def train_epoch(run: TrainingRun, stop: StopRequest) -> None:
    """Run the remaining steps of the state's epoch."""
    trainer, state, options, reports = run.trainer, run.state, run.options, run.clip_reports
    process, total, num_micro = trainer.process, run.steps_per_epoch, run.loader.accumulate
    batches = shared_batches(run.loader.epoch(state.epoch, state.step * num_micro), num_micro, reports.flush)
    pending, stopwatch, title = PendingMeters(), Stopwatch(), f"epoch {state.epoch + 1}/{options.max_epoch}"
    with progress_bar(total, state.step, title, process.is_main) as bar:
        while state.step < total:
            lr, number = run.schedule(state.epoch + state.step / total), state.epoch * total + state.step
            where = f"in epoch {state.epoch + 1} by step {state.step + 1} at learning rate {lr:.3g}"
            with divergence_named(where, reports.flush):  # gradients are the same in all processes
                loss, norm, seen = trainer.step(batches, number=number, num_micro=num_micro, lr=lr, stopwatch=stopwatch)
            pending.count(loss, seen)
            reports.note(seen)
            state.step += 1
            bar.update()
            at_end = state.step == total
            stopping, due = vote(stop.requested, run.is_checkpoint_due())
            if not (at_end or stopping or due or state.step % options.log_period_steps == 0):
                continue
            recent = pending.reduce(process.world_size)
            state.meters.add(recent)
            if recent.bad or recent.in_order:
                reports.flush()
            with divergence_named(where):
                check_loss(recent.mean_loss)
            check_bad_clips(state.meters, options.max_bad_fraction, at_end)
            lap = stopwatch.lap()
            figures = {"loss": round(recent.mean_loss, 4), "lr": float(f"{lr:.3e}"), **lap}
            bar.set_postfix(figures)
            with shared_errors():
                run.log.write(
                    "train", step=number + 1, epoch=state.epoch, grad_norm=norm, **figures | {"loss": recent.mean_loss}
                )
            if at_end or due or stopping:  # what follows may save
                with divergence_named(where), shared_errors():
                    trainer.check_finite(seen[-1], number)
            if not at_end and (due or stopping):
                run.save()
            if not at_end and stopping:
                raise Interrupted(f"stopped in epoch {state.epoch + 1} after step {state.step} of {total}")


@contextmanager
def divergence_named(where: str, before_raising: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Add to a FloatingPointError where it arose and what helps."""
    try:
        yield
    except FloatingPointError as error:
        before_raising()
        raise FloatingPointError(
            f"{error} {where}; lower SOLVER.BASE_LR, clip gradients (SOLVER.CLIP_GRAD_L2NORM), or set TRAIN.PRECISION "
            "to bf16 or fp32"
        ) from error
