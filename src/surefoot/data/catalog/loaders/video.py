"""ImageNet-Vid-Robust and YTBB-Robust: frames of videos whose classes stand for several of ImageNet's.

    imagenet_vid_ytbb_robust/imagenet-vid-robust/val/<video>/<frame>.JPEG
    imagenet_vid_ytbb_robust/imagenet-vid-robust/metadata/{pmsets,labels}.json             {anchor: frames around it}, {frame: classes}
    imagenet_vid_ytbb_robust/imagenet-vid-robust/misc/{imagenet_vid_class_index,rev_wnid_map}.json
    imagenet_vid_ytbb_robust/ytbb-robust/ytbb_videos/<video>_<milliseconds>/frame-<number>.jpg
    imagenet_vid_ytbb_robust/ytbb-robust/ytbb-robust_metadata/*                                see `_YTBB` and `_ANCHORS`

The accuracy of the anchor frames is the benign one (pm-0). With the option `around` the frames around each anchor are read too, as a group
that is right only together: pm-10, for the sets hold the frames up to ten before and after it that people found to show the same. A frame
may show several of the classes; any of them is right. Reference: Shankar et al., "Do image classifiers generalize across time?", ICCV 2021.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from surefoot.data.catalog.declaration import Part
from surefoot.data.catalog.loaders.found import Classes
from surefoot.data.findings import Finding
from surefoot.data.layout import Split, listed
from surefoot.guard import parse_json, read_text

_VID = ("metadata/pmsets.json", "metadata/labels.json", "misc/imagenet_vid_class_index.json", "misc/rev_wnid_map.json")
_YTBB = ("anchor_labels.json", "pmk_labels.json", "ytbb_class_index.json", "rev_class_idx_map.json")
_ANCHORS = "ytbb_robustness_test_anchors_full.csv"
_UNLIKE = frozenset(
    {"dissimilar", "problematic", "incorrect", "dont know", "deformation", "background-change", "occlusion-increased", "blur-increase"}
)
"""What reviewers of YTBB-Robust said of a frame that does not show what its anchor shows."""
_NEAR = 10  # frames
_SWAPPED = {22: 23, 23: 22}  # the list of anchors numbers "car" and "none" the other way round than all other files

_Frames = dict[Path, Sequence[int]]
"""{frame: its classes, the one that counts first}."""
_Sets = dict[Path, _Frames]
"""{anchor frame: itself and the frames around it}."""
_Found = tuple[_Sets, Mapping[int, str], Mapping[int, Sequence[int]]]
"""The frames, the names of the classes, and which of ImageNet's each stands for."""


def read_vid_robust(part: Part, place: Path, classes: Classes) -> tuple[Split, list[Finding]]:
    """The 1109 anchors of ImageNet-Vid-Robust, of 30 classes; with the frames around them if the part says so."""
    return _read(part, place, [place / name for name in _VID], lambda: _vid_robust(place, classes))


def _vid_robust(place: Path, classes: Classes) -> _Found:
    pmsets, labels, index, above = (_json(place / name) for name in _VID)
    number = {wnid: int(key) for key, (wnid, _) in index.items()}
    mapped = {number[wnid]: [classes.row[one] for one in below] for wnid, below in above.items()}
    sets = {place / anchor: {place / frame: labels[frame] for frame in (anchor, *around)} for anchor, around in pmsets.items()}
    return sets, {int(key): name.replace("_", " ") for key, (_, name) in index.items()}, mapped


def read_ytbb_robust(part: Part, place: Path, classes: Classes) -> tuple[Split, list[Finding]]:
    """The anchors of YTBB-Robust that its reviewers found good, of the 19 classes that ImageNet has too; the frames around likewise."""
    return _read(part, place, [place / "ytbb-robust_metadata" / name for name in (*_YTBB, _ANCHORS)], lambda: _ytbb_robust(place))


