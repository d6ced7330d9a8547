from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import up.deploy
from tests.harness import packages
from tests.harness.facts import each_tells, facts, tells
from up.__main__ import main
from up.bundle.answers import Floats, Outputs
from up.bundle.answers.pixels import UNSEEN
from up.bundle.archive import KESTREL_MEMBERS
from up.bundle.package import open_package
from up.bundle.predictor import package_predictor, prefetched
from up.data.bad_images import BadImage
from up.errors import UserError

RED, GREEN = packages.colour(250, 5, 5), packages.colour(5, 250, 5)


@pytest.fixture
def model(tmp_path: Path) -> up.deploy.Model:
    return up.deploy.load(packages.package(tmp_path))


def softmax(logits: np.ndarray) -> np.ndarray:
    raised = np.exp(logits)
    return raised / raised.sum()


def test_what_the_docs_promise(tmp_path: Path) -> None:
    RED.save(tmp_path / "a.png")
    model = up.deploy.load(packages.package(tmp_path))
    (answer,) = model.predict([tmp_path / "a.png"])
    best, second = answer.heads[0]
    assert (answer.file, best.name, best.label) == (str(tmp_path / "a.png"), "red", 1)
    pixels = (np.array([250, 5, 5]) / 255 - 0.5) / 0.25
    scores = softmax(packages.WEIGHTS @ pixels)
    assert best.score == pytest.approx(scores[1], abs=1e-5)
    assert second.score == pytest.approx(np.sort(scores)[-2], abs=1e-5)
    assert isinstance(model, up.deploy.Model)
    assert model.labels == [packages.LABELS]
    assert model.manifest["version"] == "1.2.3"


def test_every_kind_of_source(model: up.deploy.Model, tmp_path: Path) -> None:
    RED.save(tmp_path / "a.png")
    data = (tmp_path / "a.png").read_bytes()
    for one in (tmp_path / "a.png", str(tmp_path / "a.png"), data, RED, np.asarray(RED)):
        assert [answer.heads[0][0].name for answer in model.predict(one)] == ["red"]
    answers = model.predict([RED, data, np.asarray(GREEN)])
    assert [(answer.file, answer.heads[0][0].name) for answer in answers] == [
        ("image 0", "red"),
        ("image 1", "red"),
        ("image 2", "green"),
    ]
    one_by_one = up.deploy.load(tmp_path / "handmade_1.2.3.tar", batch_size=1)
    assert [answer.file for answer in one_by_one.predict([RED, GREEN, RED])] == ["image 0", "image 1", "image 2"]
    assert model.predict([]) == []


def test_scores_as_arrays(model: up.deploy.Model) -> None:
    red, green = model.scores([RED, GREEN])
    assert red[0].shape == (4,)
    assert red[0].argmax() == 1
    assert green[0].sum() == pytest.approx(1, abs=1e-6)
    ((alone,),), ((again,),) = model.scores(RED), model.scores(np.asarray(RED))
    assert np.array_equal(alone, red[0])
    assert np.array_equal(again, red[0])
    with pytest.raises(BadImage, match="image 1: not an image"):
        model.scores([RED, b"no image"])


def test_a_picture_that_ends_early(model: up.deploy.Model, tmp_path: Path) -> None:
    """Pillow opens it all the same, and only decoding shows it."""
    RED.save(tmp_path / "a.png")
    (tmp_path / "a.png").write_bytes((tmp_path / "a.png").read_bytes()[:-30])
    with Image.open(tmp_path / "a.png") as picture:
        answer, fine = model.predict([picture, RED])
    assert answer.error is not None
    assert answer.error.startswith("cannot be decoded: ")
    assert fine.error is None


def test_arrays(model: up.deploy.Model) -> None:
    batch = np.stack([np.asarray(RED), np.asarray(GREEN)])
    assert [answer.heads[0][0].name for answer in model.predict(batch)] == ["red", "green"]
    for wrong in (batch[0].astype(np.float32), batch[0, ..., 0], np.zeros((0, 4, 3), np.uint8)):
        (answer,) = model.predict(wrong)
        assert answer.error is not None
        assert tells(answer.error, wrong.dtype, wrong.shape, "uint8", "3")
    with pytest.raises(TypeError, match=facts("NoneType", "encoded", "Pillow")):
        model.predict([None])  # type: ignore[list-item]


