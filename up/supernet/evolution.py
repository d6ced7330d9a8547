"""Offspring of genotypes: drawn at random, by mutation and by crossover (Yang et al. 2020, CARS, arXiv 1909.04977, section 3.2)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from up.errors import UserError
from up.models.genotype import INPUTS, Edge, Genotype, Operation
from up.seed import key

_TRIES = 50  # to draw a genotype that is not there yet: a small space may have no other


def generator_of(*parts: int) -> np.random.Generator:
    """Return the random numbers of a purpose."""
    return np.random.Generator(np.random.Philox(key=key(*parts)))


@dataclass(frozen=True)
class CellSpace:
    """All genotypes of cells with ``nodes`` nodes and these operations that are ``allowed``; a node has two different inputs."""

    nodes: int
    operations: Sequence[Operation]
    allowed: Callable[[Genotype], bool] = lambda genotype: True

    def sample(self, rng: np.random.Generator) -> Genotype:
        """Draw a genotype, every one with the same probability."""
        return Genotype(self._cell(rng), self._cell(rng))

    def mutate(self, parent: Genotype, rng: np.random.Generator) -> Genotype:
        """Draw one node of each cell again."""
        return Genotype(self._mutated(parent.normal, rng), self._mutated(parent.reduce, rng))

    def cross(self, one: Genotype, other: Genotype, rng: np.random.Generator) -> Genotype:
        """Take each node from one of two parents."""
        return Genotype(self._crossed(one.normal, other.normal, rng), self._crossed(one.reduce, other.reduce, rng))

    def offspring(self, population: Sequence[Genotype], number: int, rng: np.random.Generator) -> list[Genotype]:
        """Draw ``number`` new genotypes: a quarter by mutation, a quarter by crossover, the rest at random.

        Fewer where the space has no others.
        """
        ways = ["mutate"] * (number // 4) + ["cross"] * (number // 4)
        ways += ["sample"] * (number - len(ways))
        known, children = {*population}, []
        for way in ways:
            for _ in range(_TRIES):
                parents = [population[at] for at in rng.integers(len(population), size={"mutate": 1, "cross": 2}.get(way, 0))]
                child: Genotype = getattr(self, way)(*parents, rng)
                if child not in known and self.allowed(child):
                    known.add(child)
                    children.append(child)
                    break
        return children

    def first(self, number: int, rng: np.random.Generator) -> list[Genotype]:
        """Draw up to ``number`` different genotypes. Raises ``UserError`` if none of many draws is allowed."""
        found: dict[Genotype, None] = {}
        for _ in range(_TRIES * number):
            genotype = self.sample(rng)
            if self.allowed(genotype):
                found[genotype] = None
            if len(found) == number:
                break
        if not found:
            what = f"no network of {_TRIES * number} drawn is within the limit"
            raise UserError(what, key="max_size", fix="Raise it, or make the supernet smaller.")
        return [*found]

    def _node(self, node: int, rng: np.random.Generator) -> tuple[Edge, Edge]:
        first, second = sorted(rng.choice(node + INPUTS, size=2, replace=False).tolist())
        chosen = [self.operations[at] for at in rng.integers(len(self.operations), size=2)]
        return (chosen[0], first), (chosen[1], second)

    def _cell(self, rng: np.random.Generator) -> tuple[Edge, ...]:
        return tuple(edge for node in range(self.nodes) for edge in self._node(node, rng))

    def _mutated(self, edges: tuple[Edge, ...], rng: np.random.Generator) -> tuple[Edge, ...]:
        node = int(rng.integers(self.nodes))
        return (*edges[: 2 * node], *self._node(node, rng), *edges[2 * node + 2 :])

    def _crossed(self, one: tuple[Edge, ...], other: tuple[Edge, ...], rng: np.random.Generator) -> tuple[Edge, ...]:
        picks = rng.integers(2, size=self.nodes)
        return tuple(edge for node, pick in enumerate(picks) for edge in (one, other)[pick][2 * node : 2 * node + 2])


@dataclass(frozen=True)
class Individual:
    """A genotype with the size of its path, and its accuracy on the held-out images; None before it is measured."""

    genotype: Genotype
    size: float
    accuracy: float | None = None

    def scored(self, accuracy: float) -> Individual:
        """Return the individual with its accuracy."""
        return replace(self, accuracy=accuracy)
