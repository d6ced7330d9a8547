import hashlib
import json
import os
import pickle
import re
import sys
import types
from functools import partial

import numpy as np
import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from timm.layers import resample_abs_pos_embed
from timm.models import adapt_input_conv
from timm.models import convnext as timm_convnext
from timm.models import swin_transformer as timm_swin
from torch import nn
from torchvision.models.convnext import CNBlockConfig
from torchvision.models.swin_transformer import PatchMergingV2, SwinTransformerBlockV2

from tests.harness.facts import each_tells, facts, tells
from tests.harness.nets import meta_device, undrawn
from up.models import pretrained
from up.models.backbones import BACKBONES
from up.models.convnets import convnext
from up.models.cswin import cswin
from up.models.net import Net
from up.models.norm import SoloBatchNorm
from up.models.preprocessing import ImagePreprocessing
from up.models.resample import with_channels
from up.models.weights import Weights, WeightsError, clean_state_dict, load_weights, read_state, unwrap
from up.tasks.cls.model.heads import HEADS

pytestmark = pytest.mark.integration  # beside full-size networks of timm and torchvision

torch.set_num_threads(1)

load_with_heads = partial(load_weights, heads={"head": "classifier"})


class Head(nn.Module):
    def __init__(self, planes: int, classes: int | list[int], norm: bool = False) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(planes) if norm else nn.Identity()
        several = isinstance(classes, list)
        self.classifier = nn.ModuleList(nn.Linear(planes, number) for number in classes) if several else nn.Linear(planes, classes)


def net_of(backbone: nn.Module, classes: int | list[int] = 1000, *, norm: bool = False, **others: nn.Module) -> Net:
    return Net([("backbone", backbone), ("head", Head(backbone.num_features, classes, norm)), *others.items()])


def small_resnet(**kwargs) -> nn.Module:
    return timm.models.resnet.ResNet(
        timm.models.resnet.BasicBlock, (1, 1, 1, 1), channels=(4, 8, 8, 16), stem_width=64, num_classes=0, **kwargs
    )


