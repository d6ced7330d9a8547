"""Views: the pixels and the draws of the transforms they stand for, whatever reads the image."""

from __future__ import annotations

import io
import itertools
import pickle
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.nn.functional import interpolate
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2.functional import pil_to_tensor

from tests.harness.jpegs import encoded, leave_to_pillow, photo
from up.data.geometry import Box
from up.data.readers import AutoReader, PillowReader, TurboReader
from up.data.records import Image as AnyImage
from up.data.records import Sample, SampleKey
from up.data.transforms import view as views
from up.data.transforms.image import MODES, applied
from up.data.transforms.stages import split
from up.data.transforms.table import CenterCrop, RandomHorizontalFlip, RandomResizedCrop, Resize
from up.data.transforms.view import Library, OneView, View, first_view, resizer
from up.tasks.cls.data.datasets import ClsDataset

is_compiled = resizer("pillow") is not None and resizer("torch") is not None
resizing = pytest.mark.skipif(not is_compiled, reason="the extension was not compiled: no compiler")
SIZES = [(1, 1), (5, 90), (90, 5), (40, 40), (64, 48), (48, 64), (33, 71), (224, 100)]


def noise(height: int, width: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8))


def by_library(image: Image.Image, size: tuple[int, int], interpolation: Any, library: Library) -> Any:
    if library == "pillow":
        return np.asarray(image.resize(size[::-1], getattr(Image.Resampling, interpolation.upper())))
    planes = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]
    return interpolate(planes, size, mode=interpolation, antialias=True)[0].permute(1, 2, 0).numpy()


