"""The configuration of a trial: the search's file, fragments over it, values by dotted path, the holdout, the run folder."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import takewhile
from pathlib import Path

import yaml

from up.config.bases import merged_over
from up.config.nodes import PlainDumper, load_nodes
from up.config.tree import MappingNode, Node, SequenceNode, from_plain, index_of, key_of, set_at, to_plain
from up.errors import UserError
from up.files import write_text
from up.schema.decode import decode
from up.schema.legacy.hoist import to_documented_form
from up.schema.legacy.keys import Found, data_pool
from up.schema.length import overrides_of_length
from up.schema.overrides import apply_overrides
from up.search.space import Point, Space
from up.text import some_of
from up.types import Json, Record

SECTION = "search"
_EPOCHS = "trainer.max_epoch"
_SHOWN_VALUES = 12
_FROM_TEST = ("transformer", "evaluator", "save_score")  # of the data set on which trials are evaluated


def load_tree(path: Path, overrides: Sequence[str] = ()) -> MappingNode:
    """Read the file of a search with ``--opts`` over it."""
    tree = apply_overrides(load_nodes(path), overrides)
    found = Found([], [])
    named = data_pool(tree, found)  # so that dataset.train and dataset.test in paths are the blocks that train and are evaluated
    return tree if found.problems else named


def without_search(tree: MappingNode) -> MappingNode:
    """Return the configuration that ``up train`` would train."""
    return tree.without(SECTION)


def with_values(tree: MappingNode, values: Mapping[str, Json]) -> MappingNode:
    """Set values by dotted path; null unsets a value that is written. Raises ``ConfigError`` for a path that does not exist."""
    for path, value in values.items():
        tree = without_path(tree, path) if value is None else set_at(tree, path, from_plain(value, tree.mark), tree.mark)
    return tree


def without_path(tree: MappingNode, path: str) -> MappingNode:
    """Remove the key at a dotted path, if it is written."""
    above, _, key = path.rpartition(".")
    node = node_at(tree, above) if above else tree
    if not isinstance(node, MappingNode) or key_of(node, key) not in node.entries:
        return tree
    shorter = node.without(key_of(node, key))
    return set_at(tree, above, shorter, tree.mark) if above else shorter


def node_at(tree: Node, path: str) -> Node | None:
    """Return the node at a dotted path, whose list entries may be named; None if there is none."""
    node: Node | None = tree
    for word in path.split("."):
        if isinstance(node, SequenceNode):
            index = index_of(node, word)
            node = None if index is None else node.items[index]
        else:
            node = node.get(key_of(node, word)) if isinstance(node, MappingNode) else None
        if node is None:
            return None
    return node


def with_fragment(tree: MappingNode, path: Path) -> MappingNode:
    """Merge a fragment over ``tree``: keys with dots are dotted paths, the others a deep merge as ``base`` does."""
    fragment = load_nodes(path)
    dotted = [key for key in fragment.entries if "." in str(key)]
    merged = merged_over(tree, fragment.without(*dotted))
    assert isinstance(merged, MappingNode)
    for key in dotted:
        node = fragment.entries[key]
        if to_plain(node) is None:
            merged = without_path(merged, str(key))
        else:
            merged = set_at(merged, str(key), node, fragment.key_marks[key])
    return merged


def with_epochs(tree: MappingNode, epochs: int) -> MappingNode:
    """Set the number of epochs and scale the schedule to it."""
    changed = dict(overrides_of_length(decode(without_search(tree)).config, tree, epochs))
    return with_values(tree, {path: value for path, value in changed.items() if value is not None})


def with_settings(tree: MappingNode, values: Mapping[str, Json], epochs: int | None = None) -> MappingNode:
    """Set values by dotted path, the length first (``epochs``, or ``trainer.max_epoch`` of them), so that the schedule follows
    it."""
    length = values.get(_EPOCHS, epochs)
    if isinstance(length, int) and length > 0:
        tree = with_epochs(tree, length)
    return with_values(tree, values)


def values_of(space: Space, point: Point) -> dict[str, Json]:
    """Return the values that ``point`` sets: null for the keys whose conditions do not hold, so that the file's value goes."""
    return {**dict.fromkeys((each.path for each in space.dimensions if each.when), None), **point}


def completed(space: Space, tree: MappingNode, point: Point) -> Point:
    """Return an enqueued point with the values of the file for the keys that it leaves out, where the space has them.

    Raises ``UserError`` if ``forbid`` excludes the result.
    """
    values = dict(point)
    for each in space.dimensions:
        node = node_at(tree, each.path)
        if each.path not in values and node is not None and each.holds(to_plain(node)):
            values[each.path] = to_plain(node)
    found = space.active(values)
    if space.is_forbidden(found):
        from_file = {path: value for path, value in found.items() if path not in point}
        beside = f" with the values of the file, {text_of(from_file)}" if from_file else ""
        raise UserError(f"is a forbidden combination{beside}", fix="Remove it, or change forbid.")
    return found


