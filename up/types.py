"""Aliases for the untyped values that YAML, torch and JSON return."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Kwargs = Mapping[str, Any]
"""Keyword arguments as a YAML file gives them."""

Record = dict[str, Any]
"""The running record of a net: each module reads it and returns what it adds (``features``, ``logits``, ``loss``)."""

StateDict = dict[str, Any]
"""State of a part: tensors and plain values that ``torch.save`` takes."""

Json = Any
"""A value that ``json.loads`` returns."""

Argument = Any
"""An argument that a constructor passes on to that of its base class, whose annotation holds for it."""
