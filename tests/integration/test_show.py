"""``up show`` and ``up flops``: what counts, where it comes from, what there is, what it costs."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.harness.facts import each_tells, tells
from tests.harness.refusals import refused
from up.__main__ import main
from up.build.experiment import all_tables, find_task
from up.schema.decode import load_config

Config = dict[str, Any]
Write = Callable[[Config], str]
SHIPPED = Path(__file__).parents[2] / "configs" / "cls"


def shown(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    capsys.readouterr()
    assert main(["show", *words]) == 0
    return capsys.readouterr().out


def origins(text: str) -> dict[str, str]:
    """The origin behind each line that has one, by the text before it."""
    pairs = (line.rsplit("  # ", 1) for line in text.splitlines() if "  # " in line)
    return {what.strip(): origin for what, origin in pairs}


class TestConfig:
    def test_every_value_says_where_it_comes_from(self, config: Config, write: Write, capsys: pytest.CaptureFixture[str]) -> None:
        path = write(config)
        text = shown(capsys, "config", "--config", path, "--opts", "trainer.max_epoch=7", "ema.enable=true")
        found = origins(text)
        lines = Path(path).read_text().splitlines()
        assert found["max_epoch: 7"] == found["enable: true"] == "--opts"
        assert found["random_seed: 7"] == f"{path}:{lines.index('  random_seed: 7') + 1}"
        assert found["lr: 0.05"] == f"{path}:{lines.index('      lr: 0.05') + 1}"
        assert found["decay: 0.9999"] == found["keep_last: 2"] == "default"
        assert all("  # " in line or line.rstrip().endswith(":") for line in text.splitlines())

    def test_is_a_configuration_of_equal_meaning(
        self, config: Config, write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        path = write(config)
        again = tmp_path / "again.yaml"
        again.write_text(shown(capsys, "config", "--config", path))
        assert load_config(again).config == load_config(Path(path)).config

    def test_values_from_anchors_and_bases_name_the_line_where_they_stand(self, capsys: pytest.CaptureFixture[str]) -> None:
        path = SHIPPED / "kd_quickstart.yaml"
        found = origins(shown(capsys, "config", "--config", str(path)))
        own, base = (file.read_text(encoding="utf-8").splitlines() for file in (path, path.with_name("quickstart.yaml")))
        (anchor,) = (number for number, line in enumerate(base, 1) if "&normalize" in line)
        assert found["std: [0.35, 0.35, 0.35]"] == f"{path.with_name('quickstart.yaml')}:{anchor}"
        assert found["max_epoch: 60"] == f"{path}:{own.index('  max_epoch: 60') + 1}"

    def test_of_an_include_names_the_other_file(
        self, config: Config, write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (tmp_path / "optimizer.yaml").write_text("type: AdamW\nkwargs: {lr: 0.25}\n")
        path = Path(write(config))
        text = re.sub(r"  optimizer:\n(    .*\n)+", "  optimizer: !include optimizer.yaml\n", path.read_text())
        path.write_text(text)
        assert origins(shown(capsys, "config", "--config", str(path)))["lr: 0.25"] == f"{tmp_path / 'optimizer.yaml'}:2"

    def test_needs_a_file(self, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
        assert each_tells(refused(["show", "config"], capsys, tmp_path), ("config", "YAML", "FILE.yaml"))


class TestComponents:
    def test_all_tables_with_all_their_parts(self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("COLUMNS", "200")
        text = shown(capsys, "components")
        for name, table in all_tables(find_task("cls"), []).items():
            assert re.search(rf"^{name} *$", text, re.MULTILINE)
            for entry in table:
                assert f" {entry} " in text

    def test_one_table(self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("COLUMNS", "200")
        text = shown(capsys, "components", "loss", "batch_fn")
        assert "label_smooth_ce" in text
        assert "smooth_ratio = 0.1 (number ≥ 0" in text
        assert "switch_prob = 0.5 (number ≥ 0, ≤ 1)" in text
        assert "num_classes (whole number" in text
        assert "derived from" in text
        assert "resnet18" not in text

    def test_names_of_other_libraries(self, capsys: pytest.CaptureFixture[str]) -> None:
        text = shown(capsys, "components", "optimizer")
        assert re.search(r"and \d{2,3} more by name: .*\bAdamW\b.*\blion\b", text, re.DOTALL)

    def test_unknown_table(self, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
        (line,) = refused(["show", "components", "los"], capsys, tmp_path)
        assert tells(line, "table", "'los'", "'loss'")

    def test_parts_of_the_plug_ins_of_a_file(
        self, config: Config, write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (tmp_path / "c14_parts.py").write_text(
            'from up.tasks.cls.model.losses import CrossEntropy\n\n\nclass Mine(CrossEntropy):\n    """My own loss."""\n\n\n'
            'TABLES = {"loss": {"my_loss": "c14_parts:Mine"}}\n'
        )
        config["runtime"]["plugins"] = ["c14_parts"]
        path = write(config)
        assert "my_loss" in shown(capsys, "components", "loss", path)
        losses = json.loads(shown(capsys, "schema", path))["$defs"]["part.loss"]["properties"]["type"]["anyOf"]
        assert "my_loss" in {entry.get("const") for entry in losses}
        assert "my_loss" not in shown(capsys, "components", "loss")

    def test_a_table_without_parts(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert tells(shown(capsys, "components", "space"), "space", "runtime.plugins")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("schema", "loss"), ("schema", "'loss'")),
        (("config", "FILE", "loss"), ("config", "'loss'")),
        (("config", "FILE", "--task", "cls"), ("--task",)),
        (("components", "loss", "FILE", "--task", "cls"), ("--task", "FILE")),
        (("components", "loss", "-o", "trainer.max_epoch=3"), ("-o", "YAML")),
    ],
)
def test_words_that_have_no_effect(
    words: tuple[str, ...], said: tuple[str, ...], config: Config, write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(config)
    given, expected = ([path if word == "FILE" else word for word in each] for each in (words, said))
    assert each_tells(refused(["show", *given], capsys, tmp_path), expected)


class TestSchema:
    def test_knows_sections_and_parts(self, capsys: pytest.CaptureFixture[str]) -> None:
        schema = json.loads(shown(capsys, "schema"))
        assert set(schema["properties"]) >= {"runtime", "dataset", "trainer", "saver", "hooks", "net", "ema"}
        losses = schema["$defs"]["part.loss"]["properties"]["type"]["anyOf"]
        assert {"const": "stce", "description": losses[-1]["description"]} in losses
        assert schema["$defs"]["TrainerSection"]["properties"]["max_epoch"]["description"] == "Epochs to train."

    def test_unknown_task(self, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
        (line,) = refused(["show", "schema", "--task", "clss"], capsys, tmp_path)
        assert tells(line, "task", "'clss'", "'cls'")


class TestFlops:
    @pytest.fixture(autouse=True)
    def _wide(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("COLUMNS", "200")

    def test_of_a_known_network(self, capsys: pytest.CaptureFixture[str]) -> None:
        """ResNet-50: 25.557 M parameters, 4.09 G multiply-adds at 224 pixels (He et al. 2016, table 1, counts 3.8 of them)."""
        assert main(["flops", "--config", str(SHIPPED / "res50_strikes.yaml")]) == 0
        out = capsys.readouterr().out
        assert "3x224x224" in out
        (total,) = (line for line in out.splitlines() if " total " in line)
        assert re.findall(r"[\d.]+[kMG]", total) == ["25.557M", "4.089G", "11.115M"]

    def test_at_another_size(self, config: Config, write: Write, capsys: pytest.CaptureFixture[str]) -> None:
        path = write(config)
        macs = []
        for size in ("3x32x32", "3x64x64"):
            assert main(["flops", "-i", size, "--config", path]) == 0
            (row,) = (line for line in capsys.readouterr().out.splitlines() if " backbone " in line)
            macs.append(float(re.findall(r"([\d.]+)M", row)[0]))
        assert macs[1] == pytest.approx(4 * macs[0], rel=1e-3)

    def test_size_that_is_none(self, config: Config, write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        path = write(config)
        (line,) = refused(["flops", "-i", "3x0x32", "--config", path], capsys, tmp_path)
        assert tells(line, "--input-size", "'3x0x32'", "CxHxW", "3x224x224")

    def test_without_data(self, config: Config, write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        del config["dataset"]
        path = write(config)
        (line,) = refused(["flops", path], capsys, tmp_path)
        assert tells(line, path, "dataset.test", "is missing")
        assert main(["flops", "-i", "3x32x32", path]) == 0

    def test_asks_the_data_for_the_classes(self, config: Config, write: Write, capsys: pytest.CaptureFixture[str]) -> None:
        del config["net"][1]["kwargs"]["num_classes"]
        assert main(["flops", "--config", write(config)]) == 0
        (row,) = (line for line in capsys.readouterr().out.splitlines() if " head " in line)
        assert " 195 " in row  # 64 x 3 weights and 3 biases


def test_effective_configuration_of_a_run_is_its_own(config: Config, write: Write, tmp_path: Path) -> None:
    """config.yaml of the run folder can be trained again."""
    config["trainer"]["max_iter"] = 1
    assert main(["train", "--config", write(config)]) == 0
    text = (tmp_path / "run" / "config.yaml").read_text()
    assert yaml.safe_load(text)["trainer"]["keep_last"] == 2
    assert main(["train", "--config", str(tmp_path / "run" / "config.yaml"), "--opts", f"saver.save_dir={tmp_path / 'again'}"]) == 0
    assert (tmp_path / "again" / "ckpt_best.pth").is_file()


def test_a_run_on_bases_leaves_a_config_that_needs_none_of_them(
    config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The file over two bases: `show config` places each value, `check` passes, config.yaml of the run is the merged whole."""
    bases = tmp_path / "_base"
    bases.mkdir()
    (bases / "model.yaml").write_text(yaml.safe_dump({"net": config.pop("net"), "trainer": {"max_epoch": 9}}))
    (bases / "rest.yaml").write_text(yaml.safe_dump(config))
    own = tmp_path / "own.yaml"
    dropout = "- {name: head, kwargs: {dropout: 0.5}}\n"
    own.write_text(f"base: [_base/model.yaml, _base/rest.yaml]\ntrainer:\n  max_epoch: 1\nnet:\n{dropout}")
    found = origins(shown(capsys, "config", "--config", str(own)))
    assert found["max_epoch: 1"] == f"{own}:3"
    assert found["dropout: 0.5"] == f"{own}:5"
    assert found["random_seed: 7"].startswith(f"{bases}/rest.yaml:")
    assert found["num_classes: 3"].startswith(f"{bases}/model.yaml:")
    assert main(["check", "--config", str(own)]) == 0
    assert main(["train", "--config", str(own)]) == 0
    for path in bases.iterdir():
        path.unlink()
    left = tmp_path / "run" / "config.yaml"
    assert load_config(left).config.net[1].kwargs == {"num_classes": 3, "dropout": 0.5}
    assert main(["eval", "--config", str(left), "--ckpt", str(tmp_path / "run" / "ckpt_latest.pth")]) == 0
    capsys.readouterr()
    assert main(["train", "--config", str(own)]) == 2
    assert tells(capsys.readouterr().err, f"{own}:1", "base", f"{bases}/model.yaml")
