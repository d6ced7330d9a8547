"""Load weights into a network: strict, with a report of every tensor that did not fit."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from up.models.adapter import Backbone, Variant
from up.models.keymaps import IMMATERIAL, KEY_MAPS, KeyMap, places
from up.models.net import Net
from up.models.patterns import any_of, parents_of, require_matches
from up.models.resample import resampled
from up.models.weight_files import Weights, WeightsError, clean_key, read_state
from up.text import count, some_of

__all__ = [
    "LoadReport",
    "Misshaped",
    "Weights",
    "WeightsError",
    "clean_state_dict",
    "load_weights",
    "read_state",
    "unwrap",
    "variant_of",
]

SKIP_KEY = "saver.skip"


@dataclass(frozen=True)
class Misshaped:
    """A tensor of another shape in the file than in the net."""

    name: str
    found: tuple[int, ...]
    wanted: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.name} ({self.found} in the file, {self.wanted} in the net)"


@dataclass
class LoadReport:
    """Result of loading a file into a net, tensor by tensor, by the names of the net."""

    source: str
    naming: str
    averaged: bool
    loaded: list[str] = field(default_factory=list)
    resized: list[Misshaped] = field(default_factory=list)  # loaded too, after interpolation
    missing: list[str] = field(default_factory=list)  # in the net only
    unexpected: list[str] = field(default_factory=list)  # in the file only
    misshaped: list[Misshaped] = field(default_factory=list)
    reinitialised: list[str] = field(default_factory=list)  # tensors of the head that keep their first values
    skipped: list[str] = field(default_factory=list)  # by saver.skip
    renamed: int = 0  # loaded tensors of another name in the file
    is_of_up: bool = False  # a whole checkpoint with UP's names
    notes: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """Return the report for the log."""
        kind = "averaged (EMA) weights" if self.averaged else "weights"
        lines = [f"{self.source}: loaded {count(len(self.loaded), 'tensor')} of its {kind} (names: {self.naming})"]
        for names, what in (
            (self.reinitialised, "new head, started afresh"),
            (self.misshaped, "dropped, of another shape"),
            (self.resized, "resized"),
            (self.missing, "not in the file, left as built"),
            (self.unexpected, "not in the net, dropped"),
            (self.skipped, f"skipped by {SKIP_KEY}"),
        ):
            lines += [f"{self.source}: {what}: {some_of(names)}"] if names else []
        return [*lines, *self.remarks()]

    def remarks(self) -> list[str]:
        """Return the notes, without the counts of tensors."""
        remarks = [f"read as a UP checkpoint: {count(self.renamed, 'tensor')} renamed"] if self.is_of_up else []
        return [f"{self.source}: {remark}" for remark in (*remarks, *self.notes)]


def unwrap(module: nn.Module) -> nn.Module:
    """Return the network inside DistributedDataParallel, DataParallel and torch.compile."""
    while True:
        if isinstance(module, (DistributedDataParallel, DataParallel)):
            module = module.module
        elif isinstance(inner := getattr(module, "_orig_mod", None), nn.Module):
            module = inner
        else:
            return module


def variant_of(net: nn.Module) -> Variant | None:
    """Return the variant of the backbone of ``net``, or of ``net`` itself; None if there is only one."""
    bare = unwrap(net)
    backbone = getattr(bare, "backbone", bare)
    return backbone.variant if isinstance(backbone, Backbone) else None


def clean_state_dict(module: nn.Module) -> dict[str, Tensor]:
    """Return the state dict of the bare network: no name has ``module.`` or ``_orig_mod.``."""
    return {clean_key(key): tensor for key, tensor in unwrap(module).state_dict().items()}


def load_weights(
    net: nn.Module,
    weights: Weights,
    *,
    prefer_ema: bool = True,
    skip: Sequence[str] = (),
    heads: Mapping[str, str] | None = None,
    class_names: Sequence[object] | None = None,
) -> LoadReport:
    """Load ``weights`` into ``net``, under any known naming, and report every tensor that was not simply copied.

    ``skip`` are patterns (prefixes, or ``r:`` and a regular expression) of tensors to leave as built. ``heads`` are the
    modules that may start afresh, each with its layer of one output per class, or ``""``: layers of another width do, and
    the layer of the classes if ``class_names`` are another number than the file's. By default no module may (evaluation,
    teachers, export). Position embeddings are interpolated. Losses without parameters keep their own buffers. Raises
    ``WeightsError`` with a fix for any other mismatch, and leaves ``net`` untouched then.
    """
    bare = unwrap(net)
    tensors = weights.tensors(prefer_ema=prefer_ema)
    target = _Target.of(bare)
    naming, found = _best_naming(weights.source, tensors, target)
    theirs = weights.variant or naming.variant
    if theirs and target.variant and theirs != target.variant:  # some would load and compute other features
        what = f"has weights of the backbone's variant: {theirs}, and the net was built with variant: {target.variant}. "
        raise WeightsError(f"{what}Set variant: {theirs} in the backbone's kwargs.", file=weights.source)
    filling = _Filling(bare, LoadReport(weights.source, naming.name, averaged=prefer_ema and bool(weights.ema)), skip, heads or {})
    filling.compare_classes(weights.class_names, class_names)
    filling.sort_out({name: tensors[key] for name, key in found.items() if not naming.leaves_out(target.stripped(key))})
    filling.require_no_problem(target.variant)
    filling.note_names(naming, found, list(tensors), target)
    if weights.variant is None and naming is KEY_MAPS[0] and target.variant == "up" and target.is_bare(tensors):
        note = "its names are timm's: if the file is timm's or torchvision's, set variant: timm in the backbone's kwargs"
        filling.report.notes.append(note)
    full_names = {clean_key(key): key for key in bare.state_dict()}  # modules compiled in place have a prefix
    result = bare.load_state_dict({full_names[name]: tensor for name, tensor in filling.chosen.items()}, strict=False)
    assert not result.unexpected_keys, result.unexpected_keys
    return filling.report


@dataclass(frozen=True)
class _Target:
    """Names and shapes of a net, for the search for a naming."""

    shapes: Mapping[str, tuple[int, ...]]
    backbone: str  # with a dot; empty for a network without a module of this name
    head: str
    variant: Variant | None

    @staticmethod
    def of(net: nn.Module) -> _Target:
        children = dict(net.named_children())
        shapes = {clean_key(key): tuple(tensor.shape) for key, tensor in net.state_dict().items()}
        is_net = "backbone" in children
        return _Target(shapes, "backbone." if is_net else "", "head." if is_net and "head" in children else "", variant_of(net))

    def stripped(self, key: str) -> str:
        """Remove the name of the backbone from a file's key, for key maps."""
        return key.removeprefix(self.backbone)

    def is_bare(self, keys: Iterable[str]) -> bool:
        """Return whether the file has a bare network, not a net of named modules."""
        return not self.backbone or not any(key.startswith(self.backbone) for key in keys)

    def names(self, keys: Iterable[str], naming: KeyMap) -> list[str]:
        """Translate a file's ``keys`` to names in the net; to the most likely name if the net has none of the candidates."""
        keys = list(keys)
        is_bare = self.is_bare(keys)
        named = []
        for key in keys:
            candidates = places(key, naming=naming, backbone=self.backbone, head=self.head, is_bare=is_bare)
            named.append(next((name for name in candidates if name in self.shapes), candidates[0]))
        return named


