"""The model's output text by text: a row a text in a few tensors, and the figures of each text and of all together.

Shapes: S texts, N tokens, F features, D hidden, K numbers of a `State`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sweeper.metrics.fast import Tables
from sweeper.metrics.figures import EmbeddingFigures, cosine, embedding_figures
from sweeper.metrics.pair import PairAccumulator, Update, finish, join_all, update_all
from sweeper.metrics.sums import Count, Real, State, empty_block, merge_rows, rows_of
from sweeper.records.cell import PairMeasures, TextFigures

_NAMES = (
    *("output_max_abs", "output_equal_fraction", "output_cosine"),
    *(f"embedding_{name}" for name in EmbeddingFigures._fields),
)


class TextAccumulator:
    """Compares outputs and embeddings of texts, in whatever order they come; no device synchronisation until `finish`.

    Args:
        lengths: tokens of every text.
        normalize: embeddings are scaled to length 1 before they are compared.
    """

    def __init__(self, lengths: Sequence[int], *, normalize: bool = True) -> None:
        self._lengths = lengths
        self._normalize = normalize
        self._order: list[int] = []  # the text that each row is of
        self._tables = Tables()
        self._dtypes: tuple[torch.dtype, torch.dtype] | None = None

    def _start(self, reference_NF: Tensor, candidate_NF: Tensor) -> tuple[torch.dtype, torch.dtype]:
        texts, device = len(self._lengths), candidate_NF.device
        self._states_SK = empty_block(texts, device)
        self._embeddings_S3 = torch.empty(texts, len(EmbeddingFigures._fields), dtype=torch.float64, device=device)
        return reference_NF.dtype, candidate_NF.dtype

    def update(
        self,
        texts: Sequence[int],
        outputs: tuple[Tensor, Tensor],
        embeddings: tuple[Tensor, Tensor],
    ) -> None:
        """Adds some texts.

        Args:
            texts: which, in the order of the rows; none that was there before.
            outputs: of reference and candidate, [N, F], on one device.
            embeddings: the same, [S, D].
        """
        self._dtypes = self._dtypes or self._start(*outputs)
        lengths = [self._lengths[text] for text in texts]
        rows = slice(len(self._order), len(self._order) + len(texts))
        states = rows_of(State(*(numbers_SK[rows] for numbers_SK in self._states_SK)))
        accumulators = [PairAccumulator(*self._dtypes, state) for state in states]
        pairs = zip(accumulators, *(output_NF.split(lengths) for output_NF in outputs), strict=True)
        self._tables.rewind()
        update_all([Update(*pair) for pair in pairs], self._tables)
        join_all(self._tables)
        self._embeddings_S3[rows] = embedding_figures(*embeddings, normalize=self._normalize)
        self._order += texts

    def moved(self, last: int) -> Tensor:
        """How far the output of each of the last so many texts moved, `rel_l2`; infinity where one is not finite."""
        rows = slice(len(self._order) - last, len(self._order))
        reals_SK, counts_SK = (numbers_SK[rows] for numbers_SK in self._states_SK)
        squares_S, of_reference_S = reals_SK[:, Real.DIFFERENCE_SQUARES], reals_SK[:, Real.REFERENCE_SQUARES]
        moved_S = (squares_S / of_reference_S).sqrt().masked_fill(squares_S == 0, 0.0)
        return moved_S.masked_fill(counts_SK[:, Count.NONFINITE_MISMATCH] > 0, torch.inf)

    def finish(self) -> tuple[PairMeasures, tuple[TextFigures, ...]]:
        """The figures of all texts together, with `worst_token` in their order, and of each."""
        assert self._dtypes is not None, "at least one text"
        assert len(self._order) == len(self._lengths), "every text once"
        row_S = torch.tensor(self._order).argsort()
        reals_SK, counts_SK, embeddings_S3 = (rows.cpu()[row_S] for rows in (*self._states_SK, self._embeddings_S3))
        whole = PairAccumulator(*self._dtypes, merge_rows(State(reals_SK, counts_SK)))
        return finish([whole])[0], self._figures(reals_SK, counts_SK, embeddings_S3)

    def _figures(self, reals_SK: Tensor, counts_SK: Tensor, embeddings_S3: Tensor) -> tuple[TextFigures, ...]:
        def real(index: Real) -> Tensor:
            return reals_SK[:, index]

        def count(index: Count) -> Tensor:
            return counts_SK[:, index].double()  # exact: below 2**53

        none_S = count(Count.FINITE) == 0
        cosine_S = cosine(
            real(Real.REFERENCE_SQUARES),
            real(Real.CANDIDATE_SQUARES),
            real(Real.DIFFERENCE_SQUARES),
            real(Real.PRODUCTS),
        )
        equal_S = count(Count.NUMEL) - count(Count.UNEQUAL) - count(Count.NONFINITE_MISMATCH)
        columns = (
            real(Real.MAX_ABS).masked_fill(none_S, torch.nan),
            equal_S / count(Count.NUMEL),
            cosine_S.masked_fill(none_S, torch.nan),
            *embeddings_S3.unbind(1),
        )
        return tuple(
            TextFigures(text=text, tokens=self._lengths[text], **dict(zip(_NAMES, row, strict=True)))
            for text, row in enumerate(torch.stack(columns, dim=1).tolist())
        )
