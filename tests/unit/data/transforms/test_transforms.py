"""Transforms on Pillow images and on tensors, against torchvision; sizes and export steps of lists of them."""

from __future__ import annotations

import inspect
import pickle
import typing
from typing import Any

import pytest
import torch
from PIL.Image import Image as PILImage
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.functional import to_tensor
from torchvision.transforms.v2 import functional as F

from tests.harness.facts import facts
from up.data.transforms.image import MODES
from up.data.transforms.policies import RandAugment
from up.data.transforms.stages import split
from up.data.transforms.table import (
    TRANSFORMS,
    CenterCrop,
    ColorJitter,
    Denormalize,
    LevelsToTensor,
    Normalize,
    RandomHorizontalFlip,
    RandomResizedCrop,
    Resize,
    ToTensor,
    output_size_of,
)
from up.errors import UserError
from up.registry import UnknownName
from up.seed import seed_cpu

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
ARGUMENTS: dict[str, dict[str, Any]] = {
    "torch_random_resized_crop": {"size": 24},
    "torch_resize": {"size": 24},
    "torch_center_crop": {"size": (20, 30)},
    "torch_color_jitter": {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4},  # of hue Pillow has 8 bits only
    "torch_random_augmentation": {"n": 2, "m": 7},
    "torch_random_augmentationIncre": {"n": 2, "m": 7, "magnitude_std": 0.5},
    "gridmask": {"d_min": 8, "d_max": 16},
}
NOT_IMAGE_TO_IMAGE = {"torch_mixup", "torch_cutmix_mixup", "normalize", "normalize_inverse", "torch_randerase"}


def picture(height: int = 45, width: int = 60) -> Tensor:
    """A colourful image with gradients, edges and a little noise."""
    rows, columns = torch.meshgrid(torch.linspace(0, 1, height), torch.linspace(0, 1, width), indexing="ij")
    noise = torch.rand(3, height, width, generator=torch.Generator().manual_seed(3))
    planes = torch.stack([rows, columns, ((rows + columns) * 4).frac()])
    return (planes * 215 + noise * 40).to(torch.uint8)


def both_kinds(transform: Any, image: Tensor, seed: int = 5) -> tuple[Tensor, Tensor]:
    """What comes out for a tensor and for the same image of Pillow, as int tensors."""
    seed_cpu(seed)
    from_tensor = transform(image)
    seed_cpu(seed)
    from_pillow = transform(F.to_pil_image(image))
    assert isinstance(from_tensor, Tensor)
    if isinstance(from_pillow, Tensor):
        return from_tensor, from_pillow
    assert isinstance(from_pillow, PILImage)
    assert from_tensor.dtype == torch.uint8
    return from_tensor.int(), F.pil_to_tensor(from_pillow).int()


@pytest.mark.parametrize("name", [name for name in TRANSFORMS if name not in NOT_IMAGE_TO_IMAGE])
def test_tensors_and_pillow_agree(name: str) -> None:
    transform = TRANSFORMS.get(name)(**ARGUMENTS.get(name, {}))
    for seed in range(6):
        from_tensor, from_pillow = both_kinds(transform, picture(), seed)
        assert from_tensor.shape == from_pillow.shape
        rounded_in_a_row = name == "torch_color_jitter"
        assert (from_tensor - from_pillow).abs().max() <= (4 if rounded_in_a_row else 2)


@pytest.mark.parametrize("name", list(TRANSFORMS))
def test_constructors_are_keyword_only_documented_and_annotated(name: str) -> None:
    part = TRANSFORMS.get(name)
    assert part.__doc__
    assert part.__doc__[0].isupper() or part.__doc__.startswith("``")
    parameters = inspect.signature(part).parameters.values()
    assert all(parameter.kind in (parameter.KEYWORD_ONLY, parameter.VAR_KEYWORD) for parameter in parameters)
    assert {parameter.name for parameter in parameters} <= set(typing.get_type_hints(part.__init__))


