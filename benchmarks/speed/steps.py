"""What a step of every method costs against the straightforward implementation of the same step, in one process, alternating.

    python benchmarks/speed/steps.py
    python benchmarks/speed/steps.py --models ViT-B-32 --methods flyp --repeats 2 --out steps.json

First both compute loss and gradients of one batch from the same weights and, since a distance to these weights has no gradient there, once
more after a step; how far they are apart is printed. Then a repeat takes one step of the straightforward kind, one of the library's in
float32 ("exact") and one of the library's in bfloat16 where the hardware has it ("all on"); both of the library's compute attention by the
kernel that is faster in their format, measured before as a long run does at its start. Ratios are of the same repeat; their median counts,
the lowest and highest stand beside it. The share of the matrix product's rate is that of the step with all on, in its format, and so is the
profile, of steps of its own: the share of attention, MLP, layer norm and so on, how near each comes to that rate, and what half of it would
take (parts.py). Models other than IconCLIP have random weights, images are random; nothing is read from a disk.
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from library import Ours, batch_of, built
from parts import parts_of, price, rows
from straight import Straight
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

sys.path.append(str(Path(__file__).parents[1]))
from step_cost import machine

from surefoot.bench import matmul_rate
from surefoot.job import pick_precision
from surefoot.objective import Batch
from surefoot.precision import Precision
from surefoot.train.kernels import fastest_attention

OUT = Path(__file__).parents[1] / "docs" / "speed_steps.json"
METHODS = ("tp_ft", "flyp", "car_ft", "arf", "clip_cite")
MODELS = {"ViT-B-16": 32, "ViT-B-32": 32, "iconclip": 128}
KINDS = ("straight", "exact", "all on")


def straight_of(name: str, model_name: str) -> Straight:
    """The straightforward steps, from the library's zero-shot head and contexts."""
    model = built(model_name)
    ours = Ours(name, built(model_name))
    contexts = ours.reference.context_head("openai80") if name == "car_ft" and ours.reference else torch.empty(0)
    return Straight(name, model.clip, ours.head.weight.detach().clone(), contexts)


def apart(straight: Straight, ours: Ours, batch: Batch) -> dict[str, float]:
    """How far the two are apart with the weights that they have: the loss, and all gradients as one vector, relative."""
    (loss, gradients), (other, found) = straight.gradients(batch), ours.gradients(batch)
    shapes = [sorted(tuple(one.shape) for one in many) for many in (gradients, found)]
    if shapes[0] != shapes[1]:
        sys.exit("The two implementations move different parameters.")
    sizes = [torch.sqrt(sum((one.double() ** 2).sum() for one in many)) for many in (gradients, found)]
    named = {id(p): p.grad for p in ours.moving.named.values() if p.grad is not None}
    mine = [named[id(p)] for p in ours_in_order(straight, ours)]
    gap = torch.sqrt(sum(((a.double() - b.double()) ** 2).sum() for a, b in zip(gradients, mine, strict=True)))
    return {"loss": abs(loss - other) / abs(loss), "gradients": float(gap / sizes[0])}


def ours_in_order(straight: Straight, ours: Ours) -> list[torch.nn.Parameter]:
    """The library's parameters in the order in which the straightforward steps hold theirs."""
    names = {id(parameter): name for name, parameter in straight.clip.named_parameters()}
    names |= {id(parameter): f"head.{name}" for name, parameter in straight.head.named_parameters()}
    held = {name.removeprefix("model."): parameter for name, parameter in ours.moving.named.items()}
    return [held[names[id(parameter)]] for parameter in straight.trained() if parameter.grad is not None]


def operations(straight: Straight, ours: Ours, batch: Batch) -> dict[str, int]:
    """Floating-point operations of matrix products, attention written out as such; "exact" and "all on" have the same."""
    ours.gradients(batch)  # what is computed once a run is there now
    found, fast = {}, torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # of its kernel for evaluation nothing is counted
    try:
        for kind, one in (("straight", straight), ("exact", ours)):
            with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
                one.gradients(batch)
            found[kind] = counter.get_total_flops()
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    return found


def timed(step: Callable[[], object]) -> float:
    """Seconds."""
    began = time.perf_counter()
    step()
    return time.perf_counter() - began


@functools.cache
def kernel_of(model_name: str, size: int, precision: Precision) -> str:
    """The kernel of attention that a long run of any method picks at its start; measured once a model."""
    return fastest_attention(Ours("tp_ft", built(model_name, precision)).model, size)


