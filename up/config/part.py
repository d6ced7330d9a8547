"""What a constructor says of its parameters beyond their types.

- ``Annotated[nn.Module, PartOf("loss")]``: the parameter is itself a part.
- ``Annotated[int, BY_PROGRAM]``: YAML cannot give it.
- ``Annotated[bool, NoEffect("the page cache does it")]``: accepted, because files of other programs have it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

PART = "x-part"
"""The key by which a JSON Schema names the table of a part until the tables are known."""


@dataclass(frozen=True)
class PartOf:
    """The parameter is written ``{type, kwargs}`` (or a list of such) in YAML; the constructor receives what was built.

    ``table`` names the table of the plugin that ``type`` is looked up in.
    """

    table: str

    def __get_pydantic_json_schema__(self, core_schema: Any, handler: Any) -> dict[str, Any]:
        """A section that holds a part says which table it is from."""
        return {**handler(core_schema), PART: self.table}


@dataclass(frozen=True)
class ByProgram:
    """The program alone knows the parameter (the number of images, the seed of the run): YAML cannot give it, nothing lists it."""


BY_PROGRAM = ByProgram()


@dataclass(frozen=True)
class NoEffect:
    """The parameter is accepted and changes nothing, for ``reason``.

    A value other than the default gives a note with the reason; reference page and JSON Schema say it too.
    """

    reason: str

    def __get_pydantic_json_schema__(self, core_schema: Any, handler: Any) -> dict[str, Any]:
        """Editors show the description and strike deprecated keys through."""
        return {**handler(core_schema), "description": f"No effect: {self.reason}.", "deprecated": True}
