"""Parity with the authors' released code: golden numbers made by running it, inputs stored beside the outputs, all in float64.

golden/flyp_contrastive.json
    https://github.com/locuslab/FLYP, commit 215d5bb6feeda6675f60e5818abcb4f6465c83af, clip/loss.py, class ClipLoss (line 71), the branch
    without labels (line 207), called with the arguments of src/models/flyp_loss.py (line 59). Loss and gradients; tolerance 1e-12 relative,
    1e-13 absolute.
golden/wise_ft_merge.json
    https://github.com/mlfoundations/wise-ft, commit 58b7a4b343b09dc06606aa929c2ef51accced8d1, src/wise_ft.py, function _merge (line 15),
    without Fisher information (line 18). No tolerance: every bit is the same.

The modules that the release imports for data and training were replaced by empty ones, since neither function uses them.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from surefoot.losses import contrastive
from surefoot.weights import interpolate

GOLDEN = Path(__file__).parent / "golden"


def cases(name: str) -> list[dict[str, Any]]:
    stored: list[dict[str, Any]] = json.loads((GOLDEN / name).read_text(encoding="utf-8"))["cases"]
    return stored


def tensor(values: Any) -> Tensor:  # noqa: ANN401  (nested lists of floats)
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize("case", cases("flyp_contrastive.json"), ids=lambda case: f"seed{case['seed']}")
def test_contrastive_equals_the_release_of_flyp(case: dict[str, Any]) -> None:
    image, text, scale = (tensor(case[name]).requires_grad_() for name in ("image", "text", "scale"))
    loss = contrastive(image, text, scale)
    loss.backward()
    for ours, golden in ((loss, "loss"), (image.grad, "image_grad"), (text.grad, "text_grad"), (scale.grad, "scale_grad")):
        torch.testing.assert_close(ours, tensor(case[golden]), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("case", cases("wise_ft_merge.json"), ids=lambda case: f"alpha{case['alpha']}")
def test_interpolate_equals_the_release_of_wise_ft(case: dict[str, Any]) -> None:
    start, end, merged = ({name: tensor(values) for name, values in case[side].items()} for side in ("start", "end", "merged"))
    ours = interpolate(start, end, case["alpha"])
    assert list(ours) == list(merged)
    assert all(torch.equal(ours[name], merged[name]) for name in merged)
