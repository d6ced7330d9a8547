"""ResNet (He et al. 2016, arXiv 1512.03385) and ResNet-D (He et al. 2019, arXiv 1812.01187)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal, TypeAlias

from timm.models.resnet import BasicBlock, Bottleneck, ResNet, downsample_avg, downsample_conv
from torch import nn

from up.config.argument import Between, FromProgram
from up.errors import UserError
from up.models.adapter import Backbone, Channels, Common, Count, Rate, Variant, as_backbone, published, with_stages

_STEM = ("conv1", "bn1")
_BY_DEPTH: dict[int, tuple[Literal["basic", "bottleneck"], Sequence[int]]] = {
    18: ("basic", (2, 2, 2, 2)),
    34: ("basic", (3, 4, 6, 3)),
    50: ("bottleneck", (3, 4, 6, 3)),
    101: ("bottleneck", (3, 4, 23, 3)),
    152: ("bottleneck", (3, 8, 36, 3)),
}
Switches: TypeAlias = Sequence[Annotated[int, Between(0, 1)]]  # a 0 or a 1 for each block


def resnet_custom(
    *,
    block: Literal["basic", "bottleneck"] | None = None,
    layers: Sequence[int] | None = None,
    depth: Literal[18, 34, 50, 101, 152] | None = None,
    base_channel: Count | None = None,
    doublechannel: Switches | None = None,
    downsample: Switches | None = None,
    **kwargs: Common,
) -> Backbone:
    """A ResNet of any depth and width: image (B, input_channel, H, W) to a map (B, planes, H/32, W/32).

    - ``block`` and ``layers``, the blocks in each of the four stages; or ``depth``, which stands for those of the published
      network.
    - ``width``, or ``base_channel``, another name of it: channels of the first stage, doubled by every further stage.
    - ``doublechannel``, ``downsample``: a 0 or a 1 for each block, in order. From a block with a 1 on the channels double, or
      the block has stride 2. Left out: the first blocks of the stages after the first, as in the published networks.

    The other arguments are those of ``resnet50``. Raises ``UserError`` as that does.
    """
    if depth is not None:
        if block is not None or layers is not None:
            raise UserError("stands for block and layers", fix="Leave those out, or depth.", key="depth")
        block, layers = _BY_DEPTH[depth]
    if block is None or layers is None:
        missing = "block" if block is None else "layers"
        raise UserError("is missing", expected="block and layers, or depth: 18, 34, 50, 101 or 152", key=missing)
    if base_channel is not None:
        if "width" in kwargs:
            raise UserError("is another name of width", fix="Keep one of them.", key="base_channel")
        kwargs = {**kwargs, "width": base_channel}
    return resnet(block=block, layers=layers, plan=_plan(layers, doublechannel, downsample), **kwargs)


def resnet(
    *,
    block: Literal["basic", "bottleneck"],
    layers: Sequence[int],
    width: Count = 64,
    stem: Literal["imagenet", "small"] = "imagenet",
    deep_stem: bool = False,
    avg_down: bool | Literal["padded"] = False,
    style: Literal["pytorch", "caffe"] = "pytorch",
    drop_path_rate: Rate = 0.0,
    input_channel: Channels = 3,
    frozen_layers: Sequence[int] = (),
    plan: Annotated[Sequence[tuple[int, int]] | None, FromProgram()] = None,
    **common: Common,
) -> Backbone:
    """A ResNet: image (B, input_channel, H, W) to a map (B, planes, H/32, W/32).

    - ``width``: channels of the first stage, doubled by every further stage.
    - ``stem``: ``small`` is one 3x3 convolution with stride 1 for images of about 32 pixels (He et al. 2016, section
      4.2), and the strides are 1, 1, 2, 4, 8. ``deep_stem``: three 3x3 convolutions in place of the 7x7 one (ResNet-C).
    - ``avg_down``: average pooling before the 1x1 convolution of a shortcut, which then drops no pixels (ResNet-D).
      ``padded`` puts a row and a column of zeros before the map and pools where the stride is 1, too (UP's ResNet-D).
    - ``style``: the 3x3 convolution of a bottleneck has its stride (``pytorch``), or the first 1x1 (``caffe``).
    - ``frozen_layers``: stages without training, 0 is the stem; ``out_layers``, ``out_strides``: see ``Backbone.select``.

    Raises ``UserError`` for stages that do not exist and for options that exclude each other.
    """
    _check_shape(layers, width)
    if deep_stem and stem == "small":
        raise UserError("small is a single convolution; leave deep_stem out, or take stem: imagenet.", key="stem")
    # timm's plain stem always has 64 channels, its deep one any number: another width starts from a deep stem, which a
    # single convolution replaces.
    replaced = stem == "small" or (width != 64 and not deep_stem)
    model = ResNet(
        block={"basic": BasicBlock, "bottleneck": Bottleneck}[block],
        layers=tuple(layers),
        channels=tuple(width * 2**stage for stage in range(4)),
        num_classes=0,
        in_chans=input_channel,
        stem_type="deep" if deep_stem or replaced else "",
        stem_width=width // 2 if deep_stem or replaced else 64,
        avg_down=bool(avg_down),
        drop_path_rate=drop_path_rate,
    )
    if plan is not None:
        _rearrange(model, width, plan, is_pooling=bool(avg_down))
    if avg_down == "padded":
        _pad_pooling(model)
    if replaced:
        _replace_stem(model, input_channel, width, small=stem == "small")
    if style == "caffe":
        _stride_first(model)
    backbone = as_backbone(model, channels=input_channel)
    backbone.freeze(_paths(frozen_layers))
    return with_stages(backbone, **common)


def resnet_d(
    *,
    variant: Variant | None = None,
    deep_stem: bool | None = None,
    avg_down: bool | Literal["padded"] | None = None,
    **kwargs: Common,
) -> Backbone:
    """ResNet-D, whose shortcuts pool before they drop pixels: image (B, input_channel, H, W) to (B, planes, H/32, W/32).

    ``variant``: ``up`` is UP's network, a 7x7 stem and ``avg_down: padded``; ``timm`` is the paper's and timm's, a deep
    stem and ``avg_down: true``. Default: ``timm`` with ``deep_stem: true``, else ``up``. The other arguments are those of
    ``resnet50``. Raises ``UserError`` as that does.
    """
    if variant is None:
        variant = "timm" if deep_stem else "up"
    if deep_stem is None:
        deep_stem = variant == "timm"
    if avg_down is None:
        avg_down = True if variant == "timm" else "padded"
    backbone = resnet(stem="imagenet", deep_stem=deep_stem, avg_down=avg_down, **kwargs)
    backbone.variant = variant
    return backbone


def _check_shape(layers: Sequence[int], width: int) -> None:
    if len(layers) != 4 or min(layers) < 1:
        raise UserError(got=list(layers), expected="four numbers of blocks, such as [2, 2, 2, 2]", key="layers")
    if width < 2 or width % 2:
        raise UserError(got=width, expected="an even number of channels, such as 64", key="width")


def _plan(layers: Sequence[int], doubles: Switches | None, strides: Switches | None) -> list[tuple[int, int]] | None:
    """Return the factor of the channels and the stride of each block; None for those of the published networks."""
    if doubles is None and strides is None:
        return None
    usual = [int(at == 0 and stage > 0) for stage, blocks in enumerate(layers) for at in range(blocks)]
    for key, given in (("doublechannel", doubles), ("downsample", strides)):
        if given is not None and len(given) != len(usual):
            raise UserError(got=list(given), expected=f"{len(usual)} numbers, a 0 or a 1 for each block", key=key)
    pairs = zip(usual if doubles is None else doubles, usual if strides is None else strides, strict=True)
    return [(1 + is_doubled, 1 + is_strided) for is_doubled, is_strided in pairs]


def _rearrange(model: ResNet, width: int, plan: Sequence[tuple[int, int]], *, is_pooling: bool) -> None:
    """Build the blocks of all stages again, each with the factor of its channels and its stride in ``plan``."""
    inputs, planes, reduction, steps = width, width, 4, iter(plan)
    for number in range(1, 5):
        built = []
        for old in model.get_submodule(f"layer{number}"):
            factor, stride = next(steps)
            planes, reduction = planes * factor, reduction * stride
            outputs = planes * old.expansion
            shortcut = None
            if stride > 1 or inputs != outputs:
                shortcut = (downsample_avg if is_pooling else downsample_conv)(inputs, outputs, kernel_size=1, stride=stride)
            built.append(type(old)(inputs, planes, stride, shortcut))
            built[-1].drop_path = old.drop_path
            inputs = outputs
        setattr(model, f"layer{number}", nn.Sequential(*built))
        model.feature_info[number].update(num_chs=inputs, reduction=reduction)
    model.num_features = model.head_hidden_size = inputs
    model.init_weights(zero_init_last=True)


def _replace_stem(model: ResNet, channels: int, width: int, *, small: bool) -> None:
    kernel, stride = (3, 1) if small else (7, 2)
    model.conv1 = nn.Conv2d(channels, width, kernel, stride, kernel // 2, bias=False)
    nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
    if small:
        model.maxpool = nn.Identity()
        for info in model.feature_info:
            info["reduction"] = max(1, info["reduction"] // 4)


def _pad_pooling(model: ResNet) -> None:
    """Pad the map of every shortcut with a row of zeros above and a column to the left, before it pools 2x2."""
    for block in model.modules():
        if isinstance(block, BasicBlock | Bottleneck) and block.downsample is not None:  # pooling, convolution, norm
            block.downsample[0] = nn.Sequential(nn.ZeroPad2d((1, 0, 1, 0)), nn.AvgPool2d(2, block.stride))


def _stride_first(model: nn.Module) -> None:
    """Move the stride of every bottleneck from its 3x3 convolution to the 1x1 before it, as in the first ResNet."""
    for block in model.modules():
        if isinstance(block, Bottleneck):
            block.conv1.stride, block.conv2.stride = block.conv2.stride, block.conv1.stride


def _paths(frozen_layers: Sequence[int]) -> list[str]:
    unknown = [stage for stage in frozen_layers if stage not in range(5)]
    if unknown:
        raise UserError(got=unknown, expected="0 (the stem) or a stage from 1 to 4", key="frozen_layers")
    return [path for stage in frozen_layers for path in (_STEM if stage == 0 else (f"layer{stage}",))]


_18, _34, _50, _101, _152 = ({"block": block, "layers": layers} for block, layers in _BY_DEPTH.values())

resnet18 = published(resnet, "ResNet-18, 11.7 M parameters with 1000 classes.", _18)
resnet34 = published(resnet, "ResNet-34, 21.8 M parameters with 1000 classes.", _34)
resnet50 = published(resnet, "ResNet-50, 25.6 M parameters with 1000 classes.", _50)
resnet101 = published(resnet, "ResNet-101, 44.5 M parameters with 1000 classes.", _101)
resnet152 = published(resnet, "ResNet-152, 60.2 M parameters with 1000 classes.", _152)
resnet_custom_D = published(resnet_d, "A ResNet-D of any depth and width.")
resnet18_D = published(resnet_d, "ResNet-18-D, 18 layers.", _18)
resnet34_D = published(resnet_d, "ResNet-34-D, 34 layers.", _34)
resnet50_D = published(resnet_d, "ResNet-50-D, 50 layers.", _50)
resnet101_D = published(resnet_d, "ResNet-101-D, 101 layers.", _101)
resnet152_D = published(resnet_d, "ResNet-152-D, 152 layers.", _152)
