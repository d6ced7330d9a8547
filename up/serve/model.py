"""A package, ready to predict within the limits of a server."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from up.bundle.answers import Floats
from up.bundle.archive import PackageError
from up.bundle.operations import DecodeOperation, Operation
from up.bundle.package import Package
from up.bundle.predictor import Predictor
from up.bundle.preprocess import Preprocessing
from up.bundle.session import Session
from up.errors import first_line
from up.serve.batching import BatchSettings
from up.text import count


def served_predictor(
    package: Package, settings: BatchSettings, *, provider: str, topk: int | None, max_pixels: int
) -> Predictor[Floats]:
    """Start the graph of a package, and run it with the smallest and the largest batch so that no request is the first.

    Raises ``UserError`` for a provider that this onnxruntime does not have, and for a graph that does not run.
    """
    manifest = package.manifest
    Image.init()  # imports the formats, which takes a while
    threads = max(1, settings.threads // settings.workers)
    session = Session(package.model, package.label, provider=provider, threads=threads)
    for images in (1, settings.max_batch):
        try:
            session(np.zeros((images, *manifest.input_shape), dtype=np.float32))
        except Exception as error:  # the runtime has a dozen exceptions without a common base
            fix = "Lower --max-batch." if images > 1 else ""
            what = f"the graph does not run on {count(images, 'image')}: {first_line(error)}"
            raise PackageError(what, file=package.label, fix=fix) from None
    prepare = Preprocessing(_limited(manifest.preprocess, max_pixels), manifest.input_size)
    return Predictor(manifest.answer, prepare.placed, lambda images: session(np.stack(images)), prepare.image, topk)


def _limited(operations: Sequence[Operation], max_pixels: int) -> list[Operation]:
    """Return the operations with a lower limit of pixels."""
    return [
        op.model_copy(update={"max_pixels": min(op.max_pixels, max_pixels)}) if isinstance(op, DecodeOperation) else op
        for op in operations
    ]
