#!/usr/bin/env python3
"""Compare the speed of joint video ViTs on a CPU, dense and with other attention, with transformers' own classes.

Examples:
    python benchmarks/video_vit.py
    python benchmarks/video_vit.py --models videomae_base --rounds 5 --train
    python benchmarks/video_vit.py --models vjepa2_1_base --methods fibonacci --depth 2 --out cpu.json

Models have random weights and `--depth` blocks instead of all; times of blocks are scaled to the whole depth, and the
embedding is counted once. All take turns, round by round, on one thread, and thread CPU time is taken. transformers has
no V-JEPA 2.1: its V-JEPA 2 of the same shape stands for it. Memory is the most resident memory of a forward pass, less
what the process held before.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from videoattn.cli.run_tool import run_tool
from videoattn.compat import import_torchvision
from videoattn.engine.log import describe_machine, package_versions
from videoattn.files import atomic_write
from videoattn.grid import Axis
from videoattn.models import MODELS
from videoattn.operators import OPERATORS
from videoattn.profiling.measure import PeakMemory

RESULTS = Path(__file__).parent / "results"
CLIPS = {"videomae_base": (16, 224, 224), "vjepa2_large": (64, 256, 256), "vjepa2_1_base": (64, 384, 384)}
PEER = "transformers"
Run = Callable[[], Tensor]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="*", choices=CLIPS, default=list(CLIPS), metavar="NAME")
    parser.add_argument(
        "--methods", nargs="*", choices=OPERATORS, default=["fibonacci", "focused_linear"], metavar="NAME"
    )
    parser.add_argument("--depth", type=int, default=1, help="blocks that are run; default: %(default)s")
    parser.add_argument("--rounds", type=int, default=3, help="default: %(default)s")
    parser.add_argument("--train", action="store_true", help="time forward and backward as well")
    parser.add_argument("--out", type=Path, default=RESULTS / "video_vit_cpu.json", help="default: %(default)s")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    rows = []
    for name in args.models:
        rows.append(time_model(name, ["dense", *args.methods], args.depth, args.rounds, args.train))
        print(show(rows[-1]), flush=True)
    content = {
        "what": "joint video ViTs, batch of 1, float32, one thread, thread CPU seconds, medians of interleaved rounds, "
        f"scaled from {args.depth} blocks to all",
        "date": date.today().isoformat(), "models": rows, "machine": describe_machine(), "versions": package_versions(),
    }  # fmt: skip
    with atomic_write(args.out) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    print(f"written: {args.out}")


def time_model(name: str, methods: Sequence[str], depth: int, rounds: int, train: bool) -> dict[str, Any]:
    """Time a model with each method and transformers' class of its shape; the seconds are those of the whole depth."""
    clip_size, whole = CLIPS[name], int(MODELS[name].size["depth"])
    clip = torch.randn(1, 3, *clip_size)
    models: dict[str, Any] = {method: build(name, method, depth) for method in methods}
    runs: dict[str, Run] = {method: partial(model.forward_tokens, clip) for method, model in models.items()}
    runs[PEER] = peer(name, depth, clip)
    embedding = statistics.median(seconds_of(partial(models["dense"].embed, clip)) for _ in range(3))
    forward: dict[str, list[float]] = {contender: [] for contender in runs}
    both: dict[str, list[float]] = {contender: [] for contender in runs if train}
    peaks = {contender: peak_of(run) for contender, run in runs.items()}  # also the round that does not count
    for _ in range(rounds):
        for contender, run in runs.items():
            forward[contender].append(seconds_of(run))
            if train:
                both[contender].append(seconds_of(run, backward=True))

    def scaled(times: dict[str, list[float]], outside: float) -> dict[str, float]:
        return {
            contender: outside + (statistics.median(taken) - outside) * whole / depth
            for contender, taken in times.items()
            if taken
        }

    seconds = {"forward": scaled(forward, embedding), "train": scaled(both, 3 * embedding)}
    return {
        "model": name, "clip": list(clip_size), "tokens": models["dense"].grid.tokens, "blocks_run": depth,
        "blocks": whole, "seconds": seconds, "peak_bytes": peaks, "seconds_run": {"forward": forward, "train": both},
        "gain": {
            what: {contender: taken["dense"] / one for contender, one in taken.items()}
            for what, taken in seconds.items() if taken
        },
    }  # fmt: skip


def build(name: str, method: str, depth: int) -> nn.Module:
    cut = {"depth": depth, "levels": (depth - 1,), "head": "none", "clip_size": CLIPS[name]}
    return MODELS[name].build(**cut, operators={Axis.JOINT: OPERATORS[method]}).eval()


def peer(name: str, depth: int, clip: Tensor) -> Run:
    """Return a run of transformers' encoder of the same shape, whose attention is torch's fused one."""
    import_torchvision()
    from transformers import VideoMAEConfig, VideoMAEModel, VJEPA2Config, VJEPA2Model

    size, pixels = MODELS[name].size, clip.transpose(1, 2)
    shape = {"hidden_size": size["embed_dim"], "num_hidden_layers": depth, "num_attention_heads": size["num_heads"]}
    frames, side, _ = CLIPS[name]
    if name.startswith("videomae"):
        config = VideoMAEConfig(
            **shape, image_size=side, num_frames=frames, intermediate_size=size["mlp_dim"], attn_implementation="sdpa"
        )
        model: Any = VideoMAEModel(config).eval()
        return lambda: model(pixels).last_hidden_state
    config = VJEPA2Config(
        **shape, crop_size=side, frames_per_clip=frames, mlp_ratio=size["mlp_dim"] / size["embed_dim"],
        pred_num_hidden_layers=1, attn_implementation="sdpa",
    )  # fmt: skip
    model = VJEPA2Model(config).eval()
    return lambda: model(pixels, skip_predictor=True).last_hidden_state


def seconds_of(run: Run, backward: bool = False) -> float:
    start = time.thread_time()
    with torch.set_grad_enabled(backward):
        out = run()
    if backward:
        out.sum().backward()
    return time.thread_time() - start


def peak_of(run: Run) -> int | None:
    memory = PeakMemory(torch.device("cpu"))
    seconds_of(run)
    return memory.peak_bytes()


def show(row: dict[str, Any]) -> str:
    lines = [f"{row['model']}, {row['tokens']} tokens, {row['blocks_run']} of {row['blocks']} blocks run"]
    for what, taken in row["seconds"].items():
        for contender, seconds in taken.items():
            gain, peak = row["gain"][what][contender], row["peak_bytes"][contender]
            memory = f", {peak / 1e9:.2f} GB" if peak is not None and what == "forward" else ""
            lines.append(f"  {what:8} {contender:15} {seconds:9.2f} s, {gain:5.2f} times as fast as dense{memory}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(run_tool(main))
