"""``up eval --test``: evaluate the images of another folder or list."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pytest

from tests.harness.facts import tells
from tests.harness.photos import make_photos
from up import api
from up.__main__ import main
from up.bundle.answers.classes import ClassesAnswer, HeadSpec
from up.config.section import Part
from up.data.transforms.table import Resize
from up.errors import UserError
from up.tasks.cls.task import CLASSIFICATION

pytestmark = pytest.mark.usefixtures("without_drawing")
Evaluated = Callable[..., dict[str, float]]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the run ``runs/photos``, and other images of two of its three classes in ``others``."""
    folder = tmp_path_factory.mktemp("trained")
    photos = make_photos(folder / "photos", {"cat": 12, "dog": 12, "owl": 12})
    make_photos(folder / "others", {"dog": 3, "owl": 5}, seed=1)
    assert main(["finetune", "--train", str(photos), "--epochs", "2", "--out", str(folder / "runs" / "photos"), "-q"]) == 0
    return folder


def labels_in(results: Path) -> list[tuple[str, str]]:
    with (results / "predictions.csv").open(encoding="utf-8", newline="") as file:
        return sorted((Path(row["filename"]).as_posix(), row["label"]) for row in csv.DictReader(file))


def test_a_folder_with_fewer_classes(trained: Path, tmp_path: Path) -> None:
    """Its metrics are those of the overrides, and do not replace those on the validation images."""
    config, others = trained / "runs" / "photos.yaml", trained / "others"
    assert main(["eval", str(config), "--test", str(others)]) == 0
    results = trained / "runs" / "photos" / "results_others"
    assert not results.with_name("results").exists()
    kwargs = "dataset.test.dataset.kwargs"
    overrides = [f"{kwargs}.meta_file={others}", f"{kwargs}.meta_type=image_folder"]
    reader = f"{kwargs}.image_reader.kwargs.image_dir={others}"
    assert main(["eval", str(config), "--out", str(tmp_path), "-o", *overrides, reader]) == 0
    assert json.loads((results / "metrics.json").read_text()) == json.loads((tmp_path / "metrics.json").read_text())
    expected = [(f"{name}/{index}.png", name) for name, number in (("dog", 3), ("owl", 5)) for index in range(number)]
    assert labels_in(results) == expected


def test_folders_whose_names_have_dots_have_their_own_results(trained: Path) -> None:
    for name, seed in (("shop.2024", 2), ("shop.2025", 3)):
        others = make_photos(trained / name, {"dog": 2, "owl": 2}, seed=seed)
        assert main(["eval", str(trained / "runs" / "photos"), "--test", str(others), "-q"]) == 0
        assert (trained / "runs" / "photos" / f"results_{name}" / "metrics.json").exists()


