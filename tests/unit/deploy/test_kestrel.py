from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.harness import packages
from tests.harness.facts import facts
from up.bundle.answers import ClassesAnswer
from up.bundle.answers.classes import HeadSpec
from up.deploy.kestrel import categories_of, kestrel_members, package_path, problems_of, relabelled
from up.errors import UserError
from up.schema.sections import ToKestrelSection

TWO = [
    HeadSpec(name="head0", start=0, end=2, type="multiclass", activation="softmax", labels=["a", "b", "c"], topk=3),
    HeadSpec(name="head1", start=3, end=4, type="multiclass", activation="sigmoid", labels=["d", "e"], topk=2),
]


def problems(settings: ToKestrelSection, *, order: str = "RGB") -> list[str]:
    made = packages.manifest()
    decode = made.preprocess[0].model_copy(update={"color": order})
    return [str(each) for each in problems_of(settings, [decode, *made.preprocess[1:]], (8, 8), made.answer, labels=True)]


def test_the_members_that_kestrel_reads() -> None:
    settings = ToKestrelSection(model_name="handmade", version="1.2.3", type="CAR", save_all_label=False, support_labels=["red"])
    members = kestrel_members(packages.manifest(), b"graph", settings)
    assert members["model.onnx"] == b"graph"
    assert json.loads(members["meta.json"]) == {
        "model_name": "handmade",
        "model_type": "classifier",
        "version": {"major": 1, "minor": 2, "patch": 3, "train_date": "20260102"},
        "properties": {"description": "cls of 4 classes, fp32; exported by up 0"},
    }
    assert json.loads(members["parameters.json"]) == {
        "model_files": {
            "net": {
                "net": "model.onnx",
                "backend": "kestrel_nart",
                "max_batch_size": 8,
                "input": {"data": "data"},
                "output": {"score": "scores"},
            }
        },
        "input_h": 8,
        "input_w": 8,
        "pixel_means": [127.5] * 3,
        "pixel_stds": [63.75] * 3,
        "is_rgb": True,
        "type": "CAR",
        "save_all_label": False,
        "support_labels": ["red"],
    }
    assert json.loads(members["category_param.json"]) == {
        "classes": {"calculator": "bypass", "feature_start": 0, "feature_end": 3, "labels": packages.LABELS}
    }


def test_one_entry_for_each_head() -> None:
    found = categories_of(ToKestrelSection(), TWO)
    assert [(name, entry.start, entry.end, entry.labels) for name, entry in found.items()] == [
        ("head0", 0, 2, ["a", "b", "c"]),
        ("head1", 3, 4, ["d", "e"]),
    ]


def test_class_label_passes_through_and_names_the_labels() -> None:
    given = {
        "colour": {"calculator": "argmax", "start": 0, "end": 1, "labels": ["v", "w"]},
        "rest": {"start": 2, "end": 4, "labels": ["x", "y", "z"]},
    }
    settings = ToKestrelSection(class_label=given)
    found = categories_of(settings, TWO)
    assert [(name, entry.calculator, entry.start, entry.end) for name, entry in found.items()] == [
        ("colour", "argmax", 0, 1),
        ("rest", "bypass", 2, 4),
    ]
    assert relabelled(ClassesAnswer(activated=False, heads=TWO), settings).label_lists() == [["v", "w", "x"], ["y", "z"]]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"a": {"start": 0, "end": 4, "labels": ["x"]}}, "class_label.a.end: got 4, expected 0"),
        ({"a": {"start": 1, "end": 4, "labels": list("wxyz")}}, "class_label.a.start: got 1, expected 0"),
        ({"a": {"start": 0, "end": 1, "labels": list("yz")}}, "class_label: got 2 outputs, expected all 5"),
        ({"a": {"start": 0, "labels": list("yz")}}, "expected {calculator, start, end, labels}"),
        ({"a": {"start": 0, "end": 4, "labels": list("vwxyz"), "more": 1}}, "expected {calculator, start, end, labels}"),
        ({"a": {"start": "0", "end": 4, "labels": list("vwxyz")}}, "class_label.a: got {'start': '0'"),
        ({"a": 7}, "class_label.a: got 7"),
    ],
)
def test_class_labels_that_do_not_cover_the_outputs(given: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as raised:
        categories_of(ToKestrelSection(class_label=given), TWO)
    assert message in str(raised.value)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"pixel_means": [123.675, 116.28, 103.53]}, "to_kestrel.pixel_means: got [123.675, 116.28, 103.53], expected"),
        ({"pixel_means": [127.5]}, "[127.5, 127.5, 127.5]"),
        ({"pixel_stds": [63.75, 63.75, 64.0]}, "to_kestrel.pixel_stds"),
        ({"is_rgb": False}, "to_kestrel.is_rgb: got false, expected True"),
        ({"resize_hw": [9, 8]}, "to_kestrel.resize_hw: got [9, 8], expected"),
        ({"resize_hw": "8x9"}, "got '8x9', expected what the test transforms produce: 8 x 8"),
        ({"support_labels": ["red", "pink"]}, "support_labels: got pink, expected some of the labels blue, dark, green, red"),
        ({"model_name": "../x"}, "to_kestrel.model_name: got '../x'"),
        ({"model_name": "modèle"}, "to_kestrel.model_name: got 'modèle'"),
    ],
)
def test_settings_that_contradict_the_model(given: dict[str, Any], message: str) -> None:
    (problem,) = problems(ToKestrelSection(**given))
    assert message in problem


def test_all_of_them_are_told_at_once() -> None:
    found = problems(ToKestrelSection(pixel_means=[1, 2, 3], resize_hw="9x9", class_label={"a": 7}, support_labels=["pink"]))
    assert [problem.split(":")[0] for problem in found] == [
        "to_kestrel.pixel_means",
        "to_kestrel.resize_hw",
        "to_kestrel.class_label.a",
    ]


def test_settings_that_repeat_what_is_derived() -> None:
    assert not problems(ToKestrelSection(pixel_means=[127.52, 127.5, 127.5], pixel_stds=[63.75] * 3, is_rgb=True, resize_hw="8x8"))
    assert not problems(ToKestrelSection(is_rgb=False), order="BGR")
    assert not problems(ToKestrelSection.model_validate(ToKestrelSection().model_dump()), order="BGR")  # as config.yaml has it
    assert not problems(ToKestrelSection(), order="BGR")
    (problem,) = problems(ToKestrelSection(is_rgb=True), order="BGR")
    assert problem.startswith("to_kestrel.is_rgb: got true")


def test_where_the_package_goes(tmp_path: Path) -> None:
    settings = ToKestrelSection(model_name="cars", version="2.0.1")
    assert package_path(tmp_path, settings) == tmp_path / "cars_2.0.1.tar"
    with pytest.raises(UserError, match=facts("folder", "package", "cars_2.0.1.tar")):
        package_path(tmp_path / "x.tar", settings)
