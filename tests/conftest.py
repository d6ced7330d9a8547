"""What every test runs under: few threads, and no plug-ins of the machine that it runs on."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def _few_threads() -> None:
    torch.set_num_threads(1)  # for nets this tiny a second thread only waits
    os.environ["OMP_NUM_THREADS"] = "1"  # the same for the processes that tests start
    os.environ.pop("PLUGINPATH", None)


@pytest.fixture(autouse=True)
def _log_as_it_was() -> Iterator[None]:
    """A run in the test's own process redirects the log; the next test starts afresh."""
    logger = logging.getLogger("up")
    before = (list(logger.handlers), logger.propagate, logger.level)
    yield
    for handler in logger.handlers:
        if handler not in before[0]:
            handler.close()
    logger.handlers[:], logger.propagate, level = before
    logger.setLevel(level)
