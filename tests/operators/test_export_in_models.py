"""Models with every operator, exported with a dynamic batch."""

from typing import Any

import pytest
import torch
from torch import nn

from tests.models.mvit.small_mvits import CLIP_SIZE as MVIT_CLIP_SIZE
from tests.models.mvit.small_mvits import mvit_with
from tests.models.small_models import CLIP_SIZE, random_clip, small_model
from videoattn.grid import Axis
from videoattn.models.timesformer.model import AXES
from videoattn.operators import OPERATORS

SLOTS = [(attention_type, axis) for attention_type, axes in AXES.items() for axis in axes]


def check(model: nn.Module, clip_size: tuple[int, int, int]) -> None:
    batch = torch.export.Dim("batch", min=1, max=64)
    with torch.no_grad():
        program = torch.export.export(model, (random_clip(2, clip_size),), dynamic_shapes=({0: batch},)).module()
        for size in (1, 2, 3):
            clip = random_clip(size, clip_size, seed=size)
            torch.testing.assert_close(program(clip), model(clip), rtol=1e-4, atol=1e-4)


def test_a_joint_model_with_lisa_takes_every_batch() -> None:
    check(small_model("joint_space_time", operators={Axis.JOINT: OPERATORS["lisa"]}, depth=1), CLIP_SIZE)


@pytest.mark.slow
@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.parametrize(("attention_type", "axis"), SLOTS)
def test_every_timesformer_takes_every_batch(name: str, attention_type: str, axis: Axis) -> None:
    check(small_model(attention_type, operators={axis: OPERATORS[name]}, depth=1), CLIP_SIZE)


@pytest.mark.slow
@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.parametrize("changes", [{}, {"attention_type": "divided"}], ids=["joint", "divided"])
def test_every_mvit_takes_every_batch(name: str, changes: dict[str, Any]) -> None:
    axis = Axis.SPACE if changes else Axis.JOINT
    check(mvit_with(name, axis=axis, **changes), MVIT_CLIP_SIZE)
