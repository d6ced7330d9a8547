"""Arguments and parts of UP's files: what works, and what is accepted with a note that gives the reason."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.harness.facts import tells
from tests.harness.refusals import refused
from tests.harness.runs import times_resumed
from tests.harness.states import assert_same, checkpoint
from up.__main__ import main
from up.build.data import build_dataset, train_batches
from up.build.experiment import load_experiment
from up.build.network import build_net

Config = dict[str, Any]
Write = Callable[[Config], str]

TRAIN = "dataset.train.dataset.kwargs"
CKPT = "ckpt_best_mean_class_accuracy.pth"
pytestmark = pytest.mark.usefixtures("without_drawing")


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


def sampler(kind: str, **kwargs: Any) -> Callable[[Config], None]:
    return lambda config: config["dataset"]["train"]["batch_sampler"]["kwargs"].update(sampler={"type": kind, "kwargs": kwargs})


def evaluator(kind: str, **kwargs: Any) -> Callable[[Config], None]:
    return lambda config: config["dataset"]["test"]["dataset"]["kwargs"].update(evaluator={"type": kind, "kwargs": kwargs})


def head(kind: str, out_layers: list[int] | None = None, **kwargs: Any) -> Callable[[Config], None]:
    """The head of that kind, on these stages of the backbone."""

    def change(config: Config) -> None:
        config["net"][1] = {"name": "head", "type": kind, "kwargs": {"num_classes": 3, **kwargs}}
        config["net"][0]["kwargs"].update(out_layers=out_layers)

    return change


NOTED = {
    "hooks.0.kwargs.summary_writer": (hook("train_val_logger", summary_writer="pavi", skip_first_k=5), "TensorBoard"),
    "hooks.0.type": (hook("reload", group=2), "own order"),
    "hooks.0.kwargs.checkpoint_patterns": (hook("memory_checkpoint", checkpoint_patterns={"backbone": {}}), "every block"),
    "hooks.0.kwargs.dc_cfg": (hook("memory_checkpoint", dc_cfg={"warmup_iters": 30, "max_memory": 8}), "every block"),
    "hooks.0.kwargs.share_weight_num": (hook("memory_checkpoint", share_weight_num=2), "backbone"),
    f"{TRAIN}.transformer.4.kwargs.num_splits": (transform("torch_randerase", num_splits=3), "copies"),
    f"{TRAIN}.transformer.4.kwargs.device": (transform("torch_randerase", device="cuda"), "the device of the run"),
    f"{TRAIN}.transformer.3.kwargs.inplace": (transform("normalize", inplace=True), "same"),
    f"{TRAIN}.image_reader.kwargs.memcached": (reader("fs_pillow", memcached=True), "operating system"),
    f"{TRAIN}.image_reader.type": (reader("fs_opencv", color_mode="BGR"), "Pillow"),
    f"{TRAIN}.image_type": (dataset(image_type="cv2"), "Pillow"),
    f"{TRAIN}.reload_cfg": (dataset(reload_cfg={"mini_epoch": 2}), "packed"),
    f"{TRAIN}.random": (dataset(random=False), "sampler"),
    "dataset.train.batch_sampler.kwargs.sampler.kwargs.static_size": (sampler("repeat_factor", static_size=False), "learning rate"),
    "dataset.test.dataset.kwargs.evaluator.kwargs.image_reader": (
        evaluator("imagenet", image_reader={"type": "fs_opencv", "kwargs": {"image_dir": "images", "color_mode": "RGB"}}),
        "by name",
    ),
}

WORKS = {
    "skip_first_k": hook("train_val_logger", freq=2, logdir="log", skip_first_k=5),
    "display_freq": hook("grad_clipper", mode="average", max_norm=5.0, display_freq=10),
    "feature_vis": hook("feature_vis", layer_name="backbone.layer1", gt_dir="images", interpolation="bilinear"),
    "auto_save_metric": hook("auto_save_metric"),
    "memory_checkpoint": hook("memory_checkpoint", enable=True),
    "memory_empty": hook("memory_empty", freq=10),
    "memory_analysis": hook("memory_analysis", freq=10),
    "norm_image": transform("custom_to_tensor", norm_image=True),
    "repeat_factor": sampler("repeat_factor", t=0.2, ri_mode="ceil", pn=1.0, ri_if_empty=0, static_size=True),
    "list_balance": sampler("list_balance"),
    "list_balance with ratios": sampler("list_balance", ratios=[1.0]),
    "eval_class_idxs": evaluator("imagenet", topk=[1, 5], eval_class_idxs=[0, 2]),
    "eval_class_idxs of the long tail": evaluator("imagenet_lt", cls_freq=[200, 50, 5], eval_class_idxs=[0, 2]),
    "rank_cls": lambda config: config["dataset"]["train"]["dataset"].update(type="rank_cls"),
    "vit_head": head("vit_head", cls_type="avg", in_plane=1024, use_pool=False),
    "fpn_cls_head": head("fpn_cls_head", [2, 3, 4], in_plane=[16, 32, 64], feat_planes=24, sum_feature=True),
    "fpn_cls_head finds in_plane": head("fpn_cls_head", [2, 3, 4], input_feature_idx=[0, 2]),
    "fpn_cls_head flattens": head("fpn_cls_head", in_plane=1024, input_feature_idx=-1, use_pool=False),
}


@pytest.mark.parametrize("change", WORKS.values(), ids=WORKS)
def test_what_has_a_meaning_is_accepted_without_a_note(
    change: Callable[[Config], None], config: Config, write: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    if change is WORKS["norm_image"]:
        config["dataset"]["train"]["dataset"]["kwargs"]["transformer"][-2:] = []
    change(config)
    assert notes(write(config), capsys) == []


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


def test_eval_class_idxs_measures_these_classes_alone(
    config: Config, write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluator("imagenet", eval_class_idxs=[1, 2])(config)
    path = write(config)
    assert main(["train", "--config", path, "--opts", "trainer.max_epoch=1", "trainer.optimizer.kwargs.lr=0.005"]) == 0
    assert main(["eval", "--config", path]) == 0
    with (tmp_path / "run" / "results" / "predictions.csv").open() as file:
        rows = [row for row in csv.DictReader(file)]
    measured = [row["correct"] for row in rows if row["label"] in ("green", "blue")]
    assert (len(rows), len(measured)) == (13, 8)
    metrics = json.loads((tmp_path / "run" / "results" / "metrics.json").read_text())
    assert metrics["top1"] == pytest.approx(100 * measured.count("1") / 8)
    assert metrics["top1"] != pytest.approx(100 * sum(row["correct"] == "1" for row in rows) / 13)


def test_eval_class_idxs_without_images_is_an_error(
    config: Config, write: Write, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "reds.txt").write_text("val 0.png 0\nval 3.png 0\n")
    config["dataset"]["test"]["dataset"]["kwargs"]["meta_file"] = str(tmp_path / "reds.txt")
    evaluator("imagenet", eval_class_idxs=[1])(config)
    path = write(config)
    for command in ("check", "train"):
        (line,) = refused([command, "--config", path], capsys, images)
        assert tells(line, "dataset.test.dataset.kwargs.evaluator.kwargs.eval_class_idxs", "[1]")


def test_list_balance_deals_meta_files_by_ratio(
    config: Config, write: Write, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run on one list of reds and one of all images: half of what it trains on is red by itself, and a third of the rest."""
    (tmp_path / "reds.txt").write_text("".join(f"train {index}.png 0\n" for index in range(0, 6, 3)))
    dataset(meta_file=[str(images / "train.txt"), str(tmp_path / "reds.txt")])(config)
    sampler("list_balance", ratios=[1, 1])(config)
    experiment = load_experiment(Path(write(config)))
    data = build_dataset(experiment, "train")
    batches = train_batches(experiment, data)
    indices = [key.index for step in range(batches.steps_per_epoch) for keys in batches.keys_of(step) for key in keys]
    assert len(indices) == 48
    assert sum(data.sources[index] for index in indices) == 24
    sampler("list_balance", ratios=[1])(config)
    (line,) = refused(["check", "--config", write(config)], capsys, images)
    assert tells(line, "dataset.train.batch_sampler.kwargs.sampler.kwargs.ratios", "1", "2")


