"""``runtime.compile``: no graph break, each form compiled once in a run, and the losses of a run that is not compiled."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch._dynamo.utils import counters

from tests.harness.compiling import counting, graphs_of
from tests.harness.facts import tells
from tests.harness.ranks import Cluster
from tests.harness.runs import everything_on, records, train
from tests.harness.states import checkpoint
from up.__main__ import main

pytestmark = pytest.mark.filterwarnings("ignore")  # of torch about its own calls

Config = dict[str, Any]
Write = Callable[[Config], str]


@pytest.fixture
def forms(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counter[str]]:
    """Number of compiled forms by region; without Inductor."""
    compiled: Counter[str] = Counter()
    monkeypatch.setattr(torch, "compile", counting(compiled))
    torch._dynamo.reset()
    counters.clear()
    yield compiled
    torch._dynamo.reset()


def plain(config: Config) -> None:
    config["ema"] = {"enable": True, "kwargs": {"decay": 0.9}}


def mixed(config: Config) -> None:
    """Mixing, accumulation, bf16, dropout and erasing."""
    everything_on(config)


def unfrozen(config: Config) -> None:
    config["finetune"] = {"unfreeze": {"blocks": 3}}


# Of a region: training on 8 images and on any number (46 = 5 · 8 + 6), evaluation on any number.
CASES: dict[str, tuple[Callable[[Config], None], dict[str, int]]] = {
    "with an average": (plain, {"backbone": 3, "head": 3}),
    "everything": (mixed, {"backbone": 3, "head": 3}),
    "unfreezing": (unfrozen, {"backbone": 7, "head": 3}),  # of each of the two later epochs two more
}


def losses_of(path: str, folder: Path, *opts: str) -> list[float]:
    assert train(path, f"saver.save_dir={folder}", *opts) == 0
    return [record["loss"] for record in records(folder, "train")]


def named(forms: Counter[str]) -> dict[str, int]:
    return {name.rpartition("_")[0]: number for name, number in forms.items()}


@pytest.mark.slow
@pytest.mark.parametrize(("change", "expected"), [pytest.param(*case, id=name) for name, case in CASES.items()])
def test_compiles_each_form_once(
    config: Config, write: Write, tmp_path: Path, forms: Counter[str], change: Callable[[Config], None], expected: dict[str, int]
) -> None:
    change(config)
    path = write(config)
    eager = losses_of(path, tmp_path / "eager", "trainer.max_epoch=3")
    compiled = losses_of(path, tmp_path / "compiled", "trainer.max_epoch=3", "runtime.compile=true")
    assert compiled == pytest.approx(eager, rel=2e-2 if "amp" in config["runtime"] else 1e-4)
    assert not counters["graph_break"]
    found = named(forms)
    assert found.keys() == expected.keys()
    assert all(found[name] <= number for name, number in expected.items())
    assert checkpoint(tmp_path / "compiled")["model"].keys() == checkpoint(tmp_path / "eager")["model"].keys()


def test_a_student_with_hooked_layers_and_its_teacher(kd: Config, write: Write, tmp_path: Path, forms: Counter[str]) -> None:
    """And the average of the student's weights."""
    plain(kd)
    path = write(kd)
    eager = losses_of(path, tmp_path / "eager")
    assert losses_of(path, tmp_path / "compiled", "runtime.compile={mode: max-autotune-no-cudagraphs}") == pytest.approx(
        eager, rel=1e-4
    )
    assert not counters["graph_break"]
    assert sorted(forms.values()) == [2, 2, 3, 3]  # the teacher never trains
    assert checkpoint(tmp_path / "compiled")["model"].keys() == checkpoint(tmp_path / "eager")["model"].keys()


@pytest.mark.slow
def test_ddp(config: Config, write: Write, tmp_path: Path, forms: Counter[str]) -> None:
    path = write(config)
    eager = losses_of(path, tmp_path / "eager")
    dist.init_process_group("gloo", store=dist.FileStore(str(tmp_path / "store"), 1), rank=0, world_size=1)
    try:
        assert losses_of(path, tmp_path / "compiled", "runtime.compile=true") == pytest.approx(eager, rel=1e-4)
    finally:
        dist.destroy_process_group()
    assert not counters["graph_break"]
    assert named(forms) == {"backbone": 3, "head": 3}


