from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from tests.harness.facts import facts
from up.data.records import Batch
from up.engine.hooks import Outline
from up.errors import UserError
from up.figures import Panel
from up.models.net import Net
from up.tasks.cls.model.heads import ResNetHead
from up.tasks.cls.model.losses import CrossEntropy
from up.tasks.cls.model.postprocess import ClassificationPostProcess
from up.tracking.feature_maps import FeatureVis, layer_outputs, strongest_channels


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 1)
        self.norm = nn.BatchNorm2d(5)
        self.act = nn.ReLU(inplace=True)
        self.unused = nn.Identity()

    def forward(self, record: Mapping[str, Any]) -> dict[str, Any]:
        return {"features": [self.act(self.norm(self.conv(record["image"])))]}


def small_net() -> Net:
    torch.manual_seed(0)
    post_process = ClassificationPostProcess(cls_loss=CrossEntropy())
    return Net([("backbone", Small()), ("head", ResNetHead(num_classes=2, in_plane=5)), ("post_process", post_process)])


def started(hook: FeatureVis, folder: Path) -> Net:
    net = small_net()
    batch = Batch(image=torch.randn(3, 3, 4, 8), filename=["a/x.png", "b.jpg", "c.jpg"])
    hook.on_start(Outline(folder, net, 9, 3, 2, None, lambda: batch), 0)
    return net


def test_the_strongest_channels_have_the_largest_mean_magnitude() -> None:
    maps = torch.tensor([[[1.0, 1]], [[-4, 2]], [[0, 0]], [[5, 0]]])
    assert strongest_channels(maps, 2) == ([1, 3], [3.0, 2.5])
    assert strongest_channels(maps, 9) == ([1, 3, 0, 2], [3.0, 2.5, 1.0, 0.0])


def test_outputs_are_those_of_the_layer_itself_and_leave_no_trace() -> None:
    net, image = small_net(), torch.randn(2, 3, 4, 4)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    outputs = layer_outputs(net, image, ["backbone.norm", "backbone", "backbone.unused"])
    assert list(outputs) == ["backbone.norm", "backbone"]
    assert (outputs["backbone.norm"] < 0).any()  # the in-place ReLU behind it comes later
    torch.testing.assert_close(outputs["backbone"], outputs["backbone.norm"].relu())
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert all(module.training for module in net.modules())


def test_a_grid_for_each_image_and_layer(tmp_path: Path) -> None:
    hook = FeatureVis(layer_names=["backbone.conv", "backbone"], num_images=2, num_channels=4)
    started(hook, tmp_path)
    hook.on_evaluation(7, {})
    folder = tmp_path / "feature_vis" / "step7"
    names = ["b_backbone.conv.png", "b_backbone.png", "x_backbone.conv.png", "x_backbone.png"]
    assert sorted(path.name for path in folder.iterdir()) == names
    with Image.open(folder / names[0]) as picture:
        assert picture.width > 1.5 * picture.height  # five panels of 2 : 1, three in a row


def test_an_evaluation_drawn_twice_gives_equal_bytes(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        hook = FeatureVis(layer_names="backbone.conv", num_channels=2)
        started(hook, tmp_path / folder)
        hook.on_evaluation(7, {})
    names = [tmp_path / folder / "feature_vis" / "step7" / "x_backbone.conv.png" for folder in ("one", "two")]
    assert names[0].read_bytes() == names[1].read_bytes()


def test_the_panels_show_the_channels_strongest_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Panel] = []
    monkeypatch.setattr("up.tracking.feature_maps.panels", lambda shown, **_: seen.extend(shown) or b"")
    hook = FeatureVis(layer_names="backbone.conv", num_channels=2, save_dir=str(tmp_path / "maps"))
    net = started(hook, tmp_path)
    hook.on_evaluation(7, {})
    image = hook._images
    assert image is not None
    maps = layer_outputs(net, image.image, ["backbone.conv"])["backbone.conv"][0]
    channels, _ = strongest_channels(maps, 2)
    assert [panel.caption.split(":")[0] for panel in seen] == ["image", *(f"#{channel}" for channel in channels)]
    for panel, channel in zip(seen[1:], channels, strict=True):
        assert panel.heat is not None
        low, high = maps[channel].min(), maps[channel].max()
        np.testing.assert_allclose(panel.heat, (maps[channel] - low) / (high - low), rtol=1e-5, atol=1e-6)


def test_a_layer_that_cannot_be_drawn_does_not_stop_the_others(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    hook = FeatureVis(layer_names=["head.classifier", "backbone.unused", "backbone.conv"])
    started(hook, tmp_path)
    hook.on_evaluation(1, {})
    hook.on_evaluation(2, {})
    assert [message.split(" returns ")[0] for message in caplog.messages] == [
        "feature_vis: layer 'head.classifier'",
        "feature_vis: layer 'backbone.unused'",
    ]
    assert (tmp_path / "feature_vis" / "step2" / "x_backbone.conv.png").exists()


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(UserError, match="num_channels: got 0"):
        FeatureVis(layer_names="backbone", num_channels=0)
    with pytest.raises(UserError, match=facts("feature_vis", "layer", "named")):
        FeatureVis(layer_names=[]).check(small_net(), None)
    with pytest.raises(UserError, match=facts("'backbone.conv'")):
        FeatureVis(layer_names=["backbone.cnv"]).check(small_net(), None)
