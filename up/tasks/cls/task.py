"""Image classification as a task."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from up.bundle.answers import Answer, ClassesAnswer
from up.config.parts import DerivedArguments, Exact
from up.config.section import Part
from up.data.dataset import read_sample
from up.data.readers import NeedsReader, PillowReader
from up.data.records import Batch, Sample, Transform
from up.data.transforms.stages import Stages, expect_numbers
from up.data.transforms.table import output_size_of
from up.engine.evaluate import Evaluator
from up.engine.step import StepOutput
from up.errors import UserError
from up.intervals import Interval
from up.models.adapter import Backbone
from up.models.net import Net
from up.models.pretrained import TIMM, classes_of_timm
from up.models.weight_files import Weights
from up.schema.sections import NetModule
from up.tasks.cls.augment.mixing import BATCH_FNS
from up.tasks.cls.augment.views import Views, expect_last, spread
from up.tasks.cls.data.data_report import data_report
from up.tasks.cls.data.datasets import DATASETS, ClsDataset
from up.tasks.cls.data.files import block_at
from up.tasks.cls.data.image_dataset import ImageDataset
from up.tasks.cls.data.metas import METAS, Columns
from up.tasks.cls.data.other_images import with_images
from up.tasks.cls.data.tables import TableSpec, are_labelled, expect_same_classes
from up.tasks.cls.evaluate.metrics import EVALUATORS, ImageNetEvaluator
from up.tasks.cls.evaluate.reports import ResultStream, outcomes_of, write_reports
from up.tasks.cls.evaluate.sections import sections_of
from up.tasks.cls.evaluate.teacher_top1 import TeacherTop1
from up.tasks.cls.model.heads import CLASSIFIERS, HEADS, Head, NormLinear
from up.tasks.cls.model.imbalance import JensenShannon
from up.tasks.cls.model.losses import LOSSES
from up.tasks.cls.model.postprocess import POST_PROCESSES
from up.tasks.cls.serve import serve
from up.tasks.cls.visualise import figures_of, scores_of, targets_of
from up.tasks.report import Evidence, Outcomes, PageSection
from up.tasks.served import Served
from up.tasks.task import LABELS_OR_TEACHER, DataReport, InputSpec, Size, SoftLabel, Task, TeacherScore
from up.text import count, some_of


class Classification(Task[ImageDataset]):
    """Image classification with one label, several labels (heads) or a set of labels an image."""

    name = "cls"
    unit = "percent"
    net_kinds = ("backbone", "head", "post_process")
    class_layer = "classifier"
    parts = {
        "dataset": DATASETS,
        "meta_type": METAS,
        "transform": {
            "torch_mixup": "up.tasks.cls.augment.sample_mixing:Mixup",
            "torch_cutmix_mixup": "up.tasks.cls.augment.sample_mixing:CutmixMixup",
            "views": "up.tasks.cls.augment.views:Views",
            "pba_schedule": "up.tasks.cls.augment.pba:PbaSchedule",
        },
        "batch_fn": BATCH_FNS,
        "head": HEADS,
        "classifier": CLASSIFIERS,
        "post_process": POST_PROCESSES,
        "loss": LOSSES,
        "evaluator": EVALUATORS,
    }

    def input_spec(self, transforms: Sequence[Transform]) -> InputSpec | None:
        size = output_size_of(transforms)
        return InputSpec(size) if size is not None else None

    def example(self, net: nn.Module, size: Size, images: int) -> Batch:
        """Draw noise, with labels from the classes of the net's head; rows for whole images where a loss compares views."""
        assert isinstance(net, Net)
        head = next((module for module in net.children() if isinstance(module, Head)), None)
        if head is None:
            has = some_of(type(module).__name__ for module in net.children())
            raise UserError(
                f"no module of the net is a Head (it has {has}), so the number of classes is unknown. Use base_cls_head, or derive "
                "your head from up.tasks.cls.model.heads.Head."
            )
        images += -images % next((module.views for module in net.modules() if isinstance(module, JensenShannon)), 1)
        draw = torch.Generator().manual_seed(0)
        channels = next((module.image_channels for module in net.children() if isinstance(module, Backbone)), None) or 3
        labels = [torch.randint(0, classes, (images,), generator=draw) for classes in head.num_classes]
        several = len(labels) > 1 or isinstance(head.classifier, nn.ModuleList)
        return Batch(
            image=torch.randn(images, channels, *size, generator=draw),
            gt=torch.stack(labels, dim=1) if several else labels[0],
            filename=[f"example {number}" for number in range(images)],
            index=torch.arange(images),
            seed=torch.arange(images),
        )

    def evaluator(self, data: ImageDataset) -> Evaluator:
        """Return the data set's evaluator; top-1 and top-5 where none is configured."""
        template = data.evaluator if data.evaluator is not None else ImageNetEvaluator(multilabel=data.multilabel)
        fresh: Evaluator = copy.copy(template)
        if isinstance(fresh, ImageNetEvaluator):
            fresh.keep_scores = fresh.keep_scores or data.save_score  # before reset(), which makes the recorder
            fresh.listed = data.files.names if data.files is not None else None
            wanted, counts = fresh.eval_class_idxs, data.class_counts()
            if wanted and counts is not None and not any(counts[each] for each in wanted if each < len(counts)):
                raise UserError("the data set has no image of these classes", got=wanted, key="eval_class_idxs", fix="Name others.")
        fresh.reset()
        return fresh

    def metric_names(self, evaluator: Evaluator, found: Sequence[str], data: ImageDataset) -> Sequence[str]:
        """List the metrics that the labels of all images give, such as the accuracy of classes that are rare in training."""
        if not isinstance(evaluator, ImageNetEvaluator) or evaluator.multilabel or (labels := data.label_sets) is None:
            return found
        return list(dict.fromkeys([*evaluator.names_given(labels), *found]))

    def teacher_evaluator(self, data: ImageDataset) -> Evaluator:
        """Return an evaluator of top-1 of the logits: it shows whether a teacher only guesses."""
        return TeacherTop1()

    def teacher_score(self, evaluator: Evaluator) -> TeacherScore | None:
        """Compare top-1 with that of guessing; None where no image had labels that fit the logits."""
        assert isinstance(evaluator, TeacherTop1)
        return evaluator.score()

    def derived(self, data: ImageDataset) -> DerivedArguments:
        """Derive the number of classes and of images in each class, for heads, losses and mixing."""
        known: dict[str, object] = {"num_classes": data.num_classes, "class_counts": data.class_counts()}
        if views := next((each for each in data.transforms if isinstance(each, Views)), None):
            known["views"] = Exact(views.number, "the transform views of dataset.train")
        if data.class_names is not None:  # names give the number of classes, labels alone a lower bound
            known["num_classes"] = Exact(data.num_classes, "the class names of dataset.train")
        return known

    def derived_for_evaluation(self, data: ImageDataset) -> DerivedArguments:
        """Derive the classes, and the number of training images of each."""
        return {"class_names": data.class_names, "num_classes": data.num_classes, "class_counts": data.class_counts()}

    def derived_for_module(self, kind: str, derived: DerivedArguments, before: nn.Module | None, part: Part) -> DerivedArguments:
        """Derive the number of classes and of channels for a head, the class counts for losses."""
        if kind == "head":
            expect_enough_classes(part.kwargs.get("num_classes"), derived.get("num_classes"))
            return {**derived, **planes_for(before, part), **auxiliary_for(before)}
        several_heads = isinstance(derived.get("num_classes"), list)  # then the losses differ in width
        known = {name: value for name, value in derived.items() if not (several_heads and name == "num_classes")}
        layers = list(before.classifiers) if isinstance(before, Head) else []
        scales = {layer.temperature for layer in layers if isinstance(layer, NormLinear)}
        return {**known, "scale": Exact(scales.pop(), "norm_linear of the head")} if len(scales) == 1 else known

    def derived_from_weights(self, weights: Weights | None, net: Sequence[NetModule]) -> DerivedArguments:
        """Derive the number of classes from the class names, the head, or the classifiers in the checkpoint.

        All class counts are 1, and images have two views: these only matter to losses in training.
        """
        return {**self._classes_from_weights(weights, net), "views": 2}

    def _classes_from_weights(self, weights: Weights | None, net: Sequence[NetModule]) -> DerivedArguments:
        names, tensors = (weights.class_names, weights.tensors()) if weights is not None else (None, {})
        if names and isinstance(names[0], str):
            return {"num_classes": len(names), "class_counts": [1] * len(names)}
        written = [module.kwargs["num_classes"] for module in net if module.kwargs.get("num_classes") is not None]
        found = [] if written else [width for module in net for width in classifier_widths(module.name, tensors)]
        if len(found) > 1 or (found and any(has_list_of_one(module, tensors) for module in net)):
            return {"num_classes": found}
        classes = found or (written if all(each == written[0] for each in written) else [])
        known: dict[str, object] = {"num_classes": classes[0]} if classes else {}
        single = [classes for classes in (*written, *found) if isinstance(classes, int)]
        return {**known, "class_counts": [1] * single[-1]} if single else known

    def derived_for_teacher(self, weights: Weights | None, net: Sequence[NetModule], derived: DerivedArguments) -> DerivedArguments:
        """Derive the classes from the names in its file, otherwise assume those of the data."""
        known = {name: value.value if isinstance(value, Exact) else value for name, value in derived.items()}
        names = weights.class_names if weights is not None else None
        if weights is not None and names:
            classes = len(names) if isinstance(names[0], str) else [len(head) for head in names]
            known["num_classes"] = Exact(classes, f"the class names in {weights.source}")
        elif any("num_classes" in module.kwargs for module in net):
            known.pop("num_classes", None)
        elif weights is not None and weights.source.startswith(TIMM):
            known["num_classes"] = classes_of_timm(weights.source)
        return known

    def derived_from_data_only(self, net: Sequence[NetModule]) -> Sequence[str]:
        """Name ``class_counts`` where a loss is weighed by them."""
        return ("class_counts",) if "'class_weights': 'balanced'" in str([module.kwargs for module in net]) else ()

    def derived_from_net(self, net: nn.Module) -> DerivedArguments:
        """Derive the number of classes from the head."""
        head = next((module for module in net.children() if isinstance(module, Head)), None)
        if head is None:
            return {}
        return {"num_classes": head.num_classes if isinstance(head.classifier, nn.ModuleList) else head.num_classes[0]}

    def evaluation_from_data_only(self, dataset: Part) -> Sequence[str]:
        """Name ``class_counts`` where ``imagenet_lt`` groups the classes by them."""
        evaluator = block_at(dataset.kwargs, "evaluator")
        is_counted = evaluator.get("type") == "imagenet_lt" and block_at(evaluator, "kwargs").get("cls_freq") is None
        return ("class_counts",) if is_counted else ()

    def assumed(self, net: Sequence[NetModule]) -> DerivedArguments:
        """Assume ten classes, if the YAML of a head leaves their number out."""
        heads = [module for module in net if module.type in HEADS]
        return {"views": 2, **({"num_classes": 10} if any("num_classes" not in head.kwargs for head in heads) else {})}

    def is_labelled(self, dataset: Part) -> bool:
        """Return whether the meta type has labels, or the table a column of them."""
        kwargs = dataset.kwargs
        columns = (kwargs.get(name) for name in ("path_column", "label_column", "delimiter", "header"))
        kind = kwargs.get("meta_type") or "imagenet"
        return are_labelled(TableSpec(kwargs.get("meta_file"), kind, columns=Columns(*columns)))

    def class_names(self, data: ImageDataset) -> list[str] | None:
        """Return the names of the classes: the data set's, otherwise the evaluator's."""
        return data.class_names or getattr(data.evaluator, "class_names", None)

    def data_report(self, train: ImageDataset, test: ImageDataset | None) -> DataReport:
        return data_report(train, test)

    def stages(self, data: ImageDataset) -> Stages:
        expect_numbers(data.transforms)
        expect_last(data.transforms)
        return data.stages

    def collate(self, samples: Sequence[Sample]) -> Batch:
        """Stack samples to a batch, a row for each view of an image."""
        return super().collate(spread(samples))

    def read_sample(self, data: ImageDataset, index: int) -> Sample:
        return read_sample(data, index)

    def figures(self, evaluator: Evaluator, class_names: Sequence[object] | None) -> dict[str, bytes]:
        return figures_of(evaluator, class_names) if isinstance(evaluator, ImageNetEvaluator) else {}

    def class_scores(
        self, evaluator: Evaluator, class_names: Sequence[object] | None
    ) -> dict[str, tuple[NDArray[np.bool_], NDArray[np.float64]]]:
        return scores_of(evaluator, class_names) if isinstance(evaluator, ImageNetEvaluator) else {}

    def targets(self, batch: Batch, class_names: Sequence[object] | None) -> list[list[SoftLabel]] | None:
        return targets_of(batch["gt"], class_names) if "gt" in batch else None

    def loss(self, net: nn.Module, batch: Batch) -> StepOutput:
        """Compute the loss of a prepared batch. Raises ``UserError`` for images without labels."""
        if "gt" not in batch:
            raise UserError("the images for training have no labels: the loss needs them", fix=LABELS_OR_TEACHER)
        return super().loss(net, batch)

    def result_stream(self, data: ImageDataset, folder: Path, memory_friendly: bool) -> ResultStream | None:
        """Return the stream of results that ``saver.memory_friendly`` or a continued inference asks for."""
        if not (memory_friendly or data.continues):
            return None
        evaluator = self.evaluator(data)
        assert isinstance(evaluator, ImageNetEvaluator)
        depth, keep = evaluator.topk[-1], evaluator.keep_scores
        return ResultStream(folder, depth=depth, keep_scores=keep, multilabel=data.multilabel, continues=data.continues)

    def intervals(self, evaluator: Evaluator) -> Mapping[str, Interval]:
        """Return the intervals of accuracies: Wilson's, for means over classes with the effective number of images."""
        return evaluator.intervals() if isinstance(evaluator, ImageNetEvaluator) else {}

    def report_evaluator(self, data: ImageDataset) -> Evaluator:
        """Return an evaluator that keeps all scores."""
        evaluator = self.evaluator(data)
        if isinstance(evaluator, ImageNetEvaluator):
            evaluator.keep_scores = True
            evaluator.reset()
        return evaluator

    def report(self, evidence: Evidence[ImageDataset]) -> Iterable[PageSection]:
        """Return classes, confusions, worst mistakes and calibration."""
        if not isinstance(evidence.evaluator, ImageNetEvaluator):
            return []
        return sections_of(evidence, self.class_names(evidence.data))

    def outcomes(self, evaluator: Evaluator, data: ImageDataset) -> Sequence[Outcomes] | None:
        """Return labels and predictions of each head by name; none without labels."""
        return outcomes_of(evaluator, self.class_names(data)) if isinstance(evaluator, ImageNetEvaluator) else None

    def write_reports(self, evaluator: Evaluator, folder: Path, data: ImageDataset, save_result: bool) -> list[Path]:
        """Write the predictions and metrics with the names of the classes."""
        if not isinstance(evaluator, ImageNetEvaluator):  # a plug-in's, whose state is unknown here
            return super().write_reports(evaluator, folder, data, save_result)
        return write_reports(evaluator, folder, self.class_names(data), save_result=save_result)

    def serve(self, net: nn.Module, class_names: list[str] | None, activated: bool) -> Served:
        return serve(net, class_names, activated)

    def listed(
        self, meta_file: Path, meta_type: str, image_dir: str | None, answer: Answer, transforms: Sequence[Transform]
    ) -> ImageDataset:
        """List images with a label for each head; sets of labels for one head that predicts such."""
        assert isinstance(answer, ClassesAnswer)
        multilabel = any(head.type == "multilabel" for head in answer.heads)
        labels = answer.label_lists()
        is_named = labels[0] != [str(number) for number in range(len(labels[0]))]
        if len(labels) == 1 and is_named and meta_file.is_file():
            expect_same_classes(meta_file, labels[0], "--meta")
        first: object = transforms[0]
        if multilabel and len(labels) > 1:
            raise UserError(f"--meta: the package has {len(labels)} heads that predict sets of labels; no list has such labels.")
        return ClsDataset(
            meta_file=str(meta_file),
            meta_type=meta_type,
            image_reader=first.reader(image_dir) if isinstance(first, NeedsReader) else PillowReader(image_dir=image_dir),
            transformer=transforms,
            class_names=labels[0] if len(labels) == 1 else None,
            num_classes=len(labels[0]) if len(labels) == 1 else [len(own) for own in labels],
            multilabel=multilabel,
            train=False,
        )

    def with_images(self, dataset: Part, path: Path, class_names: Sequence[str] | None) -> Part:
        return with_images(dataset, path, class_names)


