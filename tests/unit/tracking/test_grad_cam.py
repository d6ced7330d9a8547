from __future__ import annotations

import logging
import math
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from tests.harness.facts import each_tells, facts, tells
from up.data.records import Batch
from up.engine.hooks import Outline
from up.errors import UserError
from up.models.adapter import as_backbone
from up.models.net import Net
from up.tasks.cls.model.heads import ResNetHead, ViTHead
from up.tasks.cls.model.losses import CrossEntropy
from up.tasks.cls.model.postprocess import ClassificationPostProcess
from up.tracking.grad_cam import GradCam, grad_cam, last_convolution


class Toy(nn.Module):
    """Two maps, one the negative of the first channel; an in-place activation behind them."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 2, 1, bias=False)
        self.act = nn.ReLU(inplace=True)
        self.unused = nn.Identity()
        with torch.no_grad():
            self.conv.weight.copy_(torch.tensor([[1.0, 0, 0], [-1, 0, 0]])[:, :, None, None])

    def forward(self, record: Mapping[str, Any]) -> dict[str, Any]:
        return {"features": [self.act(self.conv(record["image"]))]}


class Flat(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.classifier = nn.Linear(8, 2, bias=False)
        with torch.no_grad():
            self.classifier.weight.copy_(torch.tensor([[0.4, 0.8, 0, 0.4, -1, 0, 0, 0], [0, 0, 0, 0, 0.1, 0.1, 0.1, 0.5]]))

    def forward(self, record: Mapping[str, Any]) -> dict[str, Any]:
        return {"logits": self.classifier(record["features"][-1].flatten(1))}


class Small(nn.Module):
    """Everything in it has a state that a forward pass in training would move."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(inplace=True))
        self.last = nn.Sequential(nn.Conv2d(6, 5, 3, padding=1, stride=2), nn.Dropout(0.5))

    def forward(self, record: Mapping[str, Any]) -> dict[str, Any]:
        return {"features": [self.last(self.stem(record["image"]))]}


def post_process() -> ClassificationPostProcess:
    return ClassificationPostProcess(cls_loss=CrossEntropy())


def toy_net() -> Net:
    return Net([("backbone", Toy()), ("head", Flat()), ("post_process", post_process())])


def small_net(num_classes: int | list[int] = 4) -> Net:
    torch.manual_seed(3)
    head = ResNetHead(num_classes=num_classes, in_plane=5)
    return Net([("backbone", Small()), ("head", head), ("post_process", post_process())])


def toy_images() -> Tensor:
    image = torch.zeros(2, 3, 2, 2)
    image[0, 0] = torch.tensor([[1.0, 2], [3, 4]])
    image[1] = -image[0]
    return image


def test_the_heat_is_what_the_formula_gives_by_hand() -> None:
    maps = grad_cam(toy_net(), toy_images(), "backbone.conv")
    assert maps.classes == [0, 1]
    # Image 0: logits .4 + 1.6 + 1.6 = 3.6 and 0; only the first map passes the ReLU, its mean gradient is 1.6 / 4.
    # Image 1: logits -1 and .1 + .2 + .3 + 2 = 2.6; only the second map passes, its mean gradient is .8 / 4.
    expected = torch.stack([0.4 * torch.tensor([[1.0, 2], [3, 4]]), 0.2 * torch.tensor([[1.0, 2], [3, 4]])])
    torch.testing.assert_close(maps.heat, expected)
    assert maps.scores == pytest.approx([1 / (1 + math.exp(-3.6)), 1 / (1 + math.exp(-3.6))])


def test_before_mean_and_linear_it_is_the_class_activation_map() -> None:
    net, image = small_net(), torch.randn(3, 3, 8, 8)
    maps = grad_cam(net, image, "backbone")
    net.eval()
    with torch.no_grad():
        record = net({"image": image})
        classes = record["logits"].argmax(dim=1)
        weights = net["head"].classifier.weight[classes] / 16  # type: ignore[union-attr,index]
        signed = torch.einsum("bk,bkhw->bhw", weights, record["features"][-1])
    assert maps.classes == classes.tolist()
    assert (signed < 0).any()
    assert (signed > 0).any()
    torch.testing.assert_close(maps.heat, F.relu(signed))


