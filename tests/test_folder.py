"""A folder of pictures becomes the arrays that PIL decodes, once per content."""

import multiprocessing
import os
import re
import resource
import shutil
import subprocess
import sys
import threading
from multiprocessing.connection import Connection
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from test_config import composed
from test_decode import png

from cnnlab.config import identity, objects, values
from cnnlab.config.options import UserError
from cnnlab.data import decoded
from cnnlab.data import folder as module
from cnnlab.data.folder import ImageFolder, read_table
from cnnlab.data.pipeline import ImageData
from cnnlab.normalize import Standard
from cnnlab.use.opened import USED, OpenedRun, with_other_data


def write_pictures(root: Path, classes=("cat", "dog"), num=3, size=(32, 32)) -> None:
    generator = np.random.default_rng(0)
    for part in ("train", "test"):
        for name in classes:
            (root / part / name).mkdir(parents=True)
            for number in range(num):
                pixels = generator.integers(256, size=(size[1], size[0], 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / part / name / f"{number}.png")


def source(root: Path, **arguments) -> ImageFolder:
    return ImageFolder(str(root), cache_dir=os.environ["CNNLAB_CACHE"], **arguments)


def test_pixels_labels_and_classes(tmp_path):
    write_pictures(tmp_path / "root")
    data = source(tmp_path / "root").load()
    assert data.train.classes == ("cat", "dog")
    assert data.train.targets.tolist() == [0, 0, 0, 1, 1, 1]
    files = sorted((tmp_path / "root" / "train").glob("*/*"))
    expected = np.stack([np.asarray(Image.open(file)) for file in files]).transpose(0, 3, 1, 2)
    assert np.array_equal(data.train.pixels, expected)
    assert data.train.pixels.dtype == np.uint8
    assert source(tmp_path / "root").num_train == 6


def test_other_sizes_and_modes_are_resized_and_become_rgb(tmp_path):
    write_pictures(tmp_path / "root", size=(40, 30))
    Image.new("L", (64, 64), 77).save(tmp_path / "root" / "train" / "cat" / "gray.png")
    Image.new("P", (16, 16)).save(tmp_path / "root" / "train" / "cat" / "palette.png")
    Image.new("RGBA", (16, 16), (10, 20, 30, 255)).save(tmp_path / "root" / "train" / "cat" / "rgba.png")
    Image.new("RGB", (50, 50), (9, 9, 9)).save(tmp_path / "root" / "train" / "cat" / "upper.JPG", "jpeg")
    pixels = source(tmp_path / "root", image_size=24).load().train.pixels
    assert pixels.shape == (10, 3, 24, 24)
    assert (pixels[3] == 77).all()
    assert (pixels[5] == np.array([10, 20, 30])[:, None, None]).all()


def test_decoded_once_until_the_content_changes(tmp_path, monkeypatch):
    root = tmp_path / "root"
    write_pictures(root)
    first = source(root).load()
    with monkeypatch.context() as patch:
        patch.setattr(module.ImageFolder, "_read", None)  # decoding again would fail
        assert source(root).load().fingerprint == first.fingerprint
    digest = source(root).digest()
    os.utime(root / "train" / "cat" / "0.png")
    assert source(root).digest() == digest, "the same content, touched"
    Image.new("RGB", (32, 32)).save(root / "train" / "cat" / "0.png")
    assert source(root).digest() != digest
    assert source(root, image_size=16).digest() != source(root).digest()


def test_images_of_every_format_and_in_sub_folders_are_read_and_others_are_told(tmp_path, capsys):
    root = tmp_path / "root"
    write_pictures(root)
    (root / "train" / "cat" / "more" / "deeper").mkdir(parents=True)
    (root / "train" / "cat" / "0.png").rename(root / "train" / "cat" / "more" / "deeper" / "0.png")
    with Image.open(root / "train" / "dog" / "1.png") as image:
        image.save(root / "train" / "dog" / "1.webp", lossless=True)
    (root / "train" / "dog" / "1.png").unlink()
    for hidden in (".trash", "cat/.thumbs"):
        (root / "train" / hidden).mkdir()
        Image.new("RGB", (4, 4)).save(root / "train" / hidden / "0.png")
    for other in ("train/cat/notes.txt", "test/dog/0.heic", "train/0.png"):
        (root / other).touch()
    folder = source(root)
    folder.check()
    folder.check()
    assert folder.load().train.targets.tolist() == [0, 0, 0, 1, 1, 1]
    assert capsys.readouterr().err == (
        f"{root}: 3 files are not images (.txt 1, outside the folders of the classes 1, .heic 1) and were left out.\n"
    )


def test_what_decoding_loses_is_told(tmp_path, capsys):
    root = tmp_path / "root"
    write_pictures(root)
    frames = [Image.new("RGB", (4, 4), color) for color in ("red", "blue")]
    frames[0].save(root / "train" / "cat" / "moving.gif", save_all=True, append_images=frames[1:])
    source(root).load()
    assert f"{root}/train: 1 images with several frames, of which only the first is used." in capsys.readouterr().out


def test_a_class_that_cannot_be_listed_is_said_to_be_unreadable(tmp_path):
    root = tmp_path / "root"
    write_pictures(root)
    (root / "train" / "cat" / "a").mkdir()
    long = "x" * 250
    folder = os.open(root / "train" / "cat" / "a", os.O_RDONLY)
    for _ in range(20):  # a path of more than 4,096 bytes can be made, and not listed by its name
        os.mkdir(long, dir_fd=folder)
        folder = os.open(long, os.O_RDONLY, dir_fd=folder)
    with pytest.raises(UserError, match=r"cannot be read \(File name too long\)"):
        source(root).check()


def test_background(tmp_path):
    root = tmp_path / "root"
    write_pictures(root)
    Image.new("LA", (32, 32), (0, 0)).save(root / "train" / "cat" / "0.png")
    assert (source(root).load().train.pixels[0] == 0).all()
    assert (source(root, background="white").load().train.pixels[0] == 255).all()
    with pytest.raises(ValueError, match="unknown color"):
        source(root, background="wight")


def test_where_a_folder_lies_and_how_it_is_written_is_not_part_of_a_run(tmp_path, monkeypatch):
    def run(root: object, *words: str) -> str:
        objects._sources.clear()  # as in another process
        return identity.run_id(composed("data=image_folder", f"data.root='{root}'", *words))

    root = tmp_path / "root"
    write_pictures(root)
    (tmp_path / "link").symlink_to(root)
    shutil.copytree(root, tmp_path / "copy" / "of" / "it")
    monkeypatch.setenv("HOME", str(tmp_path))
    name = run(root)
    assert re.fullmatch("image_folder-cnn-sgd-data=[0-9a-f]{6}-[0-9a-f]{8}", name)
    for spelling in (f"{root}/", "root", "./root", "~/root", "link", tmp_path / "copy" / "of" / "it"):
        assert run(spelling) == name, spelling
    assert run(root, "data.image_size=16") != name
    assert run("nowhere") != name
    Image.new("RGB", (32, 32)).save(root / "train" / "cat" / "0.png")
    assert run(root) != name
    (root / "train" / "cat").rename(root / "train" / "cow")
    (root / "test" / "cat").rename(root / "test" / "cow")
    assert run(root) != run("link", "seed=1")
    assert run(root) == run("link")


@pytest.mark.parametrize("typed", [[], ["data.unreadable=skip"], ["norm=standard"]])
def test_a_run_is_evaluated_on_its_folder_unless_another_one_is_given(typed):
    trained = composed("data=image_folder", "data.root=/a")
    summary = {"choices": identity.described(identity.chosen(trained)), "data": {"image_size": 32}}
    whole = values.job_config(trained)
    kept = objects.checked_config({key: whole[key] for key in USED})
    run = OpenedRun(Path("run"), Path("best.ckpt"), summary, kept)
    assert with_other_data(run, typed).data.root == "/a"
    assert with_other_data(run, [*typed, "data.root=/b"]).data.root == "/b"


def test_names_are_bytes_and_classes_are_utf8_in_any_locale(tmp_path):
    root = tmp_path / "root"
    names = ["caf\xe9".encode(), "\u732b".encode(), b"\xe9"]
    write_pictures(root, [os.fsdecode(name) for name in names])
    code = """if True:
        import sys
        from cnnlab.data.folder import ImageFolder
        folder = ImageFolder(sys.argv[1], sys.argv[2])
        folder.check()
        data = folder.load()
        print(ascii(data.train.classes), data.fingerprint, folder.digest())
        """
    said = []
    for environment in ({}, {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}):
        words = [sys.executable, "-c", code, root, f"cache {len(said)}"]
        result = subprocess.run(words, env=os.environ | environment, capture_output=True, text=True, check=False)
        assert (result.returncode, result.stderr) == (0, "")
        said.append(result.stdout)
    data = source(root).load()
    assert data.train.classes == ("caf\xe9", "\u732b", r"\xe9")
    assert said[0] == said[1] == f"{data.train.classes!a} {data.fingerprint} {source(root).digest()}\n"


def test_a_folder_may_be_named_by_a_number(tmp_path):
    write_pictures(tmp_path / "2024")
    assert objects.data_source(composed("data=image_folder", "data.root=2024").data).num_train == 6


def test_a_poisoned_digest_is_not_believed(tmp_path):
    write_pictures(tmp_path / "root")
    digest = source(tmp_path / "root").digest()
    [path] = Path(os.environ["CNNLAB_CACHE"]).rglob("*.digest")
    path.write_text("0" * 64)
    assert source(tmp_path / "root").digest() == digest


def test_a_pipe_and_a_bomb_are_skipped(tmp_path):
    root = tmp_path / "root"
    write_pictures(root)
    os.mkfifo(root / "train" / "cat" / "pipe.png")
    (root / "train" / "dog" / "zero.png").symlink_to("/dev/zero")
    (root / "train" / "dog" / "bomb.png").write_bytes(png(1, 80_000_000))
    assert source(root, unreadable="skip").load().train.targets.tolist() == [0, 0, 0, 1, 1, 1]
    with pytest.raises(UserError, match="cannot be read as an image"):
        source(root).load()


def test_a_broken_link_is_named_or_skipped(tmp_path):
    root = tmp_path / "root"
    write_pictures(root)
    (root / "train" / "dog" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    with pytest.raises(UserError, match=r"dog/gone.png cannot be read"):
        source(root).load()
    assert source(root, unreadable="skip").load().train.targets.tolist() == [0, 0, 0, 1, 1, 1]


def test_a_corrupt_picture_is_named_or_skipped_and_counted(tmp_path, capsys):
    root = tmp_path / "root"
    write_pictures(root)
    bad = root / "train" / "dog" / "1.png"
    bad.write_bytes(bad.read_bytes()[:100])
    with pytest.raises(UserError, match=r"dog/1.png cannot be read.*data.unreadable=skip"):
        source(root).load()
    assert not list(Path(os.environ["CNNLAB_CACHE"]).rglob("*.images"))
    data = source(root, unreadable="skip").load()
    assert data.train.targets.tolist() == [0, 0, 0, 1, 1]
    assert "1 unreadable images skipped" in capsys.readouterr().out


def test_images_for_which_the_disk_has_no_room_are_refused_before_they_are_decoded(tmp_path, monkeypatch):
    write_pictures(tmp_path / "root", num=30, size=(2, 2))
    folder = source(tmp_path / "root", image_size=[2000, 1000])
    monkeypatch.setattr(folder, "_read", None)
    monkeypatch.setattr(os, "fstatvfs", lambda file: SimpleNamespace(f_bavail=250_000, f_frsize=1000))
    said = r"root/train: 60 images of 2000x1000x3 take 360\.0 MB, and twice that while .* has 250\.0 MB\. Use a smaller"
    with pytest.raises(UserError, match=said):
        folder.load()


def test_how_long_decoding_takes_is_said_at_its_beginning_if_it_is_long(tmp_path, monkeypatch, capsys):
    write_pictures(tmp_path / "root", num=5)
    monkeypatch.setattr(decoded, "TRIED", 4)
    source(tmp_path / "root").load()
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(decoded, "LONG", 0)
    source(tmp_path / "root", image_size=16).load()
    said = r"root/train: 10 images of 16x16x3 take 7\.7 kB, .*Decoding them takes about \d+ s, once\."
    assert re.search(said, capsys.readouterr().err)


def test_gray_transparent_and_non_square(tmp_path):
    """Independent of the reader: what Pillow converts and resizes."""
    root = tmp_path / "root"
    write_pictures(root, size=(40, 30))
    file = root / "train" / "cat" / "0.png"
    half_seen = Image.fromarray(np.random.default_rng(1).integers(256, size=(30, 40, 4), dtype=np.uint8))
    half_seen.save(file)
    with_alpha = source(root, image_size=[30, 40], channels=4)
    assert (with_alpha.shape.size, with_alpha.shape.channels) == ((30, 40), 4)
    assert np.array_equal(with_alpha.load().train.pixels[0].transpose(1, 2, 0), np.asarray(half_seen))
    gray = source(root, image_size=[15, 20], channels=1).load().train
    assert gray.pixels.shape == (6, 1, 15, 20)
    with Image.open(root / "train" / "cat" / "1.png") as image:
        expected = np.asarray(image.convert("L").resize((20, 15), Image.Resampling.BICUBIC))
    assert np.array_equal(gray.pixels[1, 0], expected)
    for wrong in (0, [30], [30, 40, 3], [30, 0], "32"):
        with pytest.raises(ValueError, match="neither a whole number from 1 to 4096 nor"):
            source(root, image_size=wrong)


def write_tables(root: Path, encoding: str = "utf-8") -> None:
    """The pictures of `write_pictures` in one folder, and two tables that name them."""
    write_pictures(root, classes=("2", "10"))
    for part in ("train", "test"):
        lines = ["label,file"]
        for number, picture in enumerate(sorted((root / part).glob("*/*.png"))):
            picture.rename(root / part / f"{number}.png")
            lines.append(f"{picture.parent.name},{part}/{number}.png")
        (root / f"{part}.csv").write_text("\n".join(lines), encoding)


def test_labels_that_are_the_same_number_have_the_same_order_in_every_table(tmp_path):
    tables = [tmp_path / f"{part}.csv" for part in ("train", "test")]
    for table, labels in zip(tables, (("1", "01"), ("01", "1")), strict=True):
        table.write_text("file,label\n" + "".join(f"{label}.png,{label}\n" for label in labels))
    assert [list(read_table(table)) for table in tables] == [["01", "1"], ["01", "1"]]


def test_a_table_names_files_and_labels(tmp_path):
    root = tmp_path / "root"
    write_tables(root, "utf-8-sig")
    folder = source(root)
    folder.check()
    train = folder.load().train
    assert (train.classes, train.targets.tolist()) == (("2", "10"), [0, 0, 0, 1, 1, 1])
    for place, number in enumerate((3, 4, 5, 0, 1, 2)):  # "10" is before "2" in a listing
        with Image.open(root / "train" / f"{number}.png") as image:
            assert np.array_equal(train.pixels[place].transpose(1, 2, 0), np.asarray(image))
    table = (root / "train.csv").read_text(encoding="utf-8-sig")
    (root / "train.csv").write_text(table.replace("10,train/0", "2,train/0"))
    assert source(root).digest() != folder.digest()
    assert source(root).load().train.targets.tolist() == [0, 0, 0, 0, 1, 1]


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ("name,label\na.png,cat", r"train.csv has no column file: its first line is \['name', 'label'\]"),
        ("", "has no column file"),
        ("file,label\na.png,", "train.csv, line 2: the file or its label is missing"),
        ("file,label\na.png", "line 2: the file or its label is missing"),
        ("file,label\ntrain/0.png,2", "train has only the class 2; a classifier needs two"),
        ("file,label\ntrain/0.png,2\ntrain/1.png,3", "test differ: 10, 3"),
        (b"file,label\n\xff\xfe,cat", "train.csv cannot be read .*in UTF-8"),
    ],
    ids=["column", "empty", "label", "cell", "one class", "other classes", "no text"],
)
def test_a_wrong_table_is_refused(tmp_path, table, said):
    root = tmp_path / "root"
    write_tables(root)
    (root / "train.csv").write_bytes(table if isinstance(table, bytes) else table.encode())
    with pytest.raises(UserError, match=said):
        source(root).check()


