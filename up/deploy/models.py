"""A net in torch and a graph in onnxruntime behind one call, and either of them as a module that the evaluation runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

import torch
from torch import Tensor, nn

from up.bundle.answers import Answer, Floats, Outputs, OutputSpec
from up.types import Record

Forward: TypeAlias = Callable[[Floats], Outputs]
"""A function from images (N, 3, H, W) to the outputs by name: a ``TorchModel`` or a ``Session``."""


class TorchModel:
    """A served module as a function of arrays: float32, on the device that it is on."""

    def __init__(self, module: nn.Module, outputs: Sequence[OutputSpec], device: torch.device = torch.device("cpu")) -> None:  # noqa: B008
        self.module, self.device = module, device
        self._names = [output.name for output in outputs]

    def __call__(self, images: Floats | Tensor | list[Tensor]) -> Outputs:
        """Return the outputs; images of several sizes are a list, on the device already, where the module takes one."""
        with torch.inference_mode():
            found = self.module(images if isinstance(images, list) else torch.as_tensor(images, device=self.device))
        several = [found] if isinstance(found, Tensor) else found
        return {name: each.float().cpu().numpy() for name, each in zip(self._names, several, strict=True)}


class EvaluatedModel(nn.Module):
    """A model as a net in evaluation mode: reads ``image``, returns the scores that the task's evaluator reads."""

    def __init__(self, model: Forward, answer: Answer) -> None:
        super().__init__()
        self._model, self._answer = model, answer

    def forward(self, record: Mapping[str, Tensor]) -> Record:
        found = self._answer.to_scores(self._model(record["image"].numpy()))
        return {
            name: [torch.from_numpy(each) for each in value] if isinstance(value, list) else torch.from_numpy(value)
            for name, value in found.items()
        }