def test_the_weights_are_the_slopes_of_the_logit() -> None:
    net, image = small_net().double(), torch.randn(1, 3, 8, 8, dtype=torch.float64)
    maps = grad_cam(net, image, "backbone.stem.0")
    net.eval()
    backbone = net["backbone"]
    assert isinstance(backbone, Small)

    def logit_of(stem_output: Tensor) -> Tensor:
        features = backbone.last(F.relu(backbone.stem[1](stem_output)))
        return net["head"]({"features": [features]})["logits"][0, maps.classes[0]]  # type: ignore[no-any-return]

    with torch.no_grad():
        output = backbone.stem[0](image)
        slopes = [logit_of(_raised(output, k, 1e-5)) - logit_of(_raised(output, k, -1e-5)) for k in range(6)]
        weights = torch.stack(slopes) / 2e-5 / 64  # a channel moved as a whole: the sum of its slopes
    expected = F.relu(torch.einsum("k,bkhw->bhw", weights, output))
    torch.testing.assert_close(maps.heat.double(), expected, rtol=1e-4, atol=1e-5)


def _raised(output: Tensor, channel: int, by: float) -> Tensor:
    raised = output.clone()
    raised[:, channel] += by
    return raised


def test_no_trace_is_left_in_the_net() -> None:
    net = small_net()
    net["backbone"].stem[1].eval()  # type: ignore[index,union-attr]
    for parameter in net["head"].parameters():
        parameter.grad = torch.full_like(parameter, 7.0)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    modes = [module.training for module in net.modules()]
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    grad_cam(net, torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)), "backbone.last.0")
    for name, value in net.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert [module.training for module in net.modules()] == modes
    assert True in modes
    assert False in modes
    assert all(parameter.grad is None for parameter in net["backbone"].parameters())
    assert all(bool((parameter.grad == 7).all()) for parameter in net["head"].parameters())
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert np.random.get_state()[1].tolist() == states[2]
    assert not any(module._forward_hooks for module in net.modules())


def test_a_frozen_net_and_images_of_inference_can_be_explained() -> None:
    net, image = small_net(), torch.randn(2, 3, 8, 8)
    expected = grad_cam(net, image, "backbone.last").heat
    net.requires_grad_(False)
    with torch.inference_mode():
        got = grad_cam(net, image * 1, "backbone.last").heat
    assert expected.any()
    torch.testing.assert_close(got.clone(), expected)


def test_of_several_heads_the_first_counts() -> None:
    net, image = small_net([4, 2]), torch.randn(2, 3, 8, 8)
    head = net["head"]
    maps = grad_cam(net, image, "backbone")
    with torch.no_grad():
        head.classifier[1].weight.mul_(-3)  # type: ignore[union-attr,index]
    torch.testing.assert_close(grad_cam(net, image, "backbone").heat, maps.heat)
    net.eval()
    assert maps.classes == net({"image": image})["logits"][0].argmax(dim=1).tolist()


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ("head.classifier", r"layer 'head.classifier' returns \(2, 2\)"),
        ("backbone.unused", "returns no tensor when the net runs"),
        ("post_process", "returns no tensor when the net runs"),
    ],
)
def test_a_layer_without_maps_is_refused(layer: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        grad_cam(toy_net(), toy_images(), layer)


class Aside(Toy):
    def forward(self, record: Mapping[str, Any]) -> dict[str, Any]:
        self.unused(record["image"])
        return super().forward(record)


@pytest.mark.parametrize("trains", [True, False])
def test_a_layer_that_no_logit_depends_on_is_refused(trains: bool) -> None:
    net = Net([("backbone", Aside()), ("head", Flat()), ("post_process", post_process())])
    net.requires_grad_(trains)
    with pytest.raises(UserError, match=facts("layer", "'backbone.unused'", "logits")):
        grad_cam(net, toy_images(), "backbone.unused")


def vit_net() -> Net:
    torch.manual_seed(0)
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2, "num_classes": 0}
    vit = as_backbone(timm.create_model("vit_tiny_patch16_224", **sizes))
    return Net([("backbone", vit), ("head", ViTHead(num_classes=3, in_plane=16)), ("post_process", post_process())])


