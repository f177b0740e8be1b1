"""Build a folder of photograph-sized images as people have them, to try every command on: icons on textured grounds, in all odd formats.

    python benchmarks/own_data/make.py OUT --classes 10 --images 30 --shifts --unseen --odd

Icons of IconShift are enlarged and laid on noisy coloured grounds, so that the embedded model can learn something from them. One icon
serves several images, on other grounds: what is measured on such a folder says whether the program works, not how good a method is.
"""

from __future__ import annotations

import argparse
import itertools
import random
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from surefoot.data import Dataset, load

ORIENTATION = 0x0112
TINTS = {"red": (255, 90, 90), "green": (110, 230, 110), "blue": (120, 140, 255)}
SHARE_OF_SHIFT = 3  # a shift and an unseen set have a third of the images of train
UNSEEN_CLASSES = 10
Pixels = NDArray[np.uint8]
Icons = Mapping[str, Sequence[Path]]


@dataclass(frozen=True)
class Wanted:
    """What a folder is to hold; the attributes are the options of the command."""

    out: Path
    classes: int
    images: int
    size: int = 3000
    first: int | None = None
    shifts: bool = False
    unseen: bool = False
    odd: bool = False
    damaged: bool = False
    seed: int = 0


# --- forms: how an image is written ---


def jpeg(image: Image.Image, path: Path) -> None:
    image.save(path.with_suffix(".jpg"), quality=88)


def upper_case_jpeg(image: Image.Image, path: Path) -> None:
    image.save(path.with_name(f"DSC {path.name}").with_suffix(".JPG"), "JPEG", quality=88)


def cmyk_jpeg(image: Image.Image, path: Path) -> None:
    image.convert("CMYK").save(path.with_suffix(".jpg"), quality=88)


def grey_jpeg(image: Image.Image, path: Path) -> None:
    image.convert("L").save(path.with_suffix(".jpeg"), quality=88)


def progressive_jpeg(image: Image.Image, path: Path) -> None:
    image.save(path.with_suffix(".jpg"), quality=88, progressive=True)


def turned_jpeg(image: Image.Image, path: Path) -> None:
    """Lies on its side in the file; its EXIF data say so."""
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    image.transpose(Image.Transpose.ROTATE_90).save(path.with_suffix(".jpg"), quality=88, exif=exif)


def mpo(image: Image.Image, path: Path) -> None:
    """As telephones write: a JPEG with a second picture behind it, under the name of a JPEG."""
    image.save(path.with_suffix(".jpg"), "MPO", save_all=True, append_images=[ImageOps.invert(image)], quality=88)


def grey_16_bit_png(image: Image.Image, path: Path) -> None:
    grey = np.asarray(image.convert("L")).astype(np.uint16) * 257
    Image.fromarray(grey).save(path.with_suffix(".png"), compress_level=1)


def palette_png(image: Image.Image, path: Path) -> None:
    image.quantize(64).save(path.with_suffix(".png"), compress_level=1)


def transparent_png(image: Image.Image, path: Path) -> None:
    """Fully transparent at the left edge, opaque at the right."""
    alpha = Image.linear_gradient("L").transpose(Image.Transpose.ROTATE_90).resize(image.size).point(lambda value: min(255, 4 * value))
    image.putalpha(alpha)
    image.save(path.with_suffix(".png"), compress_level=1)


def gif(image: Image.Image, path: Path) -> None:
    image.quantize(64).save(path.with_suffix(".gif"))


def animated_gif(image: Image.Image, path: Path) -> None:
    small = ImageOps.contain(image, (600, 600))
    small.save(path.with_suffix(".gif"), save_all=True, append_images=[ImageOps.invert(small)], duration=200)


def animated_webp(image: Image.Image, path: Path) -> None:
    small = ImageOps.contain(image, (600, 600))
    small.save(path.with_suffix(".webp"), save_all=True, append_images=[ImageOps.invert(small)], duration=200, method=0)


def tiff(image: Image.Image, path: Path) -> None:
    image.save(path.with_suffix(".tif"), compression="tiff_lzw")


def bmp(image: Image.Image, path: Path) -> None:
    image.save(path.with_suffix(".bmp"))


Form = Callable[[Image.Image, Path], None]
ODD: tuple[Form, ...] = (
    jpeg, cmyk_jpeg, grey_jpeg, progressive_jpeg, turned_jpeg, mpo, upper_case_jpeg, grey_16_bit_png, palette_png, transparent_png, gif,
    animated_gif, animated_webp, tiff, bmp,
)  # fmt: skip


# --- pictures ---


def ground(width: int, height: int, draw: random.Random) -> Pixels:
    """A light ground [H, W, 3]: two colours, coarse spots between them, and the noise of a sensor."""
    generator = np.random.default_rng(draw.getrandbits(32))
    first, second = (np.array([draw.randint(150, 255) for _ in range(3)], dtype=np.float32) for _ in range(2))
    coarse = Image.fromarray(generator.integers(0, 255, (6, 9), dtype=np.uint8)).resize((width, height), Image.Resampling.BICUBIC)
    blend = np.asarray(coarse, dtype=np.float32)[..., None] / 255
    noise = generator.integers(-12, 13, (height, width, 1), dtype=np.int8)
    return np.asarray(np.clip(first * blend + second * (1 - blend) + noise, 0, 255), dtype=np.uint8)