@pytest.mark.parametrize("name", [name for name in TRANSFORMS if name not in {"normalize", "normalize_inverse"}])
def test_transforms_travel_to_workers(name: str) -> None:
    transform = TRANSFORMS.get(name)(**ARGUMENTS.get(name, {}))
    assert type(pickle.loads(pickle.dumps(transform))) is TRANSFORMS.get(name)


@pytest.mark.parametrize("interpolation", list(MODES))
def test_every_interpolation_is_that_of_pillow(interpolation: Any) -> None:
    for size in (20, 70):
        got, expected = both_kinds(Resize(size=size, interpolation=interpolation), picture())
        assert got.shape == (3, size, int(size * 60 / 45))
        assert (got - expected).abs().max() <= 1
    crop = RandomResizedCrop(size=(16, 24), interpolation=interpolation)
    got, expected = both_kinds(crop, picture())
    assert got.shape == (3, 16, 24)
    assert (got - expected).abs().max() <= 1


def test_interpolations_differ() -> None:
    results = [Resize(size=20, interpolation=interpolation)(picture()) for interpolation in MODES]
    assert all(not torch.equal(a, b) for i, a in enumerate(results) for b in results[:i])


def test_random_resized_crop_is_torchvisions() -> None:
    ours = RandomResizedCrop(size=24, scale=(0.3, 0.6), ratio=(0.9, 1.2))
    theirs = v2.RandomResizedCrop(24, (0.3, 0.6), (0.9, 1.2), antialias=True)
    seed_cpu(1)
    got = ours(picture())
    seed_cpu(1)
    assert torch.equal(got, theirs(picture()))


@pytest.mark.parametrize("shape", [(45, 60), (60, 45), (33, 33)])
def test_resize_by_the_short_side_and_to_an_exact_size(shape: tuple[int, int]) -> None:
    image = picture(*shape)
    for size in (20, (20, 31)):
        transform = Resize(size=size)
        assert transform(image).shape[1:] == transform.output_size(shape)
        theirs = v2.Resize([size] if isinstance(size, int) else size, antialias=True)
        assert torch.equal(transform(image), theirs(image))
    assert Resize(size=20).output_size(None) is None
    assert Resize(size=(20, 31)).output_size(None) == (20, 31)


def test_center_crop_cuts_and_pads() -> None:
    assert torch.equal(CenterCrop(size=(5, 4))(picture(9, 10)), picture(9, 10)[:, 2:7, 3:7])
    padded = CenterCrop(size=8)(picture(4, 4))
    assert torch.equal(padded[:, 2:6, 2:6], picture(4, 4))
    assert int(padded[:, :2].max()) == 0


def test_flip_happens_as_often_as_asked() -> None:
    image = picture()
    seed_cpu(0)
    flipped = sum(torch.equal(RandomHorizontalFlip(p=0.3)(image), image.flip(-1)) for _ in range(600))
    assert 140 < flipped < 220
    assert torch.equal(RandomHorizontalFlip(p=0)(image), image)
    assert torch.equal(RandomHorizontalFlip(p=1)(image), image.flip(-1))


def test_color_jitter_is_torchvisions() -> None:
    seed_cpu(2)
    got = ColorJitter(brightness=0.4, contrast=(0.2, 0.9), saturation=0.4)(picture())
    seed_cpu(2)
    assert torch.equal(got, v2.ColorJitter(0.4, (0.2, 0.9), 0.4, 0)(picture()))
    with pytest.raises(UserError, match=facts("hue", "strengths", ".4")):
        ColorJitter(hue=0.7)


def test_to_tensor_and_normalize_are_torchvisions() -> None:
    image = picture()
    unit = ToTensor()(image)
    assert torch.equal(unit, to_tensor(F.to_pil_image(image)))
    assert torch.equal(unit, ToTensor()(F.to_pil_image(image)))
    normalized = Normalize(mean=MEAN, std=STD)(unit)
    torch.testing.assert_close(normalized, F.normalize(unit, list(MEAN), list(STD)), rtol=0, atol=1e-6)
    torch.testing.assert_close(Denormalize(mean=MEAN, std=STD)(normalized), unit, rtol=0, atol=1e-6)


