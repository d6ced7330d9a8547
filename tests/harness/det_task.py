"""Detection: the class and the box of every object, in images of any size up to that of a canvas."""

from __future__ import annotations

from hashlib import sha256
from typing import Annotated

import numpy as np
import torch
from torch import nn
from torchvision import tv_tensors
from torchvision.ops import box_convert, box_iou, generalized_box_iou_loss, sigmoid_focal_loss
from torchvision.transforms.v2.functional import sanitize_bounding_boxes

from up.bundle.answers import BoxesAnswer, OutputSpec
from up.config.argument import Derived, PathTo
from up.data.collate import collate, padded
from up.data.dataset import KeyedDataset
from up.data.listing import LineError, Rows, json_rows
from up.data.readers import PillowReader
from up.data.records import Batch, Sample
from up.data.roots import ImageRoot
from up.tasks.served import RecordOutputs, Served
from up.tasks.task import InputSpec, Task

READER = PillowReader()


class ListedBoxes(KeyedDataset):
    """Images that a file of JSON lines names: ``{"filename": …, "boxes": [[left, top, right, bottom, label], …]}``."""

    def __init__(
        self,
        *,
        meta_file: Annotated[str, PathTo("meta file")],
        class_names: Annotated[list[str], Derived("the class names of dataset.train")],
        **kwargs,
    ) -> None:
        super().__init__(**kwargs)
        self.class_names, self.boxes = class_names, []
        rows = Rows(meta_file, ImageRoot(None, meta_file=meta_file))
        for found, lines in json_rows(rows, self._line):
            rows.extend([name for name, _ in found], lines)
            self.boxes += [boxes for _, boxes in found]
        self.files = rows.listing()

    def _line(self, record, line):
        try:
            name, boxes = record["filename"].encode(), torch.tensor(record["boxes"], dtype=torch.float32).reshape(-1, 5)
        except (KeyError, AttributeError, TypeError, ValueError, RuntimeError):
            raise LineError('expected {"filename": "a.jpg", "boxes": [[left, top, right, bottom, label], …]}') from None
        if len(boxes) and not 0 <= boxes[:, 4].min() <= boxes[:, 4].max() < len(self.class_names):
            raise LineError(f"expected labels from 0 to {len(self.class_names) - 1}")
        return name, boxes

    def __len__(self):
        return len(self.files)

    def read(self, index):
        """Image ``index`` with its boxes, not transformed."""
        image, rows = self.files.read(index, READER), self.boxes[index]
        boxes = tv_tensors.BoundingBoxes(rows[:, :4], format="XYXY", canvas_size=(image.height, image.width))
        return Sample(image=image, boxes=boxes, labels=rows[:, 4].long(), filename=self.files.names[index])

    def finished(self, sample):
        """The sample after its transforms, without the boxes that a crop has left nothing of."""
        boxes, kept = sanitize_bounding_boxes(sample.boxes)
        return Sample(sample, boxes=boxes, labels=sample.labels[kept])

    def fingerprint(self):
        """What a resumed run must find again."""
        return sha256(f"{super().fingerprint()} {[each.tolist() for each in self.boxes]}".encode()).hexdigest()


class Canvas(nn.Module):
    """Images of several sizes on a canvas each, (B, 3, H, W): of one size for all, so that no image depends on its batch."""

    def __init__(self, *, size: tuple[int, int]) -> None:
        super().__init__()
        self.size = size

    def forward(self, record):
        return {"image": padded(record["image"], self.size)}


