"""Configs from YAML files, their `_BASE_` files and the command line; every error names file, line and key.

A file holds `SECTION: {KEY: value}` in capitals. `_BASE_: other.yaml` (or a list of files) is read first, relative to
the file. Keys of published SlowFast and TimeSformer files are read as `videoattn.published_keys` says, and reported.
"""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import ValidationError

from videoattn.config import Config
from videoattn.config_keys import describe_problems, merge_settings, nest_settings, sort_keys, takes_text
from videoattn.published_keys import (
    PUBLISHED_MVIT,
    PUBLISHED_TIMESFORMER,
    UNSUPPORTED_MODELS,
    Note,
    fill_slowfast_defaults,
    fill_timesformer_defaults,
    published_name,
    read_layer,
)
from videoattn.strict_yaml import (
    COMMAND_LINE,
    ConfigError,
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
    "load_config_with_report",
    "parse_config",
    "parse_overrides",
]

_BASE = "_BASE_"


@dataclass(frozen=True)
class ConfigReport:
    """What became of published keys: `inert` ones mean nothing here, `translated` ones were read as something else."""

    inert: tuple[Note, ...] = ()
    translated: tuple[Note, ...] = ()


def load_config(path: str | Path | None, overrides: Sequence[object] = ()) -> Config:
    """The config of a YAML file (None: the defaults) with `overrides` on top: key, value, key, value ...

    A value given as text is read as on the command line. Raises ConfigError with all problems at once.
    """
    return load_config_with_report(path, overrides)[0]


def load_config_with_report(path: str | Path | None, overrides: Sequence[object] = ()) -> tuple[Config, ConfigReport]:
    """`load_config`, and what became of the keys that only published files have."""
    notes: list[Note] = []
    layers = _read_files(Path(path), notes) if path is not None else []
    cfg, report = _build([*layers, _read_overrides(overrides)])
    return cfg, replace(report, translated=(*notes, *report.translated))


def parse_config(text: str, source: str) -> Config:
    """The config that YAML text says, e.g. a checkpoint's; `source` names the text in errors."""
    return _build([read_settings(text, source)])[0]


def format_report(report: ConfigReport) -> str:
    """The report as lines for people; empty where there is nothing to say."""
    lines: list[str] = []
    for title, notes in (("Keys that mean nothing here", report.inert), ("Published settings", report.translated)):
        if notes:
            lines.append(f"{title}:")
            lines += [f"  {note.key} {show(note.value)} ({note.source}): {note.reason}" for note in notes]
    return "\n".join(lines)


def dump_config(cfg: Config) -> str:
    """Every setting as YAML that loads back to an equal config."""
    return write_yaml(cfg.model_dump(by_alias=True))


def changed_keys(old: str, new: str) -> list[str]:
    """The keys, as `DATA.NUM_FRAMES`, at which two dumped configs differ; a key that is missing has its default."""
    defaults = read_settings(dump_config(Config()), "defaults")
    first, second = defaults | read_settings(old, "old config"), defaults | read_settings(new, "new config")
    missing = Setting(None, "")
    keys = dict.fromkeys([*second, *first])
    return [key for key in keys if first.get(key, missing).value != second.get(key, missing).value]


