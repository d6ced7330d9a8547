from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.harness.facts import each_tells, facts, tells
from up.data.listing import MetaError
from up.data.roots import ImageRoot
from up.tasks.cls.data.json_lines import custom_cls, custom_det
from up.tasks.cls.data.metas import METAS, MetaSource, SampleTable, imagenet, inference_only


def source(tmp_path: Path, content: str | bytes | list[Any], *, image_dir: str | None = "images", **options: Any) -> MetaSource:
    path = tmp_path / "meta.txt"
    if isinstance(content, list):
        content = "".join(line if isinstance(line, str) else json.dumps(line, ensure_ascii=False) + "\n" for line in content)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    root = ImageRoot(image_dir, meta_file=str(path), allow_outside=options.pop("allow_outside", False))
    return MetaSource(str(path), root, **options)


def rows(meta: SampleTable) -> list[tuple[Any, ...]]:
    labels = [None] * len(meta.names) if meta.labels is None else [meta.labels[at] for at in range(len(meta.names))]
    assert meta.lines is not None
    return list(zip(meta.names, labels, meta.lines.tolist(), strict=True))


def problems(parse: Any, given: MetaSource) -> list[str]:
    """What the error says of each line, ``line: text``."""
    with pytest.raises(MetaError) as raised:
        parse(given)
    assert raised.value.exit_code == 2
    lines = str(raised.value).split("\n")
    assert all(line.startswith(f"{given.path}:") for line in lines)
    return [line.removeprefix(f"{given.path}:") for line in lines]


def test_imagenet_lines(tmp_path: Path) -> None:
    text = "\ufeffa.jpg 3\r\n\r\ncats and dogs/b c.jpg   0\n   \nübung/猫.png\t12\nlast.jpg 1"
    assert rows(imagenet(source(tmp_path, text))) == [
        ("a.jpg", [3], 1),
        ("cats and dogs/b c.jpg", [0], 3),
        ("übung/猫.png", [12], 5),
        ("last.jpg", [1], 6),
    ]


def test_imagenet_problems_are_reported_together(tmp_path: Path) -> None:
    text = "a.jpg 0\nb.jpg\nc.jpg -1\nd.jpg 3.0\ne.jpg true\nf.jpg 10\ng.jpg 99999999999999999999\n../h.jpg 1\nok.jpg 9\n"
    assert each_tells(
        problems(imagenet, source(tmp_path, text, num_classes=10)),
        ("2", "'b.jpg'"),
        ("3", "'-1'", "0"),
        ("4", "'3.0'", "0"),
        ("5", "'true'", "0"),
        ("6", "10", "0", "9"),
        ("7", "'99999999999999999999'", "0"),
        ("8", "'../h.jpg'", "'images'", "allow_outside"),
    )


def test_only_ten_problems_are_listed(tmp_path: Path) -> None:
    said = problems(imagenet, source(tmp_path, "".join(f"{at}.jpg x\n" for at in range(2500))))
    assert [line.split(":")[0] for line in said[:10]] == [str(line) for line in range(1, 11)]
    assert said[10:] == [" and 2,490 more"]


def test_json_in_an_imagenet_meta_is_recognised(tmp_path: Path) -> None:
    said = problems(imagenet, source(tmp_path, [{"filename": "a.jpg", "label": 3}]))
    assert each_tells(said, ("1", "'3}'", "0", "JSON", "meta_type", "custom_cls"))


def test_labels_are_mapped_before_they_are_checked(tmp_path: Path) -> None:
    text = "a.jpg 1\nb.jpg 2\n"
    assert [row[1] for row in rows(imagenet(source(tmp_path, text, label_offset=-1, num_classes=2)))] == [[0], [1]]
    assert each_tells(
        problems(imagenet, source(tmp_path, text, label_offset=1, num_classes=3)), ("2", "label_mapping", "3", "0", "2")
    )
    assert each_tells(problems(imagenet, source(tmp_path, text, label_offset=-2)), ("1", "label_mapping", "-1", "0"))


