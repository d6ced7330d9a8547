"""The tail on the device gives what the transforms give image by image, whatever the batch."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from up.data.records import Batch
from up.data.transforms.erasing import RandomErasing
from up.data.transforms.stages import DeviceStage, DeviceTail, Stages, split
from up.data.transforms.table import CenterCrop, LevelsToTensor, Normalize, Resize, ToTensor
from up.errors import UserError

NORMALIZE = Normalize(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
LEVELS_NORMALIZE = Normalize(mean=(123.675, 116.28, 103.53), std=(58.395, 57.12, 57.375))
ALL_LEVELS = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(2, 3, 16, 16).contiguous()


def batch_of(images: torch.Tensor, first_seed: int = 100) -> Batch:
    return Batch(image=images, seed=torch.arange(first_seed, first_seed + len(images)), filename=["x"] * len(images))


def tail_of(transforms: list[Any]) -> DeviceTail:
    tail = split(transforms).device
    assert tail is not None
    return tail


def test_split_takes_the_end_off() -> None:
    resize, crop, erasing = Resize(size=256), CenterCrop(size=224), RandomErasing()
    stages = split([resize, crop, ToTensor(), NORMALIZE])
    on_cpu, tail = stages.worker, stages.device
    assert on_cpu == [resize, crop]
    assert tail is not None
    assert tail.erasing is None
    stages = split([crop, ToTensor(), NORMALIZE, erasing])
    on_cpu, tail = stages.worker, stages.device
    assert on_cpu == [crop]
    assert tail is not None
    assert tail.erasing is erasing


@pytest.mark.parametrize(
    "transforms",
    [
        [],
        [CenterCrop(size=4)],
        [ToTensor()],
        [NORMALIZE],
        [RandomErasing()],
        [ToTensor(), RandomErasing()],
        [ToTensor(), NORMALIZE, RandomErasing(), RandomErasing()],
        [ToTensor(), RandomErasing(), NORMALIZE],
        [ToTensor(), NORMALIZE, CenterCrop(size=4)],
    ],
)
def test_lists_that_end_otherwise_stay_whole(transforms: list[Any]) -> None:
    assert split(transforms) == Stages(transforms)


@pytest.mark.parametrize(("to_tensor", "normalize"), [(ToTensor(), NORMALIZE), (LevelsToTensor(), LEVELS_NORMALIZE)])
def test_every_level_as_image_by_image(to_tensor: ToTensor, normalize: Normalize) -> None:
    tail = tail_of([to_tensor, normalize])
    got = tail(batch_of(ALL_LEVELS)).image
    assert got.dtype == torch.float32
    expected = torch.stack([normalize(to_tensor(image)) for image in ALL_LEVELS])
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-6)
    assert tail.mean == pytest.approx((0.485, 0.456, 0.406))
    assert tail.std == pytest.approx((0.229, 0.224, 0.225))


def test_memory_format_stays_and_the_input_is_not_changed() -> None:
    images = ALL_LEVELS.clone().contiguous(memory_format=torch.channels_last)
    batch = batch_of(images)
    made = tail_of([ToTensor(), NORMALIZE, RandomErasing(probability=1)])(batch)
    assert made.image.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(batch.image, ALL_LEVELS)
    assert made.filename == ["x", "x"]


def test_float_batches_pass_untouched() -> None:
    batch = batch_of(torch.rand(2, 3, 4, 4))
    assert tail_of([ToTensor(), NORMALIZE, RandomErasing(probability=1)])(batch) is batch


@pytest.mark.parametrize("mode", ["pixel", "rand", "const"])
def test_erasing_depends_on_the_seed_of_the_image_alone(mode: Any) -> None:
    tail = tail_of([ToTensor(), NORMALIZE, RandomErasing(probability=0.7, mode=mode, max_count=2)])
    images = torch.randint(0, 256, (12, 3, 20, 24), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    whole = tail(batch_of(images)).image
    torch.manual_seed(99)  # the global generator must not matter
    alone = torch.cat([tail(batch_of(images[i : i + 1], first_seed=100 + i)).image for i in range(12)])
    assert torch.equal(whole, alone)
    channels_last = tail(batch_of(images.contiguous(memory_format=torch.channels_last))).image
    assert torch.equal(whole, channels_last)
    plain = tail_of([ToTensor(), NORMALIZE])(batch_of(images)).image
    erased = (whole != plain).flatten(1).any(1)
    assert 5 <= int(erased.sum()) <= 11
    other_seeds = tail(batch_of(images, first_seed=200)).image
    assert not torch.equal(whole, other_seeds)


def test_it_adds_nothing_to_a_checkpoint() -> None:
    tail = tail_of([ToTensor(), NORMALIZE])
    assert not tail.state_dict()
    assert sorted(name for name, _ in tail.named_buffers()) == ["scale", "shift"]


@pytest.mark.parametrize(
    ("transforms", "message"),
    [
        ([ToTensor(), LEVELS_NORMALIZE], r"normalize: got mean \[123.675.*after to_tensor: divide both by 255"),
        ([LevelsToTensor(), NORMALIZE], r"normalize: got mean \[0.485.*after custom_to_tensor: multiply by 255"),
    ],
)
def test_units_that_cannot_be_meant(transforms: list[Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        split([CenterCrop(size=4), *transforms])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_the_same_rectangles_are_erased() -> None:
    tail = tail_of([ToTensor(), NORMALIZE, RandomErasing(probability=0.7)])
    images = torch.randint(0, 256, (12, 3, 20, 24), dtype=torch.uint8)
    plain = tail_of([ToTensor(), NORMALIZE])(batch_of(images)).image
    cpu = tail(batch_of(images)).image
    batch = batch_of(images)
    batch.image = images.cuda()
    gpu = tail(batch).image.cpu()
    torch.testing.assert_close((gpu - plain).abs() > 1e-4, (cpu - plain).abs() > 1e-4)
    again = tail(batch).image.cpu()
    assert torch.equal(gpu, again)


def test_images_of_several_sizes_are_finished_one_by_one() -> None:
    stages = split([ToTensor(), NORMALIZE, RandomErasing(probability=1.0)])
    images = [torch.full((3, side, side + 1), 100, dtype=torch.uint8) for side in (12, 16)]
    stage = DeviceStage(stages.device, torch.device("cpu"), channels_last=False)
    batch = stage(Batch(image=images, seed=torch.tensor([3, 4]), index=torch.arange(2), filename=["a", "b"]))
    alone = stage(Batch(image=images[1][None], seed=torch.tensor([4]), index=torch.arange(1), filename=["b"]))
    assert [tuple(image.shape) for image in batch.image] == [(3, 12, 13), (3, 16, 17)]
    assert torch.equal(batch.image[1], alone.image[0])
