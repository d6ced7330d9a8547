from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from up.data.records import Batch
from up.engine.hooks import Outline
from up.errors import UserError
from up.models.net import Net
from up.tasks.cls.model.heads import ResNetHead
from up.tasks.cls.model.losses import CrossEntropy
from up.tasks.cls.model.postprocess import ClassificationPostProcess
from up.tasks.cls.visualise.feature_maps import FeatureVis, layer_outputs, strongest_channels


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
        assert picture.size == (2 * 16 + 3 * 234 - 10, 2 * 16 + 46 + 2 * 142 - 10 + 26)  # an image and 2 x 2 tiles of 224 x 112


def test_the_tiles_show_the_channels_strongest_first(tmp_path: Path) -> None:
    hook = FeatureVis(layer_names="backbone.conv", num_channels=1, save_dir=str(tmp_path / "maps"))
    net = started(hook, tmp_path)
    hook.on_evaluation(7, {})
    image = hook._images
    assert image is not None
    maps = layer_outputs(net, image.image, ["backbone.conv"])["backbone.conv"][0]
    strongest = maps[maps.abs().mean(dim=(1, 2)).argmax()]
    with Image.open(tmp_path / "maps" / "step7" / "x_backbone.conv.png") as picture:
        tile = np.asarray(picture)[62 : 62 + 112, 250 : 250 + 224].astype(int)
    places = tile[14::28, 14::28].sum(axis=-1)  # 4 x 8 places of 28 pixels; lighter is more
    assert places.argmax() == strongest.argmax()
    assert places.argmin() == strongest.argmin()


def test_a_layer_that_cannot_be_drawn_does_not_stop_the_others(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    hook = FeatureVis(layer_names=["head.classifier", "backbone.unused", "backbone.conv"])
    started(hook, tmp_path)
    hook.on_evaluation(1, {})
    hook.on_evaluation(2, {})
    assert [message.split(" gives ")[0] for message in caplog.messages] == [
        "feature_vis: layer 'head.classifier'",
        "feature_vis: layer 'backbone.unused'",
    ]
    assert (tmp_path / "feature_vis" / "step2" / "x_backbone.conv.png").exists()


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(UserError, match="num_channels: got 0"):
        FeatureVis(layer_names="backbone", num_channels=0)
    with pytest.raises(UserError, match="feature_vis: no layer is named"):
        FeatureVis(layer_names=[]).check(small_net(), None)
    with pytest.raises(UserError, match="Did you mean 'backbone.conv'"):
        FeatureVis(layer_names=["backbone.cnv"]).check(small_net(), None)
