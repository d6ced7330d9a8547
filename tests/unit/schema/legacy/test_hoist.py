"""The looser forms of UP's files: what is moved, what is merged, what is tolerated, and what is a typo after all."""

from __future__ import annotations

from typing import Any

import pytest

from tests.harness.facts import each_tells, tells
from up.config.nodes import parse_nodes
from up.errors import ConfigError
from up.schema.decode import Decoded, decode
from up.schema.overrides import apply_overrides

NET = "net: [{name: backbone, type: resnet18}]\n"


def decoded(text: str, *opts: str) -> Decoded:
    return decode(apply_overrides(parse_nodes(NET + text, "x.yaml"), opts))


def problem(text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        decoded(text)
    return str(caught.value)


def notes(text: str, *opts: str) -> list[str]:
    return [str(note) for note in decoded(text, *opts).notes]


class TestStrays:
    def test_top_level_iter_base_fp16_and_lr_scheduler(self) -> None:
        text = "iter_base: true\nfp16: {scale_factor: dynamic}\nlr_scheduler: {type: polylr}\ntrainer: {max_epoch: 3}\n"
        config = decoded(text).config
        assert config.runtime.iter_base
        assert config.runtime.precision == "fp16"
        assert config.trainer.lr_scheduler is not None
        assert config.trainer.lr_scheduler.type == "polylr"
        assert each_tells(
            notes(text),
            ("x.yaml:2", "iter_base", "runtime.iter_base"),
            ("x.yaml:3", "fp16", "runtime.fp16"),
            ("x.yaml:4", "lr_scheduler", "trainer.lr_scheduler"),
        )
        assert decoded(text).origins.of("trainer.lr_scheduler.type") == "x.yaml:4"

    def test_the_right_place_counts(self) -> None:
        text = "iter_base: true\nruntime: {iter_base: false}\n"
        assert not decoded(text).config.runtime.iter_base
        assert each_tells(notes(text), ("x.yaml:2", "iter_base", "runtime.iter_base"))

    def test_an_anchor_that_is_used_in_the_right_place_needs_no_note(self) -> None:
        text = "lr_scheduler: &lr {type: polylr}\ntrainer: {lr_scheduler: *lr}\n"
        assert decoded(text).config.trainer.lr_scheduler is not None
        assert notes(text) == []

    def test_lr_scheduler_under_optimizer(self) -> None:
        text = "trainer:\n  optimizer:\n    type: SGD\n    lr_scheduler: {type: polylr}\n"
        config = decoded(text).config
        assert config.trainer.lr_scheduler is not None
        assert config.trainer.optimizer is not None
        assert each_tells(notes(text), ("x.yaml:5", "trainer.optimizer.lr_scheduler", "trainer.lr_scheduler"))
        both = text + "  lr_scheduler: {type: StepLR}\n"
        assert decoded(both).config.trainer.lr_scheduler.type == "StepLR"  # type: ignore[union-attr]
        assert each_tells(notes(both), ("x.yaml:5", "trainer.optimizer.lr_scheduler", "trainer.lr_scheduler"))

    def test_max_iter_without_max_epoch_means_iter_base(self) -> None:
        text = "trainer: {max_iter: 100}\n"
        assert decoded(text).config.runtime.iter_base
        assert tells(notes(text)[0], "x.yaml:2", "trainer.max_iter", "max_epoch", "runtime.iter_base")
        assert not decoded("trainer: {max_iter: 100, max_epoch: 3}\n").config.runtime.iter_base
        assert decoded("trainer: {max_iter: 100, max_epoch: null}\n").config.runtime.iter_base
        assert not decoded(text + "runtime: {iter_base: false}\n").config.runtime.iter_base


class TestSharedBlocks:
    SHARED = """
dataset:
  train: {dataset: {type: cls}%s}
  test: {dataset: {type: cls}, batch_sampler: {type: base, kwargs: {batch_size: 8}}}
  batch_sampler: {type: base, kwargs: {sampler: {type: local}, batch_size: 16, drop_last: true}}
  dataloader: {type: cls_base, kwargs: {num_workers: 2, pin_memory: true}}
"""

    def sizes(self, train: str = "", *opts: str) -> Any:
        config = decoded(self.SHARED % train, *opts).config
        assert config.dataset.train is not None
        assert config.dataset.test is not None
        return config.dataset.train, config.dataset.test

    def test_shared_blocks_serve_both_and_a_complete_one_replaces(self) -> None:
        train, test = self.sizes()
        assert train.batch_sampler.kwargs.batch_size == 16
        assert train.batch_sampler.kwargs.drop_last
        assert test.batch_sampler.kwargs.batch_size == 8
        assert not test.batch_sampler.kwargs.drop_last
        assert test.batch_sampler.kwargs.sampler.type == "dist"
        assert train.dataloader == test.dataloader
        assert train.dataloader.kwargs.num_workers == 2

    def test_a_block_without_type_changes_only_its_keys(self) -> None:
        train, _ = self.sizes(", dataloader: {kwargs: {num_workers: 7}}")
        assert train.dataloader.kwargs.num_workers == 7
        assert train.dataloader.kwargs.pin_memory

    def test_an_override_of_one_source(self) -> None:
        train, test = self.sizes(
            "", "dataset.train.batch_sampler.kwargs.batch_size=32", "dataset.test.dataloader.kwargs.num_workers=0"
        )
        assert train.batch_sampler.kwargs.batch_size == 32
        assert train.batch_sampler.kwargs.sampler.type == "local"
        assert test.dataloader.kwargs.num_workers == 0
        assert test.dataloader.kwargs.pin_memory
        assert train.dataloader.kwargs.num_workers == 2

    def test_an_override_of_the_shared_block_that_no_source_uses_is_said(self) -> None:
        text = "dataset:\n  test: {dataset: {type: cls}, batch_sampler: {type: base}}\n"
        made = notes(text, "dataset.batch_sampler.kwargs.batch_size=3")
        assert each_tells(made, ("--opts", "dataset.batch_sampler", "dataset.test.batch_sampler"))

    def test_origins(self) -> None:
        origins = decoded(self.SHARED % "", "dataset.train.batch_sampler.kwargs.batch_size=32").origins
        assert origins.of("dataset.train.batch_sampler.kwargs.batch_size") == "--opts"
        assert origins.of("dataset.train.batch_sampler.kwargs.drop_last") == "x.yaml:6"
        assert origins.of("dataset.test.batch_sampler.kwargs.batch_size") == "x.yaml:5"
        assert origins.of("dataset.test.dataloader.kwargs.num_workers") == "x.yaml:7"


class TestFreeForm:
    @pytest.mark.parametrize(
        "text",
        [
            "num_classes: 10",
            "num_classes: &num_classes 10",
            "mixup: {type: torch_mixup, kwargs: {alpha: 1}}",
            "to_tensor: {type: to_tensor}",
            "flips: [{type: a}, {type: b, kwargs: {}}]",
            "sizes: [1, 2]",
            "augmentations: {strong: &strong {type: a}, other: {size: 3}}",
            "transforms: &transforms {a: 1}",
            "readers: {fast: {type: fs_turbo}, slow: [{type: fs_pillow, kwargs: {}}]}",
            "max_epoch: &max_epoch 3",
            "optimizer: &optimizer {type: SGD}",
        ],
    )
    def test_what_holds_anchors_is_tolerated(self, text: str) -> None:
        assert notes(text) == []

    @pytest.mark.parametrize(
        ("text", "meant"),
        [
            ("trianer: {max_epoch: 3}", "trainer"),
            ("train: {max_epoch: 3}", "trainer"),
            ("Runtime: {}", "runtime"),
            ("hook: [{type: a}]", "hooks"),
            ("schedular: {type: a, kwargs: {}}", "trainer.lr_scheduler"),
            ("optimizer: {type: SGD, kwargs: {}}", "trainer.optimizer"),
            ("techer: [{name: a, type: b}]", "teacher"),
            ("dataloader: {type: a}", "dataset.dataloader"),
        ],
    )
    def test_near_misses_are_typos(self, text: str, meant: str) -> None:
        assert tells(problem(text), "x.yaml:2", f"{text.split(':')[0]}", f"{meant!r}")

    def test_a_block_of_settings_is_no_anchor(self) -> None:
        assert tells(problem("my_stuff: {lr: 3}"), "x.yaml:2", "my_stuff", "section")

    def test_an_override_that_only_changes_an_anchor_is_said(self) -> None:
        assert each_tells(notes("num_classes: &n 10", "num_classes=5"), ("--opts", "num_classes", "--opts"))


class TestOlderMimic:
    TEACHER = "teacher: [{name: backbone, type: resnet50}]\n"

    def test_older_form(self) -> None:
        made = decoded(
            self.TEACHER + "mimic:\n  mimic_name: head.classifier\n  mimic_type: kl\n  loss_weight: 2\n"
            "  teacher: {teacher_weight: t.pth}\n  student:\n    student_weight: s.pth\n"
        )
        assert made.config.mimic is not None
        job = made.config.mimic.jobs["mimic_job0"]
        assert job.cfgs.loss.type == "kl_loss"
        assert job.student.mimic_name == ["head.classifier"]
        assert job.teachers["teacher"].mimic_name == ["head.classifier"]
        assert job.teachers["teacher"].teacher_weight == "t.pth"
        assert job.loss_weight == 2.0
        assert made.config.saver.pretrain_model == "s.pth"
        assert each_tells([str(note) for note in made.notes], ("x.yaml:9", "mimic.student.student_weight", "saver.pretrain_model"))
        assert made.origins.of("saver.pretrain_model") == "x.yaml:9"
        assert made.origins.of("mimic.mimic_job0.cfgs.loss.type") == "x.yaml:5"
        assert made.origins.of("mimic.mimic_job0.student.mimic_name") == "x.yaml:4"

    def test_own_layers_win_over_shared_ones(self) -> None:
        made = decoded(self.TEACHER + "mimic: {mimic_name: [a], mimic_type: dkd, teacher: , student: {mimic_name: [b]}}\n")
        assert made.config.mimic is not None
        job = made.config.mimic.jobs["mimic_job0"]
        assert (job.student.mimic_name, job.teachers["teacher"].mimic_name, job.cfgs.loss.type) == (["b"], ["a"], "dkd")

    def test_layers_of_a_student_that_is_not_mentioned(self) -> None:
        made = decoded(self.TEACHER + "mimic: {mimic_name: [a], mimic_type: kl, teacher: {teacher_weight: t.pth}}\n")
        assert made.config.mimic is not None
        assert made.config.mimic.jobs["mimic_job0"].student.mimic_name == ["a"]

    def test_two_losses(self) -> None:
        job = "{mimic_name: a, mimic_type: kl, cfgs: {loss: {type: l2_loss}}, teacher: , student: }"
        for text, key in ((f"mimic: {job}", "mimic"), (f"mimic: {{mimic_job0: {job}}}", "mimic.mimic_job0")):
            made = decoded(f"{self.TEACHER}{text}\n")
            assert made.config.mimic is not None
            assert made.config.mimic.jobs["mimic_job0"].cfgs.loss.type == "l2_loss"
            (note,) = made.notes
            assert tells(str(note), "x.yaml:3", f"{key}.mimic_type", "cfgs.loss")

    def test_two_starting_points_contradict(self) -> None:
        text = (
            self.TEACHER
            + "mimic: {mimic_name: a, mimic_type: kl, teacher: , student: {student_weight: s.pth}}\nsaver: {pretrain_model: %s}\n"
        )
        assert tells(
            problem(text % "q.pth"),
            "x.yaml:3",
            "mimic.student.student_weight",
            "student",
            "saver.pretrain_model",
            "'q.pth'",
            "x.yaml:4",
        )
        assert decoded(text % "s.pth").config.saver.pretrain_model == "s.pth"
        assert decoded(text % "null").config.saver.pretrain_model == "s.pth"

    def test_current_form_with_jobs(self) -> None:
        teacher = "{mimic_name: [b], teacher_bn_mode: train}"
        job = f"{{cfgs: {{loss: {{type: l2_loss}}}}, student: {{mimic_name: [a]}}, teacher: {teacher}}}"
        jobs = f"  mimic_job0: {job}\n  mimic_job1: {job}\n"
        text = f"{self.TEACHER}mimic:\n  mimic_as_jobs: true\n  task_loss: false\n  cache: {{dir: c, topk: 10}}\n{jobs}"
        mimic = decoded(text).config.mimic
        assert mimic is not None
        assert list(mimic.jobs) == ["mimic_job0", "mimic_job1"]
        assert not mimic.task_loss
        assert mimic.cache is not None
        assert (mimic.cache.dtype, mimic.cache.topk) == ("fp16", 10)
        assert mimic.jobs["mimic_job1"].teachers["teacher"].teacher_bn_mode == "train"

    def test_a_teacher_that_is_a_file(self) -> None:
        made = decoded("teacher1:\n  onnx: model.tar\n")
        (module,) = made.config.teachers["teacher1"]
        assert (module.name, module.type, module.kwargs) == ("logits", "onnx", {"file": "model.tar"})
        assert made.origins.of("teacher1.0.kwargs.file") == "x.yaml:3"
        refused = problem("teacher: {onx: model.tar}\n")
        assert tells(refused, "x.yaml:2", "teacher.onx", "teacher", "'onnx'")

    def test_problems_keep_the_paths_of_the_file(self) -> None:
        message = problem(self.TEACHER + "mimic:\n  student: {}\n  loss_weigth: 3\n  teacher: {mimic_name: []}\n")
        assert [line.split(": ", 2)[1] for line in message.splitlines()] == [
            "mimic.cfgs",
            "mimic.student.mimic_name",
            "mimic.loss_weigth",
            "mimic.teacher.mimic_name",
        ]
        assert "mean 'loss_weight'?" in message
