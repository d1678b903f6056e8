"""ATTENTION settings in models: which block gets which operator, and what is refused."""

import inspect
import pickle
import re
from typing import Annotated

import pytest
from pydantic import Field, ValidationError

from videoattn.config.attention import OPERATOR_SECTIONS, operator_section
from videoattn.config.load import load_config
from videoattn.grid import TokenGrid
from videoattn.layers.attention import MultiheadAttention
from videoattn.layers.skip import Leff, ReusedWeights, SkipAttention
from videoattn.models import build_model
from videoattn.operators import OPERATORS, AttentionOperator, AttentionSite

SMALL = (
    "MODEL.MODEL_NAME timesformer_tiny TIMESFORMER.DEPTH 5 TIMESFORMER.EMBED_DIM 24 DATA.NUM_FRAMES 4 "
    "DATA.TRAIN_CROP_SIZE 32 DATA.TEST_CROP_SIZE 32"
).split()
SHARED = ("name", "layers", "dense_heads")  # settings that every operator has
JOINT = ["TIMESFORMER.ATTENTION_TYPE", "joint_space_time"]


def operators_of(*settings: str) -> dict[str, list[str]]:
    model = build_model(load_config(None, [*SMALL, *settings]))
    return {
        axis: [type(block.mixers[axis].operator).__name__ for block in model.blocks] for axis in model.blocks[0].mixers
    }


def test_typed_options_are_those_of_the_operators() -> None:
    assert OPERATOR_SECTIONS.keys() == OPERATORS.keys()
    for name, section in OPERATOR_SECTIONS.items():
        options = {key: field.default for key, field in section.model_fields.items() if key not in SHARED}
        arguments = {key: value.default for key, value in inspect.signature(OPERATORS[name]).parameters.items()}
        assert options == {key: value for key, value in arguments.items() if key != "site"}
    fields = OPERATOR_SECTIONS["lisa"].model_fields
    assert fields["num_patterns"].annotation is int and fields["wrap"].description.startswith("positions wrap around")


class Windowed(AttentionOperator):
    """An operator as a user writes one."""

    def __init__(
        self,
        site: AttentionSite,
        window: Annotated[int, Field(ge=1), "keys at most this far"] = 4,
        plain: int = 2,
        scale: Annotated["float | None", "a factor"] = None,
    ) -> None:
        super().__init__(site)


def test_a_section_is_what_the_constructor_says() -> None:
    section = operator_section("windowed", Windowed)
    assert section.__doc__ == "An operator as a user writes one."
    assert section.model_fields["window"].description == "keys at most this far"
    read = section.model_validate({"WINDOW": 7, "LAYERS": "2-3"}, strict=True)
    assert read.options == {"window": 7, "plain": 2, "scale": None} and read.layers == (2, 3)
    for wrong in ({"WINDOW": 0}, {"WINDOW": 2.0}, {"PLAIN": 10**30}, {"SCALE": "x"}, {"WIDTH": 1}):
        with pytest.raises(ValidationError):
            section.model_validate(wrong, strict=True)


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("window", 0, "WINDOW expects a whole number of at least 1, got 0"),
        ("window", 2.0, "WINDOW expects a whole number of at least 1, got 2.0"),
        ("plain", True, "PLAIN expects a whole number, got True"),
        ("scale", "x", "SCALE expects float | None, got 'x'"),
    ],
)
def test_a_constructor_is_not_run_with_what_its_annotations_exclude(option: str, value: object, message: str) -> None:
    site = AttentionSite(TokenGrid(2, 3, 4), TokenGrid(2, 3, 4), num_heads=1, head_dim=2, block=0)
    with pytest.raises(ValueError, match=re.escape(message)):
        Windowed(site, **{option: value})
    assert Windowed(site, 5, scale=0.5).options == {"window": 5, "scale": 0.5}


def test_an_option_that_settings_cannot_hold_is_refused() -> None:
    class NoType(AttentionOperator):
        def __init__(self, site: AttentionSite, width=3) -> None: ...  # type: ignore[no-untyped-def]

    class NoDefault(AttentionOperator):
        def __init__(self, site: AttentionSite, width: int) -> None: ...

    class Reserved(AttentionOperator):
        def __init__(self, site: AttentionSite, layers: int = 2) -> None: ...

    for operator, option in ((NoType, "width"), (NoDefault, "width"), (Reserved, "layers")):
        with pytest.raises(ValueError, match=f"{operator.__name__}: option {option} expects a type and a default"):
            operator_section("new", operator)


def test_settings_of_every_operator_can_be_pickled() -> None:
    for name in OPERATORS:
        cfg = load_config(None, ["ATTENTION.TIME.NAME", name])
        assert pickle.loads(pickle.dumps(cfg)) == cfg


def test_blocks_that_no_operator_names_are_dense() -> None:
    found = operators_of("ATTENTION.TIME.NAME", "fibonacci", "ATTENTION.TIME.LAYERS", "1-3")
    assert found["time"] == ["DenseAttention", *["FibonacciAttention"] * 3, "DenseAttention"]
    assert found["space"] == ["DenseAttention"] * 5