@pytest.mark.parametrize("content", [b"", b"\n\r\n  \n", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("parse", [imagenet, custom_cls, custom_det, inference_only])
def test_no_line(tmp_path: Path, parse: Any, content: bytes) -> None:
    assert each_tells(problems(parse, source(tmp_path, content)), ("names", "image", "least"))


def test_bytes_that_are_not_utf8(tmp_path: Path) -> None:
    given = source(tmp_path, b"a.jpg 1\nstra\xdfe.jpg 2\n")
    assert tells(problems(imagenet, given)[0], "2", "b'stra\\xdfe.jpg'", "UTF-8")
    given = source(tmp_path, b'{"filename": "a.jpg", "label": 1}\n{"filename": "stra\xdfe.jpg", "label": 1}\n')
    assert problems(custom_cls, given)[0].endswith("is not UTF-8")


def test_names_that_lead_outside(tmp_path: Path) -> None:
    text = "/etc/passwd 1\nx/../../y.jpg 1\nx/../y.jpg 1\nz\0.jpg 1\n"
    said = problems(imagenet, source(tmp_path, text))
    assert [line.split(":")[0] for line in said] == ["1", "2", "4"]
    assert tells(said[2], "4", "'z\\x00.jpg'", "NUL")
    assert len(problems(imagenet, source(tmp_path, text, allow_outside=True))) == 1
    without_dir = problems(imagenet, source(tmp_path, text, image_dir=None))
    assert [line.split(":")[0] for line in without_dir] == ["2", "4"]  # absolute names are then used as they are


def test_absolute_names_inside_image_dir(tmp_path: Path) -> None:
    given = source(tmp_path, f"{tmp_path}/images/a.jpg 1\n", image_dir=f"{tmp_path}/images")
    assert rows(imagenet(given)) == [(f"{tmp_path}/images/a.jpg", [1], 1)]


def test_a_file_that_is_not_there_or_is_a_folder(tmp_path: Path) -> None:
    root = ImageRoot(None, meta_file="x")
    assert problems(imagenet, MetaSource(f"{tmp_path}/x.txt", root)) == [" no such meta file."]
    assert each_tells(problems(custom_cls, MetaSource(str(tmp_path), root)), ("meta_type", "image_folder", "folders"))


def test_speed_and_size(tmp_path: Path) -> None:
    lines = 100_000
    names = [f"n{at % 1000:08d}/n{at % 1000:08d}_{at}.JPEG" for at in range(lines)]
    given = source(tmp_path, "".join(f"{name} {at % 1000}\n" for at, name in enumerate(names)), num_classes=1000)
    begun = time.process_time()
    meta = imagenet(given)
    assert lines / (time.process_time() - begun) > 400_000
    assert meta.labels is not None
    assert meta.lines is not None
    per_line = (sum(each.nbytes for each in meta.names.arrays) + meta.labels.values.nbytes + meta.lines.nbytes) / lines
    assert per_line < np.mean([len(name) for name in names]) + 17
    assert (meta.names[54_321], meta.labels[54_321], meta.lines[-1]) == (names[54_321], [321], lines)


def test_one_label_does_not_do_for_two_heads(tmp_path: Path) -> None:
    with pytest.raises(MetaError, match=facts("meta.txt", "num_classes", "2")):
        imagenet(source(tmp_path, "a.jpg 1\n", num_classes=[2, 3]))


def test_custom_cls_notes_other_keys_and_labels_in_quotes_once_a_file(tmp_path: Path) -> None:
    lines = [
        {"filename": "a", "label": 1},
        {"filename": "b", "label": "3", "source": "x"},
        {"filename": "c", "label": "0", "width": 7, "source": "y"},
    ]
    meta = custom_cls(source(tmp_path, lines))
    assert [row[1] for row in rows(meta)] == [[1], [3], [0]]
    path = tmp_path / "meta.txt"
    assert each_tells(meta.notes, (f"{path}:2", "'source', 'width'"), (f"{path}:2", "label", '"3"', "quotes"))
    heads = custom_cls(source(tmp_path, [{"filename": "a", "label": ["1", 4]}]))
    assert heads.labels is not None
    assert heads.labels.values.tolist() == [[1, 4]]
    assert len(heads.notes) == 1
    assert custom_cls(source(tmp_path, lines[:1])).notes == ()


def test_custom_cls_lines(tmp_path: Path) -> None:
    single = ["\ufeff", {"filename": "a b.jpg", "label": 3}, "\r\n", {"label": 0, "filename": "ü.jpg"}]
    assert rows(custom_cls(source(tmp_path, single))) == [("a b.jpg", [3], 1), ("ü.jpg", [0], 3)]
    heads = [{"filename": "a", "label": [1, 4]}, {"filename": "b", "label": [0, 5]}]
    meta = custom_cls(source(tmp_path, heads, num_classes=[2, 6]))
    assert meta.labels is not None
    assert meta.labels.values.tolist() == [[1, 4], [0, 5]]
    sets = [{"filename": "a", "label": [1, 4]}, {"filename": "b", "label": 2}, {"filename": "c", "label": []}]
    assert [row[1] for row in rows(custom_cls(source(tmp_path, sets, multilabel=True)))] == [[1, 4], [2], []]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"filename": "a", "label": 3', "not JSON: Expecting ',' delimiter at column "),
        ('["a", 3]', "expected a JSON object, got "),
        ("{}", "missing key 'filename'. Expected filename, label."),
        ('{"filename": "a"}', "missing key 'label'. Expected filename, label."),
        ('{"filename": "a", "lable": 3}', "missing key 'label', got 'lable' instead. Expected filename, label."),
        ('{"filename": "a", "label": 3, "label": 4}', "duplicate key 'label'"),
        ('{"filename": "a", "label": NaN}', "NaN is not a number that JSON has"),
        ('{"filename": "a", "label": ' + "9" * 5000 + "}", "a number has too many digits"),
        ('{"filename": "a", "label": ' + "9" * 50 + "}", "label " + "9" * 50 + ". Expected an integer from 0 on."),
        ('{"filename": "a", "label": ' + "[" * 100_000 + "}", "JSON nested too deeply"),
        ('{"filename": "a", "label": -1}', "label -1. Expected an integer from 0 on."),
        ('{"filename": "a", "label": true}', "label true. Expected an integer from 0 on."),
        ('{"filename": "a", "label": 3.0}', "label 3.0. Expected an integer from 0 on."),
        ('{"filename": "a", "label": "x3"}', 'label "x3". Expected an integer from 0 on.'),
        ('{"filename": "a", "label": null}', "label null. Expected an integer from 0 on."),
        ('{"filename": "a", "label": 5}', "label 5. Expected an integer from 0 to 4."),
        ('{"filename": 7, "label": 3}', "filename 7. Expected a path."),
        ('{"filename": "", "label": 3}', 'filename "". Expected a path.'),
        ('{"filename": "../a", "label": 3}', "'../a' lies outside of 'images' (set allow_outside: true to use it)"),
        ('{"filename": "a\\u0000b", "label": 3}', r"'a\x00b' contains NUL, which no file name can"),
        ('{"filename": "\\ud800", "label": 3}', r"filename '\ud800' contains half a surrogate pair"),
        ('{"filename": "a", "label": [1]}', "label [1]. Expected one integer, as in the lines before."),
    ],
)
def test_custom_cls_problems(tmp_path: Path, line: str, said: str) -> None:
    good = {"filename": "good.jpg", "label": 1}
    found = problems(custom_cls, source(tmp_path, [good, line + "\n", good], num_classes=5))
    assert len(found) == 1
    assert found[0].startswith(f"2: {said}")


