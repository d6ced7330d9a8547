from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from tests.harness import packages
from tests.harness.facts import facts
from up.deploy.triton import repository_files, write_repository
from up.errors import StorageError, UserError


def test_what_triton_reads() -> None:
    files = repository_files(packages.manifest(), b"graph")
    config = files["config.pbtxt"].decode()
    assert set(files) == {"config.pbtxt", "1/model.onnx", "labels.txt", "up_bundle.json"}
    assert files["1/model.onnx"] == b"graph"
    assert files["labels.txt"].decode().splitlines() == packages.LABELS
    assert re.findall(r'name: "(\w+)"', config) == ["handmade", "data", "scores"]
    assert re.findall(r"dims: \[ (.*) \]", config) == ["3, 8, 8", "4"]
    assert 'backend: "onnxruntime"' in config
    assert "max_batch_size: 8" in config
    assert 'label_filename: "labels.txt"' in config
    assert config.count("{") == config.count("}")
    assert config.count("[") == config.count("]")


def test_outputs_of_any_shape() -> None:
    _, described = packages.masks()
    config = repository_files(described, b"graph")["config.pbtxt"].decode()
    assert re.findall(r"dims: \[ (.*) \]", config) == ["3, 8, 8", "4, 8, 8"]
    assert "label_filename" not in config


def test_written_and_replaced_at_once(tmp_path: Path) -> None:
    files = repository_files(packages.manifest(), b"graph")
    folder = tmp_path / "repository" / "handmade"
    write_repository(files, folder)
    (folder / "stale").write_text("")
    write_repository({**files, "1/model.onnx": b"newer"}, folder)
    found = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert found == set(files)
    assert (folder / "1" / "model.onnx").read_bytes() == b"newer"
    assert os.listdir(folder.parent) == ["handmade"]


def test_nothing_else_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "handmade").mkdir()
    (tmp_path / "handmade" / "thesis.tex").write_text("years of work")
    files = repository_files(packages.manifest(), b"graph")
    with pytest.raises(UserError, match=facts("exists", "Triton", "repository")):
        write_repository(files, tmp_path / "handmade")
    assert os.listdir(tmp_path / "handmade") == ["thesis.tex"]
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError):
        write_repository(files, tmp_path / "file" / "handmade")
