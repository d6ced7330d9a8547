"""A plug-in that counts what ``runtime.compile`` compiles on each rank, without Inductor: that takes half a minute a form."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch._dynamo.backends.debugging import aot_eager
from torch._dynamo.utils import counters

from up.distributed.group import rank
from up.engine.hooks import Hook, Outline, StepReport

TABLES = {"hook": {"count_graphs": "tests.harness.compiling:CountGraphs"}}
_compile = torch.compile


def counting(compiled: Counter[str]) -> Callable[..., object]:
    """What stands for ``torch.compile``, and counts the compiled forms by the name of the function."""

    def compile_with(run: Callable[..., object], mode: str) -> object:
        def backend(graph: torch.fx.GraphModule, inputs: list[Any]) -> Any:
            compiled[run.__name__] += 1
            return aot_eager(graph, inputs)

        return _compile(run, backend=backend)

    return compile_with


class CountGraphs(Hook):
    """Writes ``graphs-{rank}.json`` into the run folder: compiled forms after each step and in all, and graph breaks."""

    on_every_rank = True

    def __init__(self) -> None:
        self.forms: Counter[str] = Counter()
        self.after: list[int] = []
        torch.compile = counting(self.forms)  # type: ignore[assignment]  # of this process, which is a rank

    def on_start(self, outline: Outline, step: int) -> None:
        self.folder = outline.folder

    def on_step(self, report: StepReport) -> None:
        self.after.append(self.forms.total())

    def on_end(self, step: int, reason: str) -> None:
        found = {"forms": self.forms, "after": self.after, "breaks": counters["graph_break"]}
        (self.folder / f"graphs-{rank()}.json").write_text(json.dumps(found))


def graphs_of(run: Path) -> list[Mapping[str, Any]]:
    """What the ranks of a run have counted."""
    return [json.loads(path.read_text()) for path in sorted(run.glob("graphs-*.json"))]