@pytest.mark.parametrize(
    ("label", "said"),
    [
        ([1], "label [1]. Expected a list of 2, one for each head."),
        ([1, 2, 3], "label [1, 2, 3]. Expected a list of 2, one for each head."),
        (1, "label 1. Expected a list of 2, one for each head."),
        ([1, 6], "label 6. Expected an integer from 0 to 5."),
        ([2, 5], "label 2. Expected an integer from 0 to 1."),
        ([1, True], "label true. Expected an integer from 0 on."),
    ],
)
def test_problems_of_several_heads(tmp_path: Path, label: Any, said: str) -> None:
    lines = [{"filename": "a", "label": [1, 5]}, {"filename": "b", "label": label}]
    found = problems(custom_cls, source(tmp_path, lines, num_classes=[2, 6]))
    assert len(found) == 1
    assert found[0].startswith(f"2: {said}")


def test_the_first_line_says_how_many_labels_there_are(tmp_path: Path) -> None:
    lines = [{"filename": "a", "label": [1, 5]}, {"filename": "b", "label": [1]}]
    assert tells(problems(custom_cls, source(tmp_path, lines))[0], "2", "[1]", "2")
    assert each_tells(problems(custom_cls, source(tmp_path, [{"filename": "a", "label": []}])), ("1", "label", "[]"))


