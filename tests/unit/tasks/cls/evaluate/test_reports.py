from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from tests.harness.facts import facts
from up.errors import StorageError, UserError
from up.tasks.cls.data.inference import already_done
from up.tasks.cls.evaluate.confusion import confusion_figure
from up.tasks.cls.evaluate.metrics import ImageNetEvaluator
from up.tasks.cls.evaluate.reports import ResultStream, write_reports

NAMES = ["cat", "dog", "gnu"]
# Right, wrong by a little, wrong for sure, right.
SCORES = torch.tensor([[0.7, 0.2, 0.1], [0.4, 0.35, 0.25], [0.1, 0.9, 0.0], [0.2, 0.5, 0.3]])
LABELS = torch.tensor([0, 1, 0, 1])
LIMITS = ["accuracy_low", "accuracy_high"]


def evaluated(scores: Any = SCORES, gt: Tensor | None = LABELS, **settings: Any) -> ImageNetEvaluator:
    evaluator = ImageNetEvaluator(topk=[1, 2], **settings)
    batch = {"filename": ["a.jpg", "b b.jpg", "c,c.jpg", "ü.jpg"], "index": torch.arange(4)}
    evaluator.update({"scores": scores}, batch if gt is None else {**batch, "gt": gt})
    return evaluator


@pytest.fixture(autouse=True)
def _without_drawing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("up.tasks.cls.evaluate.reports.confusion_figure", lambda *_: b"PNG")


