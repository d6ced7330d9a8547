"""Fit a run to its machine: choose the values of ``batch_size``, ``num_workers`` and ``amp`` that are ``auto``, each with a reason.

They are chosen before anything else is built, the same on all ranks, and recorded in the run folder's ``config.yaml``, from which a
resumed run takes them.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from time import perf_counter
from typing import NamedTuple

import torch
import yaml
from torch import Tensor

from up.build.data import build_dataset, input_size_of
from up.build.experiment import missing_files
from up.build.network import build_net, distillation_of, precision_of, to_device
from up.build.training import build_runner, optimizer_of
from up.config.nodes import read_plain
from up.config.section import Section
from up.data.collate import to_device as batch_to_device
from up.data.records import Dataset
from up.distributed import group
from up.distributed.env import ranks_of_host
from up.distributed.failures import join_group, local_phase
from up.distributed.signals import StopRequest, stoppable
from up.engine.folder import is_later_attempt
from up.engine.precision import Mode, Precision, fast_mode
from up.engine.step import Runner
from up.errors import out_of_memory
from up.files import LATEST, named_checkpoint
from up.processors import available_memory, available_processors
from up.run_files import CONFIG
from up.schema.dataset import AUTO_SIZE
from up.schema.decode import missing_for_training
from up.schema.sections import Config
from up.seed import key, seed_all
from up.tasks.experiment import Experiment
from up.text import count, size_text

BATCH, WORKERS, AMP = "batch_sampler.kwargs.batch_size", "dataloader.kwargs.num_workers", "runtime.amp"
MOST_ON_CPU, MOST_ON_GPU = 32, 512  # images of a batch
STEPS = 8  # of an epoch at least: a batch never takes a larger share of the data
MOST_WORKERS = 8
_ROOM = 0.9  # share of the memory that a batch may take: other sizes of images, fragments
_FASTER, _TIMED = 1.2, 8  # factor from which bf16 is worth its rounding on a CPU; images of the steps that are timed
_PURPOSE = 4  # of the seed of the images of noise


class Choice(NamedTuple):
    """The value chosen for a key that is ``auto``, and why."""

    key: str
    value: int | str | None
    reason: str

    def __str__(self) -> str:
        return f"{self.key}: auto -> {'float32' if self.value is None else self.value} ({self.reason})"


def auto_keys(config: Config) -> list[str]:
    """List the keys whose value is ``auto``."""
    return [path for path in _paths(config) if _value(config, path) == "auto"]


def fit_machine(experiment: Experiment, device: torch.device, stop: StopRequest) -> tuple[Experiment, list[Choice]]:
    """Choose the values that are ``auto``, the same on all ranks, which join for it; nothing without any."""
    if not auto_keys(experiment.config):
        return experiment, []
    dist = experiment.config.runtime.dist
    with local_phase(), experiment.plugin_errors():
        experiment.raise_if_any([*missing_for_training(experiment.config), *missing_files(experiment)])
    with stoppable(stop):
        join_group(device, timeout_s=dist.timeout, backend=dist.backend)
    return fitted(experiment, device)


def fitted(experiment: Experiment, device: torch.device) -> tuple[Experiment, list[Choice]]:
    """Return the experiment with a value for every ``auto``, and the choices. The ranks, if there are several, have joined."""
    keys = auto_keys(experiment.config)
    if not keys:
        return experiment, []
    recorded = group.from_main(_recorded(experiment))
    chosen: dict[str, Choice] = {}
    for path in sorted(keys, key=lambda path: [path == AMP, ".train." in f".{path}"], reverse=True):  # one needs another
        if path in recorded:
            found = Choice(path, recorded[path], "as at the start of this run, from its config.yaml")
        elif path == AMP:
            found = Choice(path, *amp_for(experiment, device))
        elif path.endswith(WORKERS):
            found = Choice(path, *workers_for(device))
        elif ".train." in path:
            found = Choice(path, *batch_size_for(_with(experiment, chosen.values()), device))
        else:
            found = Choice(path, *_test_batch(experiment, chosen))
        chosen[path] = found
    return _with(experiment, chosen.values()), [chosen[path] for path in keys]


def amp_for(experiment: Experiment, device: torch.device) -> tuple[Mode | None, str]:
    """Choose the number format that the device computes fast, on a CPU only if a step is measured to be faster; with the reason."""
    mode, reason = fast_mode(device)
    if mode is None or device.type != "cpu":
        return mode, reason
    data = build_dataset(experiment, "train")
    float32, with_mode = (
        _seconds(_step_on(experiment, data, device, Precision(mode=each, device=device))) for each in (None, mode)
    )
    gain = group.from_main(float32 / with_mode)
    times = f"on {_TIMED} images, {1000 * with_mode:.3g} ms and {1000 * float32:.3g} ms"
    measured = f"a step was measured to be {gain:.2f} times as fast as in float32 ({times})"
    return (mode, f"{reason}; {measured}") if gain >= _FASTER else (None, f"with {mode} {measured}")


def _seconds(step: Callable[[int], object]) -> float:
    """Time a step on a few images: the fastest of three, after one that chooses algorithms."""
    times = []
    for _ in range(4):
        begun = perf_counter()
        step(_TIMED)
        times.append(perf_counter() - begun)
    return min(times[1:])


def workers_for(device: torch.device) -> tuple[int, str]:
    """Choose the number of loader workers of a rank from the processors of its host, and give the reason."""
    processors, ranks = available_processors(), ranks_of_host()
    share = processors // ranks
    shared = f"{count(processors, 'processor')}, {count(ranks, 'rank')} on this host"
    if device.type == "cpu":  # the net computes on the same processors
        return min(MOST_WORKERS, max(0, share - 1)), f"{shared}; the net itself uses one"
    return min(MOST_WORKERS, max(1, share)), shared


def batch_size_for(experiment: Experiment, device: torch.device) -> tuple[int, str]:
    """Choose the largest power of two that fits into memory and leaves an epoch ``STEPS`` steps, and give the reason.

    On a GPU batches of noise go through net, loss, backward and optimizer, twice as many images each time; on a CPU the memory of
    two images is extrapolated.
    """
    data = build_dataset(experiment, "train")
    ranks = group.world_size() * experiment.config.trainer.accumulate
    most, why = _most(len(data), ranks, device)
    if device.type == "cuda":
        size, why = _largest_on_gpu(experiment, data, device, most, why)
    else:
        each = _bytes_of_an_image(experiment, data)
        room = int(_ROOM * available_memory()) // 2 // ranks_of_host()
        fitting = max(2, _power_of_two(room // max(1, each)))
        size = min(most, fitting)
        why = why if size == most else f"an image takes {size_text(each)} and {size_text(room)} of memory are free for it"
    smallest = -max(group.maxima_over_ranks([-size]))
    return smallest, why if smallest == size else "another rank has less memory"


def _most(images: int, ranks: int, device: torch.device) -> tuple[int, str]:
    """Return the largest batch that the data and the kind of device allow, and which of them sets it."""
    by_data = max(min(2, images // ranks), _power_of_two(images // (STEPS * ranks)), 1)
    by_device = MOST_ON_GPU if device.type == "cuda" else MOST_ON_CPU
    if by_data < by_device:
        return by_data, f"an epoch of {count(images, 'image')} then has at least {STEPS} steps, where it can"
    return by_device, f"the largest for a {'GPU' if device.type == 'cuda' else 'CPU'}"


def _largest_on_gpu(experiment: Experiment, data: Dataset, device: torch.device, most: int, why: str) -> tuple[int, str]:
    step = _step_on(experiment, data, device, precision_of(experiment, device))
    size, total = 1, torch.cuda.mem_get_info(device)[1]
    while size < most:
        torch.cuda.reset_peak_memory_stats(device)
        try:
            step(2 * size)
            fits = torch.cuda.max_memory_reserved(device) <= _ROOM * total
        except Exception as error:
            if out_of_memory(error) is None:
                raise
            fits = False
        gc.collect()
        torch.cuda.empty_cache()
        if not fits:
            return size, f"{2 * size} do not fit into the {size_text(total)} of {torch.cuda.get_device_name(device)}"
        size *= 2
    return size, why


def _step_on(experiment: Experiment, data: Dataset, device: torch.device, precision: Precision) -> Callable[[int], object]:
    """Return a function that takes a step on a batch of noise, with a net that is thrown away."""
    runner = _runner_on(experiment, data, device)
    optimizer = optimizer_of(experiment, runner.model)  # type: ignore[arg-type]
    runner.add_parameters_to(optimizer)

    def step(images: int) -> None:
        seed_all(key(experiment.config.runtime.random_seed, _PURPOSE))
        batch = batch_to_device(experiment.task.example(runner.model, input_size_of(experiment, "train"), images), device)
        with precision.autocast():
            loss = runner.training_step(batch, 0).loss
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def _runner_on(experiment: Experiment, data: Dataset, device: torch.device) -> Runner:
    derived = experiment.task.derived(data)
    net = build_net(experiment, derived)
    distillation = distillation_of(experiment, net, derived, experiment.task.class_names(data), files=False)
    net = to_device(experiment, net, device)
    return build_runner(experiment, net, distillation, stage=lambda batch: batch, mix=None, device=device)


def _bytes_of_an_image(experiment: Experiment, data: Dataset) -> int:
    """Measure the activations that the backward pass keeps for an image, from two images of noise on the CPU."""
    device = torch.device("cpu")
    runner = _runner_on(experiment, data, device)
    weights = {parameter.untyped_storage().data_ptr() for parameter in runner.model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    batch = experiment.task.example(runner.model, input_size_of(experiment, "train"), 2)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        runner.training_step(batch, 0)
    return sum(kept.values())  # of two images; the gradients of the activations of one take as much again


def _test_batch(experiment: Experiment, chosen: Mapping[str, Choice]) -> tuple[int, str]:
    train = experiment.config.dataset.train
    written = chosen.get(f"dataset.train.{BATCH}")
    if written is not None and isinstance(written.value, int):
        return written.value, "as in training"
    if train is not None:
        return train.batch_sampler.kwargs.size, "as in training"
    return AUTO_SIZE, "metrics do not depend on it"


def _power_of_two(number: int) -> int:
    return 1 << max(0, number.bit_length() - 1) if number > 0 else 0


def _paths(config: Config) -> Iterator[str]:
    yield AMP
    for source in ("train", "test"):
        if getattr(config.dataset, source) is not None:
            yield from (f"dataset.{source}.{BATCH}", f"dataset.{source}.{WORKERS}")


def _value(config: object, path: str) -> object:
    for name in path.split("."):
        config = config.get(name) if isinstance(config, Mapping) else getattr(config, name, None)
    return config


def _with(experiment: Experiment, choices: Iterable[Choice]) -> Experiment:
    """Return the experiment with the chosen values in its configuration."""
    config: Section = experiment.config
    for choice in choices:
        config = _set(config, choice.key.split("."), choice.value)
        if choice.key == AMP and choice.value is None:
            config = _set(config, ["runtime", "fp16"], False)  # which would hold in the place of an ``amp`` that is not set
    return replace(experiment, decoded=experiment.decoded._replace(config=config))  # type: ignore[arg-type]


def _set(section: Section, names: list[str], value: object) -> Section:
    first, *rest = names
    return section.model_copy(update={first: _set(getattr(section, first), rest, value) if rest else value})


def _recorded(experiment: Experiment) -> dict[str, int | str | None]:
    """Read the values of the run that this one resumes, by key; empty for a new run."""
    saver, folder = experiment.config.saver, experiment.folder
    resumes = saver.auto_resume or is_later_attempt(folder)
    if not (resumes and (folder / LATEST).exists()):
        if saver.resume_model is None:
            return {}
        folder = named_checkpoint(saver.resume_model).parent
    try:
        plain = read_plain((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError):
        return {}
    found = {path: _value(plain, path) for path in auto_keys(experiment.config)}
    return {path: value for path, value in found.items() if value != "auto" and isinstance(value, int | str | None)}
