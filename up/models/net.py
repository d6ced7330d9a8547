"""The ``net:`` list as one network: named modules that run in order on a growing record."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from up.config.contract import PartError
from up.errors import UserError
from up.models.norm import is_batch_norm
from up.models.patterns import any_of, require_matches
from up.text import did_you_mean, some_of
from up.types import Kwargs, Record

FREEZE_KEY = "freeze_patterns"
COMPUTED = "computed"
"""Entry of a batch whose ``features`` (B, D) were computed before: the number of modules, from the first, that are left out."""


class Net(nn.Module):
    """Named modules that run in order; each reads the running record and returns its additions.

    ``Net([("backbone", resnet), ("head", head), ("post_process", post)])({"image": image})``: ``image`` (B, C, H, W)
    gives a record with ``image``, ``features``, ``logits``, and ``loss`` in training or ``scores`` in evaluation.

    - The output of a module replaces earlier values of its keys, as a neck turns features into features.
    - ``prev`` maps a module to the earlier module whose output it reads even if a later one has replaced it.
    - ``freeze_patterns`` (prefixes, or ``r:`` and a regular expression, over parameter names) take parameters out of
      training. A BatchNorm without a trainable parameter stays in evaluation mode: moving statistics would change
      what the frozen part computes.

    Raises ``UserError`` for invalid names, an unknown or later ``prev``, and a pattern that matches nothing.
    """

    def __init__(
        self,
        modules: Iterable[tuple[str, nn.Module]],
        *,
        prev: Mapping[str, str] | None = None,
        freeze_patterns: Sequence[str] = (),
    ) -> None:
        super().__init__()
        self._names: tuple[str, ...] = ()
        self._prev = {name: earlier for name, earlier in (prev or {}).items() if earlier}
        self._frozen: list[str] = []
        self._held: frozenset[str] = frozenset()
        for name, module in modules:
            _require_name(name, self)
            self.add_module(name, module)
            self._names += (name,)
        _require_order(self._prev, self._names)
        self.freeze(freeze_patterns)

    @property
    def module_names(self) -> tuple[str, ...]:
        """The names of the modules, in the order in which they run."""
        return self._names

    def __getitem__(self, name: str) -> nn.Module:
        if name not in self._names:
            raise KeyError(f"the net has no module {name!r}, it has {', '.join(self._names)}")
        return self.get_submodule(name)

    def forward(self, batch: Record) -> Record:
        """Run all modules on a copy of ``batch`` and return the whole record."""
        record = dict(batch)
        computed = record.pop(COMPUTED, 0)
        if computed:
            record["features"] = [record["features"]]
        added: dict[str, Kwargs] = {name: {"features": record["features"]} for name in self._names[:computed]}
        for name in self._names[computed:]:
            earlier = self._prev.get(name)
            module = self._modules[name]
            assert module is not None
            returned = module({**record, **added[earlier]} if earlier else record)
            if not isinstance(returned, Mapping):
                kind, got = type(module).__name__, type(returned).__name__
                what = f"returned {got}, expected a dict of additions to the record, such as {{'features': [x]}}."
                raise PartError(type(module), f"net module {name!r} ({kind}) {what}")
            added[name] = returned
            record.update(returned)
        return record

    def last(self, record: Record) -> Kwargs:
        """Run the last module alone, on the record of a forward pass or on some rows of it, and return what it adds."""
        added: Kwargs = self[self._names[-1]](record)
        return added

    def without(self, *names: str) -> Net:
        """Build a net of the other modules, shared with this one: ``without("post_process")`` ends at the logits."""
        for name in names:
            _ = self[name]
        kept = [(name, self[name]) for name in self._names if name not in names]
        part = Net(kept, prev={name: earlier for name, earlier in self._prev.items() if name not in names})
        part.training = self.training
        return part

    def freeze(self, patterns: Sequence[str]) -> list[str]:
        """Take the matching parameters out of training and return their names."""
        parameters = dict(self.named_parameters())
        require_matches(patterns, [*parameters, *(name for name, _ in self.named_buffers())], key=FREEZE_KEY)
        frozen = list(filter(any_of(patterns, key=FREEZE_KEY), parameters))
        for name in frozen:
            parameters[name].requires_grad_(False)
        self._frozen += patterns
        self._rest()
        return frozen

    def hold(self, names: Collection[str]) -> None:
        """Take these parameters out of training, and those of an earlier call that are not among them back in.

        Modules whose parameters are all frozen stay in evaluation mode: nothing in them drops out, and their statistics stand.
        """
        parameters = dict(self.named_parameters())
        for name in {*self._held, *names}:
            parameters[name].requires_grad_(name not in names)
        self._held = frozenset(names)
        self.train(self.training)

    def train(self, mode: bool = True) -> Net:
        """Set the mode of all modules; frozen BatchNorms stay in evaluation mode."""
        super().train(mode)
        self._rest()
        return self

    def _rest(self) -> None:
        if self._held:
            for module in self.modules():
                own = [parameter.requires_grad for parameter in module.parameters()]
                if own and not any(own):
                    module.eval()
        is_frozen = any_of(self._frozen, key=FREEZE_KEY)
        for name, module in self.named_modules():
            if is_batch_norm(module):
                own = [parameter.requires_grad for parameter in module.parameters(recurse=False)]
                if not any(own) if own else is_frozen(name):
                    module.eval()


def read(record: Kwargs, name: str, giver: str) -> Any:
    """Read ``record[name]``, the output of a ``giver``. Raises ``UserError`` if no earlier module of the net provides it."""
    if name not in record:
        raise UserError(f"no earlier module of the net provides {name}, only {some_of(record)} is there. Add a {giver} before.")
    return record[name]


@dataclass(frozen=True)
class ModuleSummary:
    """Parameters of a module of the net, for the start log."""

    name: str
    type: str
    parameters: int
    trainable: int


def model_summary(net: Net) -> list[ModuleSummary]:
    """List a row for each module of the net, in order, then ``total``, which counts shared tensors once."""
    rows = [_summary(name, net[name]) for name in net.module_names]
    return [*rows, _summary("total", net)]


def _summary(name: str, module: nn.Module) -> ModuleSummary:
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in module.parameters()]
    return ModuleSummary(name, type(module).__name__, sum(n for n, _ in sizes), sum(n for n, trains in sizes if trains))


def _require_name(name: str, net: Net) -> None:
    if name in net.module_names:
        raise UserError(f"net: two modules are called {name!r}. Give one of them another name.")
    if not name or "." in name or hasattr(net, name):
        raise UserError(f"net: a module cannot be called {name!r}. Expected a word such as 'backbone', without dots.")


def _require_order(prev: Mapping[str, str], names: Sequence[str]) -> None:
    for name, earlier in prev.items():
        if name not in names:
            raise UserError(f"net: prev is set for {name!r}, which is not a module of the net.{did_you_mean(name, names)}")
        before = names[: names.index(name)]
        if earlier not in before:
            expected = f"an earlier module ({', '.join(before)})" if before else "nothing, since it is the first"
            raise UserError(f"net.{name}.prev: got {earlier!r}, expected {expected}.{did_you_mean(earlier, before)}")
