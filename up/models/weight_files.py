"""Read weights from foreign files, without ever running code in them."""

from __future__ import annotations

import pickle
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from up.errors import UserError
from up.file_kinds import NAMES, kind_of
from up.files import damage
from up.models.lora import merged_state
from up.models.preprocessing import ImagePreprocessing, of_file
from up.text import did_you_mean, some_of

Content = Mapping[object, object]  # of a file
_MODEL_KEYS = ("model", "state_dict", "model_state_dict", "net", "weights")
_EMA_KEYS = ("ema", "ema_state_dict", "state_dict_ema", "model_ema")
_LAYOUT = "Expected a dict of tensors, alone or under 'model' or 'state_dict'."
_NOT_WEIGHTS = {  # frequent downloads by mistake, by their first bytes
    b"<": "an HTML or XML page",
    b"version https://git-lfs": "a git-lfs pointer (fetch the file itself with git lfs pull)",
    b"\x93NUMPY": "a NumPy array",
}
_EVERYDAY = ("numpy", "argparse", "collections", "easydict", "omegaconf", "pathlib", "torch", "up")  # in training checkpoints


class WeightsError(UserError):
    """Weights are missing, damaged, unsafe, or for another network."""


@dataclass(frozen=True)
class Weights:
    """Tensors of a file by name, without prefixes of wrappers."""

    source: str
    model: Mapping[str, Tensor]
    ema: Mapping[str, Tensor] = field(default_factory=dict)  # averaged weights; may lack tensors that are not averaged
    class_names: tuple[Any, ...] | None = None  # names, or a list of names for every head
    config: str | None = None  # the effective YAML of the training run
    variant: str | None = None  # of the backbone, if the file has it
    preprocessing: ImagePreprocessing | None = None  # of the images that they were trained with, if it is known

    def tensors(self) -> dict[str, Tensor]:
        """Return the averaged weights if there are any, else the raw weights; LoRA's updates are merged."""
        return merged_state({**self.model, **self.ema})


def read_file(path: Path) -> Weights:
    """Read the weights of a ``.pth``, ``.pt``, ``.bin`` or ``.safetensors`` file.

    A file is our checkpoint, a dict with ``state_dict``, or the bare dict of tensors. Its sidecar ``FILE.json``, if any,
    is checked first. Raises ``WeightsError`` with the file and the reason.
    """
    _require_file(path)
    _require_intact(path)
    content = _content(path)
    averages = (content.get(key) for key in _EMA_KEYS)
    ema = next((_averages(each) for each in averages if isinstance(each, Mapping)), {})
    model = _tensors({key: value for key, value in content.items() if key not in _EMA_KEYS})
    if not model and not ema:
        raise WeightsError(f"contains no weights (got a dict of {some_of(content, 5) or 'nothing'}). {_LAYOUT}", file=path)
    config, variant = _text(content.get("config")), _text(content.get("variant"))
    preprocessing = ImagePreprocessing.of(content.get("preprocessing")) or of_file(path)
    return Weights(str(path), model, ema, _class_names(content), config, variant, preprocessing)


def clean_key(key: str) -> str:
    """Remove the prefixes of DistributedDataParallel and torch.compile from a tensor's name."""
    stripped = re.sub(r"^(?:(?:module|_orig_mod)\.)+", "", key)
    return stripped.replace("._orig_mod.", ".")


def _tensors(content: Content) -> dict[str, Tensor]:
    """Return the tensors of a mapping, or of the mapping in it under a well-known key."""
    for key in (*_MODEL_KEYS, *_EMA_KEYS):
        inner = content.get(key)
        if isinstance(inner, Mapping) and (found := _tensors(inner)):
            return found
    held = ((key, value) for key, value in content.items() if isinstance(key, str) and isinstance(value, Tensor))
    return {clean_key(key): value for key, value in held}


