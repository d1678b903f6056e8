from typing import Any

import pytest
import torch
from torch import Tensor

from videoattn.data.augment.mixing import Mixing, smooth_labels


def batch(size: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(size, 3, 2, 10, 14, generator=generator), torch.arange(size) % 5


def mixing(**options: Any) -> Mixing:
    return Mixing(**{"alpha": 0.8, "cutmix_alpha": 1.0, "label_smoothing": 0.1, "num_classes": 5, **options})


def test_two_processes_mix_as_one() -> None:
    clips, labels = batch(8)
    mixed, targets = mixing()(clips, labels, seed=3)
    halves = [mixing()(clips[i : i + 4], labels[i : i + 4], seed=3, first_pair=i // 2) for i in (0, 4)]
    assert torch.equal(torch.cat([half[0] for half in halves]), mixed)
    assert torch.equal(torch.cat([half[1] for half in halves]), targets)
    assert not torch.equal(mixing()(clips, labels, seed=4)[0], mixed)


def test_mixup_blends_neighbours_by_the_share_in_the_targets() -> None:
    clips, labels = batch(8)
    mixed, targets = mixing(cutmix_alpha=0, label_smoothing=0)(clips, labels, seed=0)
    for i in range(8):
        share = targets[i, labels[i]]
        blended = share * clips[i] + (1 - share) * clips[i ^ 1]
        torch.testing.assert_close(mixed[i], blended, rtol=0, atol=1e-6)
        torch.testing.assert_close(targets[i, labels[i ^ 1]], 1 - share)
    assert len(set(targets[::2].max(1).values.tolist())) == 4  # a share for each pair


def test_cutmix_swaps_a_box_whose_area_is_the_share_in_the_targets() -> None:
    clips, labels = batch(40)
    mixed, targets = mixing(alpha=0, label_smoothing=0)(clips, labels, seed=1)
    kept = mixed == clips
    taken = mixed == clips.view(20, 2, *clips.shape[1:]).flip(1).flatten(0, 1)
    assert (kept ^ taken).all()
    assert (kept == kept[:, :1, :1]).all()  # the same box in all frames and channels
    for i in range(40):
        rows, columns = taken[i, 0, 0].any(1).sum(), taken[i, 0, 0].any(0).sum()
        assert taken[i, 0, 0].sum() == rows * columns
        torch.testing.assert_close(targets[i, labels[i]], kept[i, 0, 0].float().mean())
        assert torch.equal(taken[i], taken[i ^ 1])
    assert 0.1 < taken.float().mean() < 0.5  # half on average, less what the border cuts off


def test_probabilities_choose_between_mixup_cutmix_and_neither() -> None:
    clips, labels = batch(400)
    mixed, _ = mixing(prob=0.5, switch_prob=0.25)(clips, labels, seed=2)
    same = (mixed == clips).flatten(1).float().mean(1)[::2]
    untouched, mixup = (same == 1).float().mean(), (same == 0).float().mean()
    assert 0.4 < untouched < 0.6 and 0.28 < mixup < 0.47
    assert torch.equal(mixing(prob=0.0)(clips, labels, seed=2)[0], clips)


def test_unmixed_targets_are_the_smoothed_labels() -> None:
    clips, labels = batch(4)
    _, targets = mixing(prob=0.0)(clips, labels, seed=0)
    assert torch.equal(targets, smooth_labels(labels, 5, 0.1))


def test_smoothed_label_has_the_published_values() -> None:
    targets = smooth_labels(torch.tensor([2, 0]), 4, 0.1)
    expected = torch.tensor([[0.025, 0.025, 0.925, 0.025], [0.925, 0.025, 0.025, 0.025]])
    torch.testing.assert_close(targets, expected)
    torch.testing.assert_close(smooth_labels(torch.tensor([1]), 3, 0.0), torch.tensor([[0.0, 1.0, 0.0]]))


def test_mixing_leaves_its_input_and_the_global_generator_alone() -> None:
    clips, labels = batch(8)
    kept, state = clips.clone(), torch.get_rng_state()
    _, targets = mixing()(clips, labels, seed=0)
    assert torch.equal(clips, kept) and torch.equal(torch.get_rng_state(), state)
    torch.testing.assert_close(targets.sum(1), torch.ones(8))


def test_mixing_keeps_the_type_of_its_clips() -> None:
    clips, labels = batch(2)
    assert mixing()(clips.bfloat16(), labels, seed=0)[0].dtype == torch.bfloat16


def test_clips_that_cannot_be_mixed_are_refused() -> None:
    clips, labels = batch(3)
    with pytest.raises(ValueError, match="even number of clips per process, got 3; change TRAIN.BATCH_SIZE"):
        mixing()(clips, labels, seed=0)
    with pytest.raises(ValueError, match="floating clips, got torch.uint8"):
        mixing()(clips[:2].to(torch.uint8), labels[:2], seed=0)
    with pytest.raises(ValueError, match="MIXUP.ALPHA or MIXUP.CUTMIX_ALPHA"):
        mixing(alpha=0.0, cutmix_alpha=0.0)
