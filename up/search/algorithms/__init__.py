"""The algorithms of ``up search``: classes with ``suggest`` and ``observe`` (up/search/algorithm.py)."""
