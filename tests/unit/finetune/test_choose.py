"""Choices of a fine-tuning: which network, size, length and rates for which images, weights and machine."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from tests.harness.facts import tells
from tests.harness.photos import make_photos
from up.config.nodes import read_plain
from up.errors import UserError
from up.finetune import networks
from up.finetune.choose import Choices, FinetuneRequest, Machine, choose
from up.finetune.images import look_into
from up.finetune.networks import network_for
from up.finetune.recipe import meta_files, yaml_of

CPU = Machine("cpu", 4)
Chosen = Callable[..., Choices]
BATCH_NORMS = ("resnet18", "efficientnet_b0", "levit_128s", "mobilevit_xxs", "repvit_m1", "efficientvit_b0", "coatnet_bn_0_rw_224")
BATCH_NORMS += ("resnetv2_50x1_bit", "nfnet_f0")  # these have GroupNorms, and no norms
LAYER_NORMS = ("vit_tiny_patch16_224", "deit_tiny_patch16_224", "swin_tiny", "convnext_tiny", "CSWin_64_12211_tiny_224")
LAYER_NORMS += ("xcit_nano_12_p16_224", "mixer_b16_224", "pit_ti_224", "hiera_tiny_224", "pvt_v2_b0")


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture
def chosen(tmp_path: Path) -> Chosen:
    """Choices for new images of a size, in class folders."""

    def made(counts: dict[str, int], side: int = 32, machine: Machine = CPU, **request: Any) -> Choices:
        folder = make_photos(tmp_path / f"photos{side}{len(list(tmp_path.iterdir()))}", counts, side)
        return choose(FinetuneRequest(folder, **request), look_into(folder), machine)

    return made


@pytest.fixture
def _downloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(networks, "is_downloaded", lambda name: True)


@pytest.mark.parametrize(("side", "size"), [(20, 32), (70, 64), (100, 96), (200, 224), (500, 224)])
def test_the_size_is_that_of_the_images(side: int, size: int, chosen: Chosen) -> None:
    assert chosen({"a": 3, "b": 3}, side).img_size == size


@pytest.mark.parametrize(("side", "size"), [(70, 96), (150, 160), (300, 224)])
@pytest.mark.usefixtures("_downloaded")
def test_weights_bound_the_size(side: int, size: int, chosen: Chosen) -> None:
    """Not below half of what the weights were trained with, not above; a network of a fixed size keeps it."""
    assert chosen({"a": 3, "b": 3}, side, model="timm:resnet50.tv_in1k").img_size == size
    assert chosen({"a": 3, "b": 3}, side, model="timm:vit_tiny_patch16_224.augreg_in21k").img_size == 224


@pytest.mark.usefixtures("_downloaded")
def test_preprocessing_is_that_of_the_weights(chosen: Chosen) -> None:
    made = chosen({"a": 3, "b": 3}, 200, model="timm:vit_tiny_patch16_224.augreg_in21k")
    config = yaml.safe_load(yaml_of(made))
    assert config["normalize"]["kwargs"] == {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}
    resize = config["dataset"]["test"]["dataset"]["kwargs"]["transformer"][0]["kwargs"]
    assert resize == {"size": 249, "interpolation": "bicubic"}  # 224 / 0.9
    assert config["saver"]["pretrain_model"] == "timm:vit_tiny_patch16_224.augreg_in21k"
    assert config["net"][0] == {"name": "backbone", "type": "vit_tiny_patch16_224"}
    assert config["net"][1] == {"name": "head", "type": "vit_head"}


@pytest.mark.parametrize(("epochs", "warmup"), [(1, 0.1), (5, 0.5), (60, 1)])
def test_the_learning_rate_falls_in_short_runs_too(epochs: int, warmup: float, chosen: Chosen) -> None:
    config = yaml.safe_load(yaml_of(chosen({"a": 40, "b": 40}, epochs=epochs)))
    assert config["trainer"]["lr_scheduler"]["warmup_epochs"] == warmup


def test_names_of_classes_are_text(chosen: Chosen) -> None:
    """Also those that YAML takes for other values."""
    names = sorted(["true", "False", "null", "None", "yes", "1e5", "0x1f", "12:30", "2024-01-31", "good", "~"])
    config = read_plain(yaml_of(chosen(dict.fromkeys(names, 2))))
    assert config["dataset"]["train"]["dataset"]["kwargs"]["class_names"] == names


@pytest.mark.parametrize(("names", "is_same"), [("cat\ndog\n", True), (None, True), ("dog\ncat\n", False)])
def test_numbers_of_a_validation_list_mean_the_classes_of_training(tmp_path: Path, names: str | None, is_same: bool) -> None:
    for part, beside in (("train", "cat\ndog\n"), ("val", names)):
        folder = make_photos(tmp_path / part, {"a": 2, "b": 2}, seed=len(part))
        rows = [f"{name}/{at}.png {label}" for label, name in enumerate("ab") for at in range(2)]
        (folder / "list.txt").write_text("\n".join(rows))
        if beside is not None:
            (folder / "classes.txt").write_text(beside)
    lists = [tmp_path / part / "list.txt" for part in ("train", "val")]
    if is_same:
        found = look_into(*lists).validation
        assert found is not None
        assert found.labels == [0, 0, 1, 1]
        return
    with pytest.raises(UserError) as caught:
        look_into(*lists)
    assert all(fact in str(caught.value) for fact in ("--val", "val/list.txt", "classes.txt", "dog, cat", "cat, dog"))


@pytest.mark.parametrize(("strategy", "batch"), [("adamw", 1), ("step150", 16)])
def test_a_given_learning_rate_is_that_of_the_batch(chosen: Chosen, strategy: str, batch: int) -> None:
    """The schedule of ``step150`` multiplies the one in the file by the batch size."""
    config = read_plain(yaml_of(chosen({"a": 40, "b": 40}, strategy=strategy, lr=0.02, batch_size=16)))
    assert config["trainer"]["optimizer"]["kwargs"]["lr"] * batch == pytest.approx(0.02)


def test_a_share_of_the_images_of_each_part_may_be_bad(chosen: Chosen) -> None:
    made = chosen({"a": 200, "b": 200})
    assert made.images.split is not None
    config = read_plain(yaml_of(made))["dataset"]
    sizes = [len(part) for part in (made.images.split.train, made.images.split.validation)]
    limits = [config[name]["dataset"]["kwargs"]["max_bad"] for name in ("train", "test")]
    assert limits == [size // 20 for size in sizes]
    assert limits[1] < limits[0]


def test_few_images_make_small_batches_and_many_epochs(chosen: Chosen) -> None:
    few, many = chosen({"a": 4, "b": 4}), chosen({"a": 150, "b": 150})
    assert (few.batch_size, many.batch_size) == (2, 32)
    assert few.epochs == 60
    assert chosen({"a": 150, "b": 150}, epochs=20).batch_size == 16  # 270 images: 169 steps of 32


@pytest.mark.parametrize(
    ("counts", "epochs", "size", "reason"),
    [
        ({"a": 150, "b": 150}, None, 32, ("270 training images", "usual", "400 steps", "60 epochs")),
        ({"a": 100, "b": 101}, None, 16, ("181 training images", "60 epochs", "339 steps", "32", "400")),
        ({"a": 150, "b": 150}, 20, 16, ("270 training images", "20 epochs", "168 steps", "32", "400")),
        ({"a": 20, "b": 20}, None, 8, ("36 training images", "quarter")),
        ({"a": 9, "b": 9}, 4000, 4, ("16 training images", "quarter")),
        ({"a": 3, "b": 3}, None, 2, ("4 training images", "2")),
    ],
)
def test_the_batch_size_is_explained(
    counts: dict[str, int], epochs: int | None, size: int, reason: tuple[str, ...], chosen: Chosen
) -> None:
    """By the rule that chose it, with its numbers."""
    made = chosen(counts, epochs=epochs)
    line = next(line for line in made.lines() if line.startswith("batch size"))
    assert made.batch_size == size
    assert tells(line, f"{size} per process", *reason)


@pytest.mark.usefixtures("_downloaded")
def test_the_machine_chooses_the_network(chosen: Chosen) -> None:
    families = [chosen({"a": 3, "b": 3}, 100, machine=Machine(device, 2)).network.family for device in ("cpu", "cuda")]
    assert families == ["resnet18", "resnet50"]


@pytest.mark.parametrize("model", [*BATCH_NORMS, *LAYER_NORMS])
def test_the_norms_of_a_network_choose_its_learning_rates(model: str, chosen: Chosen) -> None:
    """Its modules count, not its name: LeViT, RepViT and MobileViT have BatchNorms, PiT and Hiera have LayerNorms."""
    adamw = chosen({"a": 3, "b": 3}, 100, model=model, weights="any.pth").adamw
    assert (adamw.lr, adamw.layer_decay) == ((1e-4, 0.75) if model in LAYER_NORMS else (1e-3, None))


@pytest.mark.parametrize(
    ("backbone", "lr"),
    [
        ({"type": "timm", "kwargs": {"model_name": "pit_ti_224", "pretrained": True}}, 1e-4),
        (
            {
                "type": "resnet_custom",
                "kwargs": {"block": "basic", "layers": [1, 1, 1, 1], "width": 8, "normalize": {"type": "solo_bn"}},
            },
            1e-3,
        ),
        ({"type": "of_a_plugin"}, 1e-3),
    ],
)
def test_the_network_of_a_run_has_its_arguments(backbone: dict[str, Any], lr: float, chosen: Chosen, tmp_path: Path) -> None:
    """It is built without downloads and without the parts among its arguments; that of a plug-in is not known here."""
    net = [{"name": "backbone", **backbone}, {"name": "head", "type": "base_cls_head"}]
    torch.save({"model": {"a": torch.zeros(1)}, "config": yaml.safe_dump({"net": net})}, tmp_path / "run.pth")
    assert chosen({"a": 3, "b": 3}, 100, model=str(tmp_path / "run.pth")).adamw.lr == lr


def test_a_machine_with_a_network_downloads_the_weights(chosen: Chosen, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(networks, "is_online", lambda: True)
    assert chosen({"a": 3, "b": 3}, 100).network.weights == "timm:resnet18.a1_in1k"


def test_pretrained_weights_train_shorter(chosen: Chosen, monkeypatch: pytest.MonkeyPatch) -> None:
    scratch = chosen({"a": 200, "b": 200}, 70)
    monkeypatch.setattr(networks, "is_downloaded", lambda name: True)
    assert chosen({"a": 200, "b": 200}, 100).epochs <= scratch.epochs
    assert scratch.network.weights is None


@pytest.mark.usefixtures("_downloaded")
def test_longer_trainings_have_a_moving_average(chosen: Chosen) -> None:
    decays = [chosen({"a": 40, "b": 40}, 100, epochs=epochs).ema for epochs in (5, 60, 400)]
    assert decays == [None, 0.98, 0.99]  # 72 images: 5 steps of 16 or 3 of 32 an epoch
    made = yaml.safe_load(yaml_of(chosen({"a": 40, "b": 40}, 100, epochs=60)))
    assert made["ema"] == {"enable": True, "kwargs": {"decay": 0.98, "warmup": 10}}


def test_what_is_given_is_taken(chosen: Chosen) -> None:
    found = chosen({"a": 9, "b": 9}, img_size=96, epochs=3, lr=0.5, batch_size=7)
    assert (found.img_size, found.epochs, found.adamw.lr, found.batch_size) == (96, 3, 0.5, 7)
    assert sum("as given" in line for line in found.lines()) == 3


@pytest.mark.usefixtures("_downloaded")
@pytest.mark.parametrize(
    ("strategy", "features", "random"), [("linear_probe", None, 0), ("lp_ft", "fixed_view", 2), ("adamw", None, 2)]
)
def test_a_probe_trains_on_fixed_views(chosen: Chosen, strategy: str, features: str | None, random: int) -> None:
    """The whole of a linear probe, and the first phase of LP-FT."""
    config = yaml.safe_load(yaml_of(chosen({"a": 9, "b": 9}, 100, strategy=strategy)))
    assert config["finetune"].get("kwargs", {}).get("features") == features
    train, test = (
        [each["type"] for each in config["dataset"][name]["dataset"]["kwargs"]["transformer"]] for name in ("train", "test")
    )
    assert "torch_random_horizontal_flip" in train
    assert len([each for each in train if each in ("torch_random_resized_crop", "torch_color_jitter")]) == random
    if not random:
        assert [each for each in train if each != "torch_random_horizontal_flip"] == test


class TestSplit:
    def test_every_class_is_on_both_sides(self, chosen: Chosen) -> None:
        files = meta_files(chosen({"a": 2, "b": 3, "c": 30}))
        labels = {
            path.name: [json.loads(line)["label"] for line in text.splitlines()]
            for path, text in files.items()
            if path.suffix == ".jsonl"
        }
        assert [[labels[name].count(each) for each in range(3)] for name in ("train.jsonl", "val.jsonl")] == [[1, 2, 27], [1, 1, 3]]
        record = json.loads(next(text for path, text in files.items() if path.name == "split.json"))
        assert (record["train"]["images"], record["validation"]["images"]) == (30, 5)

    def test_is_the_same_for_the_same_images(self, chosen: Chosen) -> None:
        first, second = (meta_files(chosen({"a": 9, "b": 9}, out=Path("runs/x"))) for _ in range(2))
        assert first == second


class TestNetwork:
    def test_a_file_by_its_name(self, tmp_path: Path) -> None:
        path = tmp_path / "resnet18-f37072fd.pth"
        torch.save({"conv1.weight": torch.zeros(1)}, path)
        found = network_for(str(path), None, device="cpu", is_small=False)
        assert (found.family, found.weights) == ("resnet18", str(path))

    def test_a_file_without_a_name_needs_one(self, tmp_path: Path) -> None:
        path = tmp_path / "best.pth"
        torch.save({"conv1.weight": torch.zeros(1)}, path)
        with pytest.raises(UserError, match="--weights"):
            network_for(str(path), None, device="cpu", is_small=False)
        assert network_for("resnet50", str(path), device="cpu", is_small=False).weights == str(path)

    def test_of_timm_alone(self) -> None:
        found = network_for("timm:test_resnet.r160_in1k", None, device="cpu", is_small=False)
        assert found.modules[0]["kwargs"] == {"model_name": "test_resnet"}
        assert found.preprocessing.input_size == (3, 160, 160)
        assert network_for("resnet50", None, device="cpu", is_small=False).weights == "timm:resnet50.a1_in1k"

    def test_unknown(self) -> None:
        with pytest.raises(UserError, match="resnet50"):
            network_for("resnet5", None, device="cpu", is_small=False)


def test_the_processors_are_those_that_the_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: {0, 5}, raising=False)
    assert Machine.here().cores == 2
