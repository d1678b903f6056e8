#!/usr/bin/env python3
"""Compare attention methods on Motion: train each one along each axis by one recipe, and report.

Examples:
    python benchmarks/motion_study.py                                  # for a CPU; hours
    python benchmarks/motion_study.py --size full --jobs 4             # for a GPU
    python benchmarks/motion_study.py --only 'short/*_time/*' 'short/divided/*' --seeds 0
    python benchmarks/motion_study.py --report-only                    # from what has run so far

The settings are those of configs/Motion: divided.yaml and joint.yaml with dense attention, and a file for each method
and axis; each is trained on short and long clips with several seeds, then evaluated on its last weights. Costs and
latency are measured when nothing trains any more. The same command continues a study that was stopped (Ctrl-C, or
killed) and repeats no run that is finished, or that the JSON already holds with the same settings. Writes
benchmarks/results/motion_study_SIZE.json, docs/motion_study.md and docs/images/motion_study_SIZE.png. Exit status 1:
something failed, as reported; 130: stopped.
"""

import argparse
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import date
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from motion_study_archive import adopt_runs, fingerprint
from motion_study_measure import is_current, measure_variants
from motion_study_report import VARIANTS, summarise, write_report
from motion_study_runs import (
    ROOT,
    Programs,
    Run,
    Setting,
    Stopped,
    estimate_minutes,
    execute_all,
    find_changes,
    find_settings,
    is_finished,
    locked,
    read_json,
    refuse_or_remove_changed,
    stopping_on_signals,
)

from videoattn.cli.run_tool import INTERRUPTED, run_tool


@dataclass(frozen=True)
class Clips:
    """The clips of one variant, and how many frames of them a model sees, `sampling_rate` apart."""

    num_classes: int
    num_train: int
    num_val: int
    rendered_frames: int
    num_frames: int
    sampling_rate: int
    num_views: int
    epochs: int


@dataclass(frozen=True)
class Size:
    """A model, its recipe and its clips, the same for all settings. `image` and `patch` in pixels.

    `skipped` are the blocks that skip attention where the method is SkipAt.
    """

    image: int
    patch: int
    width: int
    depth: int
    heads: int
    skipped: str
    batch: int
    lr: float
    precision: str
    rounds: int  # how often latency is measured
    short: Clips
    long: Clips


