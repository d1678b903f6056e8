"""Runs of a study: which there are, how one is trained and evaluated, and what it left in its folder."""

import fcntl
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from videoattn.config.load import ConfigError, changed_keys, dump_config, load_config, parse_config
from videoattn.engine.checkpoint.files import list_checkpoints
from videoattn.files import atomic_write

ROOT = Path(__file__).parents[1]
CONFIGS = ROOT / "configs/Motion"
# Settings that leave a run's result as it is.
FREE_KEYS = (
    "OUTPUT_DIR", "LOG_PERIOD", "DEVICE", "DIST_BACKEND", "DATA_LOADER.", "TENSORBOARD.", "TRAIN.EVAL_PERIOD",
    "TRAIN.CHECKPOINT_", "TRAIN.KEEP_CHECKPOINTS", "TRAIN.AUTO_RESUME", "DATA.PATH_TO_DATA_DIR", "DATA.CLASS_NAMES",
)  # fmt: skip


@dataclass(frozen=True)
class Setting:
    """One configuration of the comparison; along `axis` it attends by `method`, elsewhere densely."""

    name: str
    path: Path
    backbone: str
    method: str
    axis: str


@dataclass(frozen=True)
class Run:
    """One training and its evaluation; `data_settings` are those of the clips in the folder `data`."""

    setting: Setting
    variant: str
    seed: int
    folder: Path
    data: Path
    data_settings: dict[str, Any] = field(hash=False)
    overrides: tuple[str, ...]

    @property
    def place(self) -> str:
        return f"{self.variant}/{self.setting.name}"

    @property
    def name(self) -> str:
        return f"{self.place}/seed{self.seed}"

    def config_text(self) -> str:
        return dump_config(load_config(self.setting.path, self.overrides))


class Stopped(Exception):  # noqa: N818 - not an error
    """The study was asked to stop."""


def find_settings(folder: Path = CONFIGS) -> list[Setting]:
    """Dense attention, and each method along each axis, of both backbones, by the names of the files in `folder`."""
    settings = []
    for path in sorted(folder.glob("*.yaml")):
        match = re.fullmatch(r"divided(?:_(\w+)_(space|time))?|joint(?:_(\w+))?", path.stem)
        if match:
            backbone = path.stem.split("_")[0]
            axis = "joint" if backbone == "joint" else match[2] or "both"
            settings.append(Setting(path.stem, path, backbone, match[1] or match[3] or "dense", axis))
    return settings


def changed_settings(old: str, new: str) -> list[str]:
    """Keys at which two configs differ in what a result depends on; settings that `old` does not know yet are default.

    A text that is no config any more differs as a whole.
    """
    try:
        old = dump_config(parse_config(old, "earlier config"))
    except ConfigError as error:
        return [error.problems[0]]
    return [key for key in changed_keys(old, new) if not key.startswith(FREE_KEYS)]


def find_changes(run: Run) -> list[str]:
    """In which settings the run that lies in the folder, finished or not, differs from `run`; none if nothing is."""
    config, data = run.folder / "config.yaml", run.folder / "data.json"
    changes = changed_settings(config.read_text(encoding="utf-8"), run.config_text()) if config.exists() else []
    if data.exists() and read_json(data) != run.data_settings:
        changes.append("the clips")
    return changes


def is_finished(run: Run) -> bool:
    return (run.folder / "results.json").exists() and not find_changes(run)


def refuse_or_remove_changed(runs: Sequence[Run], overwrite: bool) -> None:
    """Runs made with other settings can't be continued: raise ValueError naming them, or remove them if `overwrite`."""
    changed = {run: changes for run in runs if (changes := find_changes(run))}
    if changed and not overwrite:
        first, changes = next(iter(changed.items()))
        raise ValueError(
            f"{len(changed)} runs were made with other settings, the first {first.folder} ({', '.join(changes)}); "
            "name another --folder, or add --overwrite to make them anew"
        )
    for run in changed:
        (run.folder / "results.json").unlink(missing_ok=True)  # first: what is left half removed is not finished
        shutil.rmtree(run.folder)


class Programs:
    """Starts the project's programs, several at once if asked, and stops them so that they can continue later.

    `threads` is the number of processor threads of each; None leaves that to them. `lock` is a file descriptor that
    they hold open.
    """

    def __init__(self, threads: int | None = None, lock: int | None = None) -> None:
        search_path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
        self.environment = os.environ | {"PYTHONPATH": search_path}
        self.threads = threads
        self.lock = lock
        self.num_stops = 0
        self._live: set[subprocess.Popen[bytes]] = set()
        self._guard = threading.RLock()  # a signal may call `stop` in the midst of `run`

    def run(self, log: Path, program: str, *arguments: object, threads: int | None = None) -> None:
        """Run a program to its end, its output appended to `log`; `threads` takes the place of the usual number.

        Raises OSError with the last line of the output if it fails, and Stopped once the study was asked to stop.
        """
        command = [sys.executable, str(ROOT / program), *map(str, arguments)]
        threads = threads or self.threads
        environment = self.environment | ({"OMP_NUM_THREADS": str(threads)} if threads else {})
        with open(log, "ab") as output:
            with self._guard:
                if self.num_stops:
                    raise Stopped
                # A group of its own: Ctrl-C reaches it through `stop` alone, once.
                process = subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, process_group=0,
                    env=environment, pass_fds=() if self.lock is None else (self.lock,),
                )  # fmt: skip
                self._live.add(process)
                if self.num_stops:  # a signal came while it was started
                    process.send_signal(signal.SIGINT)
            status = process.wait()
        with self._guard:
            self._live.discard(process)
        if status and self.num_stops:
            raise Stopped
        if status:
            lines = log.read_text(encoding="utf-8", errors="replace").split("\n")
            last = next((line.strip() for line in reversed(lines) if line.strip()), "no output")
            raise OSError(f"{program} failed with status {status}: {last} (see {log})")

    def stop(self) -> None:
        """Ask all that run to save and end; the second time to end without saving, the third time end them."""
        with self._guard:
            self.num_stops += 1
            for process in self._live:
                process.send_signal(signal.SIGINT if self.num_stops < 3 else signal.SIGKILL)


