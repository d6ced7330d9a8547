"""Pretrained networks: weights of timm by name, the preprocessing that goes with weights, and the list of networks."""

from __future__ import annotations

import fnmatch
import re
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import cast

import timm
import torch
from huggingface_hub import get_hf_file_metadata, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import HfHubHTTPError
from timm.models import PretrainedCfg
from torch import nn

from up.models.adapter import Variant
from up.models.complexity import Cost, complexity
from up.models.preprocessing import ImagePreprocessing, of_timm
from up.models.weight_files import Weights, WeightsError, read_file, reason_in
from up.text import did_you_mean, some_of

TIMM = "timm:"
_HUB_FILES = ("model.safetensors", "pytorch_model.bin")
_OF_TENSORFLOW = "tf_efficientnet_"  # timm's weights that fit the backbones' variant "up"


@dataclass(frozen=True)
class ModelRow:
    """A network of timm, for `up models`."""

    name: str  # with the tag of its weights where weights are listed
    tags: tuple[str, ...]  # of its weights, the default first
    preprocessing: ImagePreprocessing

    @cached_property
    def cost(self) -> Cost:
        """Parameters and multiply-adds at the input size; builds the network without memory, in about a second."""
        with torch.device("meta"):
            network = timm.create_model(self.name)
        return complexity(network.eval(), self.preprocessing.input_size, depth=0).total


def models_like(pattern: str = "", pretrained: bool = False) -> list[ModelRow]:
    """List timm's networks whose names contain ``pattern``, or match it where it has wildcards.

    A row is an architecture; with ``pretrained``, one of its sets of weights. Nothing is downloaded.
    """
    wanted = pattern.removeprefix(TIMM)
    wanted = wanted if re.search(r"[*?\[]", wanted) else f"*{wanted}*"
    names = timm.list_pretrained() if pretrained else timm.list_models()
    found = fnmatch.filter(names, wanted)
    return [ModelRow(name, _tags(name.partition(".")[0]), cast("ImagePreprocessing", of_timm(name))) for name in found]


def preprocessing_of(source: str | Path) -> ImagePreprocessing | None:
    """Return the preprocessing of images for weights; None if it is not known.

    ``source`` is ``timm:NAME``, a network of timm (its default tag), or a file: our checkpoint carries its own, a published
    file is known by its name.
    """
    name = str(source)
    if not name.startswith(TIMM) and Path(source).is_file():
        return read_file(Path(source)).preprocessing
    bare = name.removeprefix(TIMM)
    known = bare == bare.partition(".")[0] or timm.is_model_pretrained(bare)  # "resnet50.pth" does not name weights of timm
    return of_timm(bare) if known else None


def read_state(source: str | Path) -> Weights:
    """Read the weights of a file (see ``read_file``), or ``timm:resnet50.a1_in1k``. Raises ``WeightsError`` with the reason."""
    if not str(source).startswith(TIMM):
        return read_file(Path(source))
    name = str(source).removeprefix(TIMM)
    require_known(name)
    try:
        network = with_weights(name)
    except Exception as error:  # each download library has its own errors
        raise WeightsError(
            f"cannot be downloaded ({type(error).__name__}: {reason_in(error)})", file=f"{TIMM}{name}", fix=how_to_fetch(name)
        ) from error
    return Weights(str(source), network.state_dict(), variant=variant_needed(str(source)), preprocessing=of_timm(name))


def with_weights(name: str, **kwargs: object) -> nn.Module:
    """Build a network of timm with its weights: a file in torch's cache, or downloaded into that of the hub on first use."""
    local = _in_torch_cache(name)
    if local is None and not is_downloaded(f"{TIMM}{name}"):
        _expect_answer(name)
    overlay = {"pretrained_cfg_overlay": {"file": str(local)}} if local else {}
    return cast("nn.Module", timm.create_model(name, pretrained=True, **overlay, **kwargs))


def variant_needed(source: str | None) -> Variant | None:
    """Return the variant of a backbone that ``timm:NAME`` fits; None for files, which may be of either."""
    if source is None or not source.startswith(TIMM):
        return None
    return "up" if source.removeprefix(TIMM).startswith(_OF_TENSORFLOW) else "timm"