SIZES = {
    "small": Size(
        image=32, patch=8, width=48, depth=3, heads=4, skipped="1", batch=16, lr=1.5e-3, precision="fp32", rounds=20,
        short=Clips(num_classes=8, num_train=3200, num_val=400, rendered_frames=18, num_frames=8, sampling_rate=2,
                    num_views=3, epochs=10),
        long=Clips(num_classes=6, num_train=3200, num_val=400, rendered_frames=48, num_frames=12, sampling_rate=4,
                   num_views=1, epochs=4),
    ),
    "full": Size(
        image=64, patch=8, width=128, depth=6, heads=4, skipped="2-3", batch=64, lr=1e-3, precision="bf16", rounds=20,
        short=Clips(num_classes=8, num_train=20000, num_val=2000, rendered_frames=34, num_frames=16, sampling_rate=2,
                    num_views=3, epochs=30),
        long=Clips(num_classes=6, num_train=20000, num_val=2000, rendered_frames=96, num_frames=48, sampling_rate=2,
                   num_views=1, epochs=30),
    ),
}  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="small", help="small: for CPUs, full: for a GPU")
    parser.add_argument("--folder", type=Path, default=Path("runs/motion_study"), help="where data and runs go")
    parser.add_argument("--out", type=Path, default=ROOT, help="gets benchmarks/results and docs; default: the project")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="default: 0 1 2")
    parser.add_argument("--only", nargs="+", metavar="PATTERN", default=["*"],
                        help="runs whose VARIANT/SETTING/seedN matches, such as 'long/joint*/seed0'")  # fmt: skip
    parser.add_argument("--jobs", type=int, default=1, metavar="N",
                        help="runs at once, each with OMP_NUM_THREADS=1; default: one, with all threads")  # fmt: skip
    parser.add_argument("--num-workers", type=int, metavar="N", help="decoding processes of a run; default: cores/jobs")
    parser.add_argument("--overwrite", action="store_true", help="replace data and runs made with other settings")
    parser.add_argument("--report-only", action="store_true", help="run and measure nothing")
    parser.add_argument("--measure-only", action="store_true", help="train nothing; measure costs and latency anew")
    args = parser.parse_args(argv)
    if args.jobs < 1:
        raise ValueError(f"--jobs expects 1 or more, got {args.jobs}")

    folder, size = args.folder / args.size, SIZES[args.size]
    planned = plan(size, folder, args.seeds, args.num_workers or max(1, min(8, (os.cpu_count() or 1) // args.jobs)))
    runs = select(planned, args.only)
    failures: list[str] = []
    if args.report_only and not folder.exists():
        raise ValueError(f"--report-only: nothing has run in {folder}; give the --folder of a study")
    if not args.report_only:
        with locked(folder) as lock:
            adopted = adopt_runs(args.out / f"benchmarks/results/motion_study_{args.size}.json", planned)
            if adopted:
                print(f"{len(adopted)} runs are known from {args.out}/benchmarks/results")
            programs = Programs(None if args.jobs == 1 else 1, lock)
            with stopping_on_signals(programs):
                try:
                    if not args.measure_only:
                        failures += train_all(runs, programs, args.jobs, args.overwrite)
                    file = folder / "measurements.json"
                    failures += measure_variants(
                        runs, planned, programs, file, rounds=size.rounds, anew=args.measure_only
                    )
                except Stopped:
                    print("stopped; the same command continues from there, --report-only shows what has run")
                    return INTERRUPTED
    for path in write_report(args.out, collect(args.size, folder, args.seeds), list(SIZES)):
        print(f"written: {path}")
    for failure in failures:
        print(f"FAILED {failure}")
    return 1 if failures else 0


def plan(size: Size, folder: Path, seeds: Sequence[int], num_workers: int = 1) -> list[Run]:
    """Every setting of a seed on short clips, on long ones, then the next seed: a study that is stopped is balanced."""
    settings = find_settings()
    return [
        Run(
            setting=setting,
            variant=variant,
            seed=seed,
            folder=(place := folder / variant / setting.name / f"seed{seed}"),
            data=(data := folder / "data" / variant),
            data_settings=describe_data(size, variant),
            overrides=tuple(override(size, variant, setting, seed, place, data, num_workers)),
        )
        for seed in seeds
        for variant in VARIANTS
        for setting in settings
    ]


def describe_data(size: Size, variant: str) -> dict[str, Any]:
    """The settings of a variant's clips, as datasets/make_motion.py notes them."""
    clips: Clips = getattr(size, variant)
    return {
        "variant": variant, "num_train": clips.num_train, "num_val": clips.num_val, "width": size.image,
        "height": size.image, "num_frames": clips.rendered_frames, "seed": 0,
    }  # fmt: skip


def override(
    size: Size, variant: str, setting: Setting, seed: int, folder: Path, data: Path, num_workers: int
) -> list[str]:
    """KEY VALUE pairs that make a run of the study of a file in configs/Motion."""
    clips: Clips = getattr(size, variant)
    pairs: dict[str, object] = {
        "DATA.PATH_TO_DATA_DIR": data, "DATA.CLASS_NAMES": data / "class_names.txt", "OUTPUT_DIR": folder,
        "RNG_SEED": seed, "DATA.NUM_FRAMES": clips.num_frames, "DATA.SAMPLING_RATE": clips.sampling_rate,
        "DATA.TRAIN_JITTER_SCALES": [size.image, size.image], "DATA.TRAIN_CROP_SIZE": size.image,
        "DATA.TEST_CROP_SIZE": size.image, "MODEL.NUM_CLASSES": clips.num_classes,
        "TIMESFORMER.PATCH_SIZE": size.patch, "TIMESFORMER.EMBED_DIM": size.width, "TIMESFORMER.DEPTH": size.depth,
        "TIMESFORMER.NUM_HEADS": size.heads, "TRAIN.BATCH_SIZE": size.batch, "TRAIN.PRECISION": size.precision,
        "TRAIN.KEEP_CHECKPOINTS": 1, "SOLVER.BASE_LR": size.lr, "SOLVER.MAX_EPOCH": clips.epochs,
        "TEST.NUM_ENSEMBLE_VIEWS": clips.num_views, "TEST.PRECISION": size.precision,
        "DATA_LOADER.NUM_WORKERS": num_workers,
    }  # fmt: skip
    if setting.method == "skipat":
        pairs[f"ATTENTION.SKIP.{setting.axis.upper()}"] = size.skipped
    return [str(item) for pair in pairs.items() for item in pair]


def select(runs: Sequence[Run], patterns: Sequence[str]) -> list[Run]:
    """The runs whose name matches a pattern. Raises ValueError where a pattern matches none."""
    for pattern in patterns:
        if not any(fnmatchcase(run.name, pattern) for run in runs):
            raise ValueError(f"--only {pattern} matches no run; their names are such as {runs[0].name}")
    return [run for run in runs if any(fnmatchcase(run.name, pattern) for pattern in patterns)]


def train_all(runs: Sequence[Run], programs: Programs, jobs: int, overwrite: bool) -> list[str]:
    """Make the clips and do every run that is not finished, saying how far it is; what failed, in a line each."""
    refuse_or_remove_changed(runs, overwrite)
    left = [run for run in runs if not is_finished(run)]
    print(f"{len(runs)} runs, {len(runs) - len(left)} of them finished before", flush=True)
    for run in {run.variant: run for run in left}.values():
        make_data(run, programs, overwrite)
    finished = [minutes_of(run) for run in runs if run not in left]
    open_runs, failures = list(left), []

    def report(run: Run, outcome: dict[str, Any] | Exception) -> None:
        open_runs.remove(run)
        if isinstance(outcome, Exception):
            failures.append(f"{run.name}: {outcome}")
            said = f"FAILED: {outcome}"
        else:
            finished.append(minutes_of(run))
            said = f"top-1 {100 * outcome['top1']:.1f} % after {outcome['minutes']:.1f} min of training"
        minutes = estimate_minutes(open_runs, finished, jobs)
        ahead = f"; about {show_minutes(minutes)} left" if open_runs and minutes is not None else ""
        number = f"{len(runs) - len(open_runs):{len(str(len(runs)))}}/{len(runs)}"
        print(f"{time.strftime('%H:%M')} [{number}] {run.name}: {said}{ahead}", flush=True)

    execute_all(left, programs, jobs, report)
    if programs.num_stops:
        raise Stopped
    return failures


def make_data(run: Run, programs: Programs, overwrite: bool) -> None:
    """Render the clips of a run's variant, unless they are there."""
    clips, log = run.data_settings, run.data.parent / f"{run.variant}.log"
    print(f"{run.data}: rendering {clips['num_train'] + clips['num_val']} clips if they are not there yet", flush=True)
    log.parent.mkdir(parents=True, exist_ok=True)
    programs.run(
        log, "datasets/make_motion.py", run.data, "--variant", run.variant, "--num-train", clips["num_train"],
        "--num-val", clips["num_val"], "--size", f"{clips['width']}x{clips['height']}", "--num-frames",
        clips["num_frames"], "--seed", clips["seed"], *["--overwrite"] * overwrite,
    )  # fmt: skip


def collect(name: str, folder: Path, seeds: Sequence[int]) -> dict[str, Any]:
    """Return the content of the study's JSON: each setting's summary, every finished run, and circumstances."""
    names = [path.name.removeprefix("seed") for path in folder.glob("*/*/seed*")]
    seeds = sorted({*seeds, *(int(name) for name in names if name.isdecimal())})
    runs = plan(SIZES[name], folder, seeds)
    ended = [run for run in runs if (run.folder / "results.json").exists()]
    changed = [run for run in ended if find_changes(run)]
    if changed:
        print(f"left out, since they were made with other settings: {', '.join(run.name for run in changed)}")
    records = [
        read_json(run.folder / "results.json") | {"fingerprint": fingerprint(run)}
        for run in ended
        if run not in changed
    ]
    file = folder / "measurements.json"
    measurements = read_json(file) if file.exists() else {}
    for run in runs:
        entries = measurements.get(run.variant, {}).get("settings", {})
        if run.setting.name in entries and not is_current(entries[run.setting.name], run):
            del entries[run.setting.name]
    head: dict[str, Any] = {"date": date.today().isoformat(), "name": name, "size": asdict(SIZES[name])}
    head["command"] = f"python benchmarks/motion_study.py --size {name}"
    return head | summarise(find_settings(), records, measurements, len(seeds))


def minutes_of(run: Run) -> tuple[str, str, float]:
    return run.variant, run.setting.name, read_json(run.folder / "results.json")["minutes"]


def show_minutes(minutes: float) -> str:
    hours, rest = divmod(round(minutes), 60)
    return f"{hours} h {rest:02} min" if hours else f"{rest} min"


if __name__ == "__main__":
    sys.exit(run_tool(main))
