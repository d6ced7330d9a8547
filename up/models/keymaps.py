"""Names of tensors in foreign files, as data.

A ``KeyMap`` rewrites the names of one family of files to timm's names, by regular expressions that are applied in turn.
``places`` then lists the places of a tensor of timm's name in a net: ``fc.weight`` is ``head.classifier.weight``.
"UP" is United Perception, whose checkpoints have these names under ``backbone.``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

Rules = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class KeyMap:
    """Naming of one family of files; ``rules`` translate to timm's names.

    - ``mark``: a pattern of a name in every such file; other files are not read by these rules.
    - ``variant``: the variant of our backbone for the weights, if there are two.
    - ``unused``: a pattern of names without a place in our networks, and ``unused_because``, the reason.
    """

    name: str
    rules: Rules = ()
    mark: str = ""
    variant: str | None = None
    unused: str = ""
    unused_because: str = ""

    @cached_property
    def _compiled(self) -> list[tuple[re.Pattern[str], str]]:
        return [(re.compile(pattern), replacement) for pattern, replacement in self.rules]

    def fits(self, keys: Iterable[str]) -> bool:
        """Return whether one of a file's ``keys`` has the mark."""
        return any(re.search(self.mark, key) for key in keys)

    def leaves_out(self, key: str) -> bool:
        """Return whether our networks have no place for the tensor."""
        return bool(self.unused) and re.match(self.unused, key) is not None

    def to_timm(self, key: str) -> str:
        """Translate a name to timm's."""
        for pattern, replacement in self._compiled:
            key = pattern.sub(replacement, key)
        return key


def _blocks(depths: Iterable[int]) -> Iterator[tuple[str, str]]:
    """Number blocks per stage, as timm, instead of over the whole mobile network, as torchvision."""
    number = 1
    for stage, depth in enumerate(depths):
        for block in range(depth):
            yield rf"^features\.{number}\.(?=conv|block)", f"blocks.{stage}.{block}."
            number += 1
    yield rf"^features\.{number}\.", "last."


# The inside of an inverted residual: first the block without expansion, then all others. Squeeze-excite is optional.
_INVERTED_RESIDUAL: Rules = (
    (r"^(blocks\.0\.\d+\.)block\.0\.0\.", r"\1conv_dw."),
    (r"^(blocks\.0\.\d+\.)block\.0\.1\.", r"\1bn1."),
    (r"^(blocks\.0\.\d+\.)block\.[12]\.0\.", r"\1conv_pw."),
    (r"^(blocks\.0\.\d+\.)block\.[12]\.1\.", r"\1bn2."),
    (r"block\.0\.0\.", "conv_pw."),
    (r"block\.0\.1\.", "bn1."),
    (r"block\.1\.0\.", "conv_dw."),
    (r"block\.1\.1\.", "bn2."),
    (r"block\.[23]\.0\.", "conv_pwl."),
    (r"block\.[23]\.1\.", "bn3."),
    (r"block\.[12]\.fc1\.", "se.conv_reduce."),
    (r"block\.[12]\.fc2\.", "se.conv_expand."),
)
_MOBILE_STEM: Rules = ((r"^features\.0\.0\.", "conv_stem."), (r"^features\.0\.1\.", "bn1."))
_MOBILE_HEAD: Rules = ((r"^last\.0\.", "conv_head."), (r"^last\.1\.", "bn2."), (r"^classifier\.1\.", "classifier."))
_REGNET_LAYERS = ((r"f\.a", "conv1"), (r"f\.b", "conv2"), (r"f\.c", "conv3"), ("proj", "downsample"))


def _mobilenet_v3(depths: Sequence[int], inside: Rules) -> Rules:
    """Translate MobileNetV3 with ``inside``, the rules within blocks; after the blocks come a convolution and pooling."""
    last = len(depths)
    return (
        (rf"^features\.{sum(depths) + 3}\.", "conv_head."),
        *_MOBILE_STEM,
        *_blocks(depths),
        *inside,
        (r"^last\.0\.", f"blocks.{last}.0.conv."),
        (r"^last\.1\.", f"blocks.{last}.0.bn1."),
        (r"^classifier\.0\.", "conv_head."),
        (r"^classifier\.3\.", "classifier."),
    )


