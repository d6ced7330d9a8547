"""``up.api``: what a notebook does, from images to a package."""

from __future__ import annotations

import doctest
import signal
from pathlib import Path

import pytest
import timm
import torch

import up.api
from tests.harness.photos import make_photos
from up.api import build_dataset, build_model, evaluate, finetune, load, train
from up.data.records import SampleKey
from up.engine.checkpoint import load_checkpoint
from up.errors import UserError
from up.models.adapter import published
from up.models.preprocessing import ImagePreprocessing
from up.models.resnets import resnet_custom

HANDLED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with images and weights, in which a run is trained once."""
    made = tmp_path_factory.mktemp("notebook")
    make_photos(made / "photos/train", {"cat": 12, "dog": 12})
    (made / "img.jpg").write_bytes((made / "photos/train/cat/0.png").read_bytes())
    torch.manual_seed(0)
    save(timm.create_model("test_resnet", num_classes=10), made / "weights.pth")
    return made


def save(network: torch.nn.Module, path: Path) -> None:
    """Weights of images so small that the photos keep their size."""
    small = ImagePreprocessing((3, 96, 96), (0.5, 0.5, 0.5), (0.25, 0.25, 0.25), "bilinear", 0.9)
    torch.save({"model": network.state_dict(), "preprocessing": small.as_record()}, path)


@pytest.fixture(autouse=True)
def _inside(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)


@pytest.mark.usefixtures("each_graph_once")
def test_the_docstring(monkeypatch: pytest.MonkeyPatch) -> None:
    """Word for word, with a narrow network under the name that it has."""
    narrow = {"block": "bottleneck", "layers": (1, 1, 1, 1), "width": 8}
    resnet50 = published(resnet_custom, "A ResNet of one narrow bottleneck a stage.", narrow)
    monkeypatch.setattr("up.models.resnets.resnet50", resnet50)
    torch.manual_seed(0)
    save(resnet50(), Path("r50.pth"))
    assert doctest.testmod(up.api, optionflags=doctest.ELLIPSIS).failed == 0


@pytest.mark.usefixtures("each_graph_once")
def test_a_notebook(capsys: pytest.CaptureFixture[str]) -> None:
    before = [signal.getsignal(number) for number in HANDLED]
    run = finetune("photos/train", model="test_resnet", weights="weights.pth", epochs=2, out="runs/cell")
    said = capsys.readouterr()
    assert "epoch 2/2" in said.out
    assert said.err == ""
    assert [signal.getsignal(number) for number in HANDLED] == before
    assert run.folder == Path("runs/cell")
    assert set(run.metrics) >= {"loss", "top1"}
    assert {line["phase"] for line in run.history} == {"train", "eval"}
    best = run.predict("img.jpg")
    assert best.name in ("cat", "dog")
    assert 0.5 <= best.score <= 1
    assert [each.name for each in run.predict(["img.jpg", "img.jpg"])] == [best.name] * 2
    assert run.export("model.tar").is_file()
    assert run.export("model.onnx").read_bytes()
    assert run.plot().size[0] > 100
    report = run.report()
    assert report.metrics["top1"] == pytest.approx(run.metrics["top1"])
    assert {file.name for file in report.files} >= {"metrics.json", "per_class.csv"}
    assert evaluate("runs/cell")["top1"] == report.metrics["top1"]
    saved = run.checkpoint.stat().st_mtime_ns
    again = finetune("photos/train", model="test_resnet", weights="weights.pth", epochs=2, out="runs/cell", progress=False)
    assert again.checkpoint.stat().st_mtime_ns == saved, "a finished run is not trained again"
    assert again.metrics == run.metrics == load("runs/cell").metrics


def test_the_yaml_repeats_the_call() -> None:
    finetune("photos/train", epochs=1, out="runs/a", progress=False)
    run = train("runs/a.yaml", ["saver.save_dir=runs/b"], progress=False)
    ours, theirs = (load_checkpoint(Path(name) / "ckpt_latest.pth")["model"] for name in ("runs/a", "runs/b"))
    assert run.folder == Path("runs/b")
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_pieces() -> None:
    run = finetune("photos/train", epochs=1, out="runs/pieces", progress=False)
    dataset = build_dataset(run.config)
    assert len(dataset) == 22
    assert torch.as_tensor(dataset[SampleKey(0, 0)]["gt"]) in (0, 1)
    net = build_model("runs/pieces.yaml").eval()
    assert net({"image": torch.zeros(2, 3, 32, 32)})["logits"].shape == (2, 2)
    trained = build_model(run.folder)
    assert not trained.training
    saved = load_checkpoint(run.checkpoint)["model"]
    assert all(torch.equal(own, saved[name]) for name, own in trained.state_dict().items())


def test_load_names_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"config\.yaml"):
        load(tmp_path)
    assert not any(tmp_path.iterdir())


def test_a_wrong_image_and_a_wrong_export() -> None:
    run = finetune("photos/train", epochs=1, out="runs/pieces", progress=False)
    Path("bad.jpg").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"bad\.jpg"):
        run.predict("bad.jpg")
    with pytest.raises(UserError, match=r"\.onnx"):
        run.export("model.pt")