def test_patch_tokens_of_a_vit_and_gradient_checkpointing() -> None:
    net, image = vit_net(), torch.randn(2, 3, 32, 32)
    heat = grad_cam(net, image, "backbone.blocks.1.norm1").heat
    assert heat.shape == (2, 4, 4)
    assert heat.any()
    net["backbone"].set_grad_checkpointing(True)  # type: ignore[operator]
    torch.testing.assert_close(grad_cam(net, image, "backbone.blocks.0").heat.shape, (2, 4, 4))
    torch.testing.assert_close(grad_cam(net, image, "backbone.blocks.1.norm1").heat, heat)
    assert net["backbone"].grad_checkpointing is True


def test_maps_with_channels_last_of_a_swin() -> None:
    torch.manual_seed(0)
    sizes = {"img_size": 32, "window_size": 4, "embed_dim": 16, "depths": (1, 1), "num_heads": (2, 2), "num_classes": 0}
    swin = as_backbone(timm.create_model("swin_tiny_patch4_window7_224", **sizes))
    net = Net([("backbone", swin), ("head", ResNetHead(num_classes=3, in_plane=32)), ("post_process", post_process())])
    image = torch.randn(2, 3, 32, 32)
    maps = grad_cam(net, image, "backbone.norm")
    net.eval()
    with torch.no_grad():
        feature = net({"image": image})["features"][-1]
        weights = net["head"].classifier.weight[maps.classes] / 16  # type: ignore[union-attr,index]
    torch.testing.assert_close(maps.heat, F.relu(torch.einsum("bk,bkhw->bhw", weights, feature)))


def outline(folder: Path, net: nn.Module, **facts: Any) -> Outline:
    batch = Batch(image=toy_images(), gt=torch.tensor([0, 1]), filename=["cats/1.jpg", "dogs/1.jpg"], index=torch.arange(2))
    given = {"class_names": ["cat", "dog"], "sample_batch": lambda: batch, **facts}
    return Outline(folder, net, total_steps=9, steps_per_epoch=3, global_batch_size=2, **given)


def size_of(path: Path) -> tuple[int, int]:
    with Image.open(path) as picture:
        return picture.size


@pytest.fixture
def warnings(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.WARNING, "up")
    return caplog


def test_every_evaluation_draws_a_picture_of_each_image(tmp_path: Path, warnings: pytest.LogCaptureFixture) -> None:
    calls = []
    hook = GradCam(layer_name="backbone.conv")
    batch = outline(tmp_path, toy_net()).sample_batch
    assert batch is not None
    hook.on_start(outline(tmp_path, toy_net(), sample_batch=lambda: calls.append(1) or batch()), 0)
    hook.on_evaluation(3, {})
    hook.on_evaluation(6, {})
    drawn = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.*"))
    assert drawn == [f"grad_cam/step{step}/{name}.png" for step in (3, 6) for name in ("1", "1_2")]
    width, height = size_of(tmp_path / drawn[0])
    assert 1.5 < width / height < 2  # two squares side by side
    assert calls == [1]
    assert warnings.messages == []


