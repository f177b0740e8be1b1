"""Every kind of image file a person may have becomes the RGB picture that a viewer shows, or an error that names it."""

from __future__ import annotations

import io
import sys
import threading
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, features

from surefoot.data import read_image
from surefoot.data.layout import SUFFIXES
from surefoot.errors import DataError

WHITE, RED, GREEN = (255, 255, 255), (255, 0, 0), (0, 255, 0)


def near(image: Image.Image, place: tuple[int, int], colour: tuple[int, int, int], tolerance: int = 3) -> bool:
    return bool(np.abs(np.asarray(image)[place[1], place[0]].astype(int) - colour).max() <= tolerance)


def noise(width: int = 48, height: int = 32) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3)).astype(np.uint8))


@pytest.mark.parametrize(
    ("mode", "value", "shown"),
    [
        ("RGB", RED, RED),
        ("L", 90, (90, 90, 90)),
        ("1", 1, WHITE),
        ("1", 0, (0, 0, 0)),
        ("RGBA", (0, 0, 0, 0), WHITE),
        ("RGBA", (255, 0, 0, 128), (255, 127, 127)),
        ("LA", (0, 0), WHITE),
        ("LA", (100, 255), (100, 100, 100)),
    ],
)
def test_every_mode_becomes_rgb_with_transparency_on_white(
    tmp_path: Path, mode: str, value: int | tuple[int, ...], shown: tuple[int, int, int]
) -> None:
    Image.new(mode, (6, 4), value).save(tmp_path / "image.png")
    image = read_image(tmp_path / "image.png")
    assert (image.mode, image.size) == ("RGB", (6, 4))
    assert near(image, (5, 3), shown, 1)


@pytest.mark.parametrize(("name", "transparency"), [("a.png", None), ("a.png", 1), ("a.png", b"\xff\x00"), ("a.gif", None), ("a.gif", 1)])
def test_palette_with_and_without_transparency(tmp_path: Path, name: str, transparency: int | bytes | None) -> None:
    image = Image.new("P", (6, 4), 0)
    image.putpalette([255, 0, 0, 0, 255, 0])
    image.putpixel((5, 3), 1)
    image.save(tmp_path / name, **({} if transparency is None else {"transparency": transparency}))
    read = read_image(tmp_path / name)
    assert near(read, (0, 0), RED, 0)
    assert near(read, (5, 3), GREEN if transparency is None else WHITE, 0)


def test_colour_key_of_an_rgb_png_is_white(tmp_path: Path) -> None:
    Image.new("RGB", (6, 4), GREEN).save(tmp_path / "key.png", transparency=GREEN)
    assert near(read_image(tmp_path / "key.png"), (0, 0), WHITE, 0)


@pytest.mark.parametrize("name", ["ink.jpg", "ink.tif"])
def test_cmyk_is_not_inverted(tmp_path: Path, name: str) -> None:
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / name)
    if name == "ink.jpg":
        assert b"Adobe" in (tmp_path / name).read_bytes(), "Adobe's JPEGs hold inverted ink"
    assert near(read_image(tmp_path / name), (4, 4), RED)


@pytest.mark.parametrize(("name", "dtype"), [("deep.png", "<u2"), ("deep.tif", "<u2"), ("deep.tif", ">u2"), ("deep.tif", "<i4")])
def test_sixteen_bit_grey_is_scaled(tmp_path: Path, name: str, dtype: str) -> None:
    values = np.array([[0, 128 * 257, 65535]], dtype)
    Image.fromarray(values).save(tmp_path / name)
    with Image.open(tmp_path / name) as opened:
        assert opened.mode == {"<u2": "I;16", ">u2": "I;16B", "<i4": "I"}[dtype]
    assert np.asarray(read_image(tmp_path / name))[0].tolist() == [[0] * 3, [128] * 3, [255] * 3]


def test_dark_sixteen_bit_grey_stays_dark(tmp_path: Path) -> None:
    Image.fromarray(np.full((4, 4), 250, np.uint16)).save(tmp_path / "dark.png")
    assert near(read_image(tmp_path / "dark.png"), (0, 0), (1, 1, 1), 0)


def test_sixteen_bit_grey_with_a_transparent_value(tmp_path: Path) -> None:
    Image.fromarray(np.array([[1000, 40000]], np.uint16)).save(tmp_path / "key.png", transparency=1000)
    assert np.asarray(read_image(tmp_path / "key.png"))[0, :, 0].tolist() == [255, 156]


def test_sixteen_bit_rgb_is_scaled(tmp_path: Path) -> None:
    """Pillow cannot write one, so its chunks are written here."""
    import struct
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    row = struct.pack(">6H", 65535, 0, 0, 128 * 257, 0, 65535)
    (tmp_path / "deep.png").write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", 2, 1, 16, 2, 0, 0, 0))
        + chunk(b"IDAT", zlib.compress(b"\0" + row))
        + chunk(b"IEND", b"")
    )
    assert np.asarray(read_image(tmp_path / "deep.png")).tolist() == [[[255, 0, 0], [128, 0, 255]]]


@pytest.mark.parametrize("values", [np.full((4, 4), 0.5, np.float32), np.full((4, 4), 70000, np.int32), np.full((4, 4), -1, np.int32)])
def test_values_without_a_fixed_range_are_refused(tmp_path: Path, values: np.ndarray) -> None:
    Image.fromarray(values).save(tmp_path / "range.tif")
    with pytest.raises(DataError, match=r"range\.tif holds .*8- or 16-bit"):
        read_image(tmp_path / "range.tif")


