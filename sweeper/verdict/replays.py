"""Both sides in float64: what is left once what was asked for is undone, and once what nobody asked for is put back.

A candidate that then holds the reference's state and runs the same code on the same arguments gives the same bits as
any other such candidate, and as the reference itself: those are run once.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Collection, Hashable, Iterator
from dataclasses import replace

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten

from sweeper.comparator.observation import Observation, observe_within
from sweeper.comparator.outputs import aside
from sweeper.comparator.side import Call, Outputs, Side, run, text_lengths
from sweeper.models.fingerprint import attributes_fingerprint, fingerprint
from sweeper.verdict.causes.arguments import arguments_undone
from sweeper.verdict.causes.tensors import asked_undone, put_back
from sweeper.verdict.computed_state import Computed, without
from sweeper.verdict.first_divergence import Trace, compare_runs, outputs_rel_l2, rel_l2
from sweeper.verdict.float64_replay import Precision, replayed
from sweeper.verdict.measured import Replayed
from sweeper.verdict.reference_evidence import ReferenceEvidence
from sweeper.verdict.state_changes import Change, Provenance

_CLEAR = 16.0  # times a bound, or that part of it: two more samples of its noise do not move it so far


class Replays:
    """The replays of two sides.

    Args:
        found: what differs in their state.
        evidence: of the reference.
        full: run and trace everything; else only what the verdict depends on.

    Attributes:
        left_out: what it did not depend on, as the evidence has it.
    """

    left_out: tuple[str, ...] = ()

    def __init__(
        self, reference: Side, candidate: Side, found: Provenance, evidence: ReferenceEvidence, *, full: bool
    ) -> None:
        self._reference, self._candidate, self._found = reference, candidate, found
        self._evidence, self._full = evidence, full

    @functools.cached_property
    def _undone(self) -> Side:
        return arguments_undone(self._reference, self._candidate, self._found)

    @functools.cached_property
    def _key(self) -> Hashable | None:
        return replay_key(self._undone)

    def gather(self) -> tuple[Replayed, Trace | None, Outputs]:
        """What is left, and the reference's outputs. Where it is left is traced only if something is, unless everything
        is asked for."""
        reference, found, full = self._reference, self._found, self._full
        base, left = self._evidence.replay(reference, found)
        as_loaded = self._as_loaded(base.outputs) if full else None
        outputs, right, ran = self._candidates(base.outputs, left)
        asked = outputs_rel_l2(base.outputs, outputs)
        something = bool(found.asked or found.quantised or self._undone is not self._candidate)
        replay = Replayed(
            precision=str(left if left.lower else right),
            eps=_replay_eps(left, right),
            as_loaded=as_loaded if something else asked,
            asked=asked,
            policy=None,
            noise=0.0,
        )
        if full or not asked <= replay.bound:
            with aside(*([outputs] if outputs is not base.outputs else [])):
                replay = self._bounded(replay, base.outputs, left)
        if asked <= replay.bound and not full:
            return replay, None, base.outputs
        ran = ran or self._observed()[0]
        traced = compare_runs(base, ran, until=None if full else replay.bound)
        signed = _signed(replay, base.outputs, ran.outputs, text_lengths(reference, self._candidate))
        return signed, traced, base.outputs

    def outside(self, truth: Outputs, computed: list[Computed]) -> float | None:
        """What is left outside modules whose state was computed; None where one is not excused."""
        if not all(module.excused for module in computed):
            return None
        if any(not module.name for module in computed):
            return 0.0  # the model itself is one: nothing is outside
        with (
            asked_undone(self._candidate.model, self._found, reference=False),
            without(self._candidate.model, self._reference.model, computed),
            replayed(self._undone, self._evidence.doubles) as (side, _),
        ):
            return outputs_rel_l2(truth, run(side))

    def _bounded(self, replay: Replayed, truth: Outputs, precision: Precision) -> Replayed:
        """The replay with its noise, and with what nobody asked for put back where it does not collapse.

        Args:
            truth, precision: of the reference's own replay.
        """
        found = self._found
        noise_by = functools.partial(self._evidence.replay_noise, self._reference, found, truth)
        only_rounded = not (self._full or found.other or found.missing or found.quantised)
        noise, whole = noise_by(lambda noise: only_rounded and _is_clear(replace(replay, noise=noise)))
        replay = replace(replay, noise=noise)
        if found.rounded and (self._full or not replay.asked <= replay.bound):
            again = self._outputs(truth, precision, tuple(found.rounded.values()))[0]
            replay = replace(replay, policy=outputs_rel_l2(truth, again))
        if not whole and not _is_clear(replay):
            noise, whole = noise_by(lambda _: False)
            replay = replace(replay, noise=noise)
        self.left_out = () if whole else ("the rest of the replay's noise",)
        return replay

    def _as_loaded(self, truth: Outputs) -> float | None:
        """What is left with every tensor as it was loaded; None, without a run, where nothing was asked for."""
        if not (self._found.asked or self._found.quantised or self._undone is not self._candidate):
            return None
        with replayed(self._candidate) as (side, _):
            return outputs_rel_l2(truth, run(side))

    def _candidates(self, truth: Outputs, precision: Precision) -> tuple[Outputs, Precision, Observation | None]:
        """The candidate's outputs with what was asked for undone; how exact they are; and its run, unless the same was
        run before: if they agree with the reference's, nothing of it is looked at."""
        key = None if self._full else self._same(())
        if key is not None and (known := self._known(key, truth, precision)) is not None:
            return *known, None
        ran, reached = self._observed()
        if key is not None:
            self._evidence.once_of_many(self._reference, key, lambda: (ran.outputs, reached))
        return ran.outputs, reached, ran

    def _outputs(self, truth: Outputs, precision: Precision, changes: Collection[Change]) -> tuple[Outputs, Precision]:
        """The candidate's outputs with what was asked for undone and `changes` put back, and how exact they are.

        Args:
            truth, precision: of the reference's own replay.
        """

        def gather() -> tuple[Outputs, Precision]:
            precisions: list[Precision] = []
            with self._within(changes, precisions) as side:
                return run(side), precisions[0]

        key = None if self._full else self._same(changes)
        if key is None:
            return gather()
        return self._known(key, truth, precision) or self._evidence.once_of_many(self._reference, key, gather)

    def _observed(self) -> tuple[Observation, Precision]:
        precisions: list[Precision] = []
        ran = observe_within(functools.partial(self._within, (), precisions))
        return ran, precisions[0]

    @contextlib.contextmanager
    def _within(self, changes: Collection[Change], precisions: list[Precision]) -> Iterator[Side]:
        """The candidate in float64, with what was asked for and `changes` put back; how exact that is goes into
        `precisions`."""
        model = self._candidate.model
        with (
            asked_undone(model, self._found, reference=False),
            put_back(model, changes),
            replayed(self._undone, self._evidence.doubles) as (side, precision),
        ):
            precisions.append(precision)
            yield side

    def _same(self, changes: Collection[Change]) -> Hashable | None:
        """The key of the candidate's replay with `changes` put back, if it then holds the reference's state: what was
        asked for is undone, and nothing else differs."""
        found = self._found
        left = [change for change in found.rounded.values() if not any(change is back for back in changes)]
        if left or found.other or found.quantised or found.missing or not found.exact:
            return None
        return self._key

    def _known(self, key: Hashable, truth: Outputs, precision: Precision) -> tuple[Outputs, Precision] | None:
        """What a replay of this key gave, if there was one; the reference's own is one."""
        reference = self._reference
        if key == self._evidence.once(reference, "replay key", lambda: replay_key(reference)):
            return truth, precision
        return self._evidence.known(reference, key)


