"""Any class of torchvision.datasets: its images and labels arrive, and nothing in its files is run."""

import os
import pickle
import struct
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import EpsImagePlugin, Image
from torchvision import datasets

from cnnlab.config.options import UserError
from cnnlab.console import announce_once
from cnnlab.data.guard import only_data
from cnnlab.data.torchvision_class import TorchvisionClass, class_names


def source(dataset: str, **given) -> TorchvisionClass:
    made = TorchvisionClass(dataset, os.environ["CNNLAB_CACHE"], **given)
    made.check()
    return made


FAKE = {
    "arguments": {"image_size": [3, 9, 8], "num_classes": 3},
    "train": {"size": 20},
    "test": {"size": 6, "random_offset": 9},
}


def test_images_and_labels_of_a_class_without_files():
    data = source("FakeData", **FAKE, image_size=[9, 8]).load()
    for images, size, offset in ((data.train, 20, 0), (data.test, 6, 9)):
        expected = datasets.FakeData(size, (3, 9, 8), 3, random_offset=offset)
        assert np.array_equal(images.pixels.transpose(0, 2, 3, 1), [np.asarray(image) for image, _ in expected])
        assert images.targets.tolist() == [int(label) for _, label in expected]
        assert images.classes == ("0", "1", "2")


def test_listing_many_files_takes_long_and_is_announced_once(monkeypatch, capsys):
    monkeypatch.setattr("cnnlab.console.os.isatty", lambda descriptor: True)
    announce_once.cache_clear()
    for _ in range(2):
        source("FakeData", **FAKE).digest()
    assert capsys.readouterr().err.count("Listing the files of TorchvisionClass ...\n") == 1


def write_kmnist(root: Path) -> dict[str, np.ndarray]:
    """As torchvision keeps it: uncompressed."""
    folder = root / "KMNIST" / "raw"
    folder.mkdir(parents=True)
    written = {}
    for part, num in (("train", 30), ("t10k", 10)):
        pixels = np.random.default_rng(num).integers(256, size=(num, 28, 28), dtype=np.uint8)
        (folder / f"{part}-images-idx3-ubyte").write_bytes(
            struct.pack(">HBBIII", 0, 8, 3, *pixels.shape) + pixels.tobytes()
        )
        labels = np.arange(num, dtype=np.uint8) % 10
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">HBBI", 0, 8, 1, num) + labels.tobytes())
        written[part] = pixels
    return written


def test_files_of_a_class_with_train_and_names():
    written = write_kmnist(Path("root"))
    kmnist = source("KMNIST", root="root", image_size=28, channels=1)
    data = kmnist.load()
    assert np.array_equal(data.train.pixels[:, 0], written["train"])
    assert np.array_equal(data.test.pixels[:, 0], written["t10k"])
    assert data.train.classes == ("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo")
    os.rename("root", "moved")
    assert source("KMNIST", root="moved", image_size=28, channels=1).identity() == kmnist.identity()
    assert source("KMNIST", root="moved", image_size=14, channels=1).identity() != kmnist.identity()
    Path("moved/KMNIST/raw/t10k-labels-idx1-ubyte").write_bytes(b"other")
    assert source("KMNIST", root="moved", image_size=28, channels=1).identity() != kmnist.identity()


WRONG = {
    "mistyped": ("Flowers120", {}, r"Flowers120 is no class of torchvision.datasets. Did you mean Flowers102\?"),
    "no folder": ("KMNIST", {"root": "nowhere"}, r"nowhere is no folder. Fetch .*import KMNIST; .*download=True"),
    "no root": ("KMNIST", {}, "data.root must be given for torchvision's KMNIST"),
    "not there": ("KMNIST", {"root": "."}, r"KMNIST cannot be made with .*Dataset not found.*Fetch the data set first"),
    "no test images": ("FakeData", {}, "takes neither train nor split, .*Give data.train and data.test"),
    "argument": ("FakeData", {**FAKE, "train": {"sise": 3}}, "FakeData cannot be made with .*sise"),
    "split": ("Country211", {"root": ".", "test": {"split": "tst"}}, "cannot be made with"),
}


