"""Random numbers for nudges: the same for the same seed, whichever thread count, and on however many GPUs."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

_KINDS: dict[torch.dtype, Any] = {torch.float32: np.float32, torch.float64: np.float64}


class Draws:
    """Draws numbers of [0, 1): on a CPU by numpy's SFC64, sooner than torch does; on GPUs by one stream for all."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._of_kind: dict[str, np.random.Generator | torch.Generator] = {}

    def uniform(self, shape: tuple[int, ...], device: torch.device, dtype: torch.dtype) -> Tensor:
        """The next numbers for what lies on that device, a new tensor there.

        Args:
            dtype: float32 or float64.
        """
        generator = self._generator(device)
        if isinstance(generator, np.random.Generator):
            return torch.from_numpy(np.asarray(generator.random(shape, _KINDS[dtype])))
        return torch.rand(shape, generator=generator, dtype=dtype, device=generator.device).to(device)

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
