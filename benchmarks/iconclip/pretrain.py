"""Train IconCLIP from scratch on the icons' own names: the contrastive loss of CLIP, half of the patches dropped until the last epochs.
In the last epochs whole images are seen, and rare styles are drawn more often.

    python benchmarks/iconclip/pretrain.py --cache CACHE --out RUN            # resumes from RUN when it was interrupted

Every step draws its captions and augmentation from a generator seeded by (seed, step), so an interrupted run goes on as if it had
not been. RUN holds `state.pt` (plain tensors), `curve.jsonl` (one line every 50 steps, and one an epoch), and at the end
`iconclip/`, a folder that `open_clip.create_model_and_transforms("local-dir:...")` opens. Patch dropout: Li et al., "Scaling
language-image pre-training via masking", CVPR 2023.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from collections import Counter
from pathlib import Path

import numpy as np
import open_clip
import torch
from safetensors.torch import save_file
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

import corpus as corpora

HERE = Path(__file__).parent
NUM_HELD_OUT = 2000


def build_model() -> open_clip.CLIP:
    """open_clip's own CLIP class from config.json."""
    return open_clip.CLIP(**json.loads((HERE / "config.json").read_text())["model_cfg"])


def encode_text(model: open_clip.CLIP, tokens: torch.Tensor) -> torch.Tensor:
    """Text features [B, D]; the tokens are cut behind the longest end-of-text token, which is exact for a causal tower."""
    length = int(tokens.argmax(1).max()) + 1
    tokens = tokens[:, :length]
    x = model.token_embedding(tokens) + model.positional_embedding[:length]
    x = model.ln_final(model.transformer(x, attn_mask=model.attn_mask[:length, :length]))
    return x[torch.arange(len(x)), tokens.argmax(1)] @ model.text_projection


def learning_rate(step: int, total: int, peak: float, warmup: int) -> float:
    """Linear warm-up, then a cosine to zero."""
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (total - warmup)))


def style_chance(styles: list[str], power: float) -> np.ndarray:
    """The chance of each icon: a style of n icons is drawn in proportion to n ** power, so that rare styles come more often."""
    count = Counter(styles)
    weight = np.array([count[style] ** (power - 1) for style in styles])
    return weight / weight.sum()


def normalise(batch: torch.Tensor) -> torch.Tensor:
    return (batch - 0.5) / 0.5


@torch.no_grad()
def held_out_retrieval(model: open_clip.CLIP, corpus: corpora.Corpus, rows: np.ndarray, tokenizer: open_clip.SimpleTokenizer) -> float:
    """Share of held-out icons whose own name is nearest among the distinct held-out names."""
    model.eval()
    names = sorted({" ".join(corpus.icons[r].words) for r in rows})
    place = {name: k for k, name in enumerate(names)}
    text = F.normalize(encode_text(model, tokenizer([f"an icon of a {name}" for name in names])), dim=1)
    images = torch.from_numpy(corpus.pictures[rows]).permute(0, 3, 1, 2).float() / 255
    features = torch.cat([model.encode_image(normalise(part), normalize=True) for part in images.split(500)])
    target = torch.tensor([place[" ".join(corpus.icons[r].words)] for r in rows])
    model.train()
    return float(((features @ text.T).argmax(1) == target).float().mean())


