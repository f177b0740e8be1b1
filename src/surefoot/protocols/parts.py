"""The papers' evaluation protocols: each cuts data sets into parts, and says which of the parts' accuracies make its table.

A part is an ordinary data set on which methods are compared; a protocol with one part is a comparison with a table of its own. Nothing is
trained here.

    shift               A                 ID and every shift (WiSE-FT, FLYP, CAR-FT, ARF)
    context             A                 context recognition in every context (CAR-FT, fig. 1)
    few_shots           A, numbers        a few images of each class, several draws (FLYP, CLIP-CITE)
    sweep               A, values         one setting at several values (CAR-FT, fig. 3; CLIP-CITE, fig. 7)
    halves              A, B, ...         base classes learned, new ones met by name (CLIP-CITE, table 1)
    leave_one_out       A                 every domain held out in turn (DomainBed; CAR-FT, table 2)
    cross               A -> B, C, ...    base classes of A, then both halves of the others (CLIP-CITE, table 3)
    zeroshot_transfer   A -> B, C, ...    all of A, then the others among their own names (ARF, table 2)
    transfer            A, B, ...         all of each, one after the other (FLYP, table 3; CAR-FT, table 3)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from surefoot.answers import file_name
from surefoot.data.layout import Dataset, Split, listed
from surefoot.data.subsets import NEW, base_to_new, few_shot, only_classes
from surefoot.errors import DataError, SettingError, unknown_name
from surefoot.protocols.domains import contents_of, domains_of, fold

Source = tuple[str, str]
"""A part, and a column of its evaluations that is the accuracy on one set of images."""
DOMAIN_VAL_SHARE, DOMAINBED = 0.2, {"seeds": (0, 1, 2), "steps": 5000}
"""DomainBed's: what of each training domain is held back for validation; its trials, and the length of each."""
AVERAGE = "Avg."
MEASURES = {"macro_f1": "Macro F1", "worst_group": "Worst group", "mean_per_class": "Mean per class"}
"""Headings of the metrics that data may have beside accuracy."""


@dataclass(frozen=True)
class Part:
    """One comparison of a protocol.

    Attributes:
        name: of the part and of its folder.
        dataset: what is trained and judged on.
        shots: images a class that are trained on; None for all.
        settings: of every method in this part, over those of the plan.
    """

    name: str
    dataset: Dataset
    shots: int | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Column:
    """One column of a protocol's table: the harmonic mean, over the tuples of `sources`, of the mean accuracy within each.

    With one tuple that is a mean, with one source an accuracy. `group` is a heading that several columns share. `measure` is what is
    measured in place of top-1 accuracy, on a single source: "macro_f1", "worst_group" or "mean_per_class".
    """

    name: str
    sources: tuple[tuple[Source, ...], ...]
    group: str = ""
    measure: str = "accuracy"


@dataclass(frozen=True)
class Protocol:
    """Parts and the table that they make.

    Attributes:
        name: what the command is called.
        parts: run one after the other.
        columns: in the order of the table.
        notes: how the parts were cut, for the report.
        val_share: what is held back of each class of each domain for validation, where the protocol draws that itself.
        along: what the columns of a group are points along, such as "images a class"; empty if they are no curve.
    """

    name: str
    parts: tuple[Part, ...]
    columns: tuple[Column, ...]
    notes: tuple[str, ...] = ()
    along: str = ""
    val_share: float | None = None

    def with_shots(self, shots: Sequence[int]) -> Protocol:
        """The same on one number of images a class; on all of them if none is given.

        Raises:
            SettingError: several numbers.
        """
        if len(shots) > 1:
            raise SettingError(f"{self.name} takes one number of images a class; {list(shots)} were given. For several use few-shot.")
        return replace(self, parts=tuple(replace(part, shots=shots[0]) for part in self.parts)) if shots else self


