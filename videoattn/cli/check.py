"""Check all videos of a data set before training: missing, damaged, short, copied, leaked or wrongly labelled ones.

Examples:
    videoattn check --cfg Kinetics/TimeSformer_divST_8x32_224.yaml DATA.PATH_TO_DATA_DIR data/k400
    videoattn check --cfg FILE --split train,val --decode all --workers 16 --out checks/k400
    videoattn check --list data/my/train.csv --prefix data/my/videos --separator , --min-frames 32
    videoattn check --cfg FILE --as-error leak,duplicate_other_label && videoattn train --cfg FILE

OUT then holds clean/ (the lists without videos that have an error), bad_*.csv (every problem), summary.json,
summary.html, and probes.jsonl, by which the same command continues a check that was stopped, and later looks only at
files that are new or changed. Exit status: 0 without errors, 1 with errors, 2 where the command or a list is wrong.
Errors are what training can't use; all else is a warning, unless --as-error names it. docs/data.md lists the kinds.
Options come before KEY VALUE pairs.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from videoattn.cli.programs import make_parser
from videoattn.cli.shell.video_lists import (
    add_list_arguments,
    check_list_arguments,
    chosen_splits,
    configured_list,
    listed_alone,
)
from videoattn.config import Config
from videoattn.config.load import load_config, parse_overrides
from videoattn.data.build import clip_sampler, decode_options, num_cores
from videoattn.data.check.check import CheckOptions, check_lists
from videoattn.data.check.checked_list import CheckedList
from videoattn.data.check.probe import ProbeOptions
from videoattn.data.check.report import format_summary
from videoattn.data.check.table import ERRORS, WARNINGS
from videoattn.data.lists.video_list import check_names
from videoattn.data.readers.open_video import DecodeOptions

FOUND_ERRORS = 1


def main(argv: Sequence[str] | None = None) -> int:
    parser = make_parser("check", __doc__)
    parser.add_argument("--out", type=Path, metavar="DIR", default=Path("runs/check"), help="default: %(default)s")
    parser.add_argument("--decode", choices=("none", "sample", "all"), default="sample",
                        help="none; sample: first, middle and last frames; all; default: %(default)s")  # fmt: skip
    parser.add_argument("--workers", type=int, default=num_cores(), metavar="N", help="default: all cores")
    parser.add_argument("--limit", type=float, default=60, metavar="SECONDS", help="per file; default: %(default)s")
    parser.add_argument("--min-frames", type=int, metavar="N", help="fewer are too short; default: one clip")
    parser.add_argument("--lengths", choices=("names", "frames", "seconds", "ignore"), default="names",
                        help="source of a video's stated length: names ending in _START_END (seconds, six digits "
                        "each), or as frames or seconds between path and label; default: %(default)s")  # fmt: skip
    parser.add_argument("--tolerance", type=float, default=0.05, metavar="SHARE",
                        help="allowed deviation from a stated length; default: %(default)s")  # fmt: skip
    parser.add_argument("--as-error", default="", metavar="KINDS", help=f"'all' or some of {', '.join(WARNINGS)}")
    alone = add_list_arguments(parser)
    alone.add_argument("--num-classes", type=int, metavar="N", help="labels must be below N")
    args = parser.parse_args(argv)
    check_arguments(args)
    decoding = DecodeOptions()
    with_lengths = args.lengths in ("frames", "seconds")
    if args.list:
        is_short = partial(has_fewer_frames, args.min_frames) if args.min_frames else None
        alone_list = listed_alone(args, with_lengths=with_lengths)
        lists = [replace(alone_list, num_classes=args.num_classes, is_short=is_short)]
    else:
        cfg = load_config(args.cfg, parse_overrides(args))
        lists = [trained_list(cfg, split, args.min_frames, with_lengths) for split in chosen_splits(cfg, args)]
        # at full size, which is what the summary states of frames
        decoding = replace(decode_options(cfg), short_side=0)
    options = CheckOptions(
        ProbeOptions(args.decode, decoding),
        num_workers=args.workers,
        limit_seconds=args.limit,
        lengths=args.lengths,
        tolerance=args.tolerance,
        fatal=frozenset(ERRORS) | promoted(args.as_error),
    )
    summary = check_lists(lists, args.out, options, progress=sys.stderr.isatty())
    print(format_summary(summary))
    print(f"results in {args.out}; {args.out / 'summary.html'} has histograms and the first problems")
    return FOUND_ERRORS if summary["num_errors"] else 0


def check_arguments(args: argparse.Namespace) -> None:
    """Raise ValueError on options that do not fit each other or are out of range."""
    check_list_arguments(args)
    check_names((str(args.out),), "--out: a path")
    if args.num_classes and not args.list:
        raise ValueError("--num-classes belongs to --list; MODEL.NUM_CLASSES says the same")
    for name, least in (("workers", 1), ("min_frames", 1), ("num_classes", 1), ("limit", 1e-3), ("tolerance", 0)):
        value = getattr(args, name)
        if value is not None and not value >= least:
            raise ValueError(f"--{name.replace('_', '-')} expects at least {least}, got {value}")


def promoted(names: str) -> frozenset[str]:
    """Return the kinds of warnings that count as errors."""
    kinds = list(WARNINGS) if names == "all" else [name for name in names.split(",") if name]
    for kind in kinds:
        if kind not in WARNINGS:
            raise ValueError(f"--as-error expects all or some of {','.join(WARNINGS)}, got {kind!r}")
    return frozenset(kinds)


def trained_list(cfg: Config, split: str, min_frames: int | None, with_lengths: bool) -> CheckedList:
    """Return the list of a split with what training asks of it."""
    dataset = cfg.test.dataset if split == "test" else cfg.train.dataset
    is_short = partial(has_fewer_frames, min_frames) if min_frames else clip_sampler(cfg, dataset, False).is_short
    return replace(
        configured_list(cfg, split, with_lengths=with_lengths),
        num_classes=cfg.model.num_classes,
        needs_labels=split != "test",
        is_short=is_short,
    )


def has_fewer_frames(min_frames: int, num_frames: int, fps: float) -> bool:
    return num_frames < min_frames
