"""Measure the time and memory from a loader's settings to its first batch, by the length of its list."""

import json
import os
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Any

from data_loaders import settings

from videoattn.compat import import_torchvision
from videoattn.data import build_loader
from videoattn.data.clips.sampling import ClipSampler

NUM_WORKERS = 2
MEGA = 1e6


def measure_startup(video: Path, folder: Path, num_videos: int) -> dict[str, float]:
    """Seconds and megabytes of a new process whose list names `video` so often; the list is written into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    name = os.path.relpath(video, folder)
    with open(folder / "train.csv", "w", encoding="utf-8") as lines:
        lines.writelines(f"{name} {number % 400}\n" for number in range(num_videos))
    command = [sys.executable, __file__, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return figures


def main(folder: Path) -> dict[str, Any]:
    """A process that begins a run: what it takes besides importing libraries."""
    import_torchvision()
    cfg = settings(folder, ClipSampler("dense", 8, 32), NUM_WORKERS)
    before, started = memory_of("self"), time.perf_counter()
    loader = build_loader(cfg, "train")
    built = time.perf_counter()
    with closing(loader):
        batches = loader.epoch(0)
        next(batches)
        first = time.perf_counter()
        workers = children_of(os.getpid())
        return {
            "read_seconds": built - started,
            "first_batch_seconds": first - built,
            "list_megabytes": (memory_of("self") - before) / MEGA,
            "worker_megabytes": max(memory_of(worker, "Private_Clean", "Private_Dirty") for worker in workers) / MEGA,
        }


def memory_of(process: int | str, *kinds: str) -> int:
    """Bytes of a process's memory, by default with what it shares: Private_Dirty and others as /proc names them."""
    rows = [line.split() for line in Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()[1:]]
    return sum(1024 * int(row[1]) for row in rows if row[0].removesuffix(":") in (kinds or ("Rss",)))


def children_of(process: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]))))