def shift(dataset: Dataset) -> Protocol:
    """ID, every shift, and means over the shifts and over all: the table of the papers on robustness.

    A shift that holds a part of the classes (ImageNet-R and -A: 200 of 1,000) is judged among these alone too, as the papers do; their
    average takes the other shifts as they are. Data with a metric of their own (iWildCam: macro F1; FMoW: the worst region) have it
    beside accuracy.

    Raises:
        DataError: no shift.
    """
    if not dataset.shifts:
        raise DataError(
            f"{dataset.folder} holds no shifts/<name>. Add one, or use 'surefoot compare', which corrupts the test images then."
        )
    name = dataset.name
    each = [Column(split.name.removeprefix("shifts/"), (((name, split.name),),), "Shifts") for split in dataset.shifts]
    shifts = tuple(source for column in each for source in column.sources[0])
    means = [Column("Avg. shifts", (shifts,)), Column("Avg. all", (((name, "test"), *shifts),))]
    mapped = [column.name for column, split in zip(each, dataset.shifts, strict=True) if split.mapped]
    if mapped and len(mapped) < len(each):  # CAR-FT and CLIP-CITE average without ObjectNet
        rest = tuple(source for column in each if column.name not in mapped for source in column.sources[0])
        means.insert(1, Column(f"Avg. shifts without {listed(mapped)}", (rest,)))
    first = Column("ID", (((name, "test"),),))
    total = len(dataset.class_names)
    few = {split.name: f"restricted/{column.name}" for split, column in zip(dataset.shifts, each, strict=True) if _holds_few(split, total)}
    restricted = [Column(title.removeprefix("restricted/"), (((name, title),),), "Own classes") for title in few.values()]
    if few:
        restricted.append(Column(AVERAGE, (tuple((name, few.get(split.name, split.name)) for split in dataset.shifts),), "Own classes"))
    metric = dataset.metric
    own = [replace(column, group=MEASURES[metric], measure=metric) for column in (first, *each) if metric != "accuracy"]
    return Protocol("shift", (Part(name, dataset),), (first, *each, *means, *restricted, *own))


def _holds_few(split: Split, total: int) -> bool:
    """Whether a shift holds images of a part of the classes, as ImageNet-R and -A do."""
    return not split.mapped and len(split.own_classes) < total


def context(dataset: Dataset) -> Protocol:
    """Context recognition on ID and every shift that has a context: which of the contexts an image is drawn in.

    Raises:
        DataError: no contexts.

    References:
        Mao et al., "Context-aware robust fine-tuning", IJCV 2024, fig. 1.
    """
    seen = [found for split in ("test", *(s.name for s in dataset.shifts)) if (found := dataset.context_of(split))]
    if not seen:
        raise DataError(
            f"{dataset.folder} names no contexts that its splits are drawn in. Add [contexts] and id_context to its dataset.toml."
        )
    name, columns = dataset.name, list[Column]()
    for kind, group in (("context", "Image tower"), ("context_own", "Both towers")):
        each = [Column(found, (((name, f"{kind}/{found}"),),), group) for found in seen]
        columns += [*each, Column(AVERAGE, (tuple(source for one in each for source in one.sources[0]),), group)]
    return Protocol("context", (Part(name, dataset),), tuple(columns))


def few_shots(dataset: Dataset, counts: Sequence[int]) -> Protocol:
    """Training with a few images of each class, a new draw for each seed (see `few_shot`).

    Args:
        dataset: with train and val.
        counts: k, the numbers of images a class.

    Raises:
        SettingError: no number, or one below 1.
        DataError: a class with too few images.
    """
    if not counts:
        raise SettingError("There is no number of images a class. Give some, such as 1,2,4,8,16.")
    for count in counts:
        few_shot(dataset, count, seed=0)
    parts = {str(count): Part(f"shots-{count}", dataset, count) for count in counts}
    return Protocol("few-shot", tuple(parts.values()), _points(dataset, parts), along="images a class")


def sweep(dataset: Dataset, key: str, values: Sequence[Any]) -> Protocol:
    """The same methods with one setting at several values: the papers' curves over the weight of a loss, the batch size or the rate.

    Args:
        dataset: what is trained and judged on.
        key: a training setting, or one that every method has.
        values: what it is set to.

    Raises:
        SettingError: fewer than two values.

    References:
        Mao et al. (CAR-FT), fig. 3. Liu et al. (CLIP-CITE), fig. 7. Goyal et al. (FLYP), appendix A.
    """
    parts = {f"{value}": Part(file_name(f"{key}-{value}"), dataset, settings={key: value}) for value in values}
    if len(parts) < 2:
        raise SettingError(f"A sweep over {key} needs two values or more; {list(parts)} were given. Write --over {key}=0.1,1,10.")
    return Protocol("sweep", tuple(parts.values()), _points(dataset, parts), along=key.replace("_", " "))


def _points(dataset: Dataset, parts: Mapping[str, Part]) -> tuple[Column, ...]:
    """ID, the mean of the shifts, unseen classes and of base and new ones the harmonic mean, each along parts by their labels."""
    groups: list[tuple[str, list[str]]] = [("ID", ["test"])]
    if dataset.shifts:
        groups.append(("Avg. shifts", [split.name for split in dataset.shifts]))
    groups += [(_unseen_title(split, dataset), [split.name]) for split in dataset.unseen]
    found = [
        Column(label, (tuple((part.name, name) for name in names),), group) for group, names in groups for label, part in parts.items()
    ]
    if NEW in dataset.splits:
        found += [Column(label, (((part.name, "test"),), ((part.name, NEW),)), "HM") for label, part in parts.items()]
    return tuple(found)


