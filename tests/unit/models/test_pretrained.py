from __future__ import annotations

import json
from pathlib import Path

import pytest
import timm
import torch
from huggingface_hub.errors import HfHubHTTPError
from safetensors.torch import save_file

from tests.harness.facts import facts
from up.models import pretrained
from up.models.preprocessing import ImagePreprocessing, of_operations
from up.models.pretrained import is_downloaded, models_like, preprocessing_of, read_state
from up.models.weights import WeightsError

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


class TestOfNames:
    @pytest.mark.parametrize(
        ("name", "expected"),
        [
            ("timm:resnet50.a1_in1k", ImagePreprocessing((3, 224, 224), *IMAGENET, "bicubic", 0.95)),
            ("resnet50", ImagePreprocessing((3, 224, 224), *IMAGENET, "bicubic", 0.95)),  # the default tag
            ("timm:resnet50.tv_in1k", ImagePreprocessing((3, 224, 224), *IMAGENET, "bilinear", 0.875)),
            ("vit_base_patch16_384.augreg_in21k_ft_in1k", ImagePreprocessing((3, 384, 384), *HALF, "bicubic", 1.0)),
            ("timm:not_a_network", None),
            ("no/such/file.pth", None),
        ],
    )
    def test_it_is_timms(self, name: str, expected: ImagePreprocessing | None) -> None:
        assert preprocessing_of(name) == expected


class TestOfFiles:
    @pytest.mark.parametrize(
        ("name", "expected"),
        [
            ("resnet50-0676ba61.pth", ImagePreprocessing((3, 224, 224), *IMAGENET, "bilinear", 224 / 256)),
            ("resnet50-11ad3fa6.pth", ImagePreprocessing((3, 224, 224), *IMAGENET, "bilinear", 224 / 232)),
            ("vit_h_14_swag-80465313.pth", ImagePreprocessing((3, 518, 518), *IMAGENET, "bicubic", 1.0)),
            ("resnet50_a1_0-14fe96d1.pth", ImagePreprocessing((3, 224, 224), *IMAGENET, "bicubic", 0.95)),
            ("resnet50.tv_in1k.pth", ImagePreprocessing((3, 224, 224), *IMAGENET, "bilinear", 0.875)),
            ("resnet50.pth", None),  # may be anybody's
        ],
    )
    def test_published_files_are_known_by_their_names(self, tmp_path: Path, name: str, expected: ImagePreprocessing | None) -> None:
        torch.save({"weight": torch.ones(2)}, tmp_path / name)
        assert preprocessing_of(tmp_path / name) == expected

    def test_of_the_cache_of_the_hub(self, tmp_path: Path) -> None:
        folder = tmp_path / "models--timm--vit_tiny_patch16_224.augreg_in21k" / "snapshots" / "1a2b"
        folder.mkdir(parents=True)
        save_file({"weight": torch.ones(2)}, folder / "model.safetensors")
        assert preprocessing_of(folder / "model.safetensors") == preprocessing_of("vit_tiny_patch16_224.augreg_in21k")

    def test_a_config_of_the_hub_beside_it(self, tmp_path: Path) -> None:
        save_file({"weight": torch.ones(2)}, tmp_path / "model.safetensors")
        own = {"input_size": [3, 96, 96], "mean": [0.1] * 3, "std": [0.2] * 3, "interpolation": "bilinear", "crop_pct": 0.9}
        (tmp_path / "config.json").write_text(json.dumps({"architecture": "resnet18", "pretrained_cfg": {**own, "tag": "mine"}}))
        assert preprocessing_of(tmp_path / "model.safetensors") == ImagePreprocessing(
            (3, 96, 96), *((x,) * 3 for x in (0.1, 0.2)), "bilinear", 0.9
        )

    def test_our_checkpoints_carry_it(self, tmp_path: Path) -> None:
        own = ImagePreprocessing((1, 32, 32), (0.5,), (0.25,), "bilinear", 0.875)
        torch.save({"model": {"weight": torch.ones(2)}, "preprocessing": own.as_record()}, tmp_path / "ckpt.pth")
        assert preprocessing_of(tmp_path / "ckpt.pth") == own
        torch.save({"model": {"weight": torch.ones(2)}, "preprocessing": {"mean": "x"}}, tmp_path / "odd.pth")
        assert preprocessing_of(tmp_path / "odd.pth") is None


