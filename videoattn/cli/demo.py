"""Make videos, train on them, evaluate with several views and profile, in a few minutes on a CPU.

Examples:
    videoattn demo
    videoattn demo --folder runs/demo_space --cfg Motion/demo_space_only.yaml
    videoattn demo --quick        # a few steps only, to see that everything works

Each step is one of the other programs, and its command is printed, so that it can be repeated with other settings.
"""

import json
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from videoattn.cli.programs import command, make_parser

QUICK = ["SOLVER.MAX_EPOCH", "1", "SOLVER.WARMUP_EPOCHS", "0", "TIMESFORMER.DEPTH", "1", "TRAIN.BATCH_SIZE", "8"]


def main(argv: Sequence[str] | None = None) -> None:
    parser = make_parser("demo", __doc__)
    parser.add_argument("--cfg", default="Motion/demo.yaml", help="config to train")
    parser.add_argument("--data", metavar="DIR", help="folder for the built-in videos; default: datasets/motion_demo")
    parser.add_argument("--folder", metavar="DIR", help="folder for results; default: runs/demo; continued if stopped")
    parser.add_argument("--quick", action="store_true", help="few videos, one epoch, one block: a check, not a result")
    args = parser.parse_args(argv)

    data = args.data or ("datasets/motion_quick" if args.quick else "datasets/motion_demo")
    folder = Path(args.folder or ("runs/demo_quick" if args.quick else "runs/demo"))
    settings = ["DATA.PATH_TO_DATA_DIR", data, "DATA.CLASS_NAMES", f"{data}/class_names.txt", "OUTPUT_DIR", str(folder)]
    settings += QUICK if args.quick else []
    videos = ["--size", "32x32", *(["--num-train", "32", "--num-val", "8"] if args.quick else [])]
    run("making videos", "motion", data, *videos)
    seconds = run("training", "train", "--cfg", args.cfg, *settings)
    seconds += run("evaluating", "test", "--cfg", args.cfg, *settings)
    run("profiling", "profile", "--cfg", args.cfg, "--measure", *settings)

    results = json.loads((folder / "test" / "results.json").read_text())
    print(f"\nTraining and evaluation took {seconds / 60:.1f} minutes.")
    print(f"Top-1 on {results['counts']['evaluated']} validation videos: {100 * results['top1']:.1f} %")
    for what, path in (
        ("videos", f"{data}/videos"),
        ("settings of the run", folder / "config.yaml"),
        ("log, a JSON line per event", folder / "log.jsonl"),
        ("weights", folder / "checkpoints"),
        ("results", folder / "test" / "results.json"),
        ("confusion matrix", folder / "test" / "confusion.png"),
        ("predictions per video", folder / "test" / "predictions.csv"),
    ):
        print(f"  {what:28} {path}")
    print("Next: your own videos in a csv of `path label` lines; see README.md and datasets/README.md.")


def run(title: str, name: str, *arguments: str) -> float:
    """Run one of the programs, showing the command; return seconds. Raise OSError if it fails."""
    print(f"\n== {title}: {command(name)} {shlex.join(arguments)}", flush=True)
    start = time.perf_counter()
    status = subprocess.run([sys.executable, "-m", "videoattn", name, *arguments]).returncode
    if status:
        raise OSError(f"{title} failed with status {status}")
    return time.perf_counter() - start