def test_without_a_layer_it_is_the_last_convolution_with_places(tmp_path: Path) -> None:
    net = small_net()
    assert last_convolution(net, torch.rand(2, 3, 8, 8)) == "backbone.last.0"
    assert last_convolution(net, torch.rand(2, 3, 2, 2)) == "backbone.stem.0"  # the last one gives a single place
    with pytest.raises(UserError, match="Set layer_name"):
        last_convolution(net, torch.rand(2, 3, 1, 1))
    hook = GradCam()
    hook.check(net, None)
    hook.on_start(outline(tmp_path, net), 0)
    hook.on_evaluation(1, {})
    assert hook.layers == ["backbone.stem.0"]
    assert [path.suffix for path in (tmp_path / "grad_cam" / "step1").iterdir()] == [".png", ".png"]
    hook = GradCam()
    with pytest.raises(UserError, match=facts("convolution", "layer_name")):
        hook.check(Net([("head", Flat())]), None)


def test_the_heat_is_drawn_where_it_is(tmp_path: Path) -> None:
    hook = GradCam(layer_name="backbone.conv", num_images=1, save_dir=str(tmp_path / "elsewhere"))
    hook.on_start(outline(tmp_path, toy_net()), 0)
    hook.on_evaluation(3, {})
    assert [path.name for path in (tmp_path / "elsewhere" / "step3").iterdir()] == ["1.png"]
    with Image.open(tmp_path / "elsewhere" / "step3" / "1.png") as picture:
        pixels = np.asarray(picture.convert("RGB")).astype(int)
    colourful = (np.ptp(pixels, axis=2) > 60) & (pixels[..., 0] > pixels[..., 2] + 60)  # the image is red, its heat yellow
    yellow = colourful & (pixels[..., 1] > 150)
    right = slice(int(0.45 * pixels.shape[1]), int(0.83 * pixels.shape[1]))  # the second panel, without the scale of colours
    rows, columns = np.nonzero(yellow[:, right])
    panel_rows, panel_columns = np.nonzero(np.ptp(pixels[:, right], axis=2) > 60)
    assert rows.mean() > panel_rows.mean()  # the heat of the image is largest below, at the right
    assert columns.mean() > panel_columns.mean()


def test_logits_of_places_are_explained_by_their_mean() -> None:
    class PerPixel(nn.Module):
        def forward(self, record: Mapping[str, Any]) -> dict[str, Any]:
            return {"logits": record["features"][-1]}

    maps = grad_cam(Net([("backbone", Toy()), ("head", PerPixel())]), toy_images(), "backbone.conv")
    assert maps.classes == [0, 1]
    torch.testing.assert_close(maps.heat, 0.25 * torch.tensor([[1.0, 2], [3, 4]]).repeat(2, 1, 1))


def test_a_net_without_logits_is_refused() -> None:
    with pytest.raises(UserError, match="logits"):
        grad_cam(Net([("backbone", Toy())]), toy_images(), "backbone.conv")


def test_any_failure_to_draw_is_a_warning(
    tmp_path: Path, warnings: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any, **__: Any) -> bytes:
        raise RuntimeError("no such glyph")

    monkeypatch.setattr("up.tracking.grad_cam.panels", broken)
    hook = GradCam(layer_name="backbone.conv")
    hook.on_start(outline(tmp_path, toy_net()), 0)
    hook.on_evaluation(3, {})
    assert each_tells(warnings.messages, ("grad_cam", "RuntimeError", "glyph"))


def test_without_matplotlib_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("up.figures.find_spec", lambda _: None)
    with pytest.raises(UserError, match=facts("grad_cam", "install", "'.[viz]'")):
        GradCam(layer_name="backbone.conv").check(toy_net(), ["cat", "dog"])


@pytest.mark.parametrize(
    ("gt", "expected"),
    [
        (torch.tensor([1]), "dog"),
        (torch.tensor([[1, 0]]), "dog"),
        (torch.tensor([[1.0, 1.0]]), "cat, dog"),
        (torch.tensor([-1]), ""),
        (torch.tensor([7]), "class 7"),
        (torch.zeros(1, 4, 4, dtype=torch.int64), ""),
        (None, ""),
    ],
)
def test_the_label_of_an_image(gt: Tensor | None, expected: str) -> None:
    hook = GradCam(layer_name="backbone", class_names=["cat", "dog"])
    assert hook._label(gt, 0) == expected


