"""Which lists of videos a tool works on: one csv by itself, or those that a configuration trains and evaluates with."""

import argparse
import sys
from dataclasses import replace
from pathlib import Path

from videoattn.config import Config
from videoattn.config_file import add_config_arguments, format_report, load_config_with_report, parse_overrides
from videoattn.data.annotations import read_annotations, read_kinetics_csv
from videoattn.data.checked_list import CheckedList
from videoattn.data.loader import class_names

SPLITS = ("train", "val", "test")


def add_list_arguments(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """Adds --split and --cfg with its pairs, which come last, and the returned group with --list and what it needs."""
    parser.add_argument("--split", metavar="NAMES", help="e.g. train,val; default: train,val and TEST.SPLIT")
    alone = parser.add_argument_group("without a configuration")
    alone.add_argument("--list", type=Path, metavar="FILE", help="one csv")
    alone.add_argument("--prefix", default="", metavar="DIR", help="where relative paths lie; default: beside the csv")
    alone.add_argument("--separator", default=" ", metavar="CHAR", help="between path and label; default: a space")
    add_config_arguments(parser)
    return alone


def check_list_arguments(args: argparse.Namespace) -> None:
    """Raises ValueError on options about lists that do not fit each other."""
    if args.list and (args.cfg or args.split or args.opts or args.overrides):
        raise ValueError("--list stands alone, without --cfg, --split and KEY VALUE pairs")
    if not args.list and (args.prefix or args.separator != " "):
        raise ValueError("--prefix and --separator belong to --list; settings say the same, see DATA")


def read_lists(args: argparse.Namespace) -> list[CheckedList]:
    """The lists that the arguments name."""
    if args.list:
        return [listed_alone(args)]
    cfg, report = load_config_with_report(args.cfg, parse_overrides(args))
    if said := format_report(report, args.verbose):
        print(said, file=sys.stderr)
    return [configured_list(cfg, split) for split in chosen_splits(cfg, args)]


def listed_alone(args: argparse.Namespace) -> CheckedList:
    """The csv of --list."""
    videos = read_kinetics_csv(args.list, separator=args.separator, prefix=args.prefix)
    return CheckedList(args.list.stem, videos, args.separator)


def chosen_splits(cfg: Config, args: argparse.Namespace) -> list[str]:
    """Those of --split, or all that the configuration names; each once."""
    splits = args.split.split(",") if args.split else ["train", "val", cfg.test.split]
    for split in splits:
        if split not in SPLITS:
            raise ValueError(f"--split expects some of {','.join(SPLITS)}, got {split!r}")
    return list(dict.fromkeys(splits))


def configured_list(cfg: Config, split: str) -> CheckedList:
    """One list as training reads it, but with labels that it would refuse."""
    names = class_names(cfg) if cfg.data.class_names else None
    videos = read_annotations(
        cfg.test.dataset if split == "test" else cfg.train.dataset,
        cfg.data.path_to_data_dir,
        split,
        separator=cfg.data.path_label_separator,
        prefix=cfg.data.path_prefix,
        class_names=names,
    )
    if names is not None:
        videos = replace(videos, class_names=names)
    return CheckedList(split, videos, cfg.data.path_label_separator)
