#!/usr/bin/env python3
"""Write model_zoo.md anew from the rows of videoattn.zoo.rows.

Examples:
    python docs/write_model_zoo.py
    python docs/write_model_zoo.py --check     # status 1 if model_zoo.md is not what the rows say
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from videoattn.cli.run_tool import run_tool
from videoattn.files import atomic_write
from videoattn.zoo.hub import web_address
from videoattn.zoo.protocol import ZooRow
from videoattn.zoo.rows import ZOO

PAGE = Path(__file__).parents[1] / "model_zoo.md"
HEAD = """# Model zoo

*Written by `python docs/write_model_zoo.py` from `videoattn/zoo/rows.py`; a test keeps the two together.*

    python tools/test_net.py --zoo NAME DATA.PATH_TO_DATA_DIR FOLDER

evaluates a row by exactly the protocol that its published accuracy is of, and prints published against measured. The
weights are fetched once and kept (in `$VIDEOATTN_CACHE`, by default `~/.cache/videoattn`); where there is no network,
the command says which file to put where, and `--weights FILE` takes one from anywhere.
`videoattn.from_checkpoint(FILE)` builds any of these models in Python.

A download is accepted only if it opens as the checkpoint of its row: its tensors are read without running code that may
be in the file, and they have the names that the publisher gives them and the shapes of the row's model. The publishers
give no checksums, so the SHA-256 of the accepted file is noted beside it (`FILE.sha256`) and compared at every use;
where they differ, the message says which of the two to remove. A transfer that breaks is continued if the server's file
is still the same version, by its ETag or date. A redirect from https to http is not followed. Of several processes that
need a file, one fetches it. Weights in this repository are compared with the checksum of their row.

Addresses hf://OWNER/NAME are files of the Hugging Face hub; huggingface_hub fetches them, by the account and mirror
(`HF_ENDPOINT`) that it is set up with.

Accuracies are the publishers', on the validation set; **nobody has evaluated the published rows with this project
yet**, for want of the videos and weights where it is made. Parameters and multiply-accumulates (MACs: one multiply-add
is one; many papers call this FLOPs) are counted here, attention included, and tests keep them.

Columns: *views* are clips x crops a video. *sampling*: `first` takes a single clip from the video's start, as
TimeSformer's code does (its paper says the middle); `spread` takes clips from end to end; `segments` takes a frame from
each of so many equal parts of the video; `by index` takes clips from end to end in frame numbers, whatever the video's
rate, and `interleaved` alternates between the frames of an even grid ([docs/data.md](docs/data.md)). `2 windows` are
encoded apart, and their tokens are seen together by one probe. *sum of*: what is added up over views. *colours*: the
order of channels that the weights saw; pixels are normalised by mean 0.45 and deviation 0.225, those of MViTv2-L,
VideoMAE and V-JEPA by ImageNet's. *licence*: that of the publisher's repository. Where it says "code", the repository
does not say whether it is that of the weights, too: see the source before you use them.
Classes are numbered by the alphabet in all published rows without a note on it; `test_net` checks yours where it can.
"""
PROBES = """
A row of V-JEPA 2 with a probe needs two files, the encoder's and the probe's: `--weights vitl.pt --probe
ssv2-vitl-16x2x3.pt`, or both in the cache. Diving48 is a plain list (`test.csv`, lines `path label`) with the labels of
version 2 of the data set.
"""
ENCODERS = """
Encoders without a head, to train probes on or to fine-tune (`TRAIN.CHECKPOINT_FILE_PATH zoo:NAME`); `from_checkpoint`
builds them, and their `forward_tokens` returns tokens ([docs/video_vit.md](docs/video_vit.md)). MACs are those of the
clip named, without a head.
"""
LEFT_OUT = """
Left out: UMT (Unmasked Teacher), whose files have tubelets of one frame and a layout of tensors that nobody has looked
at here, so that a row could not be promised to load; VideoMAE V2's distilled models after fine-tuning on Kinetics-400,
of which no file is published.
"""
OURS = """
## Motion: weights in this repository

