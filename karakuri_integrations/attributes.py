"""SteeringAttributes: the nine dials of KARAKURI LM, integers 0 to 4, and who may turn them per message.

Knows the names, the range, the defaults of the model card and the presets. How a prompt writes them lives in
`templates`, how a framework carries them in `langchain` and `llama_index`.
"""

from __future__ import annotations

import difflib
import operator
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final, Literal, TypeAlias

from .errors import AttributeConfigError, OptionError

__all__ = [
    "NAMES",
    "PRESETS",
    "AttributeLike",
    "AttributePolicy",
    "PolicyMode",
    "SteeringAttributes",
    "carried_attributes",
]

LOWEST: Final = 0
HIGHEST: Final = 4

#: The dials in the order in which every KARAKURI template writes them.
NAMES: Final = (
    "helpfulness",
    "correctness",
    "coherence",
    "complexity",
    "verbosity",
    "quality",
    "toxicity",
    "humor",
    "creativity",
)


def _check(name: object, value: object) -> int:
    """Return `value` as an int, or raise AttributeConfigError naming field, value, rule and next step."""
    if name not in NAMES:
        raise AttributeConfigError(_unknown_name(name))
    number = _as_int(value)
    if number is None or not LOWEST <= number <= HIGHEST:
        raise AttributeConfigError(
            f"{name} must be an integer {LOWEST} to {HIGHEST}, got {_show(value)}; for example {name}=2"
        )
    return number


def _as_int(value: object) -> int | None:
    if isinstance(value, bool) or type(value).__name__ in ("bool", "bool_"):
        return None
    try:
        return operator.index(value)  # type: ignore[arg-type]  # numpy integers too; floats, str and None raise
    except TypeError:
        return None


def _show(value: object) -> str:
    """The value for an error message: numbers as they are, text only by kind (it may be prompt text)."""
    if isinstance(value, str):
        return repr(value) if len(value) <= 8 and value.isprintable() else f"text of {len(value)} characters"
    if isinstance(value, int) and value.bit_length() > 256:  # Python refuses to write out very long ones
        return f"an integer of {value.bit_length()} bits"
    if value is None or isinstance(value, int | float):
        text = repr(value)
        return text if len(text) <= 24 else f"{text[:21]}..."
    return f"a {type(value).__name__}"


def _unknown_name(name: object) -> str:
    listed = ", ".join(NAMES)
    if not isinstance(name, str):
        return f"an attribute name must be text, got a {type(name).__name__}; the names are {listed}"
    near = difflib.get_close_matches(name.lower(), NAMES, 1, 0.6)
    if near:
        return f"unknown attribute {name[:40]!r}: did you mean {near[0]!r}? The names are {listed}"
    shown = repr(name) if name.isidentifier() and len(name) <= 40 else f"of {len(name)} characters"
    return f"unknown attribute {shown}; the names are {listed}"


def _no_mapping(values: object) -> str:
    named = isinstance(values, str) and values in PRESETS
    meant = f'; of the preset: attributes=SteeringAttributes.preset("{values}")' if named else ""
    return f'attributes must be a mapping such as {{"verbosity": 1}}, got a {type(values).__name__}{meant}'


