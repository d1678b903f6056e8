"""Costs of the settings of a study: counted, and timed side by side while nothing else runs."""

import time
from collections.abc import Callable, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
from motion_study_runs import Programs, Run, Stopped, changed_settings, read_json, write_json
from torch import nn

from videoattn.config.load import load_config
from videoattn.engine.log import describe_machine, package_versions
from videoattn.models import build_model
from videoattn.precision import AUTOCAST, Precision
from videoattn.profiling.measure import example_clip
from videoattn.seeding import derive_seed, torch_seed

BATCH_SIZES = (1, 8)
COSTLESS_KEYS = ("SOLVER.", "TRAIN.", "RNG_SEED")  # besides those that leave a result as it is


def measure_variants(
    chosen: Sequence[Run], planned: Sequence[Run], programs: Programs, file: Path, *, rounds: int, anew: bool
) -> list[str]:
    """Measure the settings of the chosen runs into `file`, by variant; returns what failed, in a line each.

    A variant of which all are measured already is left as it is, unless `anew`. Otherwise all are measured again, with
    dense attention and what was measured before, so that a variant's figures come from one session. Raises Stopped.
    """
    known: dict[str, Any] = read_json(file) if file.exists() else {}
    failures = []
    for variant in dict.fromkeys(run.variant for run in chosen):
        settings = {run.setting.name: run for run in reversed(planned) if run.variant == variant}
        before = known.get(variant, {}).get("settings", {})
        wanted = {run.setting.name for run in chosen if run.variant == variant}
        wanted |= {settings[name].setting.backbone for name in wanted}
        if not anew and all(name in before and is_current(before[name], settings[name]) for name in wanted):
            continue
        runs = [settings[name] for name in sorted(wanted | before.keys() & settings.keys())]
        print(f"measuring {len(runs)} settings on {variant} clips", flush=True)
        figures = {}
        for run in runs:
            try:
                figures[run.setting.name] = count_costs(run, programs)
            except OSError as error:
                failures.append(f"measuring {run.place}: {error}")
        timed = {name: settings[name] for name in figures}
        known[variant] = time_settings(timed, programs, rounds) if timed else {"settings": {}}
        for name, entry in known[variant]["settings"].items():
            entry |= figures[name] | {"config": settings[name].config_text()}
        write_json(file, known)
    return failures


def is_current(entry: Mapping[str, Any], run: Run) -> bool:
    """Return whether the measured model is that of `run`."""
    changes = changed_settings(entry["config"], run.config_text())
    return all(key.startswith(COSTLESS_KEYS) for key in changes)


def count_costs(run: Run, programs: Programs) -> dict[str, Any]:
    """Multiply-accumulates and parameters, and peak memory in a process of its own, as tools/profile_net.py has them.

    Raises OSError if that fails.
    """
    folder = run.folder.parent
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "profile.json"
    programs.run(
        folder / "profile.log", "tools/profile_net.py", "--measure", "--batch-size", BATCH_SIZES[-1], "--warmup", 1,
        "--repeats", 1, "--json", file, "--cfg", run.setting.path, *run.overrides, threads=1,
    )  # fmt: skip
    figures = read_json(file)
    counted = ("macs_executed", "macs_needed", "attention_executed", "attention_needed", "parameters")
    measured = ("peak_memory_bytes", "memory_meaning", "implementations")
    return {key: figures["profile"][key] for key in counted} | {key: figures["measurement"][key] for key in measured}


def time_settings(runs: Mapping[str, Run], programs: Programs, rounds: int) -> dict[str, Any]:
    """Latency of each setting's model with fresh weights in evaluation mode on one thread, and how it was measured.

    Milliseconds per clip, and their ratio to dense attention of the same backbone. `cpu_share` is the part of the time
    that the process was on a processor: below 1 on a CPU, others disturbed it. Raises Stopped.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    configs = {name: load_config(run.setting.path, run.overrides) for name, run in runs.items()}
    models = {}
    for name, cfg in configs.items():
        with torch_seed(derive_seed(cfg.rng_seed, "weights")):
            models[name] = build_model(cfg).to(device).eval()
    some = next(iter(configs.values()))
    clip_size = (some.data.num_frames, some.data.train_crop_size, some.data.train_crop_size)
    settings: dict[str, Any] = {name: {"latency": {}} for name in runs}
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    wall, busy = time.perf_counter(), time.process_time()
    try:
        for batch_size in BATCH_SIZES:
            steps = {
                name: build_step(model, clip_size, batch_size, some.test.precision) for name, model in models.items()
            }
            for name, seconds in time_interleaved(steps, rounds, programs).items():
                low, median, high = 1e3 / batch_size * np.percentile(seconds, [25, 50, 75])
                settings[name]["latency"][str(batch_size)] = {
                    "ms_per_clip": float(median), "quartiles_ms_per_clip": [float(low), float(high)]
                }  # fmt: skip
        busy, wall = time.process_time() - busy, time.perf_counter() - wall
    finally:
        torch.set_num_threads(num_threads)
    for name, run in runs.items():
        for batch_size, own in settings[name]["latency"].items():
            dense = settings.get(run.setting.backbone)
            own["ratio"] = own["ms_per_clip"] / dense["latency"][batch_size]["ms_per_clip"] if dense else None
    conditions = {
        "date": date.today().isoformat(), "device": device.type, "precision": some.test.precision, "num_threads": 1,
        "rounds": rounds, "cpu_share": round(busy / wall, 3), "machine": describe_machine(),
        "versions": package_versions(),
    }  # fmt: skip
    return {"conditions": conditions, "settings": settings}


def build_step(
    model: nn.Module, clip_size: tuple[int, int, int], batch_size: int, precision: Precision
) -> Callable[[], None]:
    """One forward pass on clips of zeros, waited for."""
    clips, autocast = example_clip(model, clip_size, batch_size), AUTOCAST[precision]

    def step() -> None:
        with torch.no_grad(), torch.autocast(clips.device.type, autocast, autocast is not None):
            model(clips)
        if clips.is_cuda:
            torch.cuda.synchronize(clips.device)

    return step


def time_interleaved(
    steps: Mapping[str, Callable[[], None]], rounds: int, programs: Programs
) -> dict[str, list[float]]:
    """Seconds of each step in each round; a round takes one of each, so that what slows the machine slows them alike.

    Each timed step follows one that is not timed, which fills the caches. Raises Stopped between two steps.
    """
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(1 + rounds):
        for name, step in steps.items():
            if programs.num_stops:
                raise Stopped
            step()
            start = time.perf_counter()
            step()
            if number:  # the first round warms up
                seconds[name].append(time.perf_counter() - start)
    return seconds
