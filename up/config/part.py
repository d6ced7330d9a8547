"""What a constructor says of its parameters: this one is itself a part, ``Annotated[nn.Module, PartOf("loss")]``; that one is
not the file's to give, ``Annotated[int, BY_PROGRAM]``."""

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