STEPS = 6  # an epoch: 5 of 8 images and one of 6


def on_two_ranks(cluster: Callable[[], Cluster], folder: Path, *opts: str, **options: Any) -> list[Config]:
    """Train eagerly and compiled in the folders ``eager`` and ``compiled``; expect the same weights; return each rank's counts."""
    runs = cluster()
    runs.run(f"saver.save_dir={folder / 'eager'}", *opts, **options)
    runs.run(f"saver.save_dir={folder / 'compiled'}", *opts, "runtime.compile=true", **options)
    eager, compiled = (checkpoint(folder / name)["model"] for name in ("eager", "compiled"))
    assert compiled.keys() == eager.keys()
    for name, tensor in compiled.items():
        torch.testing.assert_close(tensor, eager[name], rtol=1e-4, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}")
    counted = graphs_of(folder / "compiled")
    assert len(counted) == 2
    for each in counted:
        assert not each["breaks"]
        assert each["after"][-1] == each["after"][STEPS]  # of the second epoch: nothing is compiled again
    return counted


def counting_graphs(config: Config) -> None:
    config["runtime"]["plugins"] = ["tests.harness.compiling"]
    config["hooks"] = [{"type": "count_graphs"}]
    config["trainer"]["max_epoch"] = 3
    config["dataset"]["test"]["batch_sampler"]["kwargs"]["batch_size"] = 4  # 4 + 3 and 4 + 2: one image has a form of its own


@pytest.mark.slow
def test_distillation_on_two_ranks(kd: Config, cluster: Callable[[], Cluster], tmp_path: Path) -> None:
    """Replicated: hooked layers of the student, adapters, and a teacher that is compiled as well."""
    plain(kd)
    counting_graphs(kd)
    for each in on_two_ranks(cluster, tmp_path):
        assert sorted(each["forms"].values()) == [2, 2, 3, 3]  # the teacher never trains


@pytest.mark.slow
def test_shards(config: Config, cluster: Callable[[], Cluster], tmp_path: Path) -> None:
    """Blocks that are gathered one by one are compiled one by one: their hooks stay outside of the graphs."""
    plain(config)
    counting_graphs(config)
    blocks = 10_000  # parameters; those of layers 3 and 4 are larger
    for each in on_two_ranks(cluster, tmp_path, "runtime.parallel=fsdp", waits={"up.engine.parallel:BLOCK": blocks}):
        assert named(each["forms"]).keys() == {"Sequential", "BasicBlock", "head"}
        assert set(each["forms"].values()) == {3}


@pytest.mark.slow
def test_shards_that_are_all_gathered_at_once(config: Config, cluster: Callable[[], Cluster], tmp_path: Path) -> None:
    """A small net has no block of its own: its regions are whole, as without shards; gradients accumulate."""
    counting_graphs(config)
    options = ("runtime.parallel=fsdp", "dataset.train.batch_sampler.kwargs.batch_size=2", "trainer.accumulate=2")
    for each in on_two_ranks(cluster, tmp_path, *options):
        assert named(each["forms"]) == {"backbone": 2, "head": 2}  # of the last step a rank has 2 images and 1


@pytest.mark.parametrize("command", ["check", "train"])
def test_shards_and_replayed_graphs(config: Config, write: Write, capsys: pytest.CaptureFixture[str], command: str) -> None:
    """CUDA graphs replay on the same memory, which shards allocate anew for each block."""
    config["runtime"] |= {"parallel": "fsdp", "compile": {"mode": "reduce-overhead"}}
    assert main([command, write(config)]) == 2
    assert tells(
        capsys.readouterr().err, "runtime.compile.mode", "reduce-overhead", "runtime.parallel: fsdp", "max-autotune-no-cudagraphs"
    )
