from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from PIL import Image

from tests.harness import packages
from tests.harness.facts import facts, tells
from tests.harness.images import encoded
from tests.harness.packages import resealed
from up.__main__ import main
from up.bundle.archive import PackageError
from up.bundle.package import metadata_of, open_package, package_of
from up.bundle.verify import verify


def problems(members: dict[str, bytes]) -> str:
    with pytest.raises(PackageError) as raised:
        verify(package_of(members, "x.tar"))
    text = str(raised.value)
    assert all(line.startswith("x.tar: ") for line in text.splitlines())
    return text


def test_a_good_package(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = packages.package(tmp_path)
    assert main(["verify", str(path)]) == 0
    what, graph, vectors, verdict, _, predict, serve = capsys.readouterr().out.splitlines()
    assert tells(what, "1.2.3", "fp32", "4", "12", "sha256")
    assert tells(graph, "18", "12", "parameters")
    assert vectors.startswith("2 test vectors: ")
    assert verdict == f"OK: {path} is valid"
    assert tells(predict, "IMAGE", "--bundle", path)
    assert tells(serve, "serve", path)


def test_accuracy_on_a_meta_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, level in (("r", (250, 9, 9)), ("g", (9, 250, 9)), ("b", (9, 9, 250)), ("d", (0, 0, 0))):
        packages.colour(*level).save(tmp_path / f"{name}.png")
    (tmp_path / "meta.txt").write_text("r.png 1\ng.png 2\nb.png 3\nd.png 3\n")
    words = ["verify", str(packages.package(tmp_path)), "--meta", str(tmp_path / "meta.txt")]
    assert main(words) == 0
    assert tells(capsys.readouterr().out, "top1", "75.00", "4", f"{tmp_path / 'meta.txt'}")
    (tmp_path / "meta.txt").write_text("r.png 4\n")
    assert main(words) == 2
    assert f"{tmp_path / 'meta.txt'}:1: " in capsys.readouterr().err
    (tmp_path / "meta.txt").write_text("\nr.png 1\nnone.png 2\n")
    assert main(words) == 2
    said = capsys.readouterr()
    assert said.err.startswith(f"{tmp_path / 'meta.txt'}:3: ")
    assert "none.png: no such file" in said.err
    assert "OK: " not in said.out


def test_average_precision_of_sets(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Blue is found before all others, red behind one that is redder, green behind all of them."""
    head = {
        "name": "classes",
        "start": 0,
        "end": 3,
        "type": "multilabel",
        "activation": "sigmoid",
        "labels": packages.LABELS,
        "topk": 2,
        "thresholds": [0.5] * 4,
    }
    output = {
        "name": "scores",
        "shape": ("N", 4),
        "meaning": "logits",
        "activation_in_graph": "none",
        "activation_to_apply": "sigmoid",
    }
    package = packages.package(tmp_path, packages.members(described=packages.manifest(heads=[head], outputs=[output])))
    for name, level in (("r", (250, 9, 9)), ("b", (9, 9, 240)), ("s", (200, 9, 9)), ("d", (0, 0, 0))):
        packages.colour(*level).save(tmp_path / f"{name}.png")
    records = [("r", [2]), ("b", [3]), ("s", [1]), ("d", [])]
    lines = [json.dumps({"filename": f"{name}.png", "label": labels}) for name, labels in records]
    (tmp_path / "meta.json").write_text("\n".join(lines))
    words = ["verify", str(package), "--meta", str(tmp_path / "meta.json"), "--meta-type", "custom_cls"]
    assert main(words) == 0
    average = 100 * (1 + 1 / 2 + 1 / 4) / 3
    assert tells(capsys.readouterr().out, "mAP", f"{average:.2f}", "4", f"{tmp_path / 'meta.json'}")


@pytest.mark.parametrize("words", [[], ["--meta-type", "image_folder"]])
def test_accuracy_on_a_folder_of_class_folders(words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Where the images are needs no second argument, and a folder no meta type."""
    for name, level in (("red", (250, 9, 9)), ("green", (9, 250, 9))):
        (tmp_path / "photos" / name).mkdir(parents=True)
        packages.colour(*level).save(tmp_path / "photos" / name / "x.png")
    assert main(["verify", str(packages.package(tmp_path)), "--meta", str(tmp_path / "photos"), *words]) == 0
    assert f"100.00 % on 2 images of {tmp_path / 'photos'}" in capsys.readouterr().out


def test_what_only_goes_with_a_list(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    package = str(packages.package(tmp_path))
    assert main(["verify", package, "--image-dir", str(tmp_path)]) == 2
    assert tells(capsys.readouterr().err, "--image-dir", "--meta", "FILE")
    (tmp_path / "unlabelled.txt").write_text("r.png\n")
    packages.colour(250, 9, 9).save(tmp_path / "r.png")
    assert main(["verify", package, "--meta", str(tmp_path / "unlabelled.txt"), "--meta-type", "inference_only"]) == 2
    assert capsys.readouterr().err.startswith(f"{tmp_path / 'unlabelled.txt'}: has no labels")


def test_parts_of_images_are_evaluated_as_in_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = packages.colour(9, 9, 250, size=(200, 100))
    image.paste((250, 9, 9), (0, 0, 100, 100))
    image.save(tmp_path / "r.png")
    boxes = [
        {"bbox": [0, 0, 99, 99], "label": 2, "is_ignored": False},
        {"bbox": [101, 0, 199, 99], "label": 4, "is_ignored": False},
    ]
    (tmp_path / "boxes.json").write_text(json.dumps({"filename": "r.png", "instances": boxes}))
    words = ["--meta", str(tmp_path / "boxes.json"), "--meta-type", "custom_det"]
    assert main(["verify", str(packages.package(tmp_path)), *words]) == 0
    assert "100.00 % on 2 images" in capsys.readouterr().out


def with_json(name: str, change: Callable[[Any], None]) -> dict[str, bytes]:
    members = packages.members()
    plain = json.loads(members[name])
    change(plain)
    return resealed({**members, name: json.dumps(plain).encode()})


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("meta.json", lambda j: j.update(model_name="other"), "meta.json: model_name is 'other', the manifest says 'handmade'"),
        ("meta.json", lambda j: j["version"].update(minor=9), "meta.json: version is '1.9.3'"),
        ("meta.json", lambda j: j.pop("version"), "meta.json: not as Kestrel's packages have it (KeyError"),
        ("parameters.json", lambda j: j.update(input_h=9), "parameters.json: input_h is 9, the manifest says 8"),
        ("parameters.json", lambda j: j.update(is_rgb=False), "parameters.json: is_rgb is False"),
        ("parameters.json", lambda j: j.update(pixel_stds=[1, 1, 1]), "parameters.json: pixel_stds is [1, 1, 1]"),
        ("category_param.json", lambda j: j["classes"]["labels"].pop(), "classes.feature_end is 3, the manifest says 2"),
        (
            "category_param.json",
            lambda j: j["classes"].update(labels=list("abcd")),
            "category_param.json: labels is ['a', 'b', 'c', 'd'], the manifest says ['dark'",
        ),
        ("category_param.json", lambda j: j.clear(), "category_param.json: labels is []"),
    ],
)
def test_members_that_contradict_each_other(name: str, change: Callable[[Any], None], message: str) -> None:
    assert message in problems(with_json(name, change))


def test_json_that_is_none() -> None:
    members = packages.members()
    text = problems(resealed({**members, "meta.json": b"[", "parameters.json": b"[" * 100_000}))
    assert tells(text, "meta.json", "packages", "JSONDecodeError")
    assert tells(text, "parameters.json", "packages")


def with_graph(model: onnx.ModelProto) -> dict[str, bytes]:
    """A package whose manifest and hashes fit the graph, but whose test vectors are those of another."""
    return packages.members(model)


def test_a_graph_that_computes_something_else() -> None:
    weights = packages.WEIGHTS.copy()
    weights[2, 1] += 0.01
    text = problems(with_graph(packages.graph(weights)))
    assert tells(text, "vector", "testvectors/drawn_transparent.png", "outputs")
    assert tells(text, "tensor", "allowed", "1e-04")


def test_a_preprocessing_that_does_something_else() -> None:
    described = packages.manifest()
    resize = described.preprocess[3].model_copy(update={"interpolation": "nearest", "antialias": False})
    nearest = described.model_copy(update={"preprocess": [*described.preprocess[:3], resize, *described.preprocess[4:]]})
    vectors = {name: data for name, data in packages.members().items() if name.startswith("testvectors/")}
    text = problems(resealed({**packages.members(described=nearest), **vectors}))
    assert tells(text, "vector", "testvectors/drawn_transparent.png", "outputs")
    assert tells(text, "image", "allowed", "1e-02")
    assert "from its tensor" not in text


def test_other_opset_and_shapes() -> None:
    assert tells(problems(with_graph(packages.graph(opset=20))), "{''", "20}", "18")
    fixed = packages.graph()
    fixed.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 2
    text = problems(with_graph(fixed))
    assert tells(text, "{'data'", "[2", "3", "8", "8]}", "8", "8]}")
    assert tells(text, "does", "1", "image")
    more = packages.graph(np.vstack([packages.WEIGHTS, packages.WEIGHTS[:1]]))
    assert tells(problems(with_graph(more)), "{'scores'", "['N'", "5]}", "{'scores'", "['N'", "4]}")


def test_metadata_that_contradicts_the_manifest() -> None:
    described = packages.manifest()
    model = packages.graph()
    members = packages.members(model, described)
    onnx.helper.set_model_props(model, {**metadata_of(described), "labels": '[["a", "b", "c", "d"]]'})
    package = package_of(members, "x.tar")
    changed = type(package)("x.tar", package.manifest, model.SerializeToString(), package.members, "bundle")
    with pytest.raises(PackageError, match=facts("manifest", "metadata_props", "labels")):
        verify(changed)


def test_a_graph_that_reads_further_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights kept in another file are not read, though the file is there."""
    monkeypatch.chdir(tmp_path)
    model = packages.graph()
    weights = model.graph.initializer[1]
    (tmp_path / "weights.bin").write_bytes(weights.raw_data)
    weights.ClearField("raw_data")
    weights.data_location = onnx.TensorProto.EXTERNAL
    weights.external_data.add(key="location", value="weights.bin")
    path = packages.package(tmp_path, with_graph(model))
    with pytest.raises(PackageError, match=facts("onnxruntime", "cannot", "graph")):
        verify(open_package(path))


def test_garbage_for_a_graph() -> None:
    members = packages.members()
    package = package_of(members, "x.tar")
    with pytest.raises(PackageError, match=facts("x.tar", "onnxruntime", "cannot")):
        verify(type(package)("x.tar", package.manifest, b"\x08\x0a garbage", package.members, "bundle"))


def test_the_strict_form_says_what_it_cannot_show(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    members = packages.members()
    kestrel = {name: members[name] for name in ("model.onnx", "meta.json", "parameters.json", "category_param.json")}
    assert main(["verify", str(packages.package(tmp_path, kestrel))]) == 0
    said = capsys.readouterr().out
    assert tells(said, "Kestrel", "package", "without")
    assert tells(said, "vectors", "computes", "checked")


def test_a_picture_that_would_fill_the_memory() -> None:
    members = packages.members()
    name = "testvectors/drawn_turned.png"
    assert tells(
        problems(resealed({**members, name: encoded(Image.new("1", (9000, 9000)), "PNG")})),
        "x.tar",
        name,
        "9,000",
        "=",
        "81,000,000",
    )
    assert tells(problems(resealed({**members, name: b"hello"})), "x.tar", name, "5")
