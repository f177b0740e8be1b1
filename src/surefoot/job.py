"""What was asked for, written beside its records, so that a folder can be opened again: which data, which model, which plan."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, get_args

import torch

from surefoot import distributed
from surefoot.anchors.attach import attach, default_folder
from surefoot.compare import Plan
from surefoot.data import Dataset, catalog, load
from surefoot.data.embedded import names
from surefoot.data.splits import VAL_SHARE
from surefoot.data.subsets import base_to_new, smoke
from surefoot.data.survey import verified
from surefoot.errors import DataError, MissingDataError, unknown_name
from surefoot.folders import put_text
from surefoot.guard import made, parse_json, read_text
from surefoot.model import ImageTextModel, load_model, pick_device
from surefoot.precision import Precision
from surefoot.protocols.parts import DOMAIN_VAL_SHARE, build
from surefoot.train import Training

FILE = "job.json"
FORM = 2  # of the file; in the first one a share of 0.15 also stood for none given
PRECISIONS = ("auto", *get_args(Precision))


@dataclass(frozen=True)
class Cut:
    """Which part of a protocol the data are: cut from them and from `others`, which are opened in the same way.

    `val_share` is what "domains" holds back; where it is None, as in older folders, it is DomainBed's share.
    """

    protocol: str
    part: str
    others: tuple[str, ...] = ()
    val_share: float | None = None


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """How a user's data are opened.

    Attributes:
        data: an embedded name, a folder or a manifest; with a root, a name of the catalogue.
        root: the folder that a data set of the catalogue lies in.
        split_seed: of the splits that are cut off train where the data have none.
        val_share: part of the images that becomes validation then; None leaves it to the data: see `surefoot.data.load`.
        test_share: part that becomes test.
        skip_unreadable: leave unreadable images out, and count them, instead of stopping.
        base_to_new: train on the first half of the classes and judge the other half as unseen.
        anchors: folder of captions and retrieved pairs; the one in the user's cache if None.
        cut: the part of a protocol that they are; the whole data set if None.
        templates: "own" prompts, or "clip" for those of CLIP's authors where they have others for a data set of the catalogue.
        fewer: let a class that has fewer images than a few-shot draw asks for give all it has.
        allow_outside: see `surefoot.data.load`.
        smoke: take a few images of a few classes, to try a command.
    """

    data: str
    split_seed: int = 0
    val_share: float | None = None
    test_share: float = 0.15
    skip_unreadable: bool = False
    base_to_new: bool = False
    anchors: str | None = None
    cut: Cut | None = None
    fewer: bool = False
    root: str | None = None
    templates: str = "own"
    allow_outside: bool = False
    smoke: bool = False

    @property
    def anchors_folder(self) -> Path:
        """Where captions and retrieved pairs of the data lie."""
        return default_folder(self.data, self.root) if self.anchors is None else Path(self.anchors)

    def anywhere(self) -> DataOptions:
        """The same with absolute paths; embedded data and those of the catalogue keep their name."""
        path = Path(self.data)
        anchors = None if self.anchors is None else str(Path(self.anchors).absolute())
        root = None if self.root is None else str(Path(self.root).absolute())
        named = self.data in names() or (root is not None and self.data in catalog.names())
        moved = not named and path.exists()
        return replace(self, data=str(path.absolute()) if moved else self.data, anchors=anchors, root=root)

    def open(self, on_image: Callable[[int, int], None] | None = None) -> Dataset:
        """The data set, every image of it read once, with the anchors of its training images.

        Args:
            on_image: hears how many images are read, and how many there are.

        Raises:
            MissingDataError: no such folder, file or embedded data set.
            DataError: data that cannot be used, or images that cannot be read, all of them named; damaged anchors.
        """
        return attach(self.open_plain(on_image), self.anchors_folder)

    def open_plain(self, on_image: Callable[[int, int], None] | None = None) -> Dataset:
        """The same without anchors, for commands that make them."""
        found = load(
            self.data, root=self.root, seed=self.split_seed, val_share=self.val_share, test_share=self.test_share, templates=self.templates,
            allow_outside=self.allow_outside,
        )  # fmt: skip
        found = verified(smoke(found) if self.smoke else found, skip_unreadable=self.skip_unreadable, on_image=on_image)
        found = replace(found, fewer_shots=found.fewer_shots or self.fewer)
        if self.cut:
            return self._part(found, self.cut, on_image)
        return base_to_new(found) if self.base_to_new else found

    def _part(self, dataset: Dataset, cut: Cut, on_image: Callable[[int, int], None] | None) -> Dataset:
        others = [replace(self, data=other, cut=None).open_plain(on_image) for other in cut.others]
        share = DOMAIN_VAL_SHARE if cut.val_share is None else cut.val_share
        made = build(cut.protocol, [dataset, *others], seed=self.split_seed, val_share=share)
        parts = {part.name: part.dataset for part in made.parts}
        if cut.part not in parts:
            raise unknown_name(f"part of {cut.protocol}", cut.part, parts)
        return parts[cut.part]


def native_bf16(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 matrices in hardware, so that computing the towers in it pays."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    if device.type == "cpu":
        capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
        return bool(capabilities.get("amx_bf16") or capabilities.get("avx512_bf16"))
    return False


def pick_precision(name: str, device: torch.device) -> Precision:
    """What "auto" means on a device: bf16 where the hardware has it, fp32 elsewhere; a precision that is named stays.

    Raises:
        UnknownNameError: neither "auto" nor a precision.
    """
    if name not in PRECISIONS:
        raise unknown_name("precision", name, PRECISIONS)
    return ("bf16" if native_bf16(device) else "fp32") if name == "auto" else name  # type: ignore[return-value]


@dataclass(frozen=True, kw_only=True)
class Job:
    """Data, model and plan of one folder of records, and the boards that show how it goes on."""

    data: DataOptions
    model: str
    precision: str
    plan: Plan
    device: str = "auto"
    watch: tuple[str, ...] = ()

    def load_model(self) -> ImageTextModel:
        """The pre-trained model on its device."""
        device = distributed.start(pick_device(self.device))
        return load_model(self.model, device=device, precision=pick_precision(self.precision, device))

    def save(self, folder: Path) -> None:
        """Write job.json into the folder, in one piece; with the data's absolute path, so that the folder opens from anywhere."""
        stored = {"form": FORM, **asdict(replace(self, data=self.data.anywhere()))}
        put_text(folder / FILE, json.dumps(stored, indent=1) + "\n")

    @classmethod
    def of(cls, folder: Path) -> Job:
        """The job of a folder that `fit` or `compare` wrote.

        Raises:
            MissingDataError: no job.json there.
            DataError: not one of these.
        """
        path = folder / FILE
        if not path.is_file():
            raise MissingDataError(f"{path} is not there. Give a folder that 'surefoot fit' or 'surefoot compare' wrote.")
        try:
            return cls._from(parse_json(read_text(path)))
        except (TypeError, KeyError, AttributeError, ValueError) as error:
            reason = f"it holds no {error}" if isinstance(error, KeyError) else str(error)
            raise DataError(
                f"{path} is damaged, or was not written by Surefoot: {reason}. "
                "Run 'surefoot fit' or 'surefoot compare' again into this folder; what is finished there is kept."
            ) from error

    @classmethod
    def _from(cls, stored: dict[str, Any]) -> Job:
        form, plan = stored.pop("form", 1), stored["plan"]
        plan = {key: tuple(value) if isinstance(value, list) else value for key, value in plan.items()}
        texts = [stored["model"], stored["precision"], stored["data"]["data"], *plan["methods"]]
        if not isinstance(plan["methods"], tuple) or not all(isinstance(text, str) for text in texts):
            raise TypeError("model, precision, data and methods must be texts")
        own = made(Plan, {**plan, "training": made(Training, plan["training"])})
        return made(cls, {**stored, "data": _options(stored["data"], form), "plan": own, "watch": tuple(stored.get("watch", ()))})

    def at(self, alphas: tuple[float, ...]) -> Job:
        """The same with other coefficients of WiSE-FT."""
        return replace(self, plan=replace(self.plan, alphas=alphas))


def _options(stored: dict[str, Any], form: int) -> DataOptions:
    cut = stored.get("cut")
    if form < FORM and stored.get("val_share") == VAL_SHARE:
        stored = {**stored, "val_share": None}
    given = made(DataOptions, {key: value for key, value in stored.items() if key != "cut"})
    return replace(given, cut=Cut(cut["protocol"], cut["part"], tuple(cut["others"]), cut.get("val_share")) if cut else None)