def test_custom_det_crops(tmp_path: Path) -> None:
    lines = [
        {
            "filename": "a.jpg",
            "image_width": 500,
            "instances": [
                {"bbox": [10, 20.5, 60, 70], "label": 3},
                {"bbox": [10, 20, 40, 60], "label": 1},  # 30 x 40 < 40 x 40
                {"bbox": [0, 0, 90, 90], "label": 2, "is_ignored": True},
                {"bbox": [0, 0, 20, 80], "label": 1, "is_ignored": False},
            ],
        },
        {"filename": "b.jpg", "instances": []},
        {"filename": "c.jpg", "instances": [{"bbox": [60, 60, 10, 10], "label": 1}, {"bbox": [1, 2, 90, 80], "label": 2}]},
    ]
    meta = custom_det(source(tmp_path, lines))
    assert rows(meta) == [("a.jpg", [2], 1), ("a.jpg", [0], 1), ("c.jpg", [1], 3)]
    assert meta.boxes is not None
    assert meta.boxes.tolist() == [[10, 20.5, 60, 70], [0, 0, 20, 80], [1, 2, 90, 80]]
    assert len(rows(custom_det(source(tmp_path, lines, min_size=30)))) == 4


@pytest.mark.parametrize(
    ("instance", "said"),
    [
        ({"bbox": [1, 2, 3], "label": 1}, "bbox [1, 2, 3]. Expected [x1, y1, x2, y2] in pixels."),
        ({"bbox": [1, 2, 3, "4"], "label": 1}, 'bbox [1, 2, 3, "4"]. Expected'),
        ({"label": 1}, "bbox null. Expected"),
        ({"bbox": [0, 0, 90, 90], "label": 0}, "label 0. Expected an integer from 1 on (0 is the background)."),
        ({"bbox": [0, 0, 90, 90], "label": "cat"}, 'label "cat". Expected an integer from 1 on'),
        ({"bbox": [0, 0, 90, 90], "label": 4}, "label 3. Expected an integer from 0 to 2."),
        (7, "instances: expected a list of objects"),
    ],
)
def test_custom_det_problems(tmp_path: Path, instance: Any, said: str) -> None:
    lines = [{"filename": "a", "instances": []}, {"filename": "b", "instances": [instance]}]
    found = problems(custom_det, source(tmp_path, lines, num_classes=3))
    assert len(found) == 1
    assert found[0].startswith(f"2: {said}")


def test_inference_only_lines(tmp_path: Path) -> None:
    meta = inference_only(source(tmp_path, "\ufeffa b.jpg\r\n\r\n  c.jpg \n"))
    assert rows(meta) == [("a b.jpg", None, 1), ("c.jpg", None, 3)]
    assert problems(inference_only, source(tmp_path, "a.jpg\n../b.jpg\n"))[0].startswith("2: '../b.jpg' lies outside")


def test_table() -> None:
    assert set(METAS) == {"imagenet", "custom_cls", "custom_det", "inference_only", "image_folder", "unlabelled", "csv"}
    assert METAS.get("custom_cls") is custom_cls
    assert callable(METAS.get("image_folder"))
