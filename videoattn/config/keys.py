"""Dotted keys: those that exist, merging of settings, and messages about wrong keys and values.

A list of operators takes a number in its keys: `ATTENTION.TIME.1.NAME` is the second operator along time.
"""

import difflib
import re
from collections.abc import Mapping
from typing import Any, Literal, get_args, get_origin

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from videoattn.config.attention import OPERATOR_SECTIONS
from videoattn.config.ignored_keys import IGNORED, IGNORED_SECTIONS
from videoattn.config.published_keys import Note
from videoattn.config.sections import Config
from videoattn.config.strict_yaml import Setting, show
from videoattn.config.types import Section

_EXPECTED = {
    "bool_type": "True or False",
    "int_type": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "string_type": "text",
    "tuple_type": "a list",
}
_AXES = ("ATTENTION.SPACE", "ATTENTION.TIME", "ATTENTION.JOINT")
_OPERATOR = re.compile(rf"({'|'.join(map(re.escape, _AXES))})(\.\d+)?")


def list_fields(section: type[Section], prefix: str = "") -> dict[str, FieldInfo]:
    """Return every field below a section by dotted key, sections themselves included."""
    fields: dict[str, FieldInfo] = {}
    for name, field in section.model_fields.items():
        key = f"{prefix}{name.upper()}"
        fields[key] = field
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            fields |= list_fields(field.annotation, f"{key}.")
    return fields


_FIELDS = list_fields(Config)
_SECTIONS = {key.rpartition(".")[0] for key in _FIELDS} - {""} | set(_AXES)
_KEYS = [key for key in _FIELDS if key not in _SECTIONS]
_OPTIONS = {name: [key for key in list_fields(section) if key != "NAME"] for name, section in OPERATOR_SECTIONS.items()}
_SPELT = _KEYS + [f"{axis}.{name}" for axis in _AXES for name in dict.fromkeys(["NAME", *sum(_OPTIONS.values(), [])])]


def list_keys() -> list[str]:
    """Return every key that a setting can have, the options of all operators included."""
    return list(_SPELT)


def list_values(key: str) -> list[str]:
    """Return the names that a key expects as its value; none where any number or text may stand."""
    axis, _, option = key.rpartition(".")
    if axis in _AXES and option == "NAME":
        return list(OPERATOR_SECTIONS)
    if axis in _AXES:
        sections = [list_fields(section) for section in OPERATOR_SECTIONS.values()]
        fields = [section[option] for section in sections if option in section]
    else:
        fields = [_FIELDS[key]] if key in _KEYS else []
    if any(field.annotation is bool for field in fields):
        return ["True", "False"]
    literals = [field.annotation for field in fields if get_origin(field.annotation) is Literal]
    return list(dict.fromkeys(str(value) for literal in literals for value in get_args(literal)))


def takes_text(key: str) -> bool:
    """Return whether a key's value is text even if it looks like a number."""
    kind = _FIELDS[key].annotation if key in _KEYS else None
    return kind is str or (get_origin(kind) is Literal and all(isinstance(value, str) for value in get_args(kind)))


def merge_settings(below: Mapping[str, Setting], above: Mapping[str, Setting]) -> dict[str, Setting]:
    """Merge `above` over `below`; another operator, or a list of them, does not inherit options of what it replaces."""
    merged = dict(below)
    for axis in _AXES:
        name, old = above.get(f"{axis}.NAME"), below.get(f"{axis}.NAME")
        replaced = name is not None and name.value != (old.value if old else "dense")
        if replaced or f"{axis}.0.NAME" in above:
            merged = {key: setting for key, setting in merged.items() if not key.startswith(f"{axis}.")}
    return merged | dict(above)


def sort_keys(settings: Mapping[str, Setting]) -> tuple[dict[str, Setting], list[Note], list[str]]:
    """Sort settings into known ones, ignored published ones, and problems with the rest."""
    known: dict[str, Setting] = {}
    ignored: list[Note] = []
    problems: list[str] = []
    for key, setting in settings.items():
        section, _, name = key.rpartition(".")
        published = IGNORED.get(key)
        value, at = setting.value, setting.source
        if key in _SECTIONS or (key in IGNORED_SECTIONS and not published) or _OPERATOR.fullmatch(key):
            if value is not None:
                hint = f"; did you mean {key}.NAME {value}?" if value in OPERATOR_SECTIONS else ""
                problems.append(f"{at}: {key} is a section and expects KEY: value lines, got {show(value)}{hint}")
        elif key in _KEYS or (_OPERATOR.fullmatch(section) and name == name.upper()):
            known[key] = setting
        elif published is None:
            nearest = _nearest(key)
            problems.append(f"{at}: {key} is not a setting" + (f"; did you mean {nearest}?" if nearest else ""))
        elif published.allows(value):
            ignored.append(Note(key, value, published.reason, at))
        else:
            allowed = " or ".join(map(show, published.values or ()))
            problems.append(f"{at}: {key} expects {allowed}, got {show(value)}: {published.reason}")
    for axis in _AXES:
        listed = [key for key in known if re.match(rf"{re.escape(axis)}\.\d", key)]
        beside = [key for key in known if key.startswith(f"{axis}.") and key not in listed]
        if listed and beside:
            at = known[beside[0]].source
            problems.append(f"{at}: {beside[0]} can't stand beside a list of operators ({listed[0]})")
            known = {key: setting for key, setting in known.items() if key not in (*listed, *beside)}
    return known, ignored, problems


