"""Runs on a GPU: what holds on the CPU holds there. Skipped on machines without one."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from tests.harness.ranks import ROOT
from tests.harness.runs import everything_on, records, times_resumed, train
from tests.harness.states import assert_same, checkpoint
from up.__main__ import main
from up.bench.step import Enough
from up.build.build import build_run
from up.build.experiment import load_experiment
from up.build.fit import fitted
from up.build.trial import estimate
from up.command_line import CommandLine
from up.data.collate import collate
from up.data.loader import Workers, fetched
from up.data.prefetch import prefetched
from up.data.records import Batch, Sample
from up.distributed.signals import StopRequest
from up.engine.clip import Clip
from up.engine.loop import train as train_loop
from up.engine.precision import Precision, can_skip
from up.engine.session import TrainingSession
from up.errors import NumericalError
from up.optim import build_optimizer

Config = dict[str, Any]
Write = Callable[[Config], str]

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.fixture
def config(config: Config) -> Config:
    config["runtime"] |= {"device": "cuda", "deterministic": True}
    return config


def losses_of_two(path: str, folder: Path, *difference: str) -> tuple[list[float], list[float]]:
    """The losses of an epoch of the run of ``path``, and of the same run with a difference."""
    assert train(path, "trainer.max_epoch=1") == 0
    assert train(path, "trainer.max_epoch=1", *difference, f"saver.save_dir={folder / 'other'}") == 0
    ours, theirs = ([record["loss"] for record in records(run, "train")] for run in (folder / "run", folder / "other"))
    return ours, theirs


def test_the_first_losses_are_those_of_the_cpu(config: Config, write: Write, tmp_path: Path) -> None:
    """The same initial weights and the same images in the same order; convolutions of float32 may use TensorFloat-32 (10 bits)."""
    ours, theirs = losses_of_two(write(config), tmp_path, "runtime.device=cpu")
    assert ours == pytest.approx(theirs, rel=5e-3)


@pytest.mark.parametrize("amp", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("optimizer", ["SGD", "AdamW", "LAMB"])
def test_learns_in_every_precision(config: Config, write: Write, tmp_path: Path, amp: str, optimizer: str) -> None:
    config["trainer"]["optimizer"] = {"type": optimizer, "kwargs": {"lr": 0.05 if optimizer == "SGD" else 0.01}}
    if amp != "fp32":
        config["runtime"]["amp"] = amp
    assert train(write(config), "trainer.max_epoch=5", "trainer.lr_scheduler.kwargs.T_max=5") == 0
    assert records(tmp_path / "run", "eval")[-1]["top1"] == 100.0


@pytest.mark.parametrize("amp", ["bf16", "fp16"])
@pytest.mark.parametrize("stop_after", [3, 4])
def test_resumed_is_equal_to_unbroken(config: Config, write: Write, tmp_path: Path, stop_after: int, amp: str) -> None:
    everything_on(config, amp)
    config["dataset"]["train"]["dataloader"]["kwargs"] |= {"num_workers": 2, "pin_memory": True}
    path = write(config)
    other = f"saver.save_dir={tmp_path / 'broken'}"
    assert train(path) == 0
    assert train(path, other, f"trainer.max_iter={stop_after}") == 0
    assert train(path, other, "saver.auto_resume=true", "dataset.train.dataloader.kwargs.num_workers=0") == 0
    assert times_resumed(tmp_path / "broken") == 1
    whole, resumed = checkpoint(tmp_path / "run"), checkpoint(tmp_path / "broken")
    for part in ("model", "optimizer", "ema", "schedule", "metrics"):
        assert_same(whole[part], resumed[part], part)


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_one_rank_of_nccl_is_equal_to_no_process_group(config: Config, write: Write, tmp_path: Path, parallel: str) -> None:
    path = write(config)
    assert train(path) == 0
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "1", "-m", "up", "train"]
    opts = [f"saver.save_dir={tmp_path / 'ranks'}", f"runtime.parallel={parallel}"]
    done = subprocess.run([*torchrun, "--config", path, "--opts", *opts], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    alone, ranks = checkpoint(tmp_path / "run")["model"], checkpoint(tmp_path / "ranks")["model"]
    assert alone.keys() == ranks.keys()
    for name, tensor in alone.items():
        torch.testing.assert_close(ranks[name], tensor, rtol=0, atol=1e-5)


class Watched:
    """A loader whose steps from ``first`` to ``last`` may not wait for the device."""

    def __init__(self, session: TrainingSession, first: int, last: int) -> None:
        loader = session.loader_from(0)
        self.cut, (_, self.batches) = loader.cut, next(iter(loader))
        self.first, self.last = first, last

    def __iter__(self) -> Iterator[tuple[int, list[Batch]]]:
        for step in range(self.last):
            if step == self.first:
                torch.cuda.set_sync_debug_mode("error")
            yield step, self.batches
        torch.cuda.set_sync_debug_mode("default")
        raise Enough


@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
@pytest.mark.parametrize("amp", ["bf16", "fp16"])
@pytest.mark.parametrize("optimizer", ["SGD", "AdamW", "LAMB"])
def test_a_step_waits_for_nothing(config: Config, write: Write, amp: str, optimizer: str) -> None:
    """Mixing, averaging, clipping, 16 bits, dropout, erasing, and images from pinned memory, between two lines of the log."""
    everything_on(config, amp)
    config["runtime"]["deterministic"] = False
    config["dataset"]["train"]["dataloader"]["kwargs"] |= {"num_workers": 1, "pin_memory": True}
    config["dataset"]["train"]["dataset"]["kwargs"]["transformer"].pop()  # erasing draws its noise image by image
    config["dataset"]["train"]["batch_sampler"]["kwargs"]["batch_size"] = 2  # 23 steps an epoch, whose end is a line of the log
    config["trainer"] |= {"log_interval": 100, "max_epoch": 100, "accumulate": 1, "eval_interval": 100}
    config["trainer"]["optimizer"] = {"type": optimizer, "kwargs": {"lr": 0.01}}
    experiment = load_experiment(Path(write(config)), [])
    session = build_run(experiment, StopRequest(), CommandLine(("up",), ("train",)))
    watched = Watched(session, 6, 16)
    try:
        with pytest.raises(Enough):
            train_loop(replace(session, loader_from=lambda step: watched))
    finally:
        torch.cuda.set_sync_debug_mode("default")
        session.hooks.each(lambda hook: hook.on_end(0, "failed"))  # closes their files


@pytest.mark.parametrize("amp", [None, "bf16"])
@pytest.mark.parametrize("optimizer", ["SGD", "AdamW", "LAMB", "RMSprop"])
def test_no_optimizer_moves_on_a_loss_that_is_not_finite(optimizer: str, amp: Any) -> None:
    model = torch.nn.Linear(4, 3).cuda()
    made = build_optimizer(model, optimizer, lr=0.1)
    precision = Precision(mode=amp, device="cuda")
    for scale in (1.0, 2.0, float("nan")):
        before = [p.detach().clone() for p in model.parameters()]
        states = [value.clone() for p in model.parameters() for value in made.state[p].values() if torch.is_tensor(value)]
        precision.backward(model(torch.ones(2, 4, device="cuda")).sum() * scale)
        if scale != scale and not can_skip(made):
            with pytest.raises(NumericalError, match="images of step 2"):
                precision.step(made, Clip(), lambda: "images of step 2")
        else:
            precision.step(made, Clip(), lambda: "images of another step")
    assert all(torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True))
    after = [value for p in model.parameters() for value in made.state[p].values() if torch.is_tensor(value)]
    assert all(torch.equal(old, new) for old, new in zip(states, after, strict=True))
    if can_skip(made):
        with pytest.raises(NumericalError, match="images of another step"):
            precision.settle()
    precision.settle()  # once


@pytest.mark.parametrize("optimizer", ["SGD", "AdamW", "LAMB"])
def test_overflow_under_fp16_is_a_skipped_step(optimizer: str) -> None:
    """The numbers of a GPU, which skips steps itself, are those of a CPU, where the host does."""
    found = []
    for device in ("cpu", "cuda"):
        torch.manual_seed(0)
        model = torch.nn.Linear(4, 3).to(device)
        made, precision = build_optimizer(model, optimizer, lr=0.1), Precision(mode="fp16", device=device)
        for factor in (float("inf"), 1.0, 2.0, float("nan"), 3.0):
            precision.backward(model(torch.ones(2, 4, device=device)).sum() * factor)
            precision.step(made, Clip())
        precision.settle()
        assert precision.state_dict() == {"scale": 16384.0, "good_steps": 1}
        found.append([p.detach().cpu() for p in model.parameters()])
    torch.testing.assert_close(found[1], found[0], rtol=1e-5, atol=1e-6)


def test_a_run_on_nan_ends_before_anything_is_saved(
    config: Config, write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("UP_FAULT", "step=6,action=nan")
    assert train(write(config)) == 3
    said = capsys.readouterr().err
    assert "train" in said
    assert "nan" in said
    assert checkpoint(tmp_path / "run")["step"] == 6
    assert not [record for record in records(tmp_path / "run", "train") if record["loss"] != record["loss"]]


@pytest.mark.filterwarnings("ignore")  # of torch about its own calls, and its advice on TensorFloat-32
@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_compiled_is_close_to_eager(config: Config, write: Write, tmp_path: Path, mode: str) -> None:
    """With micro-batches, whose gradients a replay of CUDA graphs would overwrite."""
    config["ema"] = {"enable": True, "kwargs": {"decay": 0.9}}
    config["trainer"]["accumulate"] = 2
    eager, compiled = losses_of_two(write(config), tmp_path, f"runtime.compile={{mode: {mode}}}")
    assert compiled == pytest.approx(eager, rel=1e-2)
    assert not [name for name in checkpoint(tmp_path / "other")["model"] if "_orig_mod" in name]


def test_a_student_learns_from_a_teacher(config: Config, write: Write, tmp_path: Path) -> None:
    path = write(config)
    assert train(path, "trainer.max_epoch=5") == 0
    config["runtime"] |= {"runner": {"type": "kd"}, "amp": "bf16"}
    config["saver"] = {"save_dir": str(tmp_path / "student")}
    config["teacher"] = config["net"][:2]
    logits = {"mimic_name": ["head.classifier"]}
    config["mimic"] = {
        "cfgs": {"loss": {"type": "kd_loss", "kwargs": {"T": 2.0}}},
        "student": logits,
        "teacher": {**logits, "teacher_weight": str(tmp_path / "run" / "ckpt_best.pth")},
    }
    assert train(write(config)) == 0
    losses = [record["loss"] for record in records(tmp_path / "student", "train")]
    assert all(map(math.isfinite, losses))
    assert losses[-1] < losses[0]


def test_evaluated_predicted_and_exported_as_on_the_cpu(
    config: Config, write: Write, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(config)
    assert train(path) == 0
    best = records(tmp_path / "run", "eval")[-1]["top1"]
    assert main(["eval", "--config", path]) == 0
    assert f"{best:.2f}" in capsys.readouterr().out
    image = str(images / "val 0.png")
    assert main(["predict", "--format", "jsonl", "--config", path, image]) == 0
    here = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert main(["to_onnx", "--config", path]) == 0
    capsys.readouterr()
    on_cpu = tmp_path / "cpu.yaml"
    on_cpu.write_text(yaml.safe_dump({**config, "runtime": {**config["runtime"], "device": "cpu"}}))
    assert main(["predict", "--format", "jsonl", "--config", str(on_cpu), image]) == 0
    there = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert here["predictions"][0]["label"] == there["predictions"][0]["label"]
    assert here["predictions"][0]["score"] == pytest.approx(there["predictions"][0]["score"], abs=1e-3)


def test_out_of_memory_ends_with_advice(config: Config, write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    config["net"][0]["kwargs"]["width"] = 512
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(0.002)
    try:
        assert train(write(config)) not in (0, None)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    said = capsys.readouterr().err
    assert "Traceback" not in said
    assert "memory" in said
    assert "batch_size" in said


def test_a_step_that_does_not_fit_is_split_and_learns_the_same(
    config: Config, write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Real lack of memory: the process may use two thirds of what the whole batch took."""
    config["net"][0]["kwargs"]["normalize"] = {"type": "gn", "kwargs": {"num_groups": 4}}
    config["dataset"]["train"]["batch_sampler"]["kwargs"] |= {"batch_size": 32, "drop_last": True}
    config["dataset"]["train"]["dataset"]["kwargs"]["transformer"][0]["kwargs"]["size"] = 512
    path = write(config)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    assert train(path, f"saver.save_dir={tmp_path / 'whole'}") == 0
    total, peak = torch.cuda.mem_get_info()[1], torch.cuda.max_memory_allocated()
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(0.67 * peak / total)
    try:
        capsys.readouterr()
        assert train(path) == 0
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert "out of memory" in capsys.readouterr().err
    assert checkpoint(tmp_path / "run")["memory"]["images"] < 32
    whole, split = ([record["loss"] for record in records(tmp_path / name, "train")] for name in ("whole", "run"))
    assert split == pytest.approx(whole, rel=2e-2)


