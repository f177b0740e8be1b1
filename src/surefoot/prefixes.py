"""Texts as trees: what a causal text tower computes of a beginning that several texts share, it computes once.

In a causal tower a token sees only what stands before it, so that "a photo of a" gives the same in every text that begins so. The texts of
a call are laid out as nodes of trees, each distinct beginning once; a node sees itself and what it grew from. Features and gradients
are those of the texts one by one, up to rounding.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

MOST = 128
WORTH = 0.75


class Trees(NamedTuple):
    """T texts in G trees of N nodes, smaller ones filled up with nodes that nobody sees.

    Attributes:
        tokens: [1, G * N] the token of each node, tree after tree. The first is the largest of all and ends a text.
        place: [G, N] the node's position in its texts.
        sees: [G, N, N] whether the first node sees the second.
        ends: [G, E] nodes at which texts end, filled up with node 0.
        row: [T] where the end of each text stands in the flattened `ends`.
    """

    tokens: Tensor
    place: Tensor
    sees: Tensor
    ends: Tensor
    row: Tensor


class _Tree:
    """One tree as it grows: {(the node before or -1, token): node}, and the end of each of its texts."""

    def __init__(self) -> None:
        self.nodes: dict[tuple[int, int], int] = {}
        self.ends: dict[int, int] = {}

    def shared(self, text: Sequence[int]) -> tuple[int, int]:
        """The last node of a text that is there, and how many are."""
        node = -1
        for depth, token in enumerate(text):
            if (found := self.nodes.get((node, token))) is None:
                return node, depth
            node = found
        return node, len(text)

    def add(self, number: int, text: Sequence[int], shared: tuple[int, int]) -> None:
        """Let a text grow from what it shares."""
        node, depth = shared
        for token in text[depth:]:
            self.nodes[node, token] = node = len(self.nodes)
        self.ends[number] = node


def planted(tokens: Tensor, ends: Tensor, most: int = MOST, worth: float = WORTH) -> Trees | None:
    """The trees of texts, none with more than `most` nodes unless one text alone has; None where they share too little.

    Args:
        tokens: [T, L] token numbers, of at least one text.
        ends: [T] the position of each text's last token, which is the largest of the text.
        most: nodes of a tree: with more, fewer beginnings are computed twice, but each node is compared with more that it does not see.
        worth: the most nodes, as a share of the tokens of a table cut off behind the longest text.
    """
    length = int(ends.max()) + 1
    texts = [row[: end + 1] for row, end in zip(tokens[:, :length].tolist(), ends.tolist(), strict=True)]
    trees = _even(sorted(enumerate(texts), key=lambda numbered: numbered[1]), most)
    if _nodes(trees) > worth * len(texts) * length:
        return None
    return Trees(*(torch.from_numpy(one).to(tokens.device) for one in _laid_out(trees, len(texts))))


def _even(texts: Sequence[tuple[int, list[int]]], most: int) -> list[_Tree]:
    """Trees of about the same size, as all are filled up to the largest."""
    trees = list(_grown(texts, most))
    if len(trees) == 1:
        return trees
    mean = sum(len(tree.nodes) for tree in trees) / len(trees)
    smaller = list(_grown(texts, min(most, int(1.05 * mean) + 1)))
    return min(trees, smaller, key=_nodes)


def _nodes(trees: Sequence[_Tree]) -> int:
    """Nodes of all, each filled up to the largest."""
    return len(trees) * max(len(tree.nodes) for tree in trees)


def _grown(texts: Sequence[tuple[int, list[int]]], most: int) -> Iterator[_Tree]:
    """Trees of (number, text) in their order, in which those stand together that begin alike."""
    tree = _Tree()
    for number, text in texts:
        shared = tree.shared(text)
        if tree.ends and len(tree.nodes) + len(text) - shared[1] > most:
            yield tree
            tree, shared = _Tree(), (-1, 0)
        tree.add(number, text, shared)
    yield tree


def _laid_out(trees: list[_Tree], count: int) -> tuple[np.ndarray, ...]:
    """The arrays of `Trees`, of `count` texts."""
    size, width = max(len(tree.nodes) for tree in trees), max(len(set(tree.ends.values())) for tree in trees)
    token, place = np.zeros((2, len(trees), size), dtype=np.int64)
    sees = np.repeat(np.eye(size, dtype=bool)[None], len(trees), axis=0)
    ends, row = np.zeros((len(trees), width), dtype=np.int64), np.zeros(count, dtype=np.int64)
    trees = sorted(trees, key=lambda tree: max(token for _, token in tree.nodes), reverse=True)
    for g, tree in enumerate(trees):
        for (before, number), node in tree.nodes.items():  # in the order in which they grew
            token[g, node] = number
            if before >= 0:
                place[g, node] = place[g, before] + 1
                sees[g, node] |= sees[g, before]
        column = {end: at for at, end in enumerate(dict.fromkeys(tree.ends.values()))}
        ends[g, : len(column)] = list(column)
        for text, end in tree.ends.items():
            row[text] = g * width + column[end]
    order, largest = np.arange(size), token[0].argmax()  # this node of the first tree changes places with node 0
    order[[0, largest]] = largest, 0
    token[0], place[0], sees[0], ends[0] = token[0, order], place[0, order], sees[0][np.ix_(order, order)], order[ends[0]]
    return token.reshape(1, -1), place, sees, ends, row