@dataclass(frozen=True, init=False, eq=False)
class SteeringAttributes(Mapping[str, int]):
    """The nine dials of one turn, each an integer 0 to 4 (numpy integers count; bool, float and text do not).

    `SteeringAttributes(verbosity=1)` or `SteeringAttributes({"verbosity": 1})`: what is not named has the model
    card's default. Frozen, hashable, equal by value, and a Mapping, so `dict(attributes)` gives the plain values
    in the template's order.

    Meanings follow HelpSteer (arXiv 2311.09528) and OASST2: helpfulness, overall help to the prompt; correctness,
    pertinent facts without errors; coherence, consistent and clear; complexity, intellectual depth needed to write
    it; verbosity, detail relative to what was asked; quality, perceived goodness; toxicity, vulgar or harmful;
    humor, sense of humour; creativity, unconventional answers.

    Raises:
        AttributeConfigError: an unknown name (the near one is suggested) or a value that is not an integer 0 to 4.
    """

    helpfulness: int = 4
    correctness: int = 4
    coherence: int = 4
    complexity: int = 4
    verbosity: int = 4
    quality: int = 4
    toxicity: int = 0
    humor: int = 0
    creativity: int = 0

    def __init__(self, values: Mapping[str, Any] | None = None, /, **fields: int) -> None:
        if values is not None and not isinstance(values, Mapping):
            raise AttributeConfigError(_no_mapping(values))
        for name, value in {**dict(values or {}), **fields}.items():
            object.__setattr__(self, name, _check(name, value))

    @classmethod
    def preset(cls, name: str) -> SteeringAttributes:
        """A named setting from `PRESETS`.

        - `concise`: verbosity 0, complexity 1: the shortest plain answer.
        - `balanced`: verbosity 2, complexity 2: the middle of the training data, used in NVIDIA's evaluations.
        - `expert`: every default, which asks for depth and detail.
        - `simple`: complexity 0, verbosity 2: easy words for children and learners.
        - `playful`: humor 4, creativity 3, verbosity 2, complexity 1.
        - `creative`: creativity 4, humor 1, complexity 2: unusual ideas.

        Raises:
            AttributeConfigError: no preset of that name.
        """
        if not isinstance(name, str) or name not in PRESETS:
            near = difflib.get_close_matches(str(name), list(PRESETS), 1)
            hint = f": did you mean {near[0]!r}? The" if near else "; the"
            raise AttributeConfigError(f"unknown preset {_show(name)}{hint} presets are {', '.join(PRESETS)}")
        return cls(PRESETS[name])

    @classmethod
    def overlay(cls, *layers: AttributeLike | None) -> SteeringAttributes:
        """Combine layers, weakest first: a mapping changes the keys it has, an object replaces all nine."""
        result = cls()
        for layer in layers:
            if isinstance(layer, SteeringAttributes):
                result = layer
            elif layer is not None:
                result = cls(cls._plain(layer, result))
        return result

    @staticmethod
    def _plain(layer: object, base: SteeringAttributes) -> dict[str, Any]:
        if not isinstance(layer, Mapping):
            SteeringAttributes(layer)  # type: ignore[arg-type]  # raises the error that names the type
        return {**base, **layer}  # type: ignore[dict-item]

    def __getitem__(self, name: str) -> int:
        if name in NAMES:
            return int(getattr(self, name))
        raise KeyError(name)

    def __iter__(self) -> Iterator[str]:
        return iter(NAMES)

    def __len__(self) -> int:
        return len(NAMES)

    def __hash__(self) -> int:
        return hash(tuple(self.values()))


#: What callers may pass: the object replaces all nine dials, a mapping overlays its keys.
AttributeLike: TypeAlias = SteeringAttributes | Mapping[str, int]

#: Named settings; see `SteeringAttributes.preset` for what each is for.
PRESETS: Final[Mapping[str, Mapping[str, int]]] = MappingProxyType(
    {
        "concise": MappingProxyType({"verbosity": 0, "complexity": 1}),
        "balanced": MappingProxyType({"verbosity": 2, "complexity": 2}),
        "expert": MappingProxyType({}),
        "simple": MappingProxyType({"complexity": 0, "verbosity": 2}),
        "playful": MappingProxyType({"humor": 4, "creativity": 3, "verbosity": 2, "complexity": 1}),
        "creative": MappingProxyType({"creativity": 4, "humor": 1, "complexity": 2}),
    }
)

PolicyMode: TypeAlias = Literal["allow", "clamp", "ignore", "error"]
_MODES: Final = ("allow", "clamp", "ignore", "error")


