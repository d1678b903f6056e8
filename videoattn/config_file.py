"""Configs from YAML files, their `_BASE_` files and the command line; every error names file, line and key.

A file holds `SECTION: {KEY: value}` in capitals. `_BASE_: other.yaml` (or a list of files) is read first, relative to
the file. Keys of published SlowFast and TimeSformer files are read as `videoattn.published_keys` says, and reported.
"""

import argparse
import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from videoattn.config import Config, Operator, Section
from videoattn.published_keys import (
    UNSUPPORTED_MODELS,
    Note,
    fill_defaults,
    find_inert,
    is_harmless,
    names_published_timesformer,
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
_EXPECTED = {
    "bool_type": "True or False",
    "int_type": "a whole number",
    "float_type": "a number",
    "string_type": "text",
    "tuple_type": "a list",
}


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
    return _build([*(_read_files(Path(path)) if path is not None else []), _read_overrides(overrides)])


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
        settings = _merge(settings, renamed)
        translated += notes
        problems += conflicts
    if any(names_published_timesformer(layer) for layer in layers):
        settings, notes = fill_defaults(settings)
        translated += notes
    model = settings.get("MODEL.MODEL_NAME")
    if model and isinstance(model.value, str) and model.value in UNSUPPORTED_MODELS:
        raise ConfigError([f"{model.source}: MODEL.MODEL_NAME: {UNSUPPORTED_MODELS[model.value]}"])
    known, inert, unknown = _sort_keys(settings)
    problems += unknown
    try:
        cfg = Config.model_validate(_nest(known), strict=True)
    except ValidationError as error:
        raise ConfigError(problems + _describe(error, known)) from None
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
        if not isinstance(value, str) or _takes_text(key):
            settings[key] = Setting(freeze(value), COMMAND_LINE)
        elif value.startswith(("[", "{", '"', "'")):
            settings |= read_settings(value, COMMAND_LINE, key)
        else:
            settings[key] = Setting(read_value(value), COMMAND_LINE)
    return settings


def _read_files(path: Path, chain: tuple[Path, ...] = ()) -> list[dict[str, Setting]]:
    """The settings of a file's bases, then its own."""
    if path.resolve() in [above.resolve() for above in chain]:
        raise ConfigError([f"{chain[0]}: {_BASE} runs in a circle: {' -> '.join(map(str, (*chain, path)))}"])
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        what = getattr(error, "strerror", None) or str(error)
        raise ConfigError([f"{path}: {what}" + (f" ({_BASE} of {chain[-1]})" if chain else "")]) from None
    settings = read_settings(text, str(path))
    base = settings.pop(_BASE, Setting((), ""))
    layers = []
    for name in base.value if isinstance(base.value, tuple) else (base.value,):
        if not isinstance(name, str) or not name:
            raise ConfigError([f"{base.source}: {_BASE} expects a file name or a list of them, got {show(base.value)}"])
        layers += _read_files(path.parent / name, (*chain, path))
    return [*layers, settings]


def _merge(below: Mapping[str, Setting], above: Mapping[str, Setting]) -> dict[str, Setting]:
    """`above` over `below`; a new operator does not inherit the options of the one that it replaces."""
    merged = dict(below)
    for operator in _OPERATORS:
        name = above.get(f"{operator}.NAME")
        old = below.get(f"{operator}.NAME")
        if name and name.value != (old.value if old else Operator().name):
            merged = {key: setting for key, setting in merged.items() if not key.startswith(f"{operator}.")}
    return merged | dict(above)


def _list_fields(section: type[Section], prefix: str = "") -> dict[str, FieldInfo]:
    """Every field below a section by dotted key, sections themselves included."""
    fields: dict[str, FieldInfo] = {}
    for name, field in section.model_fields.items():
        key = f"{prefix}{name.upper()}"
        fields[key] = field
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            fields |= _list_fields(field.annotation, f"{key}.")
    return fields


_FIELDS = _list_fields(Config)
_SECTIONS = {key.rpartition(".")[0] for key in _FIELDS} - {""}
_OPERATORS = [key for key in _SECTIONS if _FIELDS[key].annotation is Operator]
_KEYS = [key for key in _FIELDS if key not in _SECTIONS]


def _takes_text(key: str) -> bool:
    kind = _FIELDS[key].annotation if key in _KEYS else None
    return kind is str or (get_origin(kind) is Literal and all(isinstance(value, str) for value in get_args(kind)))


def _sort_keys(settings: Mapping[str, Setting]) -> tuple[dict[str, Setting], list[Note], list[str]]:
    """Settings that this project has, published ones without effect, and what is wrong with the rest."""
    known: dict[str, Setting] = {}
    inert: list[Note] = []
    problems: list[str] = []
    for key, setting in settings.items():
        section, _, name = key.rpartition(".")
        published = find_inert(key)
        value, at = setting.value, setting.source
        if key in _SECTIONS:
            if value is not None:
                problems.append(f"{at}: {key} is a section and expects KEY: value lines, got {show(value)}")
        elif key in _KEYS or (section in _OPERATORS and name == name.upper()):
            known[key] = setting
        elif published is None:
            nearest = _nearest(key)
            problems.append(f"{at}: {key} is not a setting" + (f"; did you mean {nearest}?" if nearest else ""))
        elif is_harmless(published, value):
            inert.append(Note(key, value, published.reason, at))
        else:
            harmless = " or ".join(map(show, published.values or ()))
            problems.append(f"{at}: {key} expects {harmless}, got {show(value)}: {published.reason}")
    return known, inert, problems


def _nearest(key: str) -> str | None:
    """What was probably meant: a key spelt alike, else one of that name in another section, else a section."""
    section, _, name = key.upper().rpartition(".")
    if section in _OPERATORS:
        return f"{section}.{name}"
    namesakes = [other for other in _KEYS if other.rpartition(".")[2] == name]
    close = difflib.get_close_matches(key.upper(), _KEYS, n=1, cutoff=0.85)
    close += difflib.get_close_matches(key.upper(), namesakes, n=1, cutoff=0.0)
    close += difflib.get_close_matches(key.upper(), _KEYS, n=1)
    close += difflib.get_close_matches(section or name, _SECTIONS, n=1)
    return close[0] if close else None


def _nest(settings: Mapping[str, Setting]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for key, setting in settings.items():
        *sections, name = key.split(".")
        node = tree
        for section in sections:
            node = node.setdefault(section, {})
        node[name] = setting.value
    return tree


def _describe(error: ValidationError, settings: Mapping[str, Setting]) -> list[str]:
    """One line for each value at fault."""
    lines: dict[str, None] = {}
    for problem in error.errors():
        key = ".".join(part for part in problem["loc"] if isinstance(part, str))
        message = problem["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
        message = f"a number {message}" if message.startswith(("greater", "less")) else message
        if key not in settings:  # a rule about several settings of one section
            at = [s.source for k, s in settings.items() if k.startswith(f"{key}.") and k.rpartition(".")[2] in message]
            lines[f"{', '.join(dict.fromkeys(at))}: {key}: {message}"] = None
            continue
        value, where = problem["input"], key + "".join(f"[{part}]" for part in problem["loc"] if isinstance(part, int))
        expected = _EXPECTED.get(problem["type"], message)
        if problem["type"] in ("missing", "too_long"):  # of the items of a tuple
            value, where, expected = settings[key].value, key, f"{len(get_args(_FIELDS[key].annotation))} values"
        lines[f"{settings[key].source}: {where} expects {expected}, got {show(value)}"] = None
    return list(lines)
