"""Settings by dotted key, read from YAML text with their lines; ambiguous text is refused.

Plain `1e-6`, `(3, 7, 7)` and `None` are a number, a list and nothing, as SlowFast's files mean them. Repeated keys and
aliases are errors; dates, octal numbers and yes/no are text. Lists become tuples, so that no setting can be changed;
a list of mappings becomes settings with its items' numbers in their keys, as `ATTENTION.TIME.0.NAME`.
"""

import ast
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import yaml

COMMAND_LINE = "command line"
MOST_DIGITS = 40
MOST_SHOWN = 200
MOST_LEVELS = 20
MOST_PROBLEMS = 20

_MAPPING = "tag:yaml.org,2002:map"
_TUPLE = "tag:videoattn,2026:tuple"
_PLAIN_VALUES = (  # tag, what a plain scalar looks like, its possible first characters
    ("tag:yaml.org,2002:null", r"~|null|Null|NULL|None|", ["~", "n", "N", ""]),
    ("tag:yaml.org,2002:bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("tag:yaml.org,2002:int", r"[-+]?(0|[1-9][0-9]*)", list("-+0123456789")),
    (
        "tag:yaml.org,2002:float",
        r"[-+]?([0-9]+\.[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?|[-+]?[0-9]+[eE][-+]?[0-9]+",
        list("-+.0123456789"),
    ),
    (_TUPLE, r"\(.*\)", ["("]),
)


class ConfigError(ValueError):
    """Everything that is wrong with a configuration, one line per problem; the message shows the first of them."""

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        head = f"{len(self.problems)} problems in the configuration:\n  " if len(self.problems) > 1 else ""
        more = len(self.problems) - MOST_PROBLEMS
        shown = [*self.problems[:MOST_PROBLEMS], *([f"and {more} more"] if more > 0 else [])]
        super().__init__(head + "\n  ".join(shown))


@dataclass(frozen=True)
class Setting:
    """A value and its place: `file:line`, or the command line."""

    value: object
    source: str


@dataclass(frozen=True)
class Repeated:
    """A key given more than once in one mapping: the place of the repeat, the first one, and what it replaced."""

    key: str
    place: str
    first: str
    replaced: Mapping[str, Setting]

    def __str__(self) -> str:
        return f"{self.place}: {self.key} is repeated; it first stands at {self.first}"


def read_settings(
    text: str, source: str, prefix: str = "", repeated: list[Repeated] | None = None
) -> dict[str, Setting]:
    """Return the settings in YAML text by dotted key, e.g. `DATA.NUM_FRAMES`.

    `source` is the file's name or COMMAND_LINE. With a `prefix`, the text is that key's value.
    Raises ConfigError on text that is no YAML and on repeated keys; given a list `repeated`, these go there instead,
    and their last value holds.
    """
    settings: dict[str, Setting] = {}
    problems: list[str] = []
    repeats: list[Repeated] = []
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is not None:
            _collect(loader, node, prefix, source, settings, problems, repeats)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = _place(source, mark.line) if mark else source
        what = getattr(error, "problem", None) or getattr(error, "reason", None) or "unreadable"
        raise ConfigError([f"{place}: {f'{prefix}: ' if prefix else ''}not valid YAML: {what}"]) from None
    if repeated is None:
        problems += map(str, repeats)
    else:
        repeated += repeats
    if problems:
        raise ConfigError(problems)
    return settings


def read_value(text: str) -> object:
    """Read a plain value from the command line, where only literals have a special meaning.

    Raises ValueError on a number of too many digits.
    """
    if not text:
        return ""
    loader = _Loader("")
    tag = loader.resolve(yaml.ScalarNode, text, (True, False))  # type: ignore[no-untyped-call]
    try:
        return freeze(loader.construct_object(yaml.ScalarNode(tag, text)))
    except yaml.MarkedYAMLError as error:
        raise ValueError(error.problem) from None


def write_yaml(values: dict[str, Any]) -> str:
    """Write nested settings as YAML, lists in one line; read_settings returns the same values."""
    return yaml.dump(_thaw(values), Dumper=_Dumper, sort_keys=False, default_flow_style=None, allow_unicode=True)


def freeze(value: Any) -> Any:
    """Turn lists and tuples, nested ones too, into tuples."""
    return tuple(freeze(item) for item in value) if isinstance(value, (list, tuple)) else value


def show(value: object) -> str:
    """Format a value for messages: tuples as lists, long ones cut short."""
    text = repr(list(value)) if isinstance(value, tuple) else repr(value)
    return text if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]} ..."


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict[str, Any] = {}
    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if isinstance(event, yaml.AliasEvent):
            problem = "aliases (*name) are not supported; use _BASE_"
            raise yaml.composer.ComposerError(None, None, problem, cast(Any, event.start_mark))
        if getattr(event, "tag", None) not in (None, "!"):
            problem = f"tags ({event.tag}) are not supported"
            raise yaml.composer.ComposerError(None, None, problem, cast(Any, event.start_mark))
        if self.depth > MOST_LEVELS:
            raise yaml.composer.ComposerError(None, None, "nested too deeply", cast(Any, event.start_mark))
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