def halves(datasets: Sequence[Dataset]) -> Protocol:
    """Base-to-new on one data set or several: base classes, new classes, and their harmonic mean.

    The harmonic mean of the averages is that of mean base and mean new, as CLIP-CITE's table has it.

    References:
        Zhou et al., "Conditional prompt learning for vision-language models", CVPR 2022, section 4.1.
    """
    parts = [Part(data.name, base_to_new(bare(data))) for data in _distinct(datasets)]
    columns = [column for part in parts for column in _two_halves([part.name], part.name if len(parts) > 1 else "")]
    if len(parts) > 1:
        columns += _two_halves([part.name for part in parts], AVERAGE)
    return Protocol("base-to-new", tuple(parts), tuple(columns))


def _two_halves(parts: Sequence[str], group: str) -> list[Column]:
    base, new = (tuple((part, column) for part in parts) for column in ("test", NEW))
    return [Column("Base", (base,), group), Column("New", (new,), group), Column("HM", (base, new), group)]


def leave_one_out(dataset: Dataset, *, seed: int = 0, val_share: float = DOMAIN_VAL_SHARE) -> Protocol:
    """Every domain held out in turn: trained on all others, chosen on the part of them that is held back, judged on it.

    The ID data are one domain, called by their context, and each shift is one. A held-out domain has no say in anything but its column.

    Args:
        dataset: with one shift at least, the domains of which hold classes of train.
        seed: of the draw of validation images, to which the seed of a run is added.
        val_share: of each class of each training domain.

    Raises:
        DataError: one domain only, or domains that together do not hold every class. SettingError: a share out of range.

    Differences:
        DomainBed draws validation images of a domain without regard to their classes, averages validation accuracy over the training
        domains, and judges a held-out domain on 80% of its images; here each class gives its share, validation images count alike whatever
        their domain, and a held-out domain is judged whole.

    References:
        Gulrajani & Lopez-Paz, "In search of lost domain generalization", ICLR 2021. Mao et al. (CAR-FT), table 2.
    """
    if not 0 < val_share < 1:
        raise SettingError(f"val_share is {val_share}; it must lie between 0 and 1. DomainBed holds back {DOMAIN_VAL_SHARE}.")
    domains = domains_of(dataset)
    contents = contents_of(domains)
    parts = tuple(Part(name, fold(dataset, domains, contents, name, seed, val_share)) for name in domains)
    columns = [Column(name, (((name, f"shifts/{name}"),),)) for name in domains]
    average = Column(AVERAGE, (tuple(source for column in columns for source in column.sources[0]),))
    note = (
        f"Each of the {len(domains)} domains was held out in turn ({', '.join(domains)}); of the others {100 * val_share:g}% of each class "
        f"were kept for validation, drawn anew for each seed."
    )
    return Protocol("domains", parts, (*columns, average), (note,), val_share=val_share)


def cross(source: Dataset, targets: Sequence[Dataset]) -> Protocol:
    """Trained on the base classes of one data set, judged on the base and the new classes of others, each half among its own names.

    References:
        Liu et al. (CLIP-CITE), table 3.
    """
    _distinct([source, *targets])
    base, columns = base_to_new(bare(source)), _two_halves([source.name], source.name)
    for target in targets:
        test, total = target.split("test"), len(target.class_names)
        half = math.ceil(total / 2)
        for title, classes in (("Base", range(half)), ("New", range(half, total))):
            split = _as_unseen(replace(only_classes(test, classes), templates=target.templates), f"{target.name} {title.lower()}")
            base = replace(base, splits={**base.splits, split.name: split})
            columns.append(Column(title, (((source.name, split.name),),), target.name))
    average = [
        Column(title, (tuple(s for c in columns for s in c.sources[0] if c.name == title and c.group != source.name),), AVERAGE)
        for title in ("Base", "New")
    ]
    return Protocol("cross", (Part(source.name, base),), (*columns, *(average if len(targets) > 1 else ())))


def zeroshot_transfer(source: Dataset, targets: Sequence[Dataset]) -> Protocol:
    """Trained on all of one data set; the test images of others are judged among their own names, with their own prompts.

    References:
        Han et al. (ARF), table 2.
    """
    _distinct([source, *targets])
    data, name, columns = bare(source), source.name, [Column(source.name, (((source.name, "test"),),), "Fine-tuned on")]
    for target in targets:
        split = _as_unseen(replace(target.split("test"), templates=target.templates), target.name)
        data = replace(data, splits={**data.splits, split.name: split})
        columns.append(Column(target.name, (((name, split.name),),), "Transferred to"))
    others = tuple(source for column in columns[1:] for source in column.sources[0])
    average = [Column(AVERAGE, (others,), "Transferred to")] * (len(targets) > 1)
    return Protocol("zeroshot-transfer", (Part(name, data),), (*columns, *average))


