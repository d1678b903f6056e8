"""pytorchvideo's networks behind our interface."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.models.small_models import random_clip, save
from videoattn.cli.profile import main as profile_net
from videoattn.cli.run_tool import run_tool
from videoattn.compat import import_pytorchvideo
from videoattn.config.load import dump_config, load_config
from videoattn.models import MODELS, build_model
from videoattn.models.baselines import BASELINES, PREFIX, Baseline
from videoattn.models.weights.load import CheckpointError, from_checkpoint, load_weights, save_weights
from videoattn.profiling.profile import profile

PUBLISHED = {  # millions of parameters, G multiply-accumulates of one clip of the published size
    "slow_r50": (32.454, 41.74), "slowfast_r50": (34.566, 50.31), "x3d_xs": (3.794, 0.605), "x3d_s": (3.794, 1.963),
    "x3d_m": (3.794, 4.732), "x3d_l": (6.153, 18.37), "r2plus1d_r50": (28.108, 57.53), "csn_r101": (22.214, 56.47),
    "mvit_base_16x4": (36.611, 70.60),
}  # fmt: skip
CLIP_SIZE = (8, 64, 64)


QUICK = {"slow_r50", "x3d_s"}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name not in QUICK)) for name in BASELINES]
)
def test_cost_is_that_of_the_published_network(name: str) -> None:
    with torch.device("meta"):
        model: Any = MODELS[PREFIX + name]()
    parameters, gmacs = PUBLISHED[name]
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(parameters, abs=1e-3)
    assert profile(model, model.clip_size).macs_executed / 1e9 == pytest.approx(gmacs, rel=1e-3)


@pytest.mark.parametrize(
    "name", ["x3d_xs", *(pytest.param(x, marks=pytest.mark.slow) for x in ("slow_r50", "slowfast_r50", "r2plus1d_r50"))]
)
def test_any_clip_trains_and_a_clip_alone_gives_the_same(name: str) -> None:
    model, clip = Baseline(name, CLIP_SIZE, num_classes=5, dropout=0.0), random_clip(2, CLIP_SIZE)
    model(clip).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    model.eval()
    with torch.no_grad():
        both, alone = model(clip), torch.cat([model(clip[:1]), model(clip[1:])])
    assert both.shape == (2, 5)
    torch.testing.assert_close(both, alone, rtol=1e-4, atol=1e-5)


def test_logits_are_those_of_pytorchvideo_at_a_size_that_fits_its_pooling() -> None:
    create = import_pytorchvideo("models.resnet").create_resnet
    theirs = create(
        model_depth=50, model_num_class=5, stem_conv_kernel_size=(1, 7, 7), head_pool_kernel_size=(8, 2, 2)
    ).eval()  # fmt: skip
    ours = Baseline("slow_r50", CLIP_SIZE, num_classes=5).eval()
    ours.network.load_state_dict(theirs.state_dict())
    clip = random_clip(1, CLIP_SIZE)
    with torch.no_grad():
        torch.testing.assert_close(ours(clip), theirs(clip), rtol=1e-4, atol=1e-5)


def test_swish_is_replaced_by_an_equal() -> None:
    model = Baseline("x3d_xs", CLIP_SIZE)
    assert any(isinstance(module, nn.SiLU) for module in model.modules())
    swish = import_pytorchvideo("layers.swish").Swish()
    x = torch.linspace(-5, 5, 11)
    torch.testing.assert_close(swish(x), nn.SiLU()(x))


def test_slowfast_sees_every_fourth_frame_on_its_slow_pathway() -> None:
    model = Baseline("slowfast_r50", (16, 64, 64))
    clip = torch.arange(16.0).view(1, 1, 16, 1, 1).expand(1, 3, 16, 64, 64)
    slow, fast = model._pathways(clip)
    assert slow[0, 0, :, 0, 0].tolist() == [0, 5, 10, 15] and fast is clip
    with pytest.raises(ValueError, match="needs a multiple of 4 frames, got 6"):
        Baseline("slowfast_r50", (6, 64, 64))


def test_weights_are_saved_and_load_again_with_theirs_and_our_names(tmp_path: Path) -> None:
    source, target = (Baseline("x3d_xs", CLIP_SIZE, num_classes=5) for _ in range(2))
    save_weights(source.state_dict(), tmp_path / "a.safetensors")
    for path in (tmp_path / "a.safetensors", save({"model_state": source.network.state_dict()}, tmp_path / "b.pyth")):
        target = Baseline("x3d_xs", CLIP_SIZE, num_classes=5)
        report = load_weights(target, path)
        assert len(report.loaded) == len(source.state_dict())
        assert all(torch.equal(a, b) for a, b in zip(target.parameters(), source.parameters(), strict=True))
    other = Baseline("x3d_xs", CLIP_SIZE, num_classes=7)
    with pytest.raises(CheckpointError, match=r"2 of another shape: blocks.5.proj.weight \(5, 2048\) instead of \(7,"):
        load_weights(other, tmp_path / "a.safetensors")
    assert load_weights(other, tmp_path / "a.safetensors", allow_new_head=True).initialised == [
        "network.blocks.5.proj.weight", "network.blocks.5.proj.bias",
    ]  # fmt: skip
    with pytest.raises(CheckpointError, match="missing: "):
        load_weights(Baseline("slow_r50", CLIP_SIZE), tmp_path / "a.safetensors")


def test_a_checkpoint_of_ours_describes_the_network(tmp_path: Path) -> None:
    cfg = load_config(None, [
        "MODEL.MODEL_NAME", "pytorchvideo/x3d_xs", "DATA.NUM_FRAMES", 8, "DATA.TRAIN_CROP_SIZE", 64,
        "DATA.TEST_CROP_SIZE", 64, "MODEL.NUM_CLASSES", 5,
    ])  # fmt: skip
    source = build_model(cfg).eval()
    save_weights(source.state_dict(), tmp_path / "a.pyth", cfg=dump_config(cfg))
    model, clip = from_checkpoint(tmp_path / "a.pyth"), random_clip(1, CLIP_SIZE)
    with torch.no_grad():
        assert torch.equal(model(clip), source(clip))


def test_settings_that_it_cannot_have_are_refused() -> None:
    names = ["MODEL.MODEL_NAME", "pytorchvideo/x3d_xs", "DATA.TEST_CROP_SIZE", "224"]
    with pytest.raises(ValueError, match="ATTENTION.TIME asks for fibonacci, but pytorchvideo/.* has no attention"):
        build_model(load_config(None, [*names, "ATTENTION.TIME.NAME", "fibonacci"]))
    with pytest.raises(ValueError, match="MODEL.ACT_CHECKPOINT expects False"):
        build_model(load_config(None, [*names, "MODEL.ACT_CHECKPOINT", "True"]))
    with pytest.raises(ValueError, match="pytorchvideo/x3d_xl is not known; expected one of pytorchvideo/slow_r50"):
        Baseline("x3d_xl")


def test_the_profiler_counts_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_tool(profile_net, ["--model", "pytorchvideo/x3d_s", "--depth", "1"]) == 0
    assert "clip 3 x 13 x 160 x 160" in capsys.readouterr().out