def test_display_freq_logs_the_norm_and_its_limit(config: Config, write: Write, tmp_path: Path) -> None:
    hook("grad_clipper", mode="pre_defined", max_norm=0.25, display_freq=3)(config)
    config["trainer"]["max_epoch"] = 1
    assert main(["train", "--config", write(config)]) == 0
    lines = re.findall(r"gradients at step (\d+): norm ([\d.]+), limit ([\d.]+)", (tmp_path / "run" / "train.log").read_text())
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    norms = {record["step"]: record["grad_norm"] for record in records if record["phase"] == "train"}
    assert [(int(step), float(limit)) for step, _, limit in lines] == [(3, 0.25), (6, 0.25)]
    assert [float(norm) for _, norm, _ in lines] == pytest.approx([norms[3], norms[6]], rel=1e-3)


def test_memory_checkpoint_recomputes_the_backbone_and_trains_the_same_weights(
    config: Config, write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config["trainer"]["max_epoch"] = 1
    assert main(["train", "--config", write(config)]) == 0
    plain = checkpoint(tmp_path / "run")
    for enable in (True, False):
        hook("memory_checkpoint", enable=enable)(config)
        net = build_net(load_experiment(Path(write(config))), {"num_classes": 3})
        assert net["backbone"].grad_checkpointing is enable
    hook("memory_checkpoint")(config)
    assert main(["train", "--config", write(config), "--opts", f"saver.save_dir={tmp_path / 'again'}"]) == 0
    frugal = checkpoint(tmp_path / "again")
    weights = [name for name in plain["model"] if "running_" not in name and "num_batches" not in name]
    assert_same({name: frugal["model"][name] for name in weights}, {name: plain["model"][name] for name in weights})
    config["net"][0] = {"name": "backbone", "type": "timm", "kwargs": {"model_name": "vgg11"}}
    path = write(config)
    (line,) = refused(["check", "--no-files", "--config", path], capsys, tmp_path)
    assert tells(line, "hooks.0", "grad_checkpointing", "VGG")


def test_memory_analysis_logs_what_is_in_use(config: Config, write: Write, tmp_path: Path) -> None:
    hook("memory_analysis", freq=4)(config)
    config["trainer"]["max_epoch"] = 1
    assert main(["train", "--config", write(config)]) == 0
    log = (tmp_path / "run" / "train.log").read_text()
    parameters = sum(value.numel() * 4 for name, value in checkpoint(tmp_path / "run")["model"].items() if "running" not in name)
    assert tells(log, f"{parameters / 1000000.0:.1f}", "MB", f"{parameters / 1000000.0:.1f}", "MB", "0.0", "MB")
    (found,) = re.findall(r"memory after step 4: ([\d.,]+) MB", log)
    assert float(found.replace(",", "")) > 50  # this process has torch in it


def test_feature_vis_shows_the_original_images_between_interpolated_maps(
    config: Config, write: Write, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[Any, str]] = []

    def panels(shown: Any, *, interpolation: str, **_: Any) -> bytes:
        seen.append((shown, interpolation))
        return b"png"

    monkeypatch.setattr("up.tracking.feature_maps.panels", panels)
    config["dataset"]["test"]["dataset"]["kwargs"]["transformer"][0]["kwargs"]["size"] = [16, 16]
    config["trainer"]["max_epoch"] = 1
    hook("feature_vis", layer_name="backbone.layer1", gt_dir=str(images), interpolation="bicubic", num_channels=1)(config)
    assert main(["train", "--config", write(config)]) == 0
    (file,) = (tmp_path / "run" / "feature_vis" / "step6").iterdir()
    assert file.name == "val 0_backbone.layer1.png"
    assert file.read_bytes() == b"png"
    ((shown, interpolation),) = seen
    with Image.open(images / "val 0.png") as original:
        assert np.array_equal(shown[0].image, np.asarray(original.convert("RGB")))
    assert shown[1].heat is not None
    assert interpolation == "bicubic"


def test_auto_save_metric_keeps_the_best_checkpoint_of_each_metric(
    config: Config, write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """After every third step, of which the later ones are deleted again, and the same in a run that was stopped on the way."""
    hook("auto_save_metric", metric=["loss", "mean_class_accuracy", "top9"])(config)
    config["runtime"]["iter_base"] = True
    config["trainer"] |= {"test_freq": 2, "save_freq": 100, "max_iter": 12}
    config["trainer"]["optimizer"]["kwargs"]["lr"] = 0.4  # too much: neither metric is best at the end
    path = write(config)
    assert main(["train", "--config", path]) == 0
    run, broken = tmp_path / "run", tmp_path / "broken"
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    evaluations = [record for record in records if record["phase"] == "eval"]
    best = {
        "loss": min(evaluations, key=lambda record: record["loss"]),
        "mean_class_accuracy": max(evaluations, key=lambda record: record["mean_class_accuracy"]),
    }
    told = json.loads((run / "best_metrics.json").read_text())
    assert "top1" in told
    for name, record in best.items():
        assert told[name] == {"value": record[name], "step": record["step"]}
        assert checkpoint(run, f"ckpt_best_{name}.pth")["step"] == record["step"]
    assert len(list(run.glob("ckpt_s*.pth"))) <= 2
    assert tells((run / "train.log").read_text(), "auto_save_metric", "evaluation", "top9")

    assert main(["train", "--config", path, "--opts", "trainer.max_iter=6", f"saver.save_dir={broken}"]) == 0
    assert main(["train", "--config", path, "--opts", f"saver.save_dir={broken}", "saver.auto_resume=true"]) == 0
    assert times_resumed(broken) == 1
    assert json.loads((broken / "best_metrics.json").read_text()) == told
    for name, record in best.items():
        assert checkpoint(broken, f"ckpt_best_{name}.pth")["step"] == record["step"]


@pytest.mark.usefixtures("each_graph_once")
def test_all_of_it_at_once_trains_evaluates_exports_and_predicts(
    config: Config, write: Write, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config["hooks"] = [
        {"type": "train_val_logger", "kwargs": {"freq": 1, "skip_first_k": 1, "summary_writer": "tensorboard"}},
        {"type": "grad_clipper", "kwargs": {"mode": "average", "max_norm": 5.0, "display_freq": 1}},
        {"type": "feature_vis", "kwargs": {"layer_name": "backbone.layer2", "gt_dir": str(images), "interpolation": "bilinear"}},
        {"type": "auto_save_metric", "kwargs": {"metric": "mean_class_accuracy"}},
        {"type": "memory_checkpoint", "kwargs": {"enable": True, "dc_cfg": {"warmup_iters": 30, "max_memory": 8}}},
        *({"type": kind} for kind in ("memory_empty", "memory_analysis", "reload", "auto_save_best", "auto_checkpoint")),
    ]
    for source in ("train", "test"):
        kwargs = config["dataset"][source]["dataset"]["kwargs"]
        kwargs["image_reader"] = {"type": "fs_opencv", "kwargs": {"image_dir": str(images), "color_mode": "BGR", "memcached": True}}
        kwargs["transformer"][-2] = {"type": "custom_to_tensor", "kwargs": {"norm_image": True}}
        kwargs["transformer"][-1]["kwargs"]["inplace"] = True
        config["dataset"][source]["dataset"] |= {"type": "rank_cls"}
        kwargs |= {"reload_cfg": {"mini_epoch": 1}, "random": True}
    transform("torch_randerase", num_splits=2, device="cpu", probability=0.25)(config)
    sampler("repeat_factor", t=0.2, ri_mode="round", pn=0.5, ri_if_empty=1, static_size=True)(config)
    evaluator("imagenet", topk=[1, 5], eval_class_idxs=[0, 1], image_reader={"type": "fs_opencv"})(config)
    head("fpn_cls_head", [3, 4], in_plane=[32, 64], feat_planes=16, sum_feature=True, input_feature_idx=[0, 1])(config)
    config["trainer"]["max_iter"] = 2
    path = write(config)
    run = tmp_path / "run"
    for words in (
        ["train"],
        ["eval"],
        ["to_onnx", "--save_prefix", str(tmp_path / "exported")],
        ["inference", "-c", str(run / CKPT), "-i", str(images / "val 0.png"), "-v", str(tmp_path / "seen")],
    ):
        assert main([*words, "--config", path]) == 0, capsys.readouterr().err
    log = (run / "train.log").read_text()
    assert tells(log, "gradients", "step", "2")
    assert "memory: parameters" in log
    assert log.count(" has no effect: ") == 8
    assert list((run / "feature_vis").glob("step2/*.png"))
    assert list((tmp_path / "seen").iterdir())
