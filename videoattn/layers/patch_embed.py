"""Frames to patch tokens."""

from torch import Tensor, nn


class PatchEmbed(nn.Module):
    """A convolution with stride = kernel = patch size on every frame: [B, 3, T, H, W] to [B, T, h·w, C]."""

    def __init__(self, patch_size: int, embed_dim: int, in_channels: int = 3) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_channels, embed_dim, kernel_size=patch_size, stride=patch_size)

    def forward(self, clip: Tensor) -> Tensor:
        frames = self.proj(clip.transpose(1, 2).flatten(0, 1))
        return frames.flatten(2).transpose(1, 2).unflatten(0, (clip.shape[0], clip.shape[2]))
