"""The fast network: its first layer whitens, its other layers begin as the identity."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from cnnlab.speednet import Convolution, SpeedNet, Whitening
from cnnlab.train.optimizers import make_optimizer


def images(num: int = 300, channels: int = 3) -> torch.Tensor:
    """Smooth ones of different brightness, whose pixels and channels are correlated: (num, channels, 16, 16)."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(num, channels, 18, 18, generator=generator)
    return F.avg_pool2d(noise, 3, stride=1) + torch.randn(num, 1, 1, 1, generator=generator)


def test_the_first_layer_gives_uncorrelated_components_of_variance_1_and_their_negatives():
    layer = Whitening(3, patch_size=2, eps=0.0)
    layer.fit(images())
    components = layer(images()).permute(1, 0, 2, 3).flatten(1)  # (24, B * P)
    assert components.shape[0] == 24
    second = components[:12] @ components[:12].T / components.shape[1]
    torch.testing.assert_close(second, torch.eye(12), rtol=0, atol=1e-3)
    assert components[12:].equal(-components[:12])


def test_small_components_are_not_made_large():
    layer = Whitening(3, patch_size=2, eps=0.5)
    layer.fit(images())
    plain = Whitening(3, patch_size=2, eps=0.0)
    plain.fit(images())
    assert (layer.weight.flatten(1).norm(dim=1) < plain.weight.flatten(1).norm(dim=1)).all()
    assert layer.weight.flatten(1).norm(dim=1).max() <= 0.5**-0.5


def test_fitting_twice_gives_the_same_bits_and_training_leaves_the_filters():
    networks = [SpeedNet(widths=(8, 8)) for _ in range(2)]
    for network in networks:
        network.fit(images())
    first, second = (network.whitening.weight for network in networks)
    assert first.equal(second)
    assert not first.requires_grad
    assert networks[0].whitening.bias.requires_grad


@pytest.mark.parametrize("channels", [6, 9])
def test_convolutions_pass_on_what_they_are_given_at_first(channels):
    layer = Convolution(6, channels, momentum=0.4, pool=False)
    given = torch.randn(2, 6, 8, 8)
    torch.testing.assert_close(layer.conv(given)[:, :6], given)
    assert layer.conv.weight[6:].abs().sum(dtype=torch.float64) > 0 or channels == 6


def test_biases_of_batch_norm_learn_faster_and_its_scales_stay():
    network = SpeedNet(widths=(8, 8))
    optimizer = make_optimizer(lambda groups: torch.optim.SGD(groups, lr=0.5), network, decay_all=True)
    assert [group["lr"] for group in optimizer.param_groups] == [0.5, 32.0]
    faster = {id(weights) for weights in optimizer.param_groups[1]["params"]}
    biases = {name for name, weights in network.named_parameters() if id(weights) in faster}
    assert biases == {f"conv{group}{place}.norm.bias" for group in (1, 2) for place in "ab"}
    norms = [layer for layer in network.modules() if isinstance(layer, nn.BatchNorm2d)]
    assert all(norm.weight.equal(torch.ones(8)) and not norm.weight.requires_grad for norm in norms)


def test_it_takes_images_of_any_size_from_9_pixels_and_any_number_of_channels():
    assert SpeedNet(in_channels=1, num_classes=4)(torch.zeros(2, 1, 9, 40)).shape == (2, 4)
    assert sum(weights.numel() for weights in SpeedNet().parameters()) == 1_972_792
