"""Options of an attention operator, read from the signature of its constructor.

    def __init__(self, site: AttentionSite, window: Annotated[int, Field(ge=1), "keys at most this far"] = 4) -> None:

gives the option `window`: its type, its range, one line of help, its default. Settings of runs, checks of values,
tables of the documentation and `videoattn.replace_attention` are derived from this.
"""

import functools
import inspect
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

MISSING = inspect.Parameter.empty
# Numbers without a range of their own: a bound below which no computation overflows or runs out of memory by itself.
BOUND = 10**9
_LIMITS = {  # keywords of a JSON schema, in words
    "minimum": "of at least", "exclusiveMinimum": "greater than", "maximum": "of at most",
    "exclusiveMaximum": "less than",
}  # fmt: skip
_STRICT = ConfigDict(strict=True, allow_inf_nan=False, arbitrary_types_allowed=True)


@dataclass(frozen=True)
class Option:
    """One option: `annotation` is its type with its range, `default` is MISSING where it has to be given."""

    name: str
    annotation: Any
    default: Any
    help: str

    @functools.cached_property
    def _adapter(self) -> TypeAdapter[Any]:
        return TypeAdapter(self.annotation, config=_STRICT)

    def check(self, value: object) -> None:
        """Raise ValueError naming the option, what it expects and what it got."""
        try:
            self._adapter.validate_python(value)
        except ValidationError as error:
            problem = error.errors()[0]
            own = problem["msg"].removeprefix("Value error, ") if problem["type"] == "value_error" else ""
            expected = own or describe_values(self.annotation)
            raise ValueError(f"{self.name.upper()} expects {expected}, got {value!r}") from None


def options_of(operator: type[Any]) -> Mapping[str, Option]:
    """Return the options of an operator's class by name, in the order of its constructor."""
    return _read_options(operator.__init__)


@functools.cache
def _read_options(constructor: Callable[..., None]) -> Mapping[str, Option]:
    _, _, *parameters = inspect.signature(constructor).parameters.values()  # self and the site are not options
    hints = typing.get_type_hints(constructor, include_extras=True)
    options = {}
    for parameter in parameters:
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        annotation = hints.get(parameter.name, Any)
        notes = annotation.__metadata__ if get_origin(annotation) is Annotated else ()
        text = next((note for note in notes if isinstance(note, str)), "")
        kind = get_args(annotation)[0] if notes else annotation
        if kind in (int, float) and not any(note for note in notes if not isinstance(note, str)):
            annotation = Annotated[kind, Field(ge=-BOUND, le=BOUND)]
        options[parameter.name] = Option(parameter.name, annotation, parameter.default, text)
    return options


def check_options(operator: type[Any], arguments: tuple[Any, ...], keywords: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options among the arguments of a constructor, the first of which is the site.

    Raises ValueError naming an option whose value its annotation excludes, and TypeError on one that there is not.
    """
    given = inspect.signature(operator.__init__).bind_partial(None, *arguments, **keywords).arguments
    options = options_of(operator)
    values = {name: value for name, value in given.items() if name in options}
    for name, value in values.items():
        options[name].check(value)
    return values


def describe_values(annotation: Any) -> str:
    """Return the values that an annotation allows as words: "one of a, b", "a whole number from 1 to 64"."""
    kind = get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation
    if get_origin(kind) is Literal:
        return f"one of {', '.join(map(str, get_args(kind)))}"
    noun = {bool: "True or False", int: "a whole number", float: "a number", str: "text"}.get(kind)
    if noun is None:
        return getattr(kind, "__name__", None) or str(kind)
    schema = TypeAdapter(annotation, config=_STRICT).json_schema()
    limits = {key: schema[key] for key in _LIMITS if abs(schema.get(key, BOUND)) != BOUND}
    if limits.keys() == {"minimum", "maximum"}:
        return f"{noun} from {limits['minimum']:g} to {limits['maximum']:g}"
    return " ".join([noun, " and ".join(f"{_LIMITS[key]} {limit:g}" for key, limit in limits.items())]).strip()
