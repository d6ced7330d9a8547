"""Load weights into a network: strict, with a report of every tensor that did not fit."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from up.models.adapter import Backbone, Variant
from up.models.auxiliary import NAME as OF_AUXILIARY
from up.models.keymaps import IMMATERIAL, KEY_MAPS, KeyMap, layer_of, places, split_biases
from up.models.net import Net
from up.models.norm import is_batch_norm
from up.models.patterns import any_of, parents_of, require_matches
from up.models.pretrained import read_state
from up.models.resample import is_of_another_grid, resampled, with_channels
from up.models.weight_files import Weights, WeightsError, clean_key
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
    rechanneled: list[Misshaped] = field(default_factory=list)  # loaded too, for images of another number of channels
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
            (self.rechanneled, "adapted to the channels of the images (added up for one, else repeated and scaled)"),
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
    skip: Sequence[str] = (),
    heads: Mapping[str, str] | None = None,
    class_names: Sequence[object] | None = None,
) -> LoadReport:
    """Load ``weights`` into ``net``, under any known naming, and report every tensor that was not simply copied.

    ``skip`` are patterns (prefixes, or ``r:`` and a regular expression) of tensors to leave as built. ``heads`` are the
    modules that may start afresh, each with its layer of one output per class, or ``""``: layers of another width do, and
    the layer of the classes if ``class_names`` are another number than the file's. By default no module may (evaluation,
    teachers, export), and the first convolution is for images of as many channels; else it is adapted. Position embeddings are
    interpolated. Losses without parameters keep their own buffers. Raises
    ``WeightsError`` with a fix for any other mismatch, and leaves ``net`` untouched then.
    """
    loading = _Loading(unwrap(net), weights, heads)
    loading.require_variant()
    loading.compare_classes(class_names)
    loading.sort_out(skip)
    loading.require_no_problem()
    loading.copy()
    return loading.report


class _Loading:
    """Match the tensors of a file with those of a net, and sort them into those to load and the groups of a report."""

    def __init__(self, net: nn.Module, weights: Weights, heads: Mapping[str, str] | None) -> None:
        children = dict(net.named_children())
        self.net = net
        self.own = {clean_key(key): tensor for key, tensor in net.state_dict().items()}
        self.variant = variant_of(net)
        self.weights = weights
        self.tensors = split_biases(weights.tensors())
        self.chosen: dict[str, Tensor] = {}
        self._backbone = "backbone." if "backbone" in children else ""  # empty for a network without named modules
        self._head = "head." if self._backbone and "head" in children else ""
        self._is_bare = not any(key.startswith(self._backbone or "\0") for key in self.tensors)  # no net of named modules
        self._heads = heads or {}
        self._adapts = heads is not None  # to other images, where training starts
        convolutions = (f"{name}.weight" for name, module in unwrap(net).named_modules() if isinstance(module, nn.Conv2d))
        self._stem = clean_key(next(convolutions, ""))
        self._other_classes = False
        self._renewed: set[str] = set()
        # Losses and post-processing have counters at most, which files of weights lack.
        modules = children if isinstance(net, Net) else {}
        self._counting = tuple(f"{name}." for name, child in modules.items() if not any(True for _ in child.parameters()))
        self.naming, self._names = self._best_naming()
        self.report = LoadReport(weights.source, self.naming.name, averaged=bool(weights.ema))

    def _best_naming(self) -> tuple[KeyMap, list[str]]:
        """Find the naming under which most tensors fit, and with it the name in the net of every tensor of the file."""
        stripped = [self._stripped(key) for key in self.tensors]
        shapes = [_squeezed(tensor.shape) for tensor in self.tensors.values()]
        best: tuple[int, KeyMap, list[str]] = (0, KEY_MAPS[0], [])
        for naming in (naming for naming in KEY_MAPS if naming.fits(stripped)):
            names = self._named(naming, stripped)
            pairs = zip(names, shapes, strict=True)
            hits = sum(name in self.own and _squeezed(self.own[name].shape) == shape for name, shape in pairs)
            best = max(best, (hits, naming, names), key=lambda each: each[0])  # the first of equally good ones
        if best[0] == 0:
            raise WeightsError(
                f"none of its {count(len(self.tensors), 'tensor')} fits this net: the file has {some_of(self.tensors, 3)}; "
                f"the net has {some_of(self.own, 3)}. Expected weights of the same architecture.",
                file=self.weights.source,
            )
        return best[1:]

    def _named(self, naming: KeyMap, stripped: Sequence[str]) -> list[str]:
        """Translate the file's names to names in the net; to the most likely name if the net has none of the candidates."""
        own = (name.removeprefix(self._backbone) for name in self.own if name.startswith(self._backbone))
        named = []
        for key, timm_key in zip(self.tensors, naming.to_timm(stripped, own), strict=True):
            candidates = places(key, timm_key, backbone=self._backbone, head=self._head, is_bare=self._is_bare)
            named.append(next((name for name in candidates if name in self.own), candidates[0]))
        return named

    def _stripped(self, key: str) -> str:
        """Remove the name of the backbone from a file's key, for key maps."""
        return key.removeprefix(self._backbone)

    def require_variant(self) -> None:
        """Raise ``WeightsError`` for weights of the other variant: some would load and compute other features."""
        theirs = self.weights.variant or self.naming.variant
        if theirs and self.variant and theirs != self.variant:
            what = f"has weights of the backbone's variant: {theirs}, and the net was built with variant: {self.variant}. "
            raise WeightsError(f"{what}Set variant: {theirs} in the backbone's kwargs.", file=self.weights.source)
        if self.weights.variant is None and self.naming is KEY_MAPS[0] and self.variant == "up" and self._is_bare:
            note = "its names are timm's: if the file is timm's or torchvision's, set variant: timm in the backbone's kwargs"
            self.report.notes.append(note)

    def compare_classes(self, ours: Sequence[object] | None) -> None:
        """Note other class names; another number of classes starts the heads afresh."""
        theirs = self.weights.class_names
        if theirs is None or ours is None or list(theirs) == list(ours):
            return
        note = f"its {len(theirs)} classes ({some_of(theirs, 3)}) are not this net's {len(ours)} ({some_of(ours, 3)})"
        self._other_classes = _numbers(theirs) != _numbers(ours)
        if not self._other_classes:
            note += f"; the head was loaded all the same. To start it afresh: saver: {{skip: [{some_of(self._heads)}]}}"
        self.report.notes.append(note)

    def sort_out(self, skip: Sequence[str]) -> None:
        """Sort every tensor of the file and of the net; ``skip`` are the patterns of those to leave as built."""
        report, found = self.report, self._keys_by_name()
        named = {name: self.tensors[key] for name, key in found.items()}
        require_matches(skip, [*named, *self.own], key=SKIP_KEY)
        skips = any_of(skip, key=SKIP_KEY)
        report.skipped = [name for name in {**self.own, **named} if skips(name)]
        named = {name: tensor for name, tensor in named.items() if not skips(name)}
        report.missing = [name for name in self.own if name not in named and not skips(name) and not IMMATERIAL.search(name)]
        report.unexpected = [name for name in named if name not in self.own and not IMMATERIAL.search(name)]
        for name, tensor in named.items():
            if name in self.own:
                self._fit(name, tensor)
        self._renew_heads()
        self._note_auxiliary()
        self._compare_eps()
        report.renamed = sum(found[name] != name for name in report.loaded)
        report.is_of_up = not self._is_bare and self.naming is not KEY_MAPS[0]

    def _note_auxiliary(self) -> None:
        """Note an auxiliary classifier that only the file or only the net has: what the net predicts is the same."""
        report = self.report
        if any(OF_AUXILIARY.search(name) for name in report.unexpected):
            report.notes.append("left out the auxiliary classifier, which only training has")
            report.unexpected = [name for name in report.unexpected if not OF_AUXILIARY.search(name)]
        if any(OF_AUXILIARY.search(name) for name in report.missing):
            report.notes.append("has no auxiliary classifier; the net's keeps its first weights")
            report.missing = [name for name in report.missing if not OF_AUXILIARY.search(name)]

    def _compare_eps(self) -> None:
        """Note another eps of BatchNorms: no tensor has it, and outputs differ by about 1e-4."""
        theirs = self.naming.eps_of(map(self._stripped, self.tensors))
        ours = {module.eps for module in self.net.modules() if is_batch_norm(module)}
        if theirs is not None and ours and theirs not in ours:
            note = f"its BatchNorms have eps {theirs:g}, this net's {some_of(f'{eps:g}' for eps in ours)}. For the same outputs set"
            self.report.notes.append(f"{note} normalize: {{type: solo_bn, kwargs: {{eps: {theirs:g}}}}} in the backbone's kwargs")

    def _keys_by_name(self) -> dict[str, str]:
        """Map names in the net to the file's; two of one meaning must have equal values."""
        found: dict[str, str] = {}
        unused = [key for key in self.tensors if self.naming.leaves_out(self._stripped(key))]
        for name, key in zip(self._names, self.tensors, strict=True):
            if key in unused:
                continue
            other = found.setdefault(name, key)
            if other != key and not torch.equal(self.tensors[other], self.tensors[key]):
                raise WeightsError(f"{other} and {key} are both {name} but differ. Expected one of them.", file=self.report.source)
        if unused:
            self.report.notes.append(f"left out, {self.naming.unused_because}: {some_of(unused)}")
        return found

    def require_no_problem(self) -> None:
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
        if self.weights.preprocessing is not None and not report.missing and not report.unexpected:  # shapes alone
            size = " x ".join(map(str, self.weights.preprocessing.input_size[1:]))
            doubt += f"They are of a network for images of {size}: let the transforms produce that size. "
        if self.variant:
            other = "timm" if self.variant == "up" else "up"
            doubt += (
                f"The backbone was built with variant: {self.variant}; for weights of {other} set variant: {other} in its kwargs. "
            )
        fix = f"To leave them out: saver: {{skip: [{', '.join(_prefixes(problems, self.chosen))}]}}"
        raise WeightsError(
            f"{count(len(problems), 'tensor')} cannot be loaded: {listed}. "
            f"{doubt}{fix if self._heads else 'Expected the tensors of this very net.'}",
            file=report.source,
        )

    def copy(self) -> None:
        """Load the chosen tensors."""
        full_names = {clean_key(key): key for key in self.net.state_dict()}  # modules compiled in place have a prefix
        result = self.net.load_state_dict({full_names[name]: tensor for name, tensor in self.chosen.items()}, strict=False)
        assert not result.unexpected_keys, result.unexpected_keys

    def _matters(self, name: str) -> bool:
        return not (self._is_new(name) or name.startswith(self._counting))

    def _fit(self, name: str, tensor: Tensor) -> None:
        """Choose a tensor; a linear layer is a convolution over its whole input, a scale (C, 1, 1) is (C,)."""
        own = self.own[name]
        is_flat = tensor.ndim == 2 and own.ndim == 4 and tensor.shape[1] == own[0].numel()  # VGG's classifier in timm
        known = self.weights.preprocessing
        images = None if known is None else known.input_size[1:]
        is_same = _squeezed(tensor.shape) == _squeezed(own.shape) or (is_flat and len(tensor) == len(own))
        if is_same and not is_of_another_grid(self.net, name, tensor, images):
            fitting: Tensor | None = tensor.reshape(own.shape)
        else:
            shapes = Misshaped(name, tuple(tensor.shape), tuple(own.shape))
            if self._adapts and name == self._stem and (len(tensor), *tensor.shape[2:]) == (len(own), *own.shape[2:]):
                fitting, group = with_channels(tensor, own.shape[1]), self.report.rechanneled
            else:
                fitting = resampled(self.net, name, tensor, own.shape, images)
                group = self.report.misshaped if fitting is None else self.report.resized
            group.append(shapes)
        if fitting is not None:
            self.chosen[name] = fitting
            self.report.loaded.append(name)

    def _renew_heads(self) -> None:
        """Remove the layers of heads that do not fit from those to load, as whole layers."""
        report = self.report
        for head, layer in self._heads.items():
            self._renewed |= self._layers_to_renew(f"{head}.", f"{head}.{layer}." if layer else None)
        report.reinitialised = [name for name in self.own if self._is_new(name) and name not in report.skipped]
        report.loaded = [name for name in report.loaded if not self._is_new(name)]
        report.missing = [name for name in report.missing if not self._is_new(name)]
        self.chosen = {name: tensor for name, tensor in self.chosen.items() if not self._is_new(name)}

    def _layers_to_renew(self, head: str, classes: str | None) -> set[str]:
        """List the layers of a head that start afresh; ``classes`` is the prefix of its layer of one output per class."""
        report = self.report
        own = [name for name in self.own if name.startswith(head)]
        classifier = [name for name in own if classes and name.startswith(classes)]
        foreign = [name for name in report.unexpected if classes and name.startswith(classes)]
        layers = {layer_of(item.name) for item in report.misshaped if item.name.startswith(head)}
        if not any(name in self.chosen for name in own):  # a file of a backbone alone, or with a head that fits nowhere
            layers |= {layer_of(name) for name in (*own, *foreign)}
        if foreign or any(name in report.missing for name in classifier):  # one classifier there, several here
            layers |= {layer_of(name) for name in (*classifier, *foreign)}
        if self._other_classes:
            layers |= {layer_of(name) for name in classifier or own}
        return layers

    def _is_new(self, name: str) -> bool:
        return layer_of(name) in self._renewed


def _numbers(class_names: Sequence[object]) -> list[int]:
    """Count the classes of a single head, or of each of several."""
    heads = [len(names) for names in class_names if isinstance(names, list | tuple)]
    return heads if len(heads) == len(class_names) else [len(class_names)]


def _squeezed(shape: Iterable[int]) -> tuple[int, ...]:
    return tuple(size for size in shape if size != 1)


def _prefixes(problems: Iterable[str], good: Iterable[str]) -> list[str]:
    """Find the shortest prefixes of all ``problems`` and nothing ``good``; more than 10 are shortened further."""
    fine = {parent for name in good if not IMMATERIAL.search(name) for parent in parents_of(name)}
    found = list(dict.fromkeys(next((parent for parent in parents_of(name) if parent not in fine), name) for name in problems))
    for depth in range(max(name.count(".") for name in found) + 1, 1, -1):
        found = list(dict.fromkeys(parents_of(name)[:depth][-1] for name in found))
        if len(found) <= 10:
            break
    return found
