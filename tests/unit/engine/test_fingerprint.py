"""What may change under a resume."""

from __future__ import annotations

import pytest

from up.engine.fingerprint import changes

THEN = """
runtime: {random_seed: 7, plugins: []}
trainer: {max_epoch: 2, optimizer: {type: SGD, kwargs: {lr: 0.1}}}
net:
- {name: backbone, type: resnet18, kwargs: {}}
- {name: head, type: base_cls_head, kwargs: {num_classes: 3}}
teacher0:
- {name: backbone, type: resnet50}
teacher1:
- {name: logits, type: onnx, kwargs: {file: a.onnx}}
mimic:
  cache: {dir: there, topk: 5}
  preflight: error
  mimic_job0: {loss_weight: 1.0, teacher0: {teacher_weight: a.pth, mimic_name: [a]}}
"""


@pytest.mark.parametrize(
    ("old", "new", "shown", "safe"),
    [
        ("max_epoch: 2", "max_epoch: 3", "trainer.max_epoch: 2 -> 3", True),
        ("lr: 0.1", "lr: 0.2", "trainer.optimizer.kwargs.lr: 0.1 -> 0.2", True),
        ("plugins: []", "plugins: [a.b]", "runtime.plugins: [] -> ['a.b']", True),
        ("type: SGD", "type: AdamW", "trainer.optimizer.type: 'SGD' -> 'AdamW'", False),
        ("random_seed: 7", "random_seed: 8", "runtime.random_seed: 7 -> 8", False),
        ("num_classes: 3", "num_classes: 4", "net.1.kwargs.num_classes: 3 -> 4", False),
        ("kwargs: {}}", "kwargs: {deep_stem: true}}", "net.0.kwargs.deep_stem: None -> True", False),
        ("resnet50", "resnet101", "teacher0.0.type: 'resnet50' -> 'resnet101'", False),
        ("a.pth", "b.pth", "mimic.mimic_job0.teacher0.teacher_weight: 'a.pth' -> 'b.pth'", True),
        ("a.onnx", "b.onnx", "teacher1.0.kwargs.file: 'a.onnx' -> 'b.onnx'", True),
        ("dir: there", "dir: here", "mimic.cache.dir: 'there' -> 'here'", True),
        ("preflight: error", "preflight: warn", "mimic.preflight: 'error' -> 'warn'", True),
        ("loss_weight: 1.0", "loss_weight: 2.0", "mimic.mimic_job0.loss_weight: 1.0 -> 2.0", False),
        ("[a]", "[b]", "mimic.mimic_job0.teacher0.mimic_name: ['a'] -> ['b']", False),
    ],
)
def test_changes(old: str, new: str, shown: str, safe: bool) -> None:
    found = [change for change in changes(THEN, THEN.replace(old, new)) if change.now != {} and change.then != {}]
    assert [(str(change), change.is_safe) for change in found] == [(shown, safe)]


def test_no_change() -> None:
    assert changes(THEN, THEN) == []
    assert changes(THEN, THEN.replace("{random_seed: 7, plugins: []}", "\n  plugins: []\n  random_seed: 7")) == []


def test_a_module_more() -> None:
    found = changes(THEN, THEN.replace("\nteacher0", "\n- {name: post, type: x}\nteacher0"))
    assert [change.key for change in found] == ["net.2.name", "net.2.type"]
    assert not any(change.is_safe for change in found)
