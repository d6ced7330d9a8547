"""From a checked experiment to its teachers: their nets, filled, and what is known of what they were trained on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Literal

import yaml

from up.build.network import build_net
from up.errors import Problem, UserError
from up.distill.section import weights_of_teachers
from up.tasks.experiment import Experiment
from up.models.net import Net
from up.models.weights import Weights, WeightsError, load_weights, read_state

Size = tuple[int, int]
PHASES: tuple[Literal["train", "test"], ...] = ("train", "test")


@dataclass(frozen=True)
class Source:
    """A teacher's net with its weights. ``place`` is the key of the configuration that names them."""

    name: str
    place: str
    net: Net
    class_names: list[Any] | None
    sizes: Mapping[str, Size]  # height and width of the images that it saw in "train" and "test", where the file says so
    lines: list[str]  # for the log
    takes_others: bool = True  # images of other sizes too


def build_source(experiment: Experiment, name: str, data_facts: Mapping[str, Any], *, files: bool) -> Source:
    """The teacher ``name``; without ``files`` its weights are drawn. Raises ``UserError`` where net and file do not fit."""
    place, file = weights_of_teachers(experiment)[name]
    section = experiment.config.teachers[name]
    is_graph = section[0].type == "onnx"
    with _told_at(experiment, place):
        weights = read_state(file) if files and file is not None and not is_graph else None
    with experiment.placing(name):
        net = build_net(experiment, experiment.task.derived_for_teacher(weights, section, data_facts), section, name, file)
    if is_graph:
        graph: Any = net[section[0].name]
        sizes = dict.fromkeys(PHASES, graph.input_size) if graph.input_size else {}
        return Source(name, place, net, graph.class_names, sizes, [f"{name}: {file}, by onnxruntime"], takes_others=False)
    if weights is None:
        return Source(name, place, net, None, {}, [])
    with _told_at(experiment, place):
        report = load_weights(net, weights, heads=())  # a head that does not fit would teach noise
    names = list(weights.class_names) if weights.class_names else None
    return Source(name, place, net, names, sizes_of(experiment, weights), [f"{name}: {line}" for line in report.lines()])


@contextmanager
def _told_at(experiment: Experiment, place: str) -> Iterator[None]:
    """Say of a file that cannot be used which key names it: a run may have several files of weights."""
    try:
        yield
    except WeightsError as error:
        experiment.raise_if_any([Problem(str(error), key=place)])


def sizes_of(experiment: Experiment, weights: Weights) -> dict[str, Size]:
    """The sizes of the images that a checkpoint saw in "train" and "test", by the transforms of the configuration in it."""
    found: dict[str, Size] = {}
    for phase in PHASES:
        with suppress(UserError, yaml.YAMLError, KeyError, TypeError, AttributeError):
            listed = yaml.safe_load(weights.config or "")["dataset"][phase]["dataset"]["kwargs"]["transformer"]
            spec = experiment.task.input_spec([experiment.build(part, "transform") for part in listed])
            found |= {phase: spec.fixed} if spec is not None and spec.fixed else {}
    return found
