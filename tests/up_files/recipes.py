"""One recipe for each of UP's classification and distillation files, by family."""

from __future__ import annotations

from dataclasses import replace

from tests.up_files.files import (
    AT_384,
    BEST,
    BN_FREE,
    CLIP,
    COLLECTOR,
    CUTMIXUP,
    EMA,
    FP16,
    HALF,
    INFERENCE,
    LN_FREE,
    LONG_TAIL,
    MIMIC,
    MIXUP,
    MSRA_STRIDE_32,
    NO_DECAY,
    REGNET,
    RESNET,
    STRONG,
    SWIN_BASE,
    SWIN_LARGE,
    Recipe,
    adamw,
    by_epoch,
    cosine,
    lamb,
    multi_step,
    schedule,
    sgd,
    smoothed,
    teacher,
    trained,
)

STEPS = trained(sgd(0.1), multi_step(30, 60, 90), epochs=100, freq=10)
TRICKS = trained(sgd(0.8, 5e-05), cosine(200, 3130, 0.25, warmup_iter=3130), epochs=200, freq=10)
WIDE_JITTER = {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4}
PLAIN_JITTER = {"brightness": 0.2, "contrast": 0.2, "saturation": 0.2, "hue": 0.0}
AUTO = ("random_resized_crop", "random_horizontal_flip", "auto_augmentation", "to_tensor", "normalize", "randerase")
RELATIVE = ["relative_position_bias_table"]

RESNETS = {
    "resnet/res18": Recipe("resnet18", RESNET, 512, STEPS, loss=smoothed(), memcached=True),
    "resnet/res34": Recipe("resnet34", RESNET, 512, STEPS, memcached=False, name="res34", paths="absolute"),
    "resnet/res50": Recipe("resnet50", RESNET, 2048, STEPS, memcached=True, workers=(12, 12), paths="unset"),
    "bag_of_tricks/res18": Recipe("resnet18", RESNET, 512, TRICKS, mixing=MIXUP, batch=(128, 128), name="res18_tricks"),
    "bag_of_tricks/res50": Recipe("resnet50", RESNET, 2048, TRICKS, mixing=MIXUP, batch=(128, 64), name="res50_tricks"),
    "bag_of_tricks/res50_D": Recipe(
        "resnet50_D",
        RESNET,
        2048,
        TRICKS,
        mixing=MIXUP,
        name="res50D",
        saver={"save_dir": "res50D/checkpoints/resnet_D", "results_dir": "res50D/results_dir/resnet_D"},
    ),
}

_STRIKES = Recipe(
    "resnet50",
    RESNET,
    2048,
    trained(lamb(0.008), cosine(100, 3130, 0.000125, 1e-06, warmup_iter=0), freq=5),
    train=STRONG[:-1],
    loss={"type": "bce", "kwargs": {"bias": True}},
    mixing=CUTMIXUP,
    batch=(128, 128),
    name="strikes",
)
LONG = trained(lamb(0.005), cosine(300, 3130, 0.0001, 1e-06), epochs=300, freq=10)
UNUSED_MIX = {
    "type": "torch_cutmix_mixup",
    "kwargs": {"extra_input": True, "transform": True, "mixup_alpha": 0.2, "cutmix_alpha": 1.0, "num_classes": 1000},
}
STRIKES = {
    "strikes/res50_100e": _STRIKES,
    "strikes/res50_300e": replace(_STRIKES, kwargs={**RESNET, "drop_path_rate": 0.05}, trainer=LONG, ema=EMA),
    "strikes/res18_100e": replace(_STRIKES, backbone="resnet18", in_plane=512, loss={"type": "bce"}),
    "strikes/res18_300e": replace(_STRIKES, backbone="resnet18", in_plane=512, trainer=LONG, unused={"cutmix_mixup": UNUSED_MIX}),
}

