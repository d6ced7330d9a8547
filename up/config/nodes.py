"""YAML text to nodes that know their line: safe tags only, bounded aliases, no duplicate keys, one line for each error.

The events of PyYAML's parser are composed here, not by PyYAML's composer, which recurses (a deep file ends
in ``RecursionError``) and whose constructor keeps the last of two equal keys.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import yaml
from yaml.reader import Reader

from up.config.bases import BASE, base_files, merged_over
from up.config.syntax import SyntaxFault, equals_sign, fault_of, fault_of_scalar
from up.config.tree import Key, MappingNode, Mark, Node, ScalarNode, SequenceNode, is_null, set_at
from up.errors import ConfigError
from up.text import Verbatim, did_you_mean, shortened

MAX_BYTES = 8 << 20
MAX_DEPTH = 100
MAX_NODES = 50_000

_YAML = "tag:yaml.org,2002:"
_FastLoader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_FastDumper: Any = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
_Start: TypeAlias = yaml.MappingStartEvent | yaml.SequenceStartEvent
_End: TypeAlias = yaml.MappingEndEvent | yaml.SequenceEndEvent


class _Loader(_FastLoader):  # type: ignore[misc]  # chosen at run time
    """The parser; libyaml's where PyYAML was built with it."""


class PlainDumper(_FastDumper):  # type: ignore[misc]  # chosen at run time
    """Writes what ``load_nodes`` reads back unchanged, four times as fast where PyYAML was built with libyaml."""


for _reader_or_writer in (_Loader, PlainDumper):
    # YAML 1.1 wants 1.0e-3 and takes 1e-3 for text
    _reader_or_writer.add_implicit_resolver(
        f"{_YAML}float", re.compile(r"[-+]?(\d[\d_]*\.?[\d_]*|\.\d[\d_]*)[eE][-+]?\d+$"), list("-+.0123456789")
    )


class _Built(NamedTuple):
    """A finished node, the number of its values with all aliases written out, and their depth."""

    node: Node
    size: int = 1
    depth: int = 0


@dataclass
class _Open:
    """A block or list whose end is not read yet; ``parts`` of a block alternate keys and values."""

    is_block: bool
    mark: Mark
    anchor: str | None
    parts: list[_Built] = field(default_factory=list)
    size: int = 1

    def expects_value(self) -> bool:
        return self.is_block and len(self.parts) % 2 == 1


def load_nodes(path: Path) -> MappingNode:
    """Load the file at ``path`` with its includes, bases and ``overwrite@`` applied. Raises ``ConfigError``."""
    return _as_file(_Files().load(Path(path), None))


def parse_nodes(text: str, name: str) -> MappingNode:
    """Parse ``text``, which errors call ``name``; includes and bases are relative to the working folder."""
    return _as_file(_Files().parse(text, name, Path()))


def read_plain(text: str) -> Any:
    """Load YAML as ``yaml.safe_load`` does, ten times as fast where PyYAML was built with libyaml. Raises ``yaml.YAMLError``."""
    return yaml.load(text, Loader=_FastLoader)


def parse_value(text: str, name: str) -> Node:
    """Parse a single YAML value, such as the one in ``key=value``; an empty text is null."""
    built = _Composer(name, Path(), _Files()).compose(text)
    return built.node if built else ScalarNode(None, Mark(name, 1, 1))


def _as_file(built: _Built) -> MappingNode:
    assert isinstance(built.node, MappingNode)
    return built.node