def marked() -> Image.Image:
    """White, with a red corner at the top left."""
    image = Image.new("RGB", (32, 16), "white")
    image.paste(RED, (0, 0, 16, 8))
    return image


@pytest.mark.parametrize("name", ["turned.jpg", "turned.png", "turned.webp", "turned.tif"])
@pytest.mark.parametrize(
    ("orientation", "size", "corner"),
    [(1, (32, 16), (2, 2)), (2, (32, 16), (29, 2)), (3, (32, 16), (29, 13)), (4, (32, 16), (2, 13)),
     (5, (16, 32), (2, 2)), (6, (16, 32), (13, 2)), (7, (16, 32), (13, 29)), (8, (16, 32), (2, 29))],
)  # fmt: skip
def test_exif_rotation_is_applied(tmp_path: Path, name: str, orientation: int, size: tuple[int, int], corner: tuple[int, int]) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    marked().save(tmp_path / name, exif=exif)
    image = read_image(tmp_path / name)
    assert image.size == size
    assert near(image, corner, RED, 40)
    assert not near(image, (size[0] - 1 - corner[0], size[1] - 1 - corner[1]), RED, 40)


@pytest.mark.parametrize("name", ["camera.jpg", "camera.png", "camera.webp"])
@pytest.mark.parametrize("exif", [b"", b"nonsense", b"MM\0*", b"II*\0\x08\0\0\0\xff\xff\x12\x01", b"II*\0\xff\xff\xff\x7f"])
def test_damaged_exif_does_not_make_an_image_unreadable(tmp_path: Path, name: str, exif: bytes) -> None:
    noise().save(tmp_path / name, exif=b"Exif\0\0" + exif)
    assert read_image(tmp_path / name).size == (48, 32)


@pytest.mark.parametrize("name", ["moving.gif", "moving.webp", "moving.png", "pages.tif", "stereo.mpo"])
def test_first_frame_or_page_is_read(tmp_path: Path, name: str) -> None:
    first, second = Image.new("RGB", (16, 16), RED), Image.new("RGB", (16, 16), GREEN)
    first.save(tmp_path / name, save_all=True, append_images=[second])
    with Image.open(tmp_path / name) as opened:
        assert getattr(opened, "n_frames", 1) == 2
    assert near(read_image(tmp_path / name), (8, 8), RED, 8)


@pytest.mark.parametrize("suffix", sorted(SUFFIXES))
def test_every_suffix_that_is_looked_for_is_read(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"image{suffix}"
    formats = {".jfif": "JPEG", ".jpe": "JPEG", ".mpo": "MPO", ".pgm": "PPM", ".apng": "PNG"}
    Image.new("L" if suffix == ".pgm" else "RGB", (16, 16), "white").save(path, formats.get(suffix))
    assert near(read_image(path), (8, 8), WHITE)


def test_avif_is_looked_for_where_pillow_reads_it() -> None:
    assert (".avif" in SUFFIXES) == ("avif" in features.modules and features.check("avif"))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "BMP", "PPM"])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_truncated_image_is_named(tmp_path: Path, kind: str, share: float) -> None:
    buffer = io.BytesIO()
    noise().save(buffer, kind)
    path = tmp_path / f"broken.{kind.lower()}"
    path.write_bytes(buffer.getvalue()[: int(len(buffer.getvalue()) * share)])
    with pytest.raises(DataError, match=r"broken\..* cannot be read as an image .*Repair or remove"):
        read_image(path)


@pytest.mark.parametrize("content", [b"", b"not an image", None])
def test_what_is_no_image_is_named(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "broken.png").write_bytes(content)
    with pytest.raises(DataError, match=r"broken\.png"):
        read_image(tmp_path / "broken.png")


def test_heic_is_named_whatever_the_file_is_called(tmp_path: Path) -> None:
    (tmp_path / "phone.jpg").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(64))
    with pytest.raises(DataError, match=r"phone\.jpg is a HEIC image.*Convert it to JPEG"):
        read_image(tmp_path / "phone.jpg")


def test_large_photograph_is_read_and_a_huge_one_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    noise(12, 12).save(tmp_path / "large.png")
    noise(15, 15).save(tmp_path / "huge.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)  # Pillow warns from here, and refuses twice as many
    assert read_image(tmp_path / "large.png").size == (12, 12)
    with pytest.raises(DataError, match=r"huge\.png is too large.*fewer pixels"):
        read_image(tmp_path / "huge.png")


def test_threads_leave_the_warning_filters_as_they_were(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    noise(12, 12).save(tmp_path / "large.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    before, failures = list(warnings.filters), []

    def read(times: int) -> None:
        for _ in range(times):
            try:
                read_image(tmp_path / "large.png")
            except Image.DecompressionBombWarning as warning:
                failures.append(warning)

    in_threads(read, 60)
    assert not failures
    assert list(warnings.filters) == before
    with pytest.warns(Image.DecompressionBombWarning):  # Pillow's own users are warned as ever
        Image.open(tmp_path / "large.png").close()


def in_threads(work: Callable[[int], None], times: int) -> None:
    """`work` in six threads that change places as often as they can."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        threads = [threading.Thread(target=work, args=(times,)) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
