"""Blocks that several weights have as the pre-trained model has them are computed once, and change nothing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from conftest import fresh
from torch import Tensor

from surefoot.data import Dataset
from surefoot.methods import get
from surefoot.model import ImageTextModel
from surefoot.protocols import Judge, Member
from surefoot.protocols import judge as module
from surefoot.protocols.common import CommonBlocks
from surefoot.train import start_state
from surefoot.weights import interpolate

LAST = "visual.transformer.resblocks.1."


@contextmanager
def counted(model: ImageTextModel) -> Iterator[list[int]]:
    """How many images go through each of the two blocks of the image tower."""
    seen = [0, 0]

    def count(number: int, images: int) -> None:
        seen[number] += images

    blocks = model.clip.visual.transformer.resblocks
    handles = [blocks[n].register_forward_hook(lambda _, given, __, n=n: count(n, len(given[0]))) for n in range(2)]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def moved(start: dict[str, Tensor], beginning: str, step: float) -> dict[str, Tensor]:
    """theta_0 with the weights of some names moved."""
    torch.manual_seed(int(1000 * step))
    return {name: t + step * torch.randn(t.shape) if name.startswith(f"model.{beginning}") else t for name, t in start.items()}


@pytest.mark.parametrize(("name", "depth"), [
    ("visual.conv1", 0), ("visual.positional_embedding", 0), ("visual.transformer.resblocks.0.mlp", 0), (f"{LAST}attn", 1),
    ("visual.ln_post", 1), ("visual.proj", 1), ("text_projection", 2), ("logit_scale", 2),
])  # fmt: skip
def test_depth_is_the_number_of_leading_blocks_that_did_not_move(name: str, depth: int, tiny_model: ImageTextModel) -> None:
    start = tiny_model.weights()
    common = CommonBlocks(tiny_model, start)
    assert common.num_blocks == 2
    assert common.depth({n: t + 1e-3 if n.startswith(name) else t for n, t in start.items()}) == depth


@pytest.mark.parametrize("alpha", [k / 10 for k in range(11)])
def test_a_point_of_a_frontier_shares_the_blocks_that_did_not_train(alpha: float, tiny_model: ImageTextModel) -> None:
    start = tiny_model.weights()
    end = {n: t + 0.1 if n.startswith(LAST) else t for n, t in start.items()}
    assert CommonBlocks(tiny_model, start).depth(interpolate(start, end, alpha)) == (1 if alpha else 2)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_features_from_the_first_block_that_moved_are_the_same_to_the_last_bit(precision: str, tiny_model: ImageTextModel) -> None:
    tiny_model.precision = precision  # type: ignore[assignment]
    images, start = torch.randn(5, 3, 32, 32), tiny_model.weights()
    common = CommonBlocks(tiny_model, start)
    for step in (0.1, 0.2, 0.3):
        tiny_model.load_weights({name: t + step if name.startswith(LAST) else t for name, t in start.items()})
        expected = fresh(tiny_model).encode_image(images)
        with counted(tiny_model) as seen:
            assert torch.equal(common.encode(images, "batch", 1), expected)
        assert seen == ([5, 5] if step == 0.1 else [0, 5])
    with counted(tiny_model) as seen:
        common.encode(images, "alone", 1, shared=False)
        common.encode(images, "alone", 1)
    assert seen == [10, 10], "nothing is kept for one alone"
    common.forget()
    with counted(tiny_model) as seen:
        other = common.encode(torch.randn(4, 3, 32, 32), "batch", 1)
    assert (seen, len(other)) == ([4, 4], 4)
    assert len(tiny_model.clip.visual.transformer.resblocks) == 2


def test_a_frontier_computes_what_its_members_share_once(
    tiny_model: ImageTextModel, tiny_data: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "EVALUATION_BATCH", 4)
    monkeypatch.setattr(module, "CHUNK_BYTES", 10 * 3 * 32 * 32 * 4)  # several chunks
    start = start_state(tiny_model, tiny_data)
    last = [moved(start, LAST, step) for step in (0.5, 1.0, 1.5)]
    states = [start, *last, moved(start, "visual.conv1", 0.5)]
    members = [Member.of(get("tp_ft"), state) for state in states]
    judge = Judge(tiny_model, tiny_data, start)
    with counted(tiny_model) as seen:
        found = judge.judge_all(members)
    total = judge.num_images
    # theta_0; once for the three that moved the last block; the one that moved all. The member that is theta_0 costs nothing
    assert seen == [3 * total, 5 * total]
    for state, outcome in zip(states, found, strict=True):
        alone = Judge(fresh(tiny_model), tiny_data, start).judge(get("tp_ft"), state)
        for name, given in alone.answers.items():
            assert (outcome.answers[name].prediction == given.prediction).all()
            assert (outcome.answers[name].confidence == given.confidence).all()
    assert len({tuple(outcome.answers["test"].confidence.tolist()) for outcome in found}) == len(states)
