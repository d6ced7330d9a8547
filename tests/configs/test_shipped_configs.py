"""Every shipped YAML: its header, `up check` as it is, and two steps with an evaluation on a dozen small images."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import BaseModel

from tests.harness.nets import built_without_weights, meta_device
from up.build.experiment import load_experiment
from up.build.network import build_net
from up.config.nodes import load_nodes
from up.config.signature import signature_of
from up.config.tree import to_plain
from up.distill.section import weights_of_teachers
from up.models import cswin
from up.models.cswin import CSWin
from up.optim import build_schedule
from up.registry import Registry
from up.schema.decode import load_config
from up.schema.sections import Config

ROOT = Path(__file__).parents[2] / "configs" / "cls"
BASES = ROOT.parent / "_base"
SHIPPED = {
    "quickstart",
    "cifar10_fast",
    "multicls_res18",
    "res50_softmax_eql",
    "res50_grad_cam",
    "res50_inference",
    "res18_to_kestrel",
    "res18",
    "res34",
    "res50",
    "res18_bag_of_tricks",
    "res50_bag_of_tricks",
    "res50d_bag_of_tricks",
    "res18_strikes",
    "res18_strikes_300e",
    "res50_strikes",
    "res50_strikes_224",
    "res50_strikes_300e",
    "mbv2",
    "mbv2_x0_5",
    "mbv2_x2_0",
    "mbv3_large",
    "mbv3_small",
    "regnetx_200m",
    "regnetx_400m",
    "regnety_200m",
    "regnety_400m",
    "convnext_tiny",
    "convnext_small",
    "cswin_tiny",
    "cswin_small",
    "cswin_base",
    "vit_b16",
    "swin_tiny",
    "swin_small",
    "swin_base_224",
    "swin_base_384",
    "swin_large_224",
    "swin_large_384",
    "downstream/res50_car",
    "downstream/res50_flower",
    "downstream/res50_pet",
    "downstream/res50_car_strikes",
    "downstream/res50_flower_strikes",
    "finetune_quickstart",
    "kd_quickstart",
    "kd_res152_res18",
    "kd_res152_res18_plain",
    "kd_res50_res18_dkd",
    "kd_multi_teacher",
}
TRAINED = SHIPPED - {"res50_inference"}
HEADER = ["Purpose", "Command", "Data", "Weights", "Cost", "Source", "Result"]
OPTIONAL = {"Data", "Weights"}  # the quickstart makes its data, and most recipes start from scratch

IMAGES, BATCH, STEPS, DRAWN = 12, 4, 2, 1
SIDE = 64  # pixels: what networks of stride 32 still make a map of
# One recipe is checked in full, the others with smaller relatives of their networks; all are built in full on the meta device
# (the header's number of parameters). For the two steps the relatives do, which write checkpoints in no time.
IN_FULL = {"res18"}
LARGER = {"cswin_small", "cswin_base"}  # with a smaller net they are cswin_tiny
# The same recipe for another backbone or other data, which is trained in its place.
TWINS = {
    **dict.fromkeys(("res34", "res50", "res18_to_kestrel"), "res18"),
    **dict.fromkeys(("res50_bag_of_tricks", "res50d_bag_of_tricks"), "res18_bag_of_tricks"),
    "res50_strikes": "res18_strikes",
    "res50_strikes_300e": "res18_strikes_300e",
    **dict.fromkeys(("mbv2", "mbv2_x2_0"), "mbv2_x0_5"),
    "mbv3_large": "mbv3_small",
    **dict.fromkeys(("regnetx_400m", "regnety_200m", "regnety_400m"), "regnetx_200m"),
    "convnext_small": "convnext_tiny",
    **dict.fromkeys(("swin_small", "swin_base_224", "swin_large_224"), "swin_tiny"),
    "swin_large_384": "swin_base_384",
    "downstream/res50_pet": "downstream/res50_flower",
    "downstream/res50_car_strikes": "downstream/res50_flower_strikes",
}
_SMALL_RESNET = {"type": "resnet_custom", "kwargs.block": "bottleneck", "kwargs.layers": "[1, 1, 1, 1]", "kwargs.width": 8}
SMALLER: dict[str, Mapping[str, object]] = {
    "resnet18": {**_SMALL_RESNET, "kwargs.block": "basic"},
    "resnet34": {**_SMALL_RESNET, "kwargs.block": "basic"},
    "resnet50": _SMALL_RESNET,
    "resnet50_D": _SMALL_RESNET,
    "resnet152": _SMALL_RESNET,
    **dict.fromkeys(
        ("swin_tiny", "swin_small", "swin_base_224", "swin_base_384", "swin_large_224", "swin_large_384"),
        {"kwargs.embed_dim": 24, "kwargs.depths": "[1, 1, 1, 1]", "kwargs.img_size": SIDE},
    ),
    **dict.fromkeys(("convnext_tiny", "convnext_small"), {"type": "timm", "kwargs": "{model_name: convnext_atto}"}),
    "vit_base_patch16_224": {"type": "vit_tiny_patch16_224", "kwargs.img_size": SIDE},
}

Plain = dict[str, Any]
every_config = pytest.mark.parametrize("name", sorted(SHIPPED))
every_trained = pytest.mark.parametrize("name", sorted(TRAINED))


def file_of(name: str) -> Path:
    return ROOT / f"{name}.yaml"


def plain_of(name: str) -> Plain:
    """The file over its bases as dicts and lists, anchors expanded."""
    plain = to_plain(load_nodes(file_of(name)))
    assert isinstance(plain, dict)
    return plain


def config_of(name: str) -> Config:
    return load_config(file_of(name)).config


def test_these_are_all_of_them() -> None:
    assert {path.relative_to(ROOT).with_suffix("").as_posix() for path in ROOT.rglob("*.y*ml")} == SHIPPED


@every_config
def test_header(name: str) -> None:
    """Purpose, command, cost, source and result, in this order, before anything else."""
    header = re.match(r"(#.*\n)+", file_of(name).read_text(encoding="utf-8"))
    assert header
    lines = header.group().splitlines()
    labels = [found.group(1) for line in lines if (found := re.match(r"# (\w+): +\S", line))]
    assert labels == [label for label in HEADER if label in labels]
    assert {*HEADER} - {*labels} <= OPTIONAL
    text = " ".join(line.lstrip("# ") for line in lines)
    assert re.search(rf"-m up train( -e)? --config configs/cls/{name}\.yaml", text)
    assert re.search(r"Cost: .*measured", text)
    assert re.search(r"Result: +(not measured[.:]|\d\d\.\d+ %)", text)
    assert not [line for line in lines if len(line) > 120]


def test_a_newcomer_from_up_finds_every_recipe() -> None:
    page = (ROOT.parents[1] / "docs" / "migrating.md").read_text(encoding="utf-8")
    listed = set(re.findall(r"`(\w+)\.yaml`", page.split("### Which recipe is which")[1].split("###")[0]))
    assert listed == {name for name in SHIPPED if "/" not in name} - {
        "quickstart",
        "kd_quickstart",
        "finetune_quickstart",
        "cifar10_fast",
    }


def test_bases_say_what_they_are_for_and_are_used() -> None:
    used: set[Path] = set()
    files = [*ROOT.rglob("*.yaml"), *BASES.glob("*.yaml")]
    for file in files:
        named = re.search(r"^base: \[(.*)\]", file.read_text(encoding="utf-8"), re.MULTILINE)
        used |= {(file.parent / name).resolve() for name in (named.group(1).split(", ") if named else ())}
    for base in BASES.glob("*.yaml"):
        assert base.resolve() in used
        lines = base.read_text(encoding="utf-8").splitlines()
        assert lines[0].startswith("# ")
        assert max(map(len, lines)) <= 132
    assert sum(len(file.read_text(encoding="utf-8").splitlines()) for file in files) <= 1800


@every_config
def test_repeats_no_default(name: str) -> None:
    experiment = load_experiment(file_of(name))
    back_to_default = {"kd_res152_res18": ["kwargs.weight_decay"]}  # over a base that has another value
    assert list(repeated(experiment.config, experiment.tables)) == back_to_default.get(name, [])


def repeated(value: object, tables: Mapping[str, Registry], path: str = "") -> Iterator[str]:
    """Where a section or an argument of a part is given the value that it has anyway; null says that it is unset."""
    if isinstance(value, BaseModel):
        for key in value.model_fields_set:
            inner, field = getattr(value, key), type(value).model_fields[key]
            if inner is not None and not field.is_required() and inner == field.get_default(call_default_factory=True):
                yield f"{path}.{key}".lstrip(".")
            yield from repeated(inner, tables, key)
    if isinstance(value, BaseModel | dict):
        plain = value if isinstance(value, dict) else {key: getattr(value, key, None) for key in ("type", "kwargs")}
        kwargs = plain.get("kwargs")
        if isinstance(kwargs, dict):
            owners = [signature_of(table.get(plain["type"])).parameters for table in tables.values() if plain["type"] in table]
            takes = next((parameters for parameters in owners if kwargs.keys() <= parameters.keys()), {})
            given = {key: kwargs[key] for key in takes.keys() & kwargs if kwargs[key] is not None}
            yield from (f"kwargs.{key}" for key in given if takes[key].default == given[key])
    if isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from repeated(inner, tables, str(key))


@every_config
def test_says_nothing_that_needs_a_note(name: str) -> None:
    """No spelling that is only accepted for the sake of older files."""
    assert [str(note) for note in load_config(file_of(name)).notes] == []


@every_config
def test_writes_into_a_folder_of_its_own(name: str) -> None:
    saver = config_of(name).saver
    assert saver.folder(file_of(name)) == Path("runs") / Path(name).name
    assert (saver.results_dir, saver.auto_resume) == (None, True)


@pytest.fixture
def few_blocks_of_cswin(monkeypatch: pytest.MonkeyPatch) -> None:
    """A smaller relative of CSWin, whose size is no argument."""
    monkeypatch.setattr(cswin, "CSWin", lambda **kwargs: CSWin(**{**kwargs, "embed_dim": 16, "depths": (1, 1, 1, 1)}))


@every_config
@pytest.mark.usefixtures("few_blocks_of_cswin")
def test_check_passes(name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from up.commands.check import main

    whole = name in IN_FULL
    opts = {} if whole else {key: value for key, value in smaller(plain_of(name)) if not key.endswith("img_size")}
    if not opts and name in LARGER | {*TWINS}:  # without a smaller relative: two images pass through its twin
        built_without_weights(monkeypatch)
    words = ["--opts", *(f"{key}={value}" for key, value in opts.items())] if opts else []
    assert main(["check", "--config", str(file_of(name)), "--no-files", *words]) == 0
    said = capsys.readouterr().out
    assert said.splitlines()[-1].startswith(f"OK: {file_of(name)} is valid")
    assert "note:" not in said  # such as a parameter that gets no gradient


@every_config
def test_the_header_says_how_large_the_network_is(name: str) -> None:
    stated = re.search(r"^# Cost: +([\d.]+) ([Mk]) parameters", file_of(name).read_text(encoding="utf-8"), re.MULTILINE)
    assert stated
    with meta_device():
        net = build_net(load_experiment(file_of(name)), {})
    millions = sum(parameter.numel() for parameter in net.parameters()) / 1e6
    assert float(stated.group(1)) * {"M": 1, "k": 1e-3}[stated.group(2)] == pytest.approx(millions, abs=0.06)


@every_trained
def test_the_schedule_lasts_as_long_as_the_training(name: str) -> None:
    trainer = config_of(name).trainer
    if trainer.lr_scheduler is not None:
        assert trainer.lr_scheduler.kwargs.get("T_max", trainer.max_epoch) == trainer.max_epoch


@pytest.mark.parametrize(
    ("name", "steps_per_epoch", "images", "expected"),
    [
        ("res18", 1252, 1024, {0: 0.1, 1: 0.100120048, 2498: 0.399879952, 2499: 0.4, 37560: 0.04, 75120: 0.004, 112680: 0.0004}),
        ("res50_bag_of_tricks", 626, 2048, {0: 0.2, 3129: 0.8, 3130: 0.8, 62600: 0.416106376, 125200: 0.0}),
        ("res50_strikes", 626, 2048, {0: 1e-6, 3129: 8e-3, 3130: 8e-3, 62600: 1e-6}),
        ("res50_strikes_224", 626, 2048, {0: 1e-6, 3129: 8e-3, 62600: 1e-6}),
        ("res50_softmax_eql", 453, 256, {0: 0.1, 452: 0.1, 20385: 0.05}),
        ("res50_strikes_300e", 626, 2048, {0: 1e-6, 3129: 5e-3, 187800: 1e-6}),
        ("mbv2", 5005, 256, {0: 0.045, 5005: 0.045 * 0.98, 50050: 0.045 * 0.98**10}),
        ("mbv3_large", 1252, 1024, {0: 0.064, 2503: 0.064, 2504: 0.064 * 0.973}),
        ("regnetx_400m", 1252, 1024, {0: 0.08, 6259: 0.8, 125200: 0.0}),
        ("convnext_tiny", 313, 4096, {0: 0.0, 6259: 4e-3, 93900: 1e-6}),
        ("swin_tiny", 1252, 1024, {0: 1e-6, 25039: 1e-3, 375600: 1e-5}),
        ("swin_base_384", 1252, 1024, {0: 1e-6, 25039: 1e-3, 375600: 1e-5}),
        ("cswin_base", 1252, 1024, {0: 1e-6, 25039: 1e-3, 375600: 1e-5}),
        ("cswin_tiny", 626, 2048, {0: 1e-6, 12519: 2e-3, 187800: 1e-5}),
        ("vit_b16", 1252, 1024, {0: 1e-6, 6259: 1e-3, 375600: 1e-5}),
        ("downstream/res50_car", 32, 256, {0: 0.01, 1599: 0.01, 1600: 0.001, 3200: 0.0001}),
        ("downstream/res50_flower", 8, 256, {0: 0.001, 400: 0.0001, 800: 0.00001}),
        ("kd_res152_res18", 1252, 1024, {0: 0.1, 6259: 0.4, 225360: 0.0}),
    ],
)
def test_learning_rates_are_the_published_ones(name: str, steps_per_epoch: int, images: int, expected: Mapping[int, float]) -> None:
    trainer = config_of(name).trainer
    assert trainer.optimizer is not None
    assert trainer.lr_scheduler is not None
    assert trainer.max_epoch is not None
    schedule = build_schedule(
        base_lr=trainer.optimizer.kwargs["lr"],
        updates_per_epoch=steps_per_epoch,
        global_batch_size=images,
        total_updates=trainer.max_epoch * steps_per_epoch,
        **trainer.lr_scheduler.model_dump(),
    )
    assert {step: schedule(step) for step in expected} == pytest.approx(dict(expected), rel=1e-6, abs=1e-12)


@every_trained
def test_images_a_step_are_those_of_the_recipe(name: str) -> None:
    """Processes of the command x batch size x micro-batches is what the header counts a step to be."""
    text = file_of(name).read_text(encoding="utf-8")
    processes = int(found.group(1)) if (found := re.search(r"--nproc-per-node (\d+)", text)) else 1
    config = config_of(name)
    assert config.dataset.train is not None
    images = processes * config.dataset.train.batch_sampler.kwargs.batch_size * config.trainer.accumulate
    header = " ".join(line.lstrip("# ") for line in re.findall(r"^#.*$", text, re.MULTILINE))
    assert re.search(rf"steps? of {images:,} images|{images:,} images a step", header)


@pytest.mark.parametrize(("name", "twin"), TWINS.items())
def test_a_twin_is_the_same_recipe(name: str, twin: str) -> None:
    assert recipe_of(name) == recipe_of(twin)


def recipe_of(name: str) -> Plain:
    """The file without its backbone, its data, and what an export is called."""
    plain = plain_of(name)
    plain.pop("to_kestrel", None)
    plain["net"] = [{**module, "kwargs": {**module.get("kwargs", {}), "num_classes": None}} for module in plain["net"][1:]]
    for source in ("train", "test"):
        kwargs = plain["dataset"][source]["dataset"]["kwargs"]
        kwargs["meta_file"] = kwargs["image_reader"]["kwargs"]["image_dir"] = None
    return plain


@pytest.mark.parametrize("name", sorted(TRAINED - LARGER - {*TWINS}))
@pytest.mark.usefixtures("few_blocks_of_cswin")
def test_two_steps_and_an_evaluation(name: str, tmp_path: Path) -> None:
    run, classes = trained(name, tmp_path)
    status = json.loads((run / "status.json").read_text())
    assert (status["state"], status["step"]) == ("done", STEPS)
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    last = records[-1]
    assert (last["phase"], last["step"]) == ("eval", STEPS)
    assert 0 <= last["avg_top1" if isinstance(classes, list) else "top1"] <= 100
    losses = [record["loss"] for record in records if record["phase"] == "train"]
    assert len(losses) == STEPS
    assert all(math.isfinite(loss) and loss > 0 for loss in losses)
    assert ("ema_top1" in last) == config_of(name).ema.enable
    assert len(list(run.rglob("grad_cam/*/*.png"))) == (STEPS * DRAWN if name == "res50_grad_cam" else 0)


def trained(name: str, folder: Path) -> tuple[Path, int | list[int]]:
    """The folder of a run of a few steps on images made for it, and the classes of these."""
    from up.commands.train import main

    plain = plain_of(name)
    classes = next(module["kwargs"]["num_classes"] for module in plain["net"] if module["name"] == "head")
    write_images(folder / "data", plain, classes)
    run = folder / "run"
    opts = [f"{key}={value}" for key, value in tiny(plain, folder / "data", run)]
    opts += [f"{key}={value}" for key, value in with_drawn_teachers(name, opts, folder)]
    assert main(["train", "--config", str(file_of(name)), "--opts", *opts]) == 0
    return run, classes


def test_inference_from_a_folder_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`up train -e` as the header says: a line for each image, and only the new ones the second time."""
    from up.commands.train import main

    monkeypatch.chdir(tmp_path)
    name, images = "res50_inference", tmp_path / "data" / "photos"
    images.mkdir(parents=True)
    opts = [f"net.backbone.{key}={value}" for key, value in _SMALL_RESNET.items()]
    opts += ["dataset.dataloader.kwargs.num_workers=0", "saver.pretrain_model=weights.pth", "runtime.device=cpu"]
    torch.save(build_net(load_experiment(file_of(name), opts), {}).state_dict(), "weights.pth")
    for index in range(3):
        Image.new("RGB", (72, 80), (80 * index, 0, 0)).save(images / f"{index}.jpg")
        if index:
            assert main(["train", "-e", "--config", str(file_of(name)), "--opts", *opts]) == 0
            (file,) = Path("runs").rglob("results.txt*")
            results = [json.loads(line) for line in file.read_text().splitlines()]
            assert sorted(Path(line["filename"]).name for line in results) == [f"{number}.jpg" for number in range(index + 1)]
    assert all((len(line["topk_idx"]), len(line["score"])) == (5, 1000) for line in results)


