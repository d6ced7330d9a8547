"""The section ``search``: the stages of a search, and the tables of its algorithms and spaces."""

from __future__ import annotations

from up.config.contract import Contract, Method
from up.registry import Registry

ALGORITHM_CONTRACT = Contract(
    "docs/search.md",
    methods=(
        Method("suggest", "def suggest(self, history)", "return the next point, or None at the end"),
        Method("observe", "def observe(self, trial)", "take note of a trial that ended"),
    ),
)
ALGORITHMS = Registry(
    "algorithm",
    {"random": "up.search.algorithms.optuna:RandomSearch", "tpe": "up.search.algorithms.optuna:Tpe"},
    contract=ALGORITHM_CONTRACT,
)
SPACES = Registry("space", {}, contract=Contract("docs/search.md"))
"""Functions that return a space in its YAML form, all of them of plug-ins."""
