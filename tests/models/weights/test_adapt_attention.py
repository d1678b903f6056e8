"""A dense checkpoint fills a model with other attention, and says what it could not say."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.models.small_models import ATTENTION_TYPES, assert_same, random_clip, released, save, small_model
from videoattn.config.load import dump_config, load_config
from videoattn.grid import Axis, TokenGrid
from videoattn.layers.skip import SkipSettings
from videoattn.models import build_model
from videoattn.models.timesformer.model import AXES
from videoattn.models.weights.load import CheckpointError, from_checkpoint, load_weights, save_weights
from videoattn.operators import OPERATORS, AttentionSite

# Parameters that start at zero beside dense weights, since dense attention has no convolution.
MUTE = re.compile(r"\.(time\.operator\.dwc_time|(space|joint)\.operator\.dwc_space|operator\.dwc_bias)$")


@pytest.mark.parametrize("attention_type", ATTENTION_TYPES)
@pytest.mark.parametrize("operator", [name for name in OPERATORS if name != "dense"])
def test_a_dense_file_fills_a_model_with_another_operator(operator: str, attention_type: str, tmp_path: Path) -> None:
    dense = small_model(attention_type)
    twin = small_model(attention_type, seed=5, operators={axis: OPERATORS[operator] for axis in AXES[attention_type]})
    own = {name: value.clone() for name, value in twin.state_dict().items() if ".operator." in name}
    own |= {name: torch.zeros_like(value) for name, value in own.items() if MUTE.search(name)}
    for content in (dense.state_dict(), released(dense) if attention_type != "space_only" else dense.state_dict()):
        report = load_weights(twin, save({"model_state": content}, tmp_path / "dense.pyth"))
        assert_same({k: v for k, v in twin.state_dict().items() if ".operator." not in k}, dense.state_dict())
        assert_same({k: v for k, v in twin.state_dict().items() if ".operator." in k}, own)
        assert set(report.initialised) == own.keys() and report.dropped == []
        assert set(report.loaded) == dense.state_dict().keys()
    if own:
        assert "operator" in str(report)


AT = AttentionSite(TokenGrid(2, 1, 1), TokenGrid(2, 1, 1), num_heads=1, head_dim=2, block=0)
WITH_PARAMETERS = [name for name, operator in OPERATORS.items() if list(operator(AT).parameters())]


@pytest.mark.parametrize("operator", WITH_PARAMETERS)
def test_operator_parameters_survive_a_round_trip_and_are_refused_by_a_dense_model(
    operator: str, tmp_path: Path
) -> None:
    operators = {Axis.TIME: OPERATORS[operator]}
    model, other = small_model(operators=operators), small_model(seed=7, operators=operators)
    path = save({"model_state": model.state_dict()}, tmp_path / "sparse.pyth")
    assert load_weights(other, path).initialised == []
    assert_same(other.state_dict(), model.state_dict())
    with pytest.raises(CheckpointError, match=r"unexpected: blocks\.0\.mixers\.time\.operator"):
        load_weights(small_model(), path)
    state = model.state_dict()
    (removed, *_) = [name for name in state if ".operator." in name]
    del state[removed]
    part = save({"model_state": state}, tmp_path / "part.pyth")
    if sum(name.startswith(removed.rpartition(".")[0]) for name in model.state_dict()) > 1:
        with pytest.raises(CheckpointError, match=f"1 missing: {removed}"):
            load_weights(other, part)
    else:  # without its only one, the slot is that of a dense file
        assert load_weights(other, part).initialised == [removed]


def test_a_file_that_lacks_parameters_of_the_attention_that_it_says_it_has_is_refused(tmp_path: Path) -> None:
    pairs = ["MODEL.MODEL_NAME", "timesformer_tiny", "MODEL.NUM_CLASSES", 5, "DATA.NUM_FRAMES", 2]
    pairs += ["DATA.TRAIN_CROP_SIZE", 32, "DATA.TEST_CROP_SIZE", 32, "TIMESFORMER.DEPTH", 2]
    cfg = load_config(None, [*pairs, "ATTENTION.TIME.NAME", "lisa"])
    model = build_model(cfg)
    state = {k: v for k, v in model.state_dict().items() if not k.startswith("blocks.0.mixers.time.operator.")}
    path = tmp_path / "part.safetensors"
    save_weights(state, path, cfg=dump_config(cfg))
    with pytest.raises(CheckpointError, match=r"lacks blocks\.0\.mixers\.time\.operator\.\w+, .* its own settings"):
        from_checkpoint(path)
    dense = build_model(load_config(None, pairs))
    save_weights(dense.state_dict(), path, cfg=dump_config(load_config(None, pairs)))
    assert load_weights(model, path).initialised  # it says that it is dense


@pytest.mark.parametrize("phi", ["leff", "identity", "weights"])
def test_a_dense_file_fills_a_model_that_skips_blocks(phi: Any, tmp_path: Path) -> None:
    dense = small_model(depth=4)
    skip = {Axis.TIME: SkipSettings((1, 2), phi)}
    twin = small_model(depth=4, seed=5, skip=skip)
    own = {name: value.clone() for name, value in twin.state_dict().items() if ".phi." in name}
    report = load_weights(twin, save({"model_state": dense.state_dict()}, tmp_path / "dense.pyth"))
    assert set(report.initialised) == own.keys()
    assert_same({k: v for k, v in twin.state_dict().items() if ".phi." in k}, own)
    parts = ("norm", "proj", "qkv")
    slots = {f"blocks.{i}.mixers.time.{part}.{kind}" for i in (1, 2) for part in parts for kind in ("weight", "bias")}
    if phi == "weights":
        assert report.dropped == [] and "q and k left out of 2 projections" in str(report)
        rows = dense.state_dict()["blocks.1.mixers.time.qkv.weight"].unflatten(0, (3, 3, 8))
        assert torch.equal(twin.state_dict()["blocks.1.mixers.time.v.weight"], rows[:, 2].flatten(0, 1))
    else:
        assert set(report.dropped) == slots
    shared = dense.state_dict().keys() & twin.state_dict().keys()
    assert_same({k: twin.state_dict()[k] for k in shared}, {k: dense.state_dict()[k] for k in shared})
    assert twin(random_clip()).isfinite().all()


@pytest.mark.parametrize("phi", ["leff", "identity"])
def test_a_model_that_skips_blocks_is_not_written_in_forms_without_them(phi: Any, tmp_path: Path) -> None:
    model = small_model(depth=3, skip={Axis.TIME: SkipSettings((2,), phi)})
    reason = "have no place" if phi == "leff" else "timesformer has no blocks that attend in other ways: 2 differ"
    with pytest.raises(CheckpointError, match=reason):
        save_weights(model.state_dict(), tmp_path / "x.pyth", "timesformer", num_heads=3)
    assert list(tmp_path.iterdir()) == []
