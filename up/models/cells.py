"""Networks of cells: the search space of DARTS (Liu et al. 2019, arXiv 1806.09055)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Literal, NamedTuple, TypeAlias

import torch
from pydantic import Field
from timm.layers import DropPath
from torch import Tensor, nn
from torch.nn.functional import pad
from torch.utils.checkpoint import checkpoint

from up.config.argument import NotNegative
from up.errors import UserError
from up.models.adapter import Backbone, Channels, Common, Count, Rate, as_backbone, with_stages
from up.models.auxiliary import AuxiliaryFeatures
from up.models.genotype import INPUTS, PUBLISHED, Candidate, Genotype, PublishedName
from up.types import Record

Layers: TypeAlias = Annotated[int, Field(ge=3)]
Stem: TypeAlias = Literal["small", "imagenet"]


class ReLUConvNorm(nn.Sequential):
    """ReLU, a 1x1 convolution and BatchNorm."""

    def __init__(self, inputs: int, outputs: int, *, affine: bool) -> None:
        super().__init__(nn.ReLU(), nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs, affine=affine))


class FactorizedReduce(nn.Module):
    """Halve a map (B, C, H, W) without dropping pixels: two 1x1 convolutions of stride 2, one of them a pixel further."""

    def __init__(self, inputs: int, outputs: int, *, affine: bool) -> None:
        super().__init__()
        self.conv_1 = nn.Conv2d(inputs, outputs // 2, 1, stride=2, bias=False)
        self.conv_2 = nn.Conv2d(inputs, outputs - outputs // 2, 1, stride=2, bias=False)
        self.bn = nn.BatchNorm2d(outputs, affine=affine)

    def forward(self, x: Tensor) -> Tensor:
        x = x.relu()
        further = pad(x, (0, 1, 0, 1))[:, :, 1:, 1:]  # the padding is read where a side is odd
        halved: Tensor = self.bn(torch.cat([self.conv_1(x), self.conv_2(further)], dim=1))
        return halved


class Zero(nn.Module):
    """The operation ``none``: zeros in the place of a map."""

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :, :: self.stride, :: self.stride] * 0


def _separable(channels: int, kernel: int, stride: int, affine: bool) -> nn.Module:
    def half(stride: int) -> list[nn.Module]:
        return _depthwise(channels, kernel, stride, affine, dilation=1)

    return nn.Sequential(*half(stride), *half(1))


def _depthwise(channels: int, kernel: int, stride: int, affine: bool, *, dilation: int) -> list[nn.Module]:
    padding = dilation * (kernel // 2)
    return [
        nn.ReLU(),
        nn.Conv2d(channels, channels, kernel, stride, padding, dilation, groups=channels, bias=False),
        nn.Conv2d(channels, channels, 1, bias=False),
        nn.BatchNorm2d(channels, affine=affine),
    ]


def operation(name: Candidate, channels: int, stride: int, *, affine: bool) -> nn.Module:
    """Build an operation on maps (B, channels, H, W), of stride 1 or 2."""
    match name:
        case "none":
            return Zero(stride)
        case "skip_connect":
            return nn.Identity() if stride == 1 else FactorizedReduce(channels, channels, affine=affine)
        case "max_pool_3x3":
            return nn.MaxPool2d(3, stride, padding=1)
        case "avg_pool_3x3":
            return nn.AvgPool2d(3, stride, padding=1, count_include_pad=False)
        case "sep_conv_3x3" | "sep_conv_5x5":
            return _separable(channels, 3 if name == "sep_conv_3x3" else 5, stride, affine)
        case "dil_conv_3x3" | "dil_conv_5x5":
            return nn.Sequential(*_depthwise(channels, 3 if name == "dil_conv_3x3" else 5, stride, affine, dilation=2))


class CellShape(NamedTuple):
    """Channels of the two inputs and of the nodes of a cell, and whether it or its predecessor halves the map."""

    first: int
    second: int
    channels: int
    is_reduction: bool
    after_reduction: bool


class CellInputs(nn.Module):
    """First layers of a cell, which bring its two inputs to its channels and to one size; ``multiplier`` nodes are its output."""

    multiplier: int

    def __init__(self, shape: CellShape, *, affine: bool) -> None:
        super().__init__()
        kind = FactorizedReduce if shape.after_reduction else ReLUConvNorm
        self.preprocess0 = kind(shape.first, shape.channels, affine=affine)
        self.preprocess1 = ReLUConvNorm(shape.second, shape.channels, affine=affine)
        self.is_reduction = shape.is_reduction

    def stride(self, source: int) -> int:
        """Return the stride of an operation on an input of the cell."""
        return 2 if self.is_reduction and source < INPUTS else 1


class Cell(CellInputs):
    """A cell of a genotype: ``(before_last, last)`` to the outputs of its nodes, side by side."""

    def __init__(self, shape: CellShape, genotype: Genotype, drop_path_rate: float) -> None:
        super().__init__(shape, affine=True)
        self.edges, self.concat = genotype.cell(is_reduction=shape.is_reduction)
        self.multiplier = len(self.concat)
        ops = (operation(name, shape.channels, self.stride(source), affine=True) for name, source in self.edges)
        self.ops = nn.ModuleList(
            op if not drop_path_rate or isinstance(op, nn.Identity) else nn.Sequential(op, DropPath(drop_path_rate)) for op in ops
        )

    def forward(self, before_last: Tensor, last: Tensor) -> Tensor:
        states = [self.preprocess0(before_last), self.preprocess1(last)]
        outputs = zip(self.ops, self.edges, strict=True)
        for (one, (_, first)), (other, (_, second)) in zip(outputs, outputs, strict=True):
            states.append(one(states[first]) + other(states[second]))
        return torch.cat([states[node] for node in self.concat], dim=1)


class CellNetwork(nn.Module):
    """Stem and cells without classifier, with the attributes and methods of timm's networks that ``as_backbone`` reads.

    Cells halve the map and double the channels after one and two thirds of the layers. ``make`` builds a cell of a
    shape. ``auxiliary`` makes the features of the auxiliary classifier of the output of the second of these cells, if there is one.
    """

    auxiliary: AuxiliaryFeatures | None
    auxiliary_weight = 0.0

    def __init__(
        self, make: Callable[[CellShape], CellInputs], *, layers: int, channels: int, stem: Stem, image_channels: int
    ) -> None:
        super().__init__()
        self.grad_checkpointing = False
        self.stem, widths, reduction = _stem(stem, image_channels, channels)
        self.last_reduction = 2 * layers // 3
        reductions = {layers // 3, self.last_reduction}
        ends = {*(at - 1 for at in reductions), layers - 1}
        first, second = widths
        after_reduction = stem == "imagenet"
        self.feature_info: list[Record] = []
        self.ends: list[int] = []
        cells = []
        for at in range(layers):
            is_reduction = at in reductions
            channels, reduction = (2 * channels, 2 * reduction) if is_reduction else (channels, reduction)
            cell = make(CellShape(first, second, channels, is_reduction, after_reduction))
            cells.append(cell)
            first, second, after_reduction = second, cell.multiplier * channels, is_reduction
            if at in ends:
                self.ends.append(at)
                self.feature_info.append({"num_chs": second, "reduction": reduction, "module": f"cells.{at}"})
            if at == self.last_reduction:
                self.reduced_planes = second
        self.cells = nn.ModuleList(cells)
        self.num_features = second
        self.register_module("auxiliary", None)

    def forward_features(self, image: Tensor) -> Tensor:
        """Map (B, C, H, W) to the output of the last cell."""
        *_, last = self.outputs(image)
        return last

    def forward_intermediates(
        self, image: Tensor, *, indices: Sequence[int], stop_early: bool = False, intermediates_only: bool = False
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Return the outputs of the stages ``indices``, after that of the last cell unless ``intermediates_only``."""
        outputs = list(self.outputs(image))
        features = [outputs[self.ends[stage]] for stage in indices]
        return features if intermediates_only else (outputs[-1], features)

    def prune_intermediate_layers(self, stages: Sequence[int]) -> None:
        """Drop the cells after the last of ``stages``."""
        last = self.ends[stages[-1]]
        if self.auxiliary is not None and last < self.last_reduction:
            what = "leaves out the cells that the auxiliary classifier reads"
            raise UserError(what, key="out_layers", fix="Add the last stage, or leave auxiliary_weight out.")
        self.cells = self.cells[: last + 1]

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute the activations of every cell in the backward pass."""
        self.grad_checkpointing = enable

    def outputs(self, image: Tensor) -> Iterator[Tensor]:
        """Yield the output of each cell."""
        before_last = self.stem[0](image)
        last = self.stem[1](before_last)
        for cell in self.cells:
            before_last, last = last, self.run(cell, before_last, last)
            yield last

    def run(self, cell: nn.Module, before_last: Tensor, last: Tensor) -> Tensor:
        """Run a cell."""
        recomputes = self.grad_checkpointing and self.training
        output: Tensor = checkpoint(cell, before_last, last, use_reentrant=False) if recomputes else cell(before_last, last)
        return output


class CellBackbone(Backbone):
    """A network of cells with an auxiliary classifier.

    In training it adds ``auxiliary``, the features (B, D) of the classifier, and ``auxiliary_weight``, that of its loss.
    """

    auxiliary: AuxiliaryFeatures | None
    auxiliary_weight: float
    auxiliary_planes = AuxiliaryFeatures.width
    ends: list[int]
    last_reduction: int
    outputs: Callable[[Tensor], Iterator[Tensor]]

    def forward(self, record: Record) -> Record:
        if self.auxiliary is None or not self.training:
            return super().forward(record)
        image: Tensor = record["image"]
        self._check_size(image)
        outputs = list(self.outputs(image))
        stages = [-1] if self._stages is None else self._stages
        return {
            "features": [outputs[self.ends[stage]] for stage in stages],
            "auxiliary": self.auxiliary(outputs[self.last_reduction]),
            "auxiliary_weight": self.auxiliary_weight,
        }


def _stem(kind: Stem, images: int, channels: int) -> tuple[nn.ModuleList, tuple[int, int], int]:
    """Return the layers that make the inputs of the first cell, one after the other, their channels, and the stride."""

    def conv(inputs: int, outputs: int, stride: int) -> list[nn.Module]:
        return [nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False), nn.BatchNorm2d(outputs)]

    if kind == "small":
        return nn.ModuleList([nn.Sequential(*conv(images, 3 * channels, 1)), nn.Identity()]), (3 * channels, 3 * channels), 1
    first = nn.Sequential(*conv(images, channels // 2, 2), nn.ReLU(), *conv(channels // 2, channels, 2))
    return nn.ModuleList([first, nn.Sequential(nn.ReLU(), *conv(channels, channels, 2))]), (channels, channels), 8


def cell_network(
    *,
    genotype: Genotype | PublishedName,
    layers: Layers = 20,
    init_channels: Count = 36,
    stem: Stem = "small",
    drop_path_rate: Rate = 0.0,
    auxiliary_weight: NotNegative = 0.0,
    input_channel: Channels = 3,
    **common: Common,
) -> Backbone:
    """A network of the cells that DARTS searches: image (B, input_channel, H, W) to a map (B, planes, H/4, W/4).

    - ``genotype``: the operations of its cells, as a search writes them: ``normal`` and ``reduce``, two edges [operation, input]
      for each node. ``darts_v1`` and ``darts_v2`` are the published ones of first and second order (Liu et al. 2019).
    - ``layers``: cells, of which those after one and two thirds halve the map; ``init_channels``: channels of a node in the first.
      The paper has 20 and 36 for CIFAR-10 (3.3 M parameters), and 14 and 48 for ImageNet (4.7 M).
    - ``stem``: ``small`` is a 3x3 convolution for images of about 32 pixels; ``imagenet`` has stride 8, the map is then H/32.
    - ``drop_path_rate``: probability of dropping an operation other than a skip connection in training; constant, where the paper
      raises it from 0 to .2 over the run.
    - ``auxiliary_weight``: weight of the loss of an auxiliary classifier, which reads the map after the second reduction: 0.4 in
      the paper (appendix A.2), 0 for none. Only training has it; evaluation, exports and counts of parameters leave it out.

    Raises ``UserError`` for a genotype with inputs that do not exist.
    """
    found = PUBLISHED[genotype] if isinstance(genotype, str) else genotype
    found.check()

    def make(shape: CellShape) -> CellInputs:
        return Cell(shape, found, drop_path_rate)

    model = CellNetwork(make, layers=layers, channels=init_channels, stem=stem, image_channels=input_channel)
    if not auxiliary_weight:
        return with_stages(as_backbone(model, channels=input_channel), **common)
    model.auxiliary = AuxiliaryFeatures(model.reduced_planes, stride=3 if stem == "small" else 2)
    model.auxiliary_weight = auxiliary_weight
    return with_stages(as_backbone(model, channels=input_channel, mixin=CellBackbone), **common)