@resizing
@pytest.mark.parametrize("library", ["pillow", "torch"])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@settings(max_examples=60, deadline=None)
@given(
    size=st.tuples(st.integers(1, 90), st.integers(1, 90)),
    target=st.tuples(st.integers(1, 90), st.integers(1, 90)),
    keeps=st.tuples(st.booleans(), st.booleans()),
    window=st.tuples(*[st.floats(0, 1, exclude_max=True)] * 4),
    is_mirrored=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_resized_pixels_are_those_of_the_library(
    library: Library,
    interpolation: Any,
    size: tuple[int, int],
    target: tuple[int, int],
    keeps: tuple[bool, bool],
    window: tuple[float, ...],
    is_mirrored: bool,
    seed: int,
) -> None:
    """Whole images and windows of them, from no more than the pixels that are needed; one side or both may keep their size."""
    high, wide = (own if kept else other for own, other, kept in zip(size, target, keeps, strict=True))
    image = noise(*size, seed)
    expected = by_library(image, (high, wide), interpolation, library)
    view = View.whole(Box(0, 0, *size), (high, wide), interpolation)
    assert np.array_equal(view.resized(np.asarray(image), view.box, library), expected)
    top, left = int(window[0] * high), int(window[1] * wide)
    rows, columns = 1 + int(window[2] * (high - top)), 1 + int(window[3] * (wide - left))
    part = view._replace(window=Box(top, left, rows, columns), is_mirrored=is_mirrored)
    box = part.needed
    pixels = np.asarray(image)[box.top : box.top + box.height, box.left : box.left + box.width]
    cut = expected[top : top + rows, left : left + columns]
    assert np.array_equal(part.resized(pixels, box, library), cut[:, ::-1] if is_mirrored else cut)


@settings(max_examples=200, deadline=None)
@given(
    size=st.tuples(st.integers(1, 400), st.integers(1, 400)),
    scale=st.tuples(st.floats(0.01, 0.5), st.floats(0.5, 1.0)),
    ratio=st.tuples(st.floats(0.1, 1.0), st.floats(1.0, 9.0)),
    seed=st.integers(0, 2**31),
)
def test_crops_are_drawn_as_torchvision_draws_them(
    size: tuple[int, int], scale: tuple[float, float], ratio: tuple[float, float], seed: int
) -> None:
    torch.manual_seed(seed)
    expected = v2.RandomResizedCrop(8, scale=scale, ratio=ratio).make_params([torch.empty((1, *size), device="meta")])
    state = torch.get_rng_state()
    torch.manual_seed(seed)
    box = RandomResizedCrop(size=8, scale=scale, ratio=ratio).view(size).box
    assert box._asdict() == expected
    assert torch.equal(torch.get_rng_state(), state)


@resizing
def test_a_part_that_is_too_small_is_an_error() -> None:
    view = View.whole(Box(0, 0, 40, 40), (20, 20), "bilinear")
    with pytest.raises(ValueError, match="cover"):
        view.resized(np.zeros((40, 39, 3), np.uint8), Box(0, 0, 40, 39), "pillow")


@pytest.mark.parametrize("form", ["pillow", "planes", "channels_last"])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "lanczos"])
@pytest.mark.parametrize("extension", [True, False])
def test_transforms_draw_and_resize_as_torchvision_does(
    form: str, interpolation: Any, extension: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not extension:
        monkeypatch.setattr(views, "resizer", lambda library: None)
    mode = MODES[interpolation]
    pairs: list[tuple[Callable[..., Any], Callable[..., Any]]] = [
        (RandomResizedCrop(size=32, interpolation=interpolation), v2.RandomResizedCrop(32, interpolation=mode, antialias=True)),
        (
            RandomResizedCrop(size=(20, 60), scale=(0.01, 0.3), ratio=(0.2, 5), interpolation=interpolation),
            v2.RandomResizedCrop((20, 60), scale=(0.01, 0.3), ratio=(0.2, 5), interpolation=mode, antialias=True),
        ),
        (Resize(size=24, interpolation=interpolation), v2.Resize(24, interpolation=mode, antialias=True)),
        (Resize(size=(17, 50), interpolation=interpolation), v2.Resize((17, 50), interpolation=mode, antialias=True)),
    ]
    if form != "pillow" and interpolation == "lanczos":
        pytest.skip("torchvision gives lanczos of tensors other pixels than Pillow, which it is here")
    for seed, (height, width) in enumerate(SIZES):
        image = noise(height, width, seed)
        tensor = torch.from_numpy(np.array(image)).permute(2, 0, 1)
        source = {"pillow": image, "planes": tensor.contiguous(), "channels_last": tensor}[form]
        for ours, theirs in pairs:
            torch.manual_seed(seed)
            expected = np.asarray(theirs(source))
            state = torch.get_rng_state()
            torch.manual_seed(seed)
            assert np.array_equal(np.asarray(ours(source)), expected), (ours, height, width)
            assert torch.equal(torch.get_rng_state(), state)


def test_masks_move_with_the_image() -> None:
    image = noise(40, 60)
    mask = tv_tensors.Mask(pil_to_tensor(image)[:1])
    for ours, theirs in ((RandomResizedCrop(size=16), v2.RandomResizedCrop(16)), (Resize(size=20), v2.Resize(20))):
        torch.manual_seed(3)
        expected, moved = theirs(image, mask)
        torch.manual_seed(3)
        found, targets = applied(ours, image, {"mask": mask}, "x.jpg")
        assert np.array_equal(np.asarray(found), np.asarray(expected))
        assert torch.equal(targets["mask"], moved)


class TestFirstView:
    def test_the_first_transforms_become_one_view(self) -> None:
        flip, crop = RandomHorizontalFlip(), RandomResizedCrop(size=8)
        draw, rest = first_view([crop, flip])
        assert draw is not None
        assert rest == []
        always = RandomHorizontalFlip(p=1.0)
        draw, rest = first_view([Resize(size=32), CenterCrop(size=24), always, flip])
        assert draw is not None
        assert draw((64, 128)) == View(Box(0, 0, 64, 128), (32, 64), Box(4, 20, 24, 24), "bilinear", is_mirrored=True)
        assert rest == [flip]

    def test_a_view_that_was_found_can_be_sent_to_workers(self) -> None:
        stages = split([RandomResizedCrop(size=8), RandomHorizontalFlip()])
        draw, _ = stages.first_view
        assert draw is not None
        sent, _ = pickle.loads(pickle.dumps(stages)).first_view
        drawn = []
        for each in (draw, sent):
            torch.manual_seed(3)
            drawn.append(each((40, 50)))
        assert drawn[0] == drawn[1]

    @pytest.mark.parametrize("transforms", [[], [RandomHorizontalFlip()], [RandomResizedCrop(size=8, interpolation="lanczos")]])
    def test_other_transforms_take_whole_images(self, transforms: Sequence[Any]) -> None:
        assert first_view(transforms) == (None, transforms)

    def test_a_transform_that_changes_its_base_is_no_view(self) -> None:
        class Darker(RandomResizedCrop):
            def __call__(self, image: AnyImage) -> AnyImage:
                return super().__call__(image)

        assert first_view([Darker(size=8)])[0] is None


def smooth(height: int, width: int, seed: int = 0) -> Image.Image:
    return noise(3, 3, seed).resize((width, height), Image.Resampling.BICUBIC)


def write(folder: Path, picture: Callable[[int, int, int], Image.Image] = noise) -> str:
    """A list of JPEG files of several kinds, one of them cut off, and a PNG."""
    for seed, (height, width) in enumerate([(97, 130), (130, 97), (64, 64), (150, 40)]):
        exif = Image.Exif()
        exif[0x0112] = (1, 6, 3, 1)[seed]
        picture(height, width, seed).save(folder / f"{seed}.jpg", exif=exif, quality=80, progressive=seed == 2)
    noise(80, 90, 9).save(folder / "p.png")
    file = io.BytesIO()
    noise(120, 110, 7).save(file, "JPEG")
    (folder / "bad.jpg").write_bytes(file.getvalue()[:-100])
    names = ["0.jpg", "1.jpg", "2.jpg", "3.jpg", "p.png", "bad.jpg"]
    (folder / "meta.txt").write_text("".join(f"{name} {label}\n" for label, name in enumerate(names)))
    return str(folder / "meta.txt")


def samples(meta: str, reader: PillowReader, transforms: Sequence[Any], *, train: bool = True) -> list[Sample]:
    dataset = ClsDataset(
        meta_file=meta, image_reader=reader, transformer=transforms, on_bad_image="skip", max_bad=6, seed=5, train=train
    )
    return [dataset[SampleKey(epoch, index)] for epoch in range(3) for index in range(len(dataset))]


PIPELINES: dict[str, list[Any]] = {
    "crop": [RandomResizedCrop(size=32), RandomHorizontalFlip()],
    "bicubic": [RandomResizedCrop(size=(24, 40), interpolation="bicubic"), RandomHorizontalFlip()],
    "centre": [Resize(size=40), CenterCrop(size=32)],
    "padded": [Resize(size=20), CenterCrop(size=32)],
    "resize": [Resize(size=(32, 32)), RandomHorizontalFlip()],
}


@pytest.mark.parametrize("pipeline", PIPELINES)
@pytest.mark.parametrize("reader", [PillowReader, AutoReader, TurboReader])
@pytest.mark.parametrize("options", [{}, {"color_mode": "BGR"}, {"color_mode": "GRAY"}, {"background": "white"}])
def test_samples_do_not_depend_on_what_reads_them(
    pipeline: str, reader: type[PillowReader], options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Views, parts and extensions against whole images through Pillow, transform by transform."""
    meta, transforms = write(tmp_path), PIPELINES[pipeline]
    found = samples(meta, reader(image_dir=str(tmp_path), **options), transforms)
    leave_to_pillow(monkeypatch)
    monkeypatch.setattr(views, "resizer", lambda library: None)
    monkeypatch.setattr("up.data.transforms.stages.first_view", lambda transforms: (None, transforms))
    expected = samples(meta, reader(image_dir=str(tmp_path), **options), transforms)
    assert [sample.filename for sample in found] == [sample.filename for sample in expected]
    assert sum(sample.bad is not None for sample in found) >= 3
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.equal(ours.image, theirs.image), ours.filename


@pytest.mark.parametrize("reader", [PillowReader, AutoReader])
def test_fast_decode_is_of_training_alone_and_the_same_everywhere(
    reader: type[PillowReader], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    meta = write(tmp_path, smooth)
    (tmp_path / "meta.txt").write_text("0.jpg 0\n1.jpg 1\n2.jpg 2\n")
    transforms = [RandomResizedCrop(size=12, scale=(0.5, 1)), RandomHorizontalFlip()]

    def images(*, fast: bool, train: bool = True) -> torch.Tensor:
        listed = samples(meta, reader(image_dir=str(tmp_path), fast_decode=fast), transforms, train=train)
        return torch.stack([sample.image for sample in listed]).int()

    scaled, exact = images(fast=True), images(fast=False)
    differences = [(scaled - other).abs().float().mean(dim=(1, 2, 3)) for other in (exact, exact.roll(1, -1))]
    assert 0 < differences[0].max() < 8, "the same part of the image"
    assert differences[1].mean() > 15, "a twelfth of it further to the left"
    assert torch.equal(images(fast=True, train=False), images(fast=False, train=False))
    leave_to_pillow(monkeypatch)
    assert torch.equal(images(fast=True), scaled)


def test_fast_decode_of_a_file_whose_orientation_is_no_orientation(monkeypatch: pytest.MonkeyPatch) -> None:
    """Such an image is upright, with the extension and without."""

    def read() -> np.ndarray:
        view = OneView(lambda size: View.whole(Box(0, 0, *size), (16, 24), "bilinear"), may_scale=True)
        return np.asarray(PillowReader(fast_decode=True).read_view(encoded(photo(64, 96), 9), None, view))

    expected = read()
    leave_to_pillow(monkeypatch)
    assert np.array_equal(read(), expected)


def test_classes_that_change_reading_are_not_passed_by(tmp_path: Path) -> None:
    class Black(PillowReader):
        def __call__(self, source: str | bytes, name: str | None = None) -> AnyImage:
            return Image.new("RGB", (40, 40))

    class White(ClsDataset):
        def read(self, index: int) -> Sample:
            return Sample(image=Image.new("RGB", (40, 40), "white"), gt=0, filename=str(index))

    meta, options = write(tmp_path), {"transformer": PIPELINES["crop"]}
    dark = ClsDataset(meta_file=meta, image_reader=Black(image_dir=str(tmp_path)), **options)
    bright = White(meta_file=meta, image_reader=PillowReader(image_dir=str(tmp_path)), **options)
    for dataset, level in ((dark, 0), (bright, 255), (bright.subset(np.array([1, 2])), 255)):
        assert dataset[SampleKey(0, 1)].image.unique().tolist() == [level]


@settings(max_examples=200, deadline=None)
@given(
    scale=st.sampled_from([1, 2, 4]),
    place=st.tuples(st.integers(0, 30), st.integers(0, 30)),
    sides=st.tuples(st.integers(0, 30), st.integers(0, 30)),
)
def test_the_box_of_a_scaled_view_is_at_the_nearest_pixels(scale: int, place: tuple[int, int], sides: tuple[int, int]) -> None:
    (top, left), (height, width) = place, (scale * 5 + sides[0], scale * 5 + sides[1])
    box = View.whole(Box(top, left, height, width), (5, 5), "bilinear").scaled(scale).box
    edges = (box.top, top), (box.left, left), (box.top + box.height, top + height), (box.left + box.width, left + width)
    assert all(abs(scale * found - edge) <= scale / 2 for found, edge in edges)
    assert box.top + box.height <= -(-(top + height) // scale)
    assert min(box.height, box.width) >= 5


def test_a_view_is_drawn_once() -> None:
    crop = RandomResizedCrop(size=8)
    view = OneView(crop.view)
    assert view.at((40, 50)) is view.at((40, 50))


@resizing
@pytest.mark.parametrize("color_mode", ["RGB", "BGR", "GRAY"])
@pytest.mark.parametrize("reader", [PillowReader, AutoReader])
def test_a_view_that_no_transform_follows_is_a_tensor_at_once(reader: type[PillowReader], color_mode: Any, tmp_path: Path) -> None:
    write(tmp_path)
    for name, mirrored in itertools.product(("1.jpg", "p.png"), (False, True)):
        view = View(Box(3, 5, 40, 31), (20, 16), Box(1, 2, 15, 9), "bilinear", mirrored)
        read = reader(color_mode=color_mode).read_view
        found, expected = (
            read(str(tmp_path / name), None, OneView(lambda size, view=view: view, as_tensor=each)) for each in (True, False)
        )
        assert isinstance(expected, Image.Image) is (reader is PillowReader and color_mode != "GRAY")
        assert isinstance(found, torch.Tensor)
        assert torch.equal(found, expected if isinstance(expected, torch.Tensor) else pil_to_tensor(expected))
