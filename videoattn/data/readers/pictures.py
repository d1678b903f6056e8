"""Picture files as RGB bytes.

Pictures are decoded with Pillow. It gives the pixels of libjpeg and libpng, as OpenCV does in published code; FFmpeg's
colours of JPEG differ by up to 31 grey levels at edges. It took as long as PyAV for JPEG and a third less for PNG (0.6
and 2.3 ms a picture of 340x256).
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from videoattn.data.readers.base import Image
from videoattn.data.readers.decode_error import DecodeError, LibraryCalls

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

_REDUCING_GAP = 2  # what Pillow advises: beyond it the result hardly differs from scaling the whole picture
_ORIENTATION = 0x0112
# what makes a picture of an orientation upright. Source: Exif 2.32, 4.6.4
_UPRIGHT = {
    2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM", 5: "TRANSPOSE", 6: "ROTATE_270", 7: "TRANSVERSE",
    8: "ROTATE_90",
}  # fmt: skip
_QUARTER_TURNED = (5, 6, 7, 8)
_SIXTEEN_BITS = (("PNG", "I;16"), ("PNG", "I"), ("PPM", "I"))  # formats, with Pillow's name of their 16-bit pixels
_MOVING = ("PNG", "GIF", "WEBP", "TIFF", "AVIF")  # elsewhere further pictures are previews


def read_picture(
    name: str, stream: BinaryIO, scaled_size: Callable[[int, int], tuple[int, int]]
) -> tuple[Image, tuple[int, int]]:
    """Return a picture [H, W, 3], upright and scaled to `scaled_size(height, width)`, and its (width, height) before.

    Of 16-bit pixels, the upper eight bits are used, as in FFmpeg and OpenCV. Transparency is dropped, as there: the
    colours below it are shown. Raises DecodeError on pictures that cannot be decoded, on other pixels of more than
    eight bits, whose white level is not defined, and on files that contain several pictures.
    """
    from PIL import Image as Pictures

    calls = LibraryCalls(f"{name}: cannot be decoded")
    with calls:
        picture: Picture = Pictures.open(stream)
        num_pictures = getattr(picture, "n_frames", 1) if picture.format in _MOVING else 1
    if num_pictures > 1:
        raise DecodeError(f"{name}: contains {num_pictures} pictures, expected one frame of a video")
    is_deep = picture.mode.startswith(("I", "F"))
    if is_deep and (picture.format, picture.mode) not in _SIXTEEN_BITS:
        raise DecodeError(
            f"{name}: is {picture.format} with pixels {picture.mode}, expected 8 bits a colour, or 16 bits in png"
        )
    width, height = picture.size
    orientation = _orientation(picture)
    if orientation in _QUARTER_TURNED:
        width, height = height, width
    size = scaled_size(height, width)
    with calls:
        if size != (height, width):
            # a jpg is decoded at a half, a quarter or an eighth of its size where that is twice what is wanted
            least = _REDUCING_GAP * min(size)
            picture.draft("RGB", (least, least))
        if is_deep:
            picture = Pictures.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
        picture = picture.convert("RGB")
        if orientation in _UPRIGHT:
            picture = picture.transpose(Pictures.Transpose[_UPRIGHT[orientation]])
        if size != (height, width):
            picture = picture.resize(size[::-1], Pictures.Resampling.BILINEAR)
        return np.asarray(picture), (width, height)


def _orientation(picture: "Picture") -> int:
    """Return a picture's orientation as Exif numbers it; 1, upright, if its Exif data is absent or damaged."""
    if "exif" not in picture.info:
        return 1
    try:
        return int(picture.getexif().get(_ORIENTATION, 1))
    except Exception:  # as viewers do: Pillow raises errors of many types, and the pixels are not affected
        return 1
