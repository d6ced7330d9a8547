"""Export of packages, and prediction with them: ``up.deploy.load("model.tar").predict(["a.jpg"])``, without torch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # importing this package must cost nothing: the command line does it for --help
    from up.bundle.predictor import Model

__all__ = ["Model", "load"]


def __getattr__(name: str) -> object:
    if name != "Model":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from up.bundle.predictor import Model

    return Model


def load(
    path: str | Path, *, provider: str = "cpu", topk: int | None = None, batch_size: int = 32, threads: int | None = None
) -> Model:
    """Open a package (.tar) or one of our graphs (.onnx) to predict with.

    ``topk`` limits the classes (None: the number in the package), ``threads`` decode images, ``provider`` is cpu, cuda, tensorrt
    or auto (CUDA if it can be started, else the CPU). Raises ``UserError`` for a damaged package, and for a provider that this
    onnxruntime does not have.
    """
    from up.bundle.package import open_package
    from up.bundle.predictor import Model, package_predictor
    from up.processors import available_processors

    package = open_package(Path(path))
    predictor = package_predictor(package, provider=provider, topk=topk, batch_size=batch_size)
    return Model(package, predictor, threads or min(8, available_processors()))
