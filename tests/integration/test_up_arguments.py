"""Arguments and parts of UP's files: what works, and what is accepted with a note that gives the reason."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from up.__main__ import main

Config = dict[str, Any]
Write = Callable[[Config], str]

TRAIN = "dataset.train.dataset.kwargs"


def notes(path: str, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """The notes of ``check --no-files``, which finds nothing wrong."""
    capsys.readouterr()
    assert main(["check", "--no-files", "--config", path]) == 0, capsys.readouterr().err
    return [line for line in capsys.readouterr().out.splitlines() if line.startswith("note: ")]


def hook(kind: str, **kwargs: Any) -> Callable[[Config], None]:
    return lambda config: config.update(hooks=[{"type": kind, "kwargs": kwargs}])


def transform(kind: str, **kwargs: Any) -> Callable[[Config], None]:
    """Put the arguments into the transform of that kind, or put the transform at the end."""

    def change(config: Config) -> None:
        listed = config["dataset"]["train"]["dataset"]["kwargs"]["transformer"]
        found = next((part for part in listed if part["type"] == kind), None)
        if found is None:
            listed.append(found := {"type": kind})
        found.setdefault("kwargs", {}).update(kwargs)

    return change


def dataset(**kwargs: Any) -> Callable[[Config], None]:
    return lambda config: config["dataset"]["train"]["dataset"]["kwargs"].update(kwargs)


def reader(kind: str, **kwargs: Any) -> Callable[[Config], None]:
    return lambda config: config["dataset"]["train"]["dataset"]["kwargs"].update(image_reader={"type": kind, "kwargs": kwargs})


NOTED = {
    "hooks.0.kwargs.summary_writer": (hook("train_val_logger", summary_writer="pavi", skip_first_k=5), "TensorBoard"),
    f"{TRAIN}.transformer.4.kwargs.num_splits": (transform("torch_randerase", num_splits=3), "copies"),
    f"{TRAIN}.transformer.4.kwargs.device": (transform("torch_randerase", device="cuda"), "the device of the run"),
    f"{TRAIN}.transformer.3.kwargs.inplace": (transform("normalize", inplace=True), "same"),
    f"{TRAIN}.image_reader.kwargs.memcached": (reader("fs_pillow", memcached=True), "operating system"),
    f"{TRAIN}.image_reader.type": (reader("fs_opencv", color_mode="BGR"), "Pillow"),
    f"{TRAIN}.image_type": (dataset(image_type="cv2"), "Pillow"),
    f"{TRAIN}.reload_cfg": (dataset(reload_cfg={"mini_epoch": 2}), "packed"),
    f"{TRAIN}.random": (dataset(random=False), "sampler"),
}


@pytest.mark.parametrize("place", NOTED)
def test_what_changes_nothing_gets_one_note_with_the_reason(
    place: str, config: Config, write: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    change, reason = NOTED[place]
    change(config)
    path = write(config)
    (note,) = notes(path, capsys)
    assert f": {place}: " in note
    assert reason in note
    file, line = note.removeprefix("note: ").split(": ")[0].rsplit(":", 1)
    assert file == path
    assert place.rpartition(".")[2] in Path(path).read_text().splitlines()[int(line) - 1]


def test_values_that_ask_for_what_happens_anyway_get_no_note(
    config: Config, write: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    for change in (
        hook("train_val_logger", summary_writer="tensorboard"),
        transform("torch_randerase", num_splits=0),
        transform("normalize", inplace=False),
        reader("fs_pillow", memcached=False, image_dir=None),
        dataset(image_type="pil", random=True),
    ):
        change(config)
    assert notes(write(config), capsys) == []


def test_an_argument_that_stands_in_several_places_is_noted_once(
    config: Config, write: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    for source in ("train", "test"):
        config["dataset"][source]["dataset"]["kwargs"]["image_reader"]["kwargs"]["memcached"] = True
    assert len(notes(write(config), capsys)) == 1


def test_train_says_it_too(config: Config, write: Write, tmp_path: Path) -> None:
    transform("normalize", inplace=True)(config)
    assert main(["train", "--config", write(config), "--opts", "trainer.max_epoch=1"]) == 0
    log = (tmp_path / "run" / "train.log").read_text()
    assert log.count("inplace of normalize has no effect: ") == 1
