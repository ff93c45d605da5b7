"""Trees are walked as torch walks them."""

from __future__ import annotations

from collections import OrderedDict, namedtuple
from typing import Any

import pytest
import torch
from torch.utils._pytree import tree_leaves, tree_map

from sweeper.models.trees import mapped_leaves, tensors_of_tree

Pair = namedtuple("Pair", "left right")
ONE, TWO = torch.ones(1), torch.nn.Parameter(torch.ones(2))


@pytest.mark.parametrize(
    "tree",
    [
        ONE,
        ((ONE, 1, None), {"dtype": torch.float32, "list": [TWO, "x", [], ()]}),
        (Pair(ONE, [TWO]), OrderedDict(a=(ONE,)), ONE.shape, object),
        {1: {"deep": [(ONE, (TWO,))]}},
    ],
)
def test_the_same_as_pytree(tree: Any) -> None:
    def change(leaf: Any) -> Any:
        return ("changed", leaf)

    assert repr(mapped_leaves(change, tree)) == repr(tree_map(change, tree))
    expected = [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]
    found = tensors_of_tree(tree)
    assert len(found) == len(expected)
    assert all(one is other for one, other in zip(found, expected, strict=True))