def test_names_that_cannot_be_drawn_are_numbers() -> None:
    assert GradCam(layer_name="backbone", class_names=["犬", "dog"])._name(0) == "class 0"


def test_what_cannot_be_is_refused_beforehand() -> None:
    with pytest.raises(UserError, match=facts("grad_cam", "'backbone.con'", "'backbone.conv'")):
        GradCam(layer_name="backbone.con").check(toy_net(), ["cat", "dog"])
    with pytest.raises(UserError, match=facts("class_names", "1", "2")):
        GradCam(layer_name="backbone", class_names=["cat"]).check(toy_net(), ["cat", "dog"])
    with pytest.raises(UserError, match=facts("num_images", "0", "1")):
        GradCam(layer_name="backbone", num_images=0)


def test_what_cannot_be_drawn_is_one_warning_and_no_error(tmp_path: Path, warnings: pytest.LogCaptureFixture) -> None:
    hook = GradCam(layer_name="head.classifier")
    hook.on_start(outline(tmp_path, toy_net()), 0)
    hook.on_evaluation(3, {})
    hook.on_evaluation(6, {})
    assert len(warnings.messages) == 1
    assert tells(warnings.messages[0], "grad_cam", "'head.classifier'", "2")


def test_a_folder_that_cannot_be_written_is_a_warning(tmp_path: Path, warnings: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    hook = GradCam(layer_name="backbone.conv", save_dir=str(tmp_path / "file"))
    hook.on_start(outline(tmp_path, toy_net()), 0)
    hook.on_evaluation(3, {})
    assert len(warnings.messages) == 1
    assert str(tmp_path / "file") in warnings.messages[0]


def test_a_run_without_evaluation_is_told(tmp_path: Path, warnings: pytest.LogCaptureFixture) -> None:
    hook = GradCam(layer_name="backbone.conv")
    hook.on_start(outline(tmp_path, toy_net(), sample_batch=None), 0)
    hook.on_evaluation(3, {})
    assert each_tells(warnings.messages, ("grad_cam", "evaluates", "nothing"))
    assert list(tmp_path.iterdir()) == []


def test_empty_maps_are_told_with_the_remedy(tmp_path: Path, warnings: pytest.LogCaptureFixture) -> None:
    batch = Batch(image=torch.randn(1, 3, 32, 32), filename=["a.png"])
    hook = GradCam(layer_name="backbone.blocks.1")
    hook.on_start(outline(tmp_path, vit_net(), sample_batch=lambda: batch, class_names=None), 0)
    hook.on_evaluation(1, {})
    assert len(warnings.messages) == 1
    assert "empty" in warnings.messages[0]
    assert "backbone.blocks.11.norm1" in warnings.messages[0]
    assert (tmp_path / "grad_cam" / "step1" / "a.png").exists()


def test_only_the_main_rank_draws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("up.tracking.figure_hook.is_main", lambda: False)
    hook = GradCam(layer_name="backbone.conv")
    hook.on_start(outline(tmp_path, toy_net()), 0)
    hook.on_evaluation(3, {})
    assert list(tmp_path.iterdir()) == []


def test_training_goes_on_as_if_nothing_had_been_drawn(tmp_path: Path) -> None:
    def train(draw: bool) -> list[float]:
        net = small_net()
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
        hook = GradCam(layer_name="backbone.last", num_images=2)
        sample = Batch(image=torch.randn(2, 3, 8, 8), filename=["a", "b"])
        hook.on_start(outline(tmp_path, net, sample_batch=lambda: sample, class_names=None), 0)
        torch.manual_seed(5)
        losses = []
        for step in range(3):
            loss = net({"image": torch.randn(4, 3, 8, 8), "gt": torch.arange(4)})["loss"]
            optimizer.zero_grad()
            loss.backward()
            if draw:
                hook.on_evaluation(step, {})
            optimizer.step()
            losses.append(loss.item())
        return losses

    assert train(draw=True) == train(draw=False)
