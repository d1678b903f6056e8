"""Building blocks of the settings: frozen sections, and types of numbers with their ranges.

Upper bounds lie far above what any published run uses, and below what ends in a hang, an overflow or out of memory.
Infinity and NaN are refused everywhere.
"""

from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

MOST_BLOCKS = 128  # the deepest published vision transformers have 48
MOST_HEADS = 1024


def _check_pixel_scale(value: float) -> float:
    if not 0 <= value <= 1:
        raise ValueError("a number from 0 to 1, since pixels are scaled to 0..1 (divide one of 0..255 by 255)")
    return value


Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
FractionBelowOne = Annotated[float, Field(ge=0.0, lt=1.0)]
PixelLevel = Annotated[float, AfterValidator(_check_pixel_scale)]

Positive = Annotated[int, Field(ge=1, le=10**9)]  # steps, periods and the like
NotNegative = Annotated[int, Field(ge=0, le=10**9)]
Epochs = Annotated[int, Field(ge=1, le=10**6)]
Clips = Annotated[int, Field(ge=1, le=2**16)]  # that one machine holds at once
Views = Annotated[int, Field(ge=1, le=1000)]
Frames = Annotated[int, Field(ge=1, le=10_000)]
Pixels = Annotated[int, Field(ge=1, le=8192)]
Blocks = Annotated[int, Field(ge=1, le=MOST_BLOCKS)]
Block = Annotated[int, Field(ge=0, lt=MOST_BLOCKS)]
Width = Annotated[int, Field(ge=1, le=2**15)]
Heads = Annotated[int, Field(ge=1, le=MOST_HEADS)]
Step = Annotated[int, Field(ge=1, le=1024)]  # a kernel's size or stride
Padding = Annotated[int, Field(ge=0, le=1024)]
Size3 = tuple[Step, Step, Step]
Padding3 = tuple[Padding, Padding, Padding]
Stride = tuple[Block, Step, Step, Step]

NonNegativeFloat = Annotated[float, Field(ge=0.0, le=1e9)]
Eps = Annotated[float, Field(gt=0.0, le=1.0)]
Rate = Annotated[float, Field(ge=0.0, le=1000.0)]  # a learning rate, or a factor of one
Growth = Annotated[float, Field(ge=0.01, le=100.0)]  # a factor of a width
FrameRate = Annotated[float, Field(ge=0.01, le=1000.0)]


class Section(BaseModel):
    """A frozen group of settings; unknown keys are errors."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", alias_generator=str.upper, validate_default=True, allow_inf_nan=False
    )
