"""Which files are images, and what becomes of those that Pillow can open in ways of its own."""

import contextlib
import os
import random
import resource
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cnnlab.config.options import UserError
from cnnlab.data.decode import MAX_BYTES, UNREADABLE, images_below, images_in, read_image

RED = (200, 30, 40)


@pytest.mark.parametrize("suffix", ["jpg", "jfif", "png", "webp", "bmp", "gif", "tif"])
def test_every_format_is_read(tmp_path, suffix):
    kind = {"jfif": "jpeg"}.get(suffix)
    Image.new("RGB", (9, 7), RED).save(tmp_path / f"image.{suffix}", kind)
    assert images_in([tmp_path]).images == [str(tmp_path / f"image.{suffix}")]
    decoded = read_image(tmp_path / f"image.{suffix}", (8, 8))
    assert decoded.pixels.shape == (8, 8, 3)
    assert np.abs(decoded.pixels.astype(int) - RED).max() <= 3
    assert decoded.lost == ""


def test_a_program_called_png_is_not_run(tmp_path):
    """Pillow gives EPS files to Ghostscript, and this one never ends."""
    program = "%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n{} loop\n"
    (tmp_path / "image.png").write_text(program)
    with pytest.raises(OSError, match="cannot identify image file"):
        read_image(tmp_path / "image.png", (8, 8))


def test_what_is_no_regular_file_is_not_read(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "device.png").symlink_to("/dev/zero")
    (tmp_path / "folder.png").mkdir()
    for name in ("pipe", "device", "folder"):
        with pytest.raises(OSError, match="not a regular file"):
            read_image(tmp_path / f"{name}.png", (8, 8))


def test_a_file_of_too_many_bytes_is_not_read(tmp_path):
    with open(tmp_path / "image.png", "wb") as file:
        file.truncate(MAX_BYTES + 1)
    with pytest.raises(ValueError, match="bytes are more than"):
        read_image(tmp_path / "image.png", (8, 8))


