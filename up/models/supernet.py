"""The supernet of all networks of cells: every edge has every candidate operation (Liu et al. 2019; Yang et al. 2020)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, TypeAlias

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from up.errors import UserError
from up.models.adapter import Backbone, Channels, Common, Count, as_backbone, with_stages
from up.models.cells import CellInputs, CellNetwork, CellShape, Layers, Stem, operation
from up.models.genotype import CANDIDATES, Candidate, Edge, Genotype, edges_of, strongest

Candidates: TypeAlias = Annotated[Sequence[Candidate], Field(min_length=1)]
_SPREAD = 1e-3  # standard deviation of the first architecture parameters


class Mixed(nn.ModuleList):
    """All candidate operations of an edge; poolings end in a BatchNorm, so that none is louder than the others."""

    def __init__(self, candidates: Sequence[Candidate], channels: int, stride: int) -> None:
        ops = [(name, operation(name, channels, stride, affine=False)) for name in candidates]
        norms = (nn.Sequential(op, nn.BatchNorm2d(channels, affine=False)) if "pool" in name else op for name, op in ops)
        super().__init__(norms)


class SupernetCell(CellInputs):
    """A cell with all edges between its nodes, each with all candidate operations."""

    def __init__(self, shape: CellShape, nodes: int, candidates: Sequence[Candidate]) -> None:
        super().__init__(shape, affine=False)
        self.multiplier = nodes
        self.all_edges = edges_of(nodes)
        self.mixed = nn.ModuleList(Mixed(candidates, shape.channels, self.stride(source)) for _, source in self.all_edges)

    def forward(self, before_last: Tensor, last: Tensor, chosen: Sequence[Sequence[tuple[int, Tensor | None]]]) -> Tensor:
        """Add up, for each node, the ``chosen`` operations of each edge, by their numbers, times their weights."""
        states = [self.preprocess0(before_last), self.preprocess1(last)]
        sums: list[Tensor | None] = [None] * self.multiplier
        for edge, ((node, source), ops) in enumerate(zip(self.all_edges, chosen, strict=True)):
            if source == 0 and node > 0:
                states.append(_present(sums[node - 1]))
            for number, weight in ops:
                output = self.mixed[edge][number](states[source])  # type: ignore[index]
                weighed = output if weight is None else output * weight
                before = sums[node]
                sums[node] = weighed if before is None else before + weighed
        states.append(_present(sums[-1]))
        return torch.cat(states[2:], dim=1)


def _present(total: Tensor | None) -> Tensor:
    assert total is not None, "every node has an operation"
    return total


class CellSupernet(CellNetwork):
    """All networks of cells with shared weights; ``architecture`` are the parameters (edges, candidates) of both kinds of cells.

    An edge is the sum of its candidates, weighed by the softmax of its parameters; with a ``path`` in training, or a ``leader`` in
    evaluation, only the operations of that genotype run. Parameters of the architecture are buffers: optimizers and weight decay of
    the weights do not see them.
    """

    alphas_normal: Tensor
    alphas_reduce: Tensor

    def __init__(
        self, *, candidates: Sequence[Candidate], nodes: int, layers: int, channels: int, stem: Stem, image_channels: int
    ) -> None:
        def make(shape: CellShape) -> CellInputs:
            return SupernetCell(shape, nodes, candidates)

        super().__init__(make, layers=layers, channels=channels, stem=stem, image_channels=image_channels)
        self.candidates, self.nodes, self.layers, self.init_channels = tuple(candidates), nodes, layers, channels
        self.path: Genotype | None = None
        self.leader: Genotype | None = None
        for name in ("alphas_normal", "alphas_reduce"):
            self.register_buffer(name, _SPREAD * torch.randn(len(edges_of(nodes)), len(candidates)))

    @property
    def architecture(self) -> list[Tensor]:
        """The parameters of the architecture."""
        return [self.alphas_normal, self.alphas_reduce]

    def genotype(self) -> Genotype:
        """Derive the genotype of the strongest operations."""
        normal, reduce = (strongest(alphas.softmax(dim=1).tolist(), self.candidates) for alphas in self.architecture)
        return Genotype(normal, reduce)

    def modules_of(self, genotype: Genotype) -> Iterator[nn.Module]:
        """Yield the modules that run where ``genotype`` is the path: layers of the stem, first layers of the cells, operations."""
        yield from self.stem
        for cell in self.cells:
            assert isinstance(cell, SupernetCell)
            yield from (cell.preprocess0, cell.preprocess1)
            edges, _ = genotype.cell(is_reduction=cell.is_reduction)
            for edge, ops in enumerate(self._on_path(edges)):
                yield from (cell.mixed[edge][number] for number, _ in ops)  # type: ignore[index]

    def parameters_of(self, genotype: Genotype) -> int:
        """Count the parameters that run where ``genotype`` is the path; its BatchNorms have none in a cell of the supernet."""
        return sum(parameter.numel() for module in self.modules_of(genotype) for parameter in module.parameters())

    def run(self, cell: nn.Module, before_last: Tensor, last: Tensor) -> Tensor:
        assert isinstance(cell, SupernetCell)
        genotype = self.path if self.training else self.leader
        if genotype is not None:
            chosen = self._on_path(genotype.cell(is_reduction=cell.is_reduction)[0])
        else:
            weights = (self.alphas_reduce if cell.is_reduction else self.alphas_normal).softmax(dim=1)
            chosen = [list(enumerate(row)) for row in weights]
        if self.grad_checkpointing and self.training:
            recomputed: Tensor = checkpoint(cell, before_last, last, chosen, use_reentrant=False)
            return recomputed
        output: Tensor = cell(before_last, last, chosen)
        return output

    def _on_path(self, edges: Sequence[Edge]) -> list[list[tuple[int, Tensor | None]]]:
        """List the operations of a genotype that run on each edge of the supernet."""
        chosen: list[list[tuple[int, Tensor | None]]] = [[] for _ in edges_of(self.nodes)]
        rows = {edge: row for row, edge in enumerate(edges_of(self.nodes))}
        for at, (name, source) in enumerate(edges):
            chosen[rows[at // 2, source]].append((self.candidates.index(name), None))
        return chosen


def cell_supernet(
    *,
    candidates: Candidates = CANDIDATES,
    nodes: Count = 4,
    layers: Layers = 8,
    init_channels: Count = 16,
    stem: Stem = "small",
    input_channel: Channels = 3,
    **common: Common,
) -> Backbone:
    """The supernet of the networks of type ``cell_network``: image (B, input_channel, H, W) to a map (B, planes, H/4, W/4).

    It is trained by the runner ``darts`` or ``cars`` (docs/search_networks.md), which write genotypes for ``cell_network``.

    - ``candidates``: operations to choose from. ``none`` may be weighed, but no genotype has it.
    - ``nodes``: nodes of a cell; ``layers``, ``init_channels``, ``stem``: as in ``cell_network``.

    Raises ``UserError`` for candidates that come twice, or without any but ``none``.
    """
    if len(set(candidates)) < len(candidates) or set(candidates) <= {"none"}:
        raise UserError(got=list(candidates), expected="each operation once, and one besides none", key="candidates")
    model = CellSupernet(
        candidates=candidates, nodes=nodes, layers=layers, channels=init_channels, stem=stem, image_channels=input_channel
    )
    return with_stages(as_backbone(model, channels=input_channel), **common)