_MOBILE = trained(sgd(0.8, 4e-05, pconfig=BN_FREE), cosine(180, 2500, 0.25, warmup_iter=2500), epochs=180, freq=20)
_MBV3 = {"normalize": {"type": "solo_bn", "kwargs": {"momentum": 0.99}}, "out_strides": [32], "c4_output": False, "width_mult": 1.0}
_INITED = {**MSRA_STRIDE_32, "initializer": {"method": "msra"}}
_ITERATIONS = trained(sgd(0.4, 3e-05), cosine(437500, 6250, 0.1), max_iter=437500, freq=5000)
MOBILE = {
    "mobilenet/mbv2_0.5": Recipe("mobilenetv2", {**_INITED, "width_mult": 0.5}, 1280, _MOBILE, jitter=PLAIN_JITTER),
    "mobilenet/mbv2": Recipe("mobilenetv2", {**_INITED, "width_mult": 1.0}, 1280, _MOBILE, batch=(64, 32)),
    "mobilenet/mbv2_2.0": Recipe("mobilenetv2", {**_INITED, "width_mult": 2.0}, 2560, _MOBILE),
    "mobilenet/mbv3_large": Recipe(
        "mobilenetv3",
        {**_MBV3, "mode": "large", "dropout": 0.2},
        1280,
        _ITERATIONS,
        ema=EMA,
        head_kwargs={"dropout": 0.2},
        train=AUTO[:-1],
    ),
    "mobilenet/mbv3_small": Recipe(
        "mobilenetv3",
        {**_MBV3, "mode": "small", "dropout": 0.2},
        1280,
        trained(sgd(0.4, 3e-05), cosine(312500, 6250, 0.1), max_iter=312500, freq=1000),
        ema=EMA,
        head_kwargs={"dropout": 0.2},
    ),
}

_REGNET = trained(
    sgd(0.8, 5e-05), schedule("EpochBasedCosineAnnealingLR", 6250, 0.1, T_max=90, eta_min=0.0, offset_epoch=0), epochs=90, freq=2
)
_ITERS = trained(sgd(0.8, 5e-05), cosine(125000, 6260, 0.1), max_iter=125000, freq=1000)
REGNETS = {
    "regnet/regnetx_200m": Recipe(
        "regnetx_200m",
        REGNET,
        368,
        _REGNET,
        jitter=WIDE_JITTER,
        saver={"save_dir": "regx200m_init/checkpoints/cls", "results_dir": "regx200m_init/results_dir/cls"},
    ),
    "regnet/regnetx_400m": Recipe("regnetx_400m", REGNET, 384, _ITERS, jitter=WIDE_JITTER),
    "regnet/regnety_200m": Recipe("regnety_200m", REGNET, 368, _ITERS, runtime={"task_names": "cls", "random_seed": 123}),
    "regnet/regnety_400m": Recipe("regnety_400m", REGNET, 440, _ITERS, ema={"enable": True, "kwargs": {"decay": 0.99984}}),
}

_LONG_MIX = {**CUTMIXUP, "kwargs": {**CUTMIXUP["kwargs"], "mixup_alpha": 0.8}}
_STRONG_9 = {"n": 2, "m": 9, "magnitude_std": 0.5}
_CONVNEXT = Recipe(
    "convnext_tiny",
    {"drop_path_rate": 0.1, "layer_scale_init_value": 1e-06},
    768,
    trained(adamw(0.004), by_epoch(20, 6260, 0, 1e-06), epochs=300, freq=10),
    head="convnext_head",
    head_kwargs={"head_init_scale": 1.0},
    train=STRONG,
    augment=_STRONG_9,
    mixing=_LONG_MIX,
    batch=(128, 128),
    bicubic=True,
    ema=EMA,
    stray={"fp16": FP16},
    name="convnext",
)
CONVNEXTS = {
    "convnext/convnext_tiny": _CONVNEXT,
    "convnext/convnext_small": replace(
        _CONVNEXT, backbone="convnext_small", kwargs={"drop_path_rate": 0.4, "layer_scale_init_value": 1e-06}
    ),
}