@dataclass(frozen=True)
class AttributePolicy:
    """What per-message attributes may do; they can come from untrusted clients.

    `mode`: "allow" honours them, "clamp" forces them into `bounds`, "ignore" drops them, "error" refuses them.
    `bounds`: for some of the nine names, an inclusive (lowest, highest) pair within 0 to 4. In mode "allow" a value
    outside its bounds is an error as well; "clamp" needs some. The values recorded on past replies follow the same
    policy, with one difference, so that a conversation can go on: the model's own value is always honoured, and under
    "error" so is a value within its bounds.
    """

    mode: PolicyMode = "allow"
    bounds: Mapping[str, tuple[int, int]] | None = None

    def __post_init__(self) -> None:
        if self.mode not in _MODES:
            raise AttributeConfigError(f"message_attributes must be one of {', '.join(_MODES)}, got {_show(self.mode)}")
        object.__setattr__(self, "bounds", _check_bounds(self.bounds))
        if self.mode == "clamp" and not self.bounds:
            raise OptionError(
                "message_attributes='clamp' needs attribute_bounds, such as {'toxicity': (0, 1)}; a dial without "
                "bounds passes as it is"
            )

    def __hash__(self) -> int:
        return hash((self.mode, tuple(sorted((self.bounds or {}).items()))))

    def read(self, extra: Mapping[str, Any], where: str) -> AttributeLike | None:
        """The attributes a user message carries in its extra keys, after this policy; None when it carries none.

        `extra` holds `{"attributes": {...}}` or the nine names flat; foreign keys are not looked at.

        Raises:
            AttributeConfigError: both forms at once, a near-miss name, a bad value, a value out of bounds, or any
                attribute at all in mode "error"; the message begins with `where`.
        """
        if self.mode == "ignore":
            return None
        carried = carried_attributes(extra, where)
        if carried is None:
            return None
        if self.mode == "error":
            raise AttributeConfigError(
                f'{where}: carries steering attributes and message_attributes="error" refuses them; '
                "set them on the model or the call, or choose another policy"
            )
        return self._bounded(carried, where)

    def recorded(self, values: object, own: SteeringAttributes, where: str) -> AttributeLike | None:
        """The attributes recorded on a past reply, after this policy. `own` are the model's own values."""
        if values is None or self.mode == "ignore":
            return None
        checked = _validated(values, where)
        if self.mode == "error" and self.bounds is None and SteeringAttributes.overlay(own, checked) != own:
            raise AttributeConfigError(
                f'{where}: recorded attributes differ from the model\'s own and message_attributes="error" refuses '
                "them; give attribute_bounds to say what is allowed"
            )
        return self._bounded(checked, where, own)

    def _bounded(
        self, values: AttributeLike, where: str, honoured: Mapping[str, int] = MappingProxyType({})
    ) -> AttributeLike:
        """The values within the bounds; one that equals its `honoured` value may lie outside."""
        bounds = {name: pair for name, pair in (self.bounds or {}).items() if values.get(name) != honoured.get(name)}
        outside = [n for n, v in values.items() if n in bounds and not bounds[n][0] <= v <= bounds[n][1]]
        if not outside:
            return values
        if self.mode != "clamp":
            low, high = bounds[outside[0]]
            raise AttributeConfigError(
                f"{where}: {outside[0]} is {values[outside[0]]}, attribute_bounds allow {low} to {high}"
            )
        clamped = {n: min(max(v, bounds[n][0]), bounds[n][1]) if n in bounds else v for n, v in values.items()}
        return SteeringAttributes(clamped) if isinstance(values, SteeringAttributes) else clamped


def _check_bounds(bounds: Mapping[str, tuple[int, int]] | None) -> Mapping[str, tuple[int, int]] | None:
    if bounds is None:
        return None
    if not isinstance(bounds, Mapping):
        raise AttributeConfigError('attribute_bounds must be a mapping such as {"toxicity": (0, 1)}')
    checked = {}
    for name, pair in bounds.items():
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            raise AttributeConfigError(f"attribute_bounds[{name!r}] must be a pair (lowest, highest)")
        low, high = _check(name, pair[0]), _check(name, pair[1])
        if low > high:
            raise AttributeConfigError(f"attribute_bounds[{name!r}]: {low} is above {high}")
        checked[name] = (low, high)
    return MappingProxyType(checked)


def _validated(values: object, where: str) -> AttributeLike:
    """A checked copy: a SteeringAttributes as it is, a mapping as a plain dict of ints."""
    if isinstance(values, SteeringAttributes):
        return values
    if not isinstance(values, Mapping):
        raise AttributeConfigError(f"{where}: attributes must be a mapping, got a {type(values).__name__}")
    try:
        return {name: _check(name, value) for name, value in values.items()}
    except AttributeConfigError as error:
        raise AttributeConfigError(f"{where}: {error}") from None


def carried_attributes(extra: Mapping[str, Any], where: str) -> AttributeLike | None:
    """The attributes in a message's extra keys, nested or flat, checked; None when there are none. No policy yet."""
    flat = {key: value for key, value in extra.items() if key in NAMES}
    for key in extra:
        if isinstance(key, str) and key not in NAMES and difflib.get_close_matches(key.lower(), NAMES, 1, 0.85):
            raise AttributeConfigError(f"{where}: {_unknown_name(key)}")
    nested = extra.get("attributes")
    if nested is None:
        _no_near_carrier(extra, where)
    if nested is not None and flat:
        raise AttributeConfigError(
            f'{where}: attributes stand both flat and under "attributes"; use one of the two forms'
        )
    if nested is None and not flat:
        return None
    return _validated(flat if nested is None else nested, where)


def _no_near_carrier(extra: Mapping[str, Any], where: str) -> None:
    """Dials under a misspelt `attributes` would be lost without a word."""
    for key, value in extra.items():
        near = isinstance(key, str) and difflib.get_close_matches(key.lower(), ("attributes",), 1, 0.85)
        if near and isinstance(value, Mapping) and any(name in NAMES for name in value):
            raise AttributeConfigError(f'{where}: unknown key {key[:40]!r}: did you mean "attributes"?')
