import json
import re
from pathlib import Path

import pytest
import torch

from tests.models.small_models import SMALL, random_clip, randomize, released, save, small_model
from videoattn.config import load as config_file
from videoattn.grid import Axis
from videoattn.models import TimeSformer, build_model
from videoattn.models.weights.load import (
    CheckpointError,
    from_checkpoint,
    from_ours,
    save_weights,
)
from videoattn.operators import FibonacciAttention


def test_our_training_checkpoint_describes_its_whole_model(tmp_path: Path) -> None:
    cfg = config_file.load_config(
        None,
        "DATA.NUM_FRAMES 4 DATA.TRAIN_CROP_SIZE 24 DATA.TEST_CROP_SIZE 24 MODEL.NUM_CLASSES 5 TIMESFORMER.PATCH_SIZE 8 "
        "TIMESFORMER.EMBED_DIM 24 TIMESFORMER.DEPTH 2 TIMESFORMER.NUM_HEADS 3 TIMESFORMER.MLP_RATIO 2.5 "
        "ATTENTION.TIME.NAME fibonacci ATTENTION.TIME.VARIANT wythoff".split(),
    )
    source = small_model(
        clip_size=(4, 24, 24), mlp_ratio=2.5, operators={Axis.TIME: lambda site: FibonacciAttention(site, "wythoff")}
    )
    content = {"epoch": 1, "model_state": source.state_dict(), "cfg": config_file.dump_config(cfg)}
    path = save(content, tmp_path / "a.pyth")
    state = torch.get_rng_state()
    model = from_checkpoint(path)
    assert torch.equal(torch.get_rng_state(), state)
    assert not model.training
    clip = random_clip(2, (4, 24, 24))
    with torch.no_grad():
        assert torch.equal(model(clip), source(clip))
    longer = from_checkpoint(path, clip_size=(6, 24, 24))
    assert isinstance(longer, TimeSformer) and longer.clip_size == (6, 24, 24)


def test_our_training_checkpoint_describes_operators_of_single_blocks_and_skipped_ones(tmp_path: Path) -> None:
    cfg = config_file.load_config(
        None,
        [
            *"DATA.NUM_FRAMES 4 DATA.TRAIN_CROP_SIZE 24 DATA.TEST_CROP_SIZE 24 TIMESFORMER.PATCH_SIZE 8".split(),
            *"TIMESFORMER.EMBED_DIM 24 TIMESFORMER.DEPTH 5 TIMESFORMER.NUM_HEADS 3 ATTENTION.SKIP.SPACE 2-3".split(),
            *("ATTENTION.TIME", "[{NAME: lisa, LAYERS: 0-1, NUM_PATTERNS: 2}, {NAME: focused_linear, LAYERS: 4}]"),
        ],
    )
    source = randomize(build_model(cfg))
    content = {"epoch": 1, "model_state": source.state_dict(), "cfg": config_file.dump_config(cfg)}
    path = save(content, tmp_path / "a.pyth")
    model = from_checkpoint(path)
    with torch.no_grad():
        assert torch.equal(model(random_clip(2, (4, 24, 24))), source(random_clip(2, (4, 24, 24))))
    with pytest.raises(CheckpointError, match=r"of another shape: .*operator"):
        from_checkpoint(path, clip_size=(6, 24, 24))  # LiSA's tables belong to one grid


@pytest.mark.parametrize("attention_type", ["divided_space_time", "joint_space_time"])
def test_tensors_describe_a_released_model_but_for_its_heads(tmp_path: Path, attention_type: str) -> None:
    source = small_model(attention_type, clip_size=(4, 24, 24))
    path = save({"model_state": released(source)}, tmp_path / "a.pyth")
    with pytest.raises(CheckpointError, match="pass num_heads="):
        from_checkpoint(path)
    model = from_checkpoint(path, num_heads=3)
    clip = random_clip(2, (4, 24, 24))
    with torch.no_grad():
        torch.testing.assert_close(model(clip), source(clip))


def test_the_cfg_of_a_released_file_gives_its_heads_and_frames(tmp_path: Path) -> None:
    cfg = {"MODEL": {"MODEL_NAME": "vit_base_patch16_224"}, "DATA": {"NUM_FRAMES": 8, "TRAIN_CROP_SIZE": 24}}
    source = small_model("space_only", clip_size=(8, 24, 24), num_heads=12)
    state = from_ours(source.state_dict(), "timesformer", num_heads=12)
    model = from_checkpoint(save({"model_state": state, "cfg": json.dumps(cfg)}, tmp_path / "a.pyth"))
    clip = random_clip(1, (8, 24, 24))
    with torch.no_grad():
        torch.testing.assert_close(model(clip), source(clip))


def test_a_standard_width_tells_the_heads_and_it_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = small_model(embed_dim=192, depth=1, clip_size=(2, 24, 24))
    caplog.set_level("INFO")
    model = from_checkpoint(save(released(source), tmp_path / "a.pyth"))
    assert model.blocks[0].mixers["space"].num_heads == 3
    assert "3 heads assumed from width 192" in caplog.text


@pytest.mark.parametrize(
    ("attention_type", "clip_size", "message"),
    [
        ("space_only", (4, 24, 24), r"the number of frames can't be told .* clip_size=\(T, H, W\)"),
        ("divided_space_time", (4, 16, 24), r"the height and width of 6 positions can't be told .* clip_size="),
    ],
)
def test_what_tensors_do_not_say_is_asked_for(
    tmp_path: Path, attention_type: str, clip_size: tuple[int, int, int], message: str
) -> None:
    source = small_model(attention_type, clip_size=clip_size)
    path = save(released(source), tmp_path / "a.pyth")
    with pytest.raises(CheckpointError, match=message):
        from_checkpoint(path, num_heads=3)
    clip = random_clip(2, clip_size)
    with torch.no_grad():
        torch.testing.assert_close(from_checkpoint(path, num_heads=3, clip_size=clip_size)(clip), source(clip))


def test_our_bare_file_is_asked_for_its_operators(tmp_path: Path) -> None:
    source = small_model()
    save_weights(source.state_dict(), tmp_path / "a.safetensors", num_heads=3, clip_size=SMALL["clip_size"])
    with pytest.raises(CheckpointError, match="pass operators="):
        from_checkpoint(tmp_path / "a.safetensors")
    clip = random_clip()
    with torch.no_grad():
        assert torch.equal(from_checkpoint(tmp_path / "a.safetensors", operators={})(clip), source(clip))


@pytest.mark.parametrize(
    ("cfg", "message"),
    [
        ("MODEL: {NUM_CLASES: 5}", "embedded cfg.*MODEL.NUM_CLASES is not a setting; did you mean MODEL.NUM_CLASSES"),
        ("TIMESFORMER: {EMBED_DIM: 24, NUM_HEADS: 5}", "multiple of TIMESFORMER.NUM_HEADS, got 24 and 5"),
        ("a: [", "its cfg is not YAML"),
    ],
)
def test_an_embedded_cfg_that_builds_nothing_is_named_with_its_file(tmp_path: Path, cfg: str, message: str) -> None:
    cfg = cfg.replace("24,", "24, PATCH_SIZE: 8,") + ("" if "[" in cfg else "\nDATA: {TEST_CROP_SIZE: 224}")
    path = save({"model_state": small_model().state_dict(), "cfg": cfg}, tmp_path / "a.pyth")
    with pytest.raises(CheckpointError, match=rf"(?s)^{re.escape(str(path))}: .*{message}"):
        from_checkpoint(path)