def transfer(datasets: Sequence[Dataset]) -> Protocol:
    """Trained on all of each data set in turn, judged on its own test images.

    References:
        Goyal et al. (FLYP), table 3. Mao et al. (CAR-FT), table 3.
    """
    parts = [Part(data.name, bare(data)) for data in _distinct(datasets)]
    columns = [Column(part.name, (((part.name, "test"),),)) for part in parts]
    average = Column(AVERAGE, (tuple(source for column in columns for source in column.sources[0]),))
    return Protocol("transfer", tuple(parts), (*columns, *([average] * (len(parts) > 1))))


def bare(dataset: Dataset) -> Dataset:
    """The data set without shifts and unseen classes."""
    return replace(dataset, splits={name: split for name, split in dataset.splits.items() if "/" not in name})


def _as_unseen(split: Split, name: str) -> Split:
    if not split.paths:
        raise DataError(f"{name} has no test images. Add some, or leave it out.")
    return replace(split, name=f"unseen/{name}")


def _distinct(datasets: Sequence[Dataset]) -> Sequence[Dataset]:
    """The data sets, each of which has a name of its own that can be a folder's.

    Raises:
        DataError: two of one name, or a name that is no folder's.
    """
    for data in datasets:
        if data.name in ("report", ".", "..") or {"/", "\\"} & set(data.name):
            raise DataError(
                f"{data.folder} is called '{data.name}', which cannot be a folder's name here. Set another name in its dataset.toml."
            )
    names = [data.name for data in datasets]
    if twice := {name for name in names if names.count(name) > 1}:
        roots = " and ".join(str(data.folder) for data in datasets if data.name in twice)
        raise DataError(f'{roots} have one name, {min(twice)}. Give each its own: name = "..." in its dataset.toml.')
    return datasets


def _unseen_title(split: Split, dataset: Dataset) -> str:
    return f"Unseen: {split.name.removeprefix('unseen/')}" if len(dataset.unseen) > 1 else "Unseen"


@dataclass(frozen=True)
class Kind:
    """How a protocol is made from `least` to `most` (None: any number of) data sets, numbers of shots, and seed and share of validation
    images where it draws them; `usual` are seeds and steps where neither recipe nor user says any."""

    make: Callable[[Sequence[Dataset], Sequence[int], tuple[int, float]], Protocol]
    least: int = 1
    most: int | None = 1
    usual: Mapping[str, Any] = field(default_factory=dict)


PROTOCOLS: dict[str, Kind] = {
    "shift": Kind(lambda data, shots, draw: shift(data[0]).with_shots(shots)),
    "context": Kind(lambda data, shots, draw: context(data[0]).with_shots(shots)),
    "few-shot": Kind(lambda data, shots, draw: few_shots(data[0], shots)),
    "base-to-new": Kind(lambda data, shots, draw: halves(data).with_shots(shots), most=None),
    "domains": Kind(lambda data, shots, draw: leave_one_out(data[0], seed=draw[0], val_share=draw[1]).with_shots(shots), usual=DOMAINBED),
    "cross": Kind(lambda data, shots, draw: cross(data[0], data[1:]).with_shots(shots), least=2, most=None),
    "zeroshot-transfer": Kind(lambda data, shots, draw: zeroshot_transfer(data[0], data[1:]).with_shots(shots), least=2, most=None),
    "transfer": Kind(lambda data, shots, draw: transfer(data).with_shots(shots), most=None),
}


def build(
    name: str, datasets: Sequence[Dataset], *, shots: Sequence[int] = (), seed: int = 0, val_share: float = DOMAIN_VAL_SHARE
) -> Protocol:
    """A protocol of the table by its name, on data sets that are complete.

    Args:
        name: a key of `PROTOCOLS`.
        datasets: one, or for "cross" and "zeroshot-transfer" the one that is trained on and then the others, for "base-to-new" and
            "transfer" as many as are wanted.
        shots: images a class: the points of "few-shot"; one number for any other protocol, none for all images.
        seed: of the validation images of "domains", and
        val_share: how many of them there are.

    Raises:
        UnknownNameError: no such protocol.
        SettingError: a number of data sets or of shots that it does not take.
        DataError: data that it cannot be run on.
    """
    if name not in PROTOCOLS:
        raise unknown_name("protocol", name, PROTOCOLS)
    kind = PROTOCOLS[name]
    if len(datasets) < kind.least or (kind.most and len(datasets) > kind.most):
        wanted = f"{kind.least} data set{'s' * (kind.least > 1)}{'' if kind.most else ' or more'}"
        raise SettingError(f"{name} takes {wanted}; {len(datasets)} were given: {', '.join(data.name for data in datasets)}.")
    return kind.make(datasets, shots, (seed, val_share))
