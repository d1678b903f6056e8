"""Every operator in every attention slot of a model: gradients, precision, export, compilation, profile."""

from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tests.models.small_models import ATTENTION_TYPES, CLIP_SIZE, SMALL, random_clip, small_model
from videoattn.grid import Axis
from videoattn.models import TimeSformer
from videoattn.models.timesformer.model import AXES
from videoattn.operators import OPERATORS
from videoattn.profiling.profile import profile

SLOTS = [(attention_type, axis) for attention_type in ATTENTION_TYPES for axis in AXES[attention_type]]


def model_with(name: str, attention_type: str, axis: Axis, **changes: Any) -> TimeSformer:
    return small_model(attention_type, operators={axis: OPERATORS[name]}, **changes)


@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.parametrize(("attention_type", "axis"), SLOTS)
class TestOperatorInModel:
    def test_gradients_reach_every_parameter(self, name: str, attention_type: str, axis: Axis) -> None:
        model = model_with(name, attention_type, axis, drop_path_rate=0.0).train()
        model(random_clip()).square().sum().backward()
        for key, parameter in model.named_parameters():
            assert parameter.grad is not None and parameter.grad.isfinite().all(), key

    def test_autocast_stays_close_to_full_precision(self, name: str, attention_type: str, axis: Axis) -> None:
        model, clip = model_with(name, attention_type, axis), random_clip()
        with torch.no_grad():
            exact = model(clip)
            with torch.autocast("cpu", torch.bfloat16):
                rounded = model(clip)
        assert (rounded - exact).abs().max() < 0.1 * exact.abs().max()

    def test_a_clip_alone_equals_the_clip_in_a_batch(self, name: str, attention_type: str, axis: Axis) -> None:
        model, clip = model_with(name, attention_type, axis).double(), random_clip(3).double()
        alone = torch.cat([model(clip[i : i + 1]) for i in range(3)])
        torch.testing.assert_close(model(clip), alone, rtol=0, atol=1e-10)

    def test_needed_work_is_counted_by_the_operator(self, name: str, attention_type: str, axis: Axis) -> None:
        model = model_with(name, attention_type, axis)
        counted = profile(model, CLIP_SIZE)
        operators = {
            module_name: module.operator
            for module_name, module in model.named_modules()
            if hasattr(module, "operator") and module.axis is axis
        }
        costs = {cost.name: cost for cost in counted.modules}
        for module_name, operator in operators.items():
            cost = costs[f"{module_name}.operator"]
            assert cost.macs_needed == operator.macs() * model.grid.num_calls(axis)
            assert cost.macs_executed >= cost.macs_needed

    def test_torchs_counter_sees_the_same_products(self, name: str, attention_type: str, axis: Axis) -> None:
        with torch.device("meta"):  # on a CPU torch's counter does not know torch's own fused attention
            model = TimeSformer(**{**SMALL, "attention_type": attention_type, "operators": {axis: OPERATORS[name]}})
            clip = torch.empty(1, 3, *CLIP_SIZE)
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            model.eval()(clip)
        assert counter.get_total_flops() == 2 * profile(model, CLIP_SIZE).macs_executed

    @pytest.mark.slow
    def test_an_exported_model_gives_the_same_logits(self, name: str, attention_type: str, axis: Axis) -> None:
        model = model_with(name, attention_type, axis)
        program = torch.export.export(model, (random_clip(),))
        torch.testing.assert_close(program.module()(random_clip(seed=2)), model(random_clip(seed=2)))


@pytest.mark.slow
@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.parametrize(("attention_type", "axis"), [SLOTS[0], SLOTS[2]])  # the slots along time, and joint
def test_a_compiled_model_gives_the_same_logits(name: str, attention_type: str, axis: Axis) -> None:
    model = model_with(name, attention_type, axis, depth=1)
    compiled = torch.compile(model, fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(compiled(random_clip()), model(random_clip()), rtol=1e-3, atol=1e-4)
