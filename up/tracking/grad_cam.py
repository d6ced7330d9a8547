"""Grad-CAM: the positions of an image that raise the predicted class (Selvaraju et al. 2017, section 3)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from up.config.argument import AtLeast1
from up.config.checked import checked
from up.data.records import Batch
from up.engine.hooks import Outline
from up.errors import UserError
from up.figures import Floats, Panel, is_drawable, missing_font, panels
from up.models.feature_hooks import FeatureHooks, as_maps, require_layers, undisturbed
from up.run_files import GRAD_CAM
from up.text import Verbatim, count, some_of
from up.tracking.figure_hook import FigureHook, file_stems, photo


@dataclass(frozen=True)
class GradCamMaps:
    """Maps of B images: ``heat`` (B, h, w), 0 and above, the class that it explains, and the net's score for this class."""

    heat: Tensor
    classes: list[int]
    scores: list[float]

    def shown(self) -> Floats:
        """Return the heat (B, h, w) as numbers from 0 to 1, the maximum of each map; what is not finite is 0."""
        heat = torch.nan_to_num(self.heat, nan=0.0, posinf=0.0).cpu().double().numpy()
        return np.asarray(heat / np.maximum(heat.max(axis=(1, 2), keepdims=True), np.finfo(np.float64).tiny))


def grad_cam(model: nn.Module, image: Tensor, layer: str) -> GradCamMaps:
    """Explain the predicted class of ``image`` (B, 3, H, W) by the maps of a layer.

    The heat is ReLU(sum over k of a_k A_k), A_k the maps of the layer and a_k the mean gradient of the class's logit
    over the positions of A_k. Of several heads the first counts; of logits (B, C, H, W) their mean over the positions
    (Vinogradova et al. 2020). Weights, gradients, statistics, modes and random numbers of the model are unchanged.
    Raises ``UserError`` if the layer returns no maps, or the logits do not depend on it, or the net returns none.
    """
    with undisturbed(model), torch.inference_mode(False), torch.enable_grad():
        output, record = _run_from(model, image.clone(), layer)
        logits = _per_class(record.get("logits"))
        scores = _per_class(record["scores"]) if "scores" in record else logits.softmax(dim=1)
        classes = scores.argmax(dim=1)
        logit = logits.gather(1, classes[:, None]).sum()  # the gradient of an image does not depend on the other images
        gradient = torch.autograd.grad(logit, output, allow_unused=True)[0] if logit.requires_grad else None
    if gradient is None:
        raise UserError(f"the logits do not depend on layer {layer!r}. Name a layer between the image and the classifier.")
    maps = as_maps(output.detach(), image, layer, model)
    weights = as_maps(gradient, image, layer, model).mean(dim=(2, 3), keepdim=True)
    shares = scores.detach().gather(1, classes[:, None])[:, 0]
    return GradCamMaps((weights * maps).sum(dim=1).relu(), classes.tolist(), shares.tolist())


def _run_from(model: nn.Module, image: Tensor, layer: str) -> tuple[Tensor, Mapping[str, object]]:
    """Run the net; return the output of a layer, as the leaf of a graph that begins there, and the record."""
    with FeatureHooks(model, [layer], cut=True) as seen:
        record = model({"image": image})
    if layer not in seen:
        raise UserError(f"layer {layer!r} returns no tensor when the net runs. Name another layer.")
    return seen[layer], record


def _per_class(heads: object) -> Tensor:
    """Return the logits or scores (B, C) of the first head."""
    first = heads[0] if isinstance(heads, list | tuple) and heads else heads
    if not isinstance(first, Tensor) or first.ndim < 2:
        raise UserError("the net returns no `logits` (B, classes) to explain. Remove the hook.")
    return first.flatten(2).mean(dim=2) if first.ndim > 2 else first


def last_convolution(model: nn.Module, image: Tensor) -> str:
    """Return the path of the last convolution to run whose maps of ``image`` (B, 3, H, W) have several positions.

    Raises ``UserError`` if there is none.
    """
    with undisturbed(model), torch.no_grad(), FeatureHooks(model, _convolutions(model)) as seen:
        model({"image": image[:1]})
    found = [layer for layer, output in seen.items() if output.shape[-2] * output.shape[-1] > 1]
    if not found:
        raise UserError("no convolution returns maps of several positions. Set layer_name to the path of a module that does.")
    return found[-1]


