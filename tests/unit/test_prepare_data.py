"""tools/prepare_data.py on tiny archives of the published form."""

from __future__ import annotations

import io
import json
import pickle
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.harness.documented import tool
from tests.harness.facts import tells
from tests.harness.images import encoded, picture
from up.errors import UserError
from up.tasks.cls.data.tables import TableSpec, read_table

tools = tool("prepare_data")
CLASSES = {"cifar10": ["plane", "car"], "cifar100": ["apple", "bear", "cup"]}
COUNTS = {"cifar10": {"train": 10, "test": 4}, "cifar100": {"train": 6, "test": 3}}
FLOWERS = {"train": 3, "val": 3, "test": 5}


def packed(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def pixels(number: int, seed: int = 0) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).integers(0, 256, (number, 3072), dtype=np.uint8)


def pickled(value: object) -> bytes:
    return pickle.dumps(value, protocol=4)


def cifar(name: str) -> dict[str, bytes]:
    """The members of the archive; the batches of CIFAR-10 have two images each, one of each class, the test four."""
    if name == "cifar10":
        batches = {f"data_batch_{at}": (2, at) for at in range(1, 6)} | {"test_batch": (4, 9)}
        made = {at: pickled({b"data": pixels(n, seed), b"labels": [0, 1] * (n // 2)}) for at, (n, seed) in batches.items()}
        made["batches.meta"] = pickled({b"label_names": [each.encode() for each in CLASSES[name]]})
        return {f"cifar-10-batches-py/{member}": data for member, data in made.items()}
    made = {at: pickled({b"data": pixels(n, n), b"fine_labels": [0, 1, 2] * (n // 3)}) for at, n in (("train", 6), ("test", 3))}
    made["meta"] = pickled({b"fine_label_names": [each.encode() for each in CLASSES[name]], b"coarse_label_names": []})
    return {f"cifar-100-python/{member}": data for member, data in made.items()}


def lines(path: Path) -> list[list[str]]:
    return [line.rsplit(" ", 1) for line in path.read_text().splitlines()]


def nothing_in(folder: Path) -> bool:
    return not folder.exists()


def test_golden_counts() -> None:
    assert [tools.CIFAR[name][2] for name in ("cifar10", "cifar100")] == [{"train": 50_000, "test": 10_000}] * 2
    assert tools.FLOWERS_COUNTS == {"train": 1_020, "val": 1_020, "test": 6_149}


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_cifar(tmp_path: Path, name: str) -> None:
    packed(tmp_path / tools.CIFAR[name][0], cifar(name))
    out = tmp_path / "out"
    assert tools._CIFAR[name](tmp_path, out, COUNTS[name]) == COUNTS[name]
    assert (out / "classes.txt").read_text().split() == CLASSES[name]
    for part, number in COUNTS[name].items():
        listed = lines(out / f"{part}.txt")
        assert [int(label) for _, label in listed] == list(range(len(CLASSES[name]))) * (number // len(CLASSES[name]))
        assert all((out / image).is_file() for image, _ in listed)
    with Image.open(out / lines(out / "train.txt")[1][0]) as opened:
        first = pixels(2, 1) if name == "cifar10" else pixels(6, 6)
        assert np.array_equal(np.asarray(opened), first[1].reshape(3, 32, 32).transpose(1, 2, 0))
    table = read_table(TableSpec(str(out / "train.txt"), class_names=str(out / "classes.txt")))
    assert (table.num_classes, Path(table.path_of(0)).is_file()) == (len(CLASSES[name]), True)
    before = {path: path.stat().st_mtime_ns for path in (out / "images").rglob("*.png")}
    tools._CIFAR[name](tmp_path / tools.CIFAR[name][0], out, COUNTS[name])
    assert {path: path.stat().st_mtime_ns for path in (out / "images").rglob("*.png")} == before


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return (print, ("run",))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-200])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"cifar-10-batches-py/data_batch_3": None}, ("no cifar-10-batches-py/data_batch_3",)),
        ({"cifar-10-batches-py/test_batch": pickled({b"data": pixels(2), b"labels": [0, 1]})}, ("test", "2 images", "4")),
        ({"cifar-10-batches-py/test_batch": pickled({b"data": pixels(4), b"labels": [0] * 4})}, ("test", "2 of each of 2")),
        ({"cifar-10-batches-py/test_batch": pickled({b"data": pixels(4)[:, :9], b"labels": [0, 1] * 2})}, ("test", "3072")),
        ({"cifar-10-batches-py/test_batch": pickled({b"labels": [0] * 4})}, ("damaged", "data")),
        ({"cifar-10-batches-py/test_batch": pickled([1])}, ("test_batch", "list", "dictionary")),
        ({"cifar-10-batches-py/test_batch": pickled(Bomb())}, ("test_batch", "damaged", "print")),
        ({"cifar-10-batches-py/test_batch": b"\x80"}, ("test_batch", "damaged")),
    ],
)
def test_other_archives(tmp_path: Path, change: dict[str, bytes | None], said: tuple[str, ...]) -> None:
    members = {name: data for name, data in (cifar("cifar10") | change).items() if data is not None}
    archive = packed(tmp_path / "cifar-10-python.tar.gz", members)
    with pytest.raises(UserError) as raised:
        tools.cifar10(archive, tmp_path / "out", COUNTS["cifar10"])
    assert tells(str(raised.value), str(archive), *said)
    assert nothing_in(tmp_path / "out")


def test_mistakes_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    archive = packed(tmp_path / "cifar-100-python.tar.gz", cifar("cifar100"))
    (tmp_path / "text.tar.gz").write_text("no archive")
    out = ["--out", str(tmp_path / "out")]
    cases = [
        (["cifar10", str(archive)], "cifar-10-batches-py"),
        (["cifar100", str(archive)], "50,000"),
        (["cifar10", str(tmp_path)], "cifar-10-python.tar.gz"),
        (["cifar10", str(tmp_path / "text.tar.gz")], "damaged"),
        (["flowers102", str(tmp_path)], "102flowers.tgz"),
        (["folder", str(tmp_path / "none")], "none"),
        (["folder", str(tmp_path)], "CLASS"),
    ]
    for words, said in cases:
        assert tools.main([*words, *out]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert said in line
    cut(archive)
    assert tools.main(["cifar100", str(archive), *out]) == 2
    assert tells(capsys.readouterr().err, "truncated", "Fetch")
    assert nothing_in(tmp_path / "out")


@pytest.fixture
def flowers(tmp_path: Path) -> Path:
    scipy_io = pytest.importorskip("scipy.io")
    members = {f"jpg/image_{at:05d}.jpg": encoded(picture(20 + at, 16), "JPEG") for at in range(1, 12)}
    packed(tmp_path / "102flowers.tgz", {"jpg": b"", **members})
    scipy_io.savemat(tmp_path / "imagelabels.mat", {"labels": np.array([[1, 2, 3, 1, 2, 3, 1, 2, 3, 1, 2]])})
    sets = {"trnid": [[1, 2, 3]], "valid": [[4, 6, 5]], "tstid": [[7, 8, 9, 10, 11]]}
    scipy_io.savemat(tmp_path / "setid.mat", {name: np.array(each, dtype=np.uint16) for name, each in sets.items()})
    return tmp_path


def test_flowers(flowers: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert tools.flowers102(flowers, out, FLOWERS) == FLOWERS
    assert lines(out / "val.txt") == [[f"images/image_{at:05d}.jpg", label] for at, label in ((4, "0"), (6, "2"), (5, "1"))]
    assert len((out / "classes.txt").read_text().splitlines()) == 3
    assert (out / "images" / "image_00004.jpg").read_bytes() == encoded(picture(24, 16), "JPEG")
    assert len(tools._flower_names(102)) == len({*tools._flower_names(102)}) == 102


def test_other_flowers(flowers: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(UserError, match="imagelabels.mat"):
        tools.flowers102(flowers, out)
    (flowers / "setid.mat").write_bytes((flowers / "imagelabels.mat").read_bytes())
    with pytest.raises(UserError) as raised:
        tools.flowers102(flowers, out, FLOWERS)
    assert tells(str(raised.value), "setid.mat", "'trnid'", "labels")
    (flowers / "setid.mat").write_bytes(b"text")
    with pytest.raises(UserError, match="MATLAB"):
        tools.flowers102(flowers, out, FLOWERS)
    (flowers / "setid.mat").unlink()
    with pytest.raises(UserError, match=r"setid\.mat"):
        tools.flowers102(flowers, out, FLOWERS)
    assert nothing_in(out)


def test_flowers_of_a_truncated_archive(flowers: Path, tmp_path: Path) -> None:
    cut(flowers / "102flowers.tgz")
    with pytest.raises(UserError) as raised:
        tools.flowers102(flowers, tmp_path / "out", FLOWERS)
    assert tells(str(raised.value), "102flowers.tgz", "Fetch")
    assert nothing_in(tmp_path / "out")


def test_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photos = tmp_path / "my photos"
    for name, size in (("cat", 10), ("sea lion", 5)):
        (photos / name).mkdir(parents=True)
        for at in range(size):
            noise = np.random.default_rng([at, size]).integers(0, 256, (5, 5, 3), dtype=np.uint8)
            Image.fromarray(noise).resize((30, 30)).save(photos / name / f"{at} a.png")
    out = tmp_path / "out"
    assert tools.main(["folder", str(photos), "--out", str(out), "--share", "0.4"]) == 0
    assert str(photos) in capsys.readouterr().out
    train, val = lines(out / "train.txt"), lines(out / "val.txt")
    assert ([label for _, label in val].count("0"), [label for _, label in val].count("1")) == (4, 2)
    assert len({name for name, _ in [*train, *val]}) == 15
    assert all((photos / name).is_file() for name, _ in train)
    assert (out / "classes.txt").read_text().splitlines() == ["cat", "sea lion"]
    assert json.loads((out / "split.json").read_text())["validation"]["images"] == 6


def test_a_missing_archive_is_named_once(tmp_path: Path) -> None:
    archive = packed(tmp_path / tools.CIFAR["cifar10"][0], {})
    with pytest.raises(UserError) as raised:
        tools._CIFAR["cifar10"](tmp_path / "cifar-10-python.tgz", tmp_path / "out", COUNTS["cifar10"])
    assert tells(raised.value, f"cifar-10-python.tgz: no such file. Did you mean '{archive.name}'?")
    archive.unlink()
    with pytest.raises(UserError) as raised:
        tools._CIFAR["cifar10"](tmp_path, tmp_path / "out", COUNTS["cifar10"])
    assert tells(raised.value, f"{archive.name}: no such file. Name {archive.name}")
