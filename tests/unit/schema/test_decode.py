"""Nodes to typed sections: every problem at once in the words of the house, and the origin of every value."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.harness.facts import each_tells, facts, tells
from up.config.nodes import parse_nodes
from up.engine.checkpoint import CheckpointError
from up.errors import ConfigError, Problem, UserError
from up.schema.decode import Decoded, decode, load_config, missing_for_training

NET = "net: [{name: backbone, type: resnet18}]\n"


def decoded(text: str) -> Decoded:
    return decode(parse_nodes(text, "x.yaml"))


def problems(text: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        decoded(text)
    return str(caught.value).splitlines()


def problem(text: str) -> str:
    """The one problem of ``text``, which stands below a valid net of one line."""
    (found,) = problems(NET + text)
    return found


class TestProblems:
    def test_all_at_once_in_the_order_of_the_file(self) -> None:
        found = problems("trainer: {max_epoch: -1}\nnet:\n- {name: a}\nruntime: {random_seed: x}\ntrianer: {}\n")
        assert [line.split(": ")[:2] for line in found] == [
            ["x.yaml:1", "trainer.max_epoch"],
            ["x.yaml:3", "net.0.type"],
            ["x.yaml:4", "runtime.random_seed"],
            ["x.yaml:5", "trianer"],
        ]

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("trainer: {max_epoch: -1}", "trainer.max_epoch: got -1, expected at least 1"),
            ("trainer: {max_epoch: 1.5}", "trainer.max_epoch: got 1.5, expected a whole number"),
            ("trainer: {max_epoch: true}", "trainer.max_epoch: got true, expected a whole number"),
            ("trainer: {clip_norm: fast}", "trainer.clip_norm: got 'fast', expected a number"),
            ("trainer: {clip_norm: '0.1'}", "trainer.clip_norm: got '0.1', expected a number. Remove the quotes."),
            ("trainer: {clip_norm: .inf}", "trainer.clip_norm: got .inf, expected a finite number"),
            ("trainer: {clip_norm: .nan}", "trainer.clip_norm: got .nan, expected a finite number"),
            ("trainer: {clip_norm: -.inf}", "trainer.clip_norm: got -.inf, expected a finite number"),
            ("trainer: {clip_norm: true}", "trainer.clip_norm: got true, expected a number"),
            ("trainer: {clip_norm: 0}", "trainer.clip_norm: got 0, expected more than 0"),
            ("trainer: {keep_last: 1}", "trainer.keep_last: got 1, expected all or at least 2"),
            ("trainer: {accumulate: 0}", "trainer.accumulate: got 0, expected at least 1"),
            ("ema: {kwargs: {decay: 1.5}}", "ema.kwargs.decay: got 1.5, expected at most 1"),
            (
                "runtime: {compile: 'true'}",
                "runtime.compile: got 'true', expected true or false or a block of keys. Remove the quotes.",
            ),
            ("runtime: {compile: 1}", "runtime.compile: got 1, expected true or false or a block of keys"),
            (
                "runtime: {compile: {mode: fast}}",
                "runtime.compile.mode: got 'fast', expected one of default, reduce-overhead, max-autotune, "
                "max-autotune-no-cudagraphs",
            ),
            ("runtime: {amp: bf61}", "runtime.amp: got 'bf61', expected one of bf16, fp16, auto. Did you mean 'bf16'?"),
            ("runtime: {device: gpu}", "runtime.device: got 'gpu', expected auto, cpu, cuda, cuda:1, mps or xpu"),
            ("runtime: {task_names: [a, b]}", "runtime.task_names: got ['a', 'b'], expected text"),
            ("runtime: {plugins: my.parts}", "runtime.plugins: got 'my.parts', expected a list. Write [my.parts]."),
            ("saver: {save_dir: 7}", "saver.save_dir: got 7, expected text. Put it in quotes."),
            ("saver: {save_dir: ''}", "saver.save_dir: got '', expected text that is not empty"),
            ("saver: 3", "saver: got 3, expected a block of keys"),
            ("hooks: {type: a}", "hooks: got a block (type), expected a list"),
            ("runtime: {special_bn_init: 3}", "runtime.special_bn_init: got 3, expected true or false or a block of keys"),
            ("to_kestrel: {version: '1.0'}", "to_kestrel.version: got '1.0', expected three numbers such as 1.0.0"),
            ("to_kestrel: {resize_hw: [1]}", "to_kestrel.resize_hw: got [1], expected a list of at least 2 entries or text"),
            ("to_kestrel: {resize_hw: [1, a]}", "to_kestrel.resize_hw.1: got 'a', expected a whole number"),
            ("to_kestrel: {pixel_means: [1, .nan]}", "to_kestrel.pixel_means.1: got .nan, expected a finite number"),
        ],
    )
    def test_wrong_values(self, text: str, message: str) -> None:
        assert problem(text) == f"x.yaml:2: {message}"

    def test_batch_size_true(self) -> None:
        text = "dataset: {train: {dataset: {type: cls}, batch_sampler: {kwargs: {batch_size: true}}}}"
        assert tells(problem(text), "x.yaml:2", "dataset.train.batch_sampler.kwargs.batch_size", "number")

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("trainer: {schedular: {}}", "trainer.schedular: trainer takes no such key. Did you mean 'lr_scheduler'?"),
            (
                "trainer: {lr_scheduler: {type: a, warmup: 3}}",
                "trainer.lr_scheduler.warmup: trainer.lr_scheduler takes no such key.",
            ),
            (
                "trainer: {optimizer: {type: SGD, lr: 0.1}}",
                "trainer.optimizer.lr: trainer.optimizer takes no such key. (It takes type, kwargs, pconfig, special_param_group; "
                "is it an argument? Then write kwargs: {lr: ...})",
            ),
            ("runtime: {fp16: {scale: 1}}", "runtime.fp16.scale: runtime.fp16 takes no such key."),
            ("to_kestrel: {toks_type: det}", "to_kestrel.toks_type: got 'det', expected cls"),
            (
                "dataset: {train: {dataset: {type: cls}, batch_sampler: {type: aspect_ratio}}}",
                "dataset.train.batch_sampler.type: got 'aspect_ratio', expected base",
            ),
            ("dataset: {tarin: {}}", "dataset.tarin: dataset takes no such key. Did you mean 'train'?"),
            ("ema: {kwargs: {dcay: 0.9}}", "ema.kwargs.dcay: ema.kwargs takes no such key. Did you mean 'decay'?"),
            ("hooks: [{type: a, kwarg: {}}]", "hooks.0.kwarg: hooks.0 takes no such key. Did you mean 'kwargs'?"),
            ("trainer: {optimizer: {type: a, pconfig: {bn: {}}}}", "trainer.optimizer.pconfig.bn: trainer.optimizer.pconfig takes"),
        ],
    )
    def test_unknown_keys_at_any_depth(self, text: str, message: str) -> None:
        assert problem(text).startswith(f"x.yaml:2: {message}")

    def test_an_unknown_key_is_reported_at_the_key_and_a_wrong_value_where_it_stands(self) -> None:
        found = problems("a: &a fast\n" + NET + "trainer:\n  clip_norm: *a\n  clip_nrom: *a\n")
        assert [line.split(":")[1] for line in found] == ["1", "5"]

    def test_missing_keys_say_what_they_are(self) -> None:
        assert each_tells(problems("a: 1\n"), ("x.yaml:1", "missing", "modules"))
        assert tells(problem("trainer:\n\n  optimizer: {kwargs: {}}"), "x.yaml:4", "trainer.optimizer.type", "optimizer")

    def test_problems_in_an_anchor_name_its_line(self) -> None:
        found = problems("opt: &opt\n  type: SGD\n  kwargs: 3\n" + NET + "trainer:\n  optimizer: *opt\n")
        assert each_tells(found, ("x.yaml:3", "trainer.optimizer.kwargs", "3"))

    def test_keys_of_kwargs_are_text(self) -> None:
        assert tells(problem("trainer: {optimizer: {type: a, kwargs: {3: 4}}}"), "trainer.optimizer.kwargs.3", "3", "text")

    def test_lr_1e_3_works(self) -> None:
        config = decoded(NET + "trainer: {optimizer: {type: SGD, kwargs: {lr: 1e-3}}}").config
        assert config.trainer.optimizer is not None
        assert config.trainer.optimizer.kwargs["lr"] == 0.001


class TestContradictions:
    def test_names_in_the_net(self) -> None:
        found = problems("net:\n- {name: a, type: x}\n- {name: a, type: y}\n- {name: b, type: z, prev: zz}\n")
        assert each_tells(found, ("x.yaml:3", "net.1.name", "'a'", "net.0"), ("x.yaml:4", "net.2.prev", "'zz'"))

    def test_prev_in_order(self) -> None:
        assert decoded("net:\n- {name: a, type: x}\n- {name: b, type: z, prev: a}\n").config.net[1].prev == "a"

    def test_adapters_are_as_many_as_layers(self) -> None:
        text = (
            "teacher: [{name: backbone, type: x}]\nmimic:\n  cfgs: {loss: {type: l2_loss}}\n"
            "  student: {mimic_name: [a, b], adapter: [linear, null, conv1x1]}\n  teacher: {mimic_name: [a, b]}\n"
        )
        assert each_tells(problems(NET + text), ("x.yaml:5", "mimic.student.adapter", "3", "2"))

    def test_a_mimic_that_teaches_nothing(self) -> None:
        text = (
            "teacher: [{name: backbone, type: x}]\nmimic:\n  cfgs: {loss: {type: l2_loss}}\n  task_loss: false\n"
            "  loss_weight: 0\n  student: {mimic_name: a}\n  teacher: {mimic_name: a}\n"
        )
        expected = "x.yaml:5: mimic.task_loss: got false, and every loss_weight is 0: nothing would be learned"
        assert problems(NET + text) == [expected]
        assert decoded(NET + text.replace("task_loss: false", "task_loss: true")).config.mimic is not None

    def test_keys_of_a_job_beside_jobs(self) -> None:
        job = "{cfgs: {loss: {type: l2_loss}}, student: {mimic_name: a}, teacher: {mimic_name: a}}"
        text = f"teacher: [{{name: backbone, type: x}}]\nmimic:\n  mimic_job0: {job}\n  loss_weight: 2\n"
        assert each_tells(problems(NET + text), ("x.yaml:5", "mimic.loss_weight", "mimic_job0", "mimic_as_jobs", "mimic_job*"))
        (unknown,) = problems(NET + text.replace("loss_weight", "loss_weigth"))
        assert tells(unknown, "x.yaml:5", "mimic.loss_weigth", "'loss_weight'")

    def test_teachers_of_mimic_exist_and_have_as_many_layers(self) -> None:
        found = problems(
            NET
            + "teacher0: [{name: backbone, type: x}]\nmimic:\n  cfgs: {loss: {type: kl_loss}}\n"
            + "  student: {mimic_name: [a, b]}\n  teacher0: {mimic_name: [a]}\n  teacher1: {mimic_name: [a, b]}\n"
        )
        assert each_tells(
            found,
            ("x.yaml:6", "mimic.teacher0.mimic_name", "1", "2", "student"),
            ("x.yaml:7", "mimic.teacher1", "'teacher1'", "'teacher0'"),
        )

    def test_what_training_needs(self) -> None:
        config = decoded(NET).config
        assert [each.key for each in missing_for_training(config)] == ["dataset.train", "trainer.max_epoch", "trainer.optimizer"]
        full = decoded(NET + "dataset: {train: {dataset: {type: cls}}}\ntrainer: {max_iter: 3, optimizer: {type: SGD}}")
        assert missing_for_training(full.config) == []


class TestOrigins:
    TEXT = NET + "\ntrainer:\n  max_epoch: 3\n  optimizer: {type: SGD, kwargs:\n    {a.b: 1}}\nhooks:\n- type: x\n"

    def test_of_values(self) -> None:
        origins = decoded(self.TEXT).origins
        assert origins.of("trainer.max_epoch") == "x.yaml:4"
        assert origins.of("trainer.optimizer.kwargs.a.b") == "x.yaml:6"
        assert origins.of("hooks.0.type") == "x.yaml:8"
        assert origins.of("trainer.test_freq") == "default"
        assert origins.of("hooks.1.type") == "default"
        assert origins.of("saver.save_dir") == "default"

    def test_placing_gives_a_path_and_a_line_to_what_has_none(self) -> None:
        origins = decoded(self.TEXT).origins
        with pytest.raises(ConfigError, match=facts("x.yaml:4", "trainer.max_epoch")), origins.placing("trainer.max_epoch"):
            raise UserError("too few")
        with pytest.raises(ConfigError, match=facts("x.yaml:8", "hooks.0.type")), origins.placing("trainer"):
            raise ConfigError([Problem("no such", key="hooks.0.type")])
        with pytest.raises(CheckpointError, match=r"^a.pth: damaged$"), origins.placing("trainer"):
            raise CheckpointError("damaged", file="a.pth")

    def test_of_problems_found_later(self) -> None:
        origins = decoded(self.TEXT).origins
        located = origins.locate(
            [
                Problem("is missing", key="trainer.optimizer.kwargs.lr"),
                Problem("wrong", key="hooks.0.kwargs.freq"),
                Problem("all of it"),
                Problem("has a place", key="net.0", file="y.yaml", line=7),
            ]
        )
        assert each_tells(
            [str(problem) for problem in located],
            ("x.yaml:5", "trainer.optimizer.kwargs.lr", "missing"),
            ("x.yaml:8: hooks.0.kwargs.freq: wrong",),
            ("x.yaml:1: all of it",),
            ("y.yaml:7", "net.0", "place"),
        )

    def test_load_config_reads_overrides_and_decodes(self, tmp_path: Path) -> None:
        path = tmp_path / "a.yaml"
        path.write_text(self.TEXT)
        config, notes, origins = load_config(path, ["trainer.max_epoch=9"])
        assert config.trainer.max_epoch == 9
        assert notes == []
        assert origins.of("trainer.max_epoch") == "--opts"
        assert origins.of("trainer.optimizer.type") == f"{path}:5"