_SWIN = Recipe(
    "swin_tiny",
    {"drop_path_rate": 0.2},
    768,
    trained(adamw(0.001, pconfig={**LN_FREE, "nodecay": RELATIVE}), by_epoch(20, 25020, 0.0001), epochs=300, freq=10),
    train=AUTO,
    mixing=_LONG_MIX,
    batch=(128, 128),
    hooks=[BEST, CLIP],
    stray={"fp16": FP16},
    name="swin",
)
_NESTED = {**LN_FREE, "linear_b": {"type": "bias", **NO_DECAY, "nodecay": RELATIVE}}
_AT_224 = replace(_SWIN, trainer=trained(adamw(0.001, pconfig=_NESTED), by_epoch(20, 25020, 0.001), epochs=300, freq=5))
_AT_384 = replace(_AT_224, size=384, bicubic=True, batch=(64, 32))
SWINS = {
    "swin/swin_tiny": replace(_SWIN, train=("random_resized_crop", "color_jitter", *AUTO[1:])),
    "swin/swin_tiny_misindented": replace(
        _SWIN,
        trainer=trained(adamw(0.001, pconfig={**LN_FREE, "nodecay": RELATIVE}), None, epochs=300, freq=10),
        stray={"lr_scheduler": by_epoch(20, 25020, 0.0001), "fp16": FP16},
    ),
    "swin/swin_small": replace(_SWIN, backbone="swin_small", kwargs={"depths": [2, 2, 18, 2], "drop_path_rate": 0.3}),
    "swin/swin_base_224": replace(_AT_224, backbone="swin_base_224", kwargs=SWIN_BASE, in_plane=1024),
    "swin/swin_base_384": replace(_AT_384, backbone="swin_base_384", kwargs={**SWIN_BASE, **AT_384}, in_plane=1024),
    "swin/swin_large_224": replace(_AT_224, backbone="swin_large_224", kwargs={**SWIN_LARGE, "window_size": 7}, in_plane=1536),
    "swin/swin_large_384": replace(_AT_384, backbone="swin_large_384", kwargs={**SWIN_LARGE, **AT_384}, in_plane=1536),
}

_CSWIN = Recipe(
    "CSWin_64_12211_tiny_224",
    {"drop_path_rate": 0.2},
    512,
    trained(adamw(0.002, pconfig=LN_FREE), by_epoch(20, 12520, 0.0001), epochs=300, freq=10),
    head="convnext_head",
    train=AUTO,
    mixing=_LONG_MIX,
    batch=(128, 128),
    bicubic=True,
    ema=EMA,
    stray={"fp16": FP16},
    name="cswin",
)
TRANSFORMERS = {
    "cswin/cswin_tiny": _CSWIN,
    "cswin/cswin_small": replace(_CSWIN, backbone="CSWin_64_24322_small_224", kwargs={"drop_path_rate": 0.4}),
    "cswin/cswin_base": replace(
        _CSWIN,
        backbone="CSWin_96_24322_base_224",
        kwargs={"drop_path_rate": 0.5},
        in_plane=768,
        head="base_cls_head",
        head_kwargs={"representation_size": 768},
        hooks=[BEST, CLIP],
        trainer=trained(adamw(0.00075, 0.1, pconfig=LN_FREE), by_epoch(5, 12510, 0.00025, 1e-06), epochs=300, freq=10),
    ),
    "vit/vit_b16_224": Recipe(
        "vit_base_patch16_224",
        {"drop_path": 0.1, "dropout": 0.1, "attention_dropout": 0.1, "qkv_bias": True},
        768,
        trained(
            adamw(0.001, 0.1, pconfig={"linear": {"type": "bias", **NO_DECAY}}), by_epoch(3, 3760, 0.0001), epochs=300, freq=10
        ),
        head="vit_head",
        norm=HALF,
        jitter=PLAIN_JITTER,
        stray={"iter_base": True},
        hooks=[BEST, CLIP],
        ema={"enable": True, "kwargs": {"decay": 0.999}},
    ),
}

