"""Files of a search for an architecture: networks for the list ``net`` of any run."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from up.engine.hooks import Hook, Outline
from up.files import write_text
from up.models.genotype import Genotype
from up.run_files import FRAGMENTS
from up.supernet.section import SUPERNET
from up.types import Record

PARETO, _TABLE = "pareto", "networks.csv"
OF_THE_SUPERNET = ("candidates", "nodes")  # arguments that a derived network does not take


@dataclass(frozen=True)
class FoundNetwork:
    """A network: the file that it is written to, without ``.yaml``, its genotype, and what is known about it."""

    name: str
    genotype: Genotype
    facts: Mapping[str, float] = field(default_factory=dict)


class GenotypeFiles(Hook):
    """Write the networks found so far with each checkpoint, and a table where more is known than their genotypes."""

    def __init__(self, net: Sequence[Record], values: Mapping[str, float], found: Callable[[], Sequence[FoundNetwork]]) -> None:
        self._net, self._values, self._found = net, values, found
        self._folder = Path()

    def on_start(self, outline: Outline, step: int) -> None:
        self._folder = outline.folder / FRAGMENTS

    def on_save(self, step: int, path: Path) -> None:
        found = self._found()
        files = {self._folder / f"{network.name}.yaml": network for network in found}
        for file, network in files.items():
            file.parent.mkdir(parents=True, exist_ok=True)
            write_text(file, fragment(self._net, self._values, network))
        for file in {*self._folder.glob(f"{PARETO}/*.yaml")} - files.keys():  # of an earlier, larger front
            file.unlink()
        if any(network.facts for network in found):
            write_text(self._folder / _TABLE, _table(found))


def fragment(net: Sequence[Record], values: Mapping[str, float], network: FoundNetwork) -> str:
    """Write the list ``net`` with the network in the place of the supernet, as YAML; ``values`` are further arguments of it."""
    modules = []
    for module in net:
        if module["type"] == SUPERNET:
            kept = {name: value for name, value in module.get("kwargs", {}).items() if name not in OF_THE_SUPERNET}
            kwargs = {**kept, **values, "genotype": network.genotype.as_record()}
            module = {**module, "type": "cell_network", "kwargs": kwargs}
        modules.append(module)
    facts = ", ".join(f"{name} {value:g}" for name, value in network.facts.items())
    header = f"# A network found by a search{f': {facts}' if facts else ''}. Name this file in `base:`, and leave `net` out.\n"
    return header + yaml.safe_dump({"net": modules}, sort_keys=False, default_flow_style=None, width=120)


def _table(found: Sequence[FoundNetwork]) -> str:
    text = io.StringIO()
    names = list(found[0].facts)
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["file", *names])
    writer.writerows([f"{network.name}.yaml", *(network.facts[name] for name in names)] for network in found)
    return text.getvalue()
