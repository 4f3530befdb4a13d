"""Decoding and resizing: from an image file's bytes to the tower's square uint8 input and its boxes.

The square resize is the released model's: the aspect is lost, but every box moves by two factors and nothing of an
image is lost. A recipe may ask for crops and mirrored pictures (`crop_and_flip`), which come last. Pixels stay uint8
until the device: handing float tensors between processes was the loader's largest cost. Colour changes are
torchvision's on Pillow's pictures; they come after the resize, on few pixels, and touch no box.

Sound JPEG is decoded by simplejpeg (libjpeg-turbo) with the pixels of torchvision, a third faster; what it refuses
(another colour model, damage) is left to torchvision. Pixels lie in memory as a decoder writes them, channel last.
What is much larger than the input is decoded at a half or a quarter of its size, which libjpeg does in the frequency
domain: less than one grey level off on average, for half the time. A GPU may do both instead (`data.decoder=device`):
many pictures in one call, which stay there, in the training's own process; its decoder rounds otherwise than libjpeg.

Whatever a decoder raises on hostile bytes is an UnreadableImage, and the sides that a header claims are checked before
anything is decoded: 20 kB may claim 65,000 x 65,000 pixels, 12 GB.

Limits: EXIF orientation is ignored, as by the contract's width and height; types other than JPEG, met in plain tars
only, are decoded by Pillow with alpha laid on white: those of `FORMATS`, since for PostScript it would run a program.
"""

from __future__ import annotations

import io
import math
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from data_specs.pictures.jpeg import MAX_SCANS, has_too_many_scans
from data_specs.pictures.rgb import from_deep, is_deep, on_white
from training.config import DataConfig
from training.errors import ConfigError, RunError, first_line

if TYPE_CHECKING:
    import torch
    from torch import Tensor


_SPARE = 2
"""Least side of a reduced picture in multiples of the input's side, so that the resize hides that it is reduced."""


FORMATS = ("PNG", "GIF", "WEBP", "BMP", "TIFF", "AVIF")
"""Formats that Pillow reads here, by its names; JPEG has decoders of its own."""

_AT_ONCE = 16
"""Pictures that a GPU decodes in one call: in full size, before they are resized, all lie in its memory."""

_NO_MEMORY = re.compile(r"out of memory|: 5$")
"""What torchvision says without GPU memory. It turns torch's OutOfMemoryError into a RuntimeError, as it does with
damage; nvJPEG, which does not allocate through torch, says NVJPEG_STATUS_ALLOCATOR_FAILURE, 5."""

_WITHOUT_LENGTH = frozenset((0x00, 0x01, *range(0xD0, 0xD9)))
"""Markers of a JPEG that no length follows."""


class UnreadableImage(ValueError):
    """The bytes are not a complete image. The message says why; the caller names the file."""


@contextmanager
def _decoding_errors() -> Iterator[None]:
    """Turn whatever a decoder raises into UnreadableImage: MemoryError, struct.error, SystemError and more."""
    try:
        yield
    except UnreadableImage:
        raise
    except Exception as e:
        raise UnreadableImage(first_line(e)) from None


