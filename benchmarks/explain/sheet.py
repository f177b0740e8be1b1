"""Lay the images that were drawn for `surefoot explain` out in one picture: each with the maps of its models beside it.

surefoot explain runs/table --method car_ft
python benchmarks/explain/sheet.py runs/table/explain --out docs/explain.webp
"""

from __future__ import annotations

import argparse
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from surefoot import records

SIDE, GAP, HEAD, ACROSS = 104, 4, 34, 2


def plain(label: str) -> str:
    """ "WiSE-FT (α = 0.8)" without the letter that the built-in font has not."""
    return label.replace("(α\u00a0=\u00a0", "").removesuffix(")")


def row(folder: Path, one: records.Explained) -> Image.Image:
    """An image and its maps, with what each model answers below its name."""
    names = [one.image, *(view["heat"] for view in one.views)]
    titles = [(one.label, one.on.removeprefix("shifts/")), *((plain(view["label"]), view["answer"]) for view in one.views)]
    made = Image.new("RGB", (len(names) * (SIDE + GAP), HEAD + SIDE), "white")
    draw, font = ImageDraw.Draw(made), ImageFont.load_default(11)
    for place, (name, (first, second)) in enumerate(zip(names, titles, strict=True)):
        left = place * (SIDE + GAP)
        with Image.open(folder / name) as picture:
            made.paste(picture.convert("RGB").resize((SIDE, SIDE), Image.Resampling.LANCZOS), (left, HEAD))
        draw.text((left + 2, 3), first, fill="#5a616b" if place else "black", font=font)
        right = second == one.label
        draw.text((left + 2, 17), second, fill="black" if not place else "#008a66" if right else "#c44e00", font=font)
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="What `surefoot explain` wrote.")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    found = [one for one in records.read(given.folder) if isinstance(one, records.Explained) and one.why == "drawn"]
    if not found:
        raise SystemExit(f"{given.folder} holds no image that was drawn. Run `surefoot explain` on a run without images of your own.")
    rows = [row(given.folder, one) for one in found]
    width, height = rows[0].size
    sheet = Image.new("RGB", (ACROSS * (width + 4 * GAP), -(-len(rows) // ACROSS) * (height + 2 * GAP)), "white")
    for number, one in enumerate(rows):
        sheet.paste(one, (number % ACROSS * (width + 4 * GAP), number // ACROSS * (height + 2 * GAP)))
    sheet.save(given.out, format="WEBP", quality=80)
    print(f"{given.out}: {given.out.stat().st_size / 1024:.0f} KB")


if __name__ == "__main__":
    main()