def png(width: int, height: int) -> bytes:
    """A black image of one bit a pixel, compressed to a thousandth of that."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return len(content).to_bytes(4, "big") + kind + content + zlib.crc32(kind + content).to_bytes(4, "big")

    packer = zlib.compressobj()
    row = bytes(1 + (width + 7) // 8)
    rows = b"".join(packer.compress(row * min(10_000, height - done)) for done in range(0, height, 10_000))
    head = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([1, 0, 0, 0, 0])
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows + packer.flush()) + chunk(b"IEND", b"")


@pytest.mark.parametrize("size", [(1, 80_000_000), (70_000, 1), (9_500, 9_500), (2**31 - 1, 2**31 - 1)])
def test_memory_is_bounded_on_either_side(tmp_path, size):
    (tmp_path / "image.png").write_bytes(
        png(*size)
        if max(size) < 2**31 - 1
        else png(1, 1).replace((1).to_bytes(4, "big") * 2, (2**31 - 1).to_bytes(4, "big") * 2)
    )
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UNREADABLE):
        read_image(tmp_path / "image.png", (32, 32))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kilobytes


def test_large_images_are_read_one_at_a_time(tmp_path):
    """Five images of 36 megapixels at once would take 900 MB and more."""
    (tmp_path / "image.png").write_bytes(png(6_000, 6_000))
    code = (
        "import re, sys; from concurrent.futures import ThreadPoolExecutor; import numpy\n"
        "from cnnlab.data.decode import read_image\n"
        "with ThreadPoolExecutor(8) as pool: list(pool.map(lambda _: read_image(sys.argv[1], (32, 32)), range(5)))\n"
        "print(re.search(r'VmHWM:\\s*(\\d+)', open('/proc/self/status').read())[1])"
    )
    words = [sys.executable, "-c", code, tmp_path / "image.png"]
    result = subprocess.run(words, capture_output=True, text=True, check=True)
    assert int(result.stdout) < 400_000  # kilobytes


@pytest.mark.parametrize("background", ["black", "white", "#102030"])
def test_ink_on_transparent_ground_is_seen_on_the_background(tmp_path, background):
    ink = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    ink.paste((0, 0, 0, 255), (0, 0, 8, 4))
    ink.save(tmp_path / "image.png")
    pixels = read_image(tmp_path / "image.png", (8, 8), background).pixels
    expected = {"black": (0, 0, 0), "white": (255, 255, 255), "#102030": (16, 32, 48)}[background]
    assert pixels[0, 0].tolist() == [0, 0, 0]
    assert tuple(pixels[7, 0].tolist()) == expected


def test_sixteen_bits_of_gray_are_scaled_and_more_are_refused(tmp_path):
    values = np.array([[0, 128, 129, 65_535]], np.uint16).repeat(4, 0)
    Image.fromarray(values).save(tmp_path / "gray.png")
    assert read_image(tmp_path / "gray.png", (4, 4)).pixels[0, :, 0].tolist() == [0, 0, 1, 255]
    for kind in (np.int32, np.float32):
        Image.fromarray(values.astype(kind)).save(tmp_path / "gray.tif")
        with pytest.raises(ValueError, match="gray values of 32 bits"):
            read_image(tmp_path / "gray.tif", (4, 4))


def test_what_a_format_loses_is_told(tmp_path):
    first, second = Image.new("RGB", (8, 8), RED), Image.new("RGB", (8, 8), "blue")
    for suffix in ("gif", "webp", "png", "tif"):
        first.save(tmp_path / f"image.{suffix}", save_all=True, append_images=[second])
        decoded = read_image(tmp_path / f"image.{suffix}", (8, 8))
        assert decoded.lost == "several frames, of which only the first is used"
        assert np.abs(decoded.pixels.astype(int) - RED).max() <= 4
    first.convert("CMYK").save(tmp_path / "image.jpg")
    assert "CMYK" in read_image(tmp_path / "image.jpg", (8, 8)).lost


@pytest.mark.filterwarnings("ignore")  # Pillow's, about what it skips
def test_damaged_files_are_unreadable_and_nothing_else(tmp_path):
    """Sixty files of every format with random bytes changed."""
    generator = random.Random(0)
    picture = Image.effect_mandelbrot((20, 20), (-2, -1, 1, 1), 20)
    path = tmp_path / "damaged"
    for suffix in ("jpg", "png", "webp", "bmp", "gif", "tif"):
        picture.save(tmp_path / f"whole.{suffix}")
        whole = (tmp_path / f"whole.{suffix}").read_bytes()
        for _ in range(60):
            content = bytearray(whole[: generator.choice((len(whole), generator.randrange(len(whole))))])
            for _ in range(generator.randrange(8) if content else 0):
                content[generator.randrange(min(len(content), 300))] = generator.randrange(256)
            path.write_bytes(content)
            with contextlib.suppress(UNREADABLE):
                read_image(path, (8, 8))


def test_folders_are_searched_with_links_and_without_what_is_hidden(tmp_path):
    root, elsewhere = tmp_path / "root", tmp_path / "elsewhere"
    for path in ("b.png", "a/z.PNG", "a-1.png", "a/.hidden.png", ".thumbs/c.png", "notes.txt", "x.heic", "Makefile"):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).touch()
    elsewhere.mkdir()
    (elsewhere / "1.png").touch()
    (elsewhere / "back").symlink_to(root)
    (root / "linked").symlink_to(elsewhere)
    (root / "loop").symlink_to(root)
    (root / "one.png").symlink_to(elsewhere / "1.png")
    found = images_below(root)
    assert [os.path.relpath(path, root) for path in found.images] == [
        *("a/z.PNG", "a-1.png", "b.png", "linked/1.png", "one.png")
    ]
    assert found.others == {".txt": 1, ".heic": 1, "no suffix": 1}
    assert images_in([root]) == found


def test_names_are_bytes(tmp_path):
    name = os.fsencode(tmp_path) + b"/caf\xe9.png"
    Image.new("RGB", (4, 4)).save(tmp_path / "image.png")
    os.rename(tmp_path / "image.png", name)
    [path] = images_in([tmp_path]).images
    assert os.fsencode(path) == name
    assert read_image(path, (4, 4)).pixels.shape == (4, 4, 3)


def test_a_folder_without_images_is_refused(tmp_path):
    (tmp_path / "notes.txt").touch()
    with pytest.raises(UserError, match="contains no images"):
        images_in([tmp_path])
    with pytest.raises(UserError, match="does not exist"):
        images_in([Path("nowhere")])
