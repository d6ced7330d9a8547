"""What TensorBoard reads of a run: scalars, images, curves, settings, graph; after a kill, and where nothing can be written."""

from __future__ import annotations

import io
import logging
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboardX.proto.event_pb2 import SessionLog
from tensorboardX.proto.graph_pb2 import GraphDef
from tensorboardX.proto.plugin_hparams_pb2 import HParamsPluginData
from torch import nn

from tests.harness.boards import events_of
from up.data.records import Batch
from up.engine.hooks import Findings, Look, Outline, StepReport
from up.tasks.cls.model.heads import ViTHead
from up.tracking.events import precision_recall
from up.tracking.net_graph import graph_of
from up.tracking.projector import write_embeddings
from up.tracking.tensorboard import TensorBoard

TRUE = np.array([True, False, True, True, False])
SCORES = np.array([0.9, 0.8, 0.6, 0.3, 0.1])


def values_of(folder: Path) -> Iterator[tuple[int, Any]]:
    return ((event.step, value) for event in events_of(folder) for value in event.summary.value)


class Tiny(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3), nn.ReLU()

    def forward(self, batch: Batch) -> dict[str, object]:
        return {"features": [self.second(self.first(batch["image"]) + 1)]}


def batch_of(images: int) -> Batch:
    return Batch(image=torch.rand(images, 3, 8, 8), gt=torch.arange(images), filename=[f"{each}.png" for each in range(images)])


def outline(folder: Path) -> Outline:
    look = Look(
        lambda image: (255 * image).byte().permute(1, 2, 0).numpy(), lambda batch: [f"label {int(each)}" for each in batch["gt"]]
    )
    return Outline(
        folder, Tiny(), 4, 2, 8, sample_batch=lambda: batch_of(6), settings={"lr": 0.5, "net": "tiny", "ema": True}, look=look
    )


def png(colour: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (5, 7), (colour, 0, 0)).save(file, "PNG")
    return file.getvalue()


def trained(hook: TensorBoard, folder: Path, *, first: int = 0, last: int = 4, reason: str = "done") -> None:
    """Train from ``first`` to ``last`` steps, with an evaluation after every second one."""
    hook.on_start(outline(folder), first)
    hook.on_first_batch(first, batch_of(5))
    for step in range(first + 1, last + 1):
        hook.on_step(StepReport(step, 0.5, {"loss": torch.tensor(float(step))}, 8, 0.0))
        if step % 2 == 0:
            hook.on_findings(step, Findings(lambda step=step: {"confusion_matrix": png(step)}, lambda: {"cat": (TRUE, SCORES)}))  # type: ignore[misc]
            hook.on_evaluation(step, {"top1": 50.0 + step})
    hook.on_end(last, reason)


def test_all_of_a_run(tmp_path: Path) -> None:
    trained(TensorBoard(freq=1, images=3, confusion_matrix="last", graph=True, embeddings=4), tmp_path)
    board = tmp_path / "tensorboard"
    by_tag = defaultdict(list)
    for step, value in values_of(board):
        by_tag[value.tag].append((step, value))
    assert [step for step, _ in by_tag["eval/top1"]] == [2, 4]
    assert [tag for tag in by_tag if tag.startswith("first_batch/")] == [
        "first_batch/0", "first_batch/1", "first_batch/2", "first_batch/text_summary"
    ]  # fmt: skip
    ((step, shown),) = by_tag["first_batch/1"]
    assert (step, shown.image.height, shown.image.width) == (1, 8, 8)
    assert np.asarray(Image.open(io.BytesIO(shown.image.encoded_image_string))).shape == (8, 8, 3)
    assert b"2.png label 2" in by_tag["first_batch/text_summary"][0][1].tensor.string_val[0]
    assert [step for step, _ in by_tag["eval/confusion_matrix"]] == [4]
    assert by_tag["eval/confusion_matrix"][0][1].image.encoded_image_string == png(4)
    ((step, curve),) = by_tag["pr/cat"]
    assert (step, curve.metadata.plugin_data.plugin_name) == (4, "pr_curves")
    start = HParamsPluginData.FromString(by_tag["_hparams_/session_start_info"][0][1].metadata.plugin_data.content)
    settings = start.session_start_info.hparams
    assert (settings["lr"].number_value, settings["net"].string_value) == (0.5, "tiny")
    (graph,) = [GraphDef.FromString(event.graph_def) for event in events_of(board) if event.graph_def]
    assert [(node.name, node.op, list(node.input)) for node in graph.node] == [
        ("image", "Input", []), ("first", "Conv2d", ["image"]), ("second", "ReLU", ["first"])
    ]  # fmt: skip
    assert len((board / "embeddings" / "features.tsv").read_text().splitlines()) == 4
    assert (board / "embeddings" / "names.tsv").read_text().splitlines()[4] == "3.png\tlabel 3"
    assert "embeddings/features.tsv" in (board / "projector_config.pbtxt").read_text()


