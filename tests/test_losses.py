"""Losses are torch's, or what torch's give for the same labels."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from cnnlab.config.options import UserError
from cnnlab.losses import Hinge
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
    with pytest.raises(UserError, match="Linear has weights of its own"):
        Classifier(nn.Linear(2, 2), torch.optim.SGD, torch.optim.lr_scheduler.ConstantLR, loss=nn.Linear(2, 1))
