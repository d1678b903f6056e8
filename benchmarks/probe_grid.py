#!/usr/bin/env python3
"""Compare a grid of eight probes, trained at once on a frozen encoder, with eight runs of one probe each, on Motion.

Examples:
    python benchmarks/probe_grid.py
    python benchmarks/probe_grid.py --kinds linear --epochs 2 --folder runs/probe_grid_linear

The encoder is the zoo's dense TimeSformer, trained on Motion's short clips (motion_timesformer_dense). Probes learn the
classes of the long clips, which have more frames, so that positions in time are resized. Prints for each cell of the
grid the best top-1 on validation clips in both ways, and what the grid cost, compared with the median of the single
runs. Time is processor time of all processes of a run, since the clock depends on other programs; what Python and
imports take is told apart. Writes all with machine and versions to --out. Finished runs are kept. Exit status 1: the
grid takes more than 1.5 times one run, or is less accurate.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

from motion_temporal import processor_seconds, program

from videoattn.cli.run_tool import run_tool
from videoattn.engine.log import describe_machine, package_versions
from videoattn.files import atomic_write

ROOT = Path(__file__).parents[1]
ENCODER = "motion_timesformer_dense"
NUM_FRAMES = 48  # rendered, of which a model sees 12
RECIPE: dict[str, Any] = {
    "DATA.TRAIN_JITTER_SCALES": [32, 32], "DATA.TRAIN_CROP_SIZE": 32, "DATA.TEST_CROP_SIZE": 32, "DATA.NUM_FRAMES": 12,
    "DATA.SAMPLING_RATE": 4, "MODEL.NUM_CLASSES": 6, "TIMESFORMER.PATCH_SIZE": 8, "TIMESFORMER.EMBED_DIM": 48,
    "TIMESFORMER.DEPTH": 3, "TIMESFORMER.NUM_HEADS": 4, "TRAIN.EVAL_PERIOD": 1, "TRAIN.KEEP_CHECKPOINTS": 1,
    "DATA_LOADER.NUM_WORKERS": 1, "MODEL.FREEZE": "encoder", "TRAIN.CHECKPOINT_FILE_PATH": f"zoo:{ENCODER}",
    "TRAIN.FINETUNE": True, "PROBE.COMPARE": False,
}  # fmt: skip
LRS, WEIGHT_DECAYS = (3e-4, 1e-3, 3e-3, 1e-2), (0.01, 0.1)
PROBES: dict[str, dict[str, Any]] = {
    "linear": {"PROBE.TYPE": "linear"},
    "cross": {"PROBE.TYPE": "attentive", "PROBE.DEPTH": 0, "PROBE.HEADS": 4},
    "attentive": {"PROBE.TYPE": "attentive", "PROBE.DEPTH": 1, "PROBE.HEADS": 4},
}
LIMIT = 1.5  # of one run's time


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("runs/probe_grid"), help="where data and runs go")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/probe_grid.json")
    parser.add_argument(
        "--kinds", nargs="+", choices=PROBES, default=["cross"], help="default: cross, attentive without self-attention"
    )
    parser.add_argument("--num-train", type=int, default=1600, help="long clips; default: 1600")
    parser.add_argument("--num-val", type=int, default=400)
    parser.add_argument("--epochs", type=int, default=2, help="of the probes")
    parser.add_argument("--repeats", type=int, default=1, help="runs of the grid, among those of its probes")
    args = parser.parse_args(argv)

    program(
        "datasets/make_motion.py", args.folder / "long", "--variant", "long", "--num-train", args.num_train,
        "--num-val", args.num_val, "--size", "32x32", "--num-frames", NUM_FRAMES,
    )  # fmt: skip
    start = processor_seconds()
    program("tools/train_net.py", "--help")
    startup = processor_seconds() - start
    kinds = {kind: compare(kind, args.folder, args.epochs, args.repeats, startup) for kind in args.kinds}
    content = {
        "date": date.today().isoformat(), "recipe": RECIPE, "clips": {"train": args.num_train, "val": args.num_val},
        "epochs": args.epochs, "encoder": ENCODER,
        "startup_processor_seconds": round(startup, 2), "kinds": kinds, "machine": describe_machine(),
        "versions": package_versions(),
    }  # fmt: skip
    args.out.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(args.out) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n")
    for kind, found in kinds.items():
        print(f"\n{kind} probes on long clips (chance 16.7 %): top-1 % in the grid, and in runs of their own")
        for row in found["probes"]:
            print(f"  lr {row['lr']:<7g} weight decay {row['weight_decay']:<5g} {100 * row['grid']:6.2f} "
                  f"{100 * row['alone']:6.2f}")  # fmt: skip
        without, of_all = found["time_ratio_without_start"], found["time_of_all_ratio"]
        print(f"  the grid takes {found['time_ratio']:.2f} times one run, without the program's start {without:.2f}, "
              f"and all eight runs take {of_all:.1f} times one")  # fmt: skip
    print(f"written to {args.out}")
    return 0 if all(found["reached"] for found in kinds.values()) else 1


def compare(kind: str, folder: Path, epochs: int, repeats: int, startup: float) -> dict[str, Any]:
    """Return the accuracies and the time of the grid and of each of its probes alone."""
    settings = {"SOLVER.MAX_EPOCH": epochs, **PROBES[kind]}
    cells = [(lr, decay) for lr in LRS for decay in WEIGHT_DECAYS]
    runs = [("grid", 0, list(LRS), list(WEIGHT_DECAYS))]
    runs += [("alone", number, [lr], [decay]) for number, (lr, decay) in enumerate(cells)]
    for repeat in range(1, repeats):  # spread among the others
        runs.insert(1 + repeat * len(cells) // repeats + repeat, ("grid", repeat, list(LRS), list(WEIGHT_DECAYS)))
    done = {
        (name, number): train(
            folder / kind / f"{name}{number}", folder / "long",
            settings | {"PROBE.LRS": lrs, "PROBE.WEIGHT_DECAYS": decays},
        )
        for name, number, lrs, decays in runs
    }  # fmt: skip
    grids, single = ([run for (name, _), run in done.items() if name == wanted] for wanted in ("grid", "alone"))
    rows = [
        {
            "lr": lr, "weight_decay": decay, "grid": grids[0]["probes"][number]["best_top1"],
            "alone": single[number]["probes"][0]["best_top1"],
        }
        for number, (lr, decay) in enumerate(cells)
    ]  # fmt: skip
    times = {name: [run["processor_seconds"] for run in some] for name, some in (("grid", grids), ("alone", single))}
    one, all_at_once = statistics.median(times["alone"]), statistics.median(times["grid"])
    ratio = all_at_once / one
    return {
        "settings": PROBES[kind],
        "probes": rows,
        "processor_seconds": times,
        "minutes": {name: [run["minutes"] for run in some] for name, some in (("grid", grids), ("alone", single))},
        "time_ratio": ratio,
        "time_ratio_without_start": (all_at_once - startup) / (one - startup),
        "time_of_all_ratio": sum(times["alone"]) / one,
        "same_accuracies": all(row["grid"] == row["alone"] for row in rows),
        "reached": ratio < LIMIT and max(row["grid"] for row in rows) >= max(row["alone"] for row in rows),
    }


def train(folder: Path, data: Path, changes: dict[str, Any]) -> dict[str, Any]:
    """Return the figures of one run; those of a run that is complete are read from its folder."""
    noted = folder / "figures.json"
    if noted.exists():
        return dict(json.loads(noted.read_text()))
    settings = RECIPE | {
        "DATA.PATH_TO_DATA_DIR": data, "DATA.CLASS_NAMES": data / "class_names.txt", "OUTPUT_DIR": folder, **changes,
    }  # fmt: skip
    start, used = time.perf_counter(), processor_seconds()
    pairs = [part for pair in settings.items() for part in pair]
    program("tools/train_net.py", "--cfg", ROOT / "configs/Motion/divided.yaml", *pairs)
    events = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    figures: dict[str, Any] = {
        "top1": max(event["top1"] for event in events if event["event"] == "epoch" and "top1" in event),
        "minutes": round((time.perf_counter() - start) / 60, 2),
        "processor_seconds": round(processor_seconds() - used, 1),
    }
    if (folder / "probes.json").exists():
        figures["probes"] = json.loads((folder / "probes.json").read_text())
    with atomic_write(noted) as temporary:
        temporary.write_text(json.dumps(figures))
    return figures


if __name__ == "__main__":
    sys.exit(run_tool(main))