def train(corpus: corpora.Corpus, out: Path, given: argparse.Namespace) -> open_clip.CLIP:
    torch.manual_seed(given.seed)
    model, tokenizer = build_model(), open_clip.SimpleTokenizer()
    order = np.random.default_rng(given.seed).permutation(len(corpus.icons))
    held_out, rows = order[:NUM_HELD_OUT], order[NUM_HELD_OUT:]
    per_epoch = len(rows) // given.batch
    total, whole_from = per_epoch * given.epochs, per_epoch * (given.epochs - given.whole_epochs)
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    others = [p for p in model.parameters() if p.ndim < 2]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": given.weight_decay}, {"params": others, "weight_decay": 0.0}],
        lr=given.lr,
        betas=(0.9, 0.98),
        fused=True,
    )
    step = 0
    if (out / "state.pt").is_file():
        state = torch.load(out / "state.pt", weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        step = state["step"]
    chance = style_chance([corpus.icons[r].style for r in rows], given.style_power)
    curve = (out / "curve.jsonl").open("a")
    started, first, losses = time.time(), step, []
    while step < total:
        epoch, within = divmod(step, per_epoch)
        if step < whole_from:
            chosen = np.random.default_rng((given.seed, epoch)).permutation(rows)[within * given.batch : (within + 1) * given.batch]
        else:
            chosen = np.random.default_rng((given.seed, step)).choice(rows, given.batch, replace=False, p=chance)
        model.visual.patch_dropout = open_clip.transformer.PatchDropout(given.patch_dropout) if step < whole_from else torch.nn.Identity()
        loss = one_step(model, optimizer, tokenizer, corpus, chosen, step, total, given)
        losses.append(loss)
        step += 1
        if step % 50 == 0 or step == total:
            rate = (step - first) * given.batch / (time.time() - started)
            left = (total - step) * given.batch / rate / 60
            line = {
                "step": step,
                "of": total,
                "loss": sum(losses) / len(losses),
                "scale": float(model.logit_scale.detach().exp()),
                "images_per_s": round(rate),
            }
            print(json.dumps(line), f"{left:.0f} min left", flush=True)
            curve.write(json.dumps(line) + "\n")
            losses = []
        if step % per_epoch == 0 or step == total:
            accuracy = held_out_retrieval(model, corpus, held_out, tokenizer)
            curve.write(json.dumps({"epoch": step // per_epoch, "held_out_names_at_1": accuracy}) + "\n")
            curve.flush()
            print("epoch", step // per_epoch, "held-out names at 1:", round(100 * accuracy, 2), flush=True)
            partial = out / "state.part"
            torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step}, partial)
            partial.rename(out / "state.pt")
    return model


def one_step(model, optimizer, tokenizer, corpus, chosen, step, total, given) -> float:
    """One update on the icons `chosen`; returns the loss."""
    rng, generator = random.Random(given.seed * 1_000_003 + step), torch.Generator().manual_seed(given.seed * 1_000_003 + step)
    torch.manual_seed(given.seed * 1_000_003 + step)  # patch dropout draws from the global generator
    coloured = torch.from_numpy(corpus.coloured[chosen])
    tint = (torch.rand(len(chosen), generator=generator) < given.tint) & ~coloured
    captions = [corpora.caption(corpus.icons[r], bool(c), bool(t), rng) for r, c, t in zip(chosen, coloured, tint, strict=True)]
    images = normalise(corpora.augment(torch.from_numpy(corpus.pictures[chosen]), tint, generator))
    tokens = tokenizer(captions)
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(step, total, given.lr, given.warmup)
    with torch.autocast("cpu", dtype=torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
        image, text = model.visual(images), encode_text(model, tokens)
    image, text = F.normalize(image.float(), dim=1), F.normalize(text.float(), dim=1)
    logits = model.logit_scale.exp() * image @ text.T
    target = torch.arange(len(image))
    loss = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    with torch.no_grad():
        model.logit_scale.clamp_(0, math.log(100))
    if not math.isfinite(loss.item()):
        raise FloatingPointError(f"The loss is {loss.item()} at step {step}: lower --lr; the last epoch's state is kept.")
    return loss.item()


def export(model: open_clip.CLIP, folder: Path) -> None:
    """float16 weights and open_clip_config.json: the local-dir layout of open_clip."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "open_clip_config.json").write_text((HERE / "config.json").read_text())
    tensors = {name: tensor.half().contiguous() for name, tensor in model.state_dict().items() if name != "attn_mask"}
    save_file(tensors, folder / "open_clip_model.safetensors")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=24)
    parser.add_argument("--whole-epochs", type=int, default=4, help="last epochs: no patch dropout, rare styles drawn more often")
    parser.add_argument("--style-power", type=float, default=0.5, help="in the last epochs a style of n icons is drawn as n ** power")
    parser.add_argument("--patch-dropout", type=float, default=0.5)
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--warmup", type=int, default=500)
    parser.add_argument("--weight-decay", type=float, default=0.1)
    parser.add_argument("--tint", type=float, default=0.3, help="share of black icons that get a colour")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    corpus = corpora.build(given.cache)
    print(
        f"{len(corpus.icons)} icons; {corpus.screened_out} near-duplicates of benchmark candidates and {corpus.repeated} repeats left out",
        flush=True,
    )
    export(train(corpus, given.out, given), given.out / "iconclip")


if __name__ == "__main__":
    main()
