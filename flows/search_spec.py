"""What a user writes of a search for settings of training. Knows neither the settings' meaning nor what searches."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any

from pydantic import Discriminator, Field, Tag, model_validator

from flows.data_spec import Part

Value = bool | int | float | str

_PROBED = 256
"""So many whole numbers of a range are tried against the rules of training before anything is spent."""


class RangeSpec(Part):
    """Numbers from `low` to `high`, both included; whole ones where both are written without a point."""

    low: int | float = Field(description="Least value.")
    high: int | float = Field(description="Greatest value.")
    log: bool = Field(False, description="Draw evenly over the logarithm; for rates.")
    step: int | float | None = Field(None, gt=0, description="Distance between values; default 1 for whole numbers, else any value.")

    @model_validator(mode="after")
    def _sensible(self) -> RangeSpec:
        if self.low > self.high:
            raise ValueError(f"low ({self.low}) must be at most high ({self.high})")
        if self.log and self.low <= 0:
            raise ValueError(f"log needs low above 0, not {self.low}")
        if self.log and self.step is not None:
            raise ValueError("give log or step, not both")
        if self.whole and isinstance(self.step, float):
            raise ValueError(f"step ({self.step}) must be a whole number, as low and high are")
        return self

    @property
    def whole(self) -> bool:
        """Whether the values are whole numbers."""
        return isinstance(self.low, int) and isinstance(self.high, int)

    def probes(self) -> Iterator[Value]:
        """Values of the range: all of few whole numbers, else the ends and one between."""
        if self.whole:
            values = range(int(self.low), int(self.high) + 1, int(self.step or 1))
            yield from values if len(values) <= _PROBED else (values[0], values[-1])
            return
        yield self.low
        if self.high > self.low:
            # Not a whole number by chance: a setting that takes only these must refuse it.
            yield min(self.low + (self.step or 0.318 * (self.high - self.low)), self.high)
            yield self.high


Parameter = Annotated[
    Annotated[RangeSpec, Tag("search-range")] | Annotated[tuple[Value, ...], Field(min_length=1), Tag("search-values")],
    Discriminator(lambda value: "search-range" if isinstance(value, dict | RangeSpec) else "search-values"),
]


class SearchSpec(Part):
    """A search for settings by Optuna: at the largest size, with the first seed, by the loss on the evaluation part."""

    trials: int = Field(10, ge=1, le=1000, description="Settings that are tried, one after the other.")
    hours: float | None = Field(None, gt=0, description="Begin no further trial after so many hours of training time.")
    seed: int = Field(0, ge=0, le=2**32 - 1, description="Seed of the search.")
    parameters: dict[str, Parameter] = Field(
        min_length=1, description="Settings of the family by name (those of lora too): a list of values, or {low, high, log, step}."
    )

    def probes(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """What must be allowed before a search begins: each value alone, and the first of all together."""
        for name, values in self.parameters.items():
            for value in values.probes() if isinstance(values, RangeSpec) else values:
                yield f"parameters.{name}", {name: value}
        yield "parameters", {name: values.low if isinstance(values, RangeSpec) else values[0] for name, values in self.parameters.items()}

    def largest(self, name: str) -> float | None:
        """The greatest number that a setting may get; None where it is not searched."""
        values = self.parameters.get(name)
        if values is None:
            return None
        return float(values.high if isinstance(values, RangeSpec) else max(float(value) for value in values))