def test_custom_to_tensor_keeps_the_levels() -> None:
    assert torch.equal(LevelsToTensor()(F.to_pil_image(picture())), picture().float())
    assert torch.equal(LevelsToTensor(norm_image=True)(picture()), ToTensor()(picture()))


@pytest.mark.parametrize("std", [(0.2, 0.0, 0.2), (0.2, -1.0, 0.2)])
@pytest.mark.parametrize(("part", "name"), [(Normalize, "normalize"), (Denormalize, "normalize_inverse")])
def test_a_deviation_of_zero_is_refused(part: Any, name: str, std: tuple[float, float, float]) -> None:
    with pytest.raises(UserError, match=facts("std", "numbers", "0")):
        part(mean=MEAN, std=std)


def test_wrong_orders_are_explained() -> None:
    with pytest.raises(UserError, match=facts("normalize", "torch.uint8", "to_tensor")):
        Normalize(mean=MEAN, std=STD)(picture())
    with pytest.raises(UserError, match=facts("normalize_inverse", "PIL", "image")):
        Denormalize(mean=MEAN, std=STD)(F.to_pil_image(picture()))
    with pytest.raises(UserError, match=facts("to_tensor", "twice")):
        split([ToTensor(), ToTensor()])
    with pytest.raises(UserError, match="before to_tensor"):
        RandAugment(n=1, m=7)(ToTensor()(picture()))


def test_torchvisions_transforms_are_found_by_name() -> None:
    part = TRANSFORMS.get("v2.TrivialAugmentWide")
    assert part is v2.TrivialAugmentWide
    from_tensor, from_pillow = both_kinds(part(), picture())
    assert from_tensor.shape == from_pillow.shape == (3, 45, 60)
    assert "v2.RandomGrayscale" in TRANSFORMS.other_names()


@pytest.mark.parametrize("name", ["v2.MixUp", "v2.Lambda", "v2.functional", "v2.Compose", "TrivialAugmentWide"])
def test_what_cannot_be_a_transform_of_one_image_is_unknown(name: str) -> None:
    with pytest.raises(UnknownName, match="expected a transform"):
        TRANSFORMS.get(name)


def test_near_names_reach_torchvision() -> None:
    with pytest.raises(UnknownName, match=facts("'v2.TrivialAugmentWide'")):
        TRANSFORMS.get("v2.TrivialAugment")


@pytest.mark.parametrize(
    ("transforms", "size", "expected"),
    [
        ([RandomResizedCrop(size=160), RandomHorizontalFlip(), ToTensor()], None, (160, 160)),
        ([Resize(size=256), CenterCrop(size=224)], None, (224, 224)),
        ([Resize(size=256)], None, None),
        ([Resize(size=256)], (100, 150), (256, 384)),
        ([CenterCrop(size=224), v2.RandomRotation(10)], None, (224, 224)),
        ([CenterCrop(size=224), v2.RandomRotation(10, expand=True)], None, None),
        ([CenterCrop(size=224), v2.Pad(2)], None, None),
        ([v2.RandomCrop((64, 48)), v2.RandomInvert()], None, (64, 48)),
        ([v2.Resize(64)], (100, 150), None),
        ([CenterCrop(size=224), lambda image: image], None, None),
        ([], (3, 4), (3, 4)),
    ],
)
def test_output_size_of_lists(transforms: list[Any], size: Any, expected: Any) -> None:
    assert output_size_of(transforms, size) == expected


def test_export_of_the_inverse_is_a_normalisation() -> None:
    step = Denormalize(mean=MEAN, std=STD).export_op()
    values = torch.randn(3, 4, 4)
    torch.testing.assert_close(
        Normalize(mean=tuple(step["mean"]), std=tuple(step["std"]))(values), Denormalize(mean=MEAN, std=STD)(values)
    )