@contextmanager
def stopping_on_signals(programs: Programs) -> Iterator[None]:
    """Within, Ctrl-C and SIGTERM (and SIGHUP, unless nohup has it ignored) stop the programs; main thread only."""

    def handle(number: int, frame: FrameType | None) -> None:
        programs.stop()
        hint = "; once more not to wait for that" if programs.num_stops == 1 else ""
        print(f"stopping, the programs save where they stand{hint}", file=sys.stderr, flush=True)

    numbers = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        numbers.append(signal.SIGHUP)
    previous = {number: signal.signal(number, handle) for number in numbers}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextmanager
def locked(folder: Path) -> Iterator[int]:
    """Keeps other studies out of `folder`, also while a program lives that this one left behind when it was killed.

    Raises ValueError if the folder is in use.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"{folder} is in use by another study, or by a program that a killed one left") from None
        yield file.fileno()


def execute(run: Run, programs: Programs) -> dict[str, Any]:
    """Train, from where an earlier attempt stood, and evaluate the last weights; writes and returns the record.

    The best checkpoint is not taken: it was chosen on the clips that it would be evaluated on.
    """
    run.folder.mkdir(parents=True, exist_ok=True)
    write_json(run.folder / "data.json", run.data_settings)
    log, settings = run.folder / "output.log", ("--cfg", run.setting.path, *run.overrides)
    programs.run(log, "tools/train_net.py", *settings)
    weights = list_checkpoints(run.folder / "checkpoints")[-1].path
    programs.run(log, "tools/test_net.py", "--weights", weights, *settings)
    results = read_json(run.folder / "test" / "results.json")
    record = {
        "variant": run.variant, "setting": run.setting.name, "seed": run.seed, "top1": results["top1"],
        "videos": results["counts"]["evaluated"], **read_training(run.folder / "log.jsonl"),
        "machine": results["machine"], "versions": results["versions"],
    }  # fmt: skip
    write_json(run.folder / "results.json", record)
    return record


def read_training(log: Path) -> dict[str, Any]:
    """Minutes of training and validation, the last epoch's mean loss, epochs, and top-1 after each, from a run's log.

    Minutes are those of all attempts, from each one's start to the last event that it logged.
    """
    minutes, begun, epochs = 0.0, 0.0, {}
    for line in log.read_text(encoding="utf-8").splitlines():
        try:
            event = json.loads(line)
        except json.JSONDecodeError:  # the half line of a killed run
            continue
        if event["event"] in ("start", "resume"):
            begun = event["time"]
        minutes, begun = minutes + (event["time"] - begun) / 60, event["time"]
        if event["event"] == "epoch":
            epochs[event["step"]] = event
    last = epochs[max(epochs)]
    top1 = [epochs[number].get("top1") for number in sorted(epochs)]
    return {"minutes": round(minutes, 2), "final_loss": last["loss"], "epochs": max(epochs), "top1_by_epoch": top1}


def execute_all(
    runs: Sequence[Run], programs: Programs, jobs: int, report: Callable[[Run, dict[str, Any] | Exception], None]
) -> list[Run]:
    """Run all, `jobs` at once in the order given, and return those that failed; `report` hears of each end.

    Returns early, with all programs ended, once these were asked to stop.
    """
    failed = []
    with ThreadPoolExecutor(max(jobs, 1)) as pool:
        futures = {pool.submit(execute, run, programs): run for run in runs}
        for future in as_completed(futures):
            run = futures[future]
            outcome: dict[str, Any] | Exception
            try:
                outcome = future.result()
            except Stopped:
                continue
            except (OSError, ValueError, LookupError) as error:
                failed.append(run)
                outcome = error
            report(run, outcome)
    return failed


def estimate_minutes(runs: Sequence[Run], finished: Sequence[tuple[str, str, float]], jobs: int) -> float | None:
    """Estimate how long `runs` will take, from (variant, setting, minutes) of finished ones; None while none is known.

    A run is taken to last as those of its setting and variant do, else of its variant, else as any.
    """
    total = 0.0
    for run in runs:
        same = [m for variant, setting, m in finished if (variant, setting) == (run.variant, run.setting.name)]
        alike = [m for variant, _, m in finished if variant == run.variant]
        known = same or alike or [m for *_, m in finished]
        if not known:
            return None
        total += sum(known) / len(known)
    return total / jobs


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def write_json(path: Path, content: Any) -> None:
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")