@pytest.mark.parametrize("batch_size", [1, 2, 7, 100])
def test_a_bad_image_among_many_keeps_its_row(tmp_path: Path, batch_size: int) -> None:
    names = [f"{number:02}.png" for number in range(11)]
    for number, name in enumerate(names):
        (RED if number % 2 else GREEN).save(tmp_path / name)
    (tmp_path / names[6]).write_bytes(b"")
    predictor = package_predictor(open_package(packages.package(tmp_path)), batch_size=batch_size)
    answers = list(predictor.predict([tmp_path / name for name in names], threads=3))
    assert [Path(answer.file).name for answer in answers] == names
    assert [answer.error for answer in answers if answer.error] == ["empty file (0 bytes)"]
    found = [answer.heads[0][0].name for answer in answers if not answer.error]
    assert found == ["red" if number % 2 else "green" for number in range(11) if number != 6]


@pytest.mark.parametrize("batch_size", [1, 5])
def test_outputs_that_are_no_numbers_are_an_error_of_their_image(tmp_path: Path, batch_size: int) -> None:
    """As for rasters that say "no data" by the lowest number there is; JSON has no word for NaN."""
    real = package_predictor(open_package(packages.package(tmp_path)))
    rows = iter([[0, 1, 2, 3], [0, np.nan, 2, 3], [0, 1, np.inf, 3], [-np.inf, 1, 2, 3], [0, 1, 2, 3]])

    def run(images: Sequence[Floats]) -> Outputs:
        return {"scores": np.array([next(rows) for _ in images], dtype=np.float32)}

    predictor = replace(real, run=run, batch_size=batch_size)
    answers = list(predictor.predict([RED] * 5))
    assert [answer.error is None for answer in answers] == [True, False, False, True, True]
    assert tells(answers[1].error or "", "outputs", "finite")
    assert [answer.name for answer in answers if answer.error is None] == ["blue"] * 3


def test_only_bad_images(model: up.deploy.Model) -> None:
    assert each_tells(
        [answer.error for answer in model.predict([b"", b"x"])],
        ("empty file (0 bytes)",),
        ("1", "JPEG", "PNG", "WEBP", "BMP", "PPM", "JPEG2000"),
    )


def test_no_such_provider(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=facts("--provider", "'cda'", "onnxruntime-gpu")):
        up.deploy.load(packages.package(tmp_path), provider="cda")


def test_a_provider_that_cannot_be_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """onnxruntime would go on with the CPU without a word, and the user would wonder why it is slow."""
    available = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: available)
    monkeypatch.setattr("onnxruntime.InferenceSession.get_providers", lambda _: available[1:])
    package = packages.package(tmp_path)
    assert up.deploy.load(package).predict(RED)[0].error is None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the runtime's own, of a provider that this build does not have
        with pytest.raises(UserError, match=facts("--provider", "cannot", "started")):
            up.deploy.load(package, provider="cuda")