_MERGE_LATER: Rules = tuple((rf"^layers\.{stage}\.downsample\.", f"layers.{stage + 1}.downsample.") for stage in (2, 1, 0))
_NORMS_OF_STAGES = {"unused": r"norm[0-2]\.", "unused_because": "norms of stages whose features this net does not return"}

# The layers of a block of UP's mobile networks, by their place in its Sequential.
_UP_EXPANDED = ("conv_pw", "bn1", "", "conv_dw", "bn2")  # activations have no tensors
_UP_MOBILE_V2 = (*_UP_EXPANDED, "", "conv_pwl", "bn3")
_UP_MOBILE_V3 = (*_UP_EXPANDED, "se", "", "conv_pwl", "bn3")
_UP_MOBILE_V3_FIRST = ("conv_dw", "bn1", "", "se", "conv_pw", "bn2")


def _sequential(layers: Iterable[str], start: str = "") -> Rules:
    """Name the layers of a Sequential ``conv`` by position; squeeze-excite has its two layers in ``fc``, at 0 and 2."""
    found: list[tuple[str, str]] = []
    for place, layer in enumerate(layers):
        if layer == "se":
            inner = ((0, "conv_reduce"), (2, "conv_expand"))
            found += [(rf"({start})conv\.{place}\.fc\.{half}\.", rf"\1se.{name}.") for half, name in inner]
        elif layer:
            found.append((rf"({start})conv\.{place}\.", rf"\1{layer}."))
    return tuple(found)


_UP_V3_INSIDE = (*_sequential(_UP_MOBILE_V3_FIRST, r"^blocks\.0\.0\."), *_sequential(_UP_MOBILE_V3, r"^blocks\.\d+\.\d+\."))
_V3_LARGE, _V3_SMALL = (1, 2, 3, 4, 2, 3), (1, 2, 3, 2, 3)


def _efficientnet(depths: Iterable[int]) -> Rules:
    """Translate the names of lukemelas' EfficientNet-PyTorch, which numbers blocks over the whole network; those of the first
    stage do not expand."""
    numbered = [f"blocks.{stage}.{block}." for stage, depth in enumerate(depths) for block in range(depth)]
    return (
        *((rf"^_blocks\.{number}\.", block) for number, block in enumerate(numbered)),
        (r"^_conv_stem\.", "conv_stem."),
        (r"^_bn0\.", "bn1."),
        (r"^_conv_head\.", "conv_head."),
        (r"^_bn1\.", "bn2."),
        (r"^_fc\.", "classifier."),
        (r"\._se_(reduce|expand)\.", r".se.conv_\1."),
        (r"\._depthwise_conv\.", ".conv_dw."),
        (r"^(blocks\.0\.\d+\.)_bn1\.", r"\1bn1."),
        (r"^(blocks\.0\.\d+\.)_project_conv\.", r"\1conv_pw."),
        (r"^(blocks\.0\.\d+\.)_bn2\.", r"\1bn2."),
        (r"\._expand_conv\.", ".conv_pw."),
        (r"\._project_conv\.", ".conv_pwl."),
        *((rf"\._bn{number}\.", f".bn{number + 1}.") for number in range(3)),
    )


_DEPTHS_OF_EFFICIENTNETS = {
    "b0": (1, 2, 2, 3, 3, 4, 1),
    "b1, b2": (2, 3, 3, 4, 4, 5, 2),
    "b3": (2, 3, 3, 5, 5, 6, 2),
    "b4": (2, 4, 4, 6, 6, 8, 2),
    "b5": (3, 5, 5, 7, 7, 9, 3),
    "b6": (3, 6, 6, 8, 8, 11, 3),
    "b7": (4, 7, 7, 10, 10, 13, 4),
}
_UP_REGNET_LAYERS = (("a", "conv1"), ("b", "conv2"), ("c", "conv3"))