def test_the_documented_numbers_of_strikes() -> None:
    """224 pixels, RandAugment-Incre n 2 m 7, plain bce, LAMB .008 with .02; the paper's A3 differs in three of them."""
    documented, a3 = (config_of(name) for name in ("res50_strikes_224", "res50_strikes"))
    for config, size, strength, loss in ((documented, 224, 7, {}), (a3, 160, 6, {"target_threshold": 0.2})):
        assert config.dataset.train is not None
        assert config.trainer.optimizer is not None
        crop, _, augment, *_ = config.dataset.train.dataset.kwargs["transformer"]
        assert crop["kwargs"]["size"] == size
        assert augment == {"type": "torch_random_augmentationIncre", "kwargs": {"n": 2, "m": strength, "magnitude_std": 0.5}}
        assert config.net[-1].kwargs["cls_loss"].get("kwargs", {}) == loss
        assert (config.trainer.optimizer.type, config.trainer.optimizer.kwargs) == ("LAMB", {"lr": 0.008, "weight_decay": 0.02})


def write_images(folder: Path, plain: Plain, classes: int | list[int]) -> None:
    """Images, their list in the form that the configuration reads, and class names."""
    folder.mkdir()
    draw = np.random.default_rng(0)
    heads = classes if isinstance(classes, list) else [classes]
    lines = []
    for index in range(IMAGES):
        Image.fromarray(draw.integers(0, 256, (72, 80, 3), dtype=np.uint8)).save(folder / f"{index}.jpg")
        labels = [index % count if index else count - 1 for count in heads]  # the highest label tells how many there are
        label = labels if isinstance(classes, list) else labels[0]
        as_json = plain["dataset"]["train"]["dataset"]["kwargs"].get("meta_type") == "custom_cls"
        lines.append(json.dumps({"filename": f"{index}.jpg", "label": label}) if as_json else f"{index}.jpg {label}")
    (folder / "list").write_text("".join(f"{line}\n" for line in lines))
    (folder / "classes").write_text("".join(f"class {index}\n" for index in range(heads[0])))


