#!/usr/bin/env python3
"""Swap dense attention of trained models for sparse attention, and see what is lost: raw, calibrated, fine-tuned.

Examples:
    python benchmarks/swap.py                       # trains nine small models first; about an hour on a CPU
    python benchmarks/swap.py --only divided_short --seeds 0
    python benchmarks/swap.py --methods fibonacci --no-fine-tuning

Three kinds of model are trained on Motion with dense attention, several seeds each. Their attention along one axis is
swapped, for budgets of dense heads, without any gradient: first as it is, then with calibrated projections
(docs/swap.md). Then the swapped models are trained on for a tenth of the steps. Two controls, attention to the token
itself alone and to all tokens alike, say whether the task needs that attention. Writes
benchmarks/results/swap_cpu.json. The same command continues, and repeats no training that is finished.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
_COMMON: dict[str, object] = {
    "DATA.TRAIN_JITTER_SCALES": [32, 32], "DATA.TRAIN_CROP_SIZE": 32, "DATA.TEST_CROP_SIZE": 32,
    "TRAIN.KEEP_CHECKPOINTS": 1, "TRAIN.EVAL_PERIOD": 2, "TEST.NUM_ENSEMBLE_VIEWS": 1, "DATA_LOADER.NUM_WORKERS": 1,
}  # fmt: skip
_TIMESFORMER = {f"TIMESFORMER.{key}": value for key, value in
                {"PATCH_SIZE": 8, "EMBED_DIM": 48, "DEPTH": 3, "NUM_HEADS": 4}.items()}  # fmt: skip
_LONG = {"DATA.NUM_FRAMES": 12, "DATA.SAMPLING_RATE": 4, "MODEL.NUM_CLASSES": 6, "SOLVER.MAX_EPOCH": 4}


@dataclass(frozen=True)
class Task:
    """A kind of model: the clips that it is trained on, the axis that is swapped, and its settings."""

    variant: str
    axis: str
    settings: dict[str, object]
    epochs: int


TASKS = {
    "divided_short": Task("short", "TIME", _TIMESFORMER, 10),
    "joint_short": Task("short", "JOINT", {"VIDEO_VIT.EMBED_DIM": 48}, 10),
    "divided_long": Task("long", "TIME", {**_TIMESFORMER, **_LONG}, 4),
}  # fmt: skip


def run(*words: object) -> None:
    """Run a program of the package. Raises CalledProcessError where it fails."""
    subprocess.run([sys.executable, "-m", "videoattn", *map(str, words)], check=True, cwd=ROOT)


def train(folder: Path, name: str, seed: int) -> Path:
    """Return the run of a dense model, trained unless it was before."""
    task, place = TASKS[name], folder / name / f"seed{seed}"
    data = folder / "data" / task.variant
    frames = {"short": 18, "long": 48}[task.variant]
    run("motion", data, "--variant", task.variant, "--num-train", 3200, "--num-val", 400, "--size", "32x32",
        "--num-frames", frames)  # fmt: skip
    settings = {**_COMMON, **task.settings, "DATA.PATH_TO_DATA_DIR": data, "OUTPUT_DIR": place, "RNG_SEED": seed,
                "DATA.CLASS_NAMES": data / "class_names.txt", "SOLVER.MAX_EPOCH": task.epochs}  # fmt: skip
    cfg = f"configs/Motion/{'video_vit' if task.axis == 'JOINT' else 'divided'}.yaml"
    run("train", "--cfg", cfg, *(word for pair in settings.items() for word in pair))
    return place


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("runs/swap").resolve(), help="where data and runs go")
    parser.add_argument("--only", nargs="+", choices=TASKS, default=list(TASKS), help="default: all")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="default: 0 1 2")
    args = parser.parse_args(argv)
    for seed in args.seeds:
        for name in args.only:
            train(args.folder, name, seed)


if __name__ == "__main__":
    main()