class _Files:
    """The files of one configuration. Each is read once; none may include itself or be a base of itself."""

    def __init__(self) -> None:
        self._done: dict[tuple[Path, bool], _Built] = {}
        self._chain: list[Path] = []

    def load(self, path: Path, named_at: Mark | None, said: str = "", *, is_config: bool = True) -> _Built:
        """Load the file at ``path``; a file that cannot be read is reported at ``named_at``, with the words ``said``.

        With ``is_config`` it must have sections and may have bases; without, it is any value that ``!include`` puts in place.
        """
        mark = named_at or Mark(str(path))
        key = path.resolve() if not _is_odd(path) else path
        if key in self._chain:
            chain = " -> ".join(str(file.name) for file in [*self._chain, key])
            raise mark.error(_joined(said, f"the file includes itself ({chain})"))
        if (key, is_config) not in self._done:
            text = _decoded(_read(path, mark, said), str(path))
            self._chain.append(key)
            self._done[key, is_config] = self.parse(text, str(path), path.parent, is_config=is_config)
            self._chain.pop()
        return self._done[key, is_config]

    def parse(self, text: str, name: str, folder: Path, *, is_config: bool = True) -> _Built:
        """Parse one file's text."""
        built = _Composer(name, folder, self).compose(text)
        if built is None or is_null(built.node):
            raise Mark(name, 1, 1).error("the file is empty", expected="sections such as net, dataset and trainer")
        if isinstance(built.node, MappingNode):
            root = self._over_bases(built.node) if is_config else built.node
            return built._replace(node=_overwritten(root))
        if is_config:
            got = "a list" if isinstance(built.node, SequenceNode) else repr(built.node.value)
            expected = "a block of sections such as net, dataset and trainer"
            raise built.node.mark.error(got=Verbatim(shortened(got)), expected=expected)
        return built

    def _over_bases(self, root: MappingNode) -> MappingNode:
        """Merge ``root`` over the files that it names as its bases, the later over the earlier."""
        below: Node | None = None
        for path, mark in base_files(root):
            path = Path(os.path.normpath(path))
            base = self.load(path, mark, f"{BASE}: {path}").node
            below = base if below is None else merged_over(below, base)
        if below is None:
            return root
        merged = merged_over(below, root.without(BASE))
        assert isinstance(merged, MappingNode)
        return merged


def _is_odd(path: Path) -> bool:
    return "\0" in str(path)


def _read(path: Path, mark: Mark, said: str) -> bytes:
    if _is_odd(path):
        raise mark.error(_joined(said, "a file name cannot hold NUL"))
    try:
        if path.exists() and not path.is_file():
            got = Verbatim("a folder" if path.is_dir() else "a device or pipe")
            raise mark.error(said, got=got, expected="a YAML file")
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        names = sorted(os.listdir(path.parent)) if path.parent.is_dir() else []
        fix = did_you_mean(path.name, names).strip() if names else f"The folder {path.parent} does not exist either."
        raise mark.error(_joined(said, "no such file"), fix=fix) from None
    except OSError as error:
        raise mark.error(_joined(said, f"cannot be read ({error.strerror})")) from None
    if len(content) > MAX_BYTES:
        got = Verbatim(f"more than {MAX_BYTES >> 20} MiB")
        raise mark.error(said, got=got, expected="a configuration, which is far smaller")
    return content


def _decoded(content: bytes, name: str) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        mark = Mark(name, content.count(b"\n", 0, error.start) + 1, 1)
        raise mark.error(f"byte 0x{content[error.start]:02x} is not UTF-8", fix="Save the file as UTF-8.") from None


def _overwritten(root: MappingNode) -> MappingNode:
    """Apply ``overwrite@: {a.b: value}``: each dotted key replaces the value there."""
    changes = root.get("overwrite@")
    if changes is None:
        return root
    root = root.without("overwrite@")
    if is_null(changes):
        return root
    if not isinstance(changes, MappingNode):
        raise changes.mark.error("overwrite@", expected="a block of dotted keys with their new values")
    for path, node in changes.entries.items():
        root = set_at(root, str(path), node, changes.key_marks[path])
    return root


