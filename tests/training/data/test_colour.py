"""Colour changes, against torchvision's on floats."""

from __future__ import annotations

import pytest
import torch

from training.data.transforms import recolour


def test_colours_follow_from_the_generator_alone() -> None:
    image = torch.arange(3 * 16 * 16, dtype=torch.uint8).reshape(3, 16, 16)

    def changed(seed: int, p_gray: float = 0.0) -> torch.Tensor:
        return recolour(image, (0.4, 0.4, 0.4, 0.1), 1.0, p_gray, torch.Generator().manual_seed(seed))

    assert torch.equal(changed(1), changed(1))
    assert not torch.equal(changed(1), changed(2))
    gray = changed(1, p_gray=1.0)
    assert torch.equal(gray[0], gray[1])
    assert gray.dtype == torch.uint8


@pytest.mark.parametrize("seed", range(20))
def test_colours_are_those_of_torchvision_on_floats(seed: int) -> None:
    """Its functions by the same draws; on a picture each of them rounds, and the hue is one of 256."""
    from torchvision.transforms.v2 import functional  # here: it takes two seconds

    noise = torch.randint(0, 256, (3, 9, 11), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    image = functional.resize(noise, [40, 48])
    image[:, :5] = image[:1, :5]  # pixels without a hue
    strength = (0.4, 0.4, 0.4, 0.1)
    draws = torch.rand(6, generator=(generator := torch.Generator().manual_seed(seed))).tolist()
    expected = image / 255
    for which in torch.randperm(4, generator=generator).tolist():
        name = ("brightness", "contrast", "saturation", "hue")[which]
        middle = 0.0 if name == "hue" else 1.0
        factor = middle + strength[which] * (2 * draws[1 + which] - 1)
        expected = getattr(functional, f"adjust_{name}")(expected, factor)
    found = recolour(image, strength, 1.0, 0.0, torch.Generator().manual_seed(seed))
    apart = (found - 255 * expected).abs()
    assert (bool(apart.mean() < 2), bool(apart.max() < 15)) == (True, True)


def test_a_picture_on_a_device_stays_there() -> None:
    image = torch.zeros(3, 9, 11, dtype=torch.uint8, device="meta")
    found = recolour(image, (0.4, 0.4, 0.4, 0.1), 1.0, 1.0, torch.Generator().manual_seed(1))
    assert (found.device, found.dtype, found.shape) == (image.device, image.dtype, image.shape)


def test_a_picture_whose_colours_stay_is_the_same() -> None:
    image = torch.arange(48, dtype=torch.uint8).view(3, 4, 4)
    assert recolour(image, (0.4, 0.4, 0.4, 0.1), 0.0, 0.0, torch.Generator().manual_seed(1)) is image