def is_of_timm(source: str) -> bool:
    """Return whether ``source`` names weights of timm. Raises ``WeightsError`` for a name that timm does not have."""
    if not source.startswith(TIMM):
        return False
    require_known(source.removeprefix(TIMM))
    return True


def classes_of_timm(source: str) -> int | None:
    """Return the number of classes of the weights ``timm:NAME``; None if timm does not know."""
    found = timm.get_pretrained_cfg(source.removeprefix(TIMM))
    return None if found is None else int(found.num_classes)


def is_downloaded(source: str) -> bool:
    """Return whether the weights ``timm:NAME`` are on this machine: in the cache of the hub, or in torch's."""
    name = source.removeprefix(TIMM)
    found = timm.get_pretrained_cfg(name)
    if found is None or found.file or found.state_dict or _in_torch_cache(name) is not None:
        return found is not None
    names = [found.hf_hub_filename] if found.hf_hub_filename else _HUB_FILES
    return bool(found.hf_hub_id) and any(isinstance(try_to_load_from_cache(found.hf_hub_id, each), str) for each in names)


def require_known(name: str) -> None:
    """Raise ``WeightsError`` with near names for weights that timm does not have."""
    network_name = name.partition(".")[0]
    if not timm.is_model(network_name):
        raise WeightsError(f"timm has no such network.{did_you_mean(network_name, timm.list_models())}", file=f"{TIMM}{name}")
    tags = timm.list_pretrained(f"{network_name}.*") + timm.list_pretrained(network_name)
    if not timm.is_model_pretrained(name) or (name != network_name and name not in tags):
        expected = some_of(tags) if tags else "another network, it has none for this one"
        raise WeightsError("timm has no such weights", expected=expected, file=f"{TIMM}{name}")


def how_to_fetch(name: str) -> str:
    """Say which file to fetch for a machine without a network, and where to put it."""
    config = timm.get_pretrained_cfg(name)
    url, place = _url_of(config), _places(name, config)[0]
    return (
        f"Without a network, fetch {url} elsewhere and put it at {place}, or name its path in saver.pretrain_model; or set HF_HOME "
        "to a copy of the hub's cache that has it, with HF_HUB_OFFLINE=1."
    )


def _expect_answer(name: str) -> None:
    """Ask the hub for a file once: without a network its client would try for a minute. Raises the client's exceptions."""
    config = timm.get_pretrained_cfg(name)
    if config is not None and config.hf_hub_id:
        with suppress(HfHubHTTPError):  # it answered; the download reports what is wrong
            get_hf_file_metadata(_url_of(config))


def _url_of(config: PretrainedCfg) -> str:
    if config.hf_hub_id:
        return hf_hub_url(config.hf_hub_id, config.hf_hub_filename or _HUB_FILES[0])
    return str(config.url)


def _places(name: str, config: PretrainedCfg) -> list[Path]:
    """List the paths in torch's cache where a file of the weights is looked for, the preferred first."""
    suffixes = dict.fromkeys([Path(_url_of(config)).suffix, ".safetensors", ".pth", ".bin"])
    published = [Path(str(config.url)).name] if config.url else []
    tagged = f"{name.partition('.')[0]}.{config.tag}" if config.tag else name
    return [
        Path(torch.hub.get_dir()) / "checkpoints" / file for file in (*(f"{tagged}{suffix}" for suffix in suffixes), *published)
    ]


def _in_torch_cache(name: str) -> Path | None:
    config = timm.get_pretrained_cfg(name)
    return None if config is None else next((path for path in _places(name, config) if path.is_file()), None)


def _tags(architecture: str) -> tuple[str, ...]:
    names = timm.list_pretrained(f"{architecture}.*")
    default = timm.get_pretrained_cfg(architecture).tag
    tags = [name.partition(".")[2] for name in names]
    return tuple(sorted(tags, key=lambda tag: (tag != default, tag)))