def measured(model_name: str, name: str, size: int, repeats: int) -> dict[str, Any]:
    """One method on one model."""
    precision = pick_precision("auto", torch.device("cpu"))
    straight, exact = straight_of(name, model_name), Ours(name, built(model_name))
    batch = batch_of(exact.model, size)
    exact.kernel = kernel_of(model_name, size, "fp32")
    gaps = [apart(straight, exact, batch)]
    straight.take(batch), exact.take(batch)
    gaps.append(apart(straight, exact, batch))
    fast = Ours(name, built(model_name, precision))
    fast.kernel = kernel_of(model_name, size, precision)
    fast.gradients(batch)  # what is computed once a run is there now
    counted = operations(straight, exact, batch)
    steps: dict[str, Straight | Ours] = {"straight": straight, "exact": exact, "all on": fast}
    seconds: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for repeat in range(repeats + 1):
        turned = KINDS[repeat % 3 :] + KINDS[: repeat % 3]
        for kind in turned:
            taken = timed(lambda step=steps[kind]: step.take(batch))  # type: ignore[misc]
            if repeat:  # the first warms up
                seconds[kind].append(taken)
    rate = max(matmul_rate(torch.device("cpu"), precision) for _ in range(3))
    return {
        "batch_size": size,
        "precision": precision,
        "apart": {what: max(gap[what] for gap in gaps) for what in gaps[0]},
        "attention": {"exact": exact.kernel, "all on": fast.kernel},
        "seconds": {kind: statistics.median(seconds[kind]) for kind in KINDS},
        "faster": {kind: spread([a / b for a, b in zip(seconds["straight"], seconds[kind], strict=True)]) for kind in KINDS[1:]},
        "each": seconds,
        "parts": parts_of(fast, batch, repeats),
        "operations": counted,
        "rate_share": counted["exact"] / statistics.median(seconds["all on"]) / rate,
        "matmul_gflops": rate / 1e9,
    }


def spread(ratios: Sequence[float]) -> dict[str, float]:
    """Median, lowest and highest."""
    return {"median": statistics.median(ratios), "low": min(ratios), "high": max(ratios)}


def told(found: dict[str, Any]) -> str:
    """What was measured, in a line."""
    times = ", ".join(f"{kind} {seconds:.2f} s" for kind, seconds in found["seconds"].items())
    ratios = ", ".join(f"{kind} {one['median']:.2f} [{one['low']:.2f}, {one['high']:.2f}]" for kind, one in found["faster"].items())
    gap = ", ".join(f"{what} {value:.1e}" for what, value in found["apart"].items())
    return f"{times}; times faster: {ratios}; {found['rate_share']:.0%} of the matrix product's rate; apart: {gap}"


def profile_told(found: dict[str, Any]) -> str:
    """Where the time of the step with all on goes, a line a part."""
    rate = 1e9 * found["matmul_gflops"]
    lines = [
        f"  {name:<20}{share:>5.0%} of the step, {of_rate:>4.0%} of the rate, {over:.3f} s beyond it"
        for name, share, of_rate, over in rows(found["parts"], rate)
    ]
    return "\n".join([*lines, f"  {price(found['parts'], rate)}"])


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default=",".join(MODELS), help="Comma-separated.")
    parser.add_argument("--methods", default=",".join(METHODS), help="Comma-separated.")
    parser.add_argument("--batch-size", type=int, help="Images a step; 32, of IconCLIP 128.")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--count", action="store_true", help="Count operations only, for what is measured there already.")
    parser.add_argument("--out", type=Path, default=OUT, help="What is measured there already is kept.")
    return parser.parse_args()


def main() -> None:
    given = arguments()
    made = json.loads(given.out.read_text()) if given.out.is_file() else {"models": {}}
    for model_name in given.models.split(","):
        for name in given.methods.split(","):
            size = given.batch_size or MODELS.get(model_name, 32)
            if given.count and name not in made["models"].get(model_name, {}):
                sys.exit(f"{name} was not measured on {model_name} yet. Leave out --count.")
            if given.count:
                ours = Ours(name, built(model_name))
                counted = operations(straight_of(name, model_name), ours, batch_of(ours.model, size))
                made["models"][model_name][name]["operations"] = counted
                given.out.write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")
                print(f"{model_name} {name}: {counted['straight'] / counted['exact']:.2f} times fewer operations", flush=True)
                continue
            found = measured(model_name, name, size, given.repeats)
            made["models"].setdefault(model_name, {})[name] = found
            made |= {"machine": machine(torch.device("cpu")), "repeats": given.repeats}
            given.out.write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")
            print(f"{model_name} {name}: {told(found)}\n{profile_told(found)}", flush=True)


if __name__ == "__main__":
    main()
