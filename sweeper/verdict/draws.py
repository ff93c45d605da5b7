"""Random numbers for nudges: the same for the same seed, whichever thread count, and on however many GPUs."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

_LEVELS = 2**16  # that u takes on a CPU: a fourth of what a number of full precision draws


class Draws:
    """Draws factors 1 + eps u: on a CPU by numpy's SFC64, sooner than torch does; on GPUs by one stream for all."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._of_kind: dict[str, np.random.Generator | torch.Generator] = {}

    def factors(self, shape: tuple[int, ...], device: torch.device, dtype: torch.dtype, eps: float) -> Tensor:
        """The next numbers for what lies on that device, 1 + eps u with u uniform in [-1, 1]; a new tensor there.

        Args:
            dtype: float32 or float64.
            eps: a power of two, so that scaling rounds nothing.
        """
        generator = self._generator(device)
        if isinstance(generator, np.random.Generator):
            levels = torch.from_numpy(_int16(generator, shape))
            return levels.to(dtype).mul_(2 * eps / _LEVELS).add_(1 + eps / _LEVELS)  # symmetric: the midpoints
        drawn = torch.rand(shape, generator=generator, dtype=dtype, device=generator.device).to(device)
        return drawn.mul_(2 * eps).add_(1 - eps)

    def state(self, device: torch.device) -> Any:
        """What `go_on_from` takes: the numbers that come next are those that come next now."""
        generator = self._generator(device)
        if isinstance(generator, np.random.Generator):
            return generator.bit_generator.state
        return generator.get_state()

    def go_on_from(self, device: torch.device, state: Any) -> None:
        generator = self._generator(device)
        if isinstance(generator, np.random.Generator):
            generator.bit_generator.state = state
        else:
            generator.set_state(state)

    def _generator(self, device: torch.device) -> np.random.Generator | torch.Generator:
        if device.type not in self._of_kind:
            on_cpu = device.type == "cpu"
            self._of_kind[device.type] = (
                np.random.Generator(np.random.SFC64(self._seed))
                if on_cpu
                else torch.Generator(device).manual_seed(self._seed)
            )
        return self._of_kind[device.type]


def _int16(generator: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """All values of 16 bits, each as often."""
    size = math.prod(shape)
    words = generator.integers(-(2**63), 2**63, size=-(-size // 4), dtype=np.int64)
    return words.view(np.int16)[:size].reshape(shape)