def test_a_file_that_a_table_names_and_that_is_not_there_is_named_or_skipped(tmp_path):
    root = tmp_path / "root"
    write_tables(root)
    (root / "train" / "4.png").unlink()
    with pytest.raises(UserError, match=r"train/4.png does not exist. Correct .*train.csv, line 6, or set data.unr"):
        source(root).load()
    assert len(source(root, unreadable="skip").load().train.targets) == 5


def draw_all(root: Path, megabytes: int, sender: Connection) -> None:
    """Draw every batch of an epoch with so much memory; send whether the pixels fit it, and the mean of all batches."""
    threading.stack_size(1 << 19)
    before = int(re.search(r"VmData:\s+(\d+)", Path("/proc/self/status").read_text())[1])
    resource.setrlimit(resource.RLIMIT_DATA, (before * 1024 + megabytes * 2**20,) * 2)
    folder = source(root, image_size=128)
    fits = True
    try:
        np.empty((folder.num_train, 128, 128, 3), np.uint8)
    except MemoryError:
        fits = False
    data = ImageData(folder.load(), Standard(), {}, batch_size=10, val_fraction=0)
    plan, total = data.draw_whole(0), 0.0
    for rows in range(0, len(plan["index"]), 10):
        batch = {key: values[rows : rows + 10] for key, values in plan.items()}
        total += data.norm.inverse(data.make(batch, 10)[0]).double().mean().item() * 10
    sender.send((fits, total / len(plan["index"])))


def within_a_limit(root: Path, megabytes: int) -> tuple[bool, float]:
    """In a process that has drawn nothing before: what others have let go there would hide what this takes."""
    receiver, sender = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("spawn").Process(target=draw_all, args=(root, megabytes, sender))
    process.start()
    process.join()
    assert process.exitcode == 0
    return receiver.recv()


def test_a_folder_larger_than_a_memory_limit_is_decoded_measured_and_drawn(tmp_path):
    """147 MB of pixels with 96 MB of memory: from the files on, through normalization, to every batch of an epoch."""
    root = tmp_path / "root"
    for part, num in (("train", 1500), ("test", 4)):
        for shade, name in ((50, "cat"), (150, "dog")):
            (root / part / name).mkdir(parents=True)
            Image.new("RGB", (4, 4), (shade,) * 3).save(tmp_path / f"{name}.png")
            for number in range(num):
                os.link(tmp_path / f"{name}.png", root / part / name / f"{number}.png")
    fits, mean = within_a_limit(root, 96)
    assert not fits, "the limit holds"
    assert mean == pytest.approx(100, abs=1e-3)
