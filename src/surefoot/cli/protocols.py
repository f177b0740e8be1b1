"""The papers' protocols as commands: `surefoot domains`, `cross`, `transfer` and the others; one body serves all of them.

Annotations are evaluated here, since the help of an argument differs from protocol to protocol.
"""

import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from surefoot import records
from surefoot.cli import console as shared
from surefoot.cli.compare import Alphas, Methods, Seeds, Trials, carry_out, possible
from surefoot.cli.recipe import resolve
from surefoot.cli.report import COMMAND, write_report, write_series
from surefoot.cli.tune import Space, tuned_plan
from surefoot.compare import Comparison, Plan, series
from surefoot.data.splits import TEST_SHARE
from surefoot.data.subsets import SMOKE_NOTE
from surefoot.distributed import is_first
from surefoot.errors import SettingError
from surefoot.folders import put_text
from surefoot.job import Cut, DataOptions, Job
from surefoot.methods import ALL
from surefoot.model import pick_device
from surefoot.protocols.parts import DOMAIN_VAL_SHARE, PROTOCOLS, Part, Protocol, build
from surefoot.tune.sampler import require_optuna

SUMMARIES = {
    "shift": "ID, every shift and their means: the table of the papers on robustness.",
    "context": "Context recognition in every context, by the image tower alone and by both towers (CAR-FT, figure 1).",
    "few-shot": "A few images of each class, a new draw for each seed (FLYP, CLIP-CITE).",
    "base-to-new": "Learn half of the classes, meet the other half by name; one data set or several (CLIP-CITE, table 1).",
    "domains": "Hold out each domain in turn, choosing on the training domains (DomainBed; CAR-FT, table 2). 5,000 steps "
    "and seeds 0, 1, 2, as DomainBed, for all data alike, where neither --recipe nor a setting says otherwise (--recipe iconshift is much "
    "shorter: its own six epochs).",
    "cross": "Learn the base classes of the first data set, judge base and new classes of the others (CLIP-CITE, table 3).",
    "zeroshot-transfer": "Learn the first data set, judge the others among their own names (ARF, table 2).",
    "transfer": "Learn each data set in turn, judge each on its own test images (FLYP, table 3; CAR-FT, table 3).",
}
EXAMPLES = {
    "shift": "surefoot shift iconshift --methods tp_ft,flyp --out runs/shift",
    "context": "surefoot context iconshift --methods tp_ft,car_ft --out runs/context",
    "few-shot": "surefoot few-shot iconshift --shots 1,2,4 --seeds 0,1,2,3,4 --out runs/few-shot",
    "base-to-new": "surefoot base-to-new pets cars --shots 16 --methods tp_ft,clip_cite --out runs/base-to-new",
    "domains": "surefoot domains pacs --root data --recipe car_ft/domainbed --out runs/pacs",
    "cross": "surefoot cross cars flowers pets --shots 16 --methods tp_ft,clip_cite --out runs/cross",
    "zeroshot-transfer": "surefoot zeroshot-transfer photos flowers pets --methods flyp,arf --out runs/zeroshot-transfer",
    "transfer": "surefoot transfer flowers pets --methods tp_ft,flyp --out runs/transfer",
}
_DATA = {
    1: "A data set: a folder, a manifest, an embedded name such as 'iconshift', or a name of 'surefoot datasets' with --root.",
    2: "The data set that is trained on, then those that are judged: folders, manifests or names.",
    None: "Data sets, one or more: folders, manifests or names.",
}
_SHOTS = "Images a class: one number, a new draw for each seed. Default: all images."
_SHOTS_OF = {"few-shot": "Images a class, such as 1,2,4,8,16; a new draw for each seed."}
_NO_TEST = (
    "--test-share is {}, and domains splits off no test images: a held-out domain is judged whole. Leave it out; --val-share says how much "
    "of the training domains is held back for validation."
)
_TEST = "Part of the images that becomes test where the data have none."
_VAL = {
    False: shared.VAL_SHARE_HELP,
    True: "Part of each class of each training domain that becomes validation, anew for each seed.",
}
Fewer = Annotated[bool, typer.Option("--fewer", help="A class with fewer images than --shots gives all it has, instead of stopping.")]


