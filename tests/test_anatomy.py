"""The report's questions 1, 7 and 8 to 12, recomputed."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from cnnlab.config.shape import Shape
from cnnlab.networks import BagOfWords, ConvNet
from cnnlab.resnet import ResNet
from cnnlab.use.anatomy import layers


def test_question_1():
    """A filter of 128 pixels on 256x256x3: 49,153 weights.

    For the fully connected layer the report takes an output of 128x128, and gets 3,221,225,472 weights. By its own
    formula the output has 1 + (256 - 128) / 1 = 129 pixels, and the layer 129^2 / 128^2 times as many.
    """
    [layer] = layers(nn.Sequential(nn.Conv2d(3, 1, 128)), Shape(10, 3, 256, 256))
    assert layer.weights == 49_153
    assert layer.output == (1, 129, 129)
    assert layer.fully_connected == 256 * 256 * 3 * 129 * 129
    assert layer.fully_connected * 128**2 // 129**2 == 3_221_225_472
    assert layer.receptive_field == 128


def test_question_7():
    """r_k = r_{k-1} + (f_k - 1) s_1 ... s_{k-1}, against the pixels that an output really depends on."""
    network = nn.Sequential(
        nn.Conv2d(1, 1, 3, stride=2), nn.MaxPool2d(2), nn.Conv2d(1, 1, 5, stride=1), nn.Conv2d(1, 1, 3, stride=3)
    )
    found = layers(network, Shape(10, 1, 96, 96))
    assert [(layer.receptive_field, layer.stride) for layer in found] == [(3, 2), (5, 4), (21, 4), (29, 12)]
    image = torch.rand(1, 1, 96, 96, requires_grad=True)
    for weights in network.parameters():
        nn.init.constant_(weights, 1)
    network[1] = nn.AvgPool2d(2)  # through which every pixel counts
    network(image)[0, 0, 1, 1].backward()
    rows = image.grad[0, 0].abs().sum(1).nonzero().flatten()
    assert (int(rows[0]), int(rows[-1])) == (12, 12 + 29 - 1)


def test_questions_8_to_11():
    found = {layer.name: layer for layer in layers(ConvNet(), Shape(10, 3, 32, 32))}
    outputs = {
        "conv1": (32, 32, 32),
        "pool1": (32, 16, 16),
        "conv2": (64, 16, 16),
        "pool2": (64, 8, 8),
        "conv3": (64, 8, 8),
        "pool3": (64, 4, 4),
        "fc4": (1000,),
        "fc5": (10,),
    }
    assert {name: found[name].output for name in outputs} == outputs
    weights = {"conv1": 2_432, "conv2": 51_264, "conv3": 102_464, "fc4": 1_025_000, "fc5": 10_010}
    assert {layer.name: layer.weights for layer in found.values() if layer.weights} == weights
    assert sum(weights.values()) == 1_191_170
    assert found["conv2"].multiply_adds == 64 * 16 * 16 * 32 * 5 * 5
    assert found["fc4"].multiply_adds == 1000 * 1024


@pytest.mark.parametrize("fully_convolutional", [False, True])
def test_fully_connected_layers_see_what_their_convolutions_see(fully_convolutional):
    found = layers(ConvNet(fully_convolutional=fully_convolutional), Shape(10, 3, 32, 32))
    assert found[-1].receptive_field == 60
    assert sum(layer.multiply_adds for layer in found) == 23_152_400


def test_question_12():
    found = layers(BagOfWords(), Shape(10, 3, 32, 32))
    assert sum(layer.weights for layer in found) == 10 * (1000 + 1)
    assert [layer.multiply_adds for layer in found] == [14**2 * 1000 * 6 * 6 * 3, 0, 10 * 1000]  # 14 x 14 patches
    assert found[0].receptive_field == 32


def test_the_network_is_left_as_it_was():
    network = ConvNet(batch_norm=True)
    before = {name: values.clone() for name, values in network.state_dict().items()}
    layers(network, Shape(10, 3, 32, 32))
    assert network.training
    assert all(values.equal(before[name]) for name, values in network.state_dict().items())
    assert not network.conv1._forward_hooks


def test_the_command_prints_the_table_of_question_10(command):
    result = command("-m", "cnnlab", "anatomy", "data=shapes", "model.dropout=0.5", COLUMNS="200")
    assert result.returncode == 0, result.stderr
    for words in ("64 x 8 x 8", "102,464", "1,025,000", "1,191,170", "23,152,400"):
        assert words in result.stdout
    wrong = command("-m", "cnnlab", "anatomy", "model.dropout=1.5")
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert "dropout < 1" in wrong.stderr


def depends_on(network: nn.Module, layer: nn.Module, size: int) -> int:
    """The side of the square of pixels on which the middle of a layer's output really depends; weights are positive."""
    kept = []
    hook = layer.register_forward_hook(lambda *found: kept.append(found[2]))
    for values in network.parameters():
        nn.init.constant_(values, 0.01)
    image = torch.full((1, 3, size, size), 0.5, requires_grad=True)
    network.eval()(image)
    hook.remove()
    middle = kept[0].shape[2] // 2
    kept[0][0, :, middle, middle].sum().backward()
    rows = image.grad[0].abs().sum((0, 2)).nonzero().flatten()
    return int(rows[-1] - rows[0]) + 1


