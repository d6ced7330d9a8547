"""``up data cache``: built once, read in place of the files, refused where it does not fit; the training stays the same."""

from __future__ import annotations

import errno
import json
import os
import pickle
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from tests.harness.facts import tells
from tests.harness.images import encoded, picture
from tests.harness.ranks import Cluster, Server, start
from tests.harness.refusals import refused
from tests.harness.runs import everything_on, records, times_resumed, train
from tests.harness.states import assert_same, checkpoint
from up.__main__ import main
from up.build.data import build_dataset
from up.build.experiment import load_experiment
from up.build.image_cache import CacheSettings, build_cache
from up.data.cache import IMAGES, INDEX, MANIFEST, shrunk
from up.data.dataset import KeyedDataset
from up.data.readers import PillowReader
from up.data.records import SampleKey
from up.errors import StorageError, UserError
from up.tasks.cls.data.tables import TableSpec, read_table

Config = dict[str, Any]
Write = Callable[[Config], str]


def kwargs(config: Config, source: str = "train") -> Config:
    found: Config = config["dataset"][source]["dataset"]["kwargs"]
    return found


@pytest.fixture
def own(config: Config, tmp_path: Path) -> Config:
    """The configuration, on a copy of its images that a test may change, with a cache for both data sets."""
    folder = tmp_path / "images"
    shutil.copytree(kwargs(config)["image_reader"]["kwargs"]["image_dir"], folder)
    for source, name in (("train", "train.txt"), ("test", "val.txt")):
        kwargs(config, source)["image_reader"]["kwargs"]["image_dir"] = str(folder)
        kwargs(config, source).update(meta_file=str(folder / name), cache=str(tmp_path / "cache" / source))
    return config


def build(path: str, *words: str, capsys: pytest.CaptureFixture[str]) -> list[Config]:
    capsys.readouterr()
    assert main(["data", "cache", path, "--json", "--workers", "1", *words]) == 0
    reports: list[Config] = json.loads(capsys.readouterr().out)
    return reports