def _best_naming(source: str, tensors: Mapping[str, Tensor], target: _Target) -> tuple[KeyMap, dict[str, str]]:
    """Find the naming under which most tensors fit, and with it the file's key for every name in the net."""

    def hits(naming: KeyMap) -> int:
        wanted = (target.shapes.get(name) for name in target.names(tensors, naming))
        pairs = zip(wanted, tensors.values(), strict=True)
        return sum(shape is not None and _squeezed(shape) == _squeezed(tensor.shape) for shape, tensor in pairs)

    stripped = [target.stripped(key) for key in tensors]
    namings = [naming for naming in KEY_MAPS if naming.fits(stripped)]
    scores = [hits(naming) for naming in namings]
    best = max(scores)
    if best == 0:
        raise WeightsError(
            f"none of its {count(len(tensors), 'tensor')} fits this net: the file has {some_of(tensors, 3)}; "
            f"the net has {some_of(target.shapes, 3)}. Expected weights of the same architecture.",
            file=source,
        )
    naming = namings[scores.index(best)]
    found: dict[str, str] = {}
    for name, (key, tensor) in zip(target.names(tensors, naming), tensors.items(), strict=True):
        if name in found and not naming.leaves_out(target.stripped(found[name])):
            if not naming.leaves_out(target.stripped(key)) and not torch.equal(tensors[found[name]], tensor):
                raise WeightsError(f"{found[name]} and {key} are both {name} but differ. Expected one of them.", file=source)
            continue
        found[name] = key
    return naming, found