def test_receptive_fields_of_branches_are_those_of_the_gradient():
    network = ResNet(width=4)
    found = layers(network, Shape(10, 3, 512, 512))
    assert [layer.stride for layer in found if layer.name.endswith("conv2")] == [1, 1, 2, 2, 4, 4, 8, 8]
    by_name = {layer.name: layer for layer in found}
    assert by_name["stage2.0.shortcut.0"].receptive_field == by_name["stage1.1.relu"].receptive_field == 11
    for name in ("stage1.0.conv2", "stage2.0.conv2", "stage2.0.shortcut.0", "stage2.1.conv1", "stage4.1.conv2"):
        part = network.get_submodule(name)
        assert by_name[name].receptive_field == depends_on(network, part, 512), name
    assert by_name["fc"].weights == 10 * (4 * 8 + 1)


class Unusual(nn.Module):
    """Weights outside of layers, a layer used twice, dilation, average pooling, functions instead of layers."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.scale = nn.Parameter(torch.ones(100))
        self.twice = nn.Conv2d(8, 8, 3, padding=2, dilation=2)
        self.pool = nn.AvgPool2d(2)
        self.after = nn.Conv2d(16, 8, 3, stride=2)
        self.rolled = nn.Conv2d(8, 8, 1)
        self.head = nn.Linear(8, 10)

    def forward(self, images):
        images = self.pool(self.twice(F.relu(self.twice(self.stem(images)))))
        images = self.after(torch.cat((images, images * 2), 1))
        return self.head(images.mean((2, 3)) * self.scale[:8]) + self.rolled(images.roll(1, 2)).mean()


def test_unusual_networks():
    network = Unusual()
    found = layers(network, Shape(10, 3, 32, 32))
    assert [(layer.name, layer.receptive_field, layer.stride) for layer in found] == [
        *(("stem", 3, 1), ("twice", 7, 1), ("twice", 11, 1), ("pool", 12, 2), ("after", 16, 4)),
        *(("head", 16 + 6 * 4, 28), ("rolled", None, None)),
    ]
    for layer in (network.pool, network.after):
        assert depends_on(network, layer, 64) == {network.pool: 12, network.after: 16}[layer]
    assert [layer.weights for layer in found][1:3] == [8 * 8 * 9 + 8, 0]


def test_layers_that_return_several_tensors_or_are_called_by_name():
    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.rows, self.last = nn.GRU(96, 16, batch_first=True), nn.Linear(16, 10)

        def forward(self, images):
            outputs, _ = self.rows(images.transpose(1, 2).flatten(2))
            return self.last(input=outputs[:, -1])

    rows, last = layers(Recurrent(), Shape(10, channels=3, height=32, width=32))
    assert (rows.output, last.output, last.multiply_adds) == ((32, 16), (10,), 160)


def test_the_total_counts_every_weight_once(verb, tmp_path, monkeypatch):
    (tmp_path / "conf" / "model").mkdir(parents=True)
    (tmp_path / "conf" / "model" / "unusual.yaml").write_text("# Unusual.\n_target_: test_anatomy.Unusual\n")
    monkeypatch.setenv("CNNLAB_CONF", str(tmp_path / "conf"))
    result = verb("anatomy", "model=unusual", "data=shapes")
    assert result.returncode == 0, result.stderr
    total = sum(values.numel() for values in Unusual().parameters())
    [line] = [line.split() for line in result.stdout.splitlines() if line.split()[:1] == ["all"]]
    assert line[1] == f"{total:,}"
    assert "elsewhere  " in result.stdout
    assert "rolled" in result.stdout