def test_auto_finds_the_largest_batch_and_bf16(
    config: Config, write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config["dataset"]["train"]["batch_sampler"]["kwargs"]["batch_size"] = "auto"
    config["runtime"]["amp"] = "auto"
    monkeypatch.setattr("up.build.fit.STEPS", 1)
    experiment = load_experiment(Path(write(config)), ["dataset.train.dataset.kwargs.transformer.0.kwargs.size=512"])
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    chosen = {choice.key: choice for choice in fitted(experiment, torch.device("cuda"))[1]}
    assert chosen["runtime.amp"].value == ("bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16")
    batch = "dataset.train.batch_sampler.kwargs.batch_size"
    assert chosen[batch].value == 32  # of 46 images
    peak = torch.cuda.max_memory_allocated()
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(0.67 * peak / torch.cuda.mem_get_info()[1])
    try:
        smaller = {choice.key: choice for choice in fitted(experiment, torch.device("cuda"))[1]}[batch]
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert isinstance(smaller.value, int)
    assert 2 <= smaller.value < 32
    assert "do not fit" in smaller.reason


def test_the_estimate_has_the_memory_of_the_gpu(config: Config, write: Write) -> None:
    found = estimate(load_experiment(Path(write(config)), []), steps=5)
    assert found.is_gpu
    assert found.peak_bytes > 0


def batches_of_noise(number: int, pinned: bool) -> list[Batch]:
    made = []
    for at in range(number):
        image = torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(at))
        batch = collate([Sample(image=image + row, gt=row, filename=f"{at}-{row}", index=row, seed=at) for row in range(32)])
        made.append(Batch(batch, image=batch.image.pin_memory(), gt=batch.gt.pin_memory()) if pinned else batch)
    return made