def tiny(plain: Plain, data: Path, run: Path) -> Iterator[tuple[str, object]]:
    """What to override, so that a recipe runs on the images of ``write_images`` in a second."""
    yield from {
        "runtime.device": "cpu",
        "runtime.amp": "null",  # a CPU without instructions for 16 bits takes minutes where it takes seconds for 32
        "runtime.fp16": False,
        "trainer.max_iter": STEPS,
        "trainer.accumulate": 1,
        "trainer.log_interval": 1,
        "saver.save_dir": run,
        "saver.results_dir": run / "results",
        "saver.pretrain_model": "null",
    }.items()
    if (plain.get("to_kestrel") or {}).get("resize_hw"):
        yield "to_kestrel.resize_hw", "null"  # must be what the transforms produce
    for index, hook in enumerate(plain.get("hooks", [])):
        if hook["type"] == "grad_cam":
            yield f"hooks.{index}.kwargs.num_images", DRAWN
    for source in ("train", "test"):
        place = f"dataset.{source}"
        kwargs = plain["dataset"][source]["dataset"]["kwargs"]
        yield f"{place}.dataset.kwargs.meta_file", data / "list"
        yield f"{place}.dataset.kwargs.image_reader.kwargs.image_dir", data
        yield f"{place}.batch_sampler.kwargs.batch_size", BATCH
        yield f"{place}.dataloader.kwargs.num_workers", 0
        yield f"{place}.dataloader.kwargs.pin_memory", False
        if "class_names" in kwargs:
            yield f"{place}.dataset.kwargs.class_names", data / "classes"
        if "cache" in kwargs:
            yield f"{place}.dataset.kwargs.cache", "null"
        for index, transform in enumerate(kwargs["transformer"]):
            if isinstance(transform.get("kwargs", {}).get("size"), int):
                yield f"{place}.dataset.kwargs.transformer.{index}.kwargs.size", SIDE
    yield from smaller(plain)