def with_holdout(tree: MappingNode, train: Path, holdout: Path) -> MappingNode:
    """Train on one part of ``dataset.train``, evaluate on the other: files with the indices of the images."""
    tree = evaluated_on_train(tree)
    parts = {"train": train, "test": holdout}
    return with_values(tree, {f"dataset.{name}.subset": str(indices) for name, indices in parts.items()})


def evaluated_on_train(tree: MappingNode) -> MappingNode:
    """Evaluate on the images of ``dataset.train``, with the transforms and the evaluator of ``dataset.test``."""
    tree = to_documented_form(tree)[0]
    dataset = tree.block("dataset")
    source, test = dataset.block("train"), dataset.block("test")
    kwargs = source.block("dataset", "kwargs").without(*_FROM_TEST)
    for key in _FROM_TEST:
        written = test.block("dataset", "kwargs").get(key)
        kwargs = kwargs if written is None else kwargs.with_entry(key, written)
    evaluated = test.with_entry("dataset", source.block("dataset").with_entry("kwargs", kwargs))
    return tree.with_entry("dataset", dataset.with_entry("test", evaluated))


def write_config(path: Path, tree: MappingNode, values: Mapping[str, Json]) -> None:
    """Write the configuration of a run, with further ``values`` by dotted path."""
    plain = to_plain(with_values(without_search(tree), values))
    write_text(path, yaml.dump(plain, Dumper=PlainDumper, sort_keys=False, allow_unicode=True, width=120))


def write_fragment(path: Path, values: Mapping[str, Json], header: str = "") -> None:
    """Write a fragment: values by dotted path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    comment = "".join(f"# {line}\n" for line in header.splitlines())
    write_text(path, comment + yaml.dump(dict(values), Dumper=PlainDumper, sort_keys=False, allow_unicode=True, width=120))


def as_names(names: str | list[str] | None) -> list[str]:
    """Return the names of fragments as a list."""
    return [] if names is None else [names] if isinstance(names, str) else names


def fragments_named(names: str | list[str] | None, run: Path, config: Path) -> list[Path]:
    """Return the files that ``from`` names: ``nas.best`` and ``nas.pareto`` of the run's stages, the best first, or files beside
    the configuration."""
    found: list[Path] = []
    for name in as_names(names):
        if name.endswith((".yaml", ".yml")):
            found.append(Path(name) if Path(name).exists() else config.parent / name)
            continue
        stage, _, kind = name.partition(".")
        folder = run / stage
        found += sorted((folder / "pareto").glob("*.yaml"), key=_rank) if kind == "pareto" else [folder / f"{kind or 'best'}.yaml"]
    return found


def _rank(fragment: Path) -> tuple[float, str]:
    """Return the number that the name of a fragment begins with, and the name: ``100_trial0007.yaml`` comes after ``99_``."""
    digits = "".join(takewhile(str.isdecimal, fragment.name))
    return float(digits or "inf"), fragment.name


def plain_of(tree: MappingNode) -> Record:
    """Return the configuration as plain data, in its documented form, without the search."""
    plain: Record = to_plain(to_documented_form(without_search(tree))[0])
    return plain


def require_files(paths: Iterable[Path], key: str) -> None:
    """Raise ``UserError`` for a fragment that does not exist."""
    for path in paths:
        if not path.is_file():
            fix = "Run the stage that writes it first, or write the file by hand."
            raise UserError(f"{path}: no such fragment", key=key, fix=fix)


def text_of(values: Mapping[str, Json]) -> str:
    """Format values by dotted path on one line, each path by its end; of many values, the first few."""
    return some_of((f"{_short(path)} {_shown(value)}" for path, value in values.items()), _SHOWN_VALUES)


def _short(path: str) -> str:
    words = [word for word in path.split(".") if word != "kwargs"]
    return ".".join(words[-3:] if len(words) > 2 and words[-2].isdigit() else words[-2:])


def _shown(value: Json) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return json.dumps(value) if isinstance(value, dict | list) else str(value)


def stage_places(tree: MappingNode) -> Iterator[tuple[str, str, MappingNode]]:
    """Yield name, dotted path and block of every stage in the file."""
    stages = tree.block(SECTION).get("stages")
    for index, item in enumerate(stages.items if isinstance(stages, SequenceNode) else ()):
        for name, block in item.entries.items() if isinstance(item, MappingNode) else ():
            if isinstance(block, MappingNode):
                yield str(name), f"{SECTION}.stages.{index}.{name}", block
