"""Schedules of augmentation policies as Population Based Augmentation finds them (Ho et al. 2019, arXiv 1905.05393).

A policy is a list of ``[operation, probability 0..10, magnitude 0..9]``, each of the 15 operations at most twice; a schedule is a
list of policies with the share of the training at which each begins.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Annotated, Literal, TypeAlias, get_args

from PIL.Image import Image as PILImage
from pydantic import ConfigDict, Field, with_config
from timm.data.auto_augment import AugmentOp
from typing_extensions import TypedDict

from up.config.argument import Fraction, FromProgram
from up.config.checked import checked
from up.data.transforms.image import MEAN_COLOUR, Image, Scheduled, Transform
from up.data.transforms.occlusion import Cutout
from up.data.transforms.pixels import by_timm, faster
from up.errors import UserError

Operation = Literal[
    "ShearX",
    "ShearY",
    "TranslateX",
    "TranslateY",
    "Rotate",
    "AutoContrast",
    "Invert",
    "Equalize",
    "Solarize",
    "Posterize",
    "Contrast",
    "Color",
    "Brightness",
    "Sharpness",
    "Cutout",
]
OPERATIONS: tuple[Operation, ...] = get_args(Operation)
COPIES = 2
"""Times that a policy has each operation, with a probability and a magnitude of its own."""
MAX_PROBABILITY, MAX_MAGNITUDE = 10, 9
Rule: TypeAlias = tuple[Operation, Annotated[int, Field(ge=0, le=MAX_PROBABILITY)], Annotated[int, Field(ge=0, le=MAX_MAGNITUDE)]]
Policy: TypeAlias = Sequence[Rule]

_COUNTS, _COUNT_WEIGHTS = (0, 1, 2), (0.2, 0.3, 0.5)  # operations an image (algorithm 1)
_SIDE = 32  # of the images of the paper, whose pixels become shares of the side
_IN_TIMM = {
    "TranslateX": "TranslateXRel",
    "TranslateY": "TranslateYRel",
    "Solarize": "SolarizeIncreasing",
    "Posterize": "PosterizeIncreasing",
}


@with_config(ConfigDict(extra="forbid"))
class Segment(TypedDict):
    """``policy`` from the share ``start`` of the epochs on."""

    start: Fraction
    policy: list[Rule]


class PbaPolicy(Transform):
    """Apply none, one or two operations of a policy to an image (Ho et al. 2019, algorithm 1)."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy

    def __call__(self, image: Image) -> Image:
        for operation, magnitude in drawn(self.policy):
            image = augmented(image, operation, magnitude)
        return image


class PbaSchedule(Scheduled):
    """Augment by a policy that changes over the training, as the search ``pba`` finds it (Ho et al. 2019).

    ``schedule`` is a list of ``{start, policy}``: from the share ``start`` of the epochs on, ``policy`` holds, a list of
    ``[operation, probability, magnitude]``. An image gets 0, 1 or 2 operations with the probabilities .2, .3 and .5: the policy
    is shuffled, and each operation fires with probability / 10. Magnitudes are those of the paper: at m of 9, rotate by 3m
    degrees, shear by .03m, translate by .031m of the side, enhance by .1 + .18m, solarize from 256 - 25.6m, posterize to 4 -
    ⌊.4m⌋ bits, cut out .0625m of the side. A net is trained as long as ``trainer.max_epoch`` says, so that a schedule fits a
    training of any length.
    """

    @checked
    def __init__(
        self,
        *,
        schedule: Annotated[Sequence[Segment], Field(min_length=1)],
        total_epochs: Annotated[int | None, FromProgram()] = None,
    ) -> None:
        starts = [segment["start"] for segment in schedule]
        if starts[0] != 0 or starts != sorted(set(starts)):
            raise UserError(got=starts, expected="starts that grow, the first of them 0", key="schedule")
        self.starts, self.total_epochs = starts, total_epochs
        self.policies = [PbaPolicy(segment["policy"]) for segment in schedule]

    def at(self, epoch: int, index: int = 0) -> PbaPolicy:
        """Return the policy of ``epoch``. Raises ``UserError`` for a training whose length is not given in epochs."""
        if self.total_epochs is None:
            raise UserError("pba_schedule needs the number of epochs", fix="Set trainer.max_epoch instead of max_iter.")
        begun = [start * self.total_epochs <= epoch + 1e-6 for start in self.starts]
        return self.policies[sum(begun) - 1]

    def __call__(self, image: Image) -> Image:
        """Return the image as the first epoch augments it."""
        return self.policies[0](image)


def drawn(policy: Policy) -> Iterator[tuple[Operation, int]]:
    """Draw the operations of an image with their magnitudes, from Python's global generator."""
    count = random.choices(_COUNTS, _COUNT_WEIGHTS)[0]
    for operation, probability, magnitude in random.sample(list(policy), len(policy)):
        if count == 0:
            return
        if random.random() < probability / MAX_PROBABILITY:
            count -= 1
            yield operation, magnitude


def augmented(image: Image, operation: Operation, magnitude: int) -> Image:
    """Apply an operation; the sign of shears, shifts and turns is drawn."""
    if operation == "Cutout":
        size = image.size if isinstance(image, PILImage) else image.shape[-2:]
        length = int(magnitude * 20 / 10 * min(size) / _SIDE)
        return Cutout(length=length)(image) if length else image
    return by_timm(_timm_operation(operation, magnitude), image)


@cache
def _timm_operation(operation: Operation, magnitude: int) -> AugmentOp:
    """timm's operation, which has the magnitudes of the paper; of 32 pixels, images shift by at most 10."""
    settings = {"translate_pct": 10 / _SIDE, "img_mean": MEAN_COLOUR}
    return faster(AugmentOp(_IN_TIMM.get(operation, operation), prob=1.0, magnitude=magnitude, hparams=settings))
