"""Configs from YAML files, their `_BASE_` files and the command line; every error names file, line and key.

A file holds `SECTION: {KEY: value}` in capitals. `_BASE_: other.yaml` (or a list of files) is read first, relative to
the file. Keys of published SlowFast and TimeSformer files are read as `published_keys.py` says, and reported.
"""

import argparse
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import ValidationError

from videoattn.config.ignored_keys import IGNORED
from videoattn.config.keys import describe_problems, merge_settings, nest_settings, sort_keys, takes_text
from videoattn.config.published_keys import (
    PUBLISHED_MVIT,
    PUBLISHED_TIMESFORMER,
    Note,
    fill_slowfast_defaults,
    fill_timesformer_defaults,
    published_name,
    read_level,
    refuse_model,
)
from videoattn.config.sections import Config
from videoattn.config.shipped import find_config, shipped_configs
from videoattn.config.strict_yaml import (
    COMMAND_LINE,
    ConfigError,
    Repeated,
    Setting,
    freeze,
    read_settings,
    read_value,
    show,
    write_yaml,
)

__all__ = [
    "ConfigError",
    "ConfigReport",
    "Note",
    "add_config_arguments",
    "changed_keys",
    "dump_config",
    "format_report",
    "load_config",
    "load_config_text",
    "load_config_with_report",
    "parse_config",
    "parse_overrides",
]

_BASE = "_BASE_"


@dataclass(frozen=True)
class ConfigReport:
    """Published keys: the `ignored` ones, and the `translated` ones, which were read as others."""

    ignored: tuple[Note, ...] = ()
    translated: tuple[Note, ...] = ()


def load_config(path: str | Path | None, overrides: Sequence[object] = ()) -> Config:
    """Return the config of a YAML file (None: the defaults) with `overrides` on top: key, value, key, value ...

    `path` is a file, or the name of a config that comes with the package, such as Motion/divided.yaml. A value given as
    text is read as on the command line. Raises ConfigError with all problems at once.
    """
    return load_config_with_report(path, overrides)[0]


def load_config_with_report(path: str | Path | None, overrides: Sequence[object] = ()) -> tuple[Config, ConfigReport]:
    """Return the result of `load_config`, and a report on the keys that only published files have."""
    notes: list[Note] = []
    levels = _read_files(find_config(path), notes) if path is not None else []
    cfg, report = _build([*levels, _read_overrides(overrides)])
    return cfg, replace(report, translated=(*notes, *report.translated))


def load_config_text(text: str, source: str, overrides: Sequence[object] = ()) -> tuple[Config, ConfigReport]:
    """Return `load_config_with_report` of YAML text that no file holds, such as a checkpoint's.

    `source` names the text in errors. The text has no `_BASE_`, which would be relative to nothing.
    """
    notes: list[Note] = []
    cfg, report = _build([_read_text(text, source, notes), _read_overrides(overrides)])
    return cfg, replace(report, translated=(*notes, *report.translated))


def parse_config(text: str, source: str, without: tuple[str, ...] = ()) -> Config:
    """Return the config that YAML text says, e.g. a checkpoint's; `source` names the text in errors.

    Keys that begin with one of `without` are left out, as if the text did not have them.
    """
    settings = read_settings(text, source)
    return _build([{key: setting for key, setting in settings.items() if not key.startswith(without)}])[0]


def format_report(report: ConfigReport, verbose: bool = False) -> str:
    """Return the report as lines for people, with `verbose` the place and reason of every key; empty without notes."""
    ignored, translated = report.ignored, report.translated
    lines = []
    if ignored and verbose:
        lines += ["Ignored keys:", *map(_detail, ignored)]
    elif ignored:
        lines += [f"Ignored keys: {_group_keys(ignored)} (--verbose says why)"]
    if translated:
        lines += ["Published settings, as they are read here:"]
        lines += [
            _detail(note) if verbose else f"  {note.key} {show(note.value)}: {note.reason}" for note in translated
        ]
    return "\n".join(lines)


def _detail(note: Note) -> str:
    return f"  {note.key} {show(note.value)} ({note.source}): {note.reason}"


def _group_keys(notes: Sequence[Note]) -> str:
    """Return the keys in one line: those of a section that has several as `SECTION (how many keys)`."""
    sections = [note.key.partition(".")[0] if "." in note.key else "" for note in notes]
    counts = Counter(sections)
    names = [
        f"{section} ({counts[section]} keys)" if section and counts[section] > 1 else note.key
        for note, section in zip(notes, sections, strict=True)
    ]
    return ", ".join(dict.fromkeys(names))


def dump_config(cfg: Config) -> str:
    """Return every setting as YAML that loads back to an equal config."""
    return write_yaml(cfg.model_dump(by_alias=True))


def changed_keys(old: str, new: str) -> list[str]:
    """Return the keys, as `DATA.NUM_FRAMES`, at which two dumped configs differ.

    A key that is missing has its default; an ignored key, such as an older dump may hold, is left out.
    """
    defaults = read_settings(dump_config(Config()), "defaults")
    first, second = defaults | read_settings(old, "old config"), defaults | read_settings(new, "new config")
    missing = Setting(None, "")
    keys = dict.fromkeys([*second, *first])
    return [
        key for key in keys if key not in IGNORED and first.get(key, missing).value != second.get(key, missing).value
    ]


