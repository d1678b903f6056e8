"""Settings of attention: which operator mixes tokens along each axis, in which blocks, with which options."""

import re
from collections.abc import Mapping
from itertools import chain
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, BeforeValidator, Field, PlainSerializer

from videoattn.config.types import MOST_BLOCKS, Block, Section


def parse_layers(value: object) -> object:
    """Block numbers counted from 0 as a sorted tuple, out of a number, text such as "4-11" or "0, 3-5", or a list."""
    items = value.split(",") if isinstance(value, str) else value if isinstance(value, tuple) else (value,)
    numbers: set[int] = set()
    for item in items:
        match = re.fullmatch(r"([0-9]{1,9})(?:-([0-9]{1,9}))?", str(item).strip())
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (0, -1)
        if isinstance(item, bool) or not first <= last < MOST_BLOCKS:
            raise ValueError(f"block numbers from 0 to {MOST_BLOCKS - 1}, such as 4-11 or [0, 3]")
        numbers.update(range(first, last + 1))
    return tuple(sorted(numbers))


Layers = Annotated[tuple[Block, ...], BeforeValidator(parse_layers)]


class OperatorSection(Section):
    """One attention operator: NAME, the blocks that use it, and its options."""

    name: str
    layers: Layers = Field((), description="blocks that use it, such as 4-11; the others are dense; []: every block")

    @property
    def options(self) -> dict[str, Any]:
        """Keyword arguments of the operator's constructor."""
        return self.model_dump(exclude={"name", "layers"})


class Dense(OperatorSection):
    """Softmax attention over every pair of tokens."""

    name: Literal["dense"] = "dense"


class Fibonacci(OperatorSection):
    """Each head attends at its own Fibonacci distances (Fibottention)."""

    name: Literal["fibonacci"] = "fibonacci"
    variant: Literal["modified", "wythoff"] = Field("modified", description="how a head's sequence begins")
    semantics: Literal["exclude", "zero_logit"] = Field(
        "exclude", description="weight of other keys: none, or that of a logit of 0 (as in the released code)"
    )
    keep_self: bool = Field(True, description="every token attends to itself")
    heads_permutation: Literal["per_layer", "first_layer", "none"] = Field(
        "per_layer", description="which head takes which sequence"
    )
    order: Literal["thw", "hwt"] = Field("thw", description="raster in which joint attention measures distance")
    geometry: Literal["raster", "axial", "block"] = Field(
        "raster",
        description="distance in the raster, along t, h, w apart, or between blocks of 16 tokens of the raster",
    )
    implementation: Literal["auto", "masked", "pairs", "compiled"] = Field(
        "auto",
        description="masked: a dense product; pairs: attending pairs alone; compiled: these by a kernel, in C++ on a "
        "CPU and in Triton on a GPU; auto: the fastest",
    )


class Lisa(OperatorSection):
    """Structure-aware mixing by relative positions and FFT; this project's realisation of LiSA."""

    name: Literal["lisa"] = "lisa"
    num_patterns: Annotated[int, Field(ge=1, le=64)] = Field(4, description="structural patterns per head")
    wrap: bool = Field(False, description="positions wrap around: a smaller FFT, another function")
    method: Literal["auto", "direct", "axes", "fft"] = Field("auto", description="auto: the fastest by grid and device")


def _check_kernel_size(size: int) -> int:
    if size and (size % 2 == 0 or not 0 < size < 100):
        raise ValueError("0, or an odd number below 100")
    return size


class FocusedLinear(OperatorSection):
    """Focused linear attention (FLatten)."""

    name: Literal["focused_linear"] = "focused_linear"
    power: Annotated[float, Field(ge=1, le=100)] = Field(3, description="how strongly q and k are focused")
    kernel_size: Annotated[int, AfterValidator(_check_kernel_size)] = Field(
        5, description="of the depthwise convolution along each axis: odd, or 0 for none"
    )
    implementation: Literal["auto", "plain", "compiled"] = Field(
        "auto",
        description="plain: by torch; compiled: by a kernel in C++, on a CPU; auto: by the kernel where it works",
    )


Operator = Annotated[Dense | Fibonacci | Lisa | FocusedLinear, Field(discriminator="name")]
OPERATOR_SECTIONS: dict[str, type[OperatorSection]] = {
    section.model_fields["name"].default: section for section in get_args(get_args(Operator)[0])
}


def _as_tuple(value: object) -> object:
    """A single operator without a list around it, dense where it has no name."""
    several = value if isinstance(value, tuple) else (value,)
    return tuple({"NAME": "dense", **item} if isinstance(item, Mapping) else item for item in several)


def _check_layers(operators: tuple[OperatorSection, ...]) -> tuple[OperatorSection, ...]:
    layers = list(chain.from_iterable(operator.layers for operator in operators))
    repeated = sorted({layer for layer in layers if layers.count(layer) > 1})
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
    AfterValidator(_check_layers),
    PlainSerializer(_without_list),
]


def _check_first_block(blocks: tuple[int, ...]) -> tuple[int, ...]:
    if 0 in blocks:
        raise ValueError("blocks from 1 on, since block 0 has no block before it whose update it could use")
    return blocks


SkippedLayers = Annotated[Layers, AfterValidator(_check_first_block)]


class Skip(Section):
    """SkipAt: blocks that make an update from the previous block's attention instead of attending."""

    space: SkippedLayers = Field((), description="blocks without attention along space, such as 3-8; not block 0")
    time: SkippedLayers = Field((), description="the same along time")
    joint: SkippedLayers = Field((), description="the same over all tokens")
    phi: Literal["leff", "identity", "weights"] = Field(
        "leff", description="a small convolutional network, the same update again, or the same weights on new values"
    )
    expansion: Annotated[int, Field(ge=1, le=64)] = Field(2, description="hidden width of leff in widths of the model")


class Attention(Section):
    """The operators along each axis, one or a list for different blocks, and where attention is skipped."""

    space: Operators = (Dense(),)
    time: Operators = (Dense(),)
    joint: Operators = (Dense(),)
    skip: Skip = Skip()
