"""Every transform gives the pixels that it gave before it was made faster, with the extension and without."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any
from zlib import crc32

import numpy as np
import pytest
import torch
from PIL import Image as pillow
from timm.data import auto_augment as policies
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from up.data.transforms import pixels
from up.data.transforms.occlusion import Cutout, GridMask, HideAndSeek
from up.data.transforms.policies import AutoAugment, IncreasingRandAugment, RandAugment
from up.data.transforms.table import ColorJitter, RandomHorizontalFlip, RandomResizedCrop
from up.seed import seed_cpu
from up.tasks.cls.augment.pba import OPERATIONS, PbaPolicy

FORMS: dict[str, Callable[[Any], Any]] = {
    "pillow": pillow.fromarray,
    "channels_last": lambda array: torch.from_numpy(array).permute(2, 0, 1),
    "contiguous": lambda array: torch.from_numpy(array).permute(2, 0, 1).contiguous(),
}
SWEPT: dict[str, Any] = {
    "flip": RandomHorizontalFlip(),
    "incre": IncreasingRandAugment(n=2, m=7, magnitude_std=0.5),
    "incre at 10": IncreasingRandAugment(n=3, m=10),
    "rand": RandAugment(n=3, m=9, magnitude_std=0.5),
    "auto": AutoAugment(size=40),
    "pba": PbaPolicy([(name, 8, magnitude) for name in OPERATIONS for magnitude in (3, 9)]),
    "cutout": Cutout(n_holes=2, length=9),
    "gridmask": GridMask(d_min=8, d_max=20),
    "hide": HideAndSeek(grid_sizes=(0, 7, 9)),
}


def picture(height: int = 61, width: int = 74) -> Any:
    """Smooth areas, edges, noise, and areas of one colour, (H, W, 3)."""
    y, x = np.mgrid[:height, :width]
    smooth = np.stack([x * 3 + y, 200 - 2 * y + x, (x * y) // 16], -1)
    noise = ((x * 7919 + y * 104729) % 61)[..., None] * ((x // 9 + y // 11) % 2)[..., None]
    made = np.clip(smooth + noise - 30, 0, 255)
    made[height // 2 :, : width // 3] = (255, 17, 0)
    return made.astype(np.uint8)


def changed(transform: Any, image: Any, seed: int) -> Tensor:
    seed_cpu(seed)
    made = transform(image)
    return made if isinstance(made, Tensor) else F.pil_to_tensor(made)


def swept(transform: Any, form: str, seeds: int = 60) -> int:
    """A checksum of the images of many draws, and of the states of the generators after them."""
    image, sum_ = FORMS[form](picture()), 0
    for seed in range(seeds):
        sum_ = crc32(changed(transform, image, seed).permute(1, 2, 0).numpy().tobytes(), sum_)
        sum_ = crc32(np.array([np.random.rand(), torch.rand(()).item()]).tobytes(), sum_)
    return sum_


SUMS = {
    "flip": 1575822435,
    "incre": 2631902157,
    "incre at 10": 1930721345,
    "rand": 214587413,
    "auto": 284665875,
    "pba": 3915395675,
    "cutout": 1591813097,
    "gridmask": 1918014774,
    "hide": 1401894058,
}


@pytest.fixture(params=["extension", "libraries"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """With the operations in C, and with those of the libraries."""
    if request.param == "libraries":
        monkeypatch.setattr(pixels, "_pixels", None)
        monkeypatch.setattr(pixels, "agrees", lambda operation: False)
    elif pixels._pixels is None:
        pytest.skip("the extension was not compiled: python setup.py build_ext --inplace")
    return str(request.param)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", SWEPT)
@pytest.mark.usefixtures("way")
def test_pixels_and_draws_are_those_of_before(name: str, form: str) -> None:
    """The numbers were computed by Pillow 13.0 and timm 1.0.31, before there was an extension."""
    assert swept(SWEPT[name], form) == SUMS[name]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("hue", [0.0, 0.2])
@pytest.mark.usefixtures("way")
def test_jitter_is_torchvisions(form: str, hue: float) -> None:
    """Its sums of floats differ between processors, so that it is compared with the library here."""
    ours, theirs = (kind(brightness=0.4, contrast=0.4, saturation=0.4, hue=hue) for kind in (ColorJitter, v2.ColorJitter))
    image = FORMS[form](picture())
    for seed in range(40):
        assert torch.equal(changed(ours, image, seed), changed(theirs, image, seed))


@pytest.mark.skipif(pixels._pixels is None, reason="the extension was not compiled")
@pytest.mark.parametrize("operation", pixels.KERNELS, ids=lambda operation: operation.__name__)
def test_every_kernel_agrees_with_its_library(operation: Any) -> None:
    """Otherwise it would not be used."""
    assert pixels.agrees(operation)


@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (2, 2), (3, 67), (130, 1)])
@pytest.mark.skipif(pixels._pixels is None, reason="the extension was not compiled")
def test_kernels_on_images_of_odd_sizes(shape: tuple[int, int]) -> None:
    array = np.random.default_rng(1).integers(0, 256, (*shape, 3), dtype=np.uint8)
    for operation, kernel in pixels.KERNELS.items():
        for sample in kernel.samples:
            numbers = () if sample is None else (sample,)
            kwargs = {} if kernel.of_tensors else {"resample": pillow.Resampling.BICUBIC, "fillcolor": (1, 2, 3)}
            image = FORMS["channels_last" if kernel.of_tensors else "pillow"](array)
            made = operation(image, *numbers, **kwargs)
            expected = made.permute(1, 2, 0).numpy() if isinstance(made, Tensor) else np.asarray(made)
            np.testing.assert_array_equal(kernel.run(array, *numbers, **kwargs), expected, f"{operation.__name__} {sample}")


def test_a_kernel_that_differs_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """As with another version of the library."""
    wrong = pixels.Kernel(lambda levels, *numbers, **_: levels ^ 1, [None])
    monkeypatch.setattr(pixels, "KERNELS", {**pixels.KERNELS, policies.invert: wrong})
    monkeypatch.setattr(pixels, "agrees", pixels.agrees.__wrapped__)
    image = FORMS["channels_last"](picture())
    inverting = pixels.faster(policies.AugmentOp("Invert", prob=1.0, hparams={}))
    assert torch.equal(pixels.by_timm(inverting, image), 255 - image)


def test_pixels_of_channels_last_memory_are_not_copied() -> None:
    image = FORMS["channels_last"](picture())
    levels = pixels.levels_of(image)
    if levels is not None:  # with the extension
        assert levels.ctypes.data == image.data_ptr()
        assert pixels.like(image, levels).data_ptr() == image.data_ptr()
        assert changed(SWEPT["incre"], image, 3).permute(1, 2, 0).is_contiguous()


def test_crops_of_channels_last_images_stay_channels_last() -> None:
    """The operations after them would copy images of other memory."""
    crop = RandomResizedCrop(size=(20, 24))
    for seed in range(20):
        found = changed(crop, FORMS["channels_last"](picture()), seed)
        assert torch.equal(found, changed(crop, FORMS["contiguous"](picture()), seed))
        assert found.permute(1, 2, 0).is_contiguous()


@pytest.mark.parametrize("image", [torch.zeros(1, 4, 4, dtype=torch.uint8), torch.zeros(3, 4, 4), pillow.new("L", (4, 4))])
def test_other_images_are_left_to_the_libraries(image: Any) -> None:
    assert pixels.levels_of(image) is None


def test_faster_policies_travel_to_workers() -> None:
    for name in ("incre", "auto", "pba"):
        copy = pickle.loads(pickle.dumps(SWEPT[name]))
        assert swept(copy, "channels_last", 5) == swept(SWEPT[name], "channels_last", 5)
