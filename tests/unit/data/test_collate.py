from __future__ import annotations

import pickle
from typing import Any

import pytest
import torch
from torchvision import tv_tensors

from tests.harness.facts import tells
from up.data.collate import Inline, collate, packed, padded, to_device, unpacked, without_bad
from up.data.records import Batch, Sample, entry, image_count
from up.errors import UserError


def sample(index: int, gt: Any = 0, size: tuple[int, int] = (4, 5), **more: Any) -> Sample:
    image = torch.full((3, *size), index, dtype=torch.uint8)
    return Sample(image=image, gt=gt, filename=f"{index}.jpg", index=index, seed=2**62 + index, bad="", **more)


def test_fields() -> None:
    batch = collate([sample(3, gt=1), sample(4, gt=0)])
    assert batch.image.shape == (2, 3, 4, 5)
    assert batch.image.dtype == torch.uint8
    assert batch.image[:, 0, 0, 0].tolist() == [3, 4]
    assert batch.gt.tolist() == [1, 0]
    assert batch.gt.dtype == batch.index.dtype == batch.seed.dtype == torch.int64
    assert (batch.index.tolist(), batch.seed.tolist()) == ([3, 4], [2**62 + 3, 2**62 + 4])
    assert (batch.filename, batch.bad, image_count(batch)) == (["3.jpg", "4.jpg"], ["", ""], 2)


def test_labels_of_several_heads_and_soft_labels() -> None:
    assert collate([sample(0, gt=[1, 2, 3]), sample(1, gt=[4, 5, 6])]).gt.tolist() == [[1, 2, 3], [4, 5, 6]]
    soft = collate([sample(0, gt=torch.tensor([0.25, 0.75]), dominant=1), sample(1, gt=torch.tensor([1.0, 0]), dominant=0)])
    assert (soft.gt.dtype, soft.gt.tolist()) == (torch.float32, [[0.25, 0.75], [1.0, 0.0]])
    assert (soft.dominant.dtype, soft.dominant.tolist()) == (torch.int64, [1, 0])


def test_no_labels_and_fields_of_other_tasks() -> None:
    samples = [sample(0, boxes="a"), sample(1, boxes="b")]
    for each in samples:
        del each["gt"]
    batch = collate(samples)
    assert "gt" not in batch
    assert batch.boxes == ["a", "b"]


def test_sizes_that_differ_are_named() -> None:
    with pytest.raises(UserError) as raised:
        collate([sample(0), sample(1), sample(2, size=(6, 7))])
    assert tells(str(raised.value), "0.jpg", "5", "4", "3", "uint8", "torch_resize", "torch_center_crop")


def test_replaced_images_are_left_out() -> None:
    samples = [sample(index, gt=index) for index in range(4)]
    samples[1].bad = samples[3].bad = "m:2: x: empty file (0 bytes)"
    batch = collate(samples)
    kept = without_bad(batch)
    assert (kept.gt.tolist(), kept.filename, kept.image.shape[0]) == ([0, 2], ["0.jpg", "2.jpg"], 2)
    assert without_bad(kept) is kept
    none = without_bad(collate([samples[1]]))
    assert (image_count(none), none.image.shape) == (0, (0, 3, 4, 5))


def test_tensors_keep_their_dtype_and_those_of_several_shapes_stay_a_list() -> None:
    masks = [tv_tensors.Mask(torch.full((4, 5), index, dtype=torch.uint8)) for index in range(2)]
    boxes = [tv_tensors.BoundingBoxes(torch.ones(2, 4), format="XYXY", canvas_size=(4, 5)) for _ in range(2)]
    targets = [torch.zeros(2, dtype=torch.float64), torch.ones(2, dtype=torch.float64)]
    uneven, flags = [torch.zeros(2), torch.zeros(3)], [True, False]
    fields = zip(masks, boxes, targets, uneven, flags, strict=True)
    batch = collate([sample(0, gt=gt, mask=m, boxes=b, uneven=u, flag=f) for m, b, gt, u, f in fields])
    assert (type(batch.mask), batch.mask.dtype, batch.mask.shape) == (torch.Tensor, torch.uint8, (2, 4, 5))
    assert batch.gt.dtype == torch.float64
    assert batch.flag.dtype == torch.bool
    assert batch.boxes == boxes  # also where two images have as many
    assert isinstance(batch.uneven, list)


def test_fields_that_always_stay_a_list() -> None:
    """Labels of two boxes each are a list, as those of one and three are."""
    samples = [sample(index, labels=torch.tensor([index, 1])) for index in range(2)]
    assert collate(samples).labels.tolist() == [[0, 1], [1, 1]]
    assert [each.tolist() for each in collate(samples, lists=["labels"]).labels] == [[0, 1], [1, 1]]


