"""Settings of a method: a frozen dataclass whose every field says whether its value is the paper's or ours.

Types say what a field may hold: a number within limits (`Count`, `Fraction`, ...), one of several words (`Literal`), or
several of either with commas between them in text. pydantic converts and checks; what it refuses becomes one line.
"""

from __future__ import annotations

import dataclasses
import math
import typing
from difflib import get_close_matches
from functools import lru_cache
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, TypeAdapter, ValidationError

from uad_core.errors import UserError
from uad_core.training import Schedule

__all__ = ["Betas", "Config", "Count", "Counts", "Fraction", "Several", "Size", "TrainedConfig", "configure", "fact",
           "reconstruction"]  # fmt: skip


def fact(default: Any, source: str) -> Any:
    """Declare a configuration field whose value is the paper's own; `source` says where it is stated."""
    return dataclasses.field(default=default, metadata={"mark": "fact", "note": source})


def reconstruction(default: Any, why: str) -> Any:
    """Declare a configuration field whose value is our reconstruction; `why` gives its reason."""
    return dataclasses.field(default=default, metadata={"mark": "reconstruction", "note": why})


def _parts(value: Any) -> Any:
    return tuple(part for part in value.split(",") if part) if isinstance(value, str) else value


Several = BeforeValidator(_parts)
Count = Annotated[int, Field(ge=1)]
Counts = Annotated[tuple[Count, ...], Several, Field(min_length=1)]
Betas = Annotated[tuple[Annotated[float, Field(ge=0, le=0.9999)], Annotated[float, Field(ge=0, le=0.9999)]], Several]
Size = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, le=1)]


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings that every method has."""

    sigma: Size = reconstruction(4.0, "pixels; the smoothing that the field uses at 256 pixels")
    score: Literal["max", "top", "mean"] = reconstruction(
        "max", "image score: largest value of the anomaly map, mean of its largest 0.2 %, or mean of all"
    )
    map_stride: Annotated[int, Field(ge=1, le=32)] = reconstruction(1, "pixels of the image per pixel of the map")
    false_alarms: Annotated[float, Field(ge=1e-4, le=0.5)] = reconstruction(
        0.02, "rate at which normal images may be called anomalous; it places the verdict's threshold"
    )


@dataclasses.dataclass(frozen=True)
class TrainedConfig(Config):
    """Settings of a method that learns by gradient descent."""

    epochs: Count = reconstruction(20, "passes over the training images; the last one counts")
    steps: Annotated[int, Field(ge=0)] = reconstruction(0, "updates of the weights at the least, by further passes")
    batch_size: Count = reconstruction(8, "images per step")
    lr: Size = reconstruction(3e-3, "peak learning rate of Adam")
    decay: Literal["constant", "onecycle"] = reconstruction(
        "onecycle", "'constant', or 'onecycle': a short warm-up, then a cosine to zero"
    )
    clip: Size = reconstruction(0.0, "largest gradient norm; 0 for none")
    precision: Literal["auto", "32-true", "16-mixed", "bf16-mixed"] = reconstruction(
        "auto", "half precision on CUDA, single elsewhere; or one by name"
    )

    def schedule(self) -> Schedule:
        """Collect the fields that the training loop needs."""
        names = (field.name for field in dataclasses.fields(Schedule))
        return Schedule(**{name: getattr(self, name) for name in names if hasattr(self, name)})


def configure(config_class: type[Config], settings: dict[str, Any]) -> Config:
    """Build a configuration from settings whose values may be text, as the command line gives them.

    Raises UserError for an unknown setting and for a value of the wrong kind or outside its limits.
    """
    fields = {field.name for field in dataclasses.fields(config_class)}
    for key in settings:
        if key not in fields:
            near = get_close_matches(key, fields, 1) or ["one of " + ", ".join(sorted(fields))]
            raise UserError(f"no setting {key!r} in {config_class.__name__}: did you mean {near[0]}?")
    try:
        return _adapter(config_class).validate_python(settings)
    except ValidationError as error:
        raise UserError(_line(config_class, settings, error.errors()[0])) from None


@lru_cache
def _adapter(config_class: type[Config]) -> TypeAdapter:
    return TypeAdapter(config_class)


def _line(config_class: type[Config], settings: dict[str, Any], error: dict[str, Any]) -> str:
    """Say in one line what is wrong with a setting, and what it may be."""
    key = error["loc"][0]
    value, limits = settings[key], error.get("ctx", {})
    shown = f"{value!r:.40}"
    wanted = typing.get_type_hints(config_class)[key]
    if error["type"] == "literal_error":
        words = limits["expected"].replace("'", "").replace(" or ", ", ")
        return f"{key} cannot be {error['input']!r}: choose among {words}"
    if error["type"] in ("too_short", "missing") and not _parts(value):
        return f"{key} cannot be empty: give at least one value, several with commas between them"
    if error["type"] in ("greater_than_equal", "less_than_equal", "finite_number"):
        return f"{key} cannot be {shown}: give {_limits(config_class, key)}"
    name = getattr(typing.get_origin(wanted) or wanted, "__name__", str(wanted))
    return f"setting {key}={shown} is not of type {name}: write for instance {key}={_example(config_class, key)}"


def _limits(config_class: type[Config], key: str) -> str:
    """Return the limits of a field in words, as its schema has them."""
    schema = _adapter(config_class).json_schema()["properties"][key]
    several = "items" in schema or "prefixItems" in schema
    number = schema.get("items") or (schema["prefixItems"][0] if several else schema)
    low, high = number.get("minimum", -math.inf), number.get("maximum", math.inf)
    return f"{'numbers' if several else 'a number'} from {low:g} " + (f"to {high:g}" if high < math.inf else "up")


def _example(config_class: type[Config], key: str) -> str:
    """Return the default of a field, as one would write it."""
    default = next(field.default for field in dataclasses.fields(config_class) if field.name == key)
    return ",".join(map(str, default)) if isinstance(default, tuple) else str(default).lower()
