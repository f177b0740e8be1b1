"""Train IconCap: a word decoder on the frozen image tower of IconCLIP, by the likelihood of every pre-training icon's caption.

    python benchmarks/iconcap/train.py --cache CACHE --out RUN            # resumes from RUN when it was interrupted
    torchrun --nproc-per-node 2 benchmarks/iconcap/train.py ...           # the same with half of each batch in each of two processes

Each epoch is a permutation seeded by (seed, epoch), so an interrupted run goes on as if it had not been. RUN holds the examples
(see `examples.py`), `state.pt` (plain tensors), `curve.jsonl`, `held_out.json` and at the end `iconcap/`, what
`surefoot.anchors.iconcap.load_iconcap` opens.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import time
from collections import Counter
from datetime import timedelta
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch.nn import functional as F

from describe import caption, looks
from examples import BLOCKS, Examples, load_examples
from surefoot.anchors.iconcap import CONFIG, WEIGHTS, Decoder, Shape
from surefoot.identity import weights_hash
from surefoot.model import load_model

NUM_HELD_OUT = 2000
EVERY = 100
SAVE_EVERY = 300


def split_words(text: str) -> list[str]:
    """`an outline icon of a tea cup in a circle, red` -> [an outline icon of, a, tea, cup, in a circle, ",", red].

    What is said in few forms only is one "word" of the vocabulary, which halves the cost of a step.
    """
    style, _, rest = text.partition(" of ")
    name, circle, colours = rest.partition(" in a circle")
    return [f"{style} of", *name.replace(",", " ,").split(), *([circle.strip()] if circle else []), *colours.replace(",", " ,").split()]


def vocabulary(captions: list[str], held_out: set[int], min_count: int) -> tuple[str, ...]:
    """All words that stand in at least `min_count` training captions; word 0 is the end."""
    count = Counter(word for r, text in enumerate(captions) if r not in held_out for word in set(split_words(text)))
    return ("", *sorted(word for word, n in count.items() if n >= min_count))


def numbered(captions: list[str], words: tuple[str, ...], context: int) -> list[list[int]]:
    """Word numbers of each caption with start and end; [] where a word is not in the vocabulary or the caption too long."""
    place = {word: n for n, word in enumerate(words)}
    rows = [[0, *(place.get(word, -1) for word in split_words(text)), 0] for text in captions]
    return [[] if -1 in row or len(row) > context else row for row in rows]


def batch_of(rows: np.ndarray, examples: Examples, numbers: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(tokens [B, M, W], words read [B, L], words to say [B, L], -100 behind the end)."""
    length = max(len(numbers[r]) for r in rows) - 1
    read, say = torch.zeros(len(rows), length, dtype=torch.long), torch.full((len(rows), length), -100)
    for k, r in enumerate(rows):
        row = torch.tensor(numbers[r])
        read[k, : len(row) - 1], say[k, : len(row) - 1] = row[:-1], row[1:]
    return torch.from_numpy(examples.tokens[rows]).float(), read, say


def losses(decoder: Decoder, batch: tuple[torch.Tensor, torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """(negative log-likelihood of every word, whether it was the likeliest), of the words that count."""
    tokens, read, say = batch
    counts = say != -100
    logits = decoder(decoder.look(tokens), read)[0][counts]
    return F.cross_entropy(logits, say[counts], reduction="none"), logits.argmax(1) == say[counts]


@torch.no_grad()
def held_out_score(decoder: Decoder, rows: np.ndarray, examples: Examples, numbers: list[list[int]]) -> dict[str, float]:
    """Perplexity and accuracy of the next word on held-out icons, given the words before."""
    decoder.eval()
    found = [losses(decoder, batch_of(rows[i : i + 500], examples, numbers)) for i in range(0, len(rows), 500)]
    decoder.train()
    return {
        "held_out_perplexity": float(torch.cat([loss for loss, _ in found]).mean().exp()),
        "held_out_word_accuracy": float(torch.cat([right for _, right in found]).float().mean()),
    }


def order_of(epoch: int, rows: np.ndarray, numbers: list[list[int]], batch: int, seed: int) -> list[np.ndarray]:
    """The batches of one epoch: shuffled, then captions of like length together within spans of 32 batches, to compute little padding."""
    rng = np.random.default_rng((seed, epoch))
    mixed, length = rng.permutation(rows), np.array([len(row) for row in numbers])
    spans = [mixed[i : i + 32 * batch] for i in range(0, len(mixed), 32 * batch)]
    in_order = np.concatenate([span[np.argsort(length[span], kind="stable")] for span in spans])
    batches = [np.sort(in_order[i : i + batch]) for i in range(0, len(in_order) - batch + 1, batch)]
    return [batches[k] for k in rng.permutation(len(batches))]


def learning_rate(step: int, total: int, peak: float, warmup: int) -> float:
    """Linear warm-up, then a cosine to zero."""
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (total - warmup)))


