"""Feature maps: the strongest channels of some layers, drawn at every evaluation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path, PurePath

import numpy as np
import torch
from torch import Tensor, nn

from up.config.argument import AtLeast1
from up.config.checked import checked
from up.data.bad_images import BadImage
from up.data.decoding import read_rgb
from up.data.records import Batch
from up.data.transforms.image import Interpolation
from up.errors import UserError
from up.figures import Panel, Pixels, panels
from up.models.feature_hooks import FeatureHooks, as_maps, require_layers, undisturbed
from up.run_files import FEATURE_VIS
from up.text import count
from up.tracking.figure_hook import FigureHook, file_stems, photo, stretched


def layer_outputs(model: nn.Module, image: Tensor, layers: Sequence[str]) -> dict[str, Tensor]:
    """Return the output of each layer for ``image`` (B, 3, H, W) in evaluation, without layers that do not run."""
    with (
        undisturbed(model),
        torch.no_grad(),
        FeatureHooks(model, layers, copied=layers) as outputs,
    ):  # a later layer may work in place
        model({"image": image})
    return outputs


def strongest_channels(maps: Tensor, number: int) -> tuple[list[int], list[float]]:
    """Return the channels of maps (C, h, w) with the largest mean magnitude, the strongest first, and that magnitude."""
    strength = maps.abs().mean(dim=(1, 2))
    values, channels = strength.topk(min(number, len(strength)))
    return channels.tolist(), values.tolist()


class FeatureVis(FigureHook):
    """Draws, at every evaluation, the strongest channels of some layers for some images.

    ``layer_names`` are paths of modules, such as ``backbone.layer1``. For each of the first ``num_images`` images and
    each layer ``{save_dir}/step{N}/{image}_{layer}.png`` shows the ``num_channels`` channels with the largest mean
    magnitude, each from its smallest to its largest value; ``save_dir`` is ``feature_vis`` in the run's folder when
    left out. ``interpolation`` enlarges the maps; ``nearest`` shows every position as a block. ``gt_dir`` is a folder with
    the original images: the one of the same name is shown instead of the input of the net, which may be cropped. The
    weights are those in training, not their average. ``layer_name`` is another spelling of ``layer_names``.
    Errors: ``UserError`` for a layer that the net does not have, or none.
    """

    @checked
    def __init__(
        self,
        *,
        layer_names: list[str] | str | None = None,
        layer_name: list[str] | str | None = None,
        save_dir: str | None = None,
        num_images: AtLeast1 = 1,
        num_channels: AtLeast1 = 16,
        gt_dir: str | None = None,
        interpolation: Interpolation = "nearest",
    ) -> None:
        if layer_names and layer_name and layer_names != layer_name:
            raise UserError("feature_vis: layer_name and layer_names are the same setting. Keep layer_names.")
        given = layer_names or layer_name or []
        layers = [given] if isinstance(given, str) else given
        super().__init__(FEATURE_VIS, layers=layers, save_dir=save_dir, num_images=num_images)
        self.num_channels = num_channels
        self.gt_dir = gt_dir
        self.interpolation = interpolation

    def check(self, model: nn.Module, class_names: Sequence[str] | None) -> None:
        super().check(model, class_names)
        require_layers(model, self.layers, hook=self.name)

    def figures(self, images: Batch, step: int) -> Iterator[tuple[str, bytes]]:
        outputs = layer_outputs(self.outline.model, images.image, self.layers)
        for layer in self.layers:
            try:
                if layer not in outputs:
                    raise UserError(f"layer {layer!r} returns no tensor when the net runs. Name another layer.")
                maps = as_maps(outputs[layer], images.image, layer, self.outline.model)
            except UserError as error:  # the other layers can still be drawn
                self.warn(str(error))
                continue
            for number, stem in enumerate(file_stems(images.filename)):
                original = self._original(images.filename[number])
                shown = photo(images.image[number]) if original is None else original
                yield f"{stem}_{layer}", self._figure(shown, maps[number], layer, step)

    def _original(self, filename: str) -> Pixels | None:
        """Read the image of that name in ``gt_dir``, None if there is none."""
        if self.gt_dir is None:
            return None
        try:
            name = PurePath(filename).name if PurePath(filename).is_absolute() else filename
            return np.asarray(read_rgb(str(Path(self.gt_dir, name))))
        except BadImage as error:
            self.warn(f"gt_dir: {error}; the input of the net is shown instead")
            return None

    def _figure(self, image: Pixels, maps: Tensor, layer: str, step: int) -> bytes:
        channels, strengths = strongest_channels(maps, self.num_channels)
        shown = [
            Panel(f"#{channel}: {strength:.3g}", heat=stretched(maps[channel].cpu().numpy()))
            for channel, strength in zip(channels, strengths, strict=True)
        ]
        height, width = maps.shape[1:]
        size = f"{count(len(maps), 'channel')} of {height} x {width}"
        return panels(
            [Panel("image", image), *shown],
            title=f"{layer}, step {step:,}",
            note=f"strongest {len(shown)} of {size}, with their mean magnitude",
            scale="value of the channel",
            ends=("min", "max"),
            interpolation=self.interpolation,
        )
