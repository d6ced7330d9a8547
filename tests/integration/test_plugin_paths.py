"""Where plug-ins are found: dotted names and paths, in PLUGINPATH and in the file, under ``python -m up`` and the script ``up``."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.harness.ranks import Server, start
from tests.harness.refusals import refused
from tests.harness.tiny import tiny_config
from up.build.experiment import load_experiment
from up.errors import UserError

PLUGIN = '''
from up.tasks.cls.model.losses import CrossEntropy

class MyLoss(CrossEntropy):
    """Cross-entropy by another name."""

TABLES = {"loss": {"my_loss": "%s:MyLoss"}}
'''


def written(folder: Path, images: Path, plugins: list[str] | None = None) -> str:
    config: dict[str, Any] = tiny_config(images, folder / "run")
    config["net"][2]["kwargs"]["cls_loss"]["type"] = "my_loss"
    if plugins:
        config["runtime"]["plugins"] = plugins
    folder.mkdir(exist_ok=True, parents=True)
    (folder / "x.yaml").write_text(yaml.safe_dump(config))
    return str(folder / "x.yaml")


@pytest.fixture
def importing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A working folder of its own; the import path and what was imported are as before afterwards."""
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    monkeypatch.setattr(sys, "modules", dict(sys.modules))
    (tmp_path / "work").mkdir(exist_ok=True)
    monkeypatch.chdir(tmp_path / "work")


@pytest.mark.usefixtures("importing")
@pytest.mark.parametrize(
    ("place", "name", "plugin_path"),
    [
        ("work", "my_parts", "my_parts"),
        ("work/lab", "lab.my_parts", "lab.my_parts"),
        ("work/lab", "my_parts", "lab/my_parts"),
        ("work/lab", "my_parts", "./lab/my_parts.py"),
        ("elsewhere", "my_parts", "{tmp}/elsewhere/my_parts"),
        ("elsewhere/my_package", "my_package", "{tmp}/elsewhere/my_package"),
    ],
)
def test_pluginpath(place: str, name: str, plugin_path: str, tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / place
    folder.mkdir(exist_ok=True, parents=True)
    (folder / ("__init__.py" if name == "my_package" else "my_parts.py")).write_text(PLUGIN % name)
    (tmp_path / "work" / "empty.py").write_text("TABLES = {}\n")
    monkeypatch.setenv("PLUGINPATH", f"./empty.py:{plugin_path.format(tmp=tmp_path)}:")
    experiment = load_experiment(Path(written(tmp_path / "configs", images)))
    assert experiment.tables["loss"].get("my_loss").__module__ == name


@pytest.mark.parametrize("place", ["work", "configs"])
def test_beside_the_configuration_or_in_the_working_folder(server: Server, tmp_path: Path, images: Path, place: str) -> None:
    """As the script ``up`` finds it, whose own folder is on the import path instead of the working one."""
    (tmp_path / "work").mkdir()
    config = written(tmp_path / "configs", images, ["my_parts"])
    (tmp_path / place / "my_parts.py").write_text(PLUGIN % "my_parts")
    done = start(server, tmp_path, ["check", "--no-files", config], world=1, cwd=tmp_path / "work")
    assert done.wait() == [0], done.said


@pytest.mark.usefixtures("importing")
def test_a_run_finds_plugins_beside_the_file_that_it_was_trained_from(tmp_path: Path, images: Path) -> None:
    config = Path(written(tmp_path / "configs", images, ["my_parts"]))
    (tmp_path / "configs" / "my_parts.py").write_text(PLUGIN % "my_parts")
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text(config.read_text())
    with pytest.raises(UserError, match="my_parts"):
        load_experiment(run / "config.yaml")
    (run / "run.json").write_text(json.dumps({"config": str(config)}))
    assert load_experiment(run / "config.yaml").tables["loss"].get("my_loss").__module__ == "my_parts"


@pytest.mark.usefixtures("importing")
@pytest.mark.parametrize(
    ("plugin_path", "facts"),
    [
        ("./my_part", ["'./my_part': no such module", "'my_parts.py'"]),
        ("./json.py", ["'json' is already the name of the module", "Rename"]),
    ],
)
def test_paths_that_cannot_be_used(
    plugin_path: str, facts: list[str], tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("my_parts", "json"):
        (tmp_path / "work" / f"{name}.py").write_text(PLUGIN % name)
    monkeypatch.setenv("PLUGINPATH", plugin_path)
    with pytest.raises(UserError) as caught:
        load_experiment(Path(written(tmp_path / "configs", images)))
    assert all(fact in str(caught.value) for fact in ["PLUGINPATH: ", *facts])
    assert "config.yaml" not in str(caught.value)


def test_the_dashed_form_of_a_hook_is_checked_like_any_other(
    tmp_path: Path, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = Path(written(tmp_path, images)).read_text().replace("my_loss", "ce")
    (tmp_path / "x.yaml").write_text(config)
    path = str(tmp_path / "x.yaml")
    (line,) = refused(["check", "--no-files", path, "--opts", "hooks.grad_clipper-kwargs.max_nrm", "5"], capsys)
    assert line.startswith("--opts: hooks.0.kwargs.max_nrm: ")
    assert "'max_norm'" in line
    (line,) = refused(["check", "--no-files", path, "--opts", "hooks.grad_cliper-kwargs.max_norm", "5"], capsys)
    assert "'grad_cliper'" in line
    assert "'grad_clipper'" in line
