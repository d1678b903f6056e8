"""Prepare a data set for training: encode videos small and quick to seek, pack them into tar shards, list shards.

Examples:
    videoattn prepare encode --list data/k400/train.csv --prefix data/k400/videos --out data/k400_256
    videoattn prepare encode --cfg Kinetics/TimeSformer_divST_8x32_224.yaml --out data/k400_256 \\
        DATA.PATH_TO_DATA_DIR data/k400
    videoattn prepare pack --list data/k400_256/train.csv --out data/k400_shards --shard-size 1GB
    videoattn prepare index data/shards_of_others --split train

Each command has --help. All go on where they were stopped, and give files their names when these have been verified.
Exit status: 0 if all was done, 1 if some videos could not be used (bad_*.csv says which), 2 where the command or a list
is wrong. docs/data.md says more. Options come before KEY VALUE pairs.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from videoattn.cli.programs import make_parser
from videoattn.cli.shell.video_lists import add_list_arguments, check_list_arguments, read_lists
from videoattn.data.build import num_cores
from videoattn.data.lists.video_list import check_names
from videoattn.data.prepare.encode import encode_lists
from videoattn.data.prepare.index import index_shards
from videoattn.data.prepare.pack import PackSettings, pack_list, parse_bytes
from videoattn.data.prepare.video import PRESETS, EncodeSettings

SOME_FAILED = 1
ENCODE = """Encode the videos of lists as H.264 in mp4, and write lists of the results.

Results lie in --out as the sources lie in their folder. Frames keep their number, times and aspect; sound and rotation
go. A later run encodes what is new or changed.
"""
PACK = """Pack the videos of lists, in random order, into {split}-000000.tar, ..., and list their places there.

The lists written are lists like any other: DATA.PATH_TO_DATA_DIR OUT trains on them. The library webdataset reads the
shards, too. A later run goes on where an earlier one was stopped.
"""
INDEX = """List the videos inside {split}-*.tar that others made, such as webdataset's ShardWriter.

Samples are KEY.mp4 (or .avi .mkv .webm .mov and others) with the label in KEY.cls, or as "label" of the object in
KEY.json.
"""


def main(argv: Sequence[str] | None = None) -> int:
    layout = argparse.RawDescriptionHelpFormatter
    parser = make_parser("prepare", __doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    encode = commands.add_parser("encode", help="videos small, with many keyframes", description=ENCODE,
                                 formatter_class=layout)  # fmt: skip
    add_encode_arguments(encode)
    pack = commands.add_parser("pack", help="videos into tar shards", description=PACK, formatter_class=layout)
    add_pack_arguments(pack)
    index = commands.add_parser("index", help="a list of tar shards", description=INDEX, formatter_class=layout)
    add_index_arguments(index)
    args = parser.parse_args(argv)
    if args.out is not None:
        check_names((str(args.out),), "--out: a path")
    return int(args.run(args))


def add_encode_arguments(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(run=run_encode)
    defaults = EncodeSettings()
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="the folder of the results")
    parser.add_argument("--short-side", type=int, default=defaults.short_side, metavar="PIXELS",
                        help="larger frames are scaled down to it; default: %(default)s")  # fmt: skip
    parser.add_argument("--keyint", type=int, default=defaults.keyint, metavar="FRAMES",
                        help="frames between keyframes; default: %(default)s")  # fmt: skip
    parser.add_argument("--crf", type=int, default=defaults.crf, metavar="N",
                        help="quality, from 0 (best) to 51; default: %(default)s")  # fmt: skip
    parser.add_argument("--preset", choices=PRESETS, default=defaults.preset,
                        help="preset of x264; a slower one gives smaller files; default: %(default)s")  # fmt: skip
    parser.add_argument("--workers", type=int, default=num_cores(), metavar="N", help="default: all cores")
    parser.add_argument("--limit", type=float, default=600, metavar="SECONDS", help="per video; default: %(default)s")
    parser.add_argument("--overwrite", action="store_true", help="encode all again, and replace the files in --out")
    add_list_arguments(parser)


def run_encode(args: argparse.Namespace) -> int:
    check_list_arguments(args)
    settings = EncodeSettings(args.short_side, args.keyint, args.crf, args.preset)
    if args.workers < 1:
        raise ValueError(f"--workers expects at least 1, got {args.workers}")
    if not args.limit > 0:
        raise ValueError(f"--limit expects a positive number of seconds, got {args.limit}")
    lists = read_lists(args)
    results = encode_lists(
        lists,
        args.out,
        settings,
        num_workers=args.workers,
        limit_seconds=args.limit,
        overwrite=args.overwrite,
        progress=sys.stderr.isatty(),
    )
    for checked, result in zip(lists, results, strict=True):
        report(checked.split, result.file, result.num_listed, len(result.bad), result.separator)
    return SOME_FAILED if any(result.bad for result in results) else 0


def add_pack_arguments(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(run=run_pack)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="the folder of the shards")
    parser.add_argument("--shard-size", default="500MB", metavar="SIZE", help="approximate size; default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the order; default: %(default)s")
    parser.add_argument("--skip-missing", action="store_true", help="leave out missing or unreadable videos")
    parser.add_argument("--overwrite", action="store_true", help="pack again, and replace the shards in --out")
    add_list_arguments(parser)


def run_pack(args: argparse.Namespace) -> int:
    check_list_arguments(args)
    settings, num_bad = PackSettings(parse_bytes(args.shard_size), args.seed), 0
    for checked in read_lists(args):
        result = pack_list(
            checked,
            args.out,
            settings,
            skip_missing=args.skip_missing,
            overwrite=args.overwrite,
            progress=sys.stderr.isatty(),
        )
        report(checked.split, result.file, result.num_listed, len(result.bad), result.separator)
        print(f"  in {result.num_shards} shards")
        num_bad += len(result.bad)
    return SOME_FAILED if num_bad else 0


def add_index_arguments(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(run=run_index)
    parser.add_argument("folder", type=Path, help="folder of the tars")
    parser.add_argument("--split", default="train", metavar="NAME", help="start of their names; default: train")
    parser.add_argument("--out", type=Path, metavar="FILE", help="default: FOLDER/SPLIT.csv")
    parser.add_argument("--separator", default=" ", metavar="CHAR",
                        help=r"between path and label, \t for a tab; default: a space")  # fmt: skip
    parser.add_argument("--unlabelled", action="store_true", help="samples have no labels")
    parser.add_argument("--overwrite", action="store_true", help="replace the list if there is one")


def run_index(args: argparse.Namespace) -> int:
    result = index_shards(
        args.folder,
        args.split,
        args.out or args.folder / f"{args.split}.csv",
        separator=args.separator,
        labelled=not args.unlabelled,
        overwrite=args.overwrite,
    )
    report(args.split, result.file, result.num_videos, 0, result.separator)
    print(f"  in {result.num_shards} shards")
    return 0


def report(split: str, file: Path, num_listed: int, num_bad: int, separator: str) -> None:
    print(f"{split}: {num_listed - num_bad} of {num_listed} videos, listed in {file}")
    if num_bad:
        print(f"  {num_bad} could not be used: {file.parent / f'bad_{split}.csv'}")
    if separator != " ":
        print(f"  DATA.PATH_LABEL_SEPARATOR {separator!r}")