def test_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    package = packages.package(tmp_path)
    for name, image in (("a.png", RED), ("b.png", GREEN)):
        image.save(tmp_path / name)
    words = ["predict", "--bundle", str(package), "--format", "jsonl", "--topk", "1", "--benchmark", str(tmp_path)]
    assert main(words) == 0
    said = capsys.readouterr()
    answers = [json.loads(line) for line in said.out.splitlines()]
    assert [answer["predictions"][0]["name"] for answer in answers] == ["red", "green"]
    assert said.err.startswith("2 images in ")
    assert said.err.endswith(" images/s\n")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "predict needs either --bundle FILE.tar, or FILE.yaml"),
        (["--bundle", "x.tar", "--config", "c.yaml"], "predict needs either --bundle"),
        (["--bundle", "x.tar", "--ckpt", "c.pth"], "--bundle: a package has its own weights and settings"),
        (["--bundle", "x.tar"], "--bundle x.tar: no such file"),
    ],
)
def test_wrong_words(words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    RED.save(tmp_path / "a.png")
    assert main(["predict", str(tmp_path / "a.png"), *words]) == 2
    assert capsys.readouterr().err.startswith(message)


@pytest.mark.parametrize(
    "code",
    [
        "import up.deploy, sys; up.deploy.load({package!r}).predict({image!r})",
        "import sys; from up.__main__ import main; assert main(['predict', '--bundle', {package!r}, {image!r}]) == 0",
        "import sys; from up.__main__ import main; assert main(['verify', {package!r}]) == 0",
        "import sys; from up.__main__ import main; assert main(['predict', '--bundle', {image!r}, {image!r}]) == 2",
    ],
)
def test_torch_is_not_imported(code: str, tmp_path: Path) -> None:
    RED.save(tmp_path / "a.png")
    (tmp_path / "meta.txt").write_text("a.png 1\n")
    words = {"package": packages.package(tmp_path), "image": tmp_path / "a.png", "meta": tmp_path / "meta.txt"}
    filled = code.format(**{name: str(path) for name, path in words.items()})
    ask = "; print(sorted(name for name in sys.modules if name.split('.')[0] in ('torch', 'torchvision', 'timm')))"
    done = subprocess.run([sys.executable, "-c", filled + ask], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("form", ["bundle", "strict", "graph"])
def test_nothing_but_the_runtime_is_needed(form: str, tmp_path: Path) -> None:
    """What exports and trains need not be there: neither for a package, nor for a strict one, nor for a lone graph."""
    RED.save(tmp_path / "a.png")
    members = packages.members()
    kept = members if form == "bundle" else {name: members[name] for name in KESTREL_MEMBERS}
    package = packages.package(tmp_path, kept)
    if form == "graph":
        package = tmp_path / "alone.onnx"
        package.write_bytes(members["model.onnx"])
    absent = "torch", "torchvision", "timm", "onnx", "onnxscript", "yaml", "tensorboardX"
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({absent}))\n"
        f"import up.deploy; print(up.deploy.load({str(package)!r}).predict({str(tmp_path / 'a.png')!r})[0].heads[0][0].name)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "red\n"


def test_nothing_is_recorded_of_what_was_predicted(tmp_path: Path) -> None:
    """onnxruntime keeps a record of the graphs it runs in the user's home, to be sent away, unless it is told not to."""
    home, image = tmp_path / "home", tmp_path / "a.png"
    home.mkdir()
    RED.save(image)
    words = [sys.executable, "-m", "up", "predict", "--bundle", str(packages.package(tmp_path)), str(image)]
    kept = {name: value for name, value in os.environ.items() if name not in ("ORT_DISABLE_TELEMETRY", "XDG_CACHE_HOME")}
    environment = {**kept, "HOME": str(home), "PYTHONDONTWRITEBYTECODE": "1"}
    subprocess.run(words, check=True, capture_output=True, env=environment)
    assert list(home.rglob("*")) == []


def test_no_more_is_loaded_than_asked_for() -> None:
    """A million images must not be decoded into memory while the graph is busy with the first."""
    started: list[int] = []
    lock = threading.Lock()

    def load(item: int) -> int:
        with lock:
            started.append(item)
        return item * item

    consumer = prefetched(load, iter(range(100)), threads=3, limit=5)
    assert next(consumer) == (0, 0)
    assert next(consumer) == (1, 1)
    assert len(started) <= 7
    assert list(consumer) == [(item, item * item) for item in range(2, 100)]


def test_an_error_while_loading_is_raised_in_its_place() -> None:
    def load(item: int) -> int:
        return 1 // (item - 2)

    consumer = prefetched(load, range(5), threads=2, limit=4)
    assert [next(consumer), next(consumer)] == [(0, -1), (1, -1)]
    with pytest.raises(ZeroDivisionError):
        next(consumer)


def test_masks_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever the answer is, it is checked, predicted, listed and drawn by the same commands."""
    package = packages.package(tmp_path, packages.members(*packages.masks()))
    image = packages.colour(250, 5, 5, size=(16, 16))
    image.paste((5, 250, 5), (0, 0, 16, 4))
    image.save(tmp_path / "a.png")
    words = ["predict", "--bundle", str(package), str(tmp_path / "a.png")]
    assert main(["verify", str(package)]) == 0
    capsys.readouterr()
    assert main([*words, "--format", "jsonl", "--vis-dir", str(tmp_path / "out"), "--mask-dir", str(tmp_path / "masks")]) == 0
    (row,) = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert row["mask"] == str(tmp_path / "masks" / "a.png")
    found = row["predictions"]
    assert [each["name"] for each in found][:2] == ["red", "green"]
    assert sum(each["pixels"] for each in found) == 14 * 14
    with Image.open(tmp_path / "out" / "a.png") as drawn:
        assert drawn.size == (16, 16)
    mask = np.asarray(Image.open(tmp_path / "masks" / "a.png"))
    assert (mask.shape, mask[0, 0], mask[13, 0]) == ((16, 16), 2, 1)
    assert (mask[14:] == UNSEEN).all()  # cut away by the crop
    assert main([*words, "--format", "csv"]) == 0
    assert capsys.readouterr().out.startswith("file,label,name,pixels,share,error\n")
    assert main(words) == 0
    assert "red" in capsys.readouterr().out
    (scores,) = up.deploy.load(package).scores(tmp_path / "a.png")
    assert scores[0].shape == (4, 8, 8)
