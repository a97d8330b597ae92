"""`karakuri doctor`: what is installed, which devices there are, what fits on them, and what to change if it does not.

Knows the command and how its findings are shown. What there is, is `machine`'s; what the models need is `sizing`'s,
by the loader's own arithmetic; which model a caller names is `naming`'s; whether it fits is `fitting`'s. Runs without
torch, and says what is unknown then.
"""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Final

from ..engines.memory import check_kv_cache_dtype
from ..errors import OptionError
from .fitting import Fit, Fitting, Form, fitting, size_text
from .machine import NAME, Device, Extra, Processor, Torch, devices, extras, processor, torch_here
from .naming import model_of
from .sizing import MODELS

__all__ = ["Findings", "add_options", "examine", "run"]

_GIB: Final = 2**30


@dataclass(frozen=True)
class Findings:
    """Everything that the command tells."""

    python: str
    system: str
    extras: tuple[Extra, ...]
    torch: Torch | None
    processor: Processor
    devices: tuple[Device, ...]
    models: tuple[Fitting, ...]


def add_options(command: argparse.ArgumentParser) -> None:
    """The options of `karakuri doctor`."""
    command.add_argument(
        "--model", help="only this one: a folder, the name of a family member, or karakuri-demo; default: the family"
    )
    command.add_argument("--context", type=int, help="tokens of a call, prompt and reply; default: the model's window")
    command.add_argument("--at-once", type=int, default=1, help="calls at the same time; default 1")
    command.add_argument("--kv-cache-dtype", default="auto", help="auto (default: the model's own type), int8")
    command.add_argument("--json", action="store_true", help="print one JSON object")


def run(options: argparse.Namespace) -> int:
    """Examine this machine and print what was found."""
    for name in ("context", "at_once"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise OptionError(f"--{name.replace('_', '-')} must be at least 1, got {value}")
    check_kv_cache_dtype(options.kv_cache_dtype)
    found = examine(options.context, options.at_once, options.kv_cache_dtype, options.model)
    print(json.dumps(asdict(found), ensure_ascii=False, indent=1) if options.json else "\n".join(_lines(found)))
    return 0


def examine(
    context: int | None = None, at_once: int = 1, kv_cache_dtype: str = "auto", model: str | None = None
) -> Findings:
    """What there is, and what of the models fits for so many calls of so many tokens, their keys and values held so.

    `model`: only the one that this names; None: the family's, and the embedded one.
    """
    models = tuple(MODELS.values()) if model is None else (model_of(model),)
    places = devices()
    return Findings(
        platform.python_version(),
        f"{platform.system()} {platform.machine()}",
        tuple(extras()),
        torch_here(),
        processor(),
        tuple(places),
        tuple(fitting(one, context, at_once, places, kv_cache_dtype) for one in models),
    )


def _lines(found: Findings) -> Iterator[str]:
    yield from ("── Installed", "", f"{'python':<12} {found.python}, {found.system}")
    yield from _installed(found)
    yield from ("", "── Devices", "")
    yield from _devices(found)
    for one in found.models:
        yield from ("", f"── {one.model}: {one.at_once} x {one.context:,} tokens, window {one.window:,}", "")
        yield from map(_form, one.forms)
        yield from (f"note   {note}" for note in one.notes)
        yield f"next   {one.advice}"


def _installed(found: Findings) -> Iterator[str]:
    for one in found.extras:
        yield f"{one.name:<12} {', '.join(f'{name} {version}' for name, version in one.installed.items()) or 'nothing'}"
        if one.missing:
            yield f"{'':<12} missing: {', '.join(one.missing)}; {one.line}"
    if not found.extras:
        yield f"{'extras':<12} unknown, because the package itself is not installed: pip install {NAME}"
    if found.torch is None:
        yield f'{"torch":<12} not installed, so no model runs in this process: pip install "{NAME}[local]"'


def _devices(found: Findings) -> Iterator[str]:
    yield f"{'processor':<12} {found.processor.name}; {' '.join(found.processor.flags) or 'instructions unknown'}"
    if found.processor.fast_nf4 is False:
        yield f"{'':<12} it lacks avx512_bf16, so nf4 takes about three times as long a token as with it"
    if found.torch is not None:
        cuda = f"for CUDA {found.torch.cuda}" if found.torch.cuda else "without CUDA"
        yield f"{'torch':<12} {found.torch.version}, {cuda}, {found.torch.threads} threads"
    yield from map(_device, found.devices)


def _device(one: Device) -> str:
    free = "free memory unknown (psutil tells)" if one.free is None else f"{one.free / _GIB:.1f} GiB free"
    of = f" of {one.total / _GIB:.1f}" if one.total else ""
    return f"{one.name:<12} {one.what}: {free}{of}{'; without bf16, computes in fp16' if one.bf16 is False else ''}"


def _form(form: Form) -> str:
    places = ", ".join(f"{one.device}: {_verdict(one)}" for one in form.places)
    return (
        f"{form.quantization:<6} weights {size_text(form.weight_bytes)}, "
        f"{form.kv_bytes_per_token / 1024:.4g} KiB a token, {size_text(form.needed_bytes)} in all; {places}"
    )


def _verdict(fit: Fit) -> str:
    if fit.calls is None:
        return "unknown"
    return f"{'fits' if fit.fits else 'does not fit'} ({fit.calls:,} at once)"