def picture(icon: Image.Image, size: int, draw: random.Random, *, tint: tuple[int, int, int] | None = None) -> Image.Image:
    """The icon on a ground of size x 2/3 size, every fourth one upright; its white lets the ground through."""
    width, height = (size, size * 2 // 3) if draw.random() < 0.75 else (size * 2 // 3, size)
    side = int(min(width, height) * draw.uniform(0.65, 0.95))
    left, top = (width - side) // 2, (height - side) // 2
    pixels = ground(width, height, draw)
    large = np.asarray(icon.convert("RGB").resize((side, side), Image.Resampling.BICUBIC), dtype=np.uint16)
    window = pixels[top : top + side, left : left + side]
    window[:] = window * large // 255
    if tint:
        pixels = np.asarray(pixels.astype(np.uint16) * np.array(tint, dtype=np.uint16) // 255, dtype=np.uint8)
    return Image.fromarray(pixels)


def by_night(image: Image.Image) -> Image.Image:
    """Dark and bluish."""
    return Image.fromarray((np.asarray(image, dtype=np.float32) * np.array([0.25, 0.28, 0.4], dtype=np.float32)).astype(np.uint8))


# --- folders ---


def icons_of(dataset: Dataset, *splits: str) -> dict[str, list[Path]]:
    """{class name: its icons in these splits}."""
    found = defaultdict(list)
    for split in map(dataset.split, splits):
        for path, label in zip(split.paths, split.labels, strict=True):
            found[split.class_names[label]].append(path)
    return dict(found)


def class_names(dataset: Dataset, wanted: Wanted) -> tuple[list[str], list[str]]:
    """Names to train on and names left for unseen: 122 of IconShift's, its 56 unseen ones, then both with a colour before them."""
    draw = random.Random(wanted.seed)
    trained, unseen = list(dataset.class_names), list(dataset.split("unseen/outline").class_names)
    draw.shuffle(trained)
    draw.shuffle(unseen)
    plain = trained + unseen
    every = plain + [f"{tint} {name}" for tint in TINTS for name in plain]
    if wanted.classes + UNSEEN_CLASSES > len(every):
        raise SystemExit(f"--classes is {wanted.classes}; {len(every) - UNSEEN_CLASSES} at most.")
    rest = every[max(wanted.classes, len(trained)) :]
    return every[: wanted.classes], rest[:UNSEEN_CLASSES]


def pictures(name: str, number: int, icons: Icons, size: int, draw: random.Random) -> Iterator[Image.Image]:
    """`number` pictures of a class; a name may begin with a colour."""
    tint, _, bare = name.partition(" ")
    tinted = tint in TINTS and bare in icons
    own = icons[bare if tinted else name]
    for path in itertools.islice(itertools.cycle(draw.sample(own, len(own))), number):
        with Image.open(path) as icon:
            yield picture(icon, size, draw, tint=TINTS[tint] if tinted else None)


def fill(folder: Path, images: Iterator[Image.Image], forms: Iterator[Form]) -> None:
    """Write the images of one class."""
    folder.mkdir(parents=True)
    for number, image in enumerate(images):
        next(forms)(image, folder / f"{number:04d}")


def damage(folder: Path) -> None:
    """A truncated image, an empty one, and a text that is called an image, beside the others."""
    whole = sorted(folder.rglob("*.jpg"))[0]
    (whole.parent / "truncated.jpg").write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    (whole.parent / "empty.png").touch()
    (whole.parent / "text.jpg").write_text("This is no image.")


def make(wanted: Wanted) -> None:
    """Write the whole folder."""
    dataset, draw = load("iconshift"), random.Random(wanted.seed)
    own = icons_of(dataset, "train", "val", "test", "unseen/outline")
    emoji = icons_of(dataset, "shifts/emoji")
    names, others = class_names(dataset, wanted)
    forms = itertools.cycle(ODD if wanted.odd else (jpeg,))
    few = max(2, wanted.images // SHARE_OF_SHIFT)
    for place, name in enumerate(names):
        number = wanted.first if place == 0 and wanted.first else wanted.images
        fill(wanted.out / "train" / name, pictures(name, number, own, wanted.size, draw), forms)
        if wanted.shifts:
            dark = map(by_night, pictures(name, few, own, wanted.size, draw))
            fill(wanted.out / "shifts" / "night" / name, dark, forms)
            if name in emoji:
                fill(wanted.out / "shifts" / "emoji" / name, pictures(name, few, emoji, wanted.size, draw), forms)
    for name in others if wanted.unseen else ():
        fill(wanted.out / "unseen" / "others" / name, pictures(name, few, own, wanted.size, draw), forms)
    if wanted.damaged:
        damage(wanted.out / "train")


def main() -> None:
    """Parse the options and build."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--images", type=int, default=30, help="of each class")
    parser.add_argument("--size", type=int, default=3000, help="pixels of the longer side")
    parser.add_argument("--first", type=int, help="images of the first class, if they are to be more or fewer")
    parser.add_argument("--shifts", action="store_true", help="add shifts/night and shifts/emoji")
    parser.add_argument("--unseen", action="store_true", help="add unseen/others, ten other classes")
    parser.add_argument("--odd", action="store_true", help="all formats in turn instead of plain JPEG")
    parser.add_argument("--damaged", action="store_true", help="add three files that cannot be read")
    parser.add_argument("--seed", type=int, default=0)
    wanted = Wanted(**vars(parser.parse_args()))
    if wanted.out.exists():
        raise SystemExit(f"{wanted.out} is there already. Remove it, or give another folder.")
    make(wanted)
    files = [path for path in wanted.out.rglob("*") if path.is_file()]
    print(f"{wanted.out}: {len(files)} files, {sum(path.stat().st_size for path in files) / 1e6:.0f} MB")


if __name__ == "__main__":
    main()
