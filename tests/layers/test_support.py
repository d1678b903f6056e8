"""The table of what works where, against what can be built."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
from torch import nn

from tests.models.mvit.small_mvits import small_mvit
from tests.models.small_models import small_model
from videoattn.grid import Axis
from videoattn.layers.skip import Phi, SkipSettings
from videoattn.layers.support import SLOTS, operators_before, refusal, render_support
from videoattn.models.timesformer.model import AXES
from videoattn.operators import OPERATORS

PAGE = (Path(__file__).parents[2] / "docs" / "attention.md").read_text(encoding="utf-8")
# A model that has the kind of slot, with an operator in it.
MODELS: dict[str, Callable[[Any], nn.Module]] = {
    "divided, along time": lambda operator: small_model("divided_space_time", operators={Axis.TIME: operator}),
    "divided, along space": lambda operator: small_model("divided_space_time", operators={Axis.SPACE: operator}),
    "joint": lambda operator: small_model("joint_space_time", operators={Axis.JOINT: operator}),
    "space-only": lambda operator: small_model("space_only", operators={Axis.SPACE: operator}),
    "pooled keys": lambda operator: small_mvit("v1", operators={Axis.JOINT: operator}),
    "relative positions in logits": lambda operator: small_mvit("v2", operators={Axis.JOINT: operator}),
}


@pytest.mark.parametrize("slot", SLOTS)
@pytest.mark.parametrize("name", OPERATORS)
def test_the_table_says_what_can_be_built(name: str, slot: str) -> None:
    reason = refusal(OPERATORS[name], SLOTS[slot])
    if reason is None:
        assert OPERATORS[name](SLOTS[slot]).macs() > 0
        MODELS[slot](OPERATORS[name])
    else:
        with pytest.raises(ValueError):  # noqa: PT011  the same reason, of another grid
            MODELS[slot](OPERATORS[name])


@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.parametrize("attention_type", AXES)
@pytest.mark.parametrize("phi", get_args(Phi))
def test_blocks_are_skipped_after_the_operators_that_the_table_says(phi: Any, attention_type: str, name: str) -> None:
    axes = AXES[attention_type]
    settings = {
        "operators": {axis: OPERATORS[name] for axis in axes},
        "skip": {axis: SkipSettings((1,), phi) for axis in axes},
    }
    if name in operators_before(phi):
        small_model(attention_type, **settings)
    else:
        with pytest.raises(ValueError, match="forms no attention weights"):
            small_model(attention_type, **settings)


def test_the_page_shows_the_table_of_the_operators_that_it_names() -> None:
    named = [name for name in OPERATORS if f"\n| `{name}` |" in PAGE]
    assert render_support(named) in PAGE and len(named) >= 4