def rows_of(path: Path) -> list[list[str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.reader(file))


def json_lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_the_files_of_an_evaluation(tmp_path: Path) -> None:
    written = write_reports(evaluated(), tmp_path / "new" / "folder", NAMES)
    expected = ["metrics.json", "predictions.csv", "per_class.csv", "confusion.csv", "confusion.png"]
    assert [path.name for path in written] == expected
    assert sorted(path.name for path in (tmp_path / "new" / "folder").iterdir()) == sorted(expected)


@pytest.mark.filterwarnings("ignore:the scores of")
@pytest.mark.parametrize(
    ("scores", "metrics"),
    [(SCORES, (50.0, 100.0, 50.0)), (SCORES * float("nan"), (None, None, None))],  # JSON has no NaN
)
def test_metrics(tmp_path: Path, scores: Tensor, metrics: tuple[float | None, ...]) -> None:
    write_reports(evaluated(scores), tmp_path)
    expected = dict(zip(("top1", "top2", "mean_class_accuracy"), metrics, strict=True))
    assert json.loads((tmp_path / "metrics.json").read_text()) == expected


def test_per_class(tmp_path: Path) -> None:
    write_reports(evaluated(), tmp_path, NAMES)
    assert rows_of(tmp_path / "per_class.csv") == [
        ["class", "name", "images", "correct", "accuracy", "precision", "recall", "f1", *LIMITS],
        ["0", "cat", "2", "1", "50.0000", "50.0000", "50.0000", "50.0000", "9.4531", "90.5469"],
        ["1", "dog", "2", "1", "50.0000", "50.0000", "50.0000", "50.0000", "9.4531", "90.5469"],
        ["2", "gnu", "0", "0", "", "", "", "", "", ""],
    ]


def test_confusion(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("up.tasks.cls.evaluate.reports.confusion_figure", confusion_figure)
    write_reports(evaluated(), tmp_path, NAMES)
    assert rows_of(tmp_path / "confusion.csv") == [
        ["true \\ predicted", "cat", "dog", "gnu"],
        ["cat", "1", "1", "0"],
        ["dog", "1", "1", "0"],
        ["gnu", "0", "0", "0"],
    ]
    with Image.open(tmp_path / "confusion.png") as figure:
        assert figure.format == "PNG"
        assert figure.width > 3 * 64


def test_without_matplotlib_the_figure_is_left_out_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("up.figures.find_spec", lambda _: None)
    with pytest.warns(UserWarning, match=facts("confusion.png", "install", "'.[viz]'")):
        written = write_reports(evaluated(), tmp_path, NAMES)
    assert "confusion.csv" in {path.name for path in written}
    assert not (tmp_path / "confusion.png").exists()


def test_predictions(tmp_path: Path) -> None:
    write_reports(evaluated(), tmp_path, NAMES)
    rows = rows_of(tmp_path / "predictions.csv")
    assert rows[0] == ["filename", "label", "prediction", "correct", "top1", "score1", "top2", "score2"]
    assert rows[1] == ["a.jpg", "cat", "cat", "1", "cat", "0.700000", "dog", "0.200000"]
    assert rows[3][:4] == ["c,c.jpg", "cat", "dog", "0"]
    assert len(rows) == 5


def test_without_names_classes_are_numbers_and_the_evaluators_names_come_before(tmp_path: Path) -> None:
    write_reports(evaluated(), tmp_path)
    assert rows_of(tmp_path / "predictions.csv")[1][1:3] == ["0", "0"]
    write_reports(evaluated(class_names=NAMES), tmp_path)
    assert rows_of(tmp_path / "predictions.csv")[1][1:3] == ["cat", "cat"]


def test_result_lines(tmp_path: Path) -> None:
    write_reports(evaluated(), tmp_path, save_result=True)
    lines = json_lines(tmp_path / "results.txt")
    assert lines[3] == {"prediction": 1, "label": 1, "topk_idx": [1, 2], "topk_score": [0.5, 0.3], "filename": "ü.jpg"}
    write_reports(evaluated(keep_scores=True), tmp_path, save_result=True)
    kept = json_lines(tmp_path / "results.txt")
    assert list(kept[0]) == ["prediction", "label", "topk_idx", "topk_score", "score", "filename"]
    assert kept[0]["score"] == [0.7, 0.2, 0.1]


def test_wrong_images_come_with_the_surest_first(tmp_path: Path) -> None:
    written = write_reports(evaluated(bad_case_analyse=True), tmp_path, NAMES)
    assert tmp_path / "bad_cases.json" in written
    cases = json.loads((tmp_path / "bad_cases.json").read_text(encoding="utf-8"))
    assert [case["filename"] for case in cases] == ["c,c.jpg", "b b.jpg"]
    assert cases[0] == {
        "filename": "c,c.jpg",
        "label": 0,
        "label_name": "cat",
        "prediction": 1,
        "prediction_name": "dog",
        "score": 0.9,
    }
    write_reports(evaluated(bad_case_analyse=True, analysis_json="sub/wrong.json"), tmp_path, NAMES)
    assert json.loads((tmp_path / "sub" / "wrong.json").read_text(encoding="utf-8")) == cases


def test_several_heads_have_files_each(tmp_path: Path) -> None:
    second = torch.tensor([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4], [0.3, 0.7]])
    gt = torch.stack([LABELS, torch.tensor([0, 1, 1, 1])], 1)
    evaluator = evaluated([SCORES, second], gt, bad_case_analyse=True)
    written = write_reports(evaluator, tmp_path, [NAMES, ["day", "night"]], save_result=True)
    each = ["predictions", "per_class", "confusion", "confusion", "bad_cases"]
    ends = [".csv", ".csv", ".csv", ".png", ".json"]
    expected = {f"{name}_head{i}{end}" for i in range(2) for name, end in zip(each, ends, strict=True)}
    assert {path.name for path in written} == expected | {"metrics.json", "results.txt"}
    assert rows_of(tmp_path / "per_class_head1.csv")[2][:5] == ["1", "night", "3", "2", "66.6667"]
    assert json_lines(tmp_path / "results.txt")[2] == {
        "prediction": [1, 0],
        "label": [0, 1],
        "topk_idx": [[1, 0], [0, 1]],
        "topk_score": [[0.9, 0.1], [0.6, 0.4]],
        "filename": "c,c.jpg",
    }


def test_images_without_labels_are_listed_only(tmp_path: Path) -> None:
    written = write_reports(evaluated(gt=None), tmp_path, NAMES, save_result=True)
    assert [path.name for path in written] == ["metrics.json", "predictions.csv", "results.txt"]
    assert rows_of(tmp_path / "predictions.csv")[:2] == [
        ["filename", "prediction", "top1", "score1", "top2", "score2"],
        ["a.jpg", "cat", "cat", "0.700000", "dog", "0.200000"],
    ]
    assert json_lines(tmp_path / "results.txt")[0]["label"] is None
    assert json.loads((tmp_path / "metrics.json").read_text()) == {}


def test_an_evaluation_of_nothing_still_says_so(tmp_path: Path) -> None:
    written = write_reports(ImageNetEvaluator(), tmp_path, NAMES, save_result=True)
    assert [path.name for path in written] == ["metrics.json", "results.txt"]
    assert (tmp_path / "results.txt").read_text() == ""


def test_sets_of_labels(tmp_path: Path) -> None:
    gt = torch.tensor([[1, 0, 0], [1, 1, 0], [0, 1, 0], [0, 1, 1]]).float()
    scores = torch.tensor([[0.9, 0.6, 0.1], [0.8, 0.7, 0.2], [0.1, 0.3, 0.2], [0.2, 0.9, 0.7]])
    evaluator = evaluated(scores, gt, multilabel=True, bad_case_analyse=True)
    written = write_reports(evaluator, tmp_path, NAMES, save_result=True)
    assert "confusion.png" not in {path.name for path in written}
    assert rows_of(tmp_path / "per_class.csv")[:3] == [
        ["class", "name", "images", "correct", "accuracy", "precision", "recall", "f1", "average_precision", *LIMITS],
        ["0", "cat", "2", "2", "100.0000", "100.0000", "100.0000", "100.0000", "100.0000", "51.0109", "100.0000"],
        ["1", "dog", "3", "2", "50.0000", "66.6667", "66.6667", "66.6667", "91.6667", "15.0039", "84.9961"],
    ]
    assert rows_of(tmp_path / "confusion.csv")[2] == ["1", "dog", "2", "1", "1", "0"]
    assert rows_of(tmp_path / "predictions.csv")[2][:4] == ["b b.jpg", "cat;dog", "cat;dog", "1"]
    assert json_lines(tmp_path / "results.txt")[0]["prediction"] == [0, 1]
    assert json.loads((tmp_path / "bad_cases.json").read_text(encoding="utf-8")) == [
        {"filename": "a.jpg", "missed": [], "added": ["dog"]},
        {"filename": "c,c.jpg", "missed": ["dog"], "added": []},
    ]


def test_many_classes_are_written_as_the_pairs_that_occur(tmp_path: Path) -> None:
    scores = torch.zeros(4, 1500)
    scores[torch.arange(4), torch.tensor([0, 7, 7, 1400])] = 1.0
    write_reports(evaluated(scores, torch.tensor([0, 3, 3, 1400])), tmp_path)
    assert rows_of(tmp_path / "confusion.csv") == [
        ["true", "predicted", "images"],
        ["0", "0", "1"],
        ["3", "7", "2"],
        ["1400", "1400", "1"],
    ]
    assert not (tmp_path / "confusion.png").exists()


def test_unreadable_scores_have_no_prediction(tmp_path: Path) -> None:
    scores = SCORES.clone()
    scores[0] = float("nan")
    with pytest.warns(UserWarning, match=facts("scores", "1", "4")):
        write_reports(evaluated(scores), tmp_path, NAMES, save_result=True)
    assert rows_of(tmp_path / "predictions.csv")[1][:6] == ["a.jpg", "cat", "", "0", "", "0.000000"]
    assert json_lines(tmp_path / "results.txt")[0]["prediction"] == -1


def test_unreadable_scores_are_right_for_no_class_of_a_set(tmp_path: Path) -> None:
    gt = torch.tensor([[1, 0, 0], [1, 1, 0], [0, 1, 0], [0, 1, 1]]).float()
    scores = torch.where(gt > 0, 0.9, 0.1)
    scores[0, 2] = float("nan")
    with pytest.warns(UserWarning, match=facts("scores", "1", "4")):
        write_reports(evaluated(scores, gt, multilabel=True), tmp_path, NAMES)
    per_class = rows_of(tmp_path / "per_class.csv")
    assert [row[4] for row in per_class[1:]] == ["75.0000", "75.0000", "75.0000"]  # the image has the label cat alone
    assert rows_of(tmp_path / "confusion.csv")[1:] == [
        ["0", "cat", "1", "0", "1", "2"],
        ["1", "dog", "3", "0", "0", "0"],
        ["2", "gnu", "1", "0", "0", "2"],
    ]


@pytest.mark.parametrize("names", [["cat", "dog"], [["cat", "dog"]], [[]]])
def test_too_few_names_are_counted(tmp_path: Path, names: Any) -> None:
    with pytest.raises(UserError, match=facts("class_names", "names", "3")):
        write_reports(evaluated(), tmp_path / "reports", names)
    assert not (tmp_path / "reports").exists()


def test_a_file_that_cannot_be_written_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_reports(evaluated(), tmp_path, NAMES)
    before = (tmp_path / "per_class.csv").read_bytes()

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("up.files.os.fsync", full)
    with pytest.raises(StorageError, match=facts("cannot", "written", "space")):
        write_reports(evaluated(gt=1 - LABELS), tmp_path, NAMES)
    assert (tmp_path / "per_class.csv").read_bytes() == before
    assert not list(tmp_path.glob("*.tmp"))
    assert not list(tmp_path.glob(".*"))


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=facts("file/reports", "cannot", "directory")):
        write_reports(evaluated(), tmp_path / "file" / "reports")