_LAYER0: Rules = ((r"^layer0\.0\.", "conv1."), (r"^layer0\.1\.", "bn1."))
_BLOCK = r"^features\.\d+\.block\."

KEY_MAPS = (
    # Ours, timm's, and others with the same names: torchvision's ResNets, facebook's DeiT.
    KeyMap("timm"),
    # UP's ResNets have the stem in a Sequential layer0: convolution, norm, ReLU, pooling. The convolution of a deep stem
    # is another Sequential (0, 3, 6 with norms 1, 4), or its layers are directly in layer0 (norm 7 last).
    KeyMap("UP, layer0", _LAYER0, mark=r"^layer0\."),
    KeyMap("UP, flat deep layer0", ((r"^layer0\.([01346])\.", r"conv1.\1."), (r"^layer0\.7\.", "bn1.")), mark=r"^layer0\.7\."),
    # ResNet-D lists the stem twice, and its shortcuts are padding, pooling, convolution, norm.
    KeyMap(
        "UP resnet_D",
        (*_LAYER0, *((rf"\.downsample\.{place}\.", f".downsample.{place - 1}.") for place in (2, 3))),
        mark=r"\.downsample\.3\.",
        variant="up",
        unused=r"(?:conv1|bn1)\.",
        unused_because="another name of the stem in layer0",
    ),
    KeyMap(
        "UP mobilenetv2",
        (*_MOBILE_STEM, *_blocks((1, 2, 3, 4, 3, 3, 1)), *_sequential(_UP_MOBILE_V2, r"^blocks\.\d+\.\d+\."), *_MOBILE_HEAD),
        mark=r"^features\.1\.conv\.7\.",
        variant="up",
    ),
    KeyMap("UP mobilenetv3 large", _mobilenet_v3(_V3_LARGE, _UP_V3_INSIDE), mark=r"\.conv\.\d\.fc\.", variant="up"),
    KeyMap("UP mobilenetv3 small", _mobilenet_v3(_V3_SMALL, _UP_V3_INSIDE), mark=r"\.conv\.\d\.fc\.", variant="up"),
    *(
        KeyMap(f"UP efficientnet {size}", _efficientnet(depths), mark=r"^_blocks\.", variant="up")
        for size, depths in _DEPTHS_OF_EFFICIENTNETS.items()
    ),
    KeyMap(
        "UP regnet",
        (
            (r"^(s\d\.b\d+)\.proj\.", r"\1.downsample.conv."),
            (r"^(s\d\.b\d+)\.bn\.", r"\1.downsample.bn."),
            *((rf"\.f\.{old}\.", f".{new}.conv.") for old, new in _UP_REGNET_LAYERS),
            *((rf"\.f\.{old}_bn\.", f".{new}.bn.") for old, new in _UP_REGNET_LAYERS),
            (r"\.f\.se\.f_ex\.0\.", ".se.fc1."),
            (r"\.f\.se\.f_ex\.2\.", ".se.fc2."),
        ),
        mark=r"\.f\.a_bn\.",
    ),
    KeyMap("UP swin", (*_MERGE_LATER, (r"^norm3\.", "norm.")), mark=r"^norm3\.", **_NORMS_OF_STAGES),
    KeyMap(
        "UP CSWin",
        ((r"^stage1_conv\.", "stage1_conv_embed.0."), (r"^stage1_norm\.", "stage1_conv_embed.2."), (r"^norm3\.", "norm.")),
        mark=r"^stage1_norm\.",
        **_NORMS_OF_STAGES,
    ),
    KeyMap(
        "UP vit",
        (
            (r"^pos_embedding$", "pos_embed"),
            (r"^embedding\.", "patch_embed.proj."),
            (r"^layers\.encoder_(\d+)\.", r"blocks.\1."),
            (r"^encoder_norm\.", "norm."),
            (r"\.attention\.to_qkv\.", ".attn.qkv."),
            (r"\.attention\.to_out\.", ".attn.proj."),
            (r"\.feedforward\.mlp([12])\.", r".mlp.fc\1."),
        ),
        mark=r"\.attention\.to_qkv\.",
        variant="up",
    ),
    KeyMap(
        "torchvision mobilenet_v2",
        (
            *_MOBILE_STEM,
            *_blocks((1, 2, 3, 4, 3, 3, 1)),
            (r"^(blocks\.0\.0\.)conv\.0\.0\.", r"\1conv_dw."),
            (r"^(blocks\.0\.0\.)conv\.0\.1\.", r"\1bn1."),
            (r"^(blocks\.0\.0\.)conv\.1\.", r"\1conv_pw."),
            (r"^(blocks\.0\.0\.)conv\.2\.", r"\1bn2."),
            (r"\.conv\.0\.0\.", ".conv_pw."),
            (r"\.conv\.0\.1\.", ".bn1."),
            (r"\.conv\.1\.0\.", ".conv_dw."),
            (r"\.conv\.1\.1\.", ".bn2."),
            (r"\.conv\.2\.", ".conv_pwl."),
            (r"\.conv\.3\.", ".bn3."),
            *_MOBILE_HEAD,
        ),
        mark=r"^features\.1\.conv\.0\.0\.",
        variant="timm",
    ),
    KeyMap("torchvision mobilenet_v3_large", _mobilenet_v3(_V3_LARGE, _INVERTED_RESIDUAL), mark=_BLOCK, variant="timm"),
    KeyMap("torchvision mobilenet_v3_small", _mobilenet_v3(_V3_SMALL, _INVERTED_RESIDUAL), mark=_BLOCK, variant="timm"),
    KeyMap(
        "torchvision efficientnet",
        (
            *_MOBILE_STEM,
            (r"^features\.8\.", "last."),
            *((rf"^features\.{stage + 1}\.", f"blocks.{stage}.") for stage in range(7)),
            *_INVERTED_RESIDUAL,
            *_MOBILE_HEAD,
        ),
        mark=r"^features\.1\.0\.block\.",
        variant="timm",
    ),
    KeyMap(
        "torchvision regnet",
        (
            (r"^stem\.0\.", "stem.conv."),
            (r"^stem\.1\.", "stem.bn."),
            *((rf"^trunk_output\.block(\d)\.block\d-{block}\.", rf"s\1.b{block + 1}.") for block in range(32)),
            *((rf"\.{old}\.0\.", f".{new}.conv.") for old, new in _REGNET_LAYERS),
            *((rf"\.{old}\.1\.", f".{new}.bn.") for old, new in _REGNET_LAYERS),
            (r"\.f\.se\.", ".se."),
        ),
        mark=r"^trunk_output\.",
    ),
    KeyMap(
        "torchvision convnext",
        (
            (r"^features\.0\.", "stem."),
            *((rf"^features\.{2 * stage}\.", f"stages.{stage}.downsample.") for stage in (1, 2, 3)),
            *((rf"^features\.{2 * stage + 1}\.", f"stages.{stage}.blocks.") for stage in range(4)),
            (r"\.layer_scale$", ".gamma"),
            (r"\.block\.0\.", ".conv_dw."),
            (r"\.block\.2\.", ".norm."),
            (r"\.block\.3\.", ".mlp.fc1."),
            (r"\.block\.5\.", ".mlp.fc2."),
            (r"^classifier\.0\.", "head.norm."),
            (r"^classifier\.2\.", "head.fc."),
        ),
        mark=r"\.layer_scale$",
    ),
    KeyMap(
        "facebook convnext",
        (
            (r"^downsample_layers\.0\.", "stem."),
            (r"^downsample_layers\.(\d)\.", r"stages.\1.downsample."),
            (r"^stages\.(\d)\.(\d+)\.", r"stages.\1.blocks.\2."),
            (r"\.dwconv\.", ".conv_dw."),
            (r"\.pwconv([12])\.", r".mlp.fc\1."),
            (r"^norm\.", "head.norm."),
        ),
        mark=r"^downsample_layers\.",
    ),
    KeyMap(
        "torchvision swin",
        (
            (r"^features\.0\.0\.", "patch_embed.proj."),
            (r"^features\.0\.2\.", "patch_embed.norm."),
            *((rf"^features\.{2 * stage}\.", f"layers.{stage}.downsample.") for stage in (1, 2, 3)),
            *((rf"^features\.{2 * stage + 1}\.", f"layers.{stage}.blocks.") for stage in range(4)),
            (r"\.mlp\.0\.", ".mlp.fc1."),
            (r"\.mlp\.3\.", ".mlp.fc2."),
        ),
        mark=r"^features\.0\.2\.",
    ),
    # The original merges patches at the end of a stage, timm at the beginning of the next.
    KeyMap("microsoft swin", _MERGE_LATER, mark=r"^layers\.0\.downsample\."),
    KeyMap(
        "torchvision vit",
        (
            (r"^class_token$", "cls_token"),
            (r"^conv_proj\.", "patch_embed.proj."),
            (r"^encoder\.pos_embedding$", "pos_embed"),
            (r"^encoder\.layers\.encoder_layer_(\d+)\.", r"blocks.\1."),
            (r"^encoder\.ln\.", "norm."),
            (r"\.ln_([12])\.", r".norm\1."),
            (r"\.self_attention\.in_proj_", ".attn.qkv."),
            (r"\.self_attention\.out_proj\.", ".attn.proj."),
            (r"\.mlp\.(?:0|linear_1)\.", ".mlp.fc1."),
            (r"\.mlp\.(?:3|linear_2)\.", ".mlp.fc2."),
            (r"^heads\.pre_logits\.", "pre_logits.fc."),
        ),
        mark=r"^conv_proj\.",
        variant="timm",
    ),
)

