"""The report's network: its weights layer by layer, and its equality with what the report writes down."""

import pytest
import torch
from sklearn.cluster import KMeans
from torch import nn

from cnnlab.config.options import UserError
from cnnlab.config.shape import Shape
from cnnlab.networks import BagOfWords, ConvNet, Linear, VisualWords, k_means
from cnnlab.train.parts import try_alone


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


def test_fully_convolutional_equals_the_network_and_maps_larger_images():
    """Question 6: the same weights, the same logits; on a larger image those of every window."""
    plain, fully = ConvNet(dropout=0.3).eval(), ConvNet(dropout=0.3, fully_convolutional=True).eval()
    fully.load_state_dict(plain.state_dict())
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(fully(images), plain(images), rtol=1e-5, atol=1e-5)
    assert fully(torch.randn(2, 3, 48, 40)).shape == (2, 10, 3, 2)
    large = torch.randn(1, 3, 120, 120)
    here, moved = fully(large), fully(large.roll((8, 16), (2, 3)))  # the window of 60 pixels from -14 on moves along
    torch.testing.assert_close(moved[:, :, 4:9, 4:9], here[:, :, 3:8, 2:7], rtol=1e-4, atol=1e-5)
    plain.load_state_dict(fully.state_dict())
    torch.testing.assert_close(fully(images), plain(images), rtol=1e-5, atol=1e-5)


def test_trained_weights_of_either_form_load_into_the_other():
    """As they lie in memory after training, channels last."""
    fully = ConvNet(fully_convolutional=True).to(memory_format=torch.channels_last).eval()
    plain = ConvNet().eval()
    plain.load_state_dict(fully.state_dict())
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(plain(images), fully(images), rtol=1e-5, atol=1e-5)


def test_forms_of_another_size_do_not_load():
    with pytest.raises(RuntimeError, match=r"fc4\.weight"):
        ConvNet(fully_convolutional=True, hidden=10).load_state_dict(ConvNet().state_dict())


def test_linear_has_30_730_weights():
    network = Linear()
    assert sum(weights.numel() for weights in network.parameters()) == 30_730
    assert network(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


def test_k_means_is_about_as_good_as_scikit_learn():
    """The mean squared distance to the nearest center, 5% apart at most."""
    generator = torch.Generator().manual_seed(0)
    samples = torch.randn(3000, 6, generator=generator) + 4 * torch.randn(20, 6, generator=generator).repeat(150, 1)
    torch.manual_seed(0)
    ours = torch.cdist(samples, k_means(samples, 60, num_iterations=50)).amin(1).square().mean()
    theirs = KMeans(60, init="random", n_init=1, max_iter=50, random_state=0).fit(samples.numpy()).inertia_ / 3000
    assert ours < 1.05 * theirs
    nobody_comes = torch.cat((torch.zeros(5, 2), torch.ones(5, 2)))
    assert k_means(nobody_comes, 4).isfinite().all()


def test_bag_of_words_of_question_12():
    assert sum(weights.numel() for weights in BagOfWords().parameters()) == 10 * (1000 + 1)
    vocabulary = VisualWords(num_words=50, in_channels=3, patch_size=4, stride=3)
    images = torch.randn(300, 3, 16, 16)
    vocabulary.fit(images, num_patches=4000)
    whitened = (vocabulary.patches(images).flatten(0, 1) - vocabulary.mean) @ vocabulary.whitening
    nearest = torch.cdist(whitened, vocabulary.words).argmin(1).view(300, -1)
    assert nearest.shape[1] == 25  # places of a patch
    expected = torch.stack([torch.bincount(words, minlength=50) for words in nearest]) / 25
    torch.testing.assert_close(vocabulary(images), expected)


def test_a_network_that_cannot_learn_from_one_image_is_refused():
    shape, network = Shape(10, 3, 32, 32), ConvNet(batch_norm=True, dropout=0.5)
    before, chance = [values.clone() for values in network.state_dict().values()], torch.get_rng_state()
    try_alone(network, shape)
    assert all(map(torch.equal, before, network.state_dict().values()))
    assert chance.equal(torch.get_rng_state())
    with pytest.raises(UserError, match="one image for each process: Expected more than 1 value per channel"):
        try_alone(BagOfWords(num_words=10), shape)