def test_images_are_padded_at_the_right_and_at_the_bottom() -> None:
    small, large = torch.ones(3, 2, 3), torch.full((3, 4, 5), 2.0)
    both = padded([small, large], (4, 6))
    assert both.shape == (2, 3, 4, 6)
    assert torch.equal(both[0, :, :2, :3], small)
    assert torch.equal(both[1, :, :, :5], large)
    assert both.sum() == small.sum() + large.sum()
    assert torch.equal(padded(small[None], (4, 6)), both[:1])
    with pytest.raises(UserError) as raised:
        padded([small, large], (4, 4))
    assert tells(str(raised.value), "5 x 4", "4 x 4", "size")


def test_images_of_several_sizes_and_fields_of_some_samples() -> None:
    batch = collate([sample(0), sample(1, size=(6, 7))], one_size=False)
    assert [image.shape for image in batch.image] == [(3, 4, 5), (3, 6, 7)]
    with pytest.raises(UserError, match="boxes"):
        collate([sample(0), sample(1, boxes=1)])


def test_entries_of_a_task_are_typed() -> None:
    batch = collate([sample(0, mask=torch.zeros(2)), sample(1, mask=torch.ones(2))])
    assert entry(batch, "mask", torch.Tensor).shape == (2, 2)
    assert entry(batch, "filename", list) == ["0.jpg", "1.jpg"]
    for name, kind in (("masks", torch.Tensor), ("mask", list)):
        with pytest.raises(UserError, match=f"'{name}'.*{kind.__name__}"):
            entry(batch, name, kind)


@pytest.mark.parametrize("channels_last", [False, True])
def test_all_tensors_move(channels_last: bool) -> None:
    """On `meta`, which every machine has."""
    boxes = tv_tensors.BoundingBoxes(torch.ones(2, 4), format="XYXY", canvas_size=(4, 5))
    samples = [sample(index, boxes=boxes, nested={"a": [torch.zeros(1)], "b": ("x", torch.zeros(2))}) for index in range(2)]
    moved = to_device(collate(samples), torch.device("meta"), channels_last=channels_last)
    assert {moved.gt.device.type, moved.boxes[1].device.type, moved.nested[0]["a"][0].device.type} == {"meta"}
    assert moved.nested[0]["b"][1].device.type == "meta"
    assert isinstance(moved.boxes[0], tv_tensors.BoundingBoxes)
    assert {moved.seed.device.type, moved.index.device.type} == {"cpu"}
    assert moved.image.is_contiguous(memory_format=torch.channels_last) == channels_last
    assert moved.filename == ["0.jpg", "1.jpg"]


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("size", [(1, 1), (3, 5), (4, 4), (9, 32), (31, 17)])
def test_channels_last_images_become_contiguous_batches(size: tuple[int, int], channels: int) -> None:
    images = [torch.randint(0, 256, (*size, channels), dtype=torch.uint8).permute(2, 0, 1) for _ in range(3)]
    batch = collate([Sample(image=image, filename="") for image in images])
    assert batch.image.is_contiguous()
    assert torch.equal(batch.image, torch.stack(images))


def test_small_tensors_travel_within_the_message() -> None:
    boxes = tv_tensors.BoundingBoxes(torch.ones(2, 4), format="XYXY", canvas_size=(4, 5))
    images = [torch.full((3, 128, 128), row, dtype=torch.uint8) for row in range(2)]
    nested = {"a": [torch.zeros(1), "x"], "b": (torch.zeros((), dtype=torch.bfloat16), torch.tensor(3))}
    batch = collate([Sample(image=image, gt=1, filename="", boxes=boxes, nested=nested, seed=2**62) for image in images])
    sent = packed(batch)
    assert sent.image is batch.image
    assert isinstance(sent.gt, Inline)
    back = unpacked(pickle.loads(pickle.dumps(sent)))
    assert (type(back), back.keys()) == (Batch, batch.keys())
    assert torch.equal(back.image, batch.image)
    assert (back.gt.tolist(), back.seed.tolist(), back.seed.dtype) == ([1, 1], [2**62, 2**62], torch.int64)
    assert isinstance(back.boxes[0], tv_tensors.BoundingBoxes)
    assert back.nested[1]["a"][0].tolist() == [0.0]
    assert (back.nested[0]["b"][0].dtype, int(back.nested[0]["b"][1])) == (torch.bfloat16, 3)
    back.gt.add_(1)  # writable