def add_config_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds `--cfg FILE [--opts] KEY VALUE ...`; the pairs come last. `parse_overrides` collects them."""
    rest = argparse.REMAINDER
    parser.add_argument("--cfg", type=Path, metavar="FILE", help="configuration file (YAML); default: all defaults")
    parser.add_argument("--opts", nargs=rest, default=[], metavar="KEY VALUE", help="may stand before the pairs")
    parser.add_argument("overrides", nargs=rest, metavar="KEY VALUE", help="settings, e.g. TRAIN.BATCH_SIZE 4")


def parse_overrides(args: argparse.Namespace) -> list[str]:
    """The KEY VALUE pairs of parsed arguments, as `load_config` takes them; raises ConfigError on what is no pair."""
    items = [*args.opts, *args.overrides]
    _pair(items)
    return items


def _build(layers: Sequence[Mapping[str, Setting]]) -> tuple[Config, ConfigReport]:
    """The config of settings laid over each other, the last on top."""
    settings: dict[str, Setting] = {}
    translated: list[Note] = []
    problems: list[str] = []
    for layer in layers:
        renamed, notes, conflicts = read_layer(layer)
        settings = merge_settings(settings, renamed)
        translated += notes
        problems += conflicts
    names = {published_name(layer) for layer in layers}
    if PUBLISHED_TIMESFORMER in names:
        settings, notes = fill_timesformer_defaults(settings)
        translated += notes
    elif PUBLISHED_MVIT in names:
        settings, notes = fill_slowfast_defaults(settings)
        translated += notes
    model = settings.get("MODEL.MODEL_NAME")
    if model and isinstance(model.value, str) and model.value in UNSUPPORTED_MODELS:
        raise ConfigError([f"{model.source}: MODEL.MODEL_NAME: {UNSUPPORTED_MODELS[model.value]}"])
    known, inert, unknown = sort_keys(settings)
    problems += unknown
    try:
        cfg = Config.model_validate(nest_settings(known), strict=True)
    except ValidationError as error:
        raise ConfigError(problems + describe_problems(error, known)) from None
    if problems:
        raise ConfigError(problems)
    return cfg, ConfigReport(tuple(inert), tuple(translated))


def _pair(items: Sequence[object]) -> list[tuple[str, object]]:
    for key in items[::2]:
        if not isinstance(key, str) or key.startswith("-"):
            raise ConfigError([f"{COMMAND_LINE}: expected a key such as RNG_SEED, got {key!r}; options come before"])
    if len(items) % 2:
        raise ConfigError([f"{COMMAND_LINE}: expected KEY VALUE pairs, but {items[-1]!r} is left without a value"])
    return list(zip(map(str, items[::2]), items[1::2], strict=True))


def _read_overrides(items: Sequence[object]) -> dict[str, Setting]:
    """Settings from the command line; of a key given twice the last value holds."""
    settings: dict[str, Setting] = {}
    for key, value in _pair(items):
        if not isinstance(value, str) or takes_text(key):
            settings[key] = Setting(freeze(value), COMMAND_LINE)
        elif value.startswith(("[", "{", '"', "'")):
            settings |= read_settings(value, COMMAND_LINE, key)
        else:
            settings[key] = Setting(read_value(value), COMMAND_LINE)
    return settings


def _read_files(path: Path, notes: list[Note], chain: tuple[Path, ...] = ()) -> list[dict[str, Setting]]:
    """The settings of a file's bases, then its own.

    Some published files repeat keys; their last value holds, as there, and `notes` tell.
    """
    if path.resolve() in [above.resolve() for above in chain]:
        raise ConfigError([f"{chain[0]}: {_BASE} runs in a circle: {' -> '.join(map(str, (*chain, path)))}"])
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        what = getattr(error, "strerror", None) or str(error)
        raise ConfigError([f"{path}: {what}" + (f" ({_BASE} of {chain[-1]})" if chain else "")]) from None
    repeated: list[str] = []
    settings = read_settings(text, str(path), repeated=repeated)
    if repeated and published_name(settings) is None:
        raise ConfigError(repeated)
    for problem in repeated:
        place, _, rest = problem.partition(": ")
        key, _, where = rest.partition(" is repeated; ")
        value = settings[key].value if key in settings else None
        notes.append(Note(key, value, f"the last of several; {where}", place))
    base = settings.pop(_BASE, Setting((), ""))
    layers = []
    for name in base.value if isinstance(base.value, tuple) else (base.value,):
        if not isinstance(name, str) or not name:
            raise ConfigError([f"{base.source}: {_BASE} expects a file name or a list of them, got {show(base.value)}"])
        layers += _read_files(path.parent / name, notes, (*chain, path))
    return [*layers, settings]