class _Dumper(yaml.SafeDumper):
    """Quotes text that plain YAML or this module would read as something else."""


def _read_tuple(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> object:
    try:
        value = ast.literal_eval(node.value)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return node.value
    return value if isinstance(value, tuple) else node.value


def _read_int(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int:
    if len(node.value) > MOST_DIGITS:
        raise yaml.constructor.ConstructorError(None, None, f"a number of {len(node.value)} digits", node.start_mark)
    return int(node.value)


for _tag, _pattern, _first in _PLAIN_VALUES:
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(_tag, re.compile(f"^(?:{_pattern})$"), _first)
_Loader.add_constructor(_TUPLE, _read_tuple)
_Loader.add_constructor("tag:yaml.org,2002:int", _read_int)


def _place(source: str, line: int) -> str:
    return source if source == COMMAND_LINE else f"{source}:{line + 1}"


def _collect(
    loader: _Loader, node: yaml.Node, key: str, source: str, settings: dict[str, Setting], problems: list[str],
    repeats: list[Repeated],
) -> None:  # fmt: skip
    place = _place(source, node.start_mark.line)
    if key and isinstance(node, yaml.SequenceNode) and any(isinstance(item, yaml.MappingNode) for item in node.value):
        for number, item in enumerate(node.value):
            _collect(loader, item, f"{key}.{number}", source, settings, problems, repeats)
        return
    if not isinstance(node, yaml.MappingNode) or node.tag != _MAPPING:
        value = freeze(loader.construct_object(node, deep=True))
        if key:
            settings[key] = Setting(value, place)
        elif value is not None:
            problems.append(f"{place}: a configuration file holds KEY: value lines, got {show(value)}")
        return
    if key and not node.value:
        settings[key] = Setting(None, place)
    places: dict[str, str] = {}
    for name_node, value_node in node.value:
        name = loader.construct_object(name_node, deep=True)
        place = _place(source, name_node.start_mark.line)
        dotted = f"{key}.{name}" if key else str(name)
        if not isinstance(name, str):
            problems.append(f"{place}: a key is a word in capitals, got {show(name)}")
        else:
            if name in places:
                earlier = [other for other in settings if other == dotted or other.startswith(f"{dotted}.")]
                repeats.append(Repeated(dotted, place, places[name], {other: settings.pop(other) for other in earlier}))
            places.setdefault(name, place)
            _collect(loader, value_node, dotted, source, settings, problems, repeats)


def _thaw(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _thaw(item) for key, item in value.items()}
    return [_thaw(item) for item in value] if isinstance(value, (list, tuple)) else value