def test_a_training_from_the_cache_is_that_from_the_files(
    own: Config, write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Images of 32 x 32 are not resized: the same weights and metrics, also when a run is resumed on the other one."""
    everything_on(own)
    path = write(own)
    facts = [(each["split"], each["images"], each["resized"]) for each in build(path, "--workers", "2", capsys=capsys)]
    assert facts == [("train", 46, 0), ("test", 13, 0)]
    assert main(["check", path]) == 0
    assert train(path, "trainer.max_epoch=2") == 0
    for source in ("train", "test"):
        del kwargs(own, source)["cache"]
    path = write(own)
    assert train(path, f"saver.save_dir={tmp_path / 'files'}") == 0
    assert_same(checkpoint(tmp_path / "run")["model"], checkpoint(tmp_path / "files")["model"])
    assert records(tmp_path / "run", "eval")[-1]["top1"] == records(tmp_path / "files", "eval")[-1]["top1"]


def larger(own: Config, sizes: tuple[int, int] = (80, 60)) -> None:
    """Put larger images in place of those of the training and the test."""
    encoded_picture = encoded(picture(*sizes), "PNG")
    for path in Path(kwargs(own)["image_reader"]["kwargs"]["image_dir"]).glob("*.png"):
        path.write_bytes(encoded_picture)


def listed(own: Config, number: int) -> Path:
    """Leave only the first images in the list of the training; returns the folder of the images."""
    path = Path(kwargs(own)["meta_file"])
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:number]))
    return path.parent


def test_a_resumed_run_is_the_unbroken_one(own: Config, write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """That the samples of every form follow from their key alone is held by ``test_samples_of_a_part_are_those_of_the_whole``."""
    everything_on(own)
    larger(own)
    path = write(own)
    assert [each["resized"] for each in build(path, "--form", "jpeg", "--short-side", "40", capsys=capsys)] == [46, 13]
    assert train(path, f"saver.save_dir={tmp_path / 'unbroken'}", "trainer.max_epoch=2") == 0
    assert train(path, "trainer.stop_epoch=1", "trainer.max_epoch=2") == 75
    assert train(path, "trainer.max_epoch=2", "dataset.train.dataloader.kwargs.num_workers=2") == 0
    assert times_resumed(tmp_path / "run") == 1
    assert_same(checkpoint(tmp_path / "run")["model"], checkpoint(tmp_path / "unbroken")["model"])
    log = (tmp_path / "run" / "train.log").read_text()
    assert tells(log, str(tmp_path / "cache" / "train"), "46", "40", "jpeg")


def test_another_form_of_the_images_is_another_data_set(
    own: Config, write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    larger(own)
    path = write(own)
    build(path, "--short-side", "40", capsys=capsys)
    assert train(path, "trainer.stop_epoch=1") == 75
    build(path, "--short-side", "36", capsys=capsys)
    said = refused(["train", path], capsys)
    assert tells("\n".join(said), "data")


@pytest.mark.parametrize("form", ["rgb", "jpeg"])
def test_pixels_are_not_decoded_at_a_smaller_scale(own: Config, write: Write, tmp_path: Path, capsys: Any, form: str) -> None:
    """As ``fast_decode`` decodes files for training: from pixels they are other images."""
    photo, folder = encoded(picture(80, 60), "JPEG"), Path(kwargs(own)["image_reader"]["kwargs"]["image_dir"])
    for path in folder.glob("*.png"):
        path.write_bytes(photo)
    crop = {"type": "torch_random_resized_crop", "kwargs": {"size": 16, "scale": [0.9, 1.0]}}
    for source in ("train", "test"):
        kwargs(own, source)["image_reader"]["kwargs"]["fast_decode"] = True
    kwargs(own)["transformer"][0] = crop
    build(write(own), "--form", form, "--short-side", "100", capsys=capsys)
    experiment = load_experiment(Path(write(own)))
    cached = build_dataset(experiment, "train")
    del kwargs(own)["cache"]
    files = build_dataset(load_experiment(Path(write(own))), "train")
    key = SampleKey(epoch=0, index=3)
    is_equal = torch.equal(cached[key].image, files[key].image)
    assert is_equal == (form == "jpeg")
    assert (cached.fingerprint() == files.fingerprint()) == is_equal
    assert any("fast_decode" in note for note in cached.notes) != is_equal
    assert not any("fast_decode" in note for note in build_dataset(experiment, "test").notes)


def test_a_cache_that_is_built_again_during_a_run_changes_nothing_in_it(own: Config, write: Write, capsys: Any) -> None:
    """Each process of a loader read the images at its first one, with the places of images that the run had found at its start."""
    larger(own)
    path = write(own)
    build(path, "--short-side", "40", capsys=capsys)
    before, data = (build_dataset(load_experiment(Path(path)), "train") for _ in range(2))
    keys = [SampleKey(epoch=0, index=index) for index in (0, 7, 45)]
    images = [before[key].image for key in keys]
    sent = pickle.dumps(data)  # to a process that is spawned
    build(path, "--short-side", "36", capsys=capsys)
    assert all(torch.equal(data[key].image, image) for key, image in zip(keys, images, strict=True))
    with pytest.raises(UserError, match="built again"):
        pickle.loads(sent)


def test_two_ranks_are_one(own: Config, cluster: Callable[[], Cluster], write: Write, tmp_path: Path, capsys: Any) -> None:
    own["net"][0]["kwargs"]["normalize"] = {"type": "gn", "kwargs": {"num_groups": 4}}
    build(write(own), capsys=capsys)
    runs = cluster()
    assert train(runs.path, f"saver.save_dir={tmp_path / 'run1'}") == 0
    runs.run(f"saver.save_dir={tmp_path / 'run2'}")
    one, two = (checkpoint(tmp_path / f"run{world}") for world in (1, 2))
    assert two["metrics"] == pytest.approx(one["metrics"], abs=1e-4)
    for name, tensor in one["model"].items():
        np.testing.assert_allclose(two["model"][name], tensor, atol=1e-5)


@pytest.mark.parametrize("reader", ["fs_pillow", "fs_turbo"])
@pytest.mark.parametrize("mode", ["RGB", "BGR", "GRAY"])
@pytest.mark.parametrize(("form", "most", "mean"), [("rgb", 0, 0), ("yuv420", 12, 4), ("jpeg", 12, 4)])
def test_images_of_every_form(
    own: Config, write: Write, tmp_path: Path, capsys: Any, reader: str, mode: str, form: str, most: int, mean: float
) -> None:
    """RGB and a single channel are those of the resized image; smaller images are never enlarged, and then exact as JPEG too."""
    folder = listed(own, 6)
    for number in range(6):
        path, sizes = folder / f"train {number}.png", [(81, 57), (57, 81), (30, 20)][number % 3]
        rows, columns = np.mgrid[0 : sizes[1], 0 : sizes[0]]
        smooth = np.stack([rows * 250 / sizes[1], columns * 250 / sizes[0], 250 - rows - columns], axis=-1)
        Image.fromarray(smooth.astype(np.uint8)).save(path)
    for source in ("train", "test"):
        kwargs(own, source)["image_reader"] = {"type": reader, "kwargs": {"image_dir": str(folder), "color_mode": mode}}
        kwargs(own, source)["transformer"] = []
    path = write(own)
    build(path, "--split", "train", "--form", form, "--short-side", "41", capsys=capsys)
    cached = build_dataset(load_experiment(Path(path)), "train")
    del kwargs(own)["cache"]
    plain = build_dataset(load_experiment(Path(write(own))), "train")
    for index in range(6):
        image, expected = cached.read(index).image, shrunk(plain.read(index).image, 41)
        assert type(image) is type(expected)
        levels, wanted = (np.asarray(each).astype(int) for each in (image, expected))
        difference = np.abs(levels - wanted)
        exact = form == "rgb" or (form == "jpeg" and index % 3 == 2) or (form == "yuv420" and mode == "GRAY")
        assert difference.max() <= (0 if exact else most)
        assert difference.mean() <= (0 if exact else mean)
        assert levels.shape == wanted.shape


def test_a_second_build_changes_nothing(own: Config, write: Write, tmp_path: Path, capsys: Any) -> None:
    path = write(own)
    assert all(each["built"] for each in build(path, capsys=capsys))
    before = os.stat(tmp_path / "cache" / "train" / IMAGES)
    assert not any(each["built"] for each in build(path, capsys=capsys))
    assert os.stat(tmp_path / "cache" / "train" / IMAGES) == before
    assert [each["built"] for each in build(path, "--split", "test", "--form", "yuv420", capsys=capsys)] == [True]


def test_the_number_of_workers_does_not_change_the_file(own: Config, write: Write, tmp_path: Path, capsys: Any) -> None:
    path = write(own)
    build(path, "--out", str(tmp_path / "two"), "--workers", "2", capsys=capsys)
    build(path, "--out", str(tmp_path / "one"), capsys=capsys)
    for name in (IMAGES, INDEX, MANIFEST):
        assert (tmp_path / "one" / "train" / name).read_bytes() == (tmp_path / "two" / "train" / name).read_bytes()


@pytest.mark.parametrize("given", ["folder", "list"])
def test_a_folder_and_a_list_without_a_yaml_file(own: Config, write: Write, tmp_path: Path, capsys: Any, given: str) -> None:
    """The cache of a folder has the images of every list in it."""
    folder = kwargs(own)["image_reader"]["kwargs"]["image_dir"]
    words = {"folder": [folder], "list": [kwargs(own)["meta_file"], "--image-dir", folder]}[given]
    reports = build(*words, "--out", str(tmp_path / "cache" / "train"), capsys=capsys)
    assert [each["images"] for each in reports] == [{"folder": 59, "list": 46}[given]]
    kwargs(own, "test").pop("cache")
    assert main(["check", write(own)]) == 0
    assert train(write(own), "trainer.max_iter=1") == 0


def test_the_line_that_reads_a_cache_is_yaml(own: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "photos #2: small")
    assert main(["data", "cache", kwargs(own)["image_reader"]["kwargs"]["image_dir"], "--out", out]) == 0
    line = capsys.readouterr().out.splitlines()[-1]
    assert yaml.safe_load(line[line.index("cache: ", line.index("kwargs:")) :]) == {"cache": out}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--image-dir", "photos"], ("--image-dir", "image_reader")),
        (["--reader", "fs_cv2"], ("--reader", "image_reader")),
        (["--quality", "97"], ("--quality", "--form jpeg")),
    ],
)
def test_what_would_have_no_effect_is_refused(
    own: Config, write: Write, tmp_path: Path, capsys: Any, words: list[str], said: tuple[str, ...]
) -> None:
    assert tells("\n".join(refused(["data", "cache", write(own), *words], capsys, tmp_path)), *said)


def test_killed_builds_leave_nothing_that_looks_complete(
    own: Config, write: Write, server: Server, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, capsys: Any
) -> None:
    """SIGKILL as soon as the file of the images grows; a later build replaces what is left."""
    larger(own, (500, 500))
    path = write(own)
    words = ["data", "cache", path, "--workers", "1", "--split", "train", "--short-side", "500"]
    folder = tmp_path / "cache" / "train"
    (process,) = start(server, tmp_path_factory.mktemp("said"), words, world=1).ranks
    deadline = time.monotonic() + 120
    while not any(each.stat().st_size for each in folder.glob(f".tmp-*{IMAGES}")) and time.monotonic() < deadline:
        assert process.poll() is None, process.said
        time.sleep(0.01)
    process.send(signal.SIGKILL)
    process.wait()
    assert folder.is_dir()
    assert not (folder / MANIFEST).exists()
    said = refused(["train", path], capsys, tmp_path)
    assert len(said) == 1
    assert tells(said[0], "config.yaml:", "cache", "up data cache")
    del kwargs(own, "test")["cache"]
    build(path, "--split", "train", "--short-side", "40", capsys=capsys)
    assert not list(folder.glob(".tmp-*"))
    assert main(["check", write(own)]) == 0


def changed(own: Config, tmp_path: Path) -> Iterator[tuple[str, list[str]]]:
    folder, cache = Path(kwargs(own)["image_reader"]["kwargs"]["image_dir"]), tmp_path / "cache" / "train"
    image = folder / "train 3.png"
    before = image.read_bytes()
    picture(40, 40).save(image)
    yield "another size", ["train.txt:4", "train 3.png", "bytes"]
    image.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
    yield "another content", ["train.txt:4", "train 3.png", "content"]
    image.unlink()
    yield "gone", ["train.txt:4", "train 3.png"]
    image.write_bytes(before)
    with (folder / "train.txt").open("a") as file:
        file.write("val 0.png 1\n")
    yield "another list", ["train.txt:47", "val 0.png", "1 of 47"]
    (folder / "train.txt").write_text("".join((folder / "train.txt").read_text().splitlines(keepends=True)[:-1]))
    kwargs(own)["image_reader"]["kwargs"]["background"] = "white"
    yield "another reader", ["background", "255"]
    del kwargs(own)["image_reader"]["kwargs"]["background"]
    manifest = (cache / MANIFEST).read_text()
    (cache / MANIFEST).write_text(manifest.replace('"version": 1', '"version": 99'))
    yield "another version", ["99", "1"]
    (cache / MANIFEST).write_text("{")
    yield "a damaged manifest", [MANIFEST]
    (cache / MANIFEST).write_text(manifest)
    index = (cache / INDEX).read_bytes()
    (cache / INDEX).write_bytes(index[:-1] + bytes([index[-1] ^ 1]))
    yield "a damaged index", [INDEX, "sha256"]
    (cache / INDEX).write_bytes(index)
    os.truncate(cache / IMAGES, 1000)
    yield "a truncated file", [IMAGES, "1,000 bytes"]
    (cache / IMAGES).unlink()
    yield "a missing file", [IMAGES, "incomplete"]
    shutil.rmtree(cache)
    yield "no cache", [str(cache)]


def test_what_does_not_fit_is_one_line(own: Config, write: Write, tmp_path: Path, capsys: Any) -> None:
    """The same from ``check`` and ``train``, at the line of the YAML file, with the command that builds it."""
    build(write(own), capsys=capsys)
    for case, facts in changed(own, tmp_path):
        path = write(own)
        line = 1 + [each.strip().startswith("cache:") for each in Path(path).read_text().splitlines()].index(True)
        for command in ("check", "train"):
            said = refused([command, path], capsys, tmp_path)
            assert len(said) == 1, case
            assert tells(said[0], f"config.yaml:{line}", "dataset.train.dataset.kwargs.cache", "up data cache", *facts), case


def test_a_copy_with_other_times_is_the_same_data(own: Config, write: Write, tmp_path: Path, capsys: Any) -> None:
    path = write(own)
    build(path, capsys=capsys)
    moved = tmp_path / "moved"
    shutil.copytree(kwargs(own)["image_reader"]["kwargs"]["image_dir"], moved, copy_function=shutil.copyfile)
    for source in ("train", "test"):
        kwargs(own, source)["image_reader"]["kwargs"]["image_dir"] = str(moved)
    assert main(["check", write(own)]) == 0


def test_a_copy_of_a_damaged_image_is_the_same_too(own: Config, write: Write, tmp_path: Path, capsys: Any) -> None:
    """It is repaired when its content is another one."""
    image = Path(kwargs(own)["image_reader"]["kwargs"]["image_dir"]) / "train 5.png"
    whole = image.read_bytes()
    image.write_bytes(bytes(len(whole)))
    kwargs(own).update(on_bad_image="skip", max_bad=2)
    path = write(own)
    assert [each["bad"] for each in build(path, "--split", "train", capsys=capsys)] == [1]
    os.utime(image, (1, 1))
    assert len(build_dataset(load_experiment(Path(path)), "train")) == 46
    image.write_bytes(whole)
    with pytest.raises(UserError, match="train 5.png"):
        build_dataset(load_experiment(Path(path)), "train")


def test_bad_images(own: Config, write: Write, tmp_path: Path, capsys: Any) -> None:
    """``raise`` names them and leaves nothing; ``skip`` replaces them in training as from the files."""
    folder = Path(kwargs(own)["image_reader"]["kwargs"]["image_dir"])
    (folder / "train 5.png").write_bytes(b"")
    path = write(own)
    said = refused(["data", "cache", path, "--workers", "1"], capsys, tmp_path)
    assert tells("\n".join(said), "train.txt:6", "train 5.png", "0 bytes", "skip")
    kwargs(own)["on_bad_image"] = "skip"
    path = write(own)
    said = refused(["data", "cache", path, "--workers", "1"], capsys, tmp_path)
    assert tells("\n".join(said), "train.txt:6", "1 of 46", "max_bad")
    kwargs(own)["max_bad"] = 2
    assert [each["bad"] for each in build(write(own), capsys=capsys)] == [1, 0]
    assert train(write(own), "trainer.max_epoch=1") == 0
    del kwargs(own)["cache"]
    assert train(write(own), "trainer.max_epoch=1", f"saver.save_dir={tmp_path / 'files'}") == 0
    assert_same(checkpoint(tmp_path / "run")["model"], checkpoint(tmp_path / "files")["model"])


def test_a_complete_cache_with_more_bad_images_than_allowed_is_not_accepted(
    own: Config, write: Write, tmp_path: Path, capsys: Any
) -> None:
    (Path(kwargs(own)["image_reader"]["kwargs"]["image_dir"]) / "train 5.png").write_bytes(b"")
    kwargs(own).update(on_bad_image="skip", max_bad=1)
    path = write(own)
    assert [(each["bad"], each["built"]) for each in build(path, "--split", "train", capsys=capsys)] == [(1, True)]
    command = ["data", "cache", path, "--split", "train", "--workers", "1"]
    for words in (["--on-invalid", "raise"], ["-o", "dataset.train.dataset.kwargs.max_bad=0"]):
        said = refused([*command, *words], capsys, tmp_path / "cache")
        assert tells("\n".join(said), "train.txt:6", "train 5.png")
    assert [(each["bad"], each["built"]) for each in build(path, "--split", "train", capsys=capsys)] == [(1, False)]


def test_any_number_of_bad_images_is_left_out_of_a_folder(own: Config, tmp_path: Path, capsys: Any) -> None:
    """``max_bad`` is that of the training."""
    folder = Path(kwargs(own)["image_reader"]["kwargs"]["image_dir"])
    for number in (3, 5):
        (folder / f"train {number}.png").write_bytes(b"")
    words = ["--out", str(tmp_path / "of folder"), "--on-invalid", "skip"]
    assert [each["bad"] for each in build(str(folder), *words, capsys=capsys)] == [2]


class Failing(PillowReader):
    """Cannot read one image, for a reason of its own."""

    def __init__(self, error: Exception, image_dir: str) -> None:
        super().__init__(image_dir=image_dir)
        self.error = error

    def __call__(self, source: str | bytes, name: str | None = None) -> Any:
        if "train 5.png" in f"{source!r} {name}":
            raise self.error
        return super().__call__(source, name)


@pytest.mark.parametrize(
    ("error", "expected", "words"),
    [
        (OSError("no such layer"), UserError, ["no such layer", "--on-invalid"]),
        (OSError(errno.EIO, "Input/output error"), StorageError, ["Input/output error"]),
        (EOFError("ran out"), EOFError, ["ran out"]),
    ],
    ids=["plain", "disk", "bug"],
)
def test_what_a_reader_of_ones_own_raises(
    own: Config, tmp_path: Path, error: Exception, expected: type[Exception], words: list[str]
) -> None:
    folder = kwargs(own)["image_reader"]["kwargs"]["image_dir"]
    files = read_table(TableSpec(kwargs(own)["meta_file"], "imagenet", folder))
    with pytest.raises(expected) as raised:
        build_cache(files, Failing(error, folder), tmp_path / "new", CacheSettings(), lambda batches, number: batches)
    said = "\n".join([str(raised.value), *getattr(raised.value, "__notes__", ())])
    assert tells(said, *words)
    assert "train 5.png" in said
    assert not (tmp_path / "new").exists()


def test_a_file_in_the_place_of_the_folder_is_named(own: Config, write: Write, tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "taken").write_text("")
    said = refused(["data", "cache", write(own), "--out", str(tmp_path / "taken")], capsys, tmp_path)
    assert tells("\n".join(said), "taken", "is a file", "--out")


def test_a_full_disk_is_seen_before_the_start(
    own: Config, write: Write, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("up.engine.rows.disk_usage", lambda _: shutil._ntuple_diskusage(10, 10, 100_000))
    assert main(["data", "cache", write(own)]) == 74
    said = capsys.readouterr().err
    assert tells(said, "100 kB", "--out", "yuv420")
    assert not (tmp_path / "cache").exists()


WRONG: dict[str, tuple[list[str], list[str]]] = {
    "no subcommand": ([], []),
    "an unknown one": (["cachee"], ["cachee", "cache"]),
    "nothing to cache": (["cache"], ["YAML"]),
    "two": (["cache", "a", "b"], ["one"]),
    "a folder without --out": (["cache", "{images}"], ["--out"]),
    "a split of a folder": (["cache", "{images}", "--out", "o", "--split", "train"], ["--split"]),
    "a quality that loses": (["cache", "{images}", "--out", "o", "--quality", "50"], ["50"]),
    "no such folder": (["cache", "nowhere", "--out", "o"], ["nowhere"]),
    "a reader of floats": (["cache", "{images}", "--out", "{out}", "--reader", "fs_multichannel"], ["channels"]),
    "another folder": (["cache", "{images}", "--out", "{images}"], ["not an image cache", "--out"]),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_uses_are_one_line(own: Config, tmp_path: Path, capsys: Any, case: str) -> None:
    words, facts = WRONG[case]
    folder = kwargs(own)["image_reader"]["kwargs"]["image_dir"]
    said = refused(["data", *(word.format(images=folder, out=tmp_path / "out") for word in words)], capsys, tmp_path)
    assert len(said) <= 1
    assert tells("\n".join(said), *facts)


def test_parts_of_images_are_read_from_their_files(own: Config, write: Write, tmp_path: Path, capsys: Any) -> None:
    build(write(own), capsys=capsys)
    lines = [{"filename": f"train {n}.png", "instances": [{"bbox": [0, 0, 32, 32], "label": 1 + n % 3}]} for n in range(6)]
    (tmp_path / "boxes.json").write_text("\n".join(map(json.dumps, lines)))
    kwargs(own).update(meta_type="custom_det", meta_file=str(tmp_path / "boxes.json"), parser_info={"min_size": 1})
    path = write(own)
    for command in (["check", path], ["data", "cache", path, "--split", "train"]):
        said = refused(command, capsys, tmp_path)
        assert len(said) == 1
        assert tells(said[0], "config.yaml:", "parts of")


def test_images_of_floats_are_read_from_their_files(own: Config, write: Write, tmp_path: Path, capsys: Any) -> None:
    kwargs(own)["image_reader"].update({"type": "fs_multichannel", "kwargs": {"channels": 3}})
    said = refused(["data", "cache", write(own), "--split", "train"], capsys, tmp_path)
    assert len(said) == 1
    assert tells(said[0], "config.yaml:", "image_reader", "MultiChannelReader")


@pytest.mark.parametrize("form", ["rgb", "yuv420", "jpeg"])
@pytest.mark.parametrize("reader", ["fs_pillow", "fs_turbo"])
@pytest.mark.parametrize("mode", ["RGB", "GRAY"])
def test_samples_of_a_part_are_those_of_the_whole(
    own: Config, write: Write, capsys: pytest.CaptureFixture[str], form: str, reader: str, mode: str
) -> None:
    """The crop that is cut out of a block, at odd corners too, is the crop of the whole image; a file is not read."""
    larger(own, (83, 61))
    folder = str(listed(own, 12))
    kwargs(own)["image_reader"] = {"type": reader, "kwargs": {"image_dir": folder, "color_mode": mode}}
    kwargs(own)["transformer"] = [{"type": "torch_random_resized_crop", "kwargs": {"size": 24, "scale": [0.1, 0.5]}}]
    path = write(own)
    build(path, "--split", "train", "--form", form, "--short-side", "45", capsys=capsys)
    cached = build_dataset(load_experiment(Path(path)), "train")
    assert isinstance(cached, KeyedDataset)
    for each in Path(folder).glob("*.png"):
        each.unlink()
    for index in range(12):
        key = SampleKey(1, index)
        image = cached[key].image
        torch.manual_seed(key.seed(7))
        whole = cached.transforms[0](cached.read(index).image)
        expected = torch.from_numpy(np.array(whole)).permute(2, 0, 1) if isinstance(whole, Image.Image) else whole
        assert torch.equal(image, expected)
