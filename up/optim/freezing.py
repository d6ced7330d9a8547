"""Parameters that do not train at a step: frozen ones, a linear probe's backbone, gradual unfreezing."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field

from torch import nn

from up.optim.groups import module_depths
from up.text import count, si

Hold = Callable[[Collection[str]], None]


@dataclass
class Freezing:
    """The parameters that do not train, by name, as a function of the step alone.

    ``always``, and those that are frozen already, never train. In the first ``probe_epochs`` only ``head`` trains. With ``blocks``,
    epoch e (from 1) trains the top ⌊depth · e / ``blocks``⌋ of the modules with parameters, at least one, in the order of
    ``named_parameters`` (ULMFiT, Howard and Ruder 2018, section 3.3). ``hold`` freezes exactly the parameters that it gets.
    """

    model: nn.Module
    hold: Hold
    steps_per_epoch: int
    always: frozenset[str] = frozenset()
    head: frozenset[str] = frozenset()
    probe_epochs: int = 0
    blocks: int = 0
    _held: frozenset[str] | None = field(default=None, init=False)
    _epoch: int | None = field(default=None, init=False)  # that ``_held`` is of

    def __post_init__(self) -> None:
        self.always |= {name for name, p in self.model.named_parameters() if not p.requires_grad}

    @property
    def changes(self) -> bool:
        """Whether the parameters that train depend on the step."""
        return bool(self.probe_epochs or self.blocks)

    def at(self, step: int) -> frozenset[str]:
        """Return the names of the parameters that do not train at ``step``."""
        epoch = step // self.steps_per_epoch + 1
        depths = module_depths(self.model)
        if epoch <= self.probe_epochs:
            return self.always | (depths.keys() - self.head)
        if epoch < self.blocks:
            depth = max(depths.values()) + 1
            top = max(1, depth * epoch // self.blocks)
            return self.always | {name for name, place in depths.items() if place < depth - top}
        return self.always

    def apply(self, step: int) -> None:
        """Freeze the parameters that do not train at ``step``, if they differ from those frozen now."""
        epoch = step // self.steps_per_epoch
        if self.changes and epoch != self._epoch:
            held, self._epoch = self.at(step), epoch
            if held != self._held:
                self.hold(held)
                self._held = held

    def lines(self) -> Iterator[str]:
        """Report what trains from which epoch on, for the start of the log."""
        sizes = {name: p.numel() for name, p in self.model.named_parameters()}
        before: frozenset[str] | None = None
        for epoch in range(1, max(self.blocks, self.probe_epochs + 1) + 1) if self.changes else ():
            held = self.at((epoch - 1) * self.steps_per_epoch)
            if held != before:
                trained = [name for name in sizes if name not in held]
                amount = si(sum(sizes[name] for name in trained))
                yield f"from epoch {epoch}: {count(len(trained), 'tensor')} train ({amount} parameters), the first is {trained[0]}"
            before = held