def test_a_file_name_that_is_not_utf8_survives(tmp_path: Path) -> None:
    evaluator = ImageNetEvaluator(topk=[1])
    name = b"caf\xe9.jpg".decode("utf-8", "surrogateescape")
    evaluator.update({"scores": SCORES[:1]}, {"filename": [name], "index": torch.tensor([0])})
    write_reports(evaluator, tmp_path, save_result=True)
    assert b"caf\xe9.jpg" in (tmp_path / "predictions.csv").read_bytes()
    assert b"caf\xe9.jpg" in (tmp_path / "results.txt").read_bytes()


TWO = torch.tensor([[0.1, 0.7, 0.2], [0.5, 0.2, 0.3]])


def test_appends_a_line_an_image_that_a_later_inference_understands(tmp_path: Path) -> None:
    stream = ResultStream(tmp_path, depth=2)
    stream({"scores": TWO}, {"filename": ["a.png", "b.png"], "index": torch.tensor([4, 7])})
    stream({"scores": TWO[:1]}, {"filename": ["c.png"], "index": torch.tensor([9]), "gt": torch.tensor([2])})
    lines = [json.loads(line) for line in (tmp_path / "results.txt.rank0").read_text().splitlines()]
    assert lines[0] == {"prediction": 1, "label": None, "topk_idx": [1, 2], "topk_score": [0.7, 0.2], "filename": "a.png"}
    assert [(line["filename"], line["label"]) for line in lines] == [("a.png", None), ("b.png", None), ("c.png", 2)]
    assert already_done({"resume_dir": str(tmp_path)}) == {"a.png", "b.png", "c.png"}