class Twice(nn.Module):
    """A network whose ReLU runs after both convolutions, beside a module of the name that the second run would get."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)
        self.relu = nn.ReLU()
        self.relu_1 = nn.Sequential(nn.Tanh())

    def forward(self, batch: Batch) -> dict[str, object]:
        found = self.relu(self.second(self.relu(self.first(batch["image"]))))
        return {"features": [self.relu_1(self.relu(found))]}


def test_each_run_of_a_module_is_a_node_of_the_graph() -> None:
    graph = GraphDef.FromString(graph_of(Twice(), batch_of(2)))
    assert [(node.name, list(node.input)) for node in graph.node] == [
        ("image", []),
        ("first", ["image"]),
        ("relu", ["first"]),
        ("second", ["relu"]),
        ("relu_2", ["second"]),
        ("relu_3", ["relu_2"]),
        ("relu_1/0", ["relu_3"]),
    ]


class Tokens(nn.Module):
    """Tokens (B, 3, 4) of each image, whose class token is the mean colour; and maybe the head that reads it."""

    def __init__(self, head: nn.Module | None = None) -> None:
        super().__init__()
        self.head = head

    def forward(self, batch: Batch) -> dict[str, object]:
        token = batch["image"].mean((2, 3))
        token = torch.cat([token, token[:, :1]], dim=1)
        return {"features": [torch.stack([token, token + 1, token + 2], dim=1)]}


@pytest.mark.parametrize(("cls_type", "more"), [("token", 0), ("avg", 1.5), (None, 1)])
def test_embeddings_of_tokens_are_what_the_head_reads(cls_type: Any, more: float, tmp_path: Path) -> None:
    head = ViTHead(in_plane=4, num_classes=2, cls_type=cls_type) if cls_type else None
    batch = batch_of(3)
    write_embeddings(tmp_path, replace(outline(tmp_path), model=Tokens(head)), batch, 2)
    rows = [line.split("\t") for line in (tmp_path / "embeddings" / "features.tsv").read_text().splitlines()]
    means = batch["image"].mean((2, 3))
    expected = torch.cat([means, means[:, :1]], dim=1)[:2] + more
    assert np.array(rows, float) == pytest.approx(expected.numpy(), rel=1e-4)


def test_embeddings_of_files_with_strange_names(tmp_path: Path) -> None:
    batch = Batch({**batch_of(3), "filename": ["a\tb.png", "c\nd.png", "e\udce9.png"]})
    write_embeddings(tmp_path, outline(tmp_path), batch, 3)
    lines = (tmp_path / "embeddings" / "names.tsv").read_text().splitlines()
    assert lines == ["file\tlabel", "a b.png\tlabel 0", "c d.png\tlabel 1", "e\\udce9.png\tlabel 2"]


def test_a_killed_run_continues_each_line(tmp_path: Path) -> None:
    trained(TensorBoard(freq=1), tmp_path, last=3, reason="preempted")
    trained(TensorBoard(freq=1), tmp_path, first=2)
    kept: dict[str, list[int]] = defaultdict(list)
    for event in events_of(tmp_path / "tensorboard"):
        if event.session_log.status == SessionLog.START:
            kept = defaultdict(list, {tag: [step for step in steps if step < event.step] for tag, steps in kept.items()})
        for value in event.summary.value:
            kept[value.tag].append(event.step)
    assert kept["train/loss"] == [1, 2, 3, 4]
    assert kept["eval/top1"] == [2, 4]
    assert all(steps == sorted(steps) for steps in kept.values())


@pytest.mark.parametrize(
    ("settings", "absent"),
    [
        ({"images": 0}, "first_batch"),
        ({}, "eval/confusion_matrix"),
        ({"pr_curves": "never"}, "pr/"),
        ({"hparams": False}, "_hparams_"),
    ],
)
def test_each_part_can_be_left_out(settings: dict[str, Any], absent: str, tmp_path: Path) -> None:
    trained(TensorBoard(freq=1, **settings), tmp_path)
    tags = [value.tag for _, value in values_of(tmp_path / "tensorboard")]
    assert "train/loss" in tags
    assert not any(tag.startswith(absent) for tag in tags)


def test_every_evaluation(tmp_path: Path) -> None:
    trained(TensorBoard(freq=1, confusion_matrix="every", pr_curves="every"), tmp_path)
    steps = defaultdict(list)
    for step, value in values_of(tmp_path / "tensorboard"):
        steps[value.tag].append(step)
    assert steps["eval/confusion_matrix"] == steps["pr/cat"] == [2, 4]


def test_a_part_that_fails_is_reported_once_and_the_rest_goes_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Broken(Tiny):
        def forward(self, batch: Batch) -> dict[str, object]:
            raise ValueError("a net that is broken")

    hook = TensorBoard(freq=1, graph=True, confusion_matrix="every")
    hook.on_start(replace(outline(tmp_path), model=Broken()), 0)
    hook.on_first_batch(0, batch_of(2))
    with caplog.at_level(logging.WARNING, "up"):
        for step in (1, 2, 3):
            hook.on_step(StepReport(step, 0.5, {"loss": torch.tensor(1.0)}, 8, 0.0))
            hook.on_findings(step, Findings(lambda: {"x": b"no PNG"}, dict))
        hook.on_end(3, "done")
    assert [record.args[0] for record in caplog.records if record.args] == ["graph", "confusion_matrix"]  # type: ignore[index]
    assert [step for step, value in values_of(tmp_path / "tensorboard") if value.tag == "train/loss"] == [1, 2, 3]


def test_precision_and_recall() -> None:
    positives, false_positives, true_negatives, false_negatives, precision, recall = precision_recall(TRUE, SCORES)
    at_half = 50
    assert (positives[at_half], false_positives[at_half], true_negatives[at_half], false_negatives[at_half]) == (2, 1, 1, 1)
    assert precision[at_half] == pytest.approx(2 / 3)
    assert recall[at_half] == pytest.approx(2 / 3)
    assert (precision[-1], recall[-1], recall[0], positives[0] + false_positives[0]) == (1, 0, 1, 5)