def _averages(content: Content) -> dict[str, Tensor]:
    """Return the tensors in the state of an EMA, under any key."""
    inner = (_tensors(value) for value in content.values() if isinstance(value, Mapping))
    return _tensors(content) or next((tensors for tensors in inner if tensors), {})


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _class_names(content: Content) -> tuple[Any, ...] | None:
    names = content.get("class_names")
    return tuple(names) if isinstance(names, (list, tuple)) and names else None


def _content(path: Path) -> Content:
    try:
        if path.suffix == ".safetensors":
            content: object = load_file(path, device="cpu")
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch's advice on TorchScript and pickles; our error has the fix
                content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the readers fail in many ways on damaged files
        raise WeightsError(_reason(path, error), file=path) from error
    if not isinstance(content, Mapping):
        raise WeightsError(f"contains no weights (got {type(content).__name__}). {_LAYOUT}", file=path)
    return content


def _reason(path: Path, error: Exception) -> str:
    """Find the reason why a file cannot be read: it would run code, is not a file of weights, or is damaged."""
    if isinstance(error, PermissionError):
        return "cannot be read (permission denied)."
    text = str(error)
    if "TorchScript" in text:
        return "contains code, refused (a TorchScript archive). Save its state_dict() and name that file."
    code = re.search(r"(?:GLOBAL|class) ([\w.]+\.[\w.]+) (?:whose module|was not)", text)
    if code and not code[1].startswith("torch._utils."):  # torch allows these, a name here is truncated
        return _refusal(path, code[1])
    kind = kind_of(path)
    if kind in ("package", "archive", "onnx", "yaml", "image"):
        return f"contains no weights: it is {NAMES[kind]}."
    with path.open("rb") as file:
        start = file.read(64).lstrip()
    for signature, what in _NOT_WEIGHTS.items():
        if start.startswith(signature):
            return f"contains no weights: it is {what}."
    if isinstance(error, pickle.UnpicklingError) and start.startswith(b"\x80"):
        return f"damaged, or a pickle that torch.save did not write, refused ({reason_in(text)})."
    return f"damaged ({path.stat().st_size:,} bytes: {reason_in(text) or type(error).__name__})."


def _refusal(path: Path, name: str) -> str:
    """Describe a file that would import ``name``, with the way to convert it if that is usual in checkpoints."""
    refused = f"contains code, refused ({name} would have to be imported). "
    if name.partition(".")[0] not in _EVERYDAY:
        return refused + "Do not open it otherwise; ask for a file of tensors alone, torch.save(model.state_dict(), ...)."
    load = f"c = torch.load('{path.name}', map_location='cpu', weights_only=False)"
    save = "torch.save({k: c[k] for k in ('model', 'state_dict', 'ema') if k in c} or c, 'weights.pth')"
    where = "If you trust its source, save its tensors alone, with the program that wrote it installed"
    return f'{refused}{where}: python -c "import torch; {load}; {save}"'


def reason_in(error: Exception | str) -> str:
    """Extract the line with the reason from the long messages of torch and of download libraries."""
    own = str(error).split("WeightsUnpickler error:")[-1].split("Check the documentation")[0]
    lines = [line.strip() for line in own.splitlines() if line.strip()]
    return re.split(r"(?<=\w)\.(?: |$)", lines[0])[0] if lines else ""


def _require_file(path: Path) -> None:
    if path.is_dir():
        raise WeightsError(f"is a folder. Expected a file of weights in it, such as {path / 'ckpt_best.pth'}.", file=path)
    if not path.is_file():
        beside = [file.name for file in path.parent.iterdir()] if path.parent.is_dir() else []
        near = did_you_mean(path.name, beside).strip()
        raise WeightsError("no such file", file=path, expected="a file of weights", fix=near)


def _require_intact(path: Path) -> None:
    difference = damage(path)
    if difference:
        raise WeightsError(f"damaged ({difference}). Copy it again or name another.", file=path)


def digest_of(state: Mapping[str, Tensor], before: bytes = b"") -> str:
    """Hash the tensors of a state dict by SHA-256, after the bytes ``before``."""
    found = sha256(before)
    for name, tensor in state.items():
        found.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        found.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()
