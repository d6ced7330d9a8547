"""Several augmented views of an image in one batch, for losses that compare them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated

import torch
from PIL.Image import Image as PILImage
from pydantic import Field
from torchvision.transforms.v2.functional import pil_to_tensor

from up.config.argument import PartOf
from up.data.records import Sample
from up.data.transforms.erasing import RandomErasing
from up.data.transforms.image import Image, SampleTransform, Scheduled, Size, applied
from up.data.transforms.table import Normalize, ToTensor
from up.errors import UserError
from up.seed import key
from up.text import some_of

Transform = Callable[..., object]
_VIEW = int.from_bytes(b"view", "big")


class Views(SampleTransform):
    """``number`` views of each image: the clean one first, then others that ``transformer`` augments, as in AugMix.

    All views have the crop of the transforms before; only to_tensor, normalize and torch_randerase may follow. The batch has
    a row for each view, those of an image one after the other: ``number`` times ``batch_size`` rows. The loss ``jsd`` compares
    them (Hendrycks et al. 2020, arXiv 1912.02781).
    """

    def __init__(
        self,
        *,
        transformer: Annotated[Sequence[Transform], PartOf("transform"), Field(min_length=1)],
        number: Annotated[int, Field(ge=2)] = 3,
    ) -> None:
        self.transformer = list(transformer)
        self.number = number
        own = [each for each in self.transformer if isinstance(each, SampleTransform | Scheduled)]
        if own:
            raise UserError(
                f"{type(own[0]).__name__.lower()} changes whole samples, expected transforms of images", key="transformer"
            )

    def __call__(self, sample: Sample, draw_second: Callable[[], Sample]) -> Sample:
        views = [_tensor(sample.image), *(self._augmented(sample) for _ in range(self.number - 1))]
        if any(view.shape != views[0].shape for view in views):
            raise UserError(
                "augmented views have another size than the image. Leave out transforms that change it", key="transformer"
            )
        return Sample(sample, image=views[0], views=torch.stack(views))

    def _augmented(self, sample: Sample) -> torch.Tensor:
        image: Image = sample.image
        for transform in self.transformer:
            image, _ = applied(transform, image, {}, sample.filename)
        return _tensor(image)

    def output_size(self, size: Size | None) -> Size | None:
        """Return the (height, width) of the views, that of the image."""
        return size


def expect_last(transforms: Sequence[object]) -> None:
    """Raise ``UserError`` for transforms after ``views`` that would change the clean view alone."""
    at = next((at for at, transform in enumerate(transforms) if isinstance(transform, Views)), None)
    if at is None:
        return
    following = transforms[at + 1 :]
    kinds = (ToTensor, Normalize, RandomErasing)
    if len(following) < 2 or len(following) > 3 or not all(map(isinstance, following, kinds)):
        got = some_of(type(transform).__name__ for transform in following) or "nothing"
        raise UserError(
            f"views is followed by {got}. Expected to_tensor, normalize and maybe torch_randerase: others change one view."
        )


def spread(samples: Sequence[Sample]) -> Sequence[Sample]:
    """List every view as a sample, each with its own seed for erasing."""
    if "views" not in samples[0]:
        return samples
    spread = []
    for sample in samples:
        rest = {name: value for name, value in sample.items() if name != "views"}
        for number, view in enumerate(sample.views):
            seed = sample.seed if number == 0 else key(sample.seed, _VIEW, number) >> 1
            bad = sample.get("bad") if number == 0 else None  # an image that was replaced is counted once
            spread.append(Sample(rest, image=view, seed=seed, bad=bad))
    return spread


def _tensor(image: Image) -> torch.Tensor:
    return pil_to_tensor(image) if isinstance(image, PILImage) else image
