"""Small TimeSformers on a grid whose t, h, w all differ, with every tensor random, and their state dicts."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from videoattn.models import TimeSformer
from videoattn.models.weights.load import from_ours

CLIP_SIZE = (4, 16, 24)
SMALL: dict[str, Any] = {
    "clip_size": CLIP_SIZE, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3, "num_classes": 5,
}  # fmt: skip
State = dict[str, Tensor]
ATTENTION_TYPES = ("divided_space_time", "joint_space_time", "space_only")


def randomize(model: nn.Module, seed: int = 0) -> nn.Module:
    """Every parameter random, also those that begin as zero or one."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def small_model(attention_type: str = "divided_space_time", seed: int = 0, **changes: Any) -> TimeSformer:
    model = TimeSformer(**{**SMALL, "attention_type": attention_type, **changes})
    randomize(model, seed)
    return model


def random_clip(batch: int = 2, clip_size: tuple[int, int, int] = CLIP_SIZE, seed: int = 1) -> Tensor:
    return torch.randn(batch, 3, *clip_size, generator=torch.Generator().manual_seed(seed))


def assert_same(state: State, other: State) -> None:
    assert state.keys() == other.keys()
    for name, value in state.items():
        assert torch.equal(value, other[name]), name


def released(model: nn.Module) -> State:
    return from_ours(model.state_dict(), "timesformer", num_heads=3)


def image_vit(num_classes: int = 9, side: int = 3, seed: int = 3) -> State:
    """An image ViT's tensors in timm's names."""
    model = small_model("space_only", seed, clip_size=(1, 8 * side, 8 * side), num_classes=num_classes)
    return from_ours(model.state_dict(), "vit", num_heads=3)


def save(content: Any, path: Path) -> Path:
    torch.save(content, path)
    return path


def changed(state: State, **changes: Tensor | None) -> State:
    return {name: value for name, value in (state | changes).items() if value is not None}
