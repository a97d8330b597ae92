"""Loading a checkpoint into a model: device, precision, checks, the report. All torch imports are inside functions.

What may be loaded at all is `safety`'s, whether it fits is `memory`'s. Everything here runs in a model's worker thread.
"""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from ..errors import (
    EngineError,
    ModelLoadError,
    QuantizationError,
)
from .checkpoint import Checkpoint, log, notify
from .hub import INSTALL_HINT, missing
from .memory import check_memory, estimate, free_ram
from .offloading import Split, check_splittable, cost, split, split_of
from .precision import PRECISIONS, Precision, check_stored, missing_backend, stored_form
from .safety import check_checkpoint, check_files, check_versions, tensors

__all__ = [
    "Loaded",
    "Report",
    "bitsandbytes_arguments",
    "bitsandbytes_problem",
    "check_architecture",
    "empty_model",
    "held_bytes",
    "import_bitsandbytes",
    "import_torch",
    "linears",
    "load",
    "progress_shown",
    "report_of",
]

_LEAST_SHARE: Final = 0.9
_CPU: Final = {"": "cpu"}
_DEFAULT_WINDOW: Final = 4096
_SLOW_BYTES: Final = 2**30  # from this size on, loading takes long enough for a progress bar


@dataclass(frozen=True)
class Report:
    """What was loaded. `weight_bytes` as held now, `bf16_bytes` if every weight were bfloat16.

    `quantized_modules` are the names of the linear layers held in 4 (or 8) bits, `quantized_share` is their part of
    the parameters that were meant to be.
    """

    model: str
    device: str
    dtype: str
    quantization: str
    quantized_modules: tuple[str, ...]
    quantized_share: float
    parameters: int
    weight_bytes: int
    bf16_bytes: int


@dataclass(frozen=True, repr=False)
class Loaded:
    """A model in memory."""

    model: Any
    report: Report


def load(checkpoint: Checkpoint, precision: Precision, device: str, kv_cache_dtype: str = "auto") -> Loaded:
    """Load a checkpoint, checked at each step before the next one costs anything.

    `kv_cache_dtype` is that of the call it is loaded for: whether there is memory for both depends on it.

    Raises:
        ModelLoadError: and its kinds; each says what to do.
    """
    check_versions()
    check_files(checkpoint)
    stored = stored_form(checkpoint.config)
    check_stored(precision, stored)
    import_torch()
    precision = _usable(checkpoint, precision, stored, device)
    if stored is None and precision.bits == 4:
        check_architecture(checkpoint)
    complete = checkpoint.complete()
    check_checkpoint(complete)
    place = _placed(complete, precision, stored, device, kv_cache_dtype)
    with progress_shown(sum(one.bytes for one in tensors(complete))):
        model = _from_pretrained(complete, precision, stored, _CPU if isinstance(place, Split) else place)
    if isinstance(place, Split):
        _split(model, place, checkpoint.source.name)
    report = report_of(model, checkpoint.source.name, precision, stored)
    log.info("%s loaded on %s: %d of %d bytes", report.model, report.device, report.weight_bytes, report.bf16_bytes)
    return Loaded(model, report)


def import_torch() -> None:
    try:
        import accelerate
        import torch
        import transformers
    except ImportError as error:
        raise missing(error.name or "torch") from error
    del accelerate, torch, transformers


def _usable(checkpoint: Checkpoint, precision: Precision, stored: str | None, device: str) -> Precision:
    """The precision, or what stands in for it where bitsandbytes cannot run."""
    problem: EngineError | None = missing_backend(precision, stored)
    if problem is None and (precision.bits if stored is None else stored == "bitsandbytes"):
        problem = bitsandbytes_problem(precision, device)
    if problem is None:
        return precision
    if not checkpoint.source.packaged or stored is not None:
        raise problem
    notify(f"bitsandbytes cannot run here, so {checkpoint.source.name} is held in bf16 instead of {precision.name}")
    return PRECISIONS["bf16"]


def bitsandbytes_problem(precision: Precision, device: str) -> QuantizationError | None:
    """Quantise and use one small layer: whether it works is measured, not looked up."""
    import torch

    try:
        bnb = import_bitsandbytes()
        layer = bnb.nn.Linear4bit(64, 64, bias=False, compute_dtype=torch.bfloat16, quant_type="nf4")
        layer = layer.to("cuda" if device != "cpu" and torch.cuda.is_available() else "cpu")
        with torch.inference_mode():
            out = layer(torch.ones((1, 64), dtype=torch.bfloat16, device=layer.weight.device))
        if bool(torch.isfinite(out).all()):
            return None
        reason = "its results are not numbers"
    except Exception as error:  # noqa: BLE001  # whatever it raises here, it cannot run
        reason = type(error).__name__
    return QuantizationError(
        f'bitsandbytes cannot run on this machine ({reason}), so quantization="{precision.name}" is not possible; '
        f'reinstall it ({INSTALL_HINT}) or pass quantization="none" to load the weights as they are'
    )


