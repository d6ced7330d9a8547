"""Build what the section ``finetune`` asks for in training: frozen parameters, adapters, the penalty towards the start."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import torch
from torch import Tensor

from up.errors import UserError
from up.files import START, averages_of
from up.models.lora import add_lora
from up.models.net import Net
from up.models.patterns import any_of, require_matches
from up.optim.freezing import Freezing
from up.schema.finetune import FinetuneSection
from up.seed import key, seed_all
from up.tasks.experiment import Experiment, net_kind
from up.types import Record

_ADAPTERS = 4  # the purpose of the seed that adapters are drawn with
_NOTHING = FinetuneSection()


def section_of(experiment: Experiment) -> FinetuneSection:
    """Return the section ``finetune``, empty where the file has none."""
    return experiment.config.finetune or _NOTHING


def head_of(experiment: Experiment, net: Net) -> frozenset[str]:
    """Return the names of the parameters of the modules that are initialized anew for other classes."""
    kinds = experiment.task.fresh_kinds
    heads = tuple(
        f"{entry.name}." for entry in experiment.config.net if entry.type != "self" and net_kind(experiment, entry) in kinds
    )
    return frozenset(name for name, _ in net.named_parameters() if name.startswith(heads))


def prepare_net(experiment: Experiment, net: Net) -> frozenset[str]:
    """Freeze and extend the net as ``finetune.freeze`` and ``finetune.lora`` say; returns the parameters that never train.

    Raises ``UserError`` for a pattern that matches nothing, and for adapters of a net without linear layers.
    """
    section, head = section_of(experiment), head_of(experiment, net)
    if section.lora is not None:
        seed_all(key(experiment.config.runtime.random_seed, _ADAPTERS))
        for entry in experiment.config.net:
            if entry.type != "self" and net_kind(experiment, entry) == "backbone":
                try:
                    add_lora(net[entry.name], rank=section.lora.rank, alpha=section.lora.alpha, targets=section.lora.targets or ())
                except UserError as error:
                    experiment.raise_if_any(error.problems)
    frozen = _frozen_by(section.freeze, net, head, experiment)
    if frozen:
        net.hold(frozen)
    return frozen


def _frozen_by(written: str | list[str] | None, net: Net, head: Collection[str], experiment: Experiment) -> frozenset[str]:
    names = [name for name, _ in net.named_parameters()]
    if isinstance(written, str):
        return frozenset(names) - frozenset(head)
    with experiment.placing("finetune.freeze"):
        require_matches(written or (), names, key="freeze")
        return frozenset(filter(any_of(written, key="freeze"), names)) if written else frozenset()


def freezing_of(experiment: Experiment, net: Net, always: frozenset[str], steps_per_epoch: int) -> Freezing:
    """Build the rule of which parameters train at which step. Raises ``ConfigError`` if none does in the first epoch."""
    section = section_of(experiment)
    probe, unfreeze = section.probe, section.unfreeze
    rule = Freezing(
        net,
        net.hold,
        steps_per_epoch,
        always,
        head_of(experiment, net),
        probe_epochs=probe.epochs if probe else 0,
        blocks=unfreeze.blocks if unfreeze else 0,
    )
    if rule.changes and rule.at(0) >= {name for name, _ in net.named_parameters()}:
        what = "no parameter trains in epoch 1: those that would are frozen for the whole run. Freeze fewer parameters."
        raise experiment.error(what, key=f"finetune.{'probe' if probe else 'unfreeze'}")
    return rule


def read_start(checkpoint: Path | None, folder: Path) -> dict[str, Tensor]:
    """Read the starting weights of the run of ``checkpoint``, else those in ``folder``. Raises ``UserError`` if they are gone."""
    found = next(
        (each / START for each in (folder, *([checkpoint.parent] if checkpoint else [])) if (each / START).is_file()), None
    )
    if found is None:
        what = f"{folder / START} is missing: it has the weights that the run started from"
        raise UserError(what, fix="Put it back, or start a new run with another saver.save_dir.", key="finetune")
    state: dict[str, Tensor] = torch.load(found, map_location="cpu", weights_only=True)["model"]
    return state


def settings_of(experiment: Experiment) -> Record:
    """Return the settings of the averages, as ``averaging.json`` records them."""
    section = section_of(experiment).model_dump()
    return {name: section[name] for name in ("soup", "wise_ft", "average", "swa") if section[name] is not None}


def owes_averages(experiment: Experiment, step: int) -> bool:
    """Check whether the averages of a run that is finished after ``step`` steps are still to be made, or to be forgotten."""
    settings = settings_of(experiment)
    record = averages_of(experiment.folder)
    if not settings:
        return bool(record)
    return record.get("settings") != settings or record.get("step") != step