def optimizer_of(decoder: Decoder, given: argparse.Namespace) -> torch.optim.Optimizer:
    matrices = [p for name, p in decoder.named_parameters() if p.ndim >= 2 and "embedding" not in name and "places" not in name]
    others = [p for name, p in decoder.named_parameters() if p.ndim < 2 or "embedding" in name or "places" in name]
    groups = [{"params": matrices, "weight_decay": given.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=given.lr, betas=(0.9, 0.98), fused=True)


def train(shape: Shape, examples: Examples, numbers: list[list[int]], held_out: np.ndarray, given: argparse.Namespace) -> Decoder:
    torch.manual_seed(given.seed)
    decoder = Decoder(shape)
    optimizer = optimizer_of(decoder, given)
    chosen = np.array([r for r in np.setdiff1d(np.arange(len(numbers)), held_out) if numbers[r]])
    tested = np.array([r for r in held_out if numbers[r]])
    per_epoch = len(order_of(0, chosen, numbers, given.batch, given.seed))
    total, step, kept = per_epoch * given.epochs, 0, given.out / "state.pt"
    if kept.is_file():
        state = torch.load(kept, weights_only=True)
        decoder.load_state_dict(state["decoder"])
        optimizer.load_state_dict(state["optimizer"])
        step = state["step"]
    print(f"{sum(p.numel() for p in decoder.parameters()):,} parameters, {len(chosen)} icons, {per_epoch} steps an epoch", flush=True)
    curve, started, first, seen = (given.out / "curve.jsonl").open("a"), time.time(), step, []
    epoch, batches = -1, []
    while step < total:
        if step // per_epoch != epoch:
            epoch = step // per_epoch
            batches = order_of(epoch, chosen, numbers, given.batch, given.seed)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, total, given.lr, given.warmup)
        seen.append(one_step(decoder, optimizer, batch_of(share_of(batches[step % per_epoch]), examples, numbers), step))
        step += 1
        line: dict[str, float] = {}
        if step % EVERY == 0 or step == total:
            rate = (step - first) * given.batch / (time.time() - started)
            line = {"step": step, "of": total, "loss": round(sum(seen) / len(seen), 4), "icons_per_s": round(rate)}
            seen = []
        if step % per_epoch == 0 or step == total:
            line |= {"epoch": step // per_epoch, **held_out_score(decoder, tested, examples, numbers)}
        if line and first_process():
            print(json.dumps(line), f"{(total - step) * given.batch / max(1, line.get('icons_per_s', rate)) / 60:.0f} min left", flush=True)
            curve.write(json.dumps(line) + "\n")
            curve.flush()
        if (step % SAVE_EVERY == 0 or step == total) and first_process():
            torch.save({"decoder": decoder.state_dict(), "optimizer": optimizer.state_dict(), "step": step}, kept.with_suffix(".part"))
            kept.with_suffix(".part").rename(kept)
    return decoder


def first_process() -> bool:
    return not dist.is_initialized() or dist.get_rank() == 0


def share_of(batch: np.ndarray) -> np.ndarray:
    """The part of a batch that this process computes."""
    return batch[dist.get_rank() :: dist.get_world_size()] if dist.is_initialized() else batch


def average_gradients(decoder: Decoder) -> None:
    """The mean over the processes, in place."""
    if not dist.is_initialized():
        return
    gradients = [p.grad for p in decoder.parameters() if p.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    for gradient, mean in zip(gradients, flat.split([gradient.numel() for gradient in gradients]), strict=True):
        gradient.copy_(mean.view_as(gradient))


def one_step(decoder: Decoder, optimizer: torch.optim.Optimizer, batch: tuple[torch.Tensor, ...], step: int) -> float:
    """One update; returns the loss."""
    loss = losses(decoder, batch)[0].mean()  # type: ignore[arg-type]
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    average_gradients(decoder)
    torch.nn.utils.clip_grad_norm_(decoder.parameters(), 1.0)
    optimizer.step()
    if not math.isfinite(loss.item()):
        raise FloatingPointError(f"The loss is {loss.item()} at step {step}: lower --lr; the last state kept is from before.")
    return loss.item()


def export(decoder: Decoder, folder: Path) -> None:
    """float16 weights, and the shape and vocabulary as JSON."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG).write_text(json.dumps(dataclasses.asdict(decoder.shape)) + "\n")
    save_file({name: tensor.detach().half().contiguous() for name, tensor in decoder.state_dict().items()}, folder / WEIGHTS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--num-icons", type=int, default=100_000, help="all outline icons, then others by chance")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--warmup", type=int, default=200)
    parser.add_argument("--weight-decay", type=float, default=0.05)
    parser.add_argument("--min-count", type=int, default=5, help="a word of fewer captions is not learned, nor are icons named by it")
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    if "RANK" in os.environ:  # set by torchrun
        dist.init_process_group("gloo", timeout=timedelta(hours=2))
        if first_process():
            load_examples(given.cache, given.out, given.num_icons)
        dist.barrier()
    examples = load_examples(given.cache, given.out, given.num_icons)
    held_out = np.sort(np.random.default_rng(given.seed).permutation(len(examples.names))[:NUM_HELD_OUT])
    seen = looks(examples.pictures)
    captions = [caption(words, style, seen, r) for r, (words, style) in enumerate(zip(examples.words, examples.styles, strict=True))]
    words = vocabulary(captions, set(held_out.tolist()), given.min_count)
    shape = Shape(words=words, tower=weights_hash(load_model("iconclip")), blocks=BLOCKS, layers=given.layers)
    numbers = numbered(captions, words, shape.context)
    print(f"{len(words)} words; {sum(not row for row in numbers)} of {len(captions)} icons left out for a rare word", flush=True)
    decoder = train(shape, examples, numbers, held_out, given)
    if first_process():
        (given.out / "held_out.json").write_text(json.dumps([[int(r), captions[r]] for r in held_out]))
        export(decoder, given.out / "iconcap")


if __name__ == "__main__":
    main()
