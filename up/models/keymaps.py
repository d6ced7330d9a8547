"""Names of tensors in foreign files, as data.

A ``KeyMap`` rewrites the names of one family of files to timm's names, by regular expressions that are applied in turn.
``places`` then lists the places of a tensor of timm's name in a net: ``fc.weight`` is ``head.classifier.weight``.
"UP" is United Perception, whose checkpoints have these names under ``backbone.``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import groupby

from torch import Tensor

Rules = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class KeyMap:
    """Naming of one family of files; ``rules`` translate to timm's names.

    - ``mark``: a pattern of a name in every such file; other files are not read by these rules.
    - ``variant``: the variant of our backbone for the weights, if there are two.
    - ``units``: of networks of inverted residuals, whose files number their layers: a pattern of the stem, of a block, of the
      last layers. The layers of a unit are ours of the same unit, in order.
    - ``eps``: a pattern of a name in the files whose networks have another eps in their BatchNorms than timm's, and that eps.
    - ``unused``: a pattern of names without a place in our networks, and ``unused_because``, the reason.
    """

    name: str
    rules: Rules = ()
    mark: str = ""
    variant: str | None = None
    units: str = ""
    eps: tuple[str, float] | None = None
    unused: str = ""
    unused_because: str = ""

    def fits(self, keys: Iterable[str]) -> bool:
        """Return whether one of a file's ``keys`` has the mark."""
        return any(re.search(self.mark, key) for key in keys)

    def leaves_out(self, key: str) -> bool:
        """Return whether our networks have no place for the tensor."""
        return bool(self.unused) and re.match(self.unused, key) is not None

    def eps_of(self, keys: Iterable[str]) -> float | None:
        """Return the eps of the BatchNorms of a file's network, if it is known."""
        return self.eps[1] if self.eps is not None and any(re.search(self.eps[0], key) for key in keys) else None

    def to_timm(self, keys: Iterable[str], own: Iterable[str]) -> list[str]:
        """Translate a file's names to timm's; ``own`` are the names of our network, in the order of its layers."""
        named = list(keys)
        for pattern, replacement in self.rules:
            named = [re.sub(pattern, replacement, key) for key in named]
        if not self.units:
            return named
        layers = (layer_of(key) for key in named if re.match(self.units, key))
        theirs = sorted(layers, key=lambda layer: re.sub(r"\d+", lambda number: number[0].zfill(3), layer))
        pairs = zip(_grouped(theirs, self.units), _grouped(map(layer_of, own), r"blocks\.\d+\.\d+"), strict=False)
        ours = dict(pair for unit, own_unit in pairs for pair in zip(unit, own_unit, strict=False))
        return [f"{ours.get(layer_of(key), layer_of(key))}.{key.rpartition('.')[2]}".lstrip(".") for key in named]


def layer_of(key: str) -> str:
    """Return the module of a tensor."""
    return key.rpartition(".")[0]


def _grouped(layers: Iterable[str], unit: str) -> list[list[str]]:
    """Group neighbouring layers whose names begin with the same unit, or with none."""
    groups = groupby(dict.fromkeys(layers), lambda layer: found[0] if (found := re.match(unit, layer)) else "")
    return [list(group) for _, group in groups]