def _convolutions(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module, nn.Conv2d)]


class GradCam(FigureHook):
    """Draws, at every evaluation, the evidence for the predicted class at each position of some images (Grad-CAM).

    ``layer_name`` is the path of a module whose output has several positions, the last such to see whole objects:
    ``backbone.layer4`` of a ResNet, ``backbone.layers.3`` of a Swin, ``backbone.blocks.11.norm1`` of a ViT (after its
    last block only the class token counts). When left out it is the last convolution with such maps, which suits
    convolutional networks only: that of a Swin or a ViT cuts the image into patches. ``class_names`` are those of the
    data when left out. For each of the first ``num_images`` images ``{save_dir}/step{N}/{image}.png`` is written;
    ``save_dir`` is ``grad_cam`` in the run's folder when left out. The weights are those in training, not their average.
    Errors: ``UserError`` for a layer that the net does not have, a net without convolutions where none is named, or names
    for another number of classes.
    """

    @checked
    def __init__(
        self,
        *,
        layer_name: str | None = None,
        class_names: list[str] | None = None,
        save_dir: str | None = None,
        num_images: AtLeast1 = 8,
    ) -> None:
        super().__init__(GRAD_CAM, layers=[layer_name] if layer_name else [], save_dir=save_dir, num_images=num_images)
        self.class_names: Sequence[str] = class_names or []

    def check(self, model: nn.Module, class_names: Sequence[str] | None) -> None:
        super().check(model, class_names)
        if self.layers:
            require_layers(model, self.layers, hook=self.name)
        elif not _convolutions(model):
            raise UserError("the net has no convolution", key="layer_name", fix="Set it to the path of a module that returns maps.")
        if self.class_names and class_names and len(self.class_names) != len(class_names):
            raise UserError(
                got=Verbatim(count(len(self.class_names), "name")),
                expected=f"{len(class_names)}, one for each class of the data",
                key="class_names",
                fix="Give a name for each, or leave it out to use those of the data.",
            )

    def on_start(self, outline: Outline, step: int) -> None:
        super().on_start(outline, step)
        self.class_names = self.class_names or outline.class_names or []
        if (line := missing_font(self.class_names)) is not None:
            self.warn(line)

    def figures(self, images: Batch, step: int) -> Iterator[tuple[str, bytes]]:
        self.layers = self.layers or [last_convolution(self.outline.model, images.image)]
        layer = self.layers[0]
        maps = grad_cam(self.outline.model, images.image, layer)
        if not maps.heat.any():
            self.warn(
                f"all maps of layer {layer!r} are empty: nothing in it raises the predicted classes. After the last block "
                "of a ViT only the class token counts; name a layer before its attention, such as backbone.blocks.11.norm1."
            )
        for number, (stem, heat) in enumerate(zip(file_stems(images.filename), maps.shown(), strict=True)):
            label = self._label(images.get("gt"), number)
            image = photo(images.image[number])
            yield (
                stem,
                panels(
                    [Panel("image", image), Panel(f"Grad-CAM, {layer}", image, heat)],
                    title=f"{self._name(maps.classes[number])}: {100 * maps.scores[number]:.1f} %",
                    note=f"{f'label: {label}, ' if label else ''}step {step:,}",
                    scale="evidence for the prediction",
                    ends=("none", "most"),
                ),
            )

    def _name(self, number: int) -> str:
        name = self.class_names[number] if number < len(self.class_names) else ""
        return name if name and is_drawable(name) else f"class {number}"

    def _label(self, gt: Tensor | None, number: int) -> str:
        """Name the label of an image: all labels of a set, the first of several heads; empty if labels are per pixel."""
        if gt is None or gt.ndim > 2:
            return ""
        if gt.is_floating_point():
            return some_of((self._name(c) for c in (gt[number] > 0.5).nonzero().flatten().tolist()), 3)
        label = int(gt[number].flatten()[0])
        return self._name(label) if label >= 0 else ""
