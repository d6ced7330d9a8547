"""Optimizers, parameter groups and learning-rate schedules."""

from __future__ import annotations

from up.optim.groups import GroupRow, group_table
from up.optim.optimizers import OPTIMIZERS, build_optimizer, lr_of, set_lr
from up.optim.schedules import SCHEDULES, Schedule, build_schedule

__all__ = ["OPTIMIZERS", "SCHEDULES", "GroupRow", "Schedule", "build_optimizer", "build_schedule", "group_table", "lr_of", "set_lr"]
