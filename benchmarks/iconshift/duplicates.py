"""Near-duplicate pictures, found by content.

A picture becomes a descriptor that does not see where on the canvas or how large the drawing stands: the ink's bounding box is
cut out, put on a square, scaled to 24 x 24, blurred, centred and normalised. Two pictures are near-duplicates when the inner
product of their descriptors reaches the threshold, which was chosen by looking at pairs on both sides of it.
"""

from __future__ import annotations

import numpy as np
import torch
from torch.nn import functional as F

SIDE = 24
THRESHOLD = 0.95


def descriptors(pictures: np.ndarray, chunk: int = 2048) -> torch.Tensor:
    """uint8 [N, S, S, 3] -> float32 [N, SIDE * SIDE], each of norm 1 (0 for a blank picture)."""
    return torch.cat([_describe(torch.from_numpy(np.array(pictures[i : i + chunk]))) for i in range(0, len(pictures), chunk)])


def _describe(pictures: torch.Tensor) -> torch.Tensor:
    ink = 1 - pictures.float().mean(3) / 255  # [n, S, S], 0 is paper
    drawn = ink > 0.08
    n, size = len(ink), ink.shape[1]
    rows, columns = drawn.any(2), drawn.any(1)
    top, left = _first(rows), _first(columns)
    bottom, right = size - _first(rows.flip(1)), size - _first(columns.flip(1))
    centre_y, centre_x = (top + bottom) / 2, (left + right) / 2
    half = torch.maximum(bottom - top, right - left).clamp(min=2) / 2 * 1.08
    # affine_grid takes the box in coordinates from -1 to 1
    theta = torch.zeros(n, 2, 3)
    theta[:, 0, 0] = theta[:, 1, 1] = half / (size / 2)
    theta[:, 0, 2], theta[:, 1, 2] = centre_x / (size / 2) - 1, centre_y / (size / 2) - 1
    grid = F.affine_grid(theta, [n, 1, 2 * SIDE, 2 * SIDE], align_corners=False)
    cut = F.grid_sample(ink[:, None], grid, align_corners=False, padding_mode="zeros")
    blurred = F.avg_pool2d(F.avg_pool2d(cut, 2), 3, 1, 1).flatten(1)
    return F.normalize(blurred - blurred.mean(1, keepdim=True), dim=1)


def _first(mask: torch.Tensor) -> torch.Tensor:
    """The index of the first true of each row, as float."""
    return mask.float().argmax(1).float()


def near(queries: torch.Tensor, keys: torch.Tensor, threshold: float = THRESHOLD, chunk: int = 4096) -> torch.Tensor:
    """For each key [M, D]: does any query [N, D] reach the threshold? Bool [M]."""
    best = torch.full((len(keys),), -1.0)
    for i in range(0, len(keys), chunk):
        for j in range(0, len(queries), chunk):
            best[i : i + chunk] = torch.maximum(best[i : i + chunk], (keys[i : i + chunk] @ queries[j : j + chunk].T).amax(1))
    return best >= threshold


def clusters(features: torch.Tensor, threshold: float = THRESHOLD) -> list[int]:
    """The connected components of "near-duplicate of": one component number for each row of `features` [N, D]."""
    parent = list(range(len(features)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    for start in range(0, len(features), 2048):
        similar = features[start : start + 2048] @ features.T >= threshold
        for i, j in similar.nonzero().tolist():
            parent[root(start + i)] = root(j)
    return [root(i) for i in range(len(features))]
