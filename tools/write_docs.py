"""Write docs/config.md from the code (the sections' field docstrings, the parts' signatures and docstrings), docs/performance.md
from the result files in benchmarks/, and the code that docs/tour.md quotes.

    python tools/write_docs.py [--check]

``--check`` writes nothing and ends with 1 when a page is stale.
"""

from __future__ import annotations

import argparse
import inspect
import re
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

from pydantic.fields import FieldInfo

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # from a checkout that is not installed

from up.bench.page import page as performance  # noqa: E402
from up.bench.results import read_results  # noqa: E402
from up.build.experiment import all_tables, find_task  # noqa: E402
from up.config.section import Section, docstrings_of, sections_in  # noqa: E402
from up.config.signature import Parameter, signature_of  # noqa: E402
from up.config.words import Words, description, docstring, summary  # noqa: E402
from up.registry import Registry  # noqa: E402
from up.schema.sections import Config  # noqa: E402

DOCS = ROOT / "docs"
TASK = "cls"
HEADER = """\
# Configuration reference

<!-- Written by tools/write_docs.py; change the docstrings in the code and run `make docs`. -->

For the installed version: `python -m up show components`, `show schema` (JSON Schema for editors) and
`show config --config FILE` (every value with its file and line).

## The file

- A *part* is written `{type: NAME, kwargs: {...}}`; `kwargs` may be left out. `type` is looked up in a table, `kwargs` are
  checked against the constructor before anything is built. A key without a value (`null`) counts as not written.
- Top-level keys that are no section may hold anchors: a block `{type, kwargs}`, a single value, anything with an `&anchor`. One
  with a name close to that of a section is an error.
- `dataset.batch_sampler` and `dataset.dataloader` are shared by all sources. A block of the same name under `dataset.train` or
  `dataset.test` that has a `type` replaces the shared one, one without `type` changes only the keys that it names.
- `--opts a.b.c=VALUE a.b.d VALUE` overrides; values are YAML. An entry of a list is named by its index or by its `name`:
  `net.0.kwargs.width=32`, `net.head.kwargs.dropout=0.1`. `+hooks={type: feature_vis, ...}` appends to a list.
- `base: [a.yaml, b.yaml]`, or a single name, writes the file over others: a later base over an earlier one, the file over all of
  them, `--opts` over everything. A path is relative to the folder of the file that names it; a base may have bases. Merging:
  - A block changes only the keys that it has: `trainer: {optimizer: {kwargs: {lr: 0.2}}}` keeps the momentum of the base.
  - A block that has a `type` replaces the whole block, also where the type is the same.
  - A list replaces, but for lists of blocks with a `name` (`net`, `teacher`): an entry changes the one of its name, in its place,
    and others are appended. `net: [{name: backbone, type: resnet50}]` keeps the head of the base.
  - `null` unsets a value of the base; a key without a value changes nothing. `overwrite@` replaces what merging would
    keep: `overwrite@: {net: [...]}`.
  - Errors and `show config` name the file and line of each value. `config.yaml` in the run folder is the merged configuration.
- `!include other.yaml` inserts the content of another file. `overwrite@: {a.b.c: VALUE}` replaces values after that.
- `1e-3` is a number. A key that is given twice, an unknown key, a wrong type, `.inf`: all such problems are reported at once, one
  line each with file and line, and nothing is created.
"""


def page() -> str:
    """Return the text of docs/config.md."""
    tables = all_tables(find_task(TASK), [])
    lines = [HEADER, "", "## Sections", ""]
    lines += [" · ".join(f"[{name}](#{anchor_of_field(field)})" for name, field in fields_of(Config)), ""]
    for section in sections_below(Config):
        lines += section_lines(section)
    lines += ["## Parts", "", " · ".join(f"[{name}](#{anchor_of_table(name)})" for name in sorted(tables)), ""]
    for name in sorted(tables):
        lines += table_lines(name, tables[name])
    return "\n".join(line.rstrip() for line in lines).rstrip() + "\n"


# --- sections -----------------------------------------------------------------------------------------------------------


def sections_below(section: type[Section]) -> list[type[Section]]:
    """Return ``section`` and all below it, each once, in the order of the file."""
    found: list[type[Section]] = [section]

    def visit(current: type[Section]) -> None:
        for _, field in fields_of(current):
            for inner in sections_in(field.annotation):
                if inner not in found:
                    found.append(inner)
                    visit(inner)

    visit(section)
    return [each for each in found if each.__name__ != "Part"]


def fields_of(section: type[Section]) -> Iterator[tuple[str, FieldInfo]]:
    for name, field in section.model_fields.items():
        example = section.example_of(name) if name in section.gathers else ""
        yield (f"{example}*" if example.islower() else example) or field.alias or name, field


def meanings_of(section: type[Section]) -> Iterator[str]:
    return (docstrings_of(section).get(name, "") for name in section.model_fields)


def section_lines(section: type[Section]) -> Iterator[str]:
    title = "The whole file" if section is Config else title_of(section)
    yield from (f"### {title}", "", prose(inspect.cleandoc(section.__doc__ or "")), "")
    yield from ("| key | type | default | meaning |", "|---|---|---|---|")
    for (name, field), meaning in zip(fields_of(section), meanings_of(section), strict=True):
        kind = MARKDOWN.arguments(field.annotation, field.metadata)
        default = MARKDOWN.required if field.is_required() else MARKDOWN.default(field.get_default(call_default_factory=True))
        yield f"| `{name}` | {kind} | {default} | {cell(meaning)} |"
    yield ""


def anchor_of_field(field: FieldInfo) -> str:
    inner = next(sections_in(field.annotation), None)
    return title_of(inner).lower() if inner and inner.__name__ != "Part" else "the-whole-file"