def _is_clear(replay: Replayed) -> bool:
    """Whether what is left is so far from what counts as collapsed that more samples of the noise decide nothing."""
    left = [value for value in (replay.asked, replay.policy) if value is not None]
    bounds = replay.bound, replay.weak_bound
    return all(value * _CLEAR <= bound or value >= bound * _CLEAR for value in left for bound in bounds)


def replay_key(side: Side) -> Hashable | None:
    """All that decides a side's replay beside parameters and buffers; None where that is not known of it."""
    calls = tuple(map(_call_key, side.calls))
    if side.function is None or None in calls:
        return None
    switches = tuple((name, switch.value) for name, switch in side.switches.items() if not switch.rounds)
    attributes = attributes_fingerprint(side.model)
    return side.function, attributes, switches, calls, side.pooling, side.parts, tuple(side.names.items()), side.seed


def _call_key(call: Call) -> Hashable | None:
    """What the model is called with, and which rows are looked at; None where some of it cannot be told from other."""
    leaves, layout = tree_flatten(call.kwargs)
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    plain = [leaf for leaf in leaves if isinstance(leaf, (bool, int, float, str, type(None)))]
    tokens = call.forward
    if len(tensors) + len(plain) < len(leaves) or tokens.encoder is not None or tokens.frames is not None:
        return None
    rows = tokens.shape, tokens.lengths, tokens.beside, tokens.whole
    return (
        str(layout),
        repr(plain),
        fingerprint(("", tensor) for tensor in (*tensors, tokens.flat_N)),
        rows,
        call.decoding,
    )


def _replay_eps(left: Precision, right: Precision) -> float:
    """What the replay can tell apart. Code that rounds to 16 bits on one side only is a difference, not a limit."""
    either = max(left.eps, right.eps)
    return max(min(left.eps, right.eps), min(either, torch.finfo(torch.float32).eps))


def _signed(replay: Replayed, reference: Outputs, candidate: Outputs, lengths: list[int]) -> Replayed:
    """Adds the first shared output that differs (else the first), text by text and position by position."""
    shared = [name for name in reference if name in candidate]
    differing = (name for name in shared if rel_l2(reference[name], candidate[name]) > replay.bound)
    name = next(differing, shared[0])
    left, right = reference[name], candidate[name]
    of_texts = len(left) == len(lengths) < sum(lengths)  # pooled: a row a text
    rows = [1] * len(lengths) if of_texts else lengths
    if len(left) != sum(rows):
        return replay
    texts = tuple(rel_l2(*pair) for pair in zip(left.split(rows), right.split(rows), strict=True))
    if of_texts:
        return replace(replay, texts=texts)
    position_N = torch.cat([torch.arange(length) for length in lengths]).to(left.device)
    doubling_N = torch.frexp(position_N.float()).exponent  # 0, 1, 2 for 2 and 3, 3 for 4 to 7, ...
    places = [doubling_N == place for place in range(int(doubling_N.max()) + 1)]
    return replace(replay, texts=texts, positions=tuple(rel_l2(left[place_N], right[place_N]) for place_N in places))