def _ytbb_robust(place: Path) -> _Found:
    metadata = place / "ytbb-robust_metadata"
    anchors, around, index, mapped = (_json(metadata / name) for name in _YTBB)
    names = {int(key): name for key, name in index.items()}
    number = {name: key for key, name in names.items()}
    with (metadata / _ANCHORS).open(encoding="utf-8", newline="") as file:
        first = {f"{row['ytid']}_{row['time_ms']}": int(row["label"]) for row in csv.DictReader(file)}
    pairs = {tuple(map(_key, one["key"].split(","))): _said(around, one) for one in around["annotations"]}  # the last word counts
    bad = {anchor for (anchor, _), said in pairs.items() if "bad-anchor" in said}
    near: dict[str, list[str]] = {}
    for (anchor, frame), said in pairs.items():
        if "similar" in said and not said & _UNLIKE and 0 < abs(_number(frame) - _number(anchor)) <= _NEAR:
            near.setdefault(anchor, []).append(frame)
    sets: _Sets = {}
    for one in {_key(one["key"]): one for one in anchors["annotations"]}.values():  # one that was reviewed twice: the last word counts
        key, said = _key(one["key"]), _said(anchors, one)
        if "good" in said and not said & {"bad", "unsure"} and key not in bad:
            own = first[key.split("/")[0]]
            added = sorted(number[name] for name in said if name in number)
            every = list(dict.fromkeys([_SWAPPED.get(own, own), *added]))  # of the anchor; they count for the frames around it too
            sets[place / "ytbb_videos" / key] = {place / "ytbb_videos" / frame: every for frame in (key, *near.get(key, ()))}
    return sets, names, {int(key): rows for key, rows in mapped.items()}


def _key(path: str) -> str:
    """<video>/<frame> of a frame, however many folders are written before it."""
    return "/".join(path.split("/")[-2:])


def _number(key: str) -> int:
    """The number of a frame, <video>/frame-<number>.jpg."""
    return int(Path(key).stem.rpartition("-")[2])


def _said(annotations: Mapping[str, Any], one: Mapping[str, Any]) -> set[str]:
    """What a reviewer said of a frame."""
    return {annotations["labels"][label] for label in one["labels"]}


def _read(part: Part, place: Path, needed: Sequence[Path], find: Callable[[], _Found]) -> tuple[Split, list[Finding]]:
    """The split of anchors, or of them and the frames around; its classes are those that stand for some of ImageNet's."""
    nothing, level = Split(part.name, (), (), ()), "warning" if part.optional else "error"
    if gone := [str(path) for path in needed if not path.is_file()]:
        return nothing, [Finding(level, f"{part.name} is not complete: there is no {listed(gone)}. Get it from: {part.source}.")]
    try:
        sets, names, mapped = find()
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        return nothing, [Finding(level, f"{part.name}: the files beside {needed[0]} are not the set's own ({error!r}). Get them again.")]
    kept = sorted(label for label, rows in mapped.items() if rows)
    row = {label: number for number, label in enumerate(kept)}
    together = bool(part.options.get("around"))
    frames: _Frames = {}
    video: dict[Path, str] = {}
    for anchor, around in sorted(sets.items()):
        for path in sorted(around) if together else (anchor,):
            frames[path] = [label for label in around[path] if label in row]
            video[path] = f"{anchor.parent.name}/{anchor.name}"
    there = {path: own for path, own in frames.items() if own and path.is_file()}
    others = tuple(tuple(row[label] for label in own[1:]) for own in there.values())
    split = Split(
        part.name, tuple(there), tuple(row[own[0]] for own in there.values()), tuple(names[label] for label in kept),
        mapped=tuple(tuple(mapped[label]) for label in kept),
        accepted=others if any(others) else (),
        groups=tuple(video[path] for path in there) if together else (),
        together=together,
    )  # fmt: skip
    return split, _said_of(part, frames, there, "frames" if together else "anchor frames")


def _said_of(part: Part, frames: _Frames, there: _Frames, what: str) -> list[Finding]:
    findings = []
    if gone := [str(path) for path, own in frames.items() if own and path not in there]:
        level = "warning" if there or part.optional else "error"
        findings.append(Finding(level, f"{part.name}: {len(gone)} of {len(frames)} {what} are not there: {listed(gone, 3)}."))
    if unknown := sum(not own for own in frames.values()):
        findings.append(Finding("note", f"{part.name}: {unknown} {what} show only classes that ImageNet has not; left out."))
    if several := sum(len(own) > 1 for own in there.values()):
        findings.append(Finding("note", f"{part.name}: {several} of {len(there)} frames show several classes, any of which is right."))
    return findings


def _json(path: Path) -> dict[str, Any]:
    return dict(parse_json(read_text(path)))
