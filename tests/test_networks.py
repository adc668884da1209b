"""The report's network: its weights layer by layer, and its equality with what the report writes down."""

import pytest
import torch
from torch import nn

from cnnlab.networks import ConvNet


def test_weights_of_question_10():
    weights = {}
    for name, values in ConvNet().named_parameters():
        layer = name.split(".")[0]
        weights[layer] = weights.get(layer, 0) + values.numel()
    assert weights == {"conv1": 2_432, "conv2": 51_264, "conv3": 102_464, "fc4": 1_025_000, "fc5": 10_010}
    assert sum(weights.values()) == 1_191_170


def report_network(batch_norm: bool) -> nn.Sequential:
    """As the report describes it: ReLU straight after the convolution, pooling after ReLU."""
    layers: list[nn.Module] = []
    for inputs, outputs in ((3, 32), (32, 64), (64, 64)):
        layers.append(nn.Conv2d(inputs, outputs, 5, stride=1, padding=2))
        if batch_norm:
            layers.append(nn.BatchNorm2d(outputs))
        layers += [nn.ReLU(), nn.MaxPool2d(2, stride=2)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(1024, 1000), nn.ReLU(), nn.Linear(1000, 10))


@pytest.mark.parametrize("batch_norm", [False, True])
def test_equals_the_plain_sequence_of_layers_forwards_and_backwards(batch_norm):
    ours, plain = ConvNet(batch_norm=batch_norm), report_network(batch_norm)
    plain.load_state_dict(dict(zip(plain.state_dict(), ours.state_dict().values(), strict=True)))
    images = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    for network in (ours, plain):
        network(images).logsumexp(1).sum().backward()
    assert ours(images).equal(plain(images))
    for mine, theirs in zip(ours.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-5, atol=1e-5)


def test_dropout_zeroes_neurons_of_fc4_in_training_alone():
    network = ConvNet(dropout=0.5).eval()
    images = torch.randn(4, 3, 32, 32)
    assert network(images).equal(network(images))
    network.train()
    seen = []
    network.fc5.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    torch.manual_seed(0)
    network(images)
    until_fc4 = nn.Sequential(*(layer for name, layer in network.named_children() if name not in ("dropout", "fc5")))
    before = until_fc4(images)
    kept = seen[0] != 0
    torch.testing.assert_close(seen[0][kept], 2 * before[kept])
    assert 0.4 < (seen[0] == 0)[before > 0].float().mean() < 0.6


@pytest.mark.parametrize(
    ("size", "weights"), [(28, 64 * 9 * 1000 + 1000), (32, 1_025_000), (64, 64 * 64 * 1000 + 1000)]
)
def test_fc4_fits_the_images(size, weights):
    network = ConvNet(image_size=size, num_classes=7)
    assert network(torch.zeros(2, 3, size, size)).shape == (2, 7)
    assert sum(values.numel() for values in network.fc4.parameters()) == weights
