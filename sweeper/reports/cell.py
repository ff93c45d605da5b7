"""All that is known of one cell, as titled tables of text: the terminal and the page only draw them."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

from sweeper.records.cell import RECORDED, CellRecord, ModuleRecord, PairMeasures, StateFigures, Status, TextFigures
from sweeper.records.verdict import VerdictRecord
from sweeper.reports.cells_table import Table, cosine, fraction, is_reference, number
from sweeper.reports.origin import EqualLayers, layer_outputs, module_differs, origin, steps

MOST_TEXTS = 20
MOST_QUOTED = 5  # of these, as text
TEXT_LETTERS = 160
MOST_STATE_ENTRIES = 20

MODULE_FIGURES = ("max |Δ|", "mean |Δ|", "rel. L2", "SQNR dB", "cosine", "equal")


@dataclass(frozen=True, kw_only=True)
class Section(Table):
    """One table of a cell's report.

    Attributes:
        title: heading.
        notes: sentences under the heading; without rows, the section is these.
        preformatted: long text to be shown as it is.
    """

    title: str
    notes: tuple[str, ...] = ()
    preformatted: str | None = None


def sections(record: CellRecord, modules: Sequence[ModuleRecord]) -> list[Section]:
    """What is known of a cell, the most telling first. A cell that did not run says why."""
    found = [_choices(record)]
    if record.reason:
        found.append(Section(title=record.status.value.capitalize(), notes=(record.reason,)))
    if record.traceback:
        found.append(Section(title="Traceback", preformatted=record.traceback.rstrip()))
    if record.output is not None:
        found += [
            *([_verdict(record.verdict, len(record.texts))] if record.verdict else []),
            *([Section(title="Not judged", notes=(record.unjudged,))] if record.unjudged else []),
            _origin(record, modules),
            *([_state(record.state)] if record.state else []),
            _output(record, record.output),
            *([_layers(modules)] if layer_outputs(modules) else []),
            _texts(record),
            conditions(record),
        ]
    if record.status is not Status.UNSUPPORTED:
        found.append(_environment(record))
    return found


def _verdict(verdict: VerdictRecord, texts: int) -> Section:
    """What the difference means, and the figures that say so."""
    notes = [f"{verdict.kind}: {verdict.reason}"]
    if verdict.first_divergence:
        notes.append(f"first divergence: {verdict.first_divergence}")
    if verdict.decides:
        notes.append(f"would decide: {verdict.decides}")
    everything = len(verdict.texts) == texts > 2
    notes.append("judged on all texts" if everything else f"judged on text {', '.join(map(str, verdict.texts))}")
    rows = tuple(
        (e.name, e.value if isinstance(e.value, str) else number(e.value), e.meaning) for e in verdict.evidence
    )
    return Section(("evidence", "value", "meaning"), rows, title="Verdict", notes=tuple(notes))


def _choices(record: CellRecord) -> Section:
    axes, reference = record.axes, record.reference_axes
    rows = tuple((axis, str(axes[axis]), str(reference[axis])) for axis in axes if axes[axis] != reference.get(axis))
    same = ", ".join(f"{axis}={value}" for axis, value in axes.items() if value == reference.get(axis))
    notes = [f"on both sides: {same}"] if same else []
    if is_reference(record):
        notes.append("This cell is its own reference: two runs of it were compared.")
    recorded = record.reference_axes.get(RECORDED)
    headings = (
        "axis",
        "this cell",
        f"reference {record.reference_id}" if recorded is None else f"recording {recorded}",
    )
    return Section(headings, rows, title="Choices", notes=tuple(notes))


def _origin(record: CellRecord, modules: Sequence[ModuleRecord]) -> Section:
    rows: list[tuple[str, ...]] = []  # in order of execution
    for step in steps(modules):
        if isinstance(step, EqualLayers):
            layers = f"layer {step.first}" if step.first == step.last else f"layers {step.first}–{step.last}"
            rows.append((f"{layers}: {step.modules} modules", "", "", "equal"))
        else:
            figures = module_figures(step.measures) if module_differs(step) else ("equal",)
            dtypes = dict.fromkeys((step.reference_dtype, step.candidate_dtype))
            rows.append((step.name, step.module_type, " → ".join(dtypes), *figures))
    headings = ("module", "type", "dtype", *MODULE_FIGURES)
    return Section(headings, tuple(rows), title="Where it starts", notes=(origin(record, modules),))


def module_figures(measures: PairMeasures) -> tuple[str, ...]:
    """The figures in the order of `MODULE_FIGURES`; the last tells what is not finite."""
    bad = measures.nonfinite_mismatch
    return (
        number(measures.max_abs),
        number(measures.mean_abs),
        number(measures.rel_l2),
        f"{measures.sqnr_db:.1f}" if math.isfinite(measures.sqnr_db) else str(measures.sqnr_db),
        cosine(measures.cosine),
        fraction(measures.equal_fraction) + (f", {bad} not finite" if bad else ""),
    )


def _state(state: StateFigures) -> Section:
    counts = (
        f"{state.parameters_equal} of {state.parameters} parameters equal; "
        f"{state.buffers_equal} of {state.buffers} buffers equal; "
        f"{state.same_dtype} of {state.parameters + state.buffers} have the same dtype"
    )
    # buffers first: no state_dict shows the non-persistent ones
    entries = sorted(state.differing, key=lambda entry: (entry.kind == "parameter", -entry.max_abs))
    rows = tuple(
        (
            entry.name,
            entry.kind.replace("_", " ").replace("non persistent", "non-persistent"),
            f"{entry.reference_dtype} → {entry.candidate_dtype}",
            "values equal" if entry.values_equal else number(entry.max_abs),
        )
        for entry in entries[:MOST_STATE_ENTRIES]
    )
    more = len(entries) - len(rows)
    notes = (counts, *([f"{more} more differ, by less"] if more else []))
    return Section(("name", "kind", "dtype", "max |Δ|"), rows, title="Parameters and buffers", notes=notes)


def _output(record: CellRecord, output: PairMeasures) -> Section:
    rows = [
        ("max |Δ|, mean |Δ|, RMS", f"{number(output.max_abs)}, {number(output.mean_abs)}, {number(output.rms)}"),
        ("relative L2, SQNR", f"{number(output.rel_l2)}, {number(output.sqnr_db)} dB"),
        ("cosine; least of a token", f"{cosine(output.cosine)}; {cosine(output.min_token_cosine)}"),
        ("equal elements", f"{fraction(output.equal_fraction)} of {output.numel:,}"),
        ("max ULP", f"{output.max_ulp:,.0f}" if math.isfinite(output.max_ulp) else str(output.max_ulp)),
        (f"allclose, rtol {output.rtol:g}, atol {output.atol:g}", "yes" if output.allclose else "no"),
    ]
    if output.worst_reference is not None and output.max_abs:
        where = f"token {output.worst_token}, feature {output.worst_feature}"
        rows.append(("worst element", f"{where}: {output.worst_reference:g} → {output.worst_candidate:g}"))
    counts = (output.reference_nan, output.candidate_nan, output.reference_inf, output.candidate_inf)
    if any(counts):
        rows.append(("NaN, Inf", "NaN {} → {}, Inf {} → {}".format(*counts)))
    if language := record.language:
        change = f"{language.log_likelihood_change_mean:.3g} mean, {language.log_likelihood_change_max_abs:.3g} largest"
        rows += [
            ("KL a token, nats", f"{number(language.kl_mean)} mean, {number(language.kl_max)} largest"),
            ("top-1 agreement", fraction(language.top1_agreement)),
            ("log-likelihood change a token, nats", change),
        ]
        left_out = language.nonfinite_tokens
        rows += [("tokens left out: not finite", str(left_out))] if left_out else []
    if record.neighbours_changed is not None:
        rows.append(("texts with another nearest neighbour in the batch", fraction(record.neighbours_changed)))
    name = (record.output_kind or "output").replace("_", " ")
    return Section(("measure", "value"), tuple(rows), title=f"Output: {name}")


def _layers(modules: Sequence[ModuleRecord]) -> Section:
    outputs = layer_outputs(modules)
    if not any(map(module_differs, outputs)):
        return Section(title="Layer by layer", notes=(f"All {len(outputs)} layer outputs are equal.",))
    rows = tuple(
        (str(module.layer), *(module_figures(module.measures) if module_differs(module) else ("equal",)))
        for module in outputs
    )
    return Section(("layer", *MODULE_FIGURES), rows, title="Layer by layer")


def _texts(record: CellRecord) -> Section:
    notes, texts = ["A leak between texts shows as one text far worse than the first."], record.texts
    shown = furthest(texts, MOST_TEXTS)
    if len(shown) < len(texts):
        notes.append(f"These are the {len(shown)} of {len(texts)} whose embeddings are furthest from the reference's.")
    rows = tuple(
        (
            str(text.text),
            str(text.tokens),
            number(text.output_max_abs),
            fraction(text.output_equal_fraction),
            cosine(text.output_cosine),
            cosine(text.embedding_cosine),
            number(text.embedding_max_abs),
            number(text.embedding_mean_abs),
        )
        for text in shown
    )
    notes += [f"text {number}: {words}" for number, words in _words(record, shown[:MOST_QUOTED])]
    output = ("output max |Δ|", "output equal", "output cosine")
    headings = ("text", "tokens", *output, "embedding cosine", "embedding max |Δ|", "embedding mean |Δ|")
    return Section(headings, rows, title="Texts", notes=tuple(notes))


def _words(record: CellRecord, texts: Sequence[TextFigures]) -> list[tuple[int, str]]:
    """The beginnings of texts, where the record has them: those of a file and token ids are not in it."""
    known = texts_of(record)
    return [
        (text.text, repr(textwrap.shorten(known[text.text], TEXT_LETTERS, placeholder=" …")))
        for text in texts
        if text.text < len(known)
    ]


def texts_of(record: CellRecord) -> tuple[str, ...]:
    """The texts that the cell read, as text; none where the record does not have them."""
    inputs = record.choices.get("inputs")
    texts = inputs.get("texts") if isinstance(inputs, dict) else None
    return tuple(text for text in texts or () if isinstance(text, str))


def furthest(texts: Sequence[TextFigures], most: int) -> list[TextFigures]:
    """Picks the texts whose embeddings are furthest from the reference's, worst first; few stay as they are."""
    if len(texts) <= most:
        return list(texts)
    # NaN is the worst: it has no place in an order of numbers
    return sorted(texts, key=lambda text: (not math.isnan(text.embedding_cosine), text.embedding_cosine))[:most]


