"""Weights to begin with: of files as others write them, and of runs; what does not fit is told."""

import logging
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import save_file
from torch import nn

from cnnlab.config.options import UserError
from cnnlab.networks import BagOfWords, ConvNet
from cnnlab.speednet import SpeedNet
from cnnlab.train.run import fit_network
from cnnlab.train.weights import load_weights


def small(num_classes: int = 10, **more) -> ConvNet:
    return ConvNet(num_classes, image_size=8, channels=(4, 4), hidden=8, **more)


def saved(content: dict, name: str = "weights.pt") -> Path:
    path = Path(name)
    save_file(content, path) if path.suffix == ".safetensors" else torch.save(content, path)
    return path


def other() -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    return small().state_dict()


@pytest.mark.parametrize(
    ("form", "name"),
    [
        (lambda weights: weights, "plain.pth"),
        (lambda weights: weights, "plain.safetensors"),
        (lambda weights: {"state_dict": weights, "epoch": 3}, "holder.pt"),
        (lambda weights: {"model": {f"module.{name}": values for name, values in weights.items()}}, "ddp.pt"),
        (
            lambda weights: {
                "state_dict": {f"network.{name}": values for name, values in weights.items()}
                | {"teacher.weight": torch.ones(3)}
            },
            "lightning.ckpt",
        ),
        (
            lambda weights: {
                "state_dict": {f"model.backbone.{name}": values for name, values in weights.items()}
                | {"model.head.weight": torch.ones(3)}
            },
            "foreign.ckpt",
        ),
    ],
    ids=["state_dict", "safetensors", "holder", "DistributedDataParallel", "LightningModule", "another attribute"],
)
def test_all_weights_of_a_file(form, name):
    network = small()
    load_weights(network, saved(form(other()), name))
    assert all(values.equal(other()[key]) for key, values in network.state_dict().items())


def test_of_another_number_of_classes_all_but_the_last_layer(caplog):
    network, path = small(num_classes=3), saved(other())
    before = network.fc5.weight.clone()
    with caplog.at_level(logging.INFO, "cnnlab"):
        load_weights(network, path)
    assert network.conv1.weight.equal(other()["conv1.weight"])
    assert network.fc5.weight.equal(before)
    assert "6 of 8 tensors loaded from weights.pt; new: fc5.weight, fc5.bias" in caplog.text


def fitted(network: nn.Module, path: Path | None = None) -> dict[str, torch.Tensor]:
    """The tensors of a network that may have begun with weights, once it has seen some images."""
    images = torch.randn(20, 3, 8, 8)
    data = SimpleNamespace(train_index=torch.arange(20), evaluation_images=lambda part, index: images[index])
    loaded = load_weights(network, path) if path else frozenset()
    config = OmegaConf.create({"model": {"_target_": type(network).__name__}})
    fit_network(config, SimpleNamespace(network=network, data=data, loaded=loaded))
    return network.state_dict()


def test_a_network_is_fitted_if_the_weights_lack_what_that_sets():
    bag, speed = partial(BagOfWords, 10, 3, patch_size=3), partial(SpeedNet, widths=(4,))
    words, filters = fitted(bag(num_words=5)), fitted(speed())
    assert fitted(bag(num_words=5), saved(words))["words.words"].equal(words["words.words"])
    found = fitted(bag(num_words=6), saved(words))
    assert found["words.words"].any(1).all()
    assert not found["words.whitening"].equal(words["words.whitening"])  # words are whitened patches
    assert found["svm.bias"].equal(words["svm.bias"])
    assert fitted(speed(num_classes=3), saved(filters))["whitening.weight"].equal(filters["whitening.weight"])
    found = fitted(speed(patch_size=3), saved(filters))["whitening.weight"]
    assert found[:27].equal(-found[27:])


def test_a_network_of_the_other_form_takes_all_of_them():
    network = small(fully_convolutional=True)
    load_weights(network, saved(other()))
    assert network.fc4.weight.flatten(1).equal(other()["fc4.weight"])


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (
            nn.Linear(2, 2).state_dict(),
            "fits ConvNet: it has weight, bias, and the network has conv1",
        ),
        ({"epoch": 3}, "contains no named tensors"),
        ([1, 2], "contains no named tensors"),
        (None, "cannot be read .it is not one of torch.s.*Use a file that torch.save wrote"),
    ],
    ids=["another network", "no tensors", "no dictionary", "no file of torch"],
)
def test_what_fits_nothing_is_refused(content, said):
    path = saved(content)
    if content is None:
        path.write_bytes(b"not a file of torch")
    with pytest.raises(UserError, match=said):
        load_weights(small(), path)


def test_a_run_with_a_damaged_checkpoint_is_refused(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "best.ckpt").write_bytes(b"x")
    with pytest.raises(UserError, match="cannot be read"):
        load_weights(small(), tmp_path)


@pytest.mark.parametrize("length", [5, 40, 400])
def test_a_damaged_safetensors_file_is_refused(length):
    path = saved(other(), "weights.safetensors")
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(UserError, match="cannot be read"):
        load_weights(small(), path)
