"""Settings of attention: which operator mixes tokens along each axis, in which blocks, with which options."""

import inspect
import re
from collections.abc import Mapping
from functools import reduce
from itertools import chain
from operator import or_
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, PlainSerializer, create_model, model_validator

from videoattn.config.types import MOST_BLOCKS, MOST_HEADS, Block, Section
from videoattn.operators import OPERATORS, AttentionOperator
from videoattn.operators.options import MISSING, options_of


def parse_blocks(value: object) -> object:
    """Parse block numbers from 0: a number, text such as "4-11" or "0, 3-5", or a list, to a sorted tuple."""
    items = value.split(",") if isinstance(value, str) else value if isinstance(value, tuple) else (value,)
    numbers: set[int] = set()
    for item in items:
        match = re.fullmatch(r"([0-9]{1,9})(?:-([0-9]{1,9}))?", str(item).strip())
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (0, -1)
        if isinstance(item, bool) or not first <= last < MOST_BLOCKS:
            raise ValueError(f"block numbers from 0 to {MOST_BLOCKS - 1}, such as 4-11 or [0, 3]")
        numbers.update(range(first, last + 1))
    return tuple(sorted(numbers))


def parse_heads(value: object) -> object:
    """Parse pairs of a block and a head, both from 0, to a sorted tuple of pairs."""
    pairs = value if isinstance(value, tuple) else (value,)
    for pair in pairs:
        numbers = pair if isinstance(pair, tuple) else ()
        if len(numbers) != 2 or not all(type(n) is int and 0 <= n < MOST_HEADS for n in numbers):
            raise ValueError("a list of [block, head], both from 0, such as [[0, 3], [7, 1]]")
    return tuple(sorted(set(pairs)))


Layers = Annotated[tuple[Block, ...], BeforeValidator(parse_blocks)]


class OperatorSection(Section):
    """One attention operator: NAME, the blocks that use it, heads that stay dense in them, and its options."""

    name: str
    layers: Layers = Field(
        (), description="blocks that use the operator, such as 4-11; others are dense; []: every block"
    )
    dense_heads: Annotated[tuple[tuple[Block, int], ...], BeforeValidator(parse_heads)] = Field(
        (), description="heads that stay dense, as a list of [block, head], both from 0"
    )

    @model_validator(mode="after")
    def _check_dense_heads(self) -> "OperatorSection":
        if self.dense_heads and self.name == "dense":
            raise ValueError("DENSE_HEADS expects an operator other than dense, whose heads are dense anyway")
        blocks = {block for block, _ in self.dense_heads}
        if self.layers and (outside := sorted(blocks - {*self.layers})):
            raise ValueError(
                f"DENSE_HEADS names heads of blocks {outside}, which LAYERS leaves out and are dense anyway"
            )
        return self

    @property
    def options(self) -> dict[str, Any]:
        """Return the keyword arguments of the operator's constructor."""
        return self.model_dump(exclude={"name", "layers", "dense_heads"})


def operator_section(name: str, operator: type[AttentionOperator]) -> type[OperatorSection]:
    """Return the section of the operator called `name`, derived from the signature of its constructor.

    Raises ValueError on an option without a type or a default, or whose name the section has for itself.
    """
    fields: dict[str, Any] = {"name": (Literal[name], name)}
    for option in options_of(operator).values():
        if option.annotation is Any or option.default is MISSING or option.name in OperatorSection.model_fields:
            reserved = ", ".join(OperatorSection.model_fields)
            raise ValueError(
                f"{operator.__name__}: option {option.name} expects a type and a default, and a name other than "
                f"{reserved}"
            )
        fields[option.name] = (option.annotation, Field(option.default, description=option.help))
    return create_model(
        f"{operator.__name__}Section",
        __base__=OperatorSection,
        __doc__=inspect.getdoc(operator),
        __module__=__name__,
        **fields,
    )


OPERATOR_SECTIONS = {name: operator_section(name, operator) for name, operator in OPERATORS.items()}
# as attributes of this module, so that configs can be pickled
globals().update({section.__name__: section for section in OPERATOR_SECTIONS.values()})

if TYPE_CHECKING:
    Operator = OperatorSection
else:
    Operator = Annotated[reduce(or_, OPERATOR_SECTIONS.values()), Field(discriminator="name")]


def _as_tuple(value: object) -> object:
    """Put a single operator into a tuple; an operator without a name is dense."""
    several = value if isinstance(value, tuple) else (value,)
    return tuple({"NAME": "dense", **item} if isinstance(item, Mapping) else item for item in several)


def _check_blocks(operators: tuple[OperatorSection, ...]) -> tuple[OperatorSection, ...]:
    blocks = list(chain.from_iterable(operator.layers for operator in operators))
    repeated = sorted({block for block in blocks if blocks.count(block) > 1})
    if not operators:
        raise ValueError("expected an operator or a list of operators")
    if len(operators) > 1 and not all(operator.layers for operator in operators):
        raise ValueError("each of several operators needs LAYERS, the blocks that use it")
    if repeated:
        raise ValueError(f"LAYERS of several operators overlap at {', '.join(map(str, repeated))}")
    return operators


def _without_list(operators: tuple[OperatorSection, ...]) -> Any:
    dumped = [operator.model_dump(by_alias=True) for operator in operators]
    return dumped[0] if len(dumped) == 1 else dumped


Operators = Annotated[
    tuple[Operator, ...],
    BeforeValidator(_as_tuple),
    AfterValidator(_check_blocks),
    PlainSerializer(_without_list),
]


_DENSE = (OPERATOR_SECTIONS["dense"].model_validate({}),)


def _check_first_block(blocks: tuple[int, ...]) -> tuple[int, ...]:
    if 0 in blocks:
        raise ValueError("blocks from 1 on, since block 0 has no block before it to reuse")
    return blocks


SkippedLayers = Annotated[Layers, AfterValidator(_check_first_block)]


class Skip(Section):
    """SkipAt: blocks that reuse attention of the block before instead of attending."""

    space: SkippedLayers = Field((), description="blocks without attention along space, such as 3-8; not block 0")
    time: SkippedLayers = Field((), description="blocks without attention along time")
    joint: SkippedLayers = Field((), description="blocks without joint attention")
    phi: Literal["leff", "identity", "weights"] = Field(
        "leff", description="leff: a small convolutional network; identity: the same update; weights: reused weights"
    )
    expansion: Annotated[int, Field(ge=1, le=64)] = Field(
        2, description="hidden width of leff, in multiples of the model's width"
    )

    @model_validator(mode="after")
    def _check(self) -> "Skip":
        if self.expansion != 2 and self.phi != "leff":
            raise ValueError(f"EXPANSION {self.expansion} expects PHI leff, got {self.phi}")
        changed = f"PHI {self.phi}" if self.phi != "leff" else f"EXPANSION {self.expansion}"
        if not (self.space or self.time or self.joint) and (self.phi, self.expansion) != ("leff", 2):
            raise ValueError(f"{changed} expects blocks that skip attention: set SPACE, TIME or JOINT")
        return self


class Attention(Section):
    """The operators along each axis, one or a list for different blocks, and the blocks that skip attention."""

    space: Operators = _DENSE
    time: Operators = _DENSE
    joint: Operators = _DENSE
    skip: Skip = Skip()
