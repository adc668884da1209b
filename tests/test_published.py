"""Published data sets: small archives in the official formats arrive pixel by pixel, from a local https server.

What the downloader bears is tested with CIFAR-10, in test_fetch.py; all of them share it.
"""

import gzip
import hashlib
import io
import re
import struct
import tarfile
from pathlib import Path

import numpy as np
import pytest
import scipy.io
from test_config import composed
from test_fetch import Part, Server, authority, python2, server, small  # noqa: F401

from cnnlab.config.objects import instantiate
from cnnlab.config.options import UserError
from cnnlab.data.published import Published

DIGITS = tuple("0123456789")
CLOTHES = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
BIRDS = ("airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck")
FINE = tuple(f"fine {number}" for number in range(100))
SIZES = {
    "cifar100": (32, 32, 3),
    "mnist": (28, 28, 1),
    "fashion_mnist": (28, 28, 1),
    "svhn": (32, 32, 3),
    "stl10": (96, 96, 3),
}
CLASSES = {"cifar100": FINE, "mnist": DIGITS, "fashion_mnist": CLOTHES, "svhn": DIGITS, "stl10": BIRDS}


def parts(option: str) -> tuple[Part, Part]:
    """Training and test images."""
    generator = np.random.default_rng(0)
    return tuple(
        Part(
            generator.integers(256, size=(num, *SIZES[option]), dtype=np.uint8),
            np.arange(num) * 7 % len(CLASSES[option]),
        )
        for num in (30, 20)
    )


def packed(folder: str, files: dict[str, bytes]) -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:gz", compresslevel=1) as tar:
        for name, inside in files.items():
            member = tarfile.TarInfo(f"{folder}/{name}")
            member.size = len(inside)
            tar.addfile(member, io.BytesIO(inside))
    return content.getvalue()


