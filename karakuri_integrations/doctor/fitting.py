"""Which model fits where, in which form, for how many calls at once, and what to change where none does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from ..engines.precision import PRECISIONS
from .machine import NAME, Device
from .sizing import MODELS, Model, Need, need_of

__all__ = ["Fit", "Fitting", "Form", "fitting", "size_text"]

_LEAST_CONTEXT: Final = 256  # tokens; a shorter one is no advice
_SLOW_BYTES: Final = 30 * 2**30  # of weights: read for each token, at what a CPU's memory gives


def size_text(count: int) -> str:
    """Bytes as people read them."""
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"


@dataclass(frozen=True)
class Fit:
    """A form of a model on a device. `calls`: how many at once; None where free memory is unknown."""

    device: str
    calls: int | None
    fits: bool | None


@dataclass(frozen=True)
class Form:
    """A model in one quantization. `needed_bytes`: weights, margin, and keys and values of all calls."""

    quantization: str
    weight_bytes: int
    kv_bytes_per_token: int
    needed_bytes: int
    places: tuple[Fit, ...]


@dataclass(frozen=True)
class Fitting:
    """All of that for one model and so many calls of `context` tokens; `advice` is the next step."""

    model: str
    window: int
    context: int
    at_once: int
    forms: tuple[Form, ...]
    notes: tuple[str, ...]
    advice: str


def fitting(
    name: str | Model, context: int | None, at_once: int, places: Sequence[Device], kv_cache_dtype: str = "auto"
) -> Fitting:
    """By arithmetic; nothing is loaded. A context beyond the model's window is the window."""
    model = MODELS[name] if isinstance(name, str) else name
    window = model.window
    tokens = min(context or window, window)
    needs = {form: need_of(model, form, kv_cache_dtype) for form in model.forms}
    forms = tuple(
        Form(
            form,
            need.weights,
            need.per_token,
            need.total(tokens * at_once),
            tuple(_fit(need, place, tokens, at_once) for place in places),
        )
        for form, need in needs.items()
    )
    longest = max((_longest(need, place) for need in needs.values() for place in places), default=0)
    advice = _advice(model, forms, tokens, at_once, longest, kv_cache_dtype)
    if not model.short:
        advice += _lack(forms, places)
    if kv_cache_dtype == "auto" and not _good(forms):
        eight = fitting(model, context, at_once, places, "int8")
        if _good(eight.forms):
            advice = f"with keys and values in 8 bits it fits: {eight.advice}; or {advice}"
    notes = model.notes
    if context is not None and context > window:
        notes = (*notes, f"{context:,} tokens are more than its window holds, so {window:,} are counted")
    return Fitting(model.name, window, tokens, at_once, forms, notes, advice)


def _fit(need: Need, place: Device, tokens: int, at_once: int) -> Fit:
    if place.free is None:
        return Fit(place.name, None, None)
    calls = max(0, (place.free - need.total(0)) // (need.per_token * tokens))
    return Fit(place.name, calls, calls >= at_once)


def _longest(need: Need, place: Device) -> int:
    """Tokens of the longest single call that fits."""
    return max(0, ((place.free or 0) - need.total(0)) // need.per_token)


def _good(forms: Sequence[Form]) -> list[tuple[Form, Fit]]:
    """The forms that fit, and where."""
    return [(form, fit) for form in forms for fit in form.places if fit.fits]


def _lack(forms: Sequence[Form], places: Sequence[Device]) -> str:
    """How much memory is missing, where it is the least; nothing where it fits."""
    free = {place.name: place.free for place in places}
    lacks = [
        (form.needed_bytes - had, form.quantization, fit.device)
        for form in forms
        for fit in form.places
        if (had := free[fit.device]) is not None
    ]
    if _good(forms) or not lacks:
        return ""
    count, form, device = min(lacks)
    return f" ({form} on {device} lacks {size_text(count)})"


def _advice(model: Model, forms: Sequence[Form], tokens: int, at_once: int, longest: int, kv_cache_dtype: str) -> str:
    """Use what fits, on a GPU if it can be; or what to change, the smallest change first."""
    fits = [fit for form in forms for fit in form.places]
    if good := _good(forms):
        return _use(model, *max(good, key=lambda one: one[1].device != "cpu"), kv_cache_dtype)
    if any(fit.fits is None for fit in fits):
        return f'how much memory is free cannot be told without psutil: pip install "{NAME}[local]"'
    most = max((fit.calls or 0 for fit in fits), default=0)
    steps = []
    if most:
        steps.append(f"{most} calls at once fit instead of {at_once} (max_batch={most})")
    elif longest >= _LEAST_CONTEXT:
        steps.append(f"a call of {longest:,} tokens fits instead of {tokens:,} (context_window={longest})")
    return "; ".join([*steps, *_elsewhere(model)])


def _use(model: Model, form: Form, fit: Fit, kv_cache_dtype: str) -> str:
    asked = f'quantization="{form.quantization}", ' if form.quantization in PRECISIONS else ""  # else as it is stored
    advice = f'{model.argument}{asked}device="{fit.device}"'
    if kv_cache_dtype != "auto":  # of the engine only, which both frameworks' classes take
        advice = f'engine=LocalEngine({advice}, kv_cache_dtype="{kv_cache_dtype}")'
    if fit.device == "cpu" and form.weight_bytes >= _SLOW_BYTES:
        rather = _elsewhere(model)[0] if model.short else "use a machine with a GPU"
        advice += f" fits, but a CPU takes about a second or more for a token: rather {rather}"
    return advice


def _elsewhere(model: Model) -> list[str]:
    if not model.short:
        return ["free memory, or use another machine"]
    return [
        f"serve it on another machine: karakuri serve-command {model.short} --server vllm",
        'then ChatKarakuri(base_url="http://host:8000/v1")',
    ]
