from __future__ import annotations

import copy

import pytest
import timm
import torch
from torch import Tensor, nn

from tests.harness.facts import facts
from up.errors import UserError
from up.models.lora import LowRank, add_lora, merged_state
from up.models.net import Net
from up.models.weights import Weights, load_weights

NETWORKS = {  # swin v2 and EVA pass the weight of their linear layers to functions, torch's attention reads it of out_proj
    "vit": lambda: timm.create_model("test_vit", num_classes=0),
    "swin v1": lambda: timm.models.SwinTransformer(64, window_size=4, embed_dim=8, depths=(2,), num_heads=(2,), num_classes=0),
    "swin v2": lambda: timm.models.SwinTransformerV2(64, window_size=4, embed_dim=8, depths=(2,), num_heads=(2,), num_classes=0),
    "eva": lambda: timm.models.Eva(64, 16, embed_dim=32, depth=2, num_heads=2, num_classes=0),
    "convnext": lambda: timm.create_model("test_convnext", num_classes=0),
    "torch": lambda: nn.TransformerEncoderLayer(8, 2, 16, batch_first=True),
}


def made(name: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    network = NETWORKS[name]().eval()
    for parameter in network.parameters():  # some layers and scales start at zero
        parameter.data += 0.1 * torch.randn_like(parameter)
    side = {"vit": 160, "convnext": 64, "torch": 0}.get(name, 64)
    return network, torch.randn(2, 3, side, side) if side else torch.randn(2, 5, 8)


def trained(network: nn.Module, rank: int = 4) -> nn.Module:
    """With updates as after training: B is not zero."""
    add_lora(network, rank=rank, alpha=2 * rank)
    for layer in network.modules():
        if isinstance(layer, LowRank):
            nn.init.normal_(layer.lora_B, std=0.1)
    return network


@torch.no_grad()  # torch's encoder has other kernels with gradients
@pytest.mark.parametrize("name", NETWORKS)
def test_outputs_are_the_same_at_first_and_after_merging(name: str) -> None:
    network, image = made(name)
    names, before = list(network.state_dict()), network(image)
    linear = [path for path, layer in network.named_modules() if isinstance(layer, nn.Linear)]
    assert add_lora(network, rank=4) == linear
    assert torch.equal(network(image), before)
    for layer in network.modules():
        if isinstance(layer, LowRank):
            nn.init.normal_(layer.lora_B, std=0.1)
    unmerged, state = network(image), copy.deepcopy(network.state_dict())
    assert (unmerged - before).abs().max() > 1e-2
    assert list(merged_state(state)) == names
    plain = NETWORKS[name]().eval()
    plain.load_state_dict(merged_state(state))
    torch.testing.assert_close(plain(image), unmerged, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["swin v2", "eva", "torch"])
def test_every_update_gets_a_gradient(name: str) -> None:
    network, image = made(name)
    network = trained(network).train()
    network(image).square().sum().backward()
    trains = {key for key, parameter in network.named_parameters() if parameter.requires_grad}
    assert trains == {key for key in network.state_dict() if key.endswith((".lora_A", ".lora_B"))}
    dead = [key for key, each in network.named_parameters() if key in trains and not (each.grad is not None and each.grad.any())]
    assert dead == []


def test_an_update_is_scale_times_b_times_a() -> None:
    layer = nn.Sequential(nn.Linear(3, 2))
    base = layer[0].weight.detach().clone()
    add_lora(layer, rank=2, alpha=6)
    assert torch.equal(layer[0].lora_B, torch.zeros(2, 2))
    layer[0].lora_B.data = torch.tensor([[1.0, 0.0], [0.5, 2.0]])
    torch.testing.assert_close(layer[0].weight, base + 3 * layer[0].lora_B @ layer[0].lora_A)


def test_the_rank_is_at_most_that_of_the_matrix() -> None:
    layer = nn.Sequential(nn.Linear(3, 20))
    add_lora(layer)
    assert (layer[0].lora_A.shape, layer[0].lora_B.shape) == ((3, 3), (20, 3))
    assert layer[0].lora_scale == 1


def test_layers_can_be_named_and_convolutions_too() -> None:
    network, plain = (timm.create_model("test_resnet", num_classes=0).eval() for _ in range(2))
    image = torch.randn(1, 3, 32, 32)
    assert add_lora(copy.deepcopy(network), targets=["layer4"])[0].startswith("layer4.")
    assert add_lora(network, targets=[r"r:layer[12].*conv\d$"]) == [f"layer{i}.0.conv{j}" for i in (1, 2) for j in (1, 2)]
    for layer in network.modules():
        if isinstance(layer, LowRank):
            nn.init.normal_(layer.lora_B, std=0.1)
    before = network(image)
    plain.load_state_dict(merged_state(network.state_dict()))
    torch.testing.assert_close(plain(image), before, rtol=1e-5, atol=1e-5)


def test_what_cannot_be_extended_is_explained() -> None:
    with pytest.raises(UserError, match=facts("finetune.lora.targets", "linear", "r:conv")):
        add_lora(timm.create_model("test_resnet", num_classes=0))
    with pytest.raises(UserError, match=facts("finetune.lora.targets", "'block'", "'blocks'")):
        add_lora(timm.create_model("test_vit", num_classes=0), targets=["block"])
    with pytest.raises(UserError, match=facts("finetune.lora.rank", "0")):
        add_lora(nn.Sequential(nn.Linear(1, 1)), rank=0)


def test_norms_of_a_frozen_network_rest() -> None:
    network = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    net = Net([("backbone", network)])
    add_lora(net["backbone"])
    net.train()
    assert not network[1].training


def test_checkpoints_of_training_load_as_ordinary_ones_and_resume() -> None:
    """A file with updates fills a plain net; a plain file fills a net with updates, which start anew."""
    plain = Net([("backbone", made("vit")[0])])
    training = copy.deepcopy(plain)
    trained(training["backbone"])
    training.load_state_dict(copy.deepcopy(training).state_dict())
    report = load_weights(plain, Weights("ckpt.pth", training.state_dict()))
    assert (report.missing, report.unexpected) == ([], [])
    image = torch.randn(1, 3, 160, 160)
    torch.testing.assert_close(plain["backbone"](image), training["backbone"](image), rtol=1e-5, atol=1e-5)
    other = Net([("backbone", made("vit")[0])])
    add_lora(other["backbone"], rank=2)
    report = load_weights(other, Weights("ckpt.pth", training.state_dict()))
    assert (report.missing, report.unexpected, report.misshaped) == ([], [], [])
    torch.testing.assert_close(other["backbone"](image), plain["backbone"](image))