def test_a_list_gives_each_block_its_operator() -> None:
    text = "[{NAME: lisa, LAYERS: 0-1}, {NAME: fibonacci, LAYERS: '2, 4', VARIANT: wythoff}]"
    found = operators_of(*JOINT, "ATTENTION.JOINT", text)
    assert found["joint"] == ["LisaAttention"] * 2 + ["FibonacciAttention", "DenseAttention", "FibonacciAttention"]


def test_heads_of_blocks_stay_dense_as_the_settings_say() -> None:
    text = "{NAME: fibonacci, LAYERS: 1-3, DENSE_HEADS: [[1, 0], [3, 2], [3, 0]], SEMANTICS: mean_logit}"
    model = build_model(load_config(None, [*SMALL, "ATTENTION.TIME", text]))
    operators = [block.mixers["time"].operator for block in model.blocks]
    names = ["Dense", "DenseHeads", "Fibonacci", "DenseHeads", "Dense"]
    assert [type(operator).__name__ for operator in operators] == [f"{name}Attention" for name in names]
    assert operators[1].heads == (0,) and operators[3].heads == (0, 2)
    assert operators[3].others.site.head_numbers == (1,) and operators[3].others.semantics == "mean_logit"


def test_skipped_blocks_are_built_as_the_settings_say() -> None:
    kinds = {}
    for phi in ("leff", "identity", "weights"):
        expansion = ", EXPANSION: 1" if phi == "leff" else ""
        settings = ["ATTENTION.SKIP", f"{{TIME: 1-2, SPACE: 3, PHI: {phi}{expansion}}}"]
        model = build_model(load_config(None, [*SMALL, *settings]))
        kinds[phi] = [[type(block.mixers[axis]) for block in model.blocks] for axis in ("time", "space")]
        if phi == "leff":
            inner = model.blocks[1].mixers["time"].phi
            assert isinstance(inner, Leff) and inner.expand.out_features == 24
    for phi, kind in (("leff", SkipAttention), ("identity", SkipAttention), ("weights", ReusedWeights)):
        full = MultiheadAttention
        assert kinds[phi] == [[full, kind, kind, full, full], [full, full, full, kind, full]]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ("ATTENTION.TIME {NAME: fibonacci, LAYERS: 3-5}", "ATTENTION.TIME: LAYERS of fibonacci expects blocks 0 to 4"),
        ("ATTENTION.SKIP.TIME 4-5", r"ATTENTION.SKIP.TIME expects blocks 1 to 4 .*, got \[4, 5\]"),
        ("ATTENTION.SKIP.TIME 0-2", "ATTENTION.SKIP.TIME expects blocks from 1 on"),
        (
            "ATTENTION.JOINT.NAME fibonacci",
            "asks for fibonacci, but .* attends along TIME and SPACE",
        ),
        (
            "ATTENTION.TIME {NAME: fibonacci, DENSE_HEADS: [[5, 0]]}",
            r"ATTENTION.TIME: DENSE_HEADS of fibonacci expects blocks 0 to 4 .*got \[5\]",
        ),
        (
            "ATTENTION.TIME {NAME: fibonacci, DENSE_HEADS: [[2, 3]]}",
            r"ATTENTION.TIME \(NAME fibonacci, block 2\): DENSE_HEADS expects heads 0 to 2 in block 2, got 3",
        ),
        (
            "ATTENTION.TIME {NAME: fibonacci, LAYERS: 1-2, DENSE_HEADS: [[2, 0], [3, 0]]}",
            r"DENSE_HEADS names heads of blocks \[3\], which LAYERS leaves out",
        ),
        ("ATTENTION.TIME {NAME: dense, DENSE_HEADS: [[0, 0]]}", "DENSE_HEADS expects an operator other than dense"),
        (
            "ATTENTION {SKIP: {TIME: 1-2}, TIME: {NAME: fibonacci, DENSE_HEADS: [[1, 0]]}}",
            r"ATTENTION.TIME: DENSE_HEADS names heads of blocks \[1\], which ATTENTION.SKIP.TIME leaves without",
        ),
        ("ATTENTION.JOINT {NAME: dense, LAYERS: 0-1}", "ATTENTION.JOINT asks for dense, but"),
        ("ATTENTION.SKIP {PHI: identity}", "PHI identity expects blocks that skip attention"),
        ("ATTENTION.SKIP {TIME: 1, PHI: identity, EXPANSION: 3}", "EXPANSION 3 expects PHI leff, got identity"),
        (
            "ATTENTION {SKIP: {TIME: 1-2}, TIME: {NAME: lisa, LAYERS: 0-1}}",
            r"LAYERS of lisa and ATTENTION.SKIP.TIME both name blocks \[1\]",
        ),
        ("ATTENTION.SKIP.JOINT 1", "ATTENTION.SKIP.JOINT asks for blocks without attention, but"),
        (
            "ATTENTION {SKIP: {TIME: 1, PHI: weights}, TIME: {NAME: focused_linear}}",
            "FocusedLinearAttention along TIME forms no",
        ),
    ],
)
def test_what_cannot_be_built_is_refused_by_key(settings: str, words: str) -> None:
    key, _, value = settings.partition(" ")
    with pytest.raises(ValueError, match=words):
        build_model(load_config(None, [*SMALL, key, value]))