CLASSIFICATION = Classification()


def classifier_widths(name: str, tensors: Mapping[str, torch.Tensor]) -> list[int]:
    """List the number of outputs of each classifier of the head ``name``."""
    pattern = re.compile(rf"{re.escape(name)}\.classifier\.(\d+\.)?weight")
    return [len(tensor) for key, tensor in tensors.items() if pattern.fullmatch(key)]


def has_list_of_one(module: NetModule, tensors: Mapping[str, torch.Tensor]) -> bool:
    """Whether a head of this package has a list with one classifier: its labels were lists of one label."""
    is_ours = module.type in HEADS and block_at(module.kwargs, "classifier_cfg").get("type", "linear") in CLASSIFIERS
    return is_ours and f"{module.name}.classifier.0.weight" in tensors


def expect_enough_classes(given: int | list[int] | None, known: object) -> None:
    """Raise ``UserError`` for fewer classes than the labels need; with class names (``Exact``) the builder compares."""
    if given is None or not isinstance(known, int | list):
        return
    widths, needed = ([each] if isinstance(each, int) else each for each in (given, known))
    if isinstance(given, list) != isinstance(known, list) or len(widths) != len(needed):
        heads = f"labels for {len(needed)} heads" if isinstance(known, list) else "one label for each image"
        raise UserError(f"got {given}, but dataset.train has {heads}", key="num_classes", fix="Correct it, or leave it out.")
    if any(width < number for width, number in zip(widths, needed, strict=True)):
        what = f"got {given}, but the labels of dataset.train need at least {known}"
        raise UserError(what, key="num_classes", fix="Correct it, or leave it out.")


