"""Ready choices of layers for the picker, by name. No torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import pandas as pd

from workbench.distances.blocks import Layers, checked_layers, format_layers, least, parse_layers
from workbench.distances.strategies import deepest_blocks, greedy_layers, random_layers, shallowest_blocks
from workbench.widgets.metrics import Metric, single_layers


class Presets:
    """Names of ready choices, and the layers of each for a number of layers to remove."""

    def __init__(
        self,
        metrics: Sequence[Metric],
        layers: Sequence[int],
        given: Mapping[str, Sequence[int]] | None,
        seed: int,
    ) -> None:
        """Look at what can be offered; ``given`` are choices of the user, such as that of an IteRABRe run.

        Raises:
            ValueError: for a given choice of other layers than the model's, or of all of them.
        """
        self._layers, self._seed, self._draws = list(layers), seed, 0
        self._by: dict[str, Callable[[int], Layers]] = {}
        for metric in metrics:
            if not metric.single:
                self._by[f"least {metric.name}"] = partial(self._least, metric)
        self._by["deepest (keeping the last)"] = lambda size: _layers(deepest_blocks(layers, [size]))
        self._by["shallowest"] = lambda size: _layers(shallowest_blocks(layers, [size]))
        if (costs := single_layers(metrics, layers)) is not None:
            greedy = f"greedy (by {costs.attrs['by']} of single layers)"
            self._by[greedy] = lambda size: _layers(greedy_layers(costs, [size]))
        self._by[f"random (seed {seed})"] = self._random
        for name, chosen in (given or {}).items():
            checked = checked_layers(chosen, layers, f"presets[{name!r}]")
            self._by[f"{name}: {format_layers(checked)}"] = partial(_given, checked)

    @property
    def names(self) -> list[str]:
        """The names in the order that the page lists them."""
        return list(self._by)

    def layers(self, name: str, size: int) -> Layers:
        """Return the layers of a ready choice; a user's own may be named without its layers.

        Raises:
            ValueError: for a name that is not there, or a size that it does not have.
        """
        full = next((one for one in self._by if one == name or one.startswith(f"{name}: ")), None)
        if full is None:
            raise ValueError(f"preset must be one of {self.names}, got {name!r}")
        return self._by[full](size)

    def _least(self, metric: Metric, size: int) -> Layers:
        rows = metric.table.dropna(subset="value")
        rows = rows[rows["size"] == size]
        if rows.empty:
            raise ValueError(f"{metric.name} has sizes {format_layers(metric.table['size'])}, got {size}")
        at = self._layers.index(int(least(rows, "value")["start"].item()))
        return tuple(self._layers[at : at + size])

    def _random(self, size: int) -> Layers:
        """Return the next draw; the first one is that of ``random_layers`` with the same seed."""
        self._draws += 1
        drawn = random_layers(self._layers, [size], n_draws=self._draws, seed=self._seed)
        return parse_layers(drawn["removed"].iloc[-1])


def _layers(choice: pd.DataFrame) -> Layers:
    return parse_layers(choice["removed"].iloc[0])


def _given(layers: Layers, _size: int) -> Layers:
    return layers