def test_all_scores_on_demand(tmp_path: Path) -> None:
    ResultStream(tmp_path, depth=1, keep_scores=True)({"scores": TWO}, {"filename": ["a", "b"], "index": torch.arange(2)})
    assert json.loads((tmp_path / "results.txt.rank0").read_text().splitlines()[1])["score"] == [0.5, 0.2, 0.3]


def streamed(folder: Path, name: str, **options: bool) -> list[str]:
    stream = ResultStream(folder, depth=1, **options)
    for image in (name, f"{name}{name}"):
        stream({"scores": TWO[:1]}, {"filename": [image], "index": torch.tensor([0])})
    return [
        json.loads(line)["filename"] for line in (folder / "results.txt.rank0").read_text("utf-8", "surrogateescape").splitlines()
    ]


@pytest.mark.parametrize("cut", [1, 15, 70_000])
def test_a_line_that_a_kill_cut_off_does_not_spoil_the_next_one(tmp_path: Path, cut: int) -> None:
    assert streamed(tmp_path, "a") == ["a", "aa"]
    path = tmp_path / "results.txt.rank0"
    whole = path.read_text()
    path.write_text(f'{whole}{{"filename": "{"b" * cut}')
    assert streamed(tmp_path, "c", continues=True) == ["a", "aa", "c", "cc"]
    path.write_text(whole.removesuffix("\n"))
    assert streamed(tmp_path, "d", continues=True) == ["a", "aa", "d", "dd"]
    path.write_text("{")
    assert streamed(tmp_path, "e", continues=True) == ["e", "ee"]
    path.unlink()
    assert streamed(tmp_path, "f", continues=True) == ["f", "ff"]


def test_results_of_another_evaluation_are_replaced(tmp_path: Path) -> None:
    assert streamed(tmp_path, "a") == ["a", "aa"]
    assert streamed(tmp_path, "b") == ["b", "bb"]


def test_unusual_file_names_are_found_again(tmp_path: Path) -> None:
    names = [b"caf\xe9.jpg".decode("utf-8", "surrogateescape"), "a\u2028b.jpg", "a\x85b.jpg", "a\rb.jpg"]
    stream = ResultStream(tmp_path, depth=1)
    for index, name in enumerate(names):
        stream({"scores": TWO[:1]}, {"filename": [name], "index": torch.tensor([index])})
    assert already_done({"resume_dir": str(tmp_path)}) == set(names)


def test_a_folder_that_is_gone(tmp_path: Path) -> None:
    stream = ResultStream(tmp_path / "gone", depth=1)
    with pytest.raises(StorageError, match=facts("results.txt.rank0", "written", "directory")):
        stream({"scores": TWO}, {"filename": ["a", "b"], "index": torch.arange(2)})
