from __future__ import annotations

import torch

from up.tasks.cls.evaluate.predictions import HeadPredictions, Recorder, combine, rank_of

SCORES = torch.tensor([[0.1, 0.6, 0.3], [0.5, 0.2, 0.3]])


def recorded(scores: torch.Tensor, gt: torch.Tensor, depth: int = 3) -> HeadPredictions:
    recorder = Recorder(depth=depth, keep_scores=False, multilabel=False)
    batch = {"filename": [f"{i}.jpg" for i in range(len(gt))], "index": torch.arange(len(gt)), "gt": gt}
    recorder.add(scores, batch)
    return combine([recorder.state()]).heads[0]


def test_rank_is_the_number_of_classes_before_the_true_one() -> None:
    assert rank_of(SCORES, torch.tensor([1, 1])).tolist() == [0, 2]


def test_the_best_classes_come_first_with_their_scores() -> None:
    head = recorded(SCORES, torch.tensor([1, 1]), depth=2)
    assert head.topk_idx.tolist() == [[1, 2], [0, 2]]
    assert torch.equal(torch.from_numpy(head.topk_score), torch.tensor([[0.6, 0.3], [0.5, 0.3]]))
    assert head.preds.tolist() == [1, 0]


def test_equal_scores_go_to_the_lower_class_everywhere() -> None:
    scores, gt = torch.full((3, 4), 0.25), torch.tensor([0, 2, 3])
    head = recorded(scores, gt)
    assert rank_of(scores, gt).tolist() == [0, 2, 3]
    assert head.rank is not None
    assert head.rank.tolist() == [0, 2, 3]
    assert head.topk_idx.tolist() == [[0, 1, 2]] * 3


def test_images_come_by_rising_index_and_once() -> None:
    states = []
    for indices in ([4, 0], [2, 4]):
        recorder = Recorder(depth=1, keep_scores=True, multilabel=False)
        batch = {"filename": [f"{i}.jpg" for i in indices], "index": torch.tensor(indices)}
        recorder.add(torch.tensor([[0.0, float(i)] for i in indices]), batch)
        states.append(recorder.state())
    merged = combine(states)
    assert merged.index.tolist() == [0, 2, 4]
    assert [*merged.filename] == ["0.jpg", "2.jpg", "4.jpg"]
    assert merged.heads[0].scores is not None
    assert merged.heads[0].scores.tolist() == [[0.0, 0.0], [0.0, 2.0], [0.0, 4.0]]
    assert len(combine([])) == 0


def test_bfloat16_scores_are_recorded_as_they_are() -> None:
    head = recorded(SCORES.bfloat16(), torch.tensor([1, 1]), depth=1)
    assert head.topk_score[:, 0].tolist() == [SCORES.bfloat16()[0, 1].item(), 0.5]