def smaller(plain: Plain) -> Iterator[tuple[str, object]]:
    """What to override for the smaller relatives of the network and its teachers."""
    for place in ("net", *(key for key in plain if key.startswith("teacher"))):
        backbone = plain[place][0]
        for key, value in SMALLER.get(backbone["type"], {}).items():
            yield f"{place}.{backbone['name']}.{key}", value


def with_drawn_teachers(name: str, opts: list[str], folder: Path) -> Iterator[tuple[str, object]]:
    """Teachers that know nothing, and that this is all right here."""
    experiment = load_experiment(file_of(name), opts)
    for teacher, (place, _) in weights_of_teachers(experiment).items():
        net = build_net(experiment, {}, experiment.config.teachers[teacher], teacher)
        torch.save(net.state_dict(), folder / f"{teacher}.pth")
        yield place, folder / f"{teacher}.pth"
    if experiment.config.mimic is not None:
        yield "mimic.preflight", "warn"


def test_smaller_networks_are_of_networks_that_are_shipped() -> None:
    nets = [net for name in SHIPPED for place, net in plain_of(name).items() if place == "net" or place.startswith("teacher")]
    assert {net[0]["type"] for net in nets} >= set(SMALLER)


def test_the_quick_start_of_distillation_has_the_other_one_as_its_teacher() -> None:
    ours, theirs = plain_of("kd_quickstart"), plain_of("quickstart")
    assert ours["teacher"] == theirs["net"][:2]
    assert ours["mimic"]["teacher"]["teacher_weight"] == "runs/quickstart/ckpt_best.pth"
    assert ours["normalize"] == theirs["normalize"]


def test_quickstart_never_mirrors_digits() -> None:
    train = load_experiment(file_of("quickstart")).config.dataset.train
    assert train is not None
    assert [part["type"] for part in train.dataset.kwargs["transformer"]] == [
        "v2.RandomAffine",
        "torch_resize",
        "to_tensor",
        "normalize",
    ]