def command(name: str) -> Callable[..., None]:
    """The command of a protocol."""
    kind, domains = PROTOCOLS[name], name == "domains"

    def run(
        data: Annotated[list[str], typer.Argument(help=_DATA[2 if kind.least > 1 else kind.most])],
        out: shared.Out = Path("runs") / name,
        root: shared.Root = None,
        recipe: shared.Recipe = None,
        model: shared.Model = None,
        methods: Methods = None,
        seeds: Seeds = None,
        shots: Annotated[str | None, typer.Option(help=_SHOTS_OF.get(name, _SHOTS))] = "1,2,4,8,16" if name == "few-shot" else None,
        fewer: Fewer = False,
        alphas: Alphas = None,
        trials: Trials = None,
        space: Space = None,
        watch: shared.Watch = None,
        precision: shared.PrecisionOption = None,
        device: shared.Device = "auto",
        split_seed: shared.SplitSeed = 0,
        val_share: Annotated[float | None, typer.Option(help=_VAL[domains])] = DOMAIN_VAL_SHARE if domains else None,
        test_share: Annotated[float | None, typer.Option(help=_TEST, hidden=domains)] = None if domains else TEST_SHARE,
        skip_unreadable: shared.SkipUnreadable = False,
        allow_outside: shared.AllowOutside = False,
        smoke: shared.Smoke = False,
        set_: shared.Set = None,
    ) -> None:
        _check(out, device, test_share if domains else None)
        given = {"model": model, "precision": precision, "methods": shared.names(methods), "seeds": shared.numbers(seeds, "--seeds")}
        settings = resolve(data[0], recipe, set_, **given, alphas=shared.given_fractions(alphas, "--alphas"), usual=kind.usual, smoke=smoke)
        options = DataOptions(
            data=data[0], root=root, split_seed=split_seed, skip_unreadable=skip_unreadable, fewer=fewer, templates=settings.templates,
            val_share=None if domains else val_share, test_share=TEST_SHARE if test_share is None else test_share,
            allow_outside=allow_outside, smoke=smoke,
        )  # fmt: skip
        job, own = shared.job(options, settings, device, watch), [replace(options, data=one) for one in data]
        _run(name, own, job, shared.numbers(shots, "--shots") or (), out, trials, space, val_share if domains else None)

    run.__name__, run.__doc__ = name, SUMMARIES[name]
    return run


def _check(out: Path, device: str, no_test: float | None) -> None:
    """What can be wrong before anything is read; `no_test` is a share of test images where there are none."""
    shared.check_folder(out)
    pick_device(device)
    if no_test is not None:
        raise SettingError(_NO_TEST.format(no_test))


COMMANDS = {command(name): example for name, example in EXAMPLES.items()}


def _run(
    name: str,
    options: Sequence[DataOptions],
    job: Job,
    shots: Sequence[int],
    out: Path,
    trials: int | None,
    space: Sequence[str] | None,
    val_share: float | None,
) -> None:
    if trials is not None:
        require_optuna()
    datasets = [shared.opened(one) for one in options]
    protocol = build(name, datasets, shots=shots, seed=job.data.split_seed, val_share=DOMAIN_VAL_SHARE if val_share is None else val_share)
    carry_through(protocol, job, options, out, trials, space)


def carry_through(
    protocol: Protocol, job: Job, options: Sequence[DataOptions], out: Path, trials: int | None = None, space: Sequence[str] | None = None
) -> None:
    """Carry a job out on every part, each in a folder of its own below `out`, and write the protocol's table and page."""
    if job.data.smoke:
        protocol = replace(protocol, notes=(SMOKE_NOTE, *protocol.notes))
    if set(job.plan.methods) == set(ALL):
        for part in protocol.parts:
            job = replace(job, plan=possible(job.plan, part.dataset, job.load_model))
    if job.plan.corruptions is None:  # no protocol's table has them
        job = replace(job, plan=replace(job.plan, corruptions=False))
    found: dict[str, list[records.Evaluation]] = {}
    for number, part in enumerate(protocol.parts, start=1):
        shared.console.print(f"{protocol.name}: {part.name} ({number} of {len(protocol.parts)})", highlight=False, markup=False)
        folder, own = out / part.name, replace(job, data=_cut(protocol, part, options), plan=_plan_of(job.plan, part))
        if trials is not None:
            own = replace(own, plan=tuned_plan(own, part.dataset, folder, trials, list(space) if space else None))
        found[part.name] = evaluations_of(carry_out(own, part.dataset, folder), own.plan)
        write_report(folder)
    if is_first():
        series.write(protocol, found, out, [each.data for each in options])
        put_text(out / COMMAND, "surefoot " + shlex.join(sys.argv[1:]) + "\n")
        write_series(out)


def _plan_of(plan: Plan, part: Part) -> Plan:
    own = {name: {**plan.overrides_of(name), **part.settings} for name in plan.tuned} if part.settings else {}
    return replace(plan, shots=part.shots, overrides={**plan.overrides, **own})


def _cut(protocol: Protocol, part: Part, options: Sequence[DataOptions]) -> DataOptions:
    """How the data of a part are opened again."""
    if protocol.name in ("shift", "context", "few-shot", "sweep"):
        return options[0]  # the data set itself
    first, *others = options
    if protocol.name in ("base-to-new", "transfer"):
        first, others = next(one for one, own in zip(options, protocol.parts, strict=True) if own.name == part.name), []
    return replace(first, cut=Cut(protocol.name, part.name, tuple(one.anywhere().data for one in others), protocol.val_share))


def evaluations_of(comparison: Comparison, plan: Plan) -> list[records.Evaluation]:
    """The evaluations of a plan that stand in the folder of a comparison."""
    wanted = {"zero_shot", *plan.methods}
    return [
        one
        for one in comparison.done.values()
        if comparison.standing.holds(one)
        and one.method in wanted
        and (one.method == "zero_shot" or (one.seed in plan.seeds and one.alpha in plan.all_alphas))
    ]
