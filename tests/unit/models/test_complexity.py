import pytest
import timm
from torch import nn
from torchvision import models

from tests.harness.nets import meta_device
from up.models.complexity import complexity
from up.models.net import Net


@pytest.mark.parametrize(
    ("name", "published", "mega_activations"),
    [
        # activations: timm's table, which leaves out the attention maps of ViT-B/16: 12 layers of 12 x 197 x 197 + 197 x 768
        ("resnet18", models.ResNet18_Weights.IMAGENET1K_V1, 2.48),
        ("resnet50", models.ResNet50_Weights.IMAGENET1K_V1, 11.11),
        ("vit_base_patch16_224", models.ViT_B_16_Weights.IMAGENET1K_V1, 16.49 + 12 * (12 * 197**2 + 197 * 768) / 1e6),
        ("convnext_tiny", models.ConvNeXt_Tiny_Weights.IMAGENET1K_V1, 13.44),
    ],
)
def test_published_numbers(name, published, mega_activations):
    with meta_device():
        network = timm.create_model(name)
    total = complexity(network).total
    assert total.macs / 1e9 == pytest.approx(published.meta["_ops"], abs=0.001)
    assert total.parameters == published.meta["num_params"]
    assert total.activations / 1e6 == pytest.approx(mega_activations, abs=0.01)


class Backbone(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.bn = nn.BatchNorm2d(8)

    def forward(self, record):
        return {"features": [self.bn(self.conv(record["image"]))]}


class Head(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.classifier = nn.Linear(8, 5)

    def forward(self, record):
        return {"logits": self.classifier(record["features"][-1].mean((2, 3)))}


class NeedsLabels(nn.Module):
    def forward(self, record):
        return {"loss": nn.functional.cross_entropy(record["logits"], record["gt"])}


def test_a_net_is_counted_module_by_module_without_its_loss():
    net = Net([("backbone", Backbone()), ("head", Head()), ("post_process", NeedsLabels())]).train()
    net.head.eval()
    cost = complexity(net, (3, 16, 10))
    rows = [(row.name, row.parameters, row.macs, row.activations) for row in cost.modules]
    conv = 160 * 8
    assert rows == [("backbone", 3 * 8 * 9 + 8 + 16, conv * 27, conv), ("head", 45, 40, 5), ("post_process", 0, 0, 0)]
    assert (cost.total.macs, cost.total.activations) == (conv * 27 + 40, conv + 5)
    assert [net.training, net.backbone.training, net.head.training, net.head.classifier.training] == [True, True, False, False]
    assert net.backbone.bn.num_batches_tracked == 0


class Stubborn(nn.Linear):
    """Looks at its numbers, which the meta device does not have."""

    def forward(self, image):
        return super().forward(image if image.sum() == 0 else image + 1)


def test_a_network_that_cannot_run_on_meta_runs_for_real():
    total = complexity(Stubborn(4, 6), (2, 3, 4)).total
    assert (total.macs, total.activations) == (2 * 3 * 24, 36)


def test_attention_counts_its_maps():
    attention = timm.models.vision_transformer.Attention(16, num_heads=2)
    tokens, width = 6, 16

    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = attention

        def forward(self, image):
            return self.attention(image.flatten(2).transpose(1, 2))

    total = complexity(Tokens(), (width, 2, 3)).total
    assert total.macs == tokens * width * 4 * width + 2 * tokens * tokens * width
    assert total.activations == tokens * 4 * width + 2 * tokens * tokens + tokens * width
