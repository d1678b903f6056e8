import math

import pytest
import torch

from videoattn.engine.metrics import confusion_matrix, mean_class_accuracy, per_class_accuracy, top_k_correct

SCORES = torch.tensor(
    [
        [0.9, 0.5, 0.1],  # label 0: first
        [0.9, 0.5, 0.1],  # label 1: second
        [0.9, 0.5, 0.1],  # label 2: third
        [-3.0, -1.0, -2.0],  # label 1: first
    ]
)
LABELS = torch.tensor([0, 1, 2, 1])


def test_top_k_counts_labels_among_the_k_highest() -> None:
    assert top_k_correct(SCORES, LABELS, (1, 2, 3)) == {1: 2, 2: 3, 3: 4}


def test_k_above_the_number_of_classes_means_all_classes() -> None:
    assert top_k_correct(SCORES, LABELS, (5,)) == {5: 4}


def test_a_tie_counts_as_wrong_wherever_the_label_stands() -> None:
    scores = torch.tensor([[1.0, 1.0, 0.0]]).expand(2, -1)
    assert top_k_correct(scores, torch.tensor([0, 1]), (1, 2)) == {1: 0, 2: 2}


def test_equal_scores_for_all_classes_are_right_only_at_k_of_all_classes() -> None:
    assert top_k_correct(torch.zeros(3, 3), torch.tensor([0, 1, 2]), (1, 2, 3)) == {1: 0, 2: 0, 3: 3}


def test_scores_that_are_not_numbers_are_wrong() -> None:
    scores = torch.tensor([[math.nan, 0.0], [0.0, math.nan]])
    assert top_k_correct(scores, torch.tensor([0, 0]), (1,)) == {1: 0}


def test_no_videos_give_zero_correct() -> None:
    assert top_k_correct(torch.empty(0, 3), torch.empty(0, dtype=torch.int64)) == {1: 0, 5: 0}


@pytest.mark.parametrize("label", [-1, 3])
def test_labels_outside_the_classes_are_refused_with_their_range(label: int) -> None:
    with pytest.raises(ValueError, match=rf"0\.\.2, got {label}"):
        top_k_correct(SCORES[:1], torch.tensor([label]), (1,))


def test_shapes_that_do_not_fit_and_k_below_one_are_refused() -> None:
    with pytest.raises(ValueError, match=r"got \[4, 3\], \[3\]"):
        top_k_correct(SCORES, LABELS[:3])
    with pytest.raises(ValueError, match="got 0"):
        top_k_correct(SCORES, LABELS, (0,))


def test_confusion_counts_true_classes_in_rows_and_predictions_in_columns() -> None:
    assert confusion_matrix(SCORES, LABELS).tolist() == [[1, 0, 0], [1, 1, 0], [1, 0, 0]]


def test_diagonal_of_the_confusion_is_top_1_even_with_ties() -> None:
    generator = torch.Generator().manual_seed(0)
    scores = torch.randint(0, 3, (200, 4), generator=generator).float()
    labels = torch.randint(0, 4, (200,), generator=generator)
    confusion = confusion_matrix(scores, labels)
    assert int(confusion.sum()) == 200
    assert int(confusion.trace()) == top_k_correct(scores, labels, (1,))[1]
    assert 0 < int(confusion.trace()) < int((scores.argmax(1) == labels).sum())


def test_per_class_accuracy_is_the_share_of_each_true_class() -> None:
    confusion = torch.tensor([[3, 1, 0], [0, 0, 0], [2, 0, 2]])
    shares = per_class_accuracy(confusion).tolist()
    assert shares[0] == 0.75 and math.isnan(shares[1]) and shares[2] == 0.5


def test_mean_class_accuracy_leaves_absent_classes_out() -> None:
    assert mean_class_accuracy(torch.tensor([[3, 1, 0], [0, 0, 0], [2, 0, 2]])) == 0.625
    assert math.isnan(mean_class_accuracy(torch.zeros(2, 2, dtype=torch.int64)))