def _compiled_and_routed(record: CellRecord) -> list[tuple[str, str]]:
    rows = []
    if record.hooks is not None:
        same = f"{fraction(record.hooks.equal_fraction)} of it is equal without them, rel. L2 {record.hooks.rel_l2:.2g}"
        rows.append(("output with hooks", "the same bits as without" if record.hooks.equal_fraction == 1 else same))
    if flipping := [router for router in record.routers if router.flipped]:
        worst = max(flipping, key=lambda router: router.flipped)
        rows.append(
            (
                "routers that send tokens to other experts",
                f"{len(flipping)} of {len(record.routers)}, most {worst.module}: {fraction(worst.flipped)} of tokens",
            )
        )
    elif record.routers:
        rows.append(("routers that send tokens to other experts", f"none of {len(record.routers)}"))
    return rows


def conditions(record: CellRecord) -> Section:
    rows = [("attention kernels", ", ".join(record.attention_kernels) or "none was seen")]
    rows += [(f"texts: {name}", what) for name, what in record.reading.items()]
    rows += [(f"{flag}: no effect", why) for flag, why in record.without_effect.items()]
    rows += [(f"{name}: not compared", why) for name, why in record.unaligned.items()]
    rows += _compiled_and_routed(record)
    if record.cost is not None:
        load, latency, memory = record.cost.load_time_s, record.cost.latency_ms, record.cost.peak_memory_gib
        rows += [("weights loaded in", "shared with another cell" if load is None else f"{load:.2f} s")]
        if record.cost.measured_in is not None:
            rows += [("bare forwards", f"cell {record.cost.measured_in}'s: the same code, shapes and dtypes")]
        rows += [] if latency is None else [("forward, median", f"{latency:.1f} ms")]
        rows += [] if memory is None else [("peak memory", f"{memory:.2f} GiB")]
        repeats = {None: "was not run", True: "same bits", False: "OTHER BITS: this cell does not repeat"}
        rows += [("second forward", repeats[record.cost.repeatable])]
    return Section(("what", "value"), tuple(rows), title="Kernels and cost")


def _environment(record: CellRecord) -> Section:
    rows = [(name, str(value)) for name, value in record.environment.items() if value is not None]
    for name in ("checkpoint_revision", "checkpoint_files_sha256"):
        rows += [(name.replace("_", " "), value)] if (value := getattr(record, name)) else []
    rows += [("started (UTC)", record.started_at), ("attempt", record.attempt)]
    return Section(("what", "value"), tuple(rows), title="Environment")
