"""What a finished cell says: the schema of `cell.json` (see `docs/schema.md`).

Every number here was measured in the run that wrote it.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any, Literal

from pydantic import AliasChoices, Field

from sweeper.records.sample import Sample
from sweeper.records.schema import SCHEMA_VERSION, Record
from sweeper.records.verdict import VerdictRecord

RECORDED = "recording"
"""What `reference_axes` has, beside axes, of a cell that was compared with a recording: the name of its file."""


class Status(StrEnum):
    OK = "ok"
    FAILED = "failed"  # `reason` is one line, `traceback` the whole
    UNSUPPORTED = "unsupported"  # cannot run here; `reason` says why


_OLDER_NAME = "numerics_without_effect"  # of the field, before axes other than numerics could say it


class PairMeasures(Record):
    """How one tensor of the candidate differs from the reference's, over real tokens only.

    Both are upcast to float64, then subtracted. An element counts as *finite* when it is finite on both sides;
    `max_abs`, `mean_abs`, `rms`, `rel_l2`, `sqnr_db`, `cosine` and `max_ulp` speak of finite elements only, and are NaN
    where there is none. What is not finite is counted, never averaged: see the five counts.

    Attributes:
        numel: elements compared (tokens times features).
        finite: elements that are finite on both sides.
        equal_fraction: share of `numel` that is the same number (+0 equals -0; NaN equals NaN, Inf the same Inf).
        max_abs, mean_abs: of candidate minus reference.
        rms: root mean square of the difference.
        rel_l2: 2-norm of the difference over that of the reference; 0 when both are 0, inf when only the reference is.
        sqnr_db: 10 log10(sum reference^2 / sum difference^2), in dB; inf when the difference is 0.
        cosine: between the two flattened tensors; 1 when both are 0, 0 when one is.
        min_token_cosine: the least cosine of one token's features; NaN where no token has a finite element.
        max_ulp: the largest distance in units in the last place of the coarser of the two dtypes, in which both are
            rounded first: how many representable numbers apart.
        allclose: |candidate - reference| <= atol + rtol |reference| for all elements, and nothing non-finite differs.
        rtol, atol: the tolerances used, torch.testing's defaults for the coarser dtype.
        reference_nan, candidate_nan, reference_inf, candidate_inf: counts.
        nonfinite_mismatch: elements where at least one side is not finite and the two are not the same.
        worst_token, worst_feature: where `max_abs` is (row in token order, column); None without a finite element.
        worst_reference, worst_candidate: the two values there.
    """

    numel: int
    finite: int
    equal_fraction: float
    max_abs: float
    mean_abs: float
    rms: float
    rel_l2: float
    sqnr_db: float
    cosine: float
    min_token_cosine: float
    max_ulp: float
    allclose: bool
    rtol: float
    atol: float
    reference_nan: int
    candidate_nan: int
    reference_inf: int
    candidate_inf: int
    nonfinite_mismatch: int
    worst_token: int | None
    worst_feature: int | None
    worst_reference: float | None
    worst_candidate: float | None


class TokenFigures(Record):
    """A layer's output token by token: rows of `tokens.parquet`, of the up to three texts whose output moved most.

    Of a batch 512 tokens are watched, of its first texts, and of a text its first 128. The worst text comes first.

    Attributes:
        text, position: which text, and the token in it.
        max_abs: the largest difference of the token's features, as in `PairMeasures`.
        rel_l2: 2-norm of the difference over that of the reference, of the token's features. Both are not numbers, or
            infinite, where a feature is not finite on either side.
    """

    text: tuple[int, ...]
    position: tuple[int, ...]
    max_abs: tuple[float, ...]
    rel_l2: tuple[float, ...]


class ModuleRecord(Record):
    """One row of `modules.parquet`: the output of one module.

    Attributes:
        order: place in the order of execution, from 0.
        name: qualified name; `name[1]` is the second tensor of a tuple, `name#1` the second call in one forward.
        module_type: class name, e.g. `Linear`.
        layer: index of the decoder or encoder layer it lies in; None outside the layers.
        kind: name inside the layer, e.g. `self_attn.q_proj`; `layer` for the layer itself; outside, the name.
        reference_dtype, candidate_dtype: of the two tensors.
        worst_text, worst_position: the text and the token in it that `measures.worst_token` is.
        measures: the figures.
        tokens: the figures by token, of a layer where anything differs; they lie in `tokens.parquet`, and a module that
            is read back has None.
    """

    order: int
    name: str
    module_type: str
    layer: int | None
    kind: str
    reference_dtype: str
    candidate_dtype: str
    worst_text: int | None
    worst_position: int | None
    measures: PairMeasures
    tokens: TokenFigures | None = None


class LanguageFigures(Record):
    """How a causal LM's predictions moved, in float64, over tokens that are finite on both sides; NaN without any.

    Attributes:
        kl_mean, kl_max: KL(reference || candidate) of the next-token distribution, in nats a token.
        top1_agreement: share of tokens whose most likely next token is the same (ties: the lowest id).
        log_likelihood_change_mean: mean of log p_candidate - log p_reference of the token that follows, in nats; NaN
            where no text has two tokens.
        log_likelihood_change_max_abs: the largest absolute value of the same.
        nonfinite_tokens: tokens left out, because a logit is NaN or infinite on either side.
    """

    kl_mean: float
    kl_max: float
    top1_agreement: float
    log_likelihood_change_mean: float
    log_likelihood_change_max_abs: float
    nonfinite_tokens: int


class TextFigures(Record):
    """One text: its output, and its pooled, L2-normalised embedding. A leak: one text is far worse than the first.

    Attributes:
        text: index in the inputs.
        tokens: real tokens.
        output_max_abs, output_equal_fraction, output_cosine: of the model's output (logits or last hidden state).
        embedding_cosine, embedding_max_abs, embedding_mean_abs: of the embeddings.
    """

    text: int
    tokens: int
    output_max_abs: float
    output_equal_fraction: float
    output_cosine: float
    embedding_cosine: float
    embedding_max_abs: float
    embedding_mean_abs: float


class StateDifference(Record):
    """One parameter or buffer that is not the same on both sides. `max_abs` is in float64."""

    name: str
    kind: Literal["parameter", "buffer", "non_persistent_buffer"]
    reference_dtype: str
    candidate_dtype: str
    values_equal: bool
    max_abs: float


class RouterFigures(Record):
    """One router of a mixture of experts.

    Attributes:
        module: its name. layer: the number in it.
        flipped: share of the first batch's tokens that it sends to other experts than the reference's does.
    """

    module: str
    layer: int | None
    flipped: float


class StateFigures(Record):
    """Parameters and buffers, non-persistent buffers included.

    Attributes:
        parameters, buffers: how many there are.
        parameters_equal, buffers_equal: how many hold the same values (whatever the dtype).
        same_dtype: how many of all have the same dtype.
        differing: those that differ in value or dtype.
    """

    parameters: int
    parameters_equal: int
    buffers: int
    buffers_equal: int
    same_dtype: int
    differing: tuple[StateDifference, ...]


class Cost(Record):
    """What the cell cost. `load_time_s` is None when the weights were in memory already (shared with another cell).

    Bare forwards are run once for all cells of one process that run the same code on the same shapes and dtypes; each
    cell has its own where `latency_repeats` says how many, and with `latency_repeats=0` there is nothing else.

    Attributes:
        load_time_s: from the folder to the device in the cell's dtype.
        measured_in: the id of the cell whose bare forwards told what follows; None where it is this one.
        latency_ms: median of bare forwards of the first batch, without hooks (`cost.py`).
        peak_memory_gib: of the device's allocator during one bare forward, weights included; None on the CPU.
        repeatable: a second forward gave the same bits.
    """

    load_time_s: float | None = None
    measured_in: str | None = None
    latency_ms: float | None = None
    peak_memory_gib: float | None = None
    repeatable: bool | None = None


class CellRecord(Record):
    """`cell.json`.

    Attributes:
        cell_id: hash of the choices and of the environment that can change a result.
        status, reason, traceback: how it ended.
        attempt: random id of this attempt; a failed cell that is run again gets a new one.
        started_at: UTC, ISO 8601.
        axes: a short label an axis. choices: all settings of the cell, validated.
        reference_id, reference_axes, reference_choices: the cell it was compared with.
        environment: versions, device, driver, host-independent.
        checkpoint_revision: which weights these were: a hash of the file, or the hub's commit.
        checkpoint_files_sha256: one hash for all files of the checkpoint that can decide a result: weights, configs,
            tokenizer, prompts; what `sha256sum FILE ... | sha256sum` prints of them in the order of their names.
        reading: what was done to the texts besides tokenising them: a prompt, a chat template, a cut, what stands on
            pads.
        attention_kernels: operators or kernels that run in the attention, as the profiler saw them: in this cell, or in
            one of this process that ran the same code on the same dtypes and texts.
        without_effect: what was asked for and did nothing (a flag, an axis) -> why.
        fallbacks: what torch said when it took another kernel than usual, for lack of memory say, while the cell ran or
            a reference for it: the figures are that kernel's.
        unaligned: module outputs that could not be mapped to tokens, and why.
        hooks: of a compiled model, its outputs with hooks, which its modules' figures come from, against those without,
            which all other figures of the output are of; None where nothing is compiled.
        routers: of a mixture of experts, each router; none where nothing routes, or otherwise on the two sides.
        first_divergence: the first module in order of execution whose output differs in any element; None if none.
        neighbours_changed: share of texts whose nearest neighbour within their batch, by the cosine of embeddings, is
            another than the reference's; None of logits, and where no batch has three texts.
        output_kind, output, language, texts, state, cost, verdict: the figures; None where it did not get that far.
        unjudged: why there is no verdict though one was asked for: memory ran out, which says nothing about the cell.
            Where there is more, the same command judges it.
        sample, reference_sample: of the cell and of its reference.
    """

    schema_version: int = SCHEMA_VERSION
    cell_id: str
    status: Status
    reason: str | None = None
    traceback: str | None = None
    attempt: str
    started_at: str
    axes: dict[str, str | bool]
    choices: dict[str, Any]
    reference_id: str
    reference_axes: dict[str, str | bool]
    reference_choices: dict[str, Any] = Field(default={})
    environment: dict[str, Any]
    checkpoint_revision: str | None = None
    checkpoint_files_sha256: str | None = None
    reading: dict[str, str] = Field(default={})
    attention_kernels: tuple[str, ...] = ()
    without_effect: dict[str, str] = Field(default={}, validation_alias=AliasChoices("without_effect", _OLDER_NAME))
    fallbacks: tuple[str, ...] = ()
    unaligned: dict[str, str] = Field(default={})
    hooks: PairMeasures | None = None
    routers: tuple[RouterFigures, ...] = ()
    first_divergence: str | None = None
    output_kind: (
        Literal["logits", "last_hidden_state", "output", "log_probabilities", "hidden_states", "embeddings"] | None
    ) = None
    output: PairMeasures | None = None
    language: LanguageFigures | None = None
    neighbours_changed: float | None = None
    texts: tuple[TextFigures, ...] = ()
    state: StateFigures | None = None
    cost: Cost | None = None
    verdict: VerdictRecord | None = None
    unjudged: str | None = None
    sample: Sample | None = None
    reference_sample: Sample | None = None
