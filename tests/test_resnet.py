"""ResNet-18 for small images is torchvision's, but for its first layers."""

import torch
import torchvision
from torch import nn

from cnnlab.resnet import ResNet


def test_equals_torchvision_with_a_small_first_convolution_and_no_pooling():
    torch.manual_seed(0)
    theirs = torchvision.models.resnet18(num_classes=7)
    theirs.conv1, theirs.maxpool = nn.Conv2d(4, 64, 3, padding=1, bias=False), nn.Identity()
    ours = ResNet(num_classes=7, in_channels=4)

    def in_order(network: nn.Module) -> list[tuple[str, torch.Tensor]]:
        """In a block, ours has the shortcut last, and so has torchvision."""
        return list(network.state_dict().items())

    shapes = [[values.shape for _, values in in_order(network)] for network in (ours, theirs)]
    assert shapes[0] == shapes[1]
    ours.load_state_dict({name: values for (name, _), (_, values) in zip(*map(in_order, (ours, theirs)), strict=True)})
    images = torch.randn(3, 4, 24, 20)
    for network in (ours, theirs):
        network.train()
    torch.testing.assert_close(ours(images), theirs(images), rtol=1e-4, atol=1e-5)


def test_weights_of_the_usual_one_and_of_a_smaller_one():
    assert sum(weights.numel() for weights in ResNet().parameters()) == 11_173_962
    small = ResNet(blocks=[1, 1], width=8)
    assert small(torch.zeros(2, 3, 9, 9)).shape == (2, 10)
    assert [name for name, _ in small.named_children()][3:5] == ["stage1", "stage2"]