def _check_sides(width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise UnreadableImage(f"{width} x {height} pixels, more than the {max_pixels:,} allowed (data.max_pixels)")


def _jpeg_sides(data: bytes) -> tuple[int, int]:
    """(width, height) that a JPEG's first frame header claims; 0, 0 where libjpeg finds none either.

    Walks the segments as libjpeg does (ITU-T T.81, B.1): bytes before a marker's FF and further FF are passed over;
    01 and D0 to D8 have no length; any other marker is followed by two bytes of length, which count themselves. A
    frame header (C0 to CF but for DHT C4, JPG C8, DAC CC) is length 2, precision 1, height 2, width 2.
    """
    at = 2
    while (at := data.find(b"\xff", at)) >= 0:
        while data[at : at + 1] == b"\xff":
            at += 1
        marker, at = data[at] if at < len(data) else 0xDA, at + 1
        if marker in (0xDA, 0xD9):  # the scan begins, or the picture ends
            return 0, 0
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            return int.from_bytes(data[at + 5 : at + 7], "big"), int.from_bytes(data[at + 3 : at + 5], "big")
        if marker not in _WITHOUT_LENGTH:
            at += max(2, int.from_bytes(data[at : at + 2], "big"))
    return 0, 0


def sides(data: bytes, max_pixels: int) -> tuple[int, int]:
    """(width, height) of a picture by its header. Raises UnreadableImage, also above `max_pixels`."""
    from PIL import Image

    Image.MAX_IMAGE_PIXELS = None  # Pillow's own limit would make a picture that is too large one that it cannot read
    try:
        with Image.open(io.BytesIO(data), formats=(*FORMATS, "JPEG")) as image:
            width, height = int(image.width), int(image.height)
    except Exception:  # Pillow raises many types on damage
        raise UnreadableImage(f"not a picture: it begins with the bytes {data[:4].hex()}") from None
    if width * height > max_pixels:
        raise UnreadableImage(f"{width} x {height} pixels, more than the {max_pixels:,} allowed")
    return width, height


def import_decoders() -> None:
    """Import what `decode` and `resize_square` need, which takes seconds, so that forked workers need not."""
    import simplejpeg  # noqa: F401
    import torchvision.io
    import torchvision.transforms.v2.functional  # noqa: F401


def decode(data: bytes, max_pixels: int = DataConfig.max_pixels) -> Tensor:
    """RGB uint8 tensor [3, H, W] of an image file. Raises UnreadableImage."""
    with _decoding_errors():
        _check_header(data, max_pixels)
        return _decoded(data, max_pixels)


def _check_header(data: bytes, max_pixels: int) -> None:
    """Raise UnreadableImage for a JPEG of more pixels or scans than are allowed; Pillow checks other formats."""
    if has_too_many_scans(data):
        raise UnreadableImage(f"a JPEG of more than {MAX_SCANS} scans")
    if data[:2] == b"\xff\xd8":
        _check_sides(*_jpeg_sides(data), max_pixels)


def _decoded(data: bytes, max_pixels: int) -> Tensor:
    """`decode` of a file whose header was checked; raises whatever a decoder raises."""
    import simplejpeg
    import torch
    from torchvision.io import ImageReadMode, decode_jpeg

    if not data:
        raise UnreadableImage("empty file")
    if data[:2] != b"\xff\xd8":
        return _decode_by_pillow(data, max_pixels)
    try:
        return torch.from_numpy(simplejpeg.decode_jpeg(data)).permute(2, 0, 1)
    except ValueError:
        pass  # damaged, or neither grey nor of three components
    try:
        image: Tensor = decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8), mode=ImageReadMode.RGB)
    except RuntimeError as e:
        raise UnreadableImage(first_line(e).rpartition(", ")[2]) from None
    return image


def _decode_by_pillow(data: bytes, max_pixels: int) -> Tensor:
    import torch
    from PIL import Image, UnidentifiedImageError

    Image.MAX_IMAGE_PIXELS = None  # the limit here is checked from the header, in words of its own
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Pillow about damage
        try:
            with Image.open(io.BytesIO(data), formats=FORMATS) as file:
                _check_sides(file.width, file.height, max_pixels)
                file.load()
                pixels = from_deep(file) if is_deep(file) else on_white(file)
        except UnidentifiedImageError:  # its own words are the address of our buffer
            raise UnreadableImage(f"not an image: it begins with the bytes {data[:4].hex()}") from None
    return torch.from_numpy(pixels).permute(2, 0, 1)


def decode_square(
    data: bytes,
    size: int,
    *,
    full: bool = False,
    max_pixels: int = DataConfig.max_pixels,
) -> tuple[Tensor, int, int]:
    """uint8 [3, size, size] of an image file, and its width and height as stored. Raises UnreadableImage.

    `full`: decode at full size whatever the size, as the released model has it. `max_pixels`: above so many, by the
    header, an image is unreadable.
    """
    with _decoding_errors():
        _check_header(data, max_pixels)
        quick = None if full else _decode_reduced(data, size)
        if quick is not None:
            return quick
        image = _decoded(data, max_pixels)
    height, width = image.shape[1:]
    return resize_square(image, size), width, height


