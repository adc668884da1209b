"""Losses are torch's, or what torch's give for the same labels."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.ops import sigmoid_focal_loss

from cnnlab.config.options import UserError
from cnnlab.losses import BinaryCrossEntropy, CrossEntropy, Focal, Hinge
from cnnlab.train.classifier import Classifier


@pytest.mark.parametrize("soft", [False, True])
def test_hinge_loss_equals_torch(soft):
    logits, labels = torch.randn(20, 5), torch.arange(20) % 5
    given = F.one_hot(labels, 5).float() if soft else labels
    torch.testing.assert_close(Hinge()(logits, given), F.multi_margin_loss(logits, labels))
    every = torch.stack([F.multi_margin_loss(logits, labels.new_full((20,), label)) for label in range(5)])
    smoothed = 0.7 * F.multi_margin_loss(logits, labels) + 0.3 * every.mean()
    torch.testing.assert_close(Hinge(0.3)(logits, given), smoothed)
    torch.testing.assert_close(Hinge(0.3).eval()(logits, given), Hinge()(logits, given))


def test_a_loss_with_weights_is_refused():
    with pytest.raises(UserError, match="Linear has its own weights"):
        Classifier(nn.Linear(2, 2), torch.optim.SGD, torch.optim.lr_scheduler.ConstantLR, loss=nn.Linear(2, 1))


LOGITS, LABELS = torch.randn(20, 5, generator=torch.Generator().manual_seed(0)), torch.arange(20) % 5


def test_class_weights_are_torchs_and_count_in_training_alone():
    weights = [1.0, 0.0, 2.0, 3.0, 0.5]
    loss = CrossEntropy(class_weights=weights)
    torch.testing.assert_close(loss(LOGITS, LABELS), F.cross_entropy(LOGITS, LABELS, torch.tensor(weights)))
    assert loss.eval()(LOGITS, LABELS).equal(F.cross_entropy(LOGITS, LABELS))
    assert loss.state_dict() == {}  # checkpoints are those of the network


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_class_weights_mean_the_same_whether_labels_may_be_mixed_or_not(smoothing):
    """torch divides by the weights of labels that are indices, but by the number of images if they are shares."""
    loss = CrossEntropy(smoothing, class_weights=[5.0, 5.0, 20.0, 3.0, 0.0])
    torch.testing.assert_close(loss(LOGITS, F.one_hot(LABELS, 5).float()), loss(LOGITS, LABELS))
    equal = CrossEntropy(smoothing, class_weights=[7.0] * 5)
    mixed = torch.lerp(F.one_hot(LABELS, 5).float(), F.one_hot(LABELS.roll(1), 5).float(), 0.3)
    torch.testing.assert_close(equal(LOGITS, mixed), CrossEntropy(smoothing)(LOGITS, mixed))


def test_binary_cross_entropy_is_torchs_with_one_class_or_several():
    several = (LOGITS.flip(0) > 0).float()
    one = F.one_hot(LABELS, 5).float()
    for targets, given in ((several, several), (one, LABELS)):
        expected = F.binary_cross_entropy_with_logits(LOGITS, targets)
        torch.testing.assert_close(BinaryCrossEntropy()(LOGITS, given), expected)
    smoothed = F.binary_cross_entropy_with_logits(LOGITS, 0.8 * one + 0.04)
    torch.testing.assert_close(BinaryCrossEntropy(0.2)(LOGITS, LABELS), smoothed)
    each = F.binary_cross_entropy_with_logits(LOGITS, 0.8 * several + 0.1)
    torch.testing.assert_close(BinaryCrossEntropy(0.2, "multilabel")(LOGITS, several), each)


def test_a_batch_without_weight_has_the_loss_0():
    assert CrossEntropy(class_weights=[0, 1, 1, 1, 1])(LOGITS, torch.zeros(len(LOGITS), dtype=torch.int64)) == 0


def test_focal_loss_is_torchvisions_with_several_labels_and_its_formula_with_one_class():
    several = (LOGITS.flip(0) > 0).float()
    theirs = sigmoid_focal_loss(LOGITS, several, alpha=-1, gamma=1.5, reduction="mean")
    torch.testing.assert_close(Focal(1.5, "multilabel")(LOGITS, several), theirs)
    right = LOGITS.softmax(1)[torch.arange(20), LABELS]
    torch.testing.assert_close(Focal(1.5)(LOGITS, LABELS), -((1 - right) ** 1.5 * right.log()).mean())
    for given in (LABELS, F.one_hot(LABELS, 5).float()):
        torch.testing.assert_close(Focal(0.0)(LOGITS, given), F.cross_entropy(LOGITS, LABELS))
    sure = torch.tensor([[200.0, 0.0]], requires_grad=True)
    Focal(0.5)(sure, torch.tensor([0])).backward()
    assert sure.grad.tolist() == [[0, 0]]