class _Composer:
    """Composes the events of one text, with a stack instead of recursion."""

    def __init__(self, name: str, folder: Path, files: _Files) -> None:
        self._name = name
        self._folder = folder
        self._files = files
        self._anchors: dict[str, _Built] = {}
        self._stack: list[_Open] = []
        self._count = 0
        self._lines: list[str] = []

    def compose(self, text: str) -> _Built | None:
        """Compose the only document of ``text``; None if there is none."""
        self._lines = text.splitlines()
        if odd := Reader.NON_PRINTABLE.search(text):
            line = text.count("\n", 0, odd.start()) + 1
            raise Mark(self._name, line, 1).error(f"the character U+{ord(odd.group()):04X} is not allowed in YAML")
        loader = _Loader(text)
        try:
            return self._compose(loader)
        except yaml.MarkedYAMLError as error:
            raise self._refused(fault_of(error, text)) from None
        except yaml.YAMLError as error:
            raise Mark(self._name, 1, 1).error(f"not valid YAML: {' '.join(str(error).split())}") from None
        finally:
            loader.dispose()

    def _compose(self, loader: _Loader) -> _Built | None:
        root = None
        documents = 0
        while loader.check_event():
            event = loader.get_event()
            if isinstance(event, yaml.DocumentStartEvent):
                documents += 1
                if documents > 1:
                    raise self._mark(event).error("a second document begins here", expected="one", fix="Remove the line '---'.")
            elif isinstance(event, _Start):
                self._open(event)
            elif isinstance(event, yaml.ScalarEvent | yaml.AliasEvent | _End):
                built = self._finished(event, loader)
                if self._stack:
                    self._add(built, self._mark(event))
                else:
                    root = built
        return root

    def _finished(self, event: yaml.ScalarEvent | yaml.AliasEvent | _End, loader: _Loader) -> _Built:
        if isinstance(event, yaml.AliasEvent):
            return self._alias(event)
        if isinstance(event, yaml.ScalarEvent):
            built, anchor = self._scalar(event, loader), event.anchor
        else:
            opened = self._stack.pop()
            built, anchor = self._closed(opened), opened.anchor
        if anchor is not None:
            if anchor in self._anchors:
                first = self._anchors[anchor].node.mark.line
                raise self._mark(event).error(f"the anchor &{anchor} is set twice (its first value begins in line {first})")
            self._anchors[anchor] = built
        return built

    def _open(self, event: _Start) -> None:
        mark, is_block = self._mark(event), isinstance(event, yaml.MappingStartEvent)
        if event.tag not in (None, "!", f"{_YAML}{'map' if is_block else 'seq'}"):
            raise self._bad_tag(event.tag, mark)
        if len(self._stack) >= MAX_DEPTH:
            raise mark.error(got=Verbatim(f"more than {MAX_DEPTH} levels of nesting"), expected="about 10")
        if self._stack and self._stack[-1].expects_value():
            mark = self._stack[-1].parts[-1].node.mark  # a block begins below its key, but users look for it at the key
        self._stack.append(_Open(is_block, mark, event.anchor))

    def _add(self, built: _Built, mark: Mark) -> None:
        parent = self._stack[-1]
        parent.parts.append(built)
        parent.size += built.size
        self._count += 1
        if parent.size > MAX_NODES or self._count > MAX_NODES:
            raise mark.error(got=Verbatim(f"more than {MAX_NODES:,} values with all aliases written out (an alias bomb?)"))
        if built.depth + len(self._stack) > MAX_DEPTH:
            raise mark.error(got=Verbatim(f"more than {MAX_DEPTH} levels of nesting with the alias written out"))

    def _alias(self, event: yaml.AliasEvent) -> _Built:
        if event.anchor in self._anchors:
            return self._anchors[event.anchor]
        mark = self._mark(event)
        if any(opened.anchor == event.anchor for opened in self._stack):
            raise mark.error(f"the alias *{event.anchor} is inside the value of its own anchor (a cycle)")
        raise mark.error(f"no anchor is called &{event.anchor}.{did_you_mean(str(event.anchor), self._anchors)}")

    def _scalar(self, event: yaml.ScalarEvent, loader: _Loader) -> _Built:
        mark = self._mark(event)
        if event.tag == "!include":
            path = Path(os.path.normpath(self._folder / event.value))
            return self._files.load(path, mark, f"!include {path}", is_config=False)
        if fault := self._swallowed(event):
            raise self._refused(fault)
        tag = event.tag
        if tag is None or tag == "!":
            tag = loader.resolve(yaml.ScalarNode, event.value, event.implicit)
        value = self._value(tag, event.value, loader, mark)
        if value is None and self._stack and self._stack[-1].expects_value():
            mark = self._stack[-1].parts[-1].node.mark
        return _Built(ScalarNode(value, mark, event.anchor, is_empty=value is None and not event.value))

    def _swallowed(self, event: yaml.ScalarEvent) -> SyntaxFault | None:
        """Find a value with lines that were meant as keys."""
        assert event.start_mark is not None
        assert event.end_mark is not None
        first, last = event.start_mark.line, event.end_mark.line
        is_plain = event.style not in ("'", '"', "|", ">")
        if last > first and event.style not in ("|", ">"):
            return fault_of_scalar(self._lines, first, last, quoted=not is_plain)
        is_first_of_block = self._stack and self._stack[-1].expects_value() and self._stack[-1].parts[-1].node.mark.line <= first
        return equals_sign(self._lines, [first]) if is_plain and is_first_of_block and "=" in event.value else None

    def _value(self, tag: str, text: str, loader: _Loader, mark: Mark) -> str | int | float | bool | None:
        kind = tag.removeprefix(_YAML)
        node = yaml.ScalarNode(tag, text)
        try:
            if kind in ("str", "merge", "value", "timestamp"):  # a date is text: no setting is one
                return text
            if kind == "null":
                return None
            if kind in ("bool", "int", "float"):
                made: bool | int | float = getattr(loader, f"construct_yaml_{kind}")(node)
                return made
        except (ValueError, KeyError, IndexError):
            raise mark.error(got=shortened(text), expected=f"a value of the kind {kind}") from None
        raise self._bad_tag(tag, mark)

    def _closed(self, opened: _Open) -> _Built:
        depth = 1 + max((part.depth for part in opened.parts), default=0)
        if not opened.is_block:
            return _Built(SequenceNode(tuple(part.node for part in opened.parts), opened.mark, opened.anchor), opened.size, depth)
        own: dict[Key, Node] = {}
        inherited: dict[Key, Node] = {}
        marks: dict[Key, Mark] = {}
        inherited_marks: dict[Key, Mark] = {}
        for (key, *_), (value, *_) in zip(opened.parts[::2], opened.parts[1::2], strict=True):
            if not isinstance(key, ScalarNode):
                raise key.mark.error(got=Verbatim("a block or list as a key"), expected="a word")
            if key.value == "<<":
                for source in self._merge_sources(value, key.mark):
                    inherited |= source.entries
                    inherited_marks |= source.key_marks
            elif key.value in own:
                raise key.mark.error(f"the key {key.value!r} is given twice (first in line {marks[key.value].line})")
            else:
                own[key.value], marks[key.value] = value, key.mark
        block = MappingNode({**inherited, **own}, {**inherited_marks, **marks}, opened.mark, opened.anchor)
        return _Built(block, opened.size, depth)

    def _merge_sources(self, value: Node, mark: Mark) -> list[MappingNode]:
        """The blocks of ``<<``, the last first: of several the first wins (YAML 1.1)."""
        sources = value.items[::-1] if isinstance(value, SequenceNode) else (value,)
        blocks = [source for source in sources if isinstance(source, MappingNode)]
        if len(blocks) < len(sources):
            raise mark.error("<<", expected="a block, or a list of blocks, to merge")
        return blocks

    def _mark(self, event: yaml.Event) -> Mark:
        assert event.start_mark is not None
        return Mark(self._name, event.start_mark.line + 1, event.start_mark.column + 1)

    @staticmethod
    def _bad_tag(tag: str, mark: Mark) -> ConfigError:
        what = f"the tag {shortened(tag.replace(_YAML, '!!'))} is not allowed"
        return mark.error(what, expected="plain values; only !include has a meaning here")

    def _refused(self, fault: SyntaxFault) -> ConfigError:
        return Mark(self._name, fault.line, fault.column).error(fault.what)


def _joined(said: str, what: str) -> str:
    return f"{said}: {what}" if said else what