def import_bitsandbytes() -> Any:
    """Import bitsandbytes without the native code that it would fetch from the hub when `kernels` is installed."""
    noise = logging.getLogger("bitsandbytes.backends.cpu.ops")
    level, absent = noise.level, "kernels" not in sys.modules
    noise.setLevel(logging.ERROR)
    if absent:
        sys.modules["kernels"] = None  # type: ignore[assignment]  # its import fails, and the built-in code is used
    try:
        import bitsandbytes
    finally:
        noise.setLevel(level)
        if absent:
            sys.modules.pop("kernels", None)
    return bitsandbytes


def check_architecture(checkpoint: Checkpoint) -> None:
    """Before weights are fetched: can this architecture be 4-bit at all? Its layers are looked at without weights."""
    model = empty_model(checkpoint)
    linear = sum(module.weight.numel() for _, module in linears(model))
    _check_share(linear / max(1, linear + _not_linear(model)))


def empty_model(checkpoint: Checkpoint) -> Any:
    """The model that a checkpoint's configuration describes, without weights and without the memory for them."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(str(checkpoint.small_files), trust_remote_code=False, local_files_only=True)
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, trust_remote_code=False)


def linears(model: Any) -> Iterator[tuple[str, Any]]:
    """The linear layers that are meant to be quantised: all but the output head."""
    import torch

    head = model.get_output_embeddings()
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and module is not head:
            yield name, module


def _not_linear(model: Any) -> int:
    """Parameters in stacks of matrices (a mixture's experts), which bitsandbytes leaves as they are."""
    return sum(one.numel() for one in model.parameters() if one.ndim >= 3)


def _check_share(share: float) -> None:
    if share < _LEAST_SHARE:
        raise QuantizationError(
            f"only {share:.0%} of the weights meant to be quantised can be: the rest (such as a mixture's experts) "
            'stays as it is under bitsandbytes; pass quantization="none" where the memory allows, or load a GPTQ or '
            "AWQ copy"
        )


def _placed(checkpoint: Checkpoint, precision: Precision, stored: str | None, device: str, kv_cache_dtype: str) -> Any:
    """The device map for transformers, or a Split, after the memory estimate was held against it."""
    import torch

    window = checkpoint.window or _DEFAULT_WINDOW
    held = tensors(checkpoint)
    needed = estimate(
        held,
        checkpoint.config,
        precision,
        stored=stored is not None,
        window=window,
        kv_cache_dtype=kv_cache_dtype,
    )
    name = checkpoint.source.name
    cards = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device == "cpu" or (device == "auto" and not cards):
        check_memory(name, needed, free_ram(), "cpu", precision, window)
        return _CPU
    if not cards:
        raise ModelLoadError(f"device={device!r}: torch sees no CUDA device; pass device='cpu' or install a CUDA torch")
    free = [torch.cuda.mem_get_info(card)[0] for card in range(cards)]
    if device == "offload":
        check_splittable(name, checkpoint.config, precision, stored)
        parts = split_of(name, held, needed, precision, stored=stored is not None, free=max(free))
        if parts.whole:
            return {"": _best(free)}
        check_memory(name, needed, free_ram(), "cpu", precision, window)  # all of it is there for a while
        return parts
    if device == "balanced" or (device == "auto" and needed.total > max(free)):
        check_memory(name, needed, sum(free), f"{cards} GPUs", precision, window)
        return "balanced" if device == "balanced" else "auto"
    card = free.index(max(free)) if device == "auto" else int(device.partition(":")[2] or 0)
    if card >= cards:
        raise ModelLoadError(f"device={device!r} and this machine has {cards} CUDA devices, counted from cuda:0")
    check_memory(name, needed, free[card], f"cuda:{card}", precision, window)
    return {"": f"cuda:{card}"}


def _best(free: list[int]) -> str:
    return f"cuda:{free.index(max(free))}"


def _split(model: Any, parts: Split, name: str) -> None:
    import torch

    card = _best([torch.cuda.mem_get_info(one)[0] for one in range(torch.cuda.device_count())])
    try:
        split(model, parts.count, torch.device(card))
    except Exception as error:
        raise ModelLoadError(
            f'{name} cannot be divided between {card} and main memory ({type(error).__name__}); pass device="cpu"'
        ) from error
    notify(cost(name, parts, card))


@contextlib.contextmanager
def progress_shown(weight_bytes: int) -> Iterator[None]:
    """transformers' progress bar shows on a terminal and for loads that take long, not for a tiny model in a log."""
    from transformers.utils import logging as hf_logging

    hide = weight_bytes < _SLOW_BYTES and not sys.stderr.isatty() and hf_logging.is_progress_bar_enabled()
    if hide:
        hf_logging.disable_progress_bar()
    try:
        yield
    finally:
        if hide:
            hf_logging.enable_progress_bar()


def _from_pretrained(checkpoint: Checkpoint, precision: Precision, stored: str | None, place: Any) -> Any:
    from transformers import AutoModelForCausalLM

    name = checkpoint.source.name
    try:
        model, info = AutoModelForCausalLM.from_pretrained(
            str(checkpoint.small_files),
            dtype="auto" if stored else _dtype(precision, place),
            device_map=place,
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
            attn_implementation="sdpa",
            output_loading_info=True,
            **({} if stored else bitsandbytes_arguments(precision, place)),
            **_max_memory(place),
        )
    except ModelLoadError:
        raise
    except Exception as error:
        raise ModelLoadError(
            f"{name} cannot be loaded ({type(error).__name__}); check that its weights and config.json belong together"
        ) from error
    missing = sorted({*info["missing_keys"], *(one[0] for one in info["mismatched_keys"])})
    if missing:
        raise ModelLoadError(
            f"{name} lacks {len(missing)} of the weights that its config.json describes, the first is "
            f"{missing[0]!r:.80}; fetch the checkpoint again"
        )
    return model.eval()


def _max_memory(place: Any) -> dict[str, Any]:
    """Spread over GPUs only: never silently into main memory or onto the disk."""
    import torch

    if isinstance(place, dict):
        return {}
    cards = range(torch.cuda.device_count())
    return {"max_memory": {card: int(torch.cuda.mem_get_info(card)[0] * 0.9) for card in cards}}


def _dtype(precision: Precision, place: Any) -> Any:
    import torch

    if precision.dtype is None:
        return "auto"
    if precision.bits == 4:
        return _compute_dtype(place)
    return getattr(torch, precision.dtype)


def _compute_dtype(place: Any) -> Any:
    """bfloat16; float16 on GPUs that compute bfloat16 only by emulation."""
    import torch

    slow = place != _CPU and not torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.float16 if slow else torch.bfloat16


def bitsandbytes_arguments(precision: Precision, place: Any) -> dict[str, Any]:
    """The argument for bitsandbytes; none where nothing is quantised (a None would hide the checkpoint's own)."""
    if precision.bits is None:
        return {}
    from transformers import BitsAndBytesConfig

    if precision.bits == 8:
        return {"quantization_config": BitsAndBytesConfig(load_in_8bit=True)}
    settings = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=precision.kind,
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=_compute_dtype(place),
    )
    return {"quantization_config": settings}