Small models trained on Motion, the built-in clips (8 classes, 32 x 32 pixels, 400 validation clips), one per attention
method, with the same recipe and seed. Their licence is this repository's, Apache 2.0. `python tools/test_net.py --zoo
NAME` renders the clips into the cache and reproduces the number to the digit on a CPU. One seed says little about a
method; [docs/motion_study.md](docs/motion_study.md) has more.
"""


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; compare")
    args = parser.parse_args(argv)
    page = render()
    if args.check:
        return int(not PAGE.is_file() or PAGE.read_text(encoding="utf-8") != page)
    with atomic_write(PAGE) as temporary:
        temporary.write_text(page, encoding="utf-8")
    print(f"{PAGE}: {len(ZOO)} rows")
    return 0


def render() -> str:
    """The page."""
    parts = [HEAD]
    for dataset, title in (("kinetics400", "Kinetics-400"), ("kinetics600", "Kinetics-600"),
                           ("kinetics710", "Kinetics-710"), ("ssv2", "Something-Something-V2"),
                           ("diving48", "Diving48")):  # fmt: skip
        parts.append(f"\n## {title}\n\n{table([row for row in ZOO.values() if row.dataset == dataset])}")
    parts.append(PROBES)
    encoders = [row for row in ZOO.values() if row.dataset == "unlabelled"]
    parts.append(f"\n## Encoders\n{ENCODERS}\n{encoder_table(encoders)}{LEFT_OUT}")
    parts.append(f"{OURS}\n{our_table([row for row in ZOO.values() if row.is_ours])}")
    notes = sorted({row.note for row in ZOO.values() if row.note})
    parts.append("\n## Notes\n\n" + "".join(f"- {note}: {', '.join(names_with(note))}.\n" for note in notes))
    return "".join(parts)


def names_with(note: str) -> list[str]:
    return [f"`{row.name}`" for row in ZOO.values() if row.note == note]


def table(rows: Sequence[ZooRow]) -> str:
    head = ["name", "model", "frames x rate, crop", "views", "sampling", "sum of", "colours", "top-1 / top-5",
            "parameters M", "MACs a view G", "licence", "weights"]  # fmt: skip
    lines = []
    for row in rows:
        p = row.protocol
        sampling = ("spread" if p.spread else "first") if p.sampling == "dense" else p.sampling.replace("_", " ")
        sampling += f", {p.num_segments} windows" if p.num_segments > 1 else ""
        has_rate = p.sampling in ("dense", "by_index")
        frames = f"{p.num_frames} x {p.sampling_rate}" if has_rate else f"{p.num_frames}"
        lines.append([
            f"`{row.name}`", row.title, f"{frames}, {p.crop}", f"{p.clips} x {p.crops}", sampling, p.aggregate,
            p.channel_order, f"{percent(row.top1)} / {percent(row.top5)}", f"{row.parameters:.2f}",
            f"{row.gmacs:,.1f}", row.licence, links(row),
        ])  # fmt: skip
    return as_table(head, lines)


def encoder_table(rows: Sequence[ZooRow]) -> str:
    head = ["name", "model", "clip", "parameters M", "MACs of a clip G", "licence", "weights"]
    lines = [
        [f"`{row.name}`", row.title, f"{row.protocol.num_frames} x {row.protocol.crop} x {row.protocol.crop}",
         f"{row.parameters:.2f}", f"{row.gmacs:,.1f}", row.licence, links(row)]
        for row in rows
    ]  # fmt: skip
    return as_table(head, lines)


def links(row: ZooRow) -> str:
    files = [row] if row.encoder is None else [row.encoder, row]
    return ", ".join([*(f"[{one.file}]({web_address(one.urls[0])})" for one in files), f"[source]({row.source})"])


def our_table(rows: Sequence[ZooRow]) -> str:
    head = ["name", "model", "top-1", "parameters K", "MACs a view M", "trained by"]
    lines = [
        [f"`{row.name}`", row.title, percent(row.top1), f"{1e3 * row.parameters:.1f}", f"{1e3 * row.gmacs:.2f}",
         f"`{row.trained_by}`"]
        for row in rows
    ]  # fmt: skip
    return as_table(head, lines)


def percent(accuracy: float | None) -> str:
    """With as many digits as were published, but at least one."""
    return "-" if accuracy is None else f"{accuracy:.1f}" if round(accuracy, 1) == accuracy else f"{accuracy:g}"


def as_table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rows = [head, ["---"] * len(head), *lines]
    return "".join("| " + " | ".join(row) + " |\n" for row in rows)


if __name__ == "__main__":
    sys.exit(run_tool(main))
