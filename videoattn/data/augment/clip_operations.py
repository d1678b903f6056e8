"""RandAugment's operations on a clip as one tensor, on any device, with Pillow's results to the grey level."""

from collections.abc import Callable

import torch
from torch import Tensor

from videoattn.compat import import_torchvision
from videoattn.data.augment.rand_augment import FILL, Interpolation, Matrix, Operation, affine_matrix

_GREY = (19595, 38470, 7471)  # shares of red, green and blue, of 65536
_ROUNDING = 1 / 1024  # more than sums of float32 products err, and too little to be seen


def apply_to_clip(frames: Tensor, operation: Operation, interpolation: Interpolation) -> Tensor:
    """Apply an operation to each of the frames [T, 3, H, W], uint8.

    Differs: where Pillow computes in float64 (geometric operations and AutoContrast), values next to a whole number can
    be one level off.
    """
    matrix = affine_matrix(operation, frames.shape[-1], frames.shape[-2])
    if matrix is not None:
        return _transform(frames, matrix, interpolation)
    if operation.name in ("AutoContrast", "Equalize"):
        import_torchvision()
        from torchvision.transforms.v2 import functional

        return functional.autocontrast(frames) if operation.name == "AutoContrast" else functional.equalize(frames)
    return _OPERATIONS[operation.name](frames, *operation.values)


def _posterize(frames: Tensor, num_bits: float) -> Tensor:
    return frames & (256 - 2 ** (8 - int(num_bits)))


def _solarize(frames: Tensor, threshold: float) -> Tensor:
    return torch.where(frames.short() < threshold, frames, 255 - frames)


def _solarize_add(frames: Tensor, value: float) -> Tensor:
    return torch.where(frames < 128, (frames.short() + int(value)).clamp(max=255).byte(), frames)


def _color(frames: Tensor, factor: float) -> Tensor:
    return _blend(_grey(frames), frames, factor)


def _contrast(frames: Tensor, factor: float) -> Tensor:
    mean = _grey(frames).mean((-1, -2, -3), dtype=torch.float64, keepdim=True)
    return _blend((mean + 0.5).floor(), frames, factor)


def _brightness(frames: Tensor, factor: float) -> Tensor:
    return _blend(torch.zeros((), device=frames.device), frames, factor)


def _sharpness(frames: Tensor, factor: float) -> Tensor:
    """Blend frames with a mean in which the pixel counts five times and each of its eight neighbours once."""
    values = frames.int()
    rows = values[..., :-2, :] + values[..., 1:-1, :] + values[..., 2:, :]
    sums = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:] + 4 * values[..., 1:-1, 1:-1]
    smooth = values.clone()  # the border stays
    smooth[..., 1:-1, 1:-1] = (2 * sums + 13) // 26
    return _blend(smooth, frames, factor)


def _grey(frames: Tensor) -> Tensor:
    """Return grey levels [T, 1, H, W] as int32."""
    red, green, blue = frames.int().split(1, dim=-3)
    return (red * _GREY[0] + green * _GREY[1] + blue * _GREY[2] + 32768) >> 16


def _blend(start: Tensor, frames: Tensor, factor: float) -> Tensor:
    """Interpolate from `start` (factor 0) to `frames` (factor 1), or extrapolate beyond."""
    values = start.float()
    return (values + factor * (frames.float() - values)).clamp(0, 255).byte()


def _transform(frames: Tensor, matrix: Matrix, interpolation: Interpolation) -> Tensor:
    """Sample pixels by an affine map; positions outside the frame are grey."""
    height, width = frames.shape[-2:]
    a, b, c, d, e, f = matrix
    y = torch.arange(height, device=frames.device, dtype=torch.float64).view(-1, 1) + 0.5
    x = torch.arange(width, device=frames.device, dtype=torch.float64) + 0.5
    x, y = a * x + b * y + c, d * x + e * y + f
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    values = frames.flatten(-2).float()  # [T, 3, H W]
    result = torch.zeros_like(values)
    for row, row_weight in _taps(y, height, interpolation):
        for column, column_weight in _taps(x, width, interpolation):
            picked = values.index_select(-1, (row * width + column).flatten())
            result.addcmul_(picked, (row_weight * column_weight).flatten())
    result = (result + _ROUNDING).clamp_(0, 255).byte()
    return torch.where(inside, result.view_as(frames), FILL)


def _taps(position: Tensor, size: int, interpolation: Interpolation) -> list[tuple[Tensor, Tensor]]:
    """Return indices along an axis, clamped to it, and the weights of their values at `position`.

    Bicubic weights are Pillow's, with a = -1 (torch has -0.75).
    """
    first = (position - 0.5).floor()
    d = (position - 0.5 - first).float()
    if interpolation == "bilinear":
        weights = [1 - d, d]
    else:
        weights = [d * (d * (2 - d) - 1), 1 + d * d * (d - 2), d * (1 + d * (1 - d)), d * d * (d - 1)]
    start = first.long() - (len(weights) // 2 - 1)
    return [((start + i).clamp(0, size - 1), weight) for i, weight in enumerate(weights)]


_OPERATIONS: dict[str, Callable[..., Tensor]] = {
    "Invert": lambda frames: 255 - frames,
    "Posterize": _posterize,
    "Solarize": _solarize,
    "SolarizeAdd": _solarize_add,
    "Color": _color,
    "Contrast": _contrast,
    "Brightness": _brightness,
    "Sharpness": _sharpness,
}