def report_of(model: Any, name: str, precision: Precision, stored: str | None) -> Report:
    """What a model in memory is. Raises QuantizationError where too little of it is in 4 bits."""
    candidates = list(linears(model))
    quantized = [(one, module) for one, module in candidates if type(module).__name__ in ("Linear4bit", "Linear8bitLt")]
    meant = sum(_size(module) for _, module in candidates) + _not_linear(model)
    share = sum(_size(module) for _, module in quantized) / max(1, meant)
    four_bit = precision.bits == 4 if stored is None else getattr(model, "is_loaded_in_4bit", False)
    if four_bit:
        _check_share(share)
    hidden = {id(module.weight) for _, module in quantized}
    others = sum(one.numel() for one in model.parameters() if id(one) not in hidden)
    parameters = others + sum(_size(module) for _, module in quantized)
    return Report(
        model=name,
        device=str(model.get_input_embeddings().weight.device),
        dtype=str(model.get_input_embeddings().weight.dtype).removeprefix("torch."),
        quantization=stored or precision.name,
        quantized_modules=tuple(one for one, _ in quantized),
        quantized_share=share,
        parameters=parameters,
        weight_bytes=sum(held_bytes(one) for one in model.parameters()),
        bf16_bytes=2 * parameters,
    )


def _size(linear: Any) -> int:
    return int(linear.in_features * linear.out_features)


def held_bytes(parameter: Any) -> int:
    """Bytes of a parameter with its quantisation scales."""
    state = getattr(parameter, "quant_state", None)
    nested = getattr(state, "state2", None)
    scales = [getattr(one, part, None) for one in (state, nested) for part in ("absmax", "code")]
    return sum(int(one.nbytes) for one in (parameter, *scales, getattr(parameter, "SCB", None)) if one is not None)
