"""bitsandbytes' 4-bit linear layers on a CPU, without what stands between a layer and its compiled code.

A call of Linear4bit passes seven layers of Python (checks, a tensor subclass, two dispatchers) before the code that
multiplies: 32 microseconds of the 40 that a 256 x 256 layer takes for one token. Here the same code is called with the
same numbers. A layer where anything is other than expected, or whose result differs in a single bit, stays as it was.
Imports torch and bitsandbytes.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any, Final

import torch

from .checkpoint import log

__all__ = ["hasten"]

_CODE: Final = "gemv_4bit_inference_cpu_{}_bf16"  # in bitsandbytes' library since 0.49; takes any number of rows


def hasten(model: Any) -> int:
    """Shorten the way of all layers that it can be shortened for, and return how many."""
    layers = [one for one in model.modules() if type(one).__name__ == "Linear4bit"]
    count = sum(map(_hastened, layers))
    log.debug("%d of %d linear layers call bitsandbytes' CPU code directly", count, len(layers))
    return count


def _hastened(layer: Any) -> bool:
    if layer.weight.device.type != "cpu" or layer.bias is not None or layer.compute_dtype != torch.bfloat16:
        return False
    probe = torch.sin(torch.arange(3 * layer.in_features, dtype=torch.float32)).bfloat16().view(3, 1, -1)
    with torch.inference_mode():
        right = layer(probe)  # the first call also brings the weights into this code's order
        try:
            short = _direct(layer)
            same = torch.equal(short(probe), right) and torch.equal(short(probe[:1]), layer(probe[:1]))
        except (AttributeError, TypeError, ValueError, RuntimeError, ctypes.ArgumentError):  # another version
            return False
    if same:
        layer.forward = short
    return same


def _direct(layer: Any) -> Callable[[Any], Any]:
    """A forward of the layer's packed weights. Raises where they are not packed, or the library lacks the code."""
    from bitsandbytes.cextension import lib

    state, long = layer.weight.quant_state, ctypes.c_int64
    if not state.packing_format_for_cpu or state.nested or state.absmax.dtype != torch.bfloat16:
        raise ValueError("the weights are not packed for this code")
    run = getattr(lib, _CODE.format(state.quant_type))
    weight, scales = layer.weight.data.as_subclass(torch.Tensor), state.absmax.contiguous()
    inputs, outputs = layer.in_features, layer.out_features
    fixed = (long(outputs), long(inputs))
    places = (ctypes.c_void_p(weight.data_ptr()), ctypes.c_void_p(scales.data_ptr()))
    block, width = long(state.blocksize), long(outputs)
    whole = type(layer).forward

    def forward(given: Any, _held: Any = (weight, scales)) -> Any:
        if given.dtype != torch.bfloat16 or given.requires_grad:
            return whole(layer, given)
        rows = given.reshape(-1, inputs)
        if rows.stride(1) != 1:
            rows = rows.contiguous()
        count = rows.shape[0]
        out = torch.empty((count, outputs), dtype=torch.bfloat16)
        here, there = ctypes.c_void_p(rows.data_ptr()), ctypes.c_void_p(out.data_ptr())
        run(long(count), *fixed, here, *places, there, block, long(rows.stride(0)), width)
        return out.view(*given.shape[:-1], outputs)

    return forward
