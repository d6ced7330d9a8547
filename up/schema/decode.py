"""Nodes to typed sections, with every problem at once and the source location of every value."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from pydantic import ValidationError

from up.config.nodes import load_nodes
from up.config.section import section_problems
from up.config.tree import DEFAULT, MappingNode, Mark, Node, SequenceNode, to_plain
from up.errors import ConfigError, Problem, UserError
from up.files import LATEST, best_of_run, named_checkpoint
from up.run_files import CONFIG
from up.schema.legacy.hoist import to_documented_form
from up.schema.legacy.keys import Found
from up.schema.mimic import MimicJob
from up.schema.overrides import apply_overrides, override_of
from up.schema.sections import REPLAYING, Config, NetModule
from up.schema.strategies import PLACE, contradictions, over_strategy
from up.text import count, did_you_mean


class Decoded(NamedTuple):
    """A configuration, notes about it, and the source locations of its values."""

    config: Config
    notes: list[Problem]
    origins: Origins


class Origins:
    """Source locations of the values of a configuration."""

    def __init__(self, tree: MappingNode) -> None:
        self._tree = tree

    def of(self, path: str) -> str:
        """Return ``file:line`` of the value at the dotted ``path``, ``--opts``, or ``default`` if it is not written."""
        node, _, missing = self._find(path.split("."))
        return DEFAULT if missing else str(node.mark)

    def locate(self, problems: Iterable[Problem]) -> list[Problem]:
        """Return the problems with their source locations; of a missing value, that of the block around it."""
        return [replace(problem, key=self._as_written(problem.key)).placed(*self._place(problem)) for problem in problems]

    def _as_written(self, path: str) -> str:
        """The one job of a mimic is ``mimic_job0`` to the program, also where the file writes it directly."""
        if "mimic_job0" in self._tree.block("mimic").entries:
            return path
        job = "mimic.mimic_job0"
        return f"mimic{path.removeprefix(job)}" if f"{path}.".startswith(f"{job}.") else path

    @contextmanager
    def placing(self, path: str) -> Iterator[None]:
        """Add the dotted ``path`` and its source location to a ``UserError`` of the block."""
        try:
            yield
        except ConfigError as error:
            raise ConfigError(self.locate(error.problems)) from error
        except UserError as error:
            if error.file:
                raise
            raise ConfigError(self.locate([self._at(path, problem) for problem in error.problems])) from error

    def _at(self, path: str, problem: Problem) -> Problem:
        """A problem with the complete path of its key, which is an argument of the part or a key of the section at ``path``."""
        key = problem.key
        if not key or path.endswith(f".{key}"):
            return replace(problem, key=path)
        if isinstance(self._find(path.split("."))[0], SequenceNode):  # some part of a list, such as a transform
            return replace(problem, key=path, what=": ".join(text for text in (key, problem.what) if text))
        candidates = (f"{path}.kwargs.{key}", f"{path}.{key}", key)
        written = next((candidate for candidate in candidates if self.of(candidate) != DEFAULT), "")
        return replace(problem, key=written or candidates[0 if self.of(f"{path}.type") != DEFAULT else 1])

    def _place(self, problem: Problem) -> tuple[str, int]:
        node, key_mark, missing = self._find(problem.key.split(".") if problem.key else [])
        mark = key_mark if problem.about_key and not missing else node.mark
        return (self._tree.block("finetune").key_marks["strategy"] if mark == PLACE else mark)[:2]

    def _find(self, words: list[str]) -> tuple[Node, Mark, bool]:
        """The deepest node on the way, the mark of its key, and whether the path continues from there."""
        node: Node = self._tree
        key_mark = node.mark
        at = 0
        while at < len(words):
            step = _step(node, words, at)
            if step is None:
                if _is_grouping(words[at], words[at + 1 :], node):
                    at += 1
                    continue
                return node, key_mark, True
            node, key_mark, at = step
        return node, key_mark, False


def _step(node: Node, words: list[str], at: int) -> tuple[Node, Mark, int] | None:
    if isinstance(node, SequenceNode):
        index = int(words[at]) if words[at].isdigit() else -1
        return (node.items[index], node.items[index].mark, at + 1) if 0 <= index < len(node.items) else None
    if isinstance(node, MappingNode):
        for end in range(at + 1, len(words) + 1):  # a key may have dots of its own
            name = ".".join(words[at:end])
            for key in node.entries:
                if str(key) == name:
                    return node.entries[key], node.key_marks[key], end
    return None


def _is_grouping(word: str, after: list[str], node: Node) -> bool:
    """The one job of a mimic is ``mimic_job0`` to the program; a file that writes it directly has no such key."""
    return word.startswith("mimic_job") and bool(after) and isinstance(node, MappingNode)


def load_config(path: Path, opts: Sequence[str] = ()) -> Decoded:
    """Load the configuration in the file at ``path`` and apply the words after ``--opts``. Raises ``ConfigError``."""
    return decode(apply_overrides(load_nodes(path), opts))


def config_of_run(path: Path, overrides: Sequence[str] = ()) -> tuple[Path, list[str]]:
    """Return the configuration of a run, given by its folder or by ``config.yaml`` in it, with what it overrides if it was moved.

    Other paths come back as they are: a file without the weights of a run beside it, and a folder without the file.
    """
    folder = path if path.is_dir() else path.parent
    file = folder / CONFIG
    is_of_run = path.is_dir() or (path.name == file.name and best_of_run(folder) is not None)
    if not file.is_file() or not is_of_run:
        return path, [*overrides]
    return file, [*if_moved(folder), *overrides]


def if_moved(folder: Path) -> list[str]:
    """Return the override that makes ``config.yaml`` in a run folder refer to this folder, if it names another one.

    ``saver.save_dir`` of a run that was copied, renamed or set aside in ``earlier/N`` is the folder in which it was trained.
    """
    file = folder / CONFIG
    try:
        trained_in = load_config(file).config.saver.folder(file)
    except ConfigError:  # reported where the configuration is used
        return []
    return [] if trained_in.resolve() == folder.resolve() else [override_of("saver.save_dir", str(folder))]


def decode(tree: MappingNode) -> Decoded:
    """Convert ``tree`` to typed sections. Raises ``ConfigError`` with all problems, in the order of the file."""
    tree, notes, problems = to_documented_form(tree)
    tree = over_strategy(tree, Found(notes, problems))
    origins = Origins(tree)
    try:
        plain = to_plain(tree)
        config = Config.model_validate(plain)
    except ValidationError as error:
        problems += section_problems(Config, error, plain, "a configuration")
    else:
        problems += [*_contradictions(config), *contradictions(config)]
    if problems:
        raise ConfigError(_in_file_order(origins.locate(problems)))
    return Decoded(config, [*notes, *origins.locate(_idle(config, origins))], origins)


def _idle(config: Config, origins: Origins) -> Iterator[Problem]:
    """Note settings that have no effect because another one is missing."""
    if config.saver.skip and config.saver.pretrain_model is None:
        yield Problem("has no effect without saver.pretrain_model", key="saver.skip")
    if config.schedule_counts_steps:
        yield Problem("counts steps, not epochs, as max_iter does (runtime.iter_base)", key="trainer.lr_scheduler.kwargs.T_max")
    if origins.of("ema.kwargs") != DEFAULT and origins.of("ema.enable") == DEFAULT:
        yield Problem("has no effect without ema.enable: true", key="ema.kwargs")


def _in_file_order(problems: list[Problem]) -> list[Problem]:
    return sorted(dict.fromkeys(problems), key=lambda problem: (problem.file, problem.line or 0))


def _contradictions(config: Config) -> Iterator[Problem]:
    """Find contradictions between well-formed sections."""
    for name, net in {"net": config.net, **config.teachers}.items():
        yield from _names_of(name, net)
    for job_name, job in (config.mimic.jobs if config.mimic else {}).items():
        for teacher, tap in job.teachers.items():
            path = f"mimic.{job_name}.{teacher}"
            if teacher not in config.teachers:
                hint = did_you_mean(teacher, config.teachers)
                yield Problem(
                    f"there is no net called {teacher!r} (expected a top-level key with a list of modules).{hint}", key=path
                )
            wanted = len(job.student.mimic_name)
            if len(tap.mimic_name) != wanted:
                what = f"got {count(len(tap.mimic_name), 'layer')}, expected {wanted}, as many as the student has"
                yield Problem(what, key=f"{path}.mimic_name")
        wanted, adapters = len(job.student.mimic_name), job.student.adapter
        if isinstance(adapters, list) and len(adapters) != wanted:
            what = f"got {count(len(adapters), 'adapter')}, expected {wanted}, one for each layer (null for none)"
            yield Problem(what, key=f"mimic.{job_name}.student.adapter")
    if config.mimic is not None and not config.mimic.task_loss and not any(map(_has_weight, config.mimic.jobs.values())):
        yield Problem("got false, and every loss_weight is 0: nothing would be learned", key="mimic.task_loss")
    mode = config.runtime.compile_mode
    if mode in REPLAYING and config.runtime.parallel == "fsdp":
        fix = "Use mode: default or max-autotune-no-cudagraphs, or runtime.parallel: ddp."
        yield Problem(
            f"got {mode}, which replays CUDA graphs; it does not work with shards (runtime.parallel: fsdp), whose memory moves",
            key="runtime.compile.mode",
            fix=fix,
        )


def _has_weight(job: MimicJob) -> bool:
    return bool(job.loss_weight and job.cfgs.loss.kwargs.get("loss_weight", 1))


def _names_of(owner: str, net: Sequence[NetModule]) -> Iterator[Problem]:
    seen: dict[str, int] = {}
    for index, module in enumerate(net):
        if module.type == "self":
            continue
        if module.prev is not None and module.prev not in seen:
            hint = did_you_mean(module.prev, seen)
            yield Problem(
                got=module.prev, expected="the name of a module before this one", key=f"{owner}.{index}.prev", fix=hint.strip()
            )
        if module.name in seen:
            yield Problem(
                got=module.name, expected=f"another name than {owner}.{seen[module.name]} has", key=f"{owner}.{index}.name"
            )
        seen.setdefault(module.name, index)


def missing_for_training(config: Config) -> list[Problem]:
    """Find what a configuration lacks for training; evaluation and export need less."""
    trainer = config.trainer
    needs = (
        ("dataset.train", config.dataset.train is not None, "training needs training data"),
        ("trainer.max_epoch", (trainer.max_epoch or trainer.max_iter) is not None, "training needs an end (or trainer.max_iter)"),
        ("trainer.optimizer", trainer.optimizer is not None, "training needs an optimizer"),
    )
    return [Problem(f"is missing: {why}", key=path) for path, is_there, why in needs if not is_there]


def missing_at(key: str, path: str | None) -> Iterator[Problem]:
    """Yield a problem if nothing is at ``path``, the value of ``key``."""
    if path is None:
        yield Problem("is not set", key=key, fix=f"Set it in the file, or with --opts {key}=PATH.")
    elif not Path(path).exists():
        fix = f"Put it there, or name another: --opts {key}=PATH."
        yield Problem(f"no such file or folder: {path}", key=key, fix=fix)


def missing_start_weights(config: Config, folder: Path) -> Iterator[Problem]:
    """Yield missing weights and checkpoints of ``saver``; a checkpoint in the run ``folder`` is used before ``resume_model``."""
    resumes = config.saver.auto_resume and (folder / LATEST).exists()
    for key in ("pretrain_model",) if resumes else ("pretrain_model", "resume_model"):
        path = getattr(config.saver, key)
        if path is not None and ":" not in path:  # "timm:resnet50.a1_in1k" is not a path
            yield from missing_at(f"saver.{key}", str(named_checkpoint(path)) if key == "resume_model" else path)
