"""The table of what works where, against what can be built."""

from pathlib import Path

import pytest

from tests.models.small_models import small_model
from videoattn.layers.skip import SkipSettings
from videoattn.layers.support import REFUSED, SKIPS_AFTER, SLOTS, render_support
from videoattn.models.timesformer.model import AXES
from videoattn.operators import OPERATORS

DOCS = Path(__file__).parents[2] / "docs" / "attention.md"


@pytest.mark.parametrize("slot", SLOTS)
@pytest.mark.parametrize("name", OPERATORS)
def test_the_table_says_what_can_be_built(name: str, slot: str) -> None:
    if slot in REFUSED.get(name, {}):
        with pytest.raises(ValueError, match=name):
            OPERATORS[name](SLOTS[slot])
    else:
        assert OPERATORS[name](SLOTS[slot]).macs() > 0


@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.parametrize("attention_type", AXES)
@pytest.mark.parametrize("phi", SKIPS_AFTER)
def test_blocks_are_skipped_after_the_operators_that_the_table_says(phi: str, attention_type: str, name: str) -> None:
    axes = AXES[attention_type]
    settings = {
        "operators": {axis: OPERATORS[name] for axis in axes},
        "skip": {axis: SkipSettings((1,), phi) for axis in axes},  # type: ignore[arg-type]
    }
    if name in SKIPS_AFTER[phi]:
        small_model(attention_type, **settings)
    else:
        with pytest.raises(ValueError, match="forms no attention weights"):
            small_model(attention_type, **settings)


def test_the_page_shows_the_table() -> None:
    assert render_support() in DOCS.read_text(encoding="utf-8")
