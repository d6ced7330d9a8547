"""The network to fine-tune: from a name, a file of weights or a run, or chosen for the machine; with its preprocessing."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import timm
import torch

from up.config.nodes import read_plain
from up.errors import UserError
from up.files import BEST, best_of_run
from up.models.backbones import BACKBONES
from up.models.norm import is_batch_norm
from up.models.preprocessing import ImagePreprocessing, of_timm
from up.models.pretrained import TIMM, is_downloaded, is_of_timm, preprocessing_of, read_state
from up.schema.teacher_files import predicting
from up.text import did_you_mean
from up.types import Kwargs, Record

_CONNECT_S = 3.0
WEIGHT_SUFFIXES = (".pth", ".pt", ".ckpt", ".bin", ".safetensors", ".tar")
CHOICES = {"cpu": "timm:resnet18.a1_in1k", "cuda": "timm:resnet50.a1_in1k"}  # by device
_HEADS: tuple[tuple[str, Kwargs], ...] = (  # by the beginning of a backbone's name
    ("convnext", {"type": "convnext_head"}),
    ("vit_", {"type": "vit_head"}),
    ("deit_", {"type": "vit_head"}),
    ("swin", {"type": "vit_head", "kwargs": {"cls_type": "avg"}}),
    ("CSWin", {"type": "vit_head", "kwargs": {"cls_type": "avg"}}),
)
_WITHOUT_NORMS = ("pretrained", "initializer", "normalize")  # arguments that add no norms; the last changes BatchNorms only
SMALL_NET: Record = {
    "name": "backbone",
    "type": "resnet_custom",
    "kwargs": {"block": "basic", "layers": [1, 1, 1, 1], "width": 32, "stem": "small"},
}
_USUAL = ImagePreprocessing((3, 224, 224), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), "bilinear", 0.875)


@dataclass(frozen=True)
class Network:
    """Modules of ``net:`` up to the head, the weights to start from, and their preprocessing.

    ``title`` describes the network for the user, ``family`` is the name of the backbone, "scratch" for the small ResNet.
    """

    title: str
    family: str
    modules: Sequence[Record]
    weights: str | None
    preprocessing: ImagePreprocessing
    because: str
    takes_one_size: bool = False

    def has_layer_norms(self) -> bool:
        """Return whether the backbone has more LayerNorms (RMSNorms) than BatchNorms; False for one of a plug-in.

        Builds it on the meta device, without memory and in a second or two.
        """
        backbone = self.modules[0]
        if backbone["type"] not in BACKBONES:
            return False
        kwargs = {name: value for name, value in backbone.get("kwargs", {}).items() if name not in _WITHOUT_NORMS}
        with torch.device("meta"):
            modules = [*BACKBONES.get(backbone["type"])(**kwargs).modules()]
        return sum(hasattr(module, "normalized_shape") for module in modules) > sum(map(is_batch_norm, modules))


def network_for(model: str | None, weights: str | None, *, device: str, is_small: bool) -> Network:
    """Find the network that ``model`` names with its weights; without a name choose one for the device.

    ``model`` is a backbone of ``net:`` or of timm, ``timm:NAME`` with timm's weights, a file of weights, or a run folder.
    Raises ``UserError`` for an unknown name and for weights without a network.
    """
    if model is None:
        return _chosen(weights, device=device, is_small=is_small)
    if Path(model).is_dir():
        return _of_run(Path(model))
    if model.lower().endswith(WEIGHT_SUFFIXES) or Path(model).is_file():
        if weights is not None:
            raise UserError(f"--model {model} and --weights {weights} are both files of weights", fix="Leave one of them out.")
        return _of_file(Path(model))
    if model.startswith(TIMM):
        is_of_timm(model)  # raises for an unknown name
        return _of_name(model.removeprefix(TIMM).partition(".")[0], weights or model, "as given")
    _expect_known(model)
    return _of_name(model, weights or _default_weights(model), "as given")


def _chosen(weights: str | None, *, device: str, is_small: bool) -> Network:
    if weights is not None:
        return (
            _of_name(weights.removeprefix(TIMM).partition(".")[0], weights, "as given")
            if weights.startswith(TIMM)
            else _of_file(Path(weights))
        )
    if is_small:
        modules = [SMALL_NET, {"name": "head", "type": "base_cls_head"}]
        return Network("a small ResNet, from scratch", "scratch", modules, None, _USUAL, "for images of this size")
    choice = CHOICES[device]
    name = choice.removeprefix(TIMM).partition(".")[0]
    where = "a GPU" if device == "cuda" else "a CPU"
    if is_downloaded(choice):
        return _of_name(name, choice, f"for {where}")
    if is_online():
        return _of_name(name, choice, f"for {where}; the weights are downloaded")
    because = (
        f"the pretrained weights {choice} are not on this machine, which has no network. With weights, fewer photos are enough: "
        f"--model {name} --weights FILE.pth"
    )
    return _of_name(name, None, because)


def is_online() -> bool:
    """Return whether the hub of pretrained weights can be reached; behind a proxy it is taken to be."""
    if os.environ.get("HF_HUB_OFFLINE", "0") not in ("", "0"):
        return False
    if any(os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")):
        return True
    host = urlsplit(os.environ.get("HF_ENDPOINT", "https://huggingface.co")).hostname or ""
    try:
        socket.create_connection((host, 443), timeout=_CONNECT_S).close()
    except OSError:
        return False
    return True


def _of_name(name: str, weights: str | None, because: str) -> Network:
    backbone: Record = {"name": "backbone", "type": name}
    head = next((dict(kind) for start, kind in _HEADS if name.startswith(start)), {"type": "base_cls_head"})
    if name not in BACKBONES or name == "timm":
        backbone = {"name": "backbone", "type": "timm", "kwargs": {"model_name": name}}
        head = {"type": "base_cls_head"}
    title = f"{name} from scratch" if weights is None else f"{name} with the weights {weights}"
    modules = [backbone, {"name": "head", **head}]
    return Network(title, name, modules, weights, _preprocessing(name, weights), because, _takes_one_size(name))


def _of_file(path: Path) -> Network:
    """Find the network of a file: by the configuration in our checkpoints, else by the name of the file."""
    weights = read_state(path)
    if weights.config is not None:
        return _of_config(read_plain(weights.config), str(path))
    stem = re.sub(r"[^a-z0-9]+", "_", path.name.lower())
    if any(key.startswith("_conv_stem.") for key in weights.model):  # EfficientNets converted from TensorFlow
        stem = f"tf_{stem}"
    known = [*BACKBONES, *timm.list_models()]
    found = [name for name in known if re.match(rf"{re.escape(name.lower())}(_|$)", stem)]
    if not found:
        what = f"--model {path}: contains weights, but not the name of their network"
        raise UserError(what, fix=f"Name it too, such as --model resnet50 --weights {path}.")
    return _of_name(max(found, key=len), str(path), "by the name of the file")


def _of_run(folder: Path) -> Network:
    weights = best_of_run(folder)
    if weights is None:
        raise UserError(f"--model {folder}: contains no {BEST}", expected="a run folder, a file of weights or a network's name")
    return _of_file(weights)


def _of_config(config: Record, source: str) -> Network:
    """Take the modules of a run up to the head, whose derived arguments are derived anew."""
    modules = predicting(config["net"])
    modules[-1].get("kwargs", {}).pop("num_classes", None)
    family = str(modules[0].get("kwargs", {}).get("model_name", modules[0]["type"]))
    title = f"{family} with the weights {source}"
    return Network(title, family, modules, source, _preprocessing(family, source), "as given", _takes_one_size(family))


def _preprocessing(name: str, weights: str | None) -> ImagePreprocessing:
    """Return the preprocessing of the weights, by default that of timm's weights for the network."""
    return _USUAL if weights is None else preprocessing_of(weights) or of_timm(name) or _USUAL


def _takes_one_size(name: str) -> bool:
    found = timm.get_pretrained_cfg(name) if timm.is_model(name) else None
    return found is not None and bool(found.fixed_input_size)


def _default_weights(name: str) -> str | None:
    """Return timm's weights for a network, the tag that it uses by default; None if it has none."""
    if not timm.is_model(name) or not timm.is_model_pretrained(name):
        return None
    found = timm.get_pretrained_cfg(name)
    return f"{TIMM}{name}.{found.tag}" if found is not None and found.tag else f"{TIMM}{name}"


def _expect_known(name: str) -> None:
    if name not in BACKBONES and not timm.is_model(name):
        near = did_you_mean(name, [*BACKBONES, *timm.list_models()])
        what = f"--model {name}: neither a backbone nor a network of timm, and no file.{near}"
        raise UserError(what, fix="`up show components backbone` and timm.list_models() list them." if not near else "")
