"""Genotypes of cells: which operations a cell applies to which of its inputs (Liu et al. 2019, DARTS, arXiv 1806.09055)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, get_args

from pydantic import ConfigDict, Strict, TypeAdapter

from up.errors import UserError
from up.types import Record

Operation = Literal["max_pool_3x3", "avg_pool_3x3", "skip_connect", "sep_conv_3x3", "sep_conv_5x5", "dil_conv_3x3", "dil_conv_5x5"]
Candidate = Literal[
    "none", "max_pool_3x3", "avg_pool_3x3", "skip_connect", "sep_conv_3x3", "sep_conv_5x5", "dil_conv_3x3", "dil_conv_5x5"
]
OPERATIONS: tuple[Operation, ...] = get_args(Operation)
CANDIDATES: tuple[Candidate, ...] = get_args(Candidate)
Edge = tuple[Operation, Annotated[int, Strict()]]  # an operation and its input: 0 and 1 are the two cells before, 2 the first node
INPUTS = 2


@dataclass(frozen=True)
class Genotype:
    """Operations of a normal and a reduction cell: two edges for each node, in order.

    ``normal: [[sep_conv_3x3, 0], [skip_connect, 1], ...]``: a node adds the outputs of its two operations. The output of a cell is
    that of the nodes in ``normal_concat`` and ``reduce_concat`` (counted from 2; left out: all nodes), side by side.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    normal: tuple[Edge, ...]
    reduce: tuple[Edge, ...]
    normal_concat: tuple[int, ...] | None = None
    reduce_concat: tuple[int, ...] | None = None

    @classmethod
    def of_record(cls, record: Record) -> Genotype:
        """Read ``as_record()``. Raises ``ValidationError``."""
        return TypeAdapter(cls).validate_python(record)

    def cell(self, *, is_reduction: bool) -> tuple[tuple[Edge, ...], tuple[int, ...]]:
        """Return the edges of a kind of cell and the nodes of its output."""
        edges, concat = (self.reduce, self.reduce_concat) if is_reduction else (self.normal, self.normal_concat)
        return edges, concat or tuple(range(INPUTS, INPUTS + len(edges) // 2))

    def check(self) -> None:
        """Raise ``UserError`` for cells without nodes, half nodes, and inputs that do not exist yet."""
        for name, is_reduction in (("normal", False), ("reduce", True)):
            edges, concat = self.cell(is_reduction=is_reduction)
            key = f"genotype.{name}"
            if not edges or len(edges) % 2:
                raise UserError(got=len(edges), expected="two edges [operation, input] for each node", key=key)
            for at, (operation, source) in enumerate(edges):
                last = at // 2 + INPUTS - 1
                if not 0 <= source <= last:
                    expected = f"an input from 0 to {last} for node {at // 2 + INPUTS}"
                    raise UserError(got=[operation, source], expected=expected, key=f"{key}.{at}")
            last = len(edges) // 2 + INPUTS - 1
            if any(not INPUTS <= node <= last for node in concat) or len(set(concat)) < len(concat):
                raise UserError(got=list(concat), expected=f"nodes from {INPUTS} to {last}, each once", key=f"{key}_concat")

    def as_record(self) -> Record:
        """Return the genotype as YAML has it."""
        record: Record = {
            name: [list(edge) for edge in edges] for name, edges in (("normal", self.normal), ("reduce", self.reduce))
        }
        concats = {"normal_concat": self.normal_concat, "reduce_concat": self.reduce_concat}
        return {**record, **{name: list(nodes) for name, nodes in concats.items() if nodes is not None}}


def edges_of(nodes: int) -> list[tuple[int, int]]:
    """List the edges of a cell with all connections, (node, input), in the order of the rows of architecture parameters."""
    return [(node, source) for node in range(nodes) for source in range(node + INPUTS)]


def strongest(weights: Sequence[Sequence[float]], candidates: Sequence[Candidate]) -> tuple[Edge, ...]:
    """Derive the edges of a cell from ``weights``, a row for each edge of ``edges_of`` and a column for each candidate.

    Each node keeps the two incoming edges with the largest weight of an operation other than ``none``, and on each of them that
    operation (Liu et al. 2019, section 2.4). Edges are in the order of their weights, the larger first.
    """
    usable = [(at, candidate) for at, candidate in enumerate(candidates) if candidate != "none"]
    found: list[Edge] = []
    nodes = next(nodes for nodes in range(1, len(weights) + 1) if len(edges_of(nodes)) == len(weights))
    for node in range(nodes):
        incoming = [(row, source) for row, (to, source) in zip(weights, edges_of(nodes), strict=True) if to == node]
        best = [(*max((row[at], -at) for at, _ in usable), source) for row, source in incoming]
        ranked = sorted(best, key=lambda each: (-each[0], each[2]))[:2]
        found += [(_operation(candidates[-negated]), source) for _, negated, source in ranked]
    return tuple(found)


def _operation(candidate: Candidate) -> Operation:
    assert candidate != "none"
    return candidate


DARTS_V1 = Genotype(
    normal=(
        *(("sep_conv_3x3", 1), ("sep_conv_3x3", 0), ("skip_connect", 0), ("sep_conv_3x3", 1)),
        *(("skip_connect", 0), ("sep_conv_3x3", 1), ("sep_conv_3x3", 0), ("skip_connect", 2)),
    ),
    reduce=(
        *(("max_pool_3x3", 0), ("max_pool_3x3", 1), ("skip_connect", 2), ("max_pool_3x3", 0)),
        *(("max_pool_3x3", 0), ("skip_connect", 2), ("skip_connect", 2), ("avg_pool_3x3", 0)),
    ),
)
DARTS_V2 = Genotype(
    normal=(
        *(("sep_conv_3x3", 0), ("sep_conv_3x3", 1), ("sep_conv_3x3", 0), ("sep_conv_3x3", 1)),
        *(("sep_conv_3x3", 1), ("skip_connect", 0), ("skip_connect", 0), ("dil_conv_3x3", 2)),
    ),
    reduce=(
        *(("max_pool_3x3", 0), ("max_pool_3x3", 1), ("skip_connect", 2), ("max_pool_3x3", 1)),
        *(("max_pool_3x3", 0), ("skip_connect", 2), ("skip_connect", 2), ("max_pool_3x3", 1)),
    ),
)
PublishedName = Literal["darts_v1", "darts_v2"]
PUBLISHED: dict[PublishedName, Genotype] = {"darts_v1": DARTS_V1, "darts_v2": DARTS_V2}
