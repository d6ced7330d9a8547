"""Fine-tune big, distil small: the teacher of the second command is the package of the first."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from tests.harness.photos import make_photos
from up.__main__ import main

pytestmark = pytest.mark.usefixtures("each_graph_once")


def test_a_package_teaches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make_photos(Path("photos"), {"cat": 12, "dog": 12})
    assert main(["finetune", "--train", "photos", "--epochs", "1", "--out", "runs/big"]) == 0
    assert main(["to_kestrel", "runs/big.yaml", "--save-to", "out"]) == 0
    (package,) = Path("out").glob("*.tar")
    words = [
        "finetune",
        "--train",
        "photos",
        "--teacher",
        str(package),
        "--epochs",
        "1",
        "--out",
        "runs/small",
        "-o",
        "mimic.preflight=warn",
    ]
    assert main(words) == 0
    assert str(package) in yaml.safe_dump(yaml.safe_load(Path("runs/small.yaml").read_text())["teacher"])
    lines = [json.loads(line) for line in Path("runs/small/metrics.jsonl").read_text().splitlines()]
    assert any("mimic" in name for line in lines if line["phase"] == "train" for name in line)
    assert main(["verify", str(package)]) == 0