def scrambled(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same names and shapes with other values, so that a load shows."""
    return {key: torch.rand_like(value) + 0.5 if value.is_floating_point() else value for key, value in state.items()}


def equal(state, expected) -> bool:
    return state.keys() == expected.keys() and all(torch.equal(state[key], expected[key]) for key in state)


# ---------------------------------------------------------------------------------------------------- reading files


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".bin"])
@pytest.mark.parametrize("key", ["model", "state_dict", None])
def test_the_usual_layouts(tmp_path, suffix, key):
    tensors = {"a.weight": torch.ones(2), "b": torch.zeros(3)}
    torch.save({key: tensors, "epoch": 3} if key else tensors, tmp_path / f"x{suffix}")
    weights = read_state(tmp_path / f"x{suffix}")
    assert equal(weights.model, tensors)
    assert weights.source == str(tmp_path / f"x{suffix}")
    assert (dict(weights.ema), weights.class_names) == ({}, None)


def test_safetensors(tmp_path):
    tensors = {"a.weight": torch.arange(3.0)}
    save_file(tensors, tmp_path / "x.safetensors")
    assert equal(read_state(tmp_path / "x.safetensors").model, tensors)


@pytest.mark.parametrize("wrapped", ["model", "state_dict", "shadow", None])
def test_our_checkpoint_brings_averages_and_class_names(tmp_path, wrapped):
    averages = {"a": torch.full((2,), 5.0)}
    state = {
        "model": {"a": torch.ones(2), "bn.num_batches_tracked": torch.tensor(7)},
        "ema": {wrapped: averages, "updates": 3} if wrapped else averages,
        "optimizer": {"state": {0: {"exp_avg": torch.ones(2)}}},
        "class_names": ["cat", "dog"],
    }
    torch.save(state, tmp_path / "x.pth")
    weights = read_state(tmp_path / "x.pth")
    assert weights.class_names == ("cat", "dog")
    assert weights.tensors()["a"].tolist() == [5, 5]
    assert weights.tensors()["bn.num_batches_tracked"] == 7  # counters are not averaged, and not lost


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
def test_prefixes_of_wrappers_are_stripped(tmp_path, prefix):
    torch.save({prefix + "a._orig_mod.module.weight": torch.ones(1)}, tmp_path / "x.pth")
    assert list(read_state(tmp_path / "x.pth").model) == ["a.module.weight"]


@pytest.mark.parametrize("cut", [0, 1, 4, 30, 300, 1500, -1])
@pytest.mark.parametrize("legacy", [False, True])
def test_a_cut_file_is_damaged(tmp_path, cut, legacy):
    path = tmp_path / "x.pth"
    torch.save({"model": {"a": torch.ones(1000)}}, path, _use_new_zipfile_serialization=not legacy)
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(WeightsError, match=r"x\.pth: damaged"):
        read_state(path)


def test_any_damage_is_one_kind_of_error(tmp_path):
    path = tmp_path / "x.pth"
    torch.save({"model": {"a": torch.ones(50), "b": torch.zeros(2, 2)}}, path)
    whole = path.read_bytes()
    generator = np.random.default_rng(0)
    refused = []
    for _ in range(150):
        flipped = bytearray(whole)
        flipped[generator.integers(len(whole))] ^= 1 << generator.integers(8)
        path.write_bytes(flipped)
        try:
            read_state(path)
        except WeightsError as error:
            refused.append(str(error))
    assert all(told.startswith(str(path)) and "\n" not in told for told in refused)
    assert len(refused) > 10


def test_a_cut_safetensors_file(tmp_path):
    save_file({"a": torch.ones(9)}, tmp_path / "x.safetensors")
    (tmp_path / "x.safetensors").write_bytes((tmp_path / "x.safetensors").read_bytes()[:-3])
    with pytest.raises(WeightsError, match=facts("x.safetensors", "damaged", "deserializing")):
        read_state(tmp_path / "x.safetensors")


@pytest.mark.parametrize("how", ["shorter", "flipped", "intact"])
def test_the_sidecar_is_checked(tmp_path, how):
    path = tmp_path / "x.pth"
    torch.save({"model": {"a": torch.ones(100)}}, path)
    whole = path.read_bytes()
    said = {"file": "x.pth", "bytes": len(whole), "sha256": hashlib.sha256(whole).hexdigest()}
    (tmp_path / "x.pth.json").write_text(json.dumps(said))
    half = len(whole) // 2
    found = {"shorter": whole[:half], "flipped": whole[:half] + bytes([whole[half] ^ 1]) + whole[half + 1 :], "intact": whole}
    path.write_bytes(found[how])
    if how == "intact":
        assert read_state(path).model["a"].sum() == 100
        return
    difference = "sha256 mismatch" if how == "flipped" else f"{half:,} of {len(whole):,} bytes"
    told = f"damaged ({difference})"
    with pytest.raises(WeightsError, match=re.escape(told)):
        read_state(path)


def test_a_json_file_that_is_no_sidecar_says_nothing(tmp_path):
    torch.save({"a": torch.ones(1)}, tmp_path / "x.pth")
    (tmp_path / "x.pth.json").write_text('{"classes": 3}')
    assert list(read_state(tmp_path / "x.pth").model) == ["a"]


class Evil:
    def __reduce__(self):
        return os.system, ("touch was_here",)


def test_code_is_refused_and_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"model": Evil()}, "evil.pth")
    with pytest.raises(WeightsError, match=facts("evil.pth", "contains", "posix.system")):
        read_state("evil.pth")
    (tmp_path / "evil.pkl").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(WeightsError, match=facts("pickle", "torch.save", "refused")):
        read_state("evil.pkl")
    assert not (tmp_path / "was_here").exists()


def test_numpy_scalars_are_refused_with_the_way_to_convert(tmp_path):
    averages = {"state_dict": {"a": torch.zeros(1)}}
    torch.save({"state_dict": {"a": torch.ones(1)}, "ema": averages, "best": np.float64(3)}, tmp_path / "old.pth")
    with pytest.raises(WeightsError, match=facts("multiarray.scalar", "would", "imported")) as caught:
        read_state(tmp_path / "old.pth")
    command = str(caught.value).partition('python -c "')[2].rstrip('"')
    folder = os.getcwd()
    os.chdir(tmp_path)
    try:
        exec(command, {})  # the advice works
    finally:
        os.chdir(folder)
    converted = read_state(tmp_path / "weights.pth")
    assert (converted.model["a"].item(), converted.ema["a"].item()) == (1, 0)


def test_a_training_state_with_objects_of_up_is_refused_with_the_way_to_convert(tmp_path, monkeypatch):
    elsewhere = types.ModuleType("up.schedulers")
    elsewhere.Warmup = type("Warmup", (), {"__module__": "up.schedulers"})
    monkeypatch.setitem(sys.modules, "up.schedulers", elsewhere)
    torch.save({"model": {"a": torch.ones(1)}, "lr_scheduler": elsewhere.Warmup()}, tmp_path / "old.pth")
    with pytest.raises(WeightsError, match=facts("up.schedulers.Warmup", "program", "installed")):
        read_state(tmp_path / "old.pth")


def test_torchscript_is_refused(tmp_path):
    with pytest.warns(FutureWarning):
        torch.jit.script(nn.Linear(2, 2)).save(tmp_path / "x.pt")
    with pytest.raises(WeightsError, match=facts("contains", "refused", "TorchScript")):
        read_state(tmp_path / "x.pt")


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"<!DOCTYPE html><html>", "an HTML or XML page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1", "a git-lfs pointer"),
        (b"\x93NUMPY\x01\x00", "a NumPy array"),
    ],
)
def test_what_is_downloaded_by_mistake_is_named(tmp_path, content, told):
    (tmp_path / "x.pth").write_bytes(content)
    with pytest.raises(WeightsError, match=facts("contains", "weights", told)):
        read_state(tmp_path / "x.pth")


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ({"epoch": 3, "lr": 0.1}, "got a dict of epoch, lr"),
        (torch.ones(2), "got Tensor"),
        ([1], "got list"),
        ({}, "got a dict of nothing"),
    ],
)
def test_a_file_without_weights(tmp_path, content, told):
    torch.save(content, tmp_path / "x.pth")
    with pytest.raises(WeightsError, match=rf"contains no weights \({told}\)"):
        read_state(tmp_path / "x.pth")


def test_a_file_that_is_not_there(tmp_path):
    torch.save({"a": torch.ones(1)}, tmp_path / "ckpt_best.pth")
    with pytest.raises(WeightsError, match=facts("ckpt_bset.pth", "no such file", "'ckpt_best.pth'")):
        read_state(tmp_path / "ckpt_bset.pth")
    with pytest.raises(WeightsError, match=facts("no/x.pth", "no such file", "file of weights")):
        read_state(tmp_path / "no" / "x.pth")
    with pytest.raises(WeightsError, match=facts("folder", "file")):
        read_state(tmp_path)


def test_timm_names(monkeypatch):
    with pytest.raises(WeightsError, match=facts("timm:resnet5.x", "network", "'resnet50'")):
        read_state("timm:resnet5.x")
    with pytest.raises(WeightsError, match=r"timm:resnet18\.a7: .*resnet18\.a1_in1k"):
        read_state("timm:resnet18.a7")

    def offline(name, pretrained):
        raise OSError("no route to host")

    monkeypatch.setattr(pretrained, "get_hf_file_metadata", lambda url: None)  # the hub answers
    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(WeightsError, match=facts("timm:resnet18.a1_in1k", "downloaded", "OSError")):
        read_state("timm:resnet18.a1_in1k")
    network = small_resnet()
    monkeypatch.setattr(timm, "create_model", lambda name, pretrained: network)
    assert equal(read_state("timm:resnet18").model, network.state_dict())


# ------------------------------------------------------------------------------------- names of other people's files


def tiny_resnet(**theirs):
    return torchvision.models.ResNet(torchvision.models.resnet.Bottleneck, [1, 1, 1, 1], **theirs)


def tiny_timm_resnet(**ours):
    return timm.models.ResNet(timm.models.resnet.Bottleneck, (1, 1, 1, 1), **ours)


def tiny_vgg():
    """As torchvision's VGG, whose linear layers have 100 million parameters."""
    features = torchvision.models.vgg.make_layers([8, "M", 8, "M", 16, "M", 16, "M", 16, "M"], batch_norm=True)
    with torch.device("meta"):
        network = torchvision.models.VGG(features, init_weights=False)
    layers = [nn.Linear(16 * 49, 32), nn.ReLU(), nn.Dropout(), nn.Linear(32, 32), nn.ReLU(), nn.Dropout(), nn.Linear(32, 1000)]
    network.classifier = nn.Sequential(*layers)
    return network


def tiny_timm_vgg():
    with torch.device("meta"):
        network = timm.models.VGG([8, "M", 8, "M", 16, "M", 16, "M", 16, "M"], norm_layer=nn.BatchNorm2d)
    network.pre_logits = timm.models.vgg.ConvMlp(16, 32, 7)
    network.head = timm.layers.ClassifierHead(32, 1000)
    return network.to_empty(device="cpu")


CONVNEXT = [CNBlockConfig(8, 16, 1), CNBlockConfig(16, 24, 2), CNBlockConfig(24, 32, 1), CNBlockConfig(32, None, 1)]
# network of torchvision, the same of timm, how our nets call the naming
FAMILIES = {
    "resnet": (lambda: torchvision.models.resnet18(), lambda: timm.create_model("resnet18"), "timm"),
    "resnext": (lambda: tiny_resnet(groups=8, width_per_group=4), lambda: tiny_timm_resnet(cardinality=8, base_width=4), "timm"),
    "wide resnet": (lambda: tiny_resnet(width_per_group=128), lambda: tiny_timm_resnet(base_width=128), "timm"),
    "densenet": (lambda: torchvision.models.DenseNet(8, (2, 2, 2, 2), 16), lambda: timm.models.DenseNet(8, (2, 2, 2, 2)), "timm"),
    "vgg": (tiny_vgg, tiny_timm_vgg, "torchvision vgg"),
    "mobilenet_v2": (
        lambda: torchvision.models.mobilenet_v2(width_mult=0.5),
        lambda: timm.create_model("mobilenetv2_050"),
        "torchvision mobilenet_v2",
    ),
    "mobilenet_v3_large": (
        lambda: torchvision.models.mobilenet_v3_large(),
        lambda: timm.create_model("mobilenetv3_large_100"),
        "torchvision mobilenet_v3",
    ),
    "mobilenet_v3_small": (
        lambda: torchvision.models.mobilenet_v3_small(),
        lambda: timm.create_model("mobilenetv3_small_100"),
        "torchvision mobilenet_v3",
    ),
    "efficientnet": (
        lambda: torchvision.models.efficientnet_b0(),
        lambda: timm.create_model("efficientnet_b0"),
        "torchvision efficientnet",
    ),
    "regnet": (lambda: torchvision.models.regnet_y_400mf(), lambda: timm.create_model("regnety_004"), "torchvision regnet"),
    "convnext": (
        lambda: torchvision.models.ConvNeXt(CONVNEXT),
        lambda: timm_convnext.ConvNeXt(depths=(1, 2, 1, 1), dims=(8, 16, 24, 32)),
        "torchvision convnext",
    ),
    "swin": (
        lambda: torchvision.models.SwinTransformer([4, 4], 8, [1, 1, 2, 1], [1, 2, 2, 4], [4, 4]),
        lambda: timm_swin.SwinTransformer(img_size=128, embed_dim=8, depths=(1, 1, 2, 1), num_heads=(1, 2, 2, 4), window_size=4),
        "torchvision swin",
    ),
    "swin v2": (
        lambda: torchvision.models.SwinTransformer(
            [4, 4], 8, [1, 1, 2, 1], [1, 2, 2, 4], [4, 4], block=SwinTransformerBlockV2, downsample_layer=PatchMergingV2
        ),
        lambda: timm.models.SwinTransformerV2(
            img_size=128, embed_dim=8, depths=(1, 1, 2, 1), num_heads=(1, 2, 2, 4), window_size=4
        ),
        "torchvision swin",
    ),
    "efficientnet v2": (
        lambda: torchvision.models.efficientnet_v2_s(),
        lambda: timm.create_model("tf_efficientnetv2_s", pad_type=""),
        "torchvision efficientnet",
    ),
    "vit": (
        lambda: torchvision.models.VisionTransformer(64, 16, 2, 2, 16, 32),
        lambda: timm.models.VisionTransformer(img_size=64, embed_dim=16, depth=2, num_heads=2, mlp_ratio=2),
        "torchvision vit",
    ),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_torchvision_weights_make_timm_networks_compute_the_same(family):
    make_theirs, make_ours, naming = FAMILIES[family]
    with undrawn():
        theirs, ours = make_theirs().eval(), make_ours().eval()
    draw(theirs)
    report = load_weights(ours, Weights("tv", theirs.state_dict()))
    if notes := [note for note in report.notes if "eps" in note]:  # no tensor has it
        assert tells(notes[0], "0.001", "1e-05", "normalize", "solo_bn")
        SoloBatchNorm(eps=1e-3)(ours)
    assert (family in ("mobilenet_v3_large", "mobilenet_v3_small")) == bool(notes)
    assert report.naming == naming
    assert (report.missing, report.unexpected, report.misshaped, report.reinitialised, report.resized) == ([], [], [], [], [])
    assert_equal_logits(theirs, ours, 128 if family.startswith("swin") else 64)


def draw(network):
    """Give every tensor a value that matters: norms are not the identity, running statistics are not 0 and 1."""
    for name, tensor in network.state_dict().items():
        if name.endswith("running_var") or (tensor.ndim == 1 and name.endswith("weight")):
            tensor.uniform_(0.5, 1.5)
        elif tensor.is_floating_point() and not name.endswith("relative_coords_table"):  # computed from the settings
            tensor.normal_(std=0.1 if tensor.ndim < 2 else max(tensor[0].numel(), 1) ** -0.5)


def assert_equal_logits(theirs, ours, side):
    """In float64, so that nothing but the order of operations may differ."""
    image = torch.randn(1, 3, side, side, dtype=torch.float64)
    with torch.no_grad():
        expected, ours = theirs.double().eval()(image), ours.double().eval()
        given = ours({"image": image})["logits"] if isinstance(ours, Net) else ours(image)
        assert expected.std() > 0
        assert (given - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize("family", FAMILIES)
def test_torchvision_weights_fill_a_net_of_backbone_and_head(family):
    theirs, ours, naming = FAMILIES[family]
    if family == "vgg":
        pytest.skip("its classifier follows layers that are no part of a head")
    with undrawn():
        backbone = ours()
        backbone.reset_classifier(0)
        state = theirs().state_dict()
    if family == "convnext":  # pooled and normalized by the head
        backbone.head.norm = nn.Identity()
    planes = getattr(backbone, "head_hidden_size", backbone.num_features)
    head = Head(planes, 1000, norm=family == "convnext")
    net = Net([("backbone", backbone), ("head", head)])
    for tensor in state.values():
        tensor.fill_(1)
    state |= {name: torch.rand(1000) for name, tensor in state.items() if tensor.shape == (1000,)}
    report = load_with_heads(net, Weights("tv", state))
    assert report.naming == naming
    assert (report.missing, report.unexpected, report.misshaped, report.reinitialised) == ([], [], [], [])
    classifier = [tensor for tensor in state.values() if tensor.shape == (1000,)][-1]
    assert torch.equal(net.head.classifier.bias, classifier)


OURS = {  # our backbone and its arguments, the head, timm's network and its arguments
    "resnet18": ({}, "base_cls_head", "resnet18", {}),
    "resnet50": ({}, "base_cls_head", "resnet50", {}),
    "resnet50_D": ({"variant": "timm"}, "base_cls_head", "resnet50d", {}),
    "mobilenetv2": ({"variant": "timm"}, "base_cls_head", "mobilenetv2_100", {}),
    "mobilenetv3": ({"variant": "timm"}, "base_cls_head", "mobilenetv3_large_100", {}),
    "efficientnet_b0": ({}, "base_cls_head", "tf_efficientnet_b0", {}),
    "efficientnet_b1": ({"variant": "timm"}, "base_cls_head", "efficientnet_b1", {}),
    "regnetx_200m": ({}, "base_cls_head", "regnetx_002", {}),
    "regnety_200m": ({}, "base_cls_head", "regnety_002", {}),
    "convnext_tiny": ({}, "convnext_head", "convnext_tiny", {}),
    "swin_tiny": ({"img_size": 64}, "base_cls_head", "swin_tiny_patch4_window7_224", {"img_size": 64}),
    "vit_tiny_patch16_224": ({"variant": "timm", "img_size": 64}, "vit_head", "vit_tiny_patch16_224", {"img_size": 64}),
    "deit_tiny_patch16_224": ({"variant": "timm", "img_size": 64}, "vit_head", "deit_tiny_patch16_224", {"img_size": 64}),
    "timm": ({"model_name": "efficientnet_lite0"}, "base_cls_head", "efficientnet_lite0", {}),
}


@pytest.mark.parametrize("name", OURS)
def test_timms_weights_give_timms_logits(name):
    kwargs, head, theirs_name, theirs_kwargs = OURS[name]
    with undrawn():
        theirs = timm.create_model(theirs_name, num_classes=7, **theirs_kwargs)
        backbone = BACKBONES.get(name)(**kwargs)
        net = Net([("backbone", backbone), ("head", HEADS.get(head)(num_classes=7, in_plane=backbone.out_planes[-1]))])
    draw(theirs)
    report = load_with_heads(net, Weights("timm", theirs.state_dict()))
    assert (report.missing, report.unexpected, report.misshaped, report.reinitialised, report.resized) == ([], [], [], [], [])
    assert_equal_logits(theirs, net, 64)


def test_published_densenets_have_older_names():
    theirs, ours = FAMILIES["densenet"][0](), FAMILIES["densenet"][1]()
    state = {re.sub(r"(denselayer\d+\.(?:norm|conv))(\d)\.", r"\1.\2.", key): each for key, each in theirs.state_dict().items()}
    assert any(".norm.1." in key for key in state)
    assert load_weights(ours, Weights("tv", state)).naming == "torchvision densenet"
    assert equal(ours.state_dict(), theirs.state_dict())


def test_original_swin_names_mean_what_timm_takes_them_for():
    network = FAMILIES["swin"][1]()
    state = scrambled(network.state_dict())
    original = {
        re.sub(r"layers\.(\d)\.downsample", lambda found: f"layers.{int(found[1]) - 1}.downsample", key).replace(
            "head.fc", "head"
        ): tensor
        for key, tensor in state.items()
    }
    original["layers.0.blocks.0.attn.relative_position_index"] = torch.zeros(16, 16)  # the original stores it
    assert equal(timm_swin.checkpoint_filter_fn(original, network), state)
    report = load_weights(network, Weights("ms", original))
    assert report.naming == "microsoft swin"
    assert equal(network.state_dict(), state)


def test_original_convnext_names_mean_what_timm_takes_them_for():
    network = FAMILIES["convnext"][1]()
    state = scrambled(network.state_dict())
    original = {}
    for key, tensor in state.items():
        key = re.sub(r"^stem\.", "downsample_layers.0.", key)
        key = re.sub(r"^stages\.(\d)\.downsample\.", r"downsample_layers.\1.", key)
        key = key.replace(".blocks.", ".").replace("conv_dw", "dwconv").replace("mlp.fc", "pwconv")
        original[key.replace("head.fc", "head").replace("head.norm", "norm")] = tensor
    assert equal(timm_convnext.checkpoint_filter_fn(original, network), state)
    report = load_weights(network, Weights("fb", original))
    assert report.naming == "facebook convnext"
    assert equal(network.state_dict(), state)


@pytest.mark.parametrize("depth", ["plain", "deep", "deep and flat"])
def test_the_older_layer0_names(depth):
    net = net_of(small_resnet(stem_type="" if depth == "plain" else "deep"))
    state = scrambled(net.state_dict())
    flat = depth == "deep and flat"
    old = {}
    for key, tensor in state.items():
        key = re.sub(r"^backbone\.conv1\.", "backbone.layer0." if flat else "backbone.layer0.0.", key)
        old["module." + re.sub(r"^backbone\.bn1\.", "backbone.layer0.7." if flat else "backbone.layer0.1.", key)] = tensor
    assert any(key.startswith("module.backbone.layer0.") for key in old)
    report = load_with_heads(net, _through_a_file(old))
    assert report.naming == ("UP, flat deep layer0" if flat else "UP, layer0")
    assert equal(net.state_dict(), state)
    assert len(report.loaded) == len(state)


def _through_a_file(state, tmp=None) -> Weights:
    from up.models.weight_files import clean_key

    return Weights("old.pth", {clean_key(key): tensor for key, tensor in state.items()})


def test_names_that_mean_the_same_tensor_must_agree():
    net = net_of(small_resnet())
    state = dict(net.state_dict())
    state["backbone.layer0.0.weight"] = state["backbone.conv1.weight"].clone()
    state["backbone.layer0.1.weight"] = state["backbone.bn1.weight"].clone()
    old = {key: tensor for key, tensor in state.items() if not key.startswith("backbone.bn1.")}
    old |= {key.replace("bn1", "layer0.1"): tensor for key, tensor in state.items() if key.startswith("backbone.bn1.")}
    assert load_with_heads(net, Weights("twice.pth", old)).missing == []
    old["backbone.layer0.0.weight"] += 1
    with pytest.raises(WeightsError, match=facts("backbone.layer0.0.weight", "backbone.conv1.weight", "differ")):
        load_with_heads(net, Weights("twice.pth", old))


# ------------------------------------------------------------------------------------------------- what does not fit


def test_bare_timm_weights_and_a_new_head():
    with undrawn():
        state = scrambled(timm.create_model("resnet18").state_dict())
        backbone = timm.create_model("resnet18", num_classes=0)
    net = net_of(backbone, 7)
    fresh = net.head.classifier.weight.clone()
    report = load_with_heads(net, Weights("r18.pth", state))
    assert torch.equal(net.backbone.layer4[1].conv2.weight, state["layer4.1.conv2.weight"])
    assert torch.equal(net.head.classifier.weight, fresh)
    assert report.reinitialised == ["head.classifier.weight", "head.classifier.bias"]
    assert each_tells(
        [str(item) for item in report.misshaped],
        ("head.classifier.weight", "1000", "512", "7", "512"),
        ("head.classifier.bias", "1000", "7"),
    )
    assert each_tells(
        report.lines(),
        ("r18.pth", "120", "tensors"),
        ("r18.pth", "head", "head.classifier.weight", "head.classifier.bias"),
        ("r18.pth", report.misshaped[0], report.misshaped[1]),
    )


def test_a_head_that_must_be_the_trained_one():
    net = net_of(small_resnet(), 7)
    state = net_of(small_resnet(), 5).state_dict()
    with pytest.raises(WeightsError, match=facts("2", "head.classifier.weight", "5", "16", "7", "16")):
        load_weights(net, Weights("teacher.pth", state))


@pytest.mark.parametrize(("theirs", "ours"), [(5, [5, 3]), ([5, 3], 5), ([5, 3], [5, 3, 2])])
def test_one_classifier_and_several(theirs, ours):
    net = net_of(small_resnet(), ours)
    report = load_with_heads(net, Weights("x.pth", net_of(small_resnet(), theirs).state_dict()))
    assert report.reinitialised == [name for name in net.state_dict() if name.startswith("head.")]
    assert len(report.loaded) == len(net.backbone.state_dict())


def test_a_classifier_without_bias_is_dropped_whole():
    net = net_of(small_resnet(), 5)
    net.head.classifier = nn.Linear(16, 5, bias=False)
    report = load_with_heads(net, Weights("x.pth", net_of(small_resnet(), 5).state_dict()))
    assert report.reinitialised == ["head.classifier.weight"]


def test_weights_of_a_backbone_alone():
    net = net_of(small_resnet(), 5)
    state = scrambled(small_resnet().state_dict())
    report = load_with_heads(net, Weights("backbone.pth", state))
    assert equal(net.backbone.state_dict(), state)
    assert report.reinitialised == ["head.classifier.weight", "head.classifier.bias"]


def test_another_number_of_class_names_is_another_head():
    net = net_of(small_resnet(), 3)
    state = scrambled(net.state_dict())
    weights = Weights("x.pth", state, class_names=("a", "b"))
    report = load_with_heads(net, weights, class_names=["a", "b", "c"])
    assert report.reinitialised == ["head.classifier.weight", "head.classifier.bias"]
    assert each_tells(report.notes, ("2", "classes", "3"))
    assert not torch.equal(net.head.classifier.weight, state["head.classifier.weight"])


def test_other_class_names_of_the_same_number_are_pointed_out():
    net = net_of(small_resnet(), 2)
    state = scrambled(net.state_dict())
    report = load_with_heads(net, Weights("x.pth", state, class_names=("a", "b")), class_names=["c", "d"])
    assert report.reinitialised == []
    assert torch.equal(net.head.classifier.weight, state["head.classifier.weight"])
    assert tells(report.lines()[-1], "afresh", "{skip", "[head]}")


def test_any_other_mismatch_is_an_error_with_the_line_to_add():
    net = net_of(small_resnet(), 5)
    state = scrambled(net.state_dict())
    before = {key: tensor.clone() for key, tensor in net.state_dict().items()}
    del state["backbone.layer3.0.conv1.weight"]
    state["backbone.layer1.0.bn1.extra"] = torch.ones(1)
    for key in [key for key in state if key.startswith("backbone.layer4.") and "num_batches" not in key]:
        state[key] = torch.ones(3, 3)
    with pytest.raises(WeightsError, match="^x.pth: ") as caught:
        load_with_heads(net, Weights("x.pth", state))
    told = str(caught.value)
    wrong = sum(key.startswith("backbone.layer4.") and "num_batches" not in key for key in state) + 2
    assert tells(told, "x.pth", wrong, "1", "backbone.layer3.0.conv1.weight")
    assert tells(told, "1", "backbone.layer1.0.bn1.extra", wrong - 2, "backbone.layer4")
    assert tells(told, wrong - 2 - 10, "more", "leave")
    assert "another architecture" not in told
    skip = re.search(r"saver: \{skip: \[(.*)\]\}$", told)[1].split(", ")
    assert skip == ["backbone.layer3.0.conv1", "backbone.layer1.0.bn1.extra", "backbone.layer4"]
    assert equal(net.state_dict(), before)  # nothing was loaded
    report = load_with_heads(net, Weights("x.pth", state), skip=skip)  # the line works
    assert "backbone.layer3.0.conv1.weight" in report.skipped
    assert torch.equal(net.state_dict()["backbone.layer4.0.conv1.weight"], before["backbone.layer4.0.conv1.weight"])
    assert torch.equal(net.state_dict()["backbone.layer2.0.conv1.weight"], state["backbone.layer2.0.conv1.weight"])


def test_what_may_be_left_out_is_named_once_or_not_at_all():
    backbone = Net([("backbone", small_resnet())])
    weights = Weights("x.pth", {**backbone.state_dict(), "neck.weight": torch.ones(1), "neck.bias": torch.ones(1)})
    with pytest.raises(WeightsError, match=facts("leave", "{skip", "[neck]}")):
        load_with_heads(backbone, weights)
    with pytest.raises(WeightsError, match=facts("2", "neck.bias", "tensors")):
        load_weights(backbone, weights)


def test_a_deeper_network_is_suspected():
    with meta_device():
        net, other = net_of(timm.create_model("resnet50", num_classes=0), 5), timm.create_model("resnet18")
    with pytest.raises(WeightsError, match=facts("architecture", "{skip", "[")) as caught:
        load_with_heads(net, Weights("r18.pth", other.state_dict()))
    assert len(str(caught.value)) < 2500


def test_another_architecture_altogether():
    with pytest.raises(WeightsError, match=facts("vit.pth", "cls_token", "backbone.conv1")):
        load_with_heads(net_of(small_resnet(), 5), Weights("vit.pth", FAMILIES["vit"][1]().state_dict()))


def test_skip_leaves_tensors_as_built():
    net = net_of(small_resnet(), 5)
    before = {key: tensor.clone() for key, tensor in net.state_dict().items()}
    state = scrambled(net.state_dict())
    report = load_with_heads(net, Weights("x.pth", state), skip=["head", r"r:layer4.*conv1"])
    assert sorted(report.skipped) == ["backbone.layer4.0.conv1.weight", "head.classifier.bias", "head.classifier.weight"]
    for name, tensor in net.state_dict().items():
        assert torch.equal(tensor, before[name] if name in report.skipped else state[name])


def test_a_skip_that_matches_nothing_is_an_error():
    net = net_of(small_resnet(), 5)
    with pytest.raises(ValueError, match=facts("saver.skip", "'backbone.layr4'", "'backbone.layer4'")):
        load_with_heads(net, Weights("x.pth", net.state_dict()), skip=["backbone.layr4"])


class Counts(nn.Module):
    def __init__(self, classes: int) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(classes))


def test_counters_of_losses_are_no_weights():
    net = net_of(small_resnet(), 5, post_process=Counts(5))
    report = load_weights(net, Weights("x.pth", scrambled(net_of(small_resnet(), 5).state_dict())))
    assert report.missing == ["post_process.seen"]
    other = net_of(small_resnet(), 5, post_process=Counts(9))
    report = load_weights(net, Weights("x.pth", scrambled(other.state_dict())))
    assert [item.name for item in report.misshaped] == ["post_process.seen"]
    with pytest.raises(WeightsError, match=facts("1", "neck.seen", "[neck]")):
        load_with_heads(net, Weights("x.pth", {**net.state_dict(), "neck.seen": torch.zeros(5)}))


def test_files_from_before_batches_were_counted():
    net = net_of(small_resnet(), 5)
    state = {key: tensor for key, tensor in scrambled(net.state_dict()).items() if "num_batches" not in key}
    report = load_with_heads(net, Weights("x.pth", state))
    assert (report.missing, len(report.loaded)) == ([], len(state))


# ------------------------------------------------------------------------------------------- positions, EMA, wrappers


@pytest.mark.parametrize("size", [(32, 32), (48, 32)])
@pytest.mark.parametrize("class_token", [True, False])
def test_position_embeddings_are_resized(size, class_token):
    def vit(img_size):
        kwargs = {} if class_token else {"class_token": False, "global_pool": "avg"}
        return timm.models.VisionTransformer(img_size, 8, embed_dim=16, depth=1, num_heads=2, num_classes=0, **kwargs)

    state = scrambled(vit(64).state_dict())
    net = net_of(vit(size), 5)
    report = load_with_heads(net, Weights("vit.pth", state))
    grid = [side // 8 for side in size]
    expected = resample_abs_pos_embed(state["pos_embed"], grid, num_prefix_tokens=int(class_token))
    torch.testing.assert_close(net.backbone.pos_embed.data, expected)
    tokens = grid[0] * grid[1] + class_token
    assert each_tells(
        [str(item) for item in report.resized], ("backbone.pos_embed", "1", 64 + class_token, "16", "1", tokens, "16")
    )
    assert "resized: backbone.pos_embed" in "\n".join(report.lines())


@pytest.mark.parametrize(
    ("before", "after"),
    [((16, 64), (32, 64)), ((16, 64), (32, 32)), ((32, 32), (16, 64)), ((16, 64), (16, 64))],  # 2 x 8 and 4 x 4 patches are 16
)
def test_position_embeddings_of_a_grid_that_is_no_square(before, after):
    def vit(img_size):
        return timm.models.VisionTransformer(img_size, 8, embed_dim=16, depth=1, num_heads=2, num_classes=0)

    state, net = scrambled(vit(before).state_dict()), net_of(vit(after), 5)
    seen = ImagePreprocessing((3, *before), (0.5,) * 3, (0.5,) * 3, "bicubic", 1.0)
    report = load_with_heads(net, Weights("vit.pth", state, preprocessing=seen))
    grids = [[side // 8 for side in size] for size in (after, before)]
    expected = resample_abs_pos_embed(state["pos_embed"], grids[0], old_size=grids[1], num_prefix_tokens=1)
    torch.testing.assert_close(net.backbone.pos_embed.data, expected)
    assert bool(report.resized) == (before != after)


def test_window_biases_are_resized():
    def swin(window):
        return timm_swin.SwinTransformer(
            img_size=64, window_size=window, embed_dim=8, depths=(1,), num_heads=(2,), num_classes=0, strict_img_size=False
        )

    state = scrambled(swin(4).state_dict())
    net = net_of(swin(8), 5)
    report = load_with_heads(net, Weights("swin.pth", state))
    name = "backbone.layers.0.blocks.0.attn.relative_position_bias_table"
    assert [(item.name, item.found, item.wanted) for item in report.resized] == [(name, (49, 2), (225, 2))]
    table, old = net.state_dict()[name], state[name.removeprefix("backbone.")]
    torch.testing.assert_close(table.view(15, 15, 2)[7, 7], old.view(7, 7, 2)[3, 3])  # the centre stays
    assert old.min() - 0.5 < table.min() < table.max() < old.max() + 0.5


TABLES = {
    "beit_base_patch16_224": {"depth": 1, "embed_dim": 24, "num_heads": 2},
    "maxvit_tiny_tf_224": {"depths": (1, 1, 1, 1), "embed_dim": (32,) * 4},
    "test_maxvit": {},
    "test_coatnet": {},
}


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("sizes", [(64, 96), (96, 64)])
def test_tables_of_relative_positions_are_resized(name, sizes):
    """As timm's own function does it: a constant table stays, a ramp stays one, and BEiT's class token keeps its values."""
    before, after = (timm.create_model(name, num_classes=0, img_size=size, **TABLES[name]) for size in sizes)
    key = [key for key in before.state_dict() if key.endswith("relative_position_bias_table")][-1]
    state = scrambled(before.state_dict())
    table, shape = state[key], after.state_dict()[key].shape
    table[:] = 2.0
    if name.startswith("beit"):
        table[-3:] = torch.tensor([3.0, 4.0, 5.0])[:, None]
    report = load_with_heads(net_of(after, 5), Weights("x.pth", state))
    assert ("backbone." + key, tuple(table.shape), tuple(shape)) in [
        (item.name, item.found, item.wanted) for item in report.resized
    ]
    made = after.state_dict()[key]
    if name.startswith("beit"):
        assert torch.equal(made[-3:], table[-3:])
        made = made[:-3]
    torch.testing.assert_close(made, torch.full_like(made, 2.0))


def test_tensors_of_another_image_size_that_cannot_be_resized():
    small, large = (timm.create_model("mixer_s32_224", num_classes=0, img_size=size) for size in (64, 96))
    trained = ImagePreprocessing((3, 64, 64), (0.5,) * 3, (0.5,) * 3, "bilinear", 0.9)
    with pytest.raises(WeightsError, match=facts("mlp_tokens", "64 x 64", "transforms")):
        load_with_heads(net_of(large, 5), Weights("x.pth", small.state_dict(), preprocessing=trained))


CHANNELED = {  # a small network of every constructor, for 32 pixels
    "resnet18": {},
    "resnet18_D": {"deep_stem": True},
    "mobilenetv2": {"width_mult": 0.25},
    "mobilenetv3": {"width_mult": 0.25},
    "efficientnet_b0": {},
    "regnetx_200m": {},
    "convnext": {"depths": (1, 1, 1, 1), "dims": (8, 8, 16, 16)},
    "swin_tiny": {"img_size": 32, "window_size": 4, "embed_dim": 24, "depths": (1, 1, 1, 1)},
    "vit_tiny_patch16_224": {"img_size": 32},
    "cswin": {"embed_dim": 8, "depths": (1, 1, 1, 1), "num_heads": (2, 2, 4, 4)},
    "timm": {"model_name": "test_resnet"},
}


@pytest.mark.parametrize("name", CHANNELED)
def test_a_grey_image_gives_what_the_original_gives_for_rgb(name):
    make = {"convnext": convnext, "cswin": cswin}.get(name) or BACKBONES.get(name)
    channels = "in_chans" if name == "timm" else "input_channel"
    rgb, grey = (make(**CHANNELED[name], **given).eval() for given in ({}, {channels: 1}))
    report = load_with_heads(Net([("backbone", grey)]), Weights("rgb.pth", rgb.state_dict()))
    (adapted,) = report.rechanneled
    assert (adapted.found[1], adapted.wanted[1], adapted.name in report.loaded) == (3, 1, True)
    assert any(tells(line, adapted.name, "channels") for line in report.lines())
    image = torch.randn(2, 1, 32, 32)
    with torch.no_grad():
        expected = rgb({"image": image.expand(-1, 3, -1, -1)})["features"][-1]
        torch.testing.assert_close(grey({"image": image})["features"][-1], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("channels", [1, 2, 4, 5, 13])
def test_the_first_convolution_is_adapted_as_timms_is(channels):
    weight = torch.randn(8, 3, 7, 7)
    net = net_of(small_resnet(in_chans=channels), 5)
    state = {**net.state_dict(), "backbone.conv1.weight": torch.randn(64, 3, 7, 7)}
    load_with_heads(net, Weights("rgb.pth", state))
    expected = adapt_input_conv(channels, state["backbone.conv1.weight"].clone())
    torch.testing.assert_close(net.backbone.conv1.weight.data, expected)
    torch.testing.assert_close(with_channels(with_channels(weight, 1), 3).sum(1), weight.sum(1))  # grey weights for RGB
    with pytest.raises(WeightsError, match=facts("backbone.conv1.weight")):  # a trained net is for its own images
        load_weights(net, Weights("rgb.pth", state))


def test_averaged_weights_are_preferred_and_said_so():
    net = net_of(small_resnet(), 5)
    raw, averages = scrambled(net.state_dict()), scrambled(net.state_dict())
    weights = Weights("x.pth", raw, averages)
    report = load_with_heads(net, weights)
    assert tells(report.lines()[0], "x.pth", len(raw), "EMA")
    assert equal(net.state_dict(), averages)


def test_half_precision_is_converted():
    net = net_of(small_resnet(), 5)
    state = {key: tensor.half() if tensor.is_floating_point() else tensor for key, tensor in scrambled(net.state_dict()).items()}
    load_with_heads(net, Weights("x.pth", state))
    assert net.head.classifier.weight.dtype == torch.float32
    assert torch.equal(net.head.classifier.weight, state["head.classifier.weight"].float())


def test_wrappers_leave_no_trace():
    net = net_of(small_resnet(), 5)
    names = list(net.state_dict())
    state = scrambled(net.state_dict())
    net.head = torch.compile(net.head)
    wrapped = nn.DataParallel(torch.compile(net))
    assert unwrap(wrapped) is net
    assert list(clean_state_dict(wrapped)) == names
    load_with_heads(wrapped, Weights("x.pth", state))
    assert equal(clean_state_dict(wrapped), state)