def _nearest(key: str) -> str | None:
    """Return the key that was probably meant: one spelt alike, else of that name in another section, else a section."""
    section, _, name = key.upper().rpartition(".")
    if _OPERATOR.fullmatch(section):
        return f"{section}.{name}"
    namesakes = [other for other in _SPELT if other.rpartition(".")[2] == name]
    close = difflib.get_close_matches(key.upper(), _SPELT, n=1, cutoff=0.85)
    close += difflib.get_close_matches(key.upper(), IGNORED, n=1, cutoff=0.85)
    close += difflib.get_close_matches(key.upper(), namesakes, n=1, cutoff=0.0)
    close += difflib.get_close_matches(key.upper(), _SPELT, n=1)
    close += difflib.get_close_matches(section or name, _SECTIONS, n=1)
    return close[0] if close else None


def nest_settings(settings: Mapping[str, Setting]) -> dict[str, Any]:
    """Return the tree of values that the keys describe, with numbered keys as an ordered tuple."""
    tree: dict[str, Any] = {}
    for key, setting in settings.items():
        *sections, name = key.split(".")
        node = tree
        for section in sections:
            node = node.setdefault(section, {})
        node[name] = setting.value
    attention = tree.get("ATTENTION", {})
    for axis, value in attention.items():
        if isinstance(value, dict) and value and all(part.isdigit() for part in value):
            attention[axis] = tuple(value[part] for part in sorted(value, key=int))
    return tree


def describe_problems(error: ValidationError, settings: Mapping[str, Setting]) -> list[str]:
    """Return one line for each value at fault."""
    lines: dict[str, None] = {}
    for problem in error.errors():
        key, operator = _locate(problem["loc"], settings)
        message = problem["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
        message = f"a number {message}" if message.startswith(("greater", "less")) else message
        value, expected = problem["input"], _EXPECTED.get(problem["type"], message)
        if problem["type"] == "union_tag_invalid":  # an operator that does not exist
            key, value = f"{key}.NAME", value["NAME"]
            expected = f"one of {', '.join(OPERATOR_SECTIONS)}"
        if key not in settings:  # a rule about several settings, which its message names
            lines[_describe_rule(key, message, settings)] = None
            continue
        if operator and problem["type"] == "extra_forbidden":
            name = key.rpartition(".")[2]
            near = difflib.get_close_matches(name, _OPTIONS[operator], n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            valid = ", ".join(_OPTIONS[operator])
            unset = f"{key.rpartition('.')[0]}.NAME" not in settings
            hint += f"; {key.rpartition('.')[0]}.NAME is not set, so it is {operator}" if unset else ""
            lines[f"{settings[key].source}: {key} is not an option of {operator} (options: {valid}){hint}"] = None
            continue
        items = problem["loc"][3 if key.startswith(_AXES) else 0 :]
        where = key + "".join(f"[{part}]" for part in items if isinstance(part, int))
        if problem["type"] in ("missing", "too_long"):  # of the items of a tuple
            value, where, expected = settings[key].value, key, f"{len(get_args(_FIELDS[key].annotation))} values"
        lines[f"{settings[key].source}: {where} expects {expected}, got {show(value)}"] = None
    return list(lines)


def _describe_rule(section: str, message: str, settings: Mapping[str, Setting]) -> str:
    """Return one line for a rule about several settings: their places, then the message."""
    words = set(re.findall(r"[A-Z_0-9]+(?:\.[A-Z_0-9]+)*", message))
    named = [
        key for key in settings if key in words or (key.startswith(f"{section}.") and key.rpartition(".")[2] in words)
    ]
    at = dict.fromkeys(settings[key].source for key in named)
    if section and not message.startswith(f"{section}."):
        message = f"{section}: {message}"
    return ": ".join(filter(None, (", ".join(at), message)))


def _locate(place: tuple[int | str, ...], settings: Mapping[str, Setting]) -> tuple[str, str | None]:
    """Return the dotted key of a value, and the operator whose option it is."""
    axis, rest = ".".join(map(str, place[:2])), place[2:]
    if axis not in _AXES or not rest:
        return ".".join(part for part in place if isinstance(part, str)), None
    section = f"{axis}.{rest[0]}" if any(key.startswith(f"{axis}.{rest[0]}.") for key in settings) else axis
    options = [part for part in rest[2:] if isinstance(part, str)]
    return ".".join([section, *options]), str(rest[1]) if len(rest) > 1 else None