@pytest.mark.parametrize("pinned", [False, True])
def test_batches_are_prefetched_in_their_order(pinned: bool) -> None:
    device, batches = torch.device("cuda", 0), batches_of_noise(12, pinned)
    found = []
    for batch in prefetched(iter([*batches[:6], "an error", *batches[6:]]), device):
        if isinstance(batch, Batch):
            batch.image.add_(1)  # while the next is copied into memory of its own
        found.append(batch)
    assert found.pop(6) == "an error"
    for batch, expected in zip(found, batches, strict=True):
        assert {batch.image.device, batch.gt.device} == {device}
        assert {batch.seed.device.type, batch.index.device.type} == {"cpu"}
        assert torch.equal(batch.image.cpu(), expected.image + 1)
        assert torch.equal(batch.gt.cpu(), expected.gt)
        assert batch.filename == expected.filename


def test_a_copy_does_not_wait_for_the_computation_of_a_step() -> None:
    fetched_early = prefetched(iter(batches_of_noise(3, pinned=True)), torch.device("cuda", 0))
    next(fetched_early)
    torch.cuda.synchronize()
    torch.cuda._sleep(2_000_000_000)  # cycles of a step: about a second
    second = next(fetched_early)
    with torch.cuda.stream(torch.cuda.Stream()):
        copied = second.image.cpu()
    assert not torch.cuda.current_stream().query()  # the step still computes
    assert torch.equal(copied, batches_of_noise(2, pinned=False)[1].image)
    torch.cuda.synchronize()


def test_batches_of_workers_are_pinned_whole() -> None:
    """Without a device to copy to, as for features that are computed once."""
    noise = batches_of_noise(1, pinned=False)[0]
    samples = [Sample(image=noise.image[row], gt=row, filename=f"{row}") for row in range(32)]
    found = next(fetched(dict(enumerate(samples)), [list(range(32))], workers=Workers(1, pin_memory=True)))  # type: ignore[arg-type]
    assert found.image.is_pinned()
    assert found.gt.is_pinned()
    assert torch.equal(found.image, noise.image)
    assert found.gt.tolist() == list(range(32))
