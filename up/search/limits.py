"""Limits of the costs of a network: find the one that is exceeded, and compare two sets of limits."""

from __future__ import annotations

from collections.abc import Mapping

from up.schema.search import ConstraintsSection
from up.types import Json


def broken(costs: Mapping[str, float], limits: Mapping[str, float]) -> str:
    """Return the first limit that ``costs`` exceed, as ``macs: 700000000 > 600000000``; an empty text if there is none."""
    return next((f"{name}: {costs[name]:.6g} > {limit:.6g}" for name, limit in limits.items() if costs.get(name, 0.0) > limit), "")


def are_as_wide(now: Mapping[str, Json], before: Mapping[str, Json]) -> bool:
    """Check whether the constraints of a YAML file admit all networks that those ``before`` admitted, measured as before."""
    limits, old = (ConstraintsSection.model_validate(each).limits for each in (now, before))
    how = [each.get("latency_ms") for each in (now, before)]
    rest = [{k: v for k, v in each.items() if k != "max"} if isinstance(each, Mapping) else {} for each in how]
    return all(name in old and limit >= old[name] for name, limit in limits.items()) and (how[0] is None or rest[0] == rest[1])