class _Filling:
    """Sort the tensors of a file into those to load and the groups of a report."""

    def __init__(self, net: nn.Module, report: LoadReport, skip: Sequence[str], heads: Mapping[str, str]) -> None:
        self.net = net
        self.report = report
        self.chosen: dict[str, Tensor] = {}
        self._own = {clean_key(key): tensor for key, tensor in net.state_dict().items()}
        self._skip = skip
        self._heads = heads
        self._other_classes = False
        self._renewed: set[str] = set()
        # Losses and post-processing have counters at most, which files of weights lack.
        children = dict(net.named_children()) if isinstance(net, Net) else {}
        self._counting = tuple(f"{name}." for name, child in children.items() if not any(True for _ in child.parameters()))

    def compare_classes(self, theirs: Sequence[object] | None, ours: Sequence[object] | None) -> None:
        """Note other class names; another number of classes starts the heads afresh."""
        if theirs is None or ours is None or list(theirs) == list(ours):
            return
        note = f"its {len(theirs)} classes ({some_of(theirs, 3)}) are not this net's {len(ours)} ({some_of(ours, 3)})"
        self._other_classes = _numbers(theirs) != _numbers(ours)
        if not self._other_classes:
            note += f"; the head was loaded all the same. To start it afresh: saver: {{skip: [{some_of(self._heads)}]}}"
        self.report.notes.append(note)

    def sort_out(self, named: Mapping[str, Tensor]) -> None:
        """Sort every tensor of the file and of the net."""
        require_matches(self._skip, [*named, *self._own], key=SKIP_KEY)
        skips = any_of(self._skip, key=SKIP_KEY)
        report = self.report
        report.skipped = [name for name in {**self._own, **named} if skips(name)]
        named = {name: tensor for name, tensor in named.items() if not skips(name)}
        report.missing = [name for name in self._own if name not in named and not skips(name) and not IMMATERIAL.search(name)]
        report.unexpected = [name for name in named if name not in self._own and not IMMATERIAL.search(name)]
        for name, tensor in named.items():
            if name in self._own:
                self._fit(name, tensor)
        self._renew_heads()

    def require_no_problem(self, variant: Variant | None = None) -> None:
        """Raise ``WeightsError`` for mismatches outside new heads and losses."""
        report = self.report
        groups = {
            "missing from the file": {name: name for name in report.missing},
            "not in the net": {name: name for name in report.unexpected},
            "of another shape": {item.name: str(item) for item in report.misshaped},
        }
        groups = {what: {name: text for name, text in group.items() if self._matters(name)} for what, group in groups.items()}
        problems = [name for group in groups.values() for name in group]
        if not problems:
            return
        listed = "; ".join(f"{what} ({len(group)}): {some_of(group.values())}" for what, group in groups.items() if group)
        doubt = "Is it another architecture? " if 2 * len(problems) > len(self.chosen) else ""
        if variant:
            other = "timm" if variant == "up" else "up"
            doubt += f"The backbone was built with variant: {variant}; for weights of {other} set variant: {other} in its kwargs. "
        fix = f"To leave them out: saver: {{skip: [{', '.join(_prefixes(problems, self.chosen))}]}}"
        raise WeightsError(
            f"{count(len(problems), 'tensor')} cannot be loaded: {listed}. "
            f"{doubt}{fix if self._heads else 'Expected the tensors of this very net.'}",
            file=report.source,
        )

    def _matters(self, name: str) -> bool:
        return not (self._is_new(name) or name.startswith(self._counting))

    def note_names(self, naming: KeyMap, found: Mapping[str, str], keys: Sequence[str], target: _Target) -> None:
        """Report how the ``keys`` of a file were translated; ``found`` has the key of every name in the net."""
        report = self.report
        report.renamed = sum(found[name] != name for name in report.loaded)
        report.is_of_up = not target.is_bare(keys) and naming is not KEY_MAPS[0]
        if unused := [key for key in keys if naming.leaves_out(target.stripped(key))]:
            report.notes.append(f"left out, {naming.unused_because}: {some_of(unused)}")

    def _fit(self, name: str, tensor: Tensor) -> None:
        """Choose a tensor; a linear layer is a 1x1 convolution, a scale (C, 1, 1) is (C,)."""
        own = self._own[name]
        if _squeezed(tensor.shape) == _squeezed(own.shape):
            fitting: Tensor | None = tensor.reshape(own.shape)
        else:
            fitting = resampled(self.net, name, tensor, own.shape)
            shapes = Misshaped(name, tuple(tensor.shape), tuple(own.shape))
            (self.report.misshaped if fitting is None else self.report.resized).append(shapes)
        if fitting is not None:
            self.chosen[name] = fitting
            self.report.loaded.append(name)

    def _renew_heads(self) -> None:
        """Remove the layers of heads that do not fit from those to load, as whole layers."""
        report = self.report
        for head, layer in self._heads.items():
            self._renewed |= self._layers_to_renew(f"{head}.", f"{head}.{layer}." if layer else None)
        report.reinitialised = [name for name in self._own if self._is_new(name) and name not in report.skipped]
        report.loaded = [name for name in report.loaded if not self._is_new(name)]
        report.missing = [name for name in report.missing if not self._is_new(name)]
        self.chosen = {name: tensor for name, tensor in self.chosen.items() if not self._is_new(name)}

    def _layers_to_renew(self, head: str, classes: str | None) -> set[str]:
        """List the layers of a head that start afresh; ``classes`` is the prefix of its layer of one output per class."""
        report = self.report
        own = [name for name in self._own if name.startswith(head)]
        classifier = [name for name in own if classes and name.startswith(classes)]
        foreign = [name for name in report.unexpected if classes and name.startswith(classes)]
        layers = {_layer(item.name) for item in report.misshaped if item.name.startswith(head)}
        if not any(name in self.chosen for name in own):  # a file of a backbone alone, or with a head that fits nowhere
            layers |= {_layer(name) for name in (*own, *foreign)}
        if foreign or any(name in report.missing for name in classifier):  # one classifier there, several here
            layers |= {_layer(name) for name in (*classifier, *foreign)}
        if self._other_classes:
            layers |= {_layer(name) for name in classifier or own}
        return layers

    def _is_new(self, name: str) -> bool:
        return _layer(name) in self._renewed


def _numbers(class_names: Sequence[object]) -> list[int]:
    """Count the classes of a single head, or of each of several."""
    heads = [len(names) for names in class_names if isinstance(names, list | tuple)]
    return heads if len(heads) == len(class_names) else [len(class_names)]


def _layer(name: str) -> str:
    """Return the module of a tensor."""
    return name.rpartition(".")[0]


def _squeezed(shape: Iterable[int]) -> tuple[int, ...]:
    return tuple(size for size in shape if size != 1)


def _prefixes(problems: Iterable[str], good: Iterable[str], limit: int = 10) -> list[str]:
    """Find the shortest prefixes of all ``problems`` and nothing ``good``; more than ``limit`` are shortened further."""
    fine = {parent for name in good if not IMMATERIAL.search(name) for parent in parents_of(name)}
    found = list(dict.fromkeys(next((parent for parent in parents_of(name) if parent not in fine), name) for name in problems))
    for depth in range(max(name.count(".") for name in found) + 1, 1, -1):
        found = list(dict.fromkeys(parents_of(name)[:depth][-1] for name in found))
        if len(found) <= limit:
            break
    return found