_CLASSIFIER = re.compile(r"^(?:fc|classifier|head\.fc|heads\.head|head|last_linear)\.(weight|bias)$")
_BARE_CLASSIFIERS = ("fc", "classifier", "head.fc", "head")  # of timm's networks
# Layers between pooling and classifier, in timm's networks and in our heads.
_HEAD_LAYERS = ((re.compile(r"^(?:head\.norm|fc_norm|norm)\."), "norm."), (re.compile(r"^(?:head\.)?pre_logits\."), "pre_logits."))

# Buffers that are computed from the settings, and counters: files may lack them.
IMMATERIAL = re.compile(
    r"(?:^|\.)(?:num_batches_tracked|n_averaged|relative_position_index|relative_coords_table|attn_mask|total_ops|total_params)$"
)


def places(key: str, *, naming: KeyMap, backbone: str, head: str, is_bare: bool) -> list[str]:
    """List the possible names in a net of the tensor ``key`` of a file, the most likely first.

    ``backbone`` and ``head`` are the names of those modules with a dot, or empty for a bare network.
    ``is_bare``: the file is of a bare network, and its tensors belong to the backbone or the head.
    """
    if not is_bare and not key.startswith((backbone, head or backbone)):
        return [key]
    own = not is_bare and key.startswith(backbone)
    timm_key = naming.to_timm(key.removeprefix(backbone) if own else key)
    found = []
    if classifier := _CLASSIFIER.match(timm_key):
        found += [f"{layer}.{classifier[1]}" for layer in ([f"{head}classifier"] if head else _BARE_CLASSIFIERS)]
    if head and key.startswith(head):
        found.append(timm_key)
    if own or is_bare:
        found.append(backbone + timm_key)
    if head:
        found += [head + pattern.sub(layer, timm_key) for pattern, layer in _HEAD_LAYERS if pattern.match(timm_key)]
    return found
