"""Steps of a search: what moves, on which images, and that it finds the operation that the data need."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from up.data.records import Batch
from up.data.sampler import Cut, Share
from up.engine.evaluate import Evaluation
from up.engine.precision import Precision
from up.engine.step import StepData, StepOutput
from up.models.net import Net
from up.models.supernet import CellSupernet, cell_supernet
from up.supernet.cars import CarsRunner
from up.supernet.runner import ArchitectureSearch, DartsRunner

pytestmark = pytest.mark.integration  # whole searches of a toy supernet

PLANTED = "dil_conv_3x3"


class MeanHead(nn.Module):
    def __init__(self, planes: int) -> None:
        super().__init__()
        self.classifier = nn.Linear(planes, 2)

    def forward(self, record: dict[str, Any]) -> dict[str, Tensor]:
        return {"logits": self.classifier(record["features"][0].mean((2, 3)))}


class Recorder:
    """Counts the right answers of each batch for the runner ``cars``."""

    main_metric = "top1"

    def __init__(self) -> None:
        self.right: list[float] = []

    def update(self, outputs: dict[str, Tensor], batch: Batch) -> None:
        self.right += (outputs["logits"].argmax(1) == batch["gt"]).float().tolist()

    def state(self) -> object:
        return self.right

    def merge(self, states: list[list[float]]) -> None:
        self.right = [each for state in states for each in state]

    def compute(self) -> dict[str, float]:
        return {"top1": 100 * sum(self.right) / len(self.right)}


def loss_of(net: nn.Module, batch: Batch) -> StepOutput:
    logits = net(batch)["logits"]
    return StepOutput(F.cross_entropy(logits, batch["gt"]), {"top1": (logits.argmax(1) == batch["gt"]).float().mean()})


def images_of(number: int, draw: torch.Generator) -> Batch:
    """Draw noise whose columns 4 to 7 repeat columns 0 to 3 in one class, and their opposite in the other.

    Pixels at a distance of less than 4 are independent. The stem and skip connections see 4 columns at most, so that only the
    dilated convolution, with taps at -2, 0 and 2, tells the classes apart.
    """
    labels = torch.arange(number) % 2
    noise = torch.randint(0, 2, (number, 1, 8, 4), generator=draw) * 2.0 - 1.0
    image = torch.cat([noise, noise * (1.0 - 2.0 * labels)[:, None, None, None]], dim=3).expand(-1, 3, -1, -1)
    return Batch(image=image.contiguous(), gt=labels, filename=["noise"] * number)


def net_of(candidates: list[str]) -> tuple[Net, CellSupernet]:
    torch.manual_seed(0)
    supernet = cell_supernet(candidates=candidates, nodes=1, layers=3, init_channels=8)  # type: ignore[arg-type]
    assert isinstance(supernet, CellSupernet)
    return Net([("backbone", supernet), ("head", MeanHead(supernet.out_planes[-1]))]), supernet


def runner_of(net: Net, kind: type[DartsRunner | CarsRunner] = DartsRunner, *, steps: int = 100, **kwargs: Any) -> Any:
    batches = [images_of(32, torch.Generator().manual_seed(seed)) for seed in (98, 99)]
    held_out = Evaluation(batches, untouched, Recorder, Precision(mode=None, device="cpu"))  # type: ignore[arg-type]
    plan = ArchitectureSearch(held_out, steps_per_epoch=10, total_steps=steps)
    return kind(net, loss_of=loss_of, stage=untouched, mix=None, seed=3, search=plan, **kwargs)


def untouched(batch: Batch) -> Batch:
    return batch


def data_of(batch: Batch) -> StepData:
    half = len(batch.filename) // 2
    return StepData([batch], 0.0, Cut([Share(1.0, 1 / half)], half))


def train(runner: Any, steps: int, *, lr: float = 0.01) -> float:
    """Train on fresh images and return the share of right answers in the last five steps."""
    optimizer, draw, right = torch.optim.Adam(runner.net.parameters(), lr=lr), torch.Generator().manual_seed(5), []
    for step in range(steps):
        batch = images_of(64, draw)
        runner.before_step(data_of(batch), step)
        output = runner.training_step(runner.prepare(batch, step, 0), step)
        output.loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        runner.after_step(step + 1)
        right.append(float(output.scalars["top1"]))
    return sum(right[-5:]) / 5


def test_darts_finds_the_planted_operation() -> None:
    net, supernet = net_of(["none", "skip_connect", PLANTED])
    for alphas in supernet.architecture:
        alphas[:] = torch.tensor([0.0, 0.05, 0.0])  # at first the planted one is the weakest
    runner = runner_of(net, arch_lr=0.05)
    assert {edge[0] for edge in supernet.genotype().normal} != {PLANTED}
    assert train(runner, 30) > 0.9
    (found,) = runner.found()
    assert PLANTED in {edge[0] for edge in found.genotype.normal}
    weights = supernet.alphas_normal.softmax(dim=1)
    assert weights[:, 2].max() > 1.5 * weights[:, 1].max()


def test_no_other_operation_solves_the_task() -> None:
    net, _ = net_of(["none", "skip_connect"])
    assert train(runner_of(net, arch_lr=0.05), 30) < 0.75


def test_cars_ranks_the_planted_operation_first() -> None:
    net, _ = net_of(["skip_connect", PLANTED])
    runner = runner_of(net, CarsRunner, steps=40, population=4, warmup=2, ga_interval=1)
    train(runner, 40)
    best, *front = runner.found()
    assert PLANTED in {edge[0] for edge in (*best.genotype.normal, *best.genotype.reduce)}
    assert best.facts["accuracy"] > 75
    assert front[0].genotype == best.genotype
    accuracies = [network.facts["accuracy"] for network in front]
    assert accuracies == sorted(accuracies, reverse=True)
    assert all(0 <= individual.accuracy <= 100 for individual in runner.population)


def test_a_step_of_the_architecture_follows_the_held_out_images_alone() -> None:
    net, supernet = net_of(["skip_connect", PLANTED])
    runner = runner_of(net, arch_lr=0.1, arch_weight_decay=0.0)
    batch = images_of(16, torch.Generator().manual_seed(1))
    held = Batch(image=batch.image[8:], gt=batch["gt"][8:], filename=batch.filename[8:])
    for alphas in supernet.architecture:
        alphas.requires_grad_(True)
    expected = torch.autograd.grad(loss_of(net, held).loss, supernet.architecture)
    for alphas in supernet.architecture:
        alphas.requires_grad_(False)
    before = [alphas.clone() for alphas in supernet.architecture]
    weights = [parameter.clone() for parameter in net.parameters()]
    other = Batch(batch, image=torch.cat([torch.randn(8, 3, 8, 8), batch.image[8:]]))
    runner.before_step(data_of(other), 0)
    for alphas, start, gradient in zip(supernet.architecture, before, expected, strict=True):
        # the first step of Adam is lr times the sign of the gradient
        assert torch.allclose(alphas, start - 0.1 * gradient.sign(), atol=1e-4)
    assert all(torch.equal(parameter, start) for parameter, start in zip(net.parameters(), weights, strict=True))
    assert all(parameter.grad is None for parameter in net.parameters())
    assert not any(alphas.requires_grad for alphas in supernet.architecture)


def test_a_batch_of_weights_is_the_first_half() -> None:
    net, _ = net_of(["skip_connect"])
    batch = images_of(16, torch.Generator().manual_seed(1))
    assert torch.equal(runner_of(net).prepare(batch, 0, 0).image, batch.image[:8])


def test_the_architecture_rests_in_the_warm_up() -> None:
    net, supernet = net_of(["skip_connect", PLANTED])
    runner = runner_of(net, warmup=2)
    before = supernet.alphas_normal.clone()
    data = data_of(images_of(8, torch.Generator().manual_seed(1)))
    runner.before_step(data, 19)  # ten steps an epoch
    assert torch.equal(supernet.alphas_normal, before)
    runner.before_step(data, 20)
    assert not torch.equal(supernet.alphas_normal, before)


def test_cars_trains_random_paths_first_and_then_those_of_its_population() -> None:
    net, supernet = net_of(["skip_connect", "avg_pool_3x3", PLANTED])
    runner = runner_of(net, CarsRunner, population=3, warmup=1)
    population = {individual.genotype for individual in runner.population}
    assert {runner.path_at(step) for step in range(10)} - population
    assert {runner.path_at(step) for step in range(10, 60)} == population
    assert runner.path_at(7) == runner_of(net, CarsRunner, population=3, warmup=1).path_at(7)
    assert supernet.leader in population


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_a_generation_leaves_the_net_as_it_was(mode: str) -> None:
    net, _ = net_of(["skip_connect", PLANTED])
    runner = runner_of(net, CarsRunner, population=2, warmup=0, ga_interval=1)
    net.train(mode == "train")
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    runner.after_step(10)
    assert net.training == (mode == "train")
    after = net.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert all(individual.accuracy is not None for individual in runner.population)
