from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.harness import packages
from tests.harness.facts import facts
from tests.harness.packages import resealed
from up.bundle.archive import KESTREL_MEMBERS, PackageError
from up.bundle.package import metadata_of, open_package, package_of


def test_three_forms_say_the_same(tmp_path: Path) -> None:
    members = packages.members()
    bundle = open_package(packages.package(tmp_path))
    strict_members = {name: members[name] for name in KESTREL_MEMBERS}
    strict = open_package(packages.package(tmp_path, strict_members, "strict.tar"))
    (tmp_path / "alone.onnx").write_bytes(members["model.onnx"])
    alone = open_package(tmp_path / "alone.onnx")
    assert [package.form for package in (bundle, strict, alone)] == ["bundle", "strict", "graph"]
    assert strict.manifest == alone.manifest == bundle.manifest.in_graph()
    assert bundle.manifest.input_size == (8, 8)


def test_metadata_of_the_graph() -> None:
    said = metadata_of(packages.manifest())
    assert json.loads(said["labels"]) == [packages.LABELS]
    assert json.loads(said["mean"]) == [127.5] * 3
    assert json.loads(said["std"]) == [63.75] * 3
    assert json.loads(said["input_size"]) == [3, 8, 8]
    assert (said["channel_order"], said["config_sha256"]) == ("RGB", "0" * 64)
    assert json.loads(said["up_bundle"])["name"] == "handmade"


@pytest.mark.parametrize("name", ["model.onnx", "meta.json", "up_bundle.json", "testvectors/drawn_turned.png"])
def test_a_flipped_byte_of_a_member_is_found(name: str) -> None:
    members = packages.members()
    damaged = bytearray(members[name])
    damaged[len(damaged) // 2] ^= 4
    with pytest.raises(PackageError, match=facts("sha256", "mismatch", name)):
        package_of({**members, name: bytes(damaged)}, "x")


def test_a_flipped_byte_of_the_hashes_is_found() -> None:
    members = packages.members()
    for position in range(0, len(members["SHA256SUMS"]), 7):
        damaged = bytearray(members["SHA256SUMS"])
        damaged[position] ^= 1
        with pytest.raises(PackageError, match="sha256 mismatch|its members lack"):
            package_of({**members, "SHA256SUMS": bytes(damaged)}, "x")


def test_another_graph_under_right_hashes() -> None:
    members = packages.members()
    with pytest.raises(PackageError, match=facts("model.onnx", "up_bundle.json", "written")):
        package_of(resealed({**members, "model.onnx": members["model.onnx"] + b"\0"}), "x")


def test_test_vectors_that_the_manifest_does_not_name() -> None:
    members = packages.members()
    with pytest.raises(PackageError, match=facts("vectors", "up_bundle.json", "testvectors/more.png")):
        package_of(resealed({**members, "testvectors/more.png": b""}), "x")
    fewer = {name: data for name, data in members.items() if not name.endswith("turned.png")}
    with pytest.raises(PackageError, match=facts("match", "up_bundle.json", "testvectors/drawn_turned.png")):
        package_of(resealed(fewer), "x")


def test_graphs_of_others(tmp_path: Path) -> None:
    (tmp_path / "bare.onnx").write_bytes(packages.graph().SerializeToString())
    (tmp_path / "text.onnx").write_text("hello")
    with pytest.raises(PackageError, match=facts("bare.onnx", "carries", "manifest")):
        open_package(tmp_path / "bare.onnx")
    with pytest.raises(PackageError, match=facts("text.onnx", "onnxruntime", "cannot")):
        open_package(tmp_path / "text.onnx")
    with pytest.raises(PackageError, match=r"none\.onnx: no such file"):
        open_package(tmp_path / "none.onnx")
    packages.package(tmp_path)
    with pytest.raises(PackageError, match=facts("handmad_1.2.3.tar", "file", "'handmade_1.2.3.tar'")):
        open_package(tmp_path / "handmad_1.2.3.tar")