_FINETUNED = Recipe(
    "resnet50",
    RESNET,
    2048,
    trained(sgd(0.01, 0.0005), multi_step(50, 100, warmup_iter=0, ratio=0.02), epochs=150, freq=1),
    classes=196,
    loss=smoothed(196),
    paths="downstream",
    meta_type="custom_cls",
    saver={"pretrain_model": "pretrain_path"},
)
_MIXED = replace(
    _FINETUNED,
    train=("random_resized_crop", "random_horizontal_flip", "rand_augment", "cutmix_mixup", "to_tensor", "normalize"),
    trainer=trained(sgd(0.01, 0.0001), cosine(300, 0, 0.001), epochs=300),
    loss={"type": "bce", "kwargs": {"bias": True}},
)
DOWNSTREAM = {
    "downstream/car": _FINETUNED,
    "downstream/flower": replace(_FINETUNED, classes=102, loss=smoothed(102)),
    "downstream/pet": replace(_FINETUNED, classes=37, loss=smoothed(37), memcached=False, workers=(8, 4)),
    "downstream/car_strikes": _MIXED,
    "downstream/flower_strikes": replace(_MIXED, classes=102, saver={"pretrain_model": "pretrain_model.pth", "auto_resume": False}),
}

_SHARED = {"sampler": {"type": "dist", "kwargs": {}}, "batch_size": 32}
OTHERS = {
    "multi-head/multicls_res18": Recipe(
        "resnet18",
        RESNET,
        512,
        STEPS,
        classes=[1000, 1000],
        loss=[smoothed(), smoothed()],
        meta_type="custom_cls",
        name="multi",
        saver={"save_dir": "multi/checkpoints/cls_std", "results_dir": "multi/results_dir/cls_std"},
    ),
    "long_tail/res50_eql": Recipe(
        "resnet50",
        RESNET,
        2048,
        trained(sgd(0.1, 0.0005), multi_step(30, 60, 90), epochs=90),
        paths="long tail",
        loss={"type": "softmax_eql", "kwargs": {"num_classes": 1000, "indicator": "pos", "tau": 1.0}},
        evaluator=LONG_TAIL,
        head_kwargs={"classifier_cfg": {"type": "norm_linear", "kwargs": {"tempearture": 30}}},
        hooks=[BEST, COLLECTOR],
    ),
    "inference/res50": Recipe(
        "resnet50",
        RESNET,
        2048,
        trained(sgd(0.0), multi_step(30, 60, 90), epochs=1),
        paths="validation",
        train=("resize", "center_crop", "to_tensor", "normalize"),
        memcached=False,
        runtime=None,
        saver={"pretrain_model": "./res50_strickes/ckpt_latest.pth", "save_dir": "checkpoints/cls_std"},
        change={
            "dataset.test.dataset.kwargs.meta_type": "inference_only",
            "dataset.test.dataset.kwargs.inference_cfg": INFERENCE,
            "dataset.test.dataset.kwargs.save_score": True,
        },
    ),
    "grad_cam/res50": Recipe(
        "resnet50",
        RESNET,
        2048,
        STEPS,
        hooks=[BEST, {"type": "grad_cam", "kwargs": {"save_dir": "grad_cam"}}],
        change={
            **{f"dataset.{name}.{key}": None for name in ("train", "test") for key in ("batch_sampler", "dataloader")},
            "dataset.batch_sampler": {"type": "base", "kwargs": _SHARED},
            "dataset.dataloader": {"type": "cls_base", "kwargs": {"num_workers": 12, "pin_memory": True}},
        },
    ),
    "distillation/res18_kd": Recipe(
        "resnet18",
        RESNET,
        512,
        trained(sgd(0.4, 0), cosine(180, 6250, 0.25, warmup_iter=0), epochs=180),
        runtime={"task_names": "kd_cls", "runner": {"type": "kd"}},
        more={"teacher": teacher(), "mimic": MIMIC},
        name="res18_kd",
    ),
    "distillation/res18_kd_tricks": Recipe(
        "resnet18",
        RESNET,
        512,
        trained(sgd(0.8, 0), cosine(180, 3130, 0.25), epochs=180),
        mixing=MIXUP,
        workers=(4, 8),
        runtime={"task_names": "kd_cls", "runner": {"type": "kd"}},
        name="res18_kd_tricks",
        more={"teacher": teacher(deep_stem=True, avg_down=True), "mimic": MIMIC},
    ),
}

RECIPES = {**RESNETS, **STRIKES, **MOBILE, **REGNETS, **CONVNEXTS, **SWINS, **TRANSFORMERS, **DOWNSTREAM, **OTHERS}