class BoxHead(nn.Module):
    """A box for each cell of the last feature: ``corners`` (B, cells, 4) in pixels and ``scores`` (B, cells, classes)."""

    def __init__(
        self, *, in_plane: Annotated[int, Derived("the backbone")], num_classes: Annotated[int, Derived("the classes of the data")]
    ) -> None:
        super().__init__()
        self.classifier, self.box = nn.Conv2d(in_plane, num_classes, 1), nn.Conv2d(in_plane, 4, 1)
        nn.init.constant_(self.classifier.bias, -3)  # few cells hold an object

    def forward(self, record):
        feature, image = record["features"][-1], record["image"]
        height, width = feature.shape[-2:]
        rows, columns = torch.meshgrid(*(torch.arange(side, device=image.device) for side in (height, width)), indexing="ij")
        shift, size = self.box(feature).flatten(2).transpose(1, 2).float().chunk(2, dim=2)
        centre = torch.stack([columns, rows], dim=2).reshape(-1, 2) + shift.sigmoid()
        boxes = torch.cat([centre, 4 * size.clamp(max=4).exp()], dim=2) * (image.shape[-1] // width)
        return {"corners": box_convert(boxes, "cxcywh", "xyxy"), "scores": self.classifier(feature).flatten(2).transpose(1, 2)}


class BoxLoss(nn.Module):
    """Focal loss of the cells and generalized IoU loss of the boxes: a mean over boxes, an image without any counting as one."""

    def forward(self, record):
        if not self.training:
            return {}
        scores, width = record["scores"].float(), record["features"][-1].shape[-1]
        image = torch.repeat_interleave(torch.tensor([len(each) for each in record["boxes"]])).to(scores.device)
        boxes, labels = torch.cat(record["boxes"]), torch.cat(record["labels"])
        column, row = ((boxes[:, :2] + boxes[:, 2:]) / 2 // (record["image"].shape[-1] // width)).long().unbind(1)
        cell = row * width + column
        target = torch.zeros_like(scores)
        target[image, cell, labels] = 1
        total = sigmoid_focal_loss(scores, target, reduction="sum")
        total = total + generalized_box_iou_loss(record["corners"][image, cell], boxes, reduction="sum")
        weight = sum(max(1, len(each)) for each in record["boxes"])
        return {"loss": total / weight, "weight": weight}


class AveragePrecision:
    """Average precision at an intersection over union of .5 in percent, from a row for each box: exact on any number of ranks."""

    main_metric = "ap50"  # chooses the best checkpoint: more is better

    def __init__(self, answer):
        self.answer = answer
        self.reset()

    def reset(self):
        self.rows, self.boxes = [], np.zeros(len(self.answer.labels), dtype=np.int64)

    def update(self, outputs, batch):
        """Match the boxes of a batch, best first, each with the box of its class that it overlaps most and that is free."""
        arrays = {name: outputs[name].float().cpu().numpy() for name in ("corners", "scores")}
        for found, boxes, labels in zip(self.answer.decode(arrays), batch.boxes, batch.labels, strict=True):
            self.boxes += np.bincount(labels.cpu().numpy(), minlength=len(self.boxes))
            free = labels.cpu().clone()
            for each in found.boxes:
                overlaps = box_iou(torch.tensor([each.box]), boxes.cpu().float())[0] * (free == each.label)
                hit = len(free) > 0 and bool(overlaps.max() >= 0.5)
                if hit:
                    free[overlaps.argmax()] = -1
                self.rows.append((each.label, each.score, hit))

    def state(self):
        """The boxes that this rank has found, and how many there are of each class."""
        return self.rows, self.boxes

    def merge(self, states):
        """Those of all ranks."""
        self.rows, self.boxes = [row for rows, _ in states for row in rows], np.sum([boxes for _, boxes in states], axis=0)

    def compute(self):
        """The metrics by name; equal scores count misses first, in whatever order the ranks found them."""
        labels, scores, hits = np.array(self.rows).reshape(-1, 3).T
        of_classes = []
        for label in np.flatnonzero(self.boxes):
            of_class = labels == label
            hit = hits[of_class][np.lexsort((hits[of_class], -scores[of_class]))]
            precision = hit.cumsum() / np.arange(1, len(hit) + 1)
            best = np.maximum.accumulate(precision[::-1])[::-1]  # at this recall or a higher one
            of_classes.append((best * hit).sum() / self.boxes[label])
        found = hits.sum() / max(1, self.boxes.sum())
        return {"ap50": float(100 * np.mean(of_classes)) if of_classes else 0.0, "recall": float(100 * found)}


class Detection(Task[ListedBoxes]):
    """Boxes with a class each."""

    name = "det"
    unit = "percent"
    net_kinds = ("canvas", *Task.net_kinds)
    parts = {
        "dataset": {"listed_boxes": "det_task:ListedBoxes"},
        "canvas": {"canvas": "det_task:Canvas"},
        "head": {"box_head": "det_task:BoxHead"},
        "post_process": {"box_loss": "det_task:BoxLoss"},
    }

    def input_spec(self, transforms):
        return InputSpec((96, 96), multiple=1)

    def collate(self, samples):
        return collate(samples, one_size=False, lists=["labels"])

    def example(self, net, size, images):
        """Noise with a box in each image, with which `check` and the start of several ranks test the net."""
        height, width = size
        box = torch.tensor([[width / 4, height / 4, width / 2, height / 2]])
        labels = [torch.zeros(1, dtype=torch.int64)] * images
        return Batch(image=torch.rand(images, 3, *size), boxes=[box] * images, labels=labels, filename=["noise"] * images)

    def answer(self, class_names):
        """How the outputs of the net become boxes: in the evaluation, in predictions and in packages."""
        return BoxesAnswer(boxes="corners", scores="scores", labels=class_names, activation="sigmoid", nms=0.5)

    def evaluator(self, data):
        return AveragePrecision(self.answer(data.class_names))

    def serve(self, net, class_names, activated):
        axes = {"corners": ["N", "Q", 4], "scores": ["N", "Q", len(class_names)]}
        outputs = [OutputSpec(name=name, axes=each) for name, each in axes.items()]
        return Served(RecordOutputs(net, list(axes)), outputs, self.answer(class_names))

    def class_names(self, data):
        return data.class_names

    def derived(self, data):
        return {"num_classes": len(data.class_names)}

    def derived_for_evaluation(self, data):
        return {"class_names": data.class_names}

    def derived_from_weights(self, weights, net):
        return {"num_classes": len(weights.class_names)} if weights and weights.class_names else {}

    def assumed(self, net):
        return {"num_classes": 2}

    def listed(self, meta_file, meta_type, image_dir, answer, transforms):
        """The labelled images on which `verify --meta FILE` evaluates a package."""
        return ListedBoxes(meta_file=str(meta_file), class_names=answer.labels, transformer=transforms, train=False)


DETECTION = Detection()