def cifar100(train: Part, test: Part) -> dict[str, bytes]:
    def of(part: Part) -> bytes:
        rows = np.ascontiguousarray(part.pixels.transpose(0, 3, 1, 2)).reshape(-1, 3072)
        labels = part.labels.tolist()
        return python2({b"coarse_labels": [label // 5 for label in labels], b"fine_labels": labels, b"data": rows})

    meta = python2({b"coarse_label_names": [b"coarse"] * 20, b"fine_label_names": [name.encode() for name in FINE]})
    files = {"file.txt~": b"", "meta": meta, "test": of(test), "train": of(train)}
    return {"cifar-100-python.tar.gz": packed("cifar-100-python", files)}


def mnist(train: Part, test: Part) -> dict[str, bytes]:
    files = {}
    for name, part in (("train", train), ("t10k", test)):
        num = len(part.labels)
        files[f"{name}-images-idx3-ubyte.gz"] = struct.pack(">4B3I", 0, 0, 8, 3, num, 28, 28) + part.pixels.tobytes()
        files[f"{name}-labels-idx1-ubyte.gz"] = struct.pack(">4BI", 0, 0, 8, 1, num) + bytes(part.labels.tolist())
    return {name: gzip.compress(content) for name, content in files.items()}


def svhn(train: Part, test: Part) -> dict[str, bytes]:
    files = {}
    for name, part in (("train", train), ("test", test)):
        content = io.BytesIO()
        labels = np.where(part.labels == 0, 10, part.labels).astype(np.uint8)[:, None]
        scipy.io.savemat(content, {"X": part.pixels.transpose(1, 2, 3, 0), "y": labels}, do_compression=True)
        files[f"{name}_32x32.mat"] = content.getvalue()
    return files


def stl10(train: Part, test: Part) -> dict[str, bytes]:
    files = {}
    for name, part in (("test", test), ("train", train)):
        files[f"{name}_X.bin"] = part.pixels.transpose(0, 3, 2, 1).tobytes()  # column by column
        files[f"{name}_y.bin"] = bytes((part.labels + 1).tolist())
    files |= {
        "unlabeled_X.bin": bytes(1000),
        "class_names.txt": "\n".join(BIRDS).encode() + b"\n",
        "fold_indices.txt": b"0",
    }
    return {"stl10_binary.tar.gz": packed("stl10_binary", files)}


PACK = {"cifar100": cifar100, "mnist": mnist, "fashion_mnist": mnist, "svhn": svhn, "stl10": stl10}


def source(option: str, server: Server, files: dict[str, bytes], *mirrors: str) -> Published:  # noqa: F811
    """What the option's file makes, with our addresses and hashes."""
    server.files = files
    hashes = [hashlib.sha256(content).hexdigest() for content in files.values()]
    tail = "" if len(files) > 1 else next(iter(files))
    addresses = [server.url(f"/{mirror}/{tail}") for mirror in mirrors or ("mirror",)]
    typed = [f"data.sources=[{','.join(addresses)}]", f"data.sha256=[{','.join(hashes)}]"]
    return instantiate(composed(f"data={option}", *typed).data)


@pytest.mark.parametrize("option", PACK)
def test_the_official_format_arrives_pixel_by_pixel(option, server):  # noqa: F811
    wanted = parts(option)
    made = source(option, server, PACK[option](*wanted))
    data = made.load()
    for images, part in zip((data.train, data.test), wanted, strict=True):
        assert np.array_equal(images.pixels.transpose(0, 2, 3, 1), part.pixels)
        assert images.targets.tolist() == part.labels.tolist()
        assert images.classes == CLASSES[option]
        assert images.problem() == ""
    assert data.shape == made.shape
    asked = len(server.requests)
    assert asked == len(made.files)
    assert made.load().fingerprint == data.fingerprint
    assert len(server.requests) == asked


@pytest.mark.parametrize("option", PACK)
def test_files_that_are_something_else_are_refused_also_with_the_hash_that_was_typed(option, server):  # noqa: F811
    files = PACK[option](*parts(option))
    for content in (b"hello", packed("cifar-100-python", {"meta": b"hello"}), gzip.compress(b"hello " * 9)):
        made = source(option, server, dict.fromkeys(files, content))
        with pytest.raises(UserError, match=r"is not [\w-]+ in the official format \(.*Delete it") as refused:
            made.load()
        assert "\n" not in str(refused.value)
        for name in files:
            (made.folder / name).unlink()


@pytest.mark.parametrize("option", ["cifar10", *PACK])
def test_without_a_network_one_paragraph_says_what_to_do(option, server, monkeypatch):  # noqa: F811
    monkeypatch.setattr("cnnlab.data.download.time.sleep", lambda seconds: None)
    made = instantiate(composed(f"data={option}").data)
    nowhere = "https://localhost:1/"
    made.sources = [nowhere + (made.files[0] if len(made.files) == 1 else "")]
    with pytest.raises(UserError) as refused:
        made.load()
    said = str(refused.value)
    assert said.startswith(f"{made.title} is not in {Path('cache').absolute() / option} and could not be fetched")
    ways = (
        "Connection refused",
        f"'cnnlab fetch data={option}'",
        *made.files,
        "data=image_folder",
        "data=shapes",
    )
    assert [way for way in ways if way not in said] == []
    assert "\n" not in said


def test_each_file_comes_from_the_first_mirror_that_has_it_and_one_put_there_by_hand_is_used(server, monkeypatch):  # noqa: F811
    monkeypatch.setattr("cnnlab.data.download.time.sleep", lambda seconds: None)
    files = mnist(*parts("mnist"))
    images, labels, *others = files
    server.faults = {f"/a/{images}": ["missing"], f"/a/{labels}": ["wrong_byte"]}
    made = source("mnist", server, files, "a", "b")
    made.folder.mkdir(parents=True)
    (made.folder / others[0]).write_bytes(files[others[0]])
    assert len(made.load().train.targets) == 30
    asked = [f"/a/{images}", f"/b/{images}", f"/a/{labels}", f"/b/{labels}", f"/a/{others[1]}"]
    assert [path for path, _ in server.requests] == asked
    (made.folder / labels).write_bytes(b"by hand")
    with pytest.raises(UserError, match=rf"{labels} has the SHA-256 .*, expected .*Delete it to fetch it again\.$"):
        made.fetch()


WRONG = {
    "three hashes": (
        {"sha256": ["0" * 64] * 3},
        "data.sha256 has 3 values, and needs one for each of train-im",
    ),
    "an MD5": ({"sha256": ["0" * 64] * 3 + ["0" * 32]}, f"data.sha256={'0' * 32} is not a SHA-256"),
    "a file as source": ({"sources": ["https://a/b.gz"]}, "https://a/b.gz, but must be a folder with train-images"),
    "http": ({"sources": ["http://a/"]}, "only https://"),
}


@pytest.mark.parametrize(("given", "said"), WRONG.values(), ids=WRONG)
def test_wrong_arguments_are_refused(given, said):
    from cnnlab.data.mnist import MNIST

    with pytest.raises(ValueError, match=re.escape(said)):
        MNIST(**({"sources": ["https://a/"], "sha256": ["0" * 64] * 4, "cache_dir": "cache"} | given))


def test_names_of_files_and_classes_are_those_of_torchvision():
    """Its own declarations, an independent source."""
    from torchvision import datasets

    from cnnlab.data import cifar, mnist, stl10, svhn

    for ours, theirs in ((mnist.MNIST, datasets.MNIST), (mnist.FashionMNIST, datasets.FashionMNIST)):
        assert list(ours.files) == [name for name, _ in theirs.resources]
    assert list(mnist.FashionMNIST.classes) == datasets.FashionMNIST.classes
    assert list(svhn.SVHN.files) == [datasets.SVHN.split_list[part][1] for part in ("train", "test")]
    assert cifar.CIFAR100.files == (datasets.CIFAR100.filename,)
    assert stl10.STL10.files == (datasets.STL10.filename,)