def add_config_arguments(parser: argparse.ArgumentParser) -> None:
    """Add `--cfg FILE [--verbose] [--opts] KEY VALUE ...`; the pairs come last. `parse_overrides` collects them."""
    rest = argparse.REMAINDER
    parser.add_argument("--cfg", type=Path, metavar="FILE", 
                        help="a YAML file, or the name of one that comes with videoattn, such as Motion/divided.yaml; "
                        "default: all defaults")  # fmt: skip
    parser.add_argument("--verbose", action="store_true", help="list each ignored key with its place and the reason")
    parser.add_argument("--opts", nargs=rest, default=[], metavar="KEY VALUE", help="may stand before the pairs")
    parser.add_argument("overrides", nargs=rest, metavar="KEY VALUE", help="settings, e.g. TRAIN.BATCH_SIZE 4")


def parse_overrides(args: argparse.Namespace) -> list[str]:
    """Return the KEY VALUE pairs of parsed arguments for `load_config`; raises ConfigError for an incomplete pair."""
    items = [*args.opts, *args.overrides]
    _pair(items)
    return items


def _build(levels: Sequence[Mapping[str, Setting]]) -> tuple[Config, ConfigReport]:
    """Build the config from levels of settings, the last on top."""
    settings: dict[str, Setting] = {}
    translated: list[Note] = []
    problems: list[str] = []
    for level in levels:
        renamed, notes, conflicts = read_level(level)
        settings = merge_settings(settings, renamed)
        translated += notes
        problems += conflicts
    names = {published_name(level) for level in levels}
    if PUBLISHED_TIMESFORMER in names:
        settings, notes = fill_timesformer_defaults(settings)
        translated += notes
    elif PUBLISHED_MVIT in names:
        settings, notes = fill_slowfast_defaults(settings)
        translated += notes
    refusal = refuse_model(settings)
    if refusal:
        raise ConfigError([refusal])
    known, ignored, unknown = sort_keys(settings)
    problems += unknown
    try:
        cfg = Config.model_validate(nest_settings(known), strict=True)
    except ValidationError as error:
        raise ConfigError(problems + describe_problems(error, known)) from None
    if problems:
        raise ConfigError(problems)
    return cfg, ConfigReport(tuple(ignored), tuple(translated))


def _pair(items: Sequence[object]) -> list[tuple[str, object]]:
    if isinstance(items, str | Mapping):
        raise ConfigError([f"overrides expects a list such as ['RNG_SEED', 1], got {items!r}"])
    for key in items[::2]:
        if not isinstance(key, str) or key.startswith("-"):
            hint = "put options such as --verbose before the KEY VALUE pairs"
            raise ConfigError([f"{COMMAND_LINE}: expected a key such as RNG_SEED, got {key!r}; {hint}"])
    if len(items) % 2:
        raise ConfigError([f"{COMMAND_LINE}: expected KEY VALUE pairs, but {items[-1]!r} is left without a value"])
    return list(zip(map(str, items[::2]), items[1::2], strict=True))


def _read_overrides(items: Sequence[object]) -> dict[str, Setting]:
    """Read settings from the command line; the last value of a repeated key counts."""
    settings: dict[str, Setting] = {}
    for key, value in _pair(items):
        if not isinstance(value, str) or takes_text(key):
            settings[key] = Setting(freeze(value), COMMAND_LINE)
        elif value.startswith(("[", "{", '"', "'")):
            settings |= read_settings(value, COMMAND_LINE, key)
        else:
            try:
                settings[key] = Setting(read_value(value), COMMAND_LINE)
            except ValueError as error:
                raise ConfigError([f"{COMMAND_LINE}: {key}: {error}"]) from None
    return settings


def _read_files(path: Path, notes: list[Note], chain: tuple[Path, ...] = ()) -> list[dict[str, Setting]]:
    """Return the settings of a file's bases, then its own."""
    if path.resolve() in [above.resolve() for above in chain]:
        raise ConfigError([f"{chain[0]}: {_BASE} runs in a circle: {' -> '.join(map(str, (*chain, path)))}"])
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        what = getattr(error, "strerror", None) or str(error)
        raise ConfigError([f"{path}: {what}" + (f" ({_BASE} of {chain[-1]})" if chain else "")]) from None
    settings = _read_text(text, str(path), notes)
    base = settings.pop(_BASE, Setting((), ""))
    levels = []
    for name in base.value if isinstance(base.value, tuple) else (base.value,):
        if not isinstance(name, str) or not name:
            raise ConfigError([f"{base.source}: {_BASE} expects a file name or a list of them, got {show(base.value)}"])
        beside = path.parent / name
        base_file = find_config(name) if not beside.exists() and name in shipped_configs() else beside
        levels += _read_files(base_file, notes, (*chain, path))
    return [*levels, settings]


def _read_text(text: str, source: str, notes: list[Note]) -> dict[str, Setting]:
    """Return the settings of YAML text.

    Some published files repeat keys; their last value holds, as there, and `notes` tell.
    """
    repeated: list[Repeated] = []
    settings = read_settings(text, source, repeated=repeated)
    if repeated and published_name(settings) is None:
        replaced = {key: setting for repeat in repeated for key, setting in repeat.replaced.items()}
        refusal = refuse_model(replaced | settings)
        raise ConfigError([*([refusal] if refusal else []), *(str(repeat) for repeat in repeated)])
    for repeat in repeated:
        value = settings[repeat.key].value if repeat.key in settings else None
        notes.append(Note(repeat.key, value, f"the last of several; it first stands at {repeat.first}", repeat.place))
    return settings