def decode_on_device(
    files: Mapping[int, bytes], size: int, device: torch.device, max_pixels: int = DataConfig.max_pixels
) -> dict[int, tuple[Tensor, int, int]]:
    """`decode_square` of full size of the JPEGs among the files, by number, decoded and left on a GPU (nvJPEG).

    What it does not take is missing: damage, four components, too many pixels. Raises RunError where not even one
    picture fits into the memory of the GPU: the CPU's pixels differ, so none is left to it for that reason.
    """
    import torch
    from torchvision.io import ImageReadMode, decode_jpeg

    encoded = {}
    for number, data in files.items():
        with suppress(UnreadableImage):
            _check_header(data, max_pixels)
            if data[:2] == b"\xff\xd8":
                encoded[number] = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    done: dict[int, tuple[Tensor, int, int]] = {}
    turns = [list(encoded)[start : start + _AT_ONCE] for start in range(0, len(encoded), _AT_ONCE)]
    while turns:
        turn = turns.pop()
        try:
            images = decode_jpeg([encoded[number] for number in turn], mode=ImageReadMode.RGB, device=device)
            for number, image in zip(turn, images, strict=True):
                done[number] = resize_square(image, size), image.shape[2], image.shape[1]
        except RuntimeError as e:  # too little memory, or one of them is damaged, or of four components
            if len(turn) > 1:
                turns += [turn[: len(turn) // 2], turn[len(turn) // 2 :]]
            elif _NO_MEMORY.search(first_line(e)):
                problem = f"the memory of {device} is full; set data.decoder=cpu, or run.recompute=blocks"
                raise RunError("data.decoder", problem) from None
    return done


def check_decodes(device: torch.device) -> None:
    """Raise ConfigError where torchvision cannot decode on a device: the CPU would decode all, without a word."""
    import simplejpeg

    if not decode_on_device({0: simplejpeg.encode_jpeg(np.zeros((16, 16, 3), np.uint8))}, 16, device):
        problem = f"torchvision cannot decode a JPEG on {device}; install its build for CUDA, or set data.decoder=cpu"
        raise ConfigError("data.decoder", problem)


def _decode_reduced(data: bytes, size: int) -> tuple[Tensor, int, int] | None:
    """`decode_square` of a JPEG by way of a quarter or half of its size, if that leaves _SPARE times the input's side.

    None where it does not, for another type, for damage. (At an eighth libjpeg only has the mean of each block, and the
    resize shows it.)
    """
    import simplejpeg
    import torch

    try:
        height, width = simplejpeg.decode_jpeg_header(data)[:2]
        part = next((n for n in (4, 2) if min(height, width) >= n * _SPARE * size), None)
        if part is None:
            return None
        pixels = simplejpeg.decode_jpeg(data, min_height=-(-height // part), min_width=-(-width // part))
    except ValueError:
        return None
    image = torch.from_numpy(pixels).view(1, *pixels.shape).permute(0, 3, 1, 2)
    # With its scales, because libjpeg rounds up: without them the last column of 317 / 2 pixels would count as a whole.
    scales = part * size / height, part * size / width
    resized: Tensor = torch.ops.aten._upsample_bilinear2d_aa(image, [size, size], False, *scales)[0]
    return resized, width, height


def resize_square(image: Tensor, size: int) -> Tensor:
    """uint8 [3, H, W] to uint8 [3, size, size], bilinear with antialiasing."""
    from torchvision.transforms.v2 import functional

    resized: Tensor = functional.resize(image, [size, size], antialias=True)
    return resized


def recolour(
    image: Tensor,
    strength: tuple[float, float, float, float],
    p_jitter: float,
    p_gray: float,
    generator: torch.Generator,
) -> Tensor:
    """torchvision's ColorJitter of `strength` with p_jitter, then RandomGrayscale with p_gray, of uint8 [3, H, W].

    All randomness is the generator's, so that it is the same in any process.
    """
    import torch
    from PIL import Image
    from torchvision.transforms.v2 import functional

    jitter, *amounts, gray = torch.rand(6, generator=generator).tolist()
    changes = []
    for which in torch.randperm(4, generator=generator).tolist() if jitter < p_jitter else ():
        middle = 0.0 if _COLOURS[which] == "hue" else 1.0
        low, high = max(middle - strength[which], middle - 1), middle + strength[which]
        if strength[which]:
            changes.append((f"adjust_{_COLOURS[which]}", low + (high - low) * amounts[which]))
    if not changes and gray >= p_gray:
        return image
    on_cpu = image.device.type == "cpu"  # there Pillow is faster; its hues are one of 256
    picture: Any = Image.fromarray(image.permute(1, 2, 0).contiguous().numpy()) if on_cpu else image
    for name, amount in changes:
        picture = getattr(functional, name)(picture, amount)
    if gray < p_gray:
        picture = functional.rgb_to_grayscale(picture, num_output_channels=3)
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1) if on_cpu else picture  # channel last, as it came


def crop_and_flip(
    image: Tensor, boxes_R4: npt.NDArray[np.float32], least: float, p_flip: float, generator: torch.Generator
) -> tuple[Tensor, npt.NDArray[np.float32]]:
    """Crops square uint8 [3, S, S] and its boxes to `least` of the area or more, and mirrors them with p_flip.

    torchvision moves and clips the boxes; those that are then empty are left out. The last one is the whole image.
    """
    import torch
    from torchvision import tv_tensors
    from torchvision.transforms.v2 import functional

    size = image.shape[1]
    share, down, right, flip = torch.rand(4, generator=generator).tolist()
    side = round(size * math.sqrt(least + (1 - least) * share))
    crop = int(down * (size - side + 1)), int(right * (size - side + 1)), side, side, [size, size]
    form = tv_tensors.BoundingBoxFormat.XYXY
    both = image, tv_tensors.BoundingBoxes(torch.from_numpy(boxes_R4), format=form, canvas_size=(size, size))
    if side < size:
        both = functional.resized_crop(both[0], *crop, antialias=True), functional.resized_crop(both[1], *crop)
    if flip < p_flip:
        both = functional.horizontal_flip(both[0]), functional.horizontal_flip(both[1])
    boxes_R4 = np.clip(both[1].numpy(), 0, size)  # a resize rounds
    kept = (boxes_R4[:, 2] > boxes_R4[:, 0]) & (boxes_R4[:, 3] > boxes_R4[:, 1])
    return both[0], boxes_R4[kept]


_COLOURS = ("brightness", "contrast", "saturation", "hue")


def grid_boxes(width: int, height: int, max_boxes: int) -> npt.NDArray[np.float32]:
    """float32 [n * n, 4]: an even grid over the image, row by row, n the largest with n * n <= max_boxes."""
    n = math.isqrt(max_boxes)
    cells = [(x, y, x + 1, y + 1) for y in range(n) for x in range(n)]
    unit = np.asarray(cells, dtype=np.float32).reshape(-1, 4) / np.float32(max(n, 1))
    boxes: npt.NDArray[np.float32] = unit * np.asarray([width, height, width, height], dtype=np.float32)
    return boxes


def input_boxes(
    stored: Sequence[float] | None, width: int, height: int, size: int, max_boxes: int, *, as_given: bool = False
) -> npt.NDArray[np.float32]:
    """float32 [R, 4] in pixels of the size x size input: at most max_boxes regions, then the whole image.

    `stored`: flat R x 4 in pixels of the stored width x height, best first; None for the grid.
    Boxes are clipped to the image; those that are then empty are left out. `as_given` leaves both undone, as the
    released code does.
    """
    if stored is None:
        boxes = grid_boxes(size, size, max_boxes)
    else:
        scale = np.asarray([size / width, size / height] * 2, dtype=np.float32)
        boxes = np.asarray(stored, dtype=np.float32).reshape(-1, 4) * scale
        if not as_given:
            boxes = np.clip(boxes, 0, size)
            boxes = boxes[(boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])]
        boxes = boxes[:max_boxes]
    whole = np.asarray([[0, 0, size, size]], dtype=np.float32)
    return np.concatenate([boxes, whole])
