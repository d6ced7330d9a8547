"""Names in a run folder, each in this place only: its writer and its readers import it, and a new run sets all of them aside."""

from __future__ import annotations

CONFIG = "config.yaml"  # the effective configuration
STATUS = "status.json"
LOG = "train.log"
METRICS = "metrics.jsonl"
RECORD = "run.json"  # machine, versions and command of each start
BAD_IMAGES = "bad_images.jsonl"
BEST_METRICS = "best_metrics.json"
TRAINED_IMAGES = "trained_images.npz"
AVERAGES = "averaging.json"  # metrics of the averages of a run's checkpoints, and the file of the best
CHECKPOINTS = "ckpt_*"
REPORT = "report.*"  # the page, its content and what it was computed from
RESULTS = "results"  # files of evaluations
NAMED_RESULTS = f"{RESULTS}_*"  # those of other images, by their name
REPLAY = "replay"
TENSORBOARD = "tensorboard"
TRACKERS = "trackers"
FEATURE_VIS = "feature_vis"
GRAD_CAM = "grad_cam"
FRAGMENTS = "fragments"  # networks of a search for an architecture

OF_A_RUN: tuple[str, ...] = tuple(value for name, value in [*globals().items()] if name.isupper())
"""Patterns of all files and folders of a run.

Not among them are ``features``, ``issues`` and ``issues_*``, which later runs read, and packages and graphs, which others serve by
their path: their manifest names the checkpoint that they are of.
"""
