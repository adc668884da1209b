"""Hugging Face data sets on disk: what pyarrow wrote into tables is what is trained on."""

import io
import json
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet

from cnnlab.config.options import UserError
from cnnlab.data.huggingface import HuggingFace

GENERATOR = np.random.default_rng(0)
NUM = {"train": 300, "test": 6}  # more than a group of rows
PIXELS = {part: GENERATOR.integers(256, size=(num, 8, 9, 3), dtype=np.uint8) for part, num in NUM.items()}
LABELS = {part: [place % 2 for place in range(num)] for part, num in NUM.items()}
NAMES = {"info": {"features": {"label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}}}


def encoded(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png")
    return file.getvalue()


def table(part: str, labels: list | None = None, metadata: dict | None = None, embedded: bool = True) -> pa.Table:
    """As `datasets` writes it: an image is its bytes and its path."""
    rows = [{"bytes": encoded(image) if embedded else None, "path": f"{n}.png"} for n, image in enumerate(PIXELS[part])]
    made = pa.table({"image": rows, "label": LABELS[part] if labels is None else labels})
    return made.replace_schema_metadata({"huggingface": json.dumps(metadata)} if metadata else None)


def write_arrow(content: pa.Table, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, content.schema) as stream:
        stream.write_table(content, max_chunksize=100)


def write(root: Path, layout: str = "hub", **given) -> None:
    """The layout of a download, of save_to_disk, or of the cache of `datasets`; training images in two files."""
    for part in NUM:
        content = table(part, **given)
        half = len(content) // 2
        for number, piece in enumerate((content.slice(0, half), content.slice(half))):
            if layout == "hub":
                path = root / "data" / f"{part}-0000{number}-of-00002.parquet"
                path.parent.mkdir(parents=True, exist_ok=True)
                parquet.write_table(piece, path)
            elif layout == "saved":
                write_arrow(piece, root / part / f"data-0000{number}-of-00002.arrow")
            else:
                write_arrow(piece, root / "default" / "0.0.0" / "1a2b" / f"pets-{part}-0000{number}-of-00002.arrow")


def source(root: Path = Path("root"), **given) -> HuggingFace:
    return HuggingFace(str(root), os.environ["CNNLAB_CACHE"], **({"image_size": [8, 9]} | given))


@pytest.mark.parametrize("layout", ["hub", "saved", "cache"])
def test_every_layout_gives_the_images_that_were_put_in(layout):
    write(Path("root"), layout, metadata=NAMES)
    data = source()
    data.check()
    loaded = data.load()
    for part, images in (("train", loaded.train), ("test", loaded.test)):
        assert np.array_equal(images.pixels.transpose(0, 2, 3, 1), PIXELS[part])
        assert images.targets.tolist() == LABELS[part]
        assert images.classes == ("cat", "dog")
    assert (data.num_train, data.shape) == (NUM["train"], loaded.shape)


def test_the_name_of_a_file_counts_before_those_of_its_folders():
    write(Path("root/train_test_split"))
    data = source().load()
    assert (len(data.train.targets), len(data.test.targets)) == (NUM["train"], NUM["test"])


def test_text_as_labels_another_split_and_other_columns():
    write(Path("root"), labels=None)
    for part in NUM:
        content = table(part).set_column(1, "kind", [[f"kind {label}" for label in LABELS[part]]])
        content = content.set_column(0, "img", pa.array([encoded(image) for image in PIXELS[part]]))
        parquet.write_table(content, Path("root") / f"{part}.parquet")
    os.rename("root/test.parquet", "root/validation.parquet")
    for file in Path("root/data").iterdir():
        file.unlink()
    data = source(test="validation", image="img", label="kind", channels=1, image_size=4)
    assert data.load().train.classes == ("kind 0", "kind 1")
    assert data.shape == data.load().shape


def test_where_it_lies_is_no_part_of_a_run_and_what_it_holds_is():
    write(Path("root"))
    digest = source().identity()
    os.rename("root", "moved")
    assert source(Path("moved")).identity() == digest
    assert source(Path("moved"), channels=1).identity() != digest
    parquet.write_table(table("test", labels=[1] * 6), "moved/data/test-00000-of-00002.parquet")
    assert source(Path("moved")).identity() != digest


def damaged(kind: str) -> None:
    for part in NUM:
        Path(f"root/{part}.{kind}").write_bytes(b"hello")


WRONG = {
    "no folder": (lambda: None, {}, "has no .parquet or .arrow file of the split train: it has no such file"),
    "no split": (
        lambda: write(Path("root")),
        {"test": "val"},
        "of the split val: it has data/test-00000.*data.test=SPLIT",
    ),
    "no column": (
        lambda: write(Path("root")),
        {"label": "kind"},
        "has no column kind, but image, label. Use data.label=",
    ),
    "no image column": (
        lambda: write(Path("root")),
        {"image": "img"},
        "has no column img, but image, label. Use data.im",
    ),
    "image as label": (lambda: write(Path("root")), {"label": "image"}, "a label is a whole number or text"),
    "label as image": (lambda: write(Path("root")), {"image": "label"}, "row 0 of the split has no encoded image"),
    "paths only": (lambda: write(Path("root"), embedded=False), {}, "row 0 of the split has no encoded image"),
    "numbers here and text there": (
        lambda: [
            write(Path("root")),
            parquet.write_table(table("test", labels=["a"] * 6), "root/data/test-00000-of-00002.parquet"),
        ],
        {},
        "has numbers in some files and text in others",
    ),
    "no parquet": (lambda: damaged("parquet"), {}, "cannot be read .*Arrow"),
    "no arrow": (lambda: damaged("arrow"), {}, "cannot be read"),
    "one split for both": (lambda: write(Path("root")), {"test": "train"}, "would be both training and test images"),
    "both words in one name": (
        lambda: parquet.write_table(table("test"), "root/train_test.parquet"),
        {},
        "train_test.parquet would be both training and test images",
    ),
}


@pytest.mark.parametrize(("make", "given", "said"), WRONG.values(), ids=WRONG)
def test_what_is_wrong_is_one_paragraph(make, given, said):
    Path("root").mkdir()
    make()
    data = source(**given)
    with pytest.raises(UserError, match=said) as refused:
        [data.check(), data.load()]
    assert "\n" not in str(refused.value)


def test_test_images_without_labels_and_images_that_are_none():
    write(Path("root"), metadata=NAMES)
    path = "root/data/test-00000-of-00002.parquet"
    parquet.write_table(table("test", labels=[-1] * 6), path)
    with pytest.raises(
        UserError, match=r"of the split test has -1, which is none of the 2 classes.*data.test=validation"
    ):
        source().check()
    write(Path("root"))
    content = table("test").to_pydict()
    content["image"][1]["bytes"] = content["image"][1]["bytes"][:40]
    parquet.write_table(pa.table(content), path)
    with pytest.raises(UserError, match=r"row 1 of the split cannot be read as an image .*data.unreadable=skip"):
        source().load()
    assert source(unreadable="skip").load().test.targets.tolist() == [0, 0, 1, 0, 1, 1, 0, 1]


def test_files_that_number_the_classes_differently_are_refused():
    """As after class_encode_column of each split, if one of them lacks a class."""
    write(Path("root"), metadata=NAMES)
    other = {"info": {"features": {"label": {"names": ["ant", "cat", "dog"], "_type": "ClassLabel"}}}}
    parquet.write_table(table("test", metadata=other), "root/data/test-00001-of-00002.parquet")
    with pytest.raises(
        UserError, match=r"test-00001-of-00002.parquet: the classes of label are ant, cat, dog, but in "
    ):
        source().check()