def test_run_folder_checkpoint_and_python(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, others = trained / "runs" / "photos", trained / "others"
    metrics = api.evaluate(run, out=tmp_path / "python", test=others)
    assert (
        main(["eval", str(run), "--ckpt", str(run / "ckpt_latest.pth"), "--test", str(others), "--out", str(tmp_path / "a")]) == 0
    )
    assert str(run / "ckpt_latest.pth") in capsys.readouterr().out
    assert main(["eval", "--config", str(run), "--test", str(others), "--out", str(tmp_path / "b")]) == 0
    assert json.loads((tmp_path / "b" / "metrics.json").read_text())["top1"] == pytest.approx(metrics["top1"])


@pytest.mark.parametrize("name", ["list.csv", "list.jsonl"])
def test_a_list(name: str, trained: Path, tmp_path: Path) -> None:
    """Its names are relative to its folder."""
    rows = [("dog/0.png", "dog", 1), ("owl/1.png", "owl", 2)]
    texts = {
        "list.csv": "filename,label\n" + "".join(f"{file},{label}\n" for file, label, _ in rows),
        "list.jsonl": "".join(json.dumps({"filename": file, "label": number}) + "\n" for file, _, number in rows),
    }
    listed = trained / "others" / name
    listed.write_text(texts[name])
    assert main(["eval", str(trained / "runs" / "photos.yaml"), "--test", str(listed), "--out", str(tmp_path)]) == 0
    assert labels_in(tmp_path) == [(file, label) for file, label, _ in rows]


class TestErrors:
    @pytest.fixture
    def told(self, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[[Path], str]:
        """The message of an evaluation of other images, which ends with exit code 2 and writes nothing."""

        def of(path: Path) -> str:
            config, out = trained / "runs" / "photos.yaml", tmp_path / "out"
            assert main(["eval", str(config), "--test", str(path), "--out", str(out)]) == 2
            assert not out.exists()
            return capsys.readouterr().err

        return of

    def test_no_such_folder(self, trained: Path, told: Callable[[Path], str]) -> None:
        assert tells(told(trained / "otherz"), f"--test {trained / 'otherz'}", "'others'")

    def test_a_folder_without_images(self, tmp_path: Path, told: Callable[[Path], str]) -> None:
        (tmp_path / "empty" / "cat").mkdir(parents=True)
        assert tells(told(tmp_path / "empty"), str(tmp_path / "empty"), "no class folders", "CLASS")

    def test_an_unknown_class(self, tmp_path: Path, told: Callable[[Path], str]) -> None:
        assert tells(told(make_photos(tmp_path / "new", {"cat": 1, "dig": 1})), str(tmp_path / "new"), "'dig'", "'dog'", "owl")

    def test_a_list_of_other_numbers(self, trained: Path, told: Callable[[Path], str]) -> None:
        folder = make_photos(trained / "numbered", {"dog": 1, "owl": 1}, seed=2)
        (folder / "list.txt").write_text("dog/0.png 0\nowl/0.png 1\n")
        (folder / "classes.txt").write_text("dog\nowl\n")
        assert tells(told(folder / "list.txt"), f"--test {folder / 'list.txt'}", "classes.txt", "owl", "cat")

    def test_a_file_of_another_kind(self, trained: Path, told: Callable[[Path], str]) -> None:
        assert tells(told(trained / "others" / "dog" / "0.png"), "--test", "folder of class folders")

    def test_images_that_were_trained_on(self, trained: Path, told: Callable[[Path], str]) -> None:
        line = told(trained / "photos")
        assert tells(line, "test images", "--allow-trained-images")
        assert "dataset.test" not in line  # of the file, which names other images

    def test_classes_that_have_numbers_only(
        self, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A folder would name its classes, of which nothing says which number each is."""
        monkeypatch.chdir(tmp_path)
        names = [f"{name}/{index}.png" for index in range(12) for name in ("cat", "dog")]
        lines = "".join(f"{name} {int('dog' in name)}\n" for name in names)
        (trained / "photos" / "numbers.txt").write_text(lines)
        assert (
            main(["finetune", "--train", str(trained / "photos" / "numbers.txt"), "--epochs", "1", "--out", "numbers", "-q"]) == 0
        )
        capsys.readouterr()
        assert main(["eval", "numbers.yaml", "--test", str(trained / "others")]) == 2
        assert tells(capsys.readouterr().err, f"--test {trained / 'others'}", "numbers", "list")


@pytest.fixture
def renumbered(tmp_path: Path) -> Path:
    """A list whose numbers have other names than ``cat``, ``dog``."""
    (tmp_path / "classes.txt").write_text("dog\ncat\n")
    (tmp_path / "list.txt").write_text("a.png 0\n")
    return tmp_path / "list.txt"


def test_other_numbers_where_the_names_are_in_a_file(renumbered: Path) -> None:
    own = Part(type="cls", kwargs={"class_names": "splits/classes.txt"})
    with pytest.raises(UserError) as raised:
        CLASSIFICATION.with_images(own, renumbered, ["cat", "dog"])
    assert tells(str(raised.value), "--test", "classes.txt", "dog, cat", "cat, dog")


@pytest.mark.parametrize(("labels", "is_error"), [(["cat", "dog"], True), (["dog", "cat"], False), (["0", "1"], False)])
def test_other_numbers_for_a_package(labels: list[str], is_error: bool, renumbered: Path) -> None:
    head = HeadSpec(name="classes", start=0, end=1, type="multiclass", activation="softmax", labels=labels, topk=2)
    answer = ClassesAnswer(output="scores", activated=False, heads=[head])
    with pytest.raises(UserError) if is_error else nullcontext() as raised:
        CLASSIFICATION.listed(renumbered, "imagenet", None, answer, [Resize(size=8)])
    assert not is_error or tells(str(raised.value), "--meta", "classes.txt", "dog, cat", "cat, dog")


def test_what_belongs_to_the_own_images_is_left_out(tmp_path: Path) -> None:
    """The transforms, the reader and the class names stay."""
    own = {
        "meta_file": ["a.txt", "b.txt"],
        "label_mapping": [0, 3],
        "fraction": 0.5,
        "cache": "c",
        "image_reader": {"type": "fs_opencv"},
    }
    stay = {"transformer": [{"type": "to_tensor"}], "class_names": ["a", "b"]}
    found = CLASSIFICATION.with_images(Part(type="cls", kwargs={**own, **stay}), tmp_path, None)
    assert found.kwargs == {
        **stay, "meta_file": str(tmp_path), "meta_type": "image_folder", "image_reader": {"type": "fs_opencv", "kwargs": {}}
    }  # fmt: skip


def test_data_sets_of_plug_ins_have_their_own_keys(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="of_a_plugin"):
        CLASSIFICATION.with_images(Part(type="of_a_plugin"), tmp_path, ["a"])