_FEATURES = r"features\.\d+(?:\.\d+(?=\.block))?"
_MOBILE_HEAD: Rules = ((r"^classifier\.[13]\.", "classifier."), (r"^classifier\.0\.", "features.99."))
_LUKEMELAS = ("_expand_conv", "_bn0", "_depthwise_conv", "_bn1", "_se_reduce", "_se_expand", "_project_conv", "_bn2")
_REGNET_LAYERS = ((r"f\.a", "conv1"), (r"f\.b", "conv2"), (r"f\.c", "conv3"), ("proj", "downsample"))
_MERGE_LATER: Rules = tuple((rf"^layers\.{stage}\.downsample\.", f"layers.{stage + 1}.downsample.") for stage in (2, 1, 0))
_NORMS_OF_STAGES = KeyMap("", unused=r"norm[0-2]\.", unused_because="norms of stages whose features this net does not return")
_LAYER0: Rules = ((r"^layer0\.0\.", "conv1."), (r"^layer0\.1\.", "bn1."))

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
    KeyMap("UP mobilenetv2", _MOBILE_HEAD, mark=r"^features\.1\.conv\.7\.", variant="up", units=_FEATURES),
    KeyMap("UP mobilenetv3", _MOBILE_HEAD, mark=r"\.conv\.\d\.fc\.", variant="up", units=_FEATURES),
    KeyMap(
        "UP efficientnet",  # names of lukemelas' EfficientNet-PyTorch, which numbers blocks over the whole network
        (
            *((rf"\.{layer}\.", f".block.{place}.") for place, layer in enumerate(_LUKEMELAS)),
            (r"^_conv_stem\.", "features.0.0."),
            (r"^_bn0\.", "features.0.1."),
            (r"^_blocks\.", "features.1."),
            (r"^_conv_head\.", "features.2.0."),
            (r"^_bn1\.", "features.2.1."),
            (r"^_fc\.", "classifier."),
        ),
        mark=r"^_blocks\.",
        variant="up",
        eps=("", 1e-3),
        units=_FEATURES,
    ),
    KeyMap(
        "UP regnet",
        (
            (r"^(s\d\.b\d+)\.proj\.", r"\1.downsample.conv."),
            (r"^(s\d\.b\d+)\.bn\.", r"\1.downsample.bn."),
            *((rf"\.{old}\.", f".{new}.conv.") for old, new in _REGNET_LAYERS[:3]),
            *((rf"\.{old}_bn\.", f".{new}.bn.") for old, new in _REGNET_LAYERS[:3]),
            (r"\.f\.se\.f_ex\.0\.", ".se.fc1."),
            (r"\.f\.se\.f_ex\.2\.", ".se.fc2."),
        ),
        mark=r"\.f\.a_bn\.",
    ),
    replace(_NORMS_OF_STAGES, name="UP swin", rules=(*_MERGE_LATER, (r"^norm3\.", "norm.")), mark=r"^norm3\."),
    replace(
        _NORMS_OF_STAGES,
        name="UP CSWin",
        rules=((r"^stage1_conv\.", "stage1_conv_embed.0."), (r"^stage1_norm\.", "stage1_conv_embed.2."), (r"^norm3\.", "norm.")),
        mark=r"^stage1_norm\.",
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
    *(
        KeyMap(f"torchvision {name}", _MOBILE_HEAD, mark=mark, variant="timm", units=_FEATURES, eps=eps)
        for name, mark, eps in (
            ("mobilenet_v2", r"^features\.1\.conv\.0\.0\.", None),
            ("mobilenet_v3", r"^features\.1\.block\.", ("", 1e-3)),
            ("efficientnet", r"^features\.1\.0\.block\.", (r"^features\.(?:3\.4|6\.14)\.block\.", 1e-3)),  # b5 to b7, v2
        )
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
    # Of the published files; torchvision renames on loading.
    KeyMap("torchvision densenet", ((r"(denselayer\d+\.(?:norm|conv))\.(\d)\.", r"\1\2."),), mark=r"denselayer\d+\.norm\.1\."),
    KeyMap(
        "torchvision vgg",
        tuple((rf"^classifier\.{place}\.", name) for place, name in ((0, "pre_logits.fc1."), (3, "pre_logits.fc2."), (6, "fc."))),
        mark=r"^classifier\.6\.",
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

# Buffers that are computed from the settings, counters, and LoRA's updates, which are merged: files may lack them.
IMMATERIAL = re.compile(
    r"(?:^|\.)(?:num_batches_tracked|n_averaged|relative_position_index|relative_coords_table|attn_mask|total_ops|total_params"
    r"|lora_A|lora_B|lora_scale)$"
)


def split_biases(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Split the biases of torchvision's Swin v2 into those of queries and values: the keys' are zero there, and timm has none."""
    split: dict[str, Tensor] = {}
    is_swin_v2 = any(".attn.cpb_mlp." in key for key in tensors)
    for key, tensor in tensors.items():
        if is_swin_v2 and key.endswith(".attn.qkv.bias"):
            queries, _, values = tensor.chunk(3)
            prefix = key.removesuffix("qkv.bias")
            split |= {f"{prefix}q_bias": queries, f"{prefix}v_bias": values}
        else:
            split[key] = tensor
    return split


def places(key: str, timm_key: str, *, backbone: str, head: str, is_bare: bool) -> list[str]:
    """List the possible names in a net of the tensor ``key`` of a file, ``timm_key`` by timm's names, the most likely first.

    ``backbone`` and ``head`` are the names of those modules with a dot, or empty for a bare network.
    ``is_bare``: the file is of a bare network, and its tensors belong to the backbone or the head.
    """
    if not is_bare and not key.startswith((backbone, head or backbone)):
        return [key]
    found = []
    if classifier := _CLASSIFIER.match(timm_key):
        found += [f"{layer}.{classifier[1]}" for layer in ([f"{head}classifier"] if head else _BARE_CLASSIFIERS)]
    if head and key.startswith(head):
        found.append(timm_key)
    if is_bare or key.startswith(backbone):
        found.append(backbone + timm_key)
    if head:
        found += [head + pattern.sub(layer, timm_key) for pattern, layer in _HEAD_LAYERS if pattern.match(timm_key)]
    return found