@pytest.mark.parametrize(("dataset", "given", "said"), WRONG.values(), ids=WRONG)
def test_what_is_wrong_is_one_paragraph(dataset, given, said):
    with pytest.raises(UserError, match=said) as refused:
        source(dataset, **given).load()
    assert "\n" not in str(refused.value)


def test_targets_that_are_no_classes_are_refused(monkeypatch):
    monkeypatch.setattr(datasets.FakeData, "__getitem__", lambda self, place: (Image.new("RGB", (4, 4)), {"box": 1}))
    with pytest.raises(UserError, match=r"item 0 is not an image with the number of its class .*docs/own_project.md"):
        source("FakeData", **FAKE).load()


@pytest.mark.parametrize("key", ["download", "root", "loader"])
def test_arguments_that_are_ours_are_refused(key):
    with pytest.raises(ValueError, match=f"{key} cannot be given"):
        source("KMNIST", root=".", arguments={key: True})


def test_the_names_are_those_of_torchvision():
    assert set(class_names()) == set(datasets.__all__)


# ------------------------------------------------------------------------------------------------------ hostile files


class Payload:
    def __reduce__(self):
        return os.mkdir, ("executed",)


def test_a_pickle_that_a_class_reads_calls_nothing(monkeypatch):
    """Also if its SHA is right, or not looked at: as here."""
    folder = Path("root/cifar-10-batches-py")
    folder.mkdir(parents=True)
    for name in ("batches.meta", "test_batch", *(f"data_batch_{number}" for number in range(1, 6))):
        (folder / name).write_bytes(
            pickle.dumps({"data": np.zeros((1, 3072), np.uint8), "labels": [0], "label_names": ["a"]})
        )
    monkeypatch.setattr(datasets.CIFAR10, "_check_integrity", lambda self: True)
    monkeypatch.setattr(datasets.cifar, "check_integrity", lambda *_: True)
    assert len(source("CIFAR10", root="root").load().train.targets) == 5, "arrays are read"
    (folder / "data_batch_3").write_bytes(pickle.dumps(Payload()))
    with pytest.raises(UserError, match=r"CIFAR10 would call posix.mkdir for a pickle.*data=arrays"):
        source("CIFAR10", root="root").load()
    assert not Path("executed").exists()
    datasets.CIFAR10.__init__.__globals__["pickle"].loads(pickle.dumps(Payload()))
    assert Path("executed").exists(), "only within the block"


def test_an_image_for_which_a_program_would_be_started_starts_none(monkeypatch, tmp_path):
    """PostScript in a file called .jpg, which Pillow hands to Ghostscript."""
    for part in ("train", "test"):
        folder = tmp_path / "root" / "country211" / part / "somewhere"
        folder.mkdir(parents=True)
        Image.new("RGB", (4, 4)).save(folder / "0.eps")
        (folder / "0.eps").rename(folder / "0.jpg")
    program = tmp_path / "gs"
    program.write_text(f"#!/bin/sh\ntouch {tmp_path}/executed\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)
    with pytest.raises(UserError, match="would start a program"):
        source("Country211", root=str(tmp_path / "root")).load()
    assert not Path("executed").exists()
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)
    with pytest.raises(subprocess.CalledProcessError, match="gs"):
        datasets.Country211(tmp_path / "root", "train")[0]
    assert Path("executed").exists(), "Pillow would have"


def test_what_is_allowed_otherwise_is_refused_within_the_block_alone():
    with pytest.raises(UserError, match=r"a test would call builtins.eval"), only_data("a test"):
        pickle.loads(b"cbuiltins\neval\n.")
    assert pickle.loads(b"cbuiltins\neval\n.") is eval
