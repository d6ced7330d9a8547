"""The strategies of ``finetune.strategy``: settings that are merged under the file, as plain values of YAML."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Annotated, get_args

from pydantic import Field

from up.config.argument import AtLeast1, Fraction, NotNegative, Positive
from up.config.parts import check_kwargs
from up.config.signature import signature_model
from up.config.tree import MappingNode, Mark, Node, ScalarNode, from_plain, is_null, to_plain
from up.errors import Problem
from up.schema.finetune import AtLeast2, FeatureMode, FinetuneSection, StrategyName
from up.schema.legacy.keys import Found
from up.schema.sections import Config
from up.text import shown
from up.types import Kwargs, Record

PLACE = Mark("finetune.strategy")
"""The source location of a value that a strategy supplies."""

Decay = Annotated[float, Field(gt=0, le=1)]
Ratio = Annotated[float, Field(ge=1)]


def default(
    *, lr: Positive = 1e-4, weight_decay: NotNegative = 1e-3, layer_decay: Decay = 0.9, warmup: Fraction = 0.1, top: AtLeast2 = 3
) -> Record:
    """AdamW with layer decay, cosine after a warm-up, moving average, greedy soup (AutoGluon, Shi et al. 2021)."""
    return {
        "trainer": {
            "optimizer": _optimizer("AdamW", lr, weight_decay, {"layer_decay": {"value": layer_decay}}),
            "lr_scheduler": _schedule("CosineAnnealingLR", warmup),
            "clip_norm": 1.0,
        },
        "ema": {"enable": True, "kwargs": {"decay": 0.9999, "warmup": 10}},
        "finetune": {"soup": {"top": top}},
    }


def adam(*, lr: Positive = 1e-4, weight_decay: NotNegative = 1e-3) -> Record:
    """Adam at a constant learning rate, with an L2 penalty (PaddleHub's default)."""
    return {"trainer": {"optimizer": _optimizer("Adam", lr, weight_decay), "lr_scheduler": _schedule("constant")}}


def adamw(*, lr: Positive = 1e-4, weight_decay: NotNegative = 0.01, warmup: Fraction = 0.1) -> Record:
    """AdamW without decay of norms and biases, linear to 0 after a warm-up (PaddleHub's AdamWeightDecay)."""
    return {
        "trainer": {
            "optimizer": _optimizer("AdamW", lr, weight_decay, {"nodecay": ["ndim_is1"]}),
            "lr_scheduler": _schedule("linear", warmup),
            "clip_norm": 1.0,
        }
    }


def l2sp(*, lr: Positive = 1e-4, weight: NotNegative = 1e-3) -> Record:
    """Adam at a constant learning rate, with a penalty towards the starting weights (Li et al. 2018)."""
    return {
        "trainer": {"optimizer": _optimizer("Adam", lr, 0.0), "lr_scheduler": _schedule("constant")},
        "finetune": {"l2sp": {"weight": weight}},
    }


def ulmfit(
    *,
    lr: Positive = 1e-4,
    cut_fraction: Fraction = 0.1,
    ratio: Ratio = 32.0,
    dis_blocks: AtLeast1 = 3,
    factor: Ratio = 2.6,
    frz_blocks: AtLeast1 = 3,
) -> Record:
    """Adam with a slanted triangle, discriminative learning rates and gradual unfreezing (Howard and Ruder 2018)."""
    return {
        "trainer": {
            "optimizer": _optimizer("Adam", lr, 0.0, {"discriminative": {"blocks": dis_blocks, "factor": factor}}),
            "lr_scheduler": _schedule("slanted_triangle", kwargs={"cut_fraction": cut_fraction, "ratio": ratio}),
        },
        "finetune": {"unfreeze": {"blocks": frz_blocks}},
    }


def linear_probe(*, lr: Positive = 1e-3, weight_decay: NotNegative = 0.0, features: FeatureMode = "auto") -> Record:
    """AdamW on the head alone, cosine; everything before it is frozen and in evaluation mode."""
    return {
        "trainer": {"optimizer": _optimizer("AdamW", lr, weight_decay), "lr_scheduler": _schedule("CosineAnnealingLR")},
        "finetune": {"freeze": "backbone", "features": features},
    }


def lp_ft(
    *,
    lr: Positive = 1e-4,
    weight_decay: NotNegative = 1e-3,
    probe_epochs: AtLeast1 = 3,
    probe_lr: Positive = 1e-3,
    warmup: Fraction = 0.1,
    features: FeatureMode = "auto",
) -> Record:
    """Linear probe, then full fine-tuning from it: AdamW, cosine after a warm-up (Kumar et al. 2022)."""
    return {
        "trainer": {
            "optimizer": _optimizer("AdamW", lr, weight_decay),
            "lr_scheduler": _schedule("CosineAnnealingLR", warmup),
            "clip_norm": 1.0,
        },
        "finetune": {"probe": {"epochs": probe_epochs, "lr": probe_lr}, "features": features},
    }


def lora(*, lr: Positive = 5e-4, weight_decay: NotNegative = 0.01, rank: AtLeast1 = 64, warmup: Fraction = 0.1) -> Record:
    """AdamW on low-rank adapters of all linear layers and on the head, cosine after a warm-up (Hu et al. 2022)."""
    return {
        "trainer": {
            "optimizer": _optimizer("AdamW", lr, weight_decay),
            "lr_scheduler": _schedule("CosineAnnealingLR", warmup),
            "clip_norm": 1.0,
        },
        "finetune": {"lora": {"rank": rank}},
    }


def step150(*, pretrain_lr: Positive = 0.1, lr_factor: Positive = 0.1, weight_decay: NotNegative = 1e-4) -> Record:
    """Nesterov SGD at a tenth of the pretraining rate for 150 epochs, times 0.1 every 50 (United Perception's preset).

    ``pretrain_lr`` is that of a batch of 256 images; it is scaled to the batch of the run.
    """
    optimizer = _optimizer("SGD", pretrain_lr * lr_factor / 256, weight_decay)
    optimizer["kwargs"] |= {"momentum": 0.9, "nesterov": True}
    schedule = {"type": "StepLR", "warmup_register_type": "base", "kwargs": {"step_size": 50, "gamma": 0.1}}
    return {"trainer": {"max_epoch": 150, "optimizer": optimizer, "lr_scheduler": schedule}}


STRATEGIES: Mapping[str, Callable[..., Record]] = {
    each.__name__: each for each in (default, adam, adamw, l2sp, ulmfit, linear_probe, lp_ft, lora, step150)
}
assert {*STRATEGIES} == {*get_args(StrategyName)}


def _optimizer(type: str, lr: float, weight_decay: float, pconfig: Kwargs | None = None) -> Record:
    kwargs = {"lr": lr, "weight_decay": weight_decay}
    return {"type": type, "kwargs": kwargs, **({"pconfig": dict(pconfig)} if pconfig else {})}


def _schedule(type: str, warmup: float = 0.0, kwargs: Kwargs | None = None) -> Record:
    warm = {"warmup_share": warmup, "warmup_type": "linear", "warmup_ratio": 0.0} if warmup else {}
    return {"type": type, "warmup_register_type": "no_scale_lr", **warm, **({"kwargs": dict(kwargs)} if kwargs else {})}


def over_strategy(tree: MappingNode, found: Found) -> MappingNode:
    """Merge ``tree`` over the settings of its ``finetune.strategy``, with a note for each written value that differs from them."""
    section = tree.block("finetune")
    chosen, kwargs = section.get("strategy"), section.get("kwargs")
    strategy = STRATEGIES.get(str(chosen.value)) if isinstance(chosen, ScalarNode) else None
    if is_null(chosen):
        if chosen is None and not is_null(kwargs) and isinstance(kwargs, MappingNode):
            found.problem(kwargs.mark, "has no effect without finetune.strategy", key="finetune.kwargs", fix="Name a strategy.")
        return tree
    if strategy is None or not (is_null(kwargs) or isinstance(kwargs, MappingNode)):
        return tree  # a mistake, which the sections report
    given = to_plain(section.block("kwargs"))
    problems = check_kwargs(strategy, given, {}, "finetune.kwargs", owner=f"the strategy {strategy.__name__}")
    for problem in problems:
        key = problem.key.rpartition(".")[2]
        mark = section.block("kwargs").key_marks.get(key, section.mark)
        found.problems.append(replace(problem, file=mark.file, line=mark.line))
    if problems:
        return tree
    below = from_plain(_fitting(strategy(**signature_model(strategy).model_validate(given).given()), tree, found), PLACE)
    merged = _over(below, tree, "", strategy.__name__, found)
    assert isinstance(merged, MappingNode)
    return merged


def _fitting(settings: Record, tree: MappingNode, found: Found) -> Record:
    """Leave out settings that exclude what the file has: one rule of depth, one clipping, one end; a soup needs an evaluation."""
    trainer, pconfig = settings.get("trainer", {}), tree.block("trainer", "optimizer", "pconfig")
    own = trainer.get("optimizer", {}).get("pconfig", {})
    for theirs, ours in (("layer_decay", "discriminative"), ("discriminative", "layer_decay")):
        if not is_null(pconfig.get(theirs)) and own.pop(ours, None) is not None:
            path = f"trainer.optimizer.pconfig.{theirs}"
            found.note(path, f"is used instead of {ours} of finetune.strategy", pconfig.key_marks[theirs])
    hooks = tree.get("hooks")
    if "clip_norm" in trainer and any(kind == "grad_clipper" for kind in _types(hooks)) and hooks is not None:
        trainer.pop("clip_norm")
        found.note("hooks", "grad_clipper is used instead of trainer.clip_norm of finetune.strategy", hooks.mark)
    if not is_null(tree.block("trainer").get("max_iter")):
        trainer.pop("max_epoch", None)
    is_eval = tree.block("trainer").get("is_eval")
    without = isinstance(is_eval, ScalarNode) and is_eval.value is False
    unmeasured = without or is_null(tree.block("dataset").get("test"))
    if unmeasured and settings.get("finetune", {}).pop("soup", None) is not None:
        why = "trainer.is_eval is false" if without else "there is no dataset.test"
        found.note("finetune.strategy", f"makes no soup: {why}", tree.block("finetune").key_marks["strategy"])
    return settings


def _types(node: Node | None) -> Iterator[object]:
    plain = to_plain(node) if node is not None else None
    return (entry.get("type") for entry in plain if isinstance(entry, dict)) if isinstance(plain, list) else iter(())


def _over(below: Node, own: Node | None, path: str, strategy: str, found: Found) -> Node:
    """Merge ``own`` over ``below``. A part of another type keeps its own kwargs, and an optimizer takes the strategy's groups."""
    if own is None or (isinstance(own, ScalarNode) and own.is_empty):
        return below
    if not isinstance(own, MappingNode) or not isinstance(below, MappingNode):
        if to_plain(own) != to_plain(below):
            what = f"{shown(to_plain(own))} is used instead of {shown(to_plain(below))} of finetune.strategy: {strategy}"
            found.note(path, what, own.mark)
        return own
    kind, other = own.get("type"), below.get("type")
    if path == "trainer.lr_scheduler" and not is_null(kind):  # one whole: the meaning of lr and the warm-up belong to it
        if any(to_plain(own.get(key) or below) != to_plain(node) for key, node in below.entries.items()):
            found.note(path, f"is used instead of the schedule of finetune.strategy: {strategy}", own.mark)
        return own
    if kind is not None and other is not None and to_plain(kind) != to_plain(other):
        _over(other, kind, f"{path}.type", strategy, found)
        groups = below.get("pconfig")
        below = MappingNode({}, {}, below.mark) if groups is None else MappingNode({"pconfig": groups}, {"pconfig": PLACE}, PLACE)
    merged = own
    for key, node in below.entries.items():
        merged = merged.with_entry(
            key, _over(node, own.get(key), f"{path}.{key}".lstrip("."), strategy, found), own.key_marks.get(key, PLACE)
        )
    return merged


_EXCLUDE = (("unfreeze", "probe"), ("lora", "unfreeze"), ("lora", "probe"), ("lora", "l2sp"))
_NEED_DDP = ("unfreeze", "probe", "l2sp", "lora", "soup", "wise_ft", "average", "swa")


def contradictions(config: Config) -> Iterator[Problem]:
    """Find what the parts of ``finetune`` lack, and those that exclude each other."""
    section = config.finetune
    has = [name for name in FinetuneSection.model_fields if getattr(section, name, None) not in (None, [], {})]
    yield from _lacks(config, has)
    for one, other in _EXCLUDE:
        if one in has and other in has:
            yield Problem(f"cannot be combined with finetune.{other}", key=f"finetune.{one}", fix="Keep one of them.")
    for name in _NEED_DDP if config.runtime.parallel == "fsdp" else ():
        if name in has:
            fix = f"Set runtime.parallel: ddp, or remove finetune.{name}."
            yield Problem("does not work with shards (runtime.parallel: fsdp)", key=f"finetune.{name}", fix=fix)


def _lacks(config: Config, has: Sequence[str]) -> Iterator[Problem]:
    trainer, is_measured = config.trainer, config.dataset.test is not None and config.trainer.is_eval
    for name in ("l2sp", "wise_ft"):
        if name in has and config.saver.pretrain_model is None:
            what = "needs the weights that training starts from"
            yield Problem(what, key=f"finetune.{name}", fix="Name them in saver.pretrain_model.")
    for name in ("soup", "wise_ft"):
        if name in has and not is_measured:
            lacks = "dataset.test is missing" if config.dataset.test is None else "trainer.is_eval is false"
            yield Problem(f"is chosen on validation images, and {lacks}", key=f"finetune.{name}", fix="Evaluate, or remove it.")
    if "swa" in has and trainer.early_stopping is not None:
        what = "averages the last epochs of the run, and trainer.early_stopping may end it before them"
        yield Problem(what, key="finetune.swa", fix="Remove trainer.early_stopping, or use finetune.average.")
    for name in ("probe", "swa"):
        epochs = getattr(config.finetune, name).epochs if name in has else 0
        if trainer.max_iter is None and trainer.max_epoch is not None and epochs >= trainer.max_epoch:
            expected = f"fewer than trainer.max_epoch, {trainer.max_epoch}"
            yield Problem(got=epochs, expected=expected, key=f"finetune.{name}.epochs", fix="Train longer, or lower it.")