class TestOfOperations:
    RESIZE = {"op": "resize", "mode": "short_side", "size": 256, "interpolation": "bicubic"}
    CROP = {"op": "center_crop", "size": [224, 224]}
    FLOAT = {"op": "to_float", "divide_by": 255.0}
    NORMALIZE = {"op": "normalize", "mean": list(IMAGENET[0]), "std": list(IMAGENET[1])}

    def test_resize_crop_and_normalize(self) -> None:
        found = of_operations([self.RESIZE, self.CROP, self.FLOAT, self.NORMALIZE])
        assert found == ImagePreprocessing((3, 224, 224), *IMAGENET, "bicubic", 0.875)

    def test_means_of_levels_are_in_the_same_units(self) -> None:
        levels = {"op": "normalize", "mean": [127.5] * 3, "std": [51.0] * 3}
        found = of_operations([self.RESIZE, self.CROP, {"op": "to_float", "divide_by": 1.0}, levels])
        assert found is not None
        assert (found.mean, found.std) == ((0.5,) * 3, (0.2,) * 3)

    def test_an_exact_size_squashes(self) -> None:
        found = of_operations([{**self.RESIZE, "mode": "exact", "size": [64, 96]}, self.FLOAT])
        assert found == ImagePreprocessing((3, 64, 96), (0.0,) * 3, (1.0,) * 3, "bicubic", 1.0, "squash")

    @pytest.mark.parametrize(
        "operations", [[RESIZE, FLOAT], [CROP, FLOAT], [RESIZE, CROP, RESIZE], [RESIZE, CROP, {"op": "other"}]]
    )
    def test_others_are_unknown(self, operations: list[dict[str, object]]) -> None:
        assert of_operations(operations) is None


def test_differences_name_both_values() -> None:
    one = ImagePreprocessing((3, 224, 224), *IMAGENET, "bicubic", 0.875)
    assert one.differences(one) == []
    assert one.differences(ImagePreprocessing((3, 224, 224), (0.4851, *IMAGENET[0][1:]), IMAGENET[1], "bicubic", 0.8751)) == []
    assert one.differences(ImagePreprocessing((3, 128, 128), *HALF, "bicubic", 1.0)) == [
        ("input size", "[3, 224, 224]", "[3, 128, 128]"),
        ("mean", "[0.485, 0.456, 0.406]", "[0.5, 0.5, 0.5]"),
        ("std", "[0.229, 0.224, 0.225]", "[0.5, 0.5, 0.5]"),
        ("crop share", "0.875", "1.0"),
    ]


class TestModels:
    def test_architectures_that_contain_a_word(self) -> None:
        rows = models_like("convnext_atto")
        assert [row.name for row in rows] == ["convnext_atto", "convnext_atto_ols", "convnext_atto_rms"]
        assert rows[0].tags == ("d2_in1k",)
        assert rows[0].preprocessing.input_size == (3, 224, 224)
        assert rows[2].tags == ()

    def test_sets_of_weights_and_wildcards(self) -> None:
        names = [row.name for row in models_like("resnet18*", pretrained=True)]
        assert "resnet18.a1_in1k" in names
        assert all(name.startswith("resnet18") and "." in name for name in names)
        assert models_like("timm:resnet18.a1_in1k", pretrained=True)[0].tags[0] == timm.get_pretrained_cfg("resnet18").tag
        assert models_like("zzz") == []

    def test_cost_is_computed_without_memory(self) -> None:
        cost = models_like("resnet18*")[0].cost
        assert (cost.parameters, round(cost.macs / 1e6)) == (11_689_512, 1814)


class TestWithoutANetwork:
    NAME = "test_vit.r160_in1k"

    @pytest.fixture(autouse=True)
    def cache(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
        return tmp_path / "checkpoints"

    def test_the_file_to_fetch_and_its_place_are_named(self, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def offline(*_: object, **__: object) -> None:
            raise OSError("no route to host")

        with monkeypatch.context() as patched:
            patched.setattr(pretrained, "get_hf_file_metadata", offline)
            patched.setattr(timm, "create_model", lambda *_, **__: pytest.fail("its client would try for a minute"))
            url, place = f"huggingface.co/timm/{self.NAME}/resolve/main/model.safetensors", cache / f"{self.NAME}.safetensors"
            with pytest.raises(
                WeightsError, match=facts(f"timm:{self.NAME}", "OSError", url, place, "saver.pretrain_model", "HF_HOME")
            ):
                read_state(f"timm:{self.NAME}")

    def test_a_hub_that_answers_is_left_to_its_client(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Also where it answers with an error: the client knows other names of files, and waits where the hub is busy."""

        def not_found(*_: object, **__: object) -> None:
            raise HfHubHTTPError.__new__(HfHubHTTPError)

        network = timm.create_model("test_vit")
        monkeypatch.setattr(pretrained, "get_hf_file_metadata", not_found)
        monkeypatch.setattr(timm, "create_model", lambda *_, **__: network)
        assert read_state(f"timm:{self.NAME}").model.keys() == network.state_dict().keys()

    @pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
    def test_a_file_at_that_place_is_read(self, cache: Path, suffix: str) -> None:
        cache.mkdir()
        assert not is_downloaded(f"timm:{self.NAME}")
        network = timm.create_model("test_vit")
        save = save_file if suffix == ".safetensors" else torch.save
        save(network.state_dict(), cache / f"{self.NAME}{suffix}")
        assert is_downloaded(f"timm:{self.NAME}")
        weights = read_state(f"timm:{self.NAME}")
        assert all(torch.equal(weights.model[name], tensor) for name, tensor in network.state_dict().items())
        assert (weights.variant, weights.preprocessing) == ("timm", preprocessing_of(self.NAME))
