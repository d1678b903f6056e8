"""Frames to patch tokens."""

from torch import Tensor, nn

from videoattn.grid import TokenGrid


class PatchEmbed(nn.Module):
    """A convolution with stride = kernel = patch size on every frame: [B, 3, T, H, W] to [B, T, h·w, C]."""

    def __init__(self, patch_size: int, embed_dim: int, in_channels: int = 3) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_channels, embed_dim, kernel_size=patch_size, stride=patch_size)

    def forward(self, clip: Tensor) -> Tensor:
        frames = self.proj(clip.transpose(1, 2).flatten(0, 1))
        return frames.flatten(2).transpose(1, 2).unflatten(0, (clip.shape[0], clip.shape[2]))


class TubeletEmbed(nn.Module):
    """A convolution over overlapping tubelets: clips [B, 3, T, H, W] of `clip_size` to patch tokens [B, t·h·w, C].

    The stride must divide the clip. Raises ValueError if it does not, or kernel and padding lead to another grid.
    """

    def __init__(
        self, embed_dim: int, clip_size: tuple[int, int, int], kernel: tuple[int, int, int],
        stride: tuple[int, int, int], padding: tuple[int, int, int], in_channels: int = 3,
    ) -> None:  # fmt: skip
        super().__init__()
        self.grid = TokenGrid.of_clip(clip_size, stride)
        sizes = zip(clip_size, kernel, stride, padding, strict=True)
        if any((n + 2 * p - k) // s + 1 != n // s for n, k, s, p in sizes):
            raise ValueError(
                f"PATCH_KERNEL {kernel}, PATCH_STRIDE {stride} and PATCH_PADDING {padding} make another grid than "
                f"{self.grid.t} x {self.grid.h} x {self.grid.w} of clips of {' x '.join(map(str, clip_size))}"
            )
        self.proj = nn.Conv3d(in_channels, embed_dim, kernel, stride, padding)

    def forward(self, clip: Tensor) -> Tensor:
        tokens: Tensor = self.proj(clip).flatten(2).transpose(1, 2)
        return tokens
