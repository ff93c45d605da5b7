"""Which tokens the routers of a mixture of experts send elsewhere than the reference's."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from sweeper.comparator.comparer import layer_and_kind
from sweeper.models.configs import config_of
from sweeper.records.cell import RouterFigures
from sweeper.verdict.discrete_choices import Chosen, flips_by_module

_COUNTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")


def is_mixture(model: nn.Module) -> bool:
    """Whether the model's config counts experts among which tokens are shared out."""
    config = config_of(model)
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    return any((getattr(text, name, None) or 0) > 1 for name in _COUNTS)


def router_figures(reference: Sequence[Chosen], candidate: Sequence[Chosen]) -> tuple[RouterFigures, ...]:
    """Each router of two sides, in the order of execution, from what they chose."""
    shares = flips_by_module(reference, candidate)
    return tuple(
        RouterFigures(module=name, layer=layer_and_kind(name)[0], flipped=share) for name, share in shares.items()
    )
