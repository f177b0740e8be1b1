"""Texts are laid out as trees: each distinct beginning once, each node seeing what it grew from."""

from __future__ import annotations

import random

import pytest
import torch
from torch import Tensor

from surefoot.prefixes import MOST, Trees, planted

END, LENGTH = 9, 12


def drawn(seed: int, count: int, letters: int, longest: int = LENGTH - 1) -> tuple[list[list[int]], Tensor, Tensor]:
    """Texts of few letters, so that many begin alike and some are equal; tokens [T, LENGTH], with more behind the end, and ends [T]."""
    draw = random.Random(seed)
    texts = [[0, *(draw.randrange(1, 1 + letters) for _ in range(draw.randrange(longest - 1))), END] for _ in range(count)]
    tokens = torch.tensor([text + [draw.randrange(END) for _ in range(LENGTH - len(text))] for text in texts])
    return texts, tokens, torch.tensor([len(text) - 1 for text in texts])


def laid(tokens: Tensor, ends: Tensor, most: int = MOST) -> Trees:
    """The trees, whether they are worth it or not."""
    made = planted(tokens, ends, most, worth=float("inf"))
    assert made is not None
    return made


def seen_by(made: Trees, text: int) -> list[int]:
    """The tokens that the end of a text sees, in their order, which are told by their positions."""
    tree, column = divmod(int(made.row[text]), made.ends.shape[1])
    nodes = made.sees[tree, made.ends[tree, column]].nonzero()[:, 0]
    places = made.place[tree, nodes]
    assert sorted(places.tolist()) == list(range(len(nodes)))
    return [int(token) for token in made.tokens.view(made.place.shape)[tree, nodes[places.argsort()]]]


def trees_of(made: Trees, texts: list[list[int]]) -> dict[int, list[list[int]]]:
    """The texts of each tree."""
    found: dict[int, list[list[int]]] = {}
    for number, text in enumerate(texts):
        found.setdefault(int(made.row[number]) // made.ends.shape[1], []).append(text)
    return found


def beginnings(texts: list[list[int]]) -> int:
    return len({tuple(text[:length]) for text in texts for length in range(1, len(text) + 1)})


@pytest.mark.parametrize("most", [1, 8, 20, 1000])
@pytest.mark.parametrize(("count", "letters"), [(1, 2), (2, 1), (30, 2), (40, 7)])
def test_the_end_of_every_text_sees_that_text(count: int, letters: int, most: int) -> None:
    for seed in range(5):
        texts, tokens, ends = drawn(seed, count, letters)
        made = laid(tokens, ends, most)
        assert [seen_by(made, number) for number in range(count)] == texts


@pytest.mark.parametrize("most", [8, 20, 1000])
def test_nodes_are_the_distinct_beginnings_and_see_one_path(most: int) -> None:
    for seed in range(5):
        texts, tokens, ends = drawn(seed, 30, 3)
        made = laid(tokens, ends, most)
        size = made.place.shape[1]
        assert made.sees.diagonal(dim1=1, dim2=2).all()
        sizes = {tree: beginnings(own) for tree, own in trees_of(made, texts).items()}
        assert size == max(sizes.values()), "nothing is filled up beyond the largest tree"
        for tree, count in sizes.items():
            seen = made.sees[tree].sum(1)
            grown = made.place[tree] + 1
            assert torch.equal(seen, grown), "a node sees as many as stand before it, and itself"
            roots = int((made.place[tree] == 0).sum())
            assert roots == 1 + size - count, "beside one root, only what fills up stands at position 0"


def test_trees_are_no_larger_than_asked_but_for_one_text() -> None:
    for seed in range(10):
        texts, tokens, ends = drawn(seed, 40, 5)
        made = laid(tokens, ends, 25)
        for own in trees_of(made, texts).values():
            assert beginnings(own) <= 25
        assert len(made.place) > 1
        alone = laid(tokens, ends, 1)
        assert all(len({tuple(text) for text in own}) == 1 for own in trees_of(alone, texts).values()), "one distinct text in each"


def test_trees_are_of_about_one_size() -> None:
    tokens = torch.tensor([[0, number, number, number, number, END] for number in range(1, 9)])
    ends = torch.full((8,), 5)
    assert laid(tokens, ends, 31).place.shape == (2, 21), "four texts in each: not six and two, filled up to 31"


def test_the_first_node_is_where_towers_look_for_the_end() -> None:
    tokens = torch.tensor([[0, 1, 5, 0], [0, 2, 3, 8], [0, 1, 2, 7]])  # ends of their own, the largest not in the first text
    for most in (3, 5, 100):
        made = laid(tokens, tokens.argmax(1), most)
        assert made.tokens.shape[0] == 1 and made.tokens[0, 0] == 8 and made.tokens.argmax() == 0
        assert [seen_by(made, number) for number in range(3)] == [[0, 1, 5], [0, 2, 3, 8], [0, 1, 2, 7]]


def test_equal_texts_are_one_node_and_a_row_each() -> None:
    tokens = torch.tensor([[0, 4, END], [0, 4, END], [0, 4, END]])
    made = laid(tokens, torch.tensor([2, 2, 2]))
    assert made.place.shape == (1, 3) and made.ends.shape == (1, 1) and made.row.tolist() == [0, 0, 0]


@pytest.mark.parametrize(("texts", "worth"), [
    ([[0, 1, 2, 3, END], [0, 1, 2, 4, END], [0, 1, 2, 5, END], [0, 1, 2, 6, END]], True),  # 11 nodes of 20 tokens
    ([[0, 1, END], [0, 2, END], [0, 3, END], [0, 4, END]], True),  # 9 of 12
    ([[0, 1, END], [0, 2, END]], False),  # 5 of 6
    ([[0, 1, 2, 3, END]], False),
    ([[0, 1, 2, 3, 4, 5, 6, 7, END], [0, 1, END]], True),  # 11 of 18: what is not filled up counts too
])  # fmt: skip
def test_texts_that_share_little_are_no_trees(texts: list[list[int]], worth: bool) -> None:
    longest = max(map(len, texts))
    tokens = torch.tensor([text + [0] * (longest + 5 - len(text)) for text in texts])
    ends = torch.tensor([len(text) - 1 for text in texts])
    assert (planted(tokens, ends) is not None) == worth
    nodes = laid(tokens, ends).place.numel()
    assert planted(tokens, ends, worth=nodes / (len(texts) * longest)) is not None
    assert planted(tokens, ends, worth=nodes / (len(texts) * longest) - 1e-6) is None
