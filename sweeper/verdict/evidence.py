"""What was measured, told: each figure with its name and its meaning."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from sweeper.records.verdict import LEFT_OUT
from sweeper.verdict.measured import CompiledCode, Measured, Replayed
from sweeper.verdict.thresholds import (
    FLOAT64_EPS,
    FLOOR_MULTIPLE,
    KERNEL_MULTIPLE,
    OWN_MULTIPLE,
    QUANTISED_MULTIPLE,
    STORED_MULTIPLE,
)
from sweeper.verdict.wording import some_of


@dataclass(frozen=True)
class Evidence:
    """One figure: what was measured, its value, and what that means."""

    name: str
    value: float | str
    meaning: str

    def __str__(self) -> str:
        value = f"{self.value:.3g}" if isinstance(self.value, float) else self.value
        return f"{self.name} = {value}: {self.meaning}"


def evidence_of(measured: Measured) -> list[Evidence]:
    """All figures that were measured, in the order in which they are told."""
    native = "difference of the outputs as they ran; decides nothing alone"
    found = [Evidence("repeatable", "no", clause) for clause in measured.random]
    found.append(Evidence("native rel_l2", measured.native, native))
    for title, outputs in (("compared in part", measured.partly), ("not compared", measured.uncompared)):
        found += [Evidence(title, name, reason) for name, reason in outputs.items()]
    for side, count in measured.training.items():
        found.append(Evidence("training mode", float(count), f"modules of the {side}"))
    if measured.left is not None:
        return found + [replace(one, name=f"once it repeats: {one.name}") for one in evidence_of(measured.left)]
    if measured.nonfinite:
        found.append(Evidence("non-finite", float(measured.nonfinite), "NaN or Inf on one side only"))
    if measured.floor_samples:
        low, high = measured.floor_spread
        runs = "one run" if measured.floor_samples == 1 else f"{measured.floor_samples} runs"
        meaning = f"{runs} with every module nudged by up to one ULP, {low:.2g} to {high:.2g}"
        found.append(Evidence("noise floor rel_l2", measured.floor, meaning))
        found += [
            Evidence(f"rel_l2 with {name}", value, "same model, same texts")
            for name, value in measured.rebatched.items()
        ]
        if measured.floor > 0:
            ratio = measured.native / measured.floor
            found.append(Evidence("native over floor", ratio, f"rounding stays below {FLOOR_MULTIPLE:.0f}"))
    if measured.layers:
        ratios = ", ".join(f"{ratio:.2g}" for ratio in measured.layers)
        found.append(
            Evidence("native over floor by layer", ratios, "rounding grows from layer to layer as the floor does")
        )
    found += [one for code in measured.compiled for one in _compiled_evidence(code)]
    if measured.replay is not None:
        found += _replay_evidence(measured, measured.replay)
    state = {"rounded unasked": measured.rounded, "other values": measured.other, "on one side only": measured.missing}
    for name, names in state.items():
        if names:
            found.append(Evidence(name, float(len(names)), some_of(names)))
    if measured.flips is not None:
        where = f", in {some_of(measured.flipping)}" if measured.flipping else ""
        meaning = f"share of tokens for which top-k or argmax chose otherwise{where}"
        found.append(Evidence("flipped choices", measured.flips, meaning))
    found += _located_evidence(measured)
    if measured.left_out:
        meaning = "the verdict does not depend on it; verdict=full gathers it"
        found.append(Evidence(LEFT_OUT, ", ".join(measured.left_out), meaning))
    return found


def _located_evidence(measured: Measured) -> list[Evidence]:
    """What was put back, or run alone, because the outputs do not tell where a native difference comes from."""
    found = []
    if measured.native_chosen is not None:
        meaning = "the candidate with the reference's choices"
        found.append(Evidence("native rel_l2, choices put back", measured.native_chosen, meaning))
    if measured.quantised_kernel is not None:
        kernels = f"the kernels move them {measured.quantised_kernel:.2g} times as far as the weights"
        meaning = f"how far the outputs move; {kernels}, up to {QUANTISED_MULTIPLE:.0f} is rounding"
        found.append(Evidence(f"asked: {measured.quantised}", measured.native, meaning))
    if measured.kernel is not None:
        found.append(Evidence("kernel error over eager's", measured.kernel, f"up to {KERNEL_MULTIPLE:.0f} is rounding"))
    if measured.native_eager is not None:
        found.append(Evidence("native rel_l2, eager", measured.native_eager, "the candidate with eager attention"))
    if not math.isnan(measured.operations):
        meaning = "every operation nudged by up to one ULP, products by what the flags in force cost"
        found.append(Evidence("noise floor of operations", measured.operations, meaning))
    if measured.examined:
        far = "; ".join(map(str, measured.beyond[:3])) if measured.beyond else "none stands out"
        meaning = f"modules run on the reference's arguments, rounding stays below {OWN_MULTIPLE:.0f} own floors: {far}"
        found.append(Evidence("examined", float(measured.examined), meaning))
    if measured.unexamined:
        found.append(Evidence("examined", 0.0, f"no module could be run alone: {measured.unexamined}"))
    return found


def _compiled_evidence(code: CompiledCode) -> list[Evidence]:
    """Compiled code against what is written."""
    name, whose = "compiled against written code", f"{code.how} in the {code.side}"
    if code.native == 0:
        return [Evidence(name, 0.0, f"{whose}: the same outputs")]
    floor = f"the noise floor is {code.floor:.2g}, rounding stays below {FLOOR_MULTIPLE:.0f} of it"
    meaning = f"{whose}, same model and dtype; {floor}"
    found = [Evidence(name, code.native, meaning)]
    if code.exact is not None:
        found.append(Evidence(f"{name}, in float64", code.exact, f"rounding stays below {code.exact_bound:.2g}"))
    elif code.not_exact is not None:
        found.append(Evidence(f"{name}, in float64", "not run", code.not_exact))
    return found


def _replay_evidence(measured: Measured, replay: Replayed) -> list[Evidence]:
    found = [Evidence("replay precision", "float64" if replay.eps == FLOAT64_EPS else "mixed", replay.precision)]
    collapsed = f"; collapsed is below {replay.bound:.2g}"
    if replay.as_loaded is not None:
        found.append(Evidence("replay rel_l2", replay.as_loaded, f"both sides as loaded{collapsed}"))
        collapsed = ""
    if measured.asked:
        meaning = f"the dtype asked for: {measured.asked}{collapsed}"
        found.append(Evidence("replay, asked rounding undone", replay.asked, meaning))
    for name, distance in measured.computed.items():
        meaning = f"in float64, over what storing the weights of {name or 'the model'} costs a feature"
        found.append(Evidence("computed state", distance, f"{meaning}; up to {STORED_MULTIPLE:.0f} is rounding"))
    if replay.computed is not None:
        found.append(Evidence("replay, computed state put back", replay.computed, "what differs outside these modules"))
    if replay.policy is not None:
        found.append(Evidence("replay, unasked rounding undone", replay.policy, some_of(measured.rounded)))
    if replay.asked > replay.bound and len(replay.texts) > 1:
        texts = ", ".join(f"{value:.2g}" for value in replay.texts[:8])
        clean = replay.texts[0] <= replay.bound and max(replay.texts[1:]) > replay.bound
        meaning = (
            "the first is untouched, later ones are not: a leak between texts, or pads that are read"
            if clean
            else "none stands out"
        )
        found.append(Evidence("replay rel_l2 by text", texts, meaning))
    first, later = replay.positions[:1], replay.positions[1:]
    if later and first[0] <= replay.bound < max(later):
        shown = ", ".join(f"{value:.2g}" for value in replay.positions)
        grows = " and growing" if list(later) == sorted(later) else ""
        meaning = f"at 0, 1, 2-3, 4-7, ...; exact at position 0{grows}: positions or their table"
        found.append(Evidence("replay rel_l2 by position", shown, meaning))
    return found
