import copy

import pytest
import torch
from torch import nn

from tests.harness.facts import facts
from up.config.contract import PartError
from up.errors import UserError
from up.models.net import Net, model_summary


class Backbone(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(4)
        self.layer1 = nn.Sequential(nn.Conv2d(4, 4, 1, bias=False), nn.BatchNorm2d(4), nn.Dropout(0.5))
        self.layer10 = nn.Conv2d(4, 4, 1)
        self.plain = nn.BatchNorm2d(4, affine=False)

    def forward(self, record):
        features = self.plain(self.layer10(self.layer1(self.bn1(self.conv1(record["image"])))))
        return {"features": [features]}


class Head(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.classifier = nn.Linear(4, 2)

    def forward(self, record):
        return {"logits": self.classifier(record["features"][-1].mean((2, 3)))}


class Add(nn.Module):
    """Adds ``amount`` to what stands under a key."""

    def __init__(self, key, amount) -> None:
        super().__init__()
        self.key, self.amount = key, amount

    def forward(self, record):
        return {self.key: record[self.key] + self.amount}


def small_net(**kwargs) -> Net:
    return Net([("backbone", Backbone()), ("head", Head())], **kwargs)


def test_modules_run_in_order_on_a_copy_of_the_batch():
    net = small_net()
    batch = {"image": torch.randn(2, 3, 8, 8)}
    record = net(batch)
    assert list(batch) == ["image"]
    assert record["features"][0].shape == (2, 4, 6, 6)
    assert record["logits"].shape == (2, 2)
    assert net.module_names == ("backbone", "head")
    assert list(net.state_dict())[0] == "backbone.conv1.weight"
    assert "head.classifier.weight" in net.state_dict()


def test_later_modules_replace_what_earlier_ones_put():
    assert Net([("a", Add("x", 1)), ("b", Add("x", 10))])({"x": 0})["x"] == 11


def test_prev_reads_the_output_of_an_earlier_module_past_a_later_one():
    modules = [("a", Add("x", 1)), ("b", Add("x", 10)), ("c", Add("x", 100))]
    assert Net(modules, prev={"c": "a", "b": ""})({"x": 0})["x"] == 101


@pytest.mark.parametrize(
    ("prev", "text"),
    [
        ({"b": "c"}, r"net\.b\.prev: got 'c', expected an earlier module \(a\)"),
        ({"a": "b"}, "expected nothing, since it is the first"),
        ({"bb": "a"}, "prev is set for 'bb', which is not a module of the net"),
    ],
)
def test_prev_must_name_an_earlier_module(prev, text):
    with pytest.raises(UserError, match=text):
        Net([("a", Add("x", 1)), ("b", Add("x", 1)), ("c", Add("x", 1))], prev=prev)


@pytest.mark.parametrize("name", ["", "a.b", "forward", "training", "train", "_names"])
def test_names_that_cannot_be(name):
    with pytest.raises(UserError, match=facts("module", "cannot", "called")):
        Net([(name, Add("x", 1))])


def test_a_name_can_be_used_once():
    with pytest.raises(UserError, match=facts("modules", "called", "'a'")):
        Net([("a", Add("x", 1)), ("a", Add("x", 1))])


class Count(nn.Module):
    def forward(self, record):
        return 3


def test_a_module_that_returns_no_dict_is_named():
    with pytest.raises(PartError, match=facts("module", "'flat'", "returned")):
        Net([("flat", Count())])({})


def test_without_shares_the_modules_and_ends_early():
    net = Net([("backbone", Backbone()), ("head", Head()), ("post_process", Add("logits", 1000.0))]).eval()
    part = net.without("post_process")
    image = torch.randn(1, 3, 8, 8)
    assert part.head is net.head
    assert not any(module.training for module in part.modules())
    torch.testing.assert_close(part({"image": image})["logits"] + 1000, net({"image": image})["logits"])
    with pytest.raises(KeyError, match=facts("'postprocess'", "backbone", "head", "post_process")):
        net.without("postprocess")


def test_a_prefix_freezes_up_to_a_dot():
    net = small_net(freeze_patterns=["backbone.layer1"])
    frozen = [name for name, parameter in net.named_parameters() if not parameter.requires_grad]
    assert frozen == ["backbone.layer1.0.weight", "backbone.layer1.1.weight", "backbone.layer1.1.bias"]


def test_a_regular_expression_freezes_what_it_is_found_in():
    net = small_net(freeze_patterns=[r"r:bn\d|head"])
    frozen = [name for name, parameter in net.named_parameters() if not parameter.requires_grad]
    assert frozen == ["backbone.bn1.weight", "backbone.bn1.bias", "head.classifier.weight", "head.classifier.bias"]


@pytest.mark.parametrize(
    ("pattern", "text"),
    [
        ("backbone.layr1", "'backbone.layr1' matches nothing. Did you mean 'backbone.layer1'"),
        ("r:backbone[", "is not a regular expression"),
        ("backbone.layer", "matches nothing"),
    ],
)
def test_a_pattern_that_matches_nothing_is_an_error_with_near_names(pattern, text):
    with pytest.raises(UserError, match=text.replace("[", r"\[")):
        small_net(freeze_patterns=[pattern])


def test_frozen_norms_stay_in_evaluation_and_the_rest_trains():
    net = small_net(freeze_patterns=["backbone.layer1", "backbone.plain"]).train()
    assert net.backbone.bn1.training
    assert net.backbone.layer1[2].training  # dropout goes on
    assert not net.backbone.layer1[1].training
    assert not net.backbone.plain.training  # a norm without parameters, wholly inside a pattern
    before = copy.deepcopy(net.state_dict())
    net({"image": torch.randn(4, 3, 8, 8)})
    after = net.state_dict()
    assert torch.equal(before["backbone.layer1.1.running_mean"], after["backbone.layer1.1.running_mean"])
    assert not torch.equal(before["backbone.bn1.running_mean"], after["backbone.bn1.running_mean"])


def test_a_norm_with_half_of_its_parameters_frozen_goes_on():
    assert small_net(freeze_patterns=["backbone.bn1.weight"]).train().backbone.bn1.training


def test_norms_frozen_by_others_rest_too():
    net = small_net()
    net.backbone.bn1.requires_grad_(False)
    assert not net.train().backbone.bn1.training
    assert net.backbone.plain.training  # no parameters: nothing says that it is frozen


def test_a_deep_copy_keeps_the_frozen_norms_at_rest():
    net = copy.deepcopy(small_net(freeze_patterns=["backbone.bn1"])).train()
    assert not net.backbone.bn1.training


def test_summary_counts_parameters_and_what_is_frozen():
    rows = model_summary(small_net(freeze_patterns=["backbone.conv1"]))
    backbone = 3 * 4 * 9 + 8 + 16 + 8 + 20
    assert [(row.name, row.type, row.parameters, row.trainable) for row in rows] == [
        ("backbone", "Backbone", backbone, backbone - 108),
        ("head", "Head", 10, 10),
        ("total", "Net", backbone + 10, backbone - 98),
    ]