def title_of(section: type[Section]) -> str:
    return section.__name__.removesuffix("Section")


class Markdown(Words):
    """Words with links and code."""

    required = "**required**"

    def code(self, text: str) -> str:
        return f"`{text}`"

    def table(self, name: str) -> str:
        return f"[{name}](#{anchor_of_table(name)})"

    def section(self, section: type[Section]) -> str:
        return f"[{title_of(section)}](#{title_of(section).lower()})"


MARKDOWN = Markdown()

# --- parts --------------------------------------------------------------------------------------------------------------

Part = tuple[str, Callable[..., Any]]  # names, as a table shows them, and what they stand for
MANY = 5  # kwargs; with more a part has a table of its own


def table_lines(table: str, registry: Registry) -> Iterator[str]:
    yield from (f"### Parts: {table}", "")
    families: dict[object, list[Part]] = {}
    for names, part in by_target(registry):
        families.setdefault(family_of(part), []).append((names, part))
    alone = [parts[0] for parts in families.values() if len(parts) == 1]
    small = [(names, part) for names, part in alone if len(shown_of(part)) <= MANY]
    if small:
        yield from ("| type | kwargs | what it is |", "|---|---|---|")
        for names, part in small:
            arguments = "<br>".join(MARKDOWN.argument(parameter) for parameter in shown_of(part))
            yield f"| {names} | {arguments} | {cell(description(part))} |"
        yield ""
    for parts in families.values():
        if len(parts) > 1 or parts[0] not in small:
            yield from block_lines(parts)
    if not [*registry]:
        yield from ("None of its own: modules in `runtime.plugins` add them ([add_a_part.md](add_a_part.md)).", "")
    if registry.other_names():
        yield f"Those of other libraries go by the names that they have there; `python -m up show components {table}` lists them."
        yield ""


def by_target(registry: Registry) -> Iterator[Part]:
    """Yield each part with all its names."""
    names: dict[Callable[..., Any], list[str]] = {}
    for name in registry:
        names.setdefault(registry.get(name), []).append(name)
    return ((", ".join(f"`{name}`" for name in known), part) for part, known in names.items())


def family_of(part: Callable[..., Any]) -> object:
    """Return the key of a family: networks with the same text after the first line, and the same arguments except defaults."""
    text = docstring(part).partition("\n\n")[2]
    return (text, tuple(signature_of(part).parameters)) if text and hasattr(part, "__wrapped__") else part


def block_lines(parts: list[Part]) -> Iterator[str]:
    """Describe a part, or a family of parts, with a table of kwargs."""
    text = description(parts[0][1])
    together = len(parts) > 1
    yield from (f"**{', '.join(names for names, _ in parts)}**", "", prose(text.partition("\n\n")[2] if together else text), "")
    signatures = [signature_of(part).parameters for _, part in parts]
    yield from ("| kwarg | type | default |", "|---|---|---|")
    for parameter in shown_of(parts[0][1]):
        defaults = {MARKDOWN.default_of(signature[parameter.name]) for signature in signatures}
        default = defaults.pop() if len(defaults) == 1 else "that of the network"
        yield f"| `{parameter.name}` | {MARKDOWN.arguments(parameter.annotation)} | {default} |"
    yield ""
    if together:
        yield from (f"- {names}: {prose(summary(part))}" for names, part in parts)
        yield ""


def shown_of(part: Callable[..., Any]) -> list[Parameter]:
    return list(signature_of(part).parameters.values())


def anchor_of_table(name: str) -> str:
    return f"parts-{name}"


def prose(text: str) -> str:
    """Convert a docstring to Markdown: ``code`` in single backquotes, paragraphs and lists unchanged."""
    plain_and_code = text.replace("``", "`").split("`")
    plain_and_code[::2] = [plain.replace("*", r"\*").replace("<", "&lt;") for plain in plain_and_code[::2]]
    return "`".join(plain_and_code)


def cell(text: str) -> str:
    """Convert a docstring to a cell of a table."""
    paragraphs = [" ".join(paragraph.split()) for paragraph in prose(text).replace("\n- ", "\n\n").split("\n\n")]
    return "<br>".join(paragraph.removeprefix("- ") for paragraph in paragraphs if paragraph).replace("|", r"\|")


def pages() -> dict[Path, str]:
    """Return the text of each page that is made from the code."""
    tour, head = DOCS / "tour.md", DOCS / "_performance_head.md"
    results = [read_results(path) for path in sorted((ROOT / "benchmarks").glob("*.json"))]
    return {
        DOCS / "config.md": page(),
        DOCS / "performance.md": performance(head.read_text(encoding="utf-8"), results),
        tour: quoted_anew(tour.read_text(encoding="utf-8")),
    }


def quoted_anew(text: str) -> str:
    """Replace the quoted code below each ``<!-- up/x.py:name -->`` in ``text`` by the current code."""

    def anew(found: re.Match[str]) -> str:
        module = import_module(found["file"].removesuffix(".py").replace("/", "."))
        return f"{found['mark']}\n```python\n{inspect.getsource(getattr(module, found['name']))}```"

    return re.sub(r"(?s)(?P<mark><!-- (?P<file>up/[\w/]+\.py):(?P<name>\w+) -->)\n```python\n.*?```", anew, text)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing, end with 1 when a page is stale")
    arguments = parser.parse_args()
    stale = {path: text for path, text in pages().items() if not path.exists() or path.read_text(encoding="utf-8") != text}
    for path, text in stale.items():
        if not arguments.check:
            path.write_text(text, encoding="utf-8")
        print(f"{path.relative_to(ROOT)}: {'stale' if arguments.check else 'written'}")
    return 1 if stale and arguments.check else 0


if __name__ == "__main__":
    sys.exit(main())
