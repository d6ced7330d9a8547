from __future__ import annotations

from pathlib import Path

import pytest

import up.deploy
from tests.harness import packages
from tests.harness.documented import DOCS, block, run_plain, runner
from tests.harness.images import MIXED
from up.bundle.archive import KESTREL_MEMBERS
from up.bundle.manifest import Operation


def test_the_runner_is_short_and_plain() -> None:
    assert len(runner().splitlines()) <= 40
    imported = {word for line in runner().splitlines() if line.startswith(("import", "from")) for word in line.split()}
    assert not {"up", "torch"} & imported


def test_the_runner_agrees_with_predict_on_every_kind_of_image(tmp_path: Path) -> None:
    package = packages.package(tmp_path)
    paths = []
    for kind, make in MIXED.items():
        paths.append(tmp_path / kind)
        paths[-1].write_bytes(make())
    said = run_plain(package, paths)
    answers = up.deploy.load(package).predict(paths)
    assert [row[0] for row in said] == [answer.file for answer in answers]
    for (_, head, label, score), answer in zip(said, answers, strict=True):
        best = answer.heads[0][0]
        assert (head, label) == ("classes", best.name)
        assert score == pytest.approx(best.score, abs=1e-5)


def test_the_python_example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    packages.package(tmp_path, name="digits_1.0.0.tar")
    packages.colour(250, 5, 5).save("a.png")
    packages.colour(5, 5, 250).save("b.jpg")
    example = block("import up.deploy\n")
    assert len([line for line in example.splitlines() if line]) <= 5
    exec(example)  # the point of the test: it runs as it is printed
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("a.png [('red', 0.9")
    assert second.startswith("b.jpg [('blue', 0.9")


def test_every_member_and_operation_is_described() -> None:
    text = DOCS.read_text(encoding="utf-8")
    operations = [kind.model_fields["op"].default for kind in Operation.__args__[0].__args__]  # type: ignore[attr-defined]
    assert operations[:2] == ["decode", "exif"]
    for name in [*KESTREL_MEMBERS, "up_bundle.json", "testvectors/", "SHA256SUMS", *operations]:
        assert f"`{name}`" in text, name
