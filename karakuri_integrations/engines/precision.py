"""The forms a model's weights can be loaded in, as data, and what is quantised already. No torch is imported.

Loading itself is `loading`'s; here stands what each name means, what it costs per parameter and which library it needs.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Final

from ..errors import MissingDependencyError, OptionError, QuantizationError
from .hub import INSTALL_HINT

__all__ = [
    "PRECISIONS",
    "Precision",
    "check_stored",
    "missing_backend",
    "precision_of",
    "quantization_advice",
    "stored_form",
]


@dataclass(frozen=True)
class Precision:
    """One way to hold weights. `linear_bytes` and `other_bytes` are per parameter; None: as the checkpoint has it.

    `bits`: of a bitsandbytes form, else None. `kind`: bitsandbytes' name of a 4-bit data type. `dtype`: the torch
    name of what is not quantised and of the compute; None: the checkpoint's own.
    """

    name: str
    dtype: str | None
    linear_bytes: float | None
    other_bytes: float | None
    bits: int | None = None
    kind: str = ""


#: Double quantisation stores one byte of scale per 64 weights, and 4 bytes per 256 of those.
_FOUR_BITS: Final = 0.5 + 1 / 64 + 4 / (64 * 256)

PRECISIONS: Final[Mapping[str, Precision]] = {
    one.name: one
    for one in (
        Precision("nf4", "bfloat16", _FOUR_BITS, 2, bits=4, kind="nf4"),
        Precision("fp4", "bfloat16", _FOUR_BITS, 2, bits=4, kind="fp4"),
        Precision("int8", "float16", 1, 2, bits=8),
        Precision("bf16", "bfloat16", 2, 2),
        Precision("fp16", "float16", 2, 2),
        Precision("fp32", "float32", 4, 4),
        Precision("none", None, None, None),
    )
}

#: What other libraries call these forms, the surest words first.
_OTHER_NAMES: Final = (
    ("fp4", "fp4"),
    ("4", "nf4"),
    ("8", "int8"),
    ("32|single", "fp32"),
    ("bf", "bf16"),
    ("16|half", "fp16"),
    ("none|false|off|full", "none"),
)
_WORDS: Final[Mapping[str, str]] = {
    "nf4": "4 bits",
    "fp4": "4 bits of the other kind",
    "int8": "8 bits",
    "fp32": "32 bits",
    "bf16": "bfloat16",
    "fp16": "float16",
    "none": "the checkpoint's own precision",
}

#: Quantised checkpoints that are loaded as they are, and the libraries that run them (module and pip name agree).
_STORED: Final[Mapping[str, tuple[str, ...]]] = {
    "bitsandbytes": ("bitsandbytes",),
    "gptq": ("gptqmodel", "optimum"),
    "awq": ("gptqmodel",),
}


def precision_of(name: object) -> Precision:
    """The precision of that name.

    Raises:
        OptionError: there is none.
    """
    if not isinstance(name, str) or name not in PRECISIONS:
        advice = quantization_advice(name)
        raise OptionError(f"quantization must be one of {', '.join(PRECISIONS)}, got {name!r:.40}; {advice}")
    return PRECISIONS[name]


def quantization_advice(name: object, forms: Collection[str] = PRECISIONS) -> str:
    """What of `forms` to write instead of a name that other libraries have for one, as the end of an error."""
    text = str(name).lower()
    if "gptq" in text or "awq" in text:
        return "a checkpoint that is stored so is loaded as it is: leave quantization out"
    meant = next((form for words, form in _OTHER_NAMES if form in forms and re.search(words, text)), "nf4")
    return f'for {_WORDS[meant]} write quantization="{meant}"'


def stored_form(config: Mapping[str, Any]) -> str | None:
    """How the checkpoint itself is quantised: "bitsandbytes", "gptq", "awq", or None when it is not.

    Raises:
        QuantizationError: a form that this engine does not know.
    """
    settings = config.get("quantization_config")
    if settings is None:
        return None
    method = settings.get("quant_method", "bitsandbytes") if isinstance(settings, dict) else None
    if not isinstance(method, str) or method not in _STORED:
        raise QuantizationError(
            f"the checkpoint is quantised by {method!r:.40}; this engine loads {', '.join(_STORED)} and unquantised"
        )
    return str(method)


def missing_backend(precision: Precision, stored: str | None) -> MissingDependencyError | None:
    """The error when a library that this form needs is not installed. Imports none of them."""
    if stored is not None:
        missing = [name for name in _STORED[stored] if importlib.util.find_spec(name) is None]
        if missing:
            return MissingDependencyError(f"the checkpoint is quantised with {stored}: pip install {' '.join(missing)}")
    elif precision.bits is not None and importlib.util.find_spec("bitsandbytes") is None:
        return MissingDependencyError(
            f'quantization="{precision.name}" needs bitsandbytes: {INSTALL_HINT}; quantization="none" works without it'
        )
    return None


def check_stored(precision: Precision, stored: str | None) -> None:
    """Raise when a checkpoint that is quantised already was asked for in another form."""
    if stored is not None and precision.name not in ("nf4", "none"):
        raise QuantizationError(
            f'the checkpoint is stored quantised with {stored} and cannot be loaded as "{precision.name}"; leave '
            "quantization at its default to load it as it is stored, or use the unquantised checkpoint"
        )