def planes_for(before: nn.Module | None, part: Part) -> DerivedArguments:
    """Derive ``in_plane`` of a head from the features of the module before it."""
    if before is None:
        raise UserError(f"{part.type} needs `features`, but no module before it in `net` provides them. Add a backbone before it.")
    planes: Sequence[int] | None = getattr(before, "out_planes", None)
    kwargs, is_pyramid = part.kwargs, part.type == "fpn_cls_head"
    if planes is None or kwargs.get("use_pool") is False:  # flattened maps have more than the channels
        return {}
    index = kwargs.get("input_feature_idx")
    if index is None:
        index = list(range(len(planes))) if is_pyramid else -1
    indices = index if isinstance(index, list) else [index]
    if not all(isinstance(each, int) and -len(planes) <= each < len(planes) for each in indices):
        expected = f"-{len(planes)} to {len(planes) - 1}: the backbone returns {count(len(planes), 'feature')}"
        raise UserError(got=index, expected=expected, key="input_feature_idx")
    read = [planes[each] for each in indices]
    if is_pyramid:
        return {"in_plane": read[0] if len(set(read)) == 1 else read}
    return {"in_plane": read if isinstance(index, list) else Exact(read[0], "the backbone")}


def auxiliary_for(before: nn.Module | None) -> DerivedArguments:
    """Derive ``auxiliary_planes`` of a head from a backbone with features for an auxiliary classifier."""
    planes: int | None = getattr(before, "auxiliary_planes", None)
    return {"auxiliary_planes": Exact(planes, "the backbone")} if planes else {}
