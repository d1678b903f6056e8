"""Lists of videos named on the command line: one csv by itself, or those of a configuration."""

import argparse
import sys
from dataclasses import replace
from pathlib import Path

from videoattn.config import Config
from videoattn.config.load import add_config_arguments, format_report, load_config_with_report, parse_overrides
from videoattn.data.build import class_names
from videoattn.data.check.checked_list import CheckedList
from videoattn.data.lists import MissingListError, find_list, read_annotations, read_kinetics_csv
from videoattn.data.lists.list_lines import parse_separator

SPLITS = ("train", "val", "test")


def add_list_arguments(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """Add --split and --cfg with its pairs, which come last, and the returned group with --list and its options."""
    parser.add_argument("--split", metavar="NAMES",
                        help="e.g. train,val; default: train,val and, if it is there, TEST.SPLIT")  # fmt: skip
    alone = parser.add_argument_group("without a configuration")
    alone.add_argument("--list", type=Path, metavar="FILE", help="one csv")
    alone.add_argument("--prefix", default="", metavar="DIR", help="folder of relative paths; default: that of the csv")
    alone.add_argument("--separator", default=" ", metavar="CHAR",
                       help=r"between path and label, \t for a tab; default: a space")  # fmt: skip
    add_config_arguments(parser)
    return alone


def check_list_arguments(args: argparse.Namespace) -> None:
    """Raise ValueError on options about lists that do not fit each other."""
    if args.list and (args.cfg or args.split or args.opts or args.overrides):
        raise ValueError("--list stands alone, without --cfg, --split and KEY VALUE pairs")
    if not args.list and (args.prefix or args.separator != " "):
        raise ValueError("--prefix and --separator belong to --list; settings say the same, see DATA")


def read_lists(args: argparse.Namespace) -> list[CheckedList]:
    """Return the lists that the arguments name."""
    if args.list:
        return [listed_alone(args)]
    cfg, report = load_config_with_report(args.cfg, parse_overrides(args))
    if said := format_report(report, args.verbose):
        print(said, file=sys.stderr)
    return [configured_list(cfg, split) for split in chosen_splits(cfg, args)]


def listed_alone(args: argparse.Namespace, *, with_lengths: bool = False) -> CheckedList:
    """Return the csv of --list; `with_lengths` permits a number before the label, also for videos."""
    separator = parse_separator(args.separator, "--separator")
    videos = read_kinetics_csv(
        args.list, separator=separator, prefix=args.prefix, with_lengths=with_lengths, setting="--separator"
    )
    return CheckedList(args.list.stem, videos, separator)


def chosen_splits(cfg: Config, args: argparse.Namespace) -> list[str]:
    """Return the splits of --split, or those that the configuration trains and evaluates with; each once.

    Without --split, TEST.SPLIT is left out where it has neither a list nor a folder, with a note on standard error.
    """
    if args.split:
        splits = args.split.split(",")
        for split in splits:
            if split not in SPLITS:
                raise ValueError(f"--split expects some of {','.join(SPLITS)}, got {split!r}")
        return list(dict.fromkeys(splits))
    test, folder = cfg.test.split, cfg.data.path_to_data_dir
    if test == "test" and find_list(cfg.test.dataset, folder, test, prefix=cfg.data.path_prefix) is None:
        print(
            f"note: {folder or '.'} has no list and no folder {test} (TEST.SPLIT), so train and val alone are looked "
            "at; --split names others, TEST.SPLIT val evaluates on val",
            file=sys.stderr,
        )
        return ["train", "val"]
    return list(dict.fromkeys(["train", "val", test]))


def configured_list(cfg: Config, split: str, *, with_lengths: bool = False) -> CheckedList:
    """Return one list as training reads it, including labels that training would refuse."""
    names = class_names(cfg) if cfg.data.class_names else None
    separator = parse_separator(cfg.data.path_label_separator, "DATA.PATH_LABEL_SEPARATOR")
    try:
        videos = read_annotations(
            cfg.test.dataset if split == "test" else cfg.train.dataset,
            cfg.data.path_to_data_dir,
            split,
            separator=separator,
            prefix=cfg.data.path_prefix,
            class_names=names,
            with_lengths=with_lengths,
        )
    except MissingListError as error:
        hint = "--split names the splits to look at, TEST.SPLIT the one to test on"
        raise MissingListError(f"{error}; {hint}") from error
    if names is not None:
        videos = replace(videos, class_names=names)
    return CheckedList(split, videos, separator)
