"""From a checked experiment to its teachers: their nets, filled, and what is known of what they were trained on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import yaml

from up.assembly.network import build_net
from up.config.errors import Problem
from up.config.parts import Derived
from up.config.sections import NetModule
from up.errors import UserError
from up.experiment import Experiment, weights_of_teachers
from up.models.net import Net
from up.models.weights import Weights, WeightsError, load_weights, read_state

Size = tuple[int, int]


@dataclass(frozen=True)
class Source:
    """A teacher's net with its weights. ``place`` is the key of the configuration that names them."""

    name: str
    place: str
    net: Net
    class_names: list[Any] | None
    input_size: Size | None  # height and width that it was trained on, where the file says so
    lines: list[str]  # for the log


def build_source(experiment: Experiment, name: str, data_facts: Mapping[str, Any], *, files: bool) -> Source:
    """The teacher ``name``; without ``files`` its weights are drawn. Raises ``UserError`` where net and file do not fit."""
    place, file = weights_of_teachers(experiment)[name]
    section = experiment.config.teachers[name]
    is_graph = section[0].type == "onnx"
    with _told_at(experiment, place):
        weights = read_state(file) if files and file is not None and not is_graph else None
    with experiment.placing(name):
        net = build_net(experiment, facts_for(weights, data_facts, section), section, name)
    if is_graph:
        graph: Any = net[section[0].name]
        return Source(name, place, net, graph.class_names, graph.input_size, [f"{name}: {file}, by onnxruntime"])
    if weights is None:
        return Source(name, place, net, None, None, [])
    with _told_at(experiment, place):
        report = load_weights(net, weights, heads=())  # a head that does not fit would teach noise
    names = list(weights.class_names) if weights.class_names else None
    return Source(name, place, net, names, trained_size(experiment, weights), [f"{name}: {line}" for line in report.lines()])


@contextmanager
def _told_at(experiment: Experiment, place: str) -> Iterator[None]:
    """Say of a file that cannot be used which key names it: a run may have several files of weights."""
    try:
        yield
    except WeightsError as error:
        experiment.refuse([Problem(place, str(error))])


def facts_for(weights: Weights | None, data: Mapping[str, Any], net: Sequence[NetModule]) -> dict[str, Any]:
    """What the parts of a teacher may leave out: the classes that its file names, else those of the data, as a guess only."""
    facts = {name: value.value if isinstance(value, Derived) else value for name, value in data.items()}
    names = weights.class_names if weights is not None else None
    if weights is not None and names:
        known = [len(head) for head in names] if not isinstance(names[0], str) else len(names)
        facts["num_classes"] = Derived(known, f"the class names in {weights.source}")
    elif any("num_classes" in module.kwargs for module in net):
        facts.pop("num_classes", None)
    return facts


def trained_size(experiment: Experiment, weights: Weights) -> Size | None:
    """The size of the images that a checkpoint was trained for, by the transforms of the configuration in it."""
    with suppress(UserError, yaml.YAMLError, KeyError, TypeError, AttributeError):
        dataset = yaml.safe_load(weights.config or "")["dataset"]
        source = dataset.get("test") or dataset["train"]
        listed = source["dataset"]["kwargs"]["transformer"]
        return experiment.plugin.input_size([experiment.build(part, "transform") for part in listed])
    return None
