"""Matrices on a CPU, multiplied by the kernels that are there for them in as few and as short calls as there can be.

In 4 bits: between a module and its kernel bitsandbytes does what takes as long as the kernel for a small matrix: two
layers of wrappers, the dispatcher, a look into a tensor for the kind of quantisation. Here what is known of a matrix
is looked up once, matrices that read the same input are multiplied together where that costs no memory to speak of,
and the kernel is called itself. What it takes is known of some versions of bitsandbytes only, and what it gives is
compared for each matrix; others, and whatever else is different, take the way through bitsandbytes.

In bfloat16, the matrix that makes logits of what a model found: oneDNN puts a matrix into an order of its own at each
call, which for a few tokens takes longer than multiplying. That is done once here, as torch.compile does it for models
that are frozen; where torch has no such operation, or it gives other numbers, the module stays. Imports torch.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from typing import Any, Final

import torch

__all__ = ["Projection", "joined", "ordered", "shortened"]

Projection = Callable[[torch.Tensor], torch.Tensor]

_JOINED_BYTES: Final = 2**24  # matrices that are larger take so long that a call more or less is nothing
_ORDERED_BYTES: Final = 2**26  # a larger matrix takes too much memory to be there twice
_FEW: Final = 16  # tokens, for which the order is made; it serves any number
_PACKED_ROWS: Final = 32  # that bitsandbytes' CPU format takes together
#: The first version of bitsandbytes whose kernel takes these arguments, and the first that was not looked at.
_KNOWN: Final = ((0, 49), (0, 51))
#: Rows, outputs, inputs; the addresses of what goes in, the weights, their scales, what comes out; the inputs that
#: share a scale, and how far apart two rows are. See bitsandbytes/backends/cpu/ops.py.
_ARGUMENTS: Final = (*[ctypes.c_int64] * 3, *[ctypes.c_void_p] * 4, *[ctypes.c_int64] * 3)


def shortened(module: Any) -> Projection:
    """Without what bitsandbytes' module looks at in each call."""
    state = _packed(module)
    return module if state is None else _multiply(module.weight, state)


def joined(modules: Sequence[Any]) -> Sequence[Projection]:
    """One projection in the place of several that read the same; or these, shortened, where they cannot be one.

    bitsandbytes' kernels go through a matrix in blocks of rows, each with its own scales, so that one below the other
    gives the numbers that each of them gives.
    """
    states = [_packed(one) for one in modules]
    first = states[0]
    if first is None or any(one is None or one.shape[1:] != first.shape[1:] for one in states):
        return [shortened(one) for one in modules]
    if sum(one.weight.nbytes for one in modules) > _JOINED_BYTES:
        return [shortened(one) for one in modules]
    from bitsandbytes.functional import QuantState

    state = QuantState(
        absmax=torch.cat([one.absmax for one in states], 1),
        shape=torch.Size((sum(one.shape[0] for one in states), *first.shape[1:])),
        code=first.code,
        blocksize=first.blocksize,
        quant_type=first.quant_type,
        dtype=first.dtype,
    )
    state.packing_format_for_cpu = True
    with torch.no_grad():
        whole, begin = torch.cat([one.weight.data for one in modules]), 0
        for one in modules:
            one.weight.data = whole[begin : begin + len(one.weight)]  # the same memory
            begin += len(one.weight)
    return [_multiply(whole, state)]


def _packed(module: Any) -> Any:
    """The quantisation state of a module that bitsandbytes computes in its CPU format; None of any other."""
    if type(module).__name__ != "Linear4bit" or module.weight.device.type != "cpu" or module.bias is not None:
        return None
    blocksize = getattr(module.weight.quant_state, "blocksize", 64)
    if module.out_features % _PACKED_ROWS or module.in_features % blocksize:
        module.support_avx512bf16_for_cpu = False  # bitsandbytes asserts instead of taking its general code
        return None
    with torch.inference_mode():  # the first call makes the format
        module(torch.zeros((1, module.in_features), dtype=module.compute_dtype or torch.bfloat16))
    state = module.weight.quant_state
    return state if getattr(state, "packing_format_for_cpu", False) else None


def _multiply(weight: Any, state: Any) -> Projection:
    from bitsandbytes import matmul_4bit

    def through_bitsandbytes(given: torch.Tensor) -> torch.Tensor:
        return matmul_4bit(given, weight, state)  # type: ignore[no-any-return]

    kernel = _kernel(str(state.quant_type))
    if kernel is None or not _as_the_kernel_takes_it(weight, state):
        return through_bitsandbytes
    short = _Short(kernel, weight, state, through_bitsandbytes)
    given = torch.linspace(-1, 1, 3 * state.shape[1], dtype=torch.bfloat16).view(3, -1)
    with torch.inference_mode():
        right = through_bitsandbytes(given)
        made = torch.full_like(right, float("nan"))
        short.into(made, given)
    return short if torch.equal(made, right) else through_bitsandbytes


class _Short:
    """A matrix times what is given, by the kernel itself; what that does not take goes through bitsandbytes."""

    def __init__(self, kernel: Any, weight: Any, state: Any, otherwise: Projection) -> None:
        self._kernel, self._scales = kernel, state.absmax
        self._weight = weight.detach()  # a plain tensor: of a parameter of bitsandbytes' each look takes longer
        self._outputs, self._inputs = state.shape
        self._blocksize, self._otherwise = state.blocksize, otherwise

    def __call__(self, given: torch.Tensor) -> torch.Tensor:
        if given.dtype != torch.bfloat16 or not given.is_cpu or given.shape[-1] != self._inputs or not given.numel():
            return self._otherwise(given)
        made = given.new_empty((*given.shape[:-1], self._outputs))
        self.into(made, given.contiguous())
        return made

    def into(self, made: torch.Tensor, given: torch.Tensor) -> None:
        """Both one row behind the other, (..., outputs) and (..., inputs), in bfloat16."""
        self._kernel(
            given.numel() // self._inputs,
            self._outputs,
            self._inputs,
            given.data_ptr(),
            self._weight.data_ptr(),
            self._scales.data_ptr(),
            made.data_ptr(),
            self._blocksize,
            self._inputs,
            self._outputs,
        )


def _kernel(quant_type: str) -> Any:
    """bitsandbytes' kernel for the CPU format; None where this version was not looked at, or has another one."""
    import bitsandbytes
    from bitsandbytes.backends.cpu import ops

    version = tuple(int(part) for part in bitsandbytes.__version__.split(".")[:2] if part.isdigit())
    if not _KNOWN[0] <= version < _KNOWN[1] or getattr(ops, "gemm_4bit_forward_kernel", None) is not None:
        return None
    library: Any = getattr(ops.lib, "_lib", None)
    name = f"gemv_4bit_inference_cpu_{quant_type}_bf16"
    return ctypes.CFUNCTYPE(None, *_ARGUMENTS)((name, library)) if hasattr(library, name) else None


def _as_the_kernel_takes_it(weight: Any, state: Any) -> bool:
    """Addresses are all that it is given: bytes and scales one behind the other, nothing nested."""
    outputs, inputs = state.shape
    return (
        weight.dtype == torch.uint8
        and weight.is_contiguous()
        and weight.numel() == outputs * inputs // 2
        and state.absmax.dtype == torch.bfloat16
        and state.absmax.is_contiguous()
        and state.absmax.numel() == outputs * inputs // state.blocksize
        and not state.nested
    )


# --- in 16 bits ---


def ordered(module: Any) -> Any:
    """A Linear in bfloat16 with a copy of its weights in oneDNN's order; or the module as it is."""
    weight: Any = getattr(module, "weight", None)
    if type(module).__name__ != "Linear" or weight.dtype != torch.bfloat16 or weight.device.type != "cpu":
        return module
    if module.bias is not None or weight.nbytes > _ORDERED_BYTES:
        return module
    try:
        with torch.inference_mode():
            made = _Ordered(module)
            given = torch.linspace(-1, 1, 3 * module.in_features, dtype=torch.bfloat16).view(3, 1, -1)
            same = torch.equal(made(given), module(given))
    except (AttributeError, RuntimeError, TypeError):  # operations that torch does not promise to keep
        return module
    return made if same else module


class _Ordered:
    def __init__(self, module: Any) -> None:
        operations = torch.ops.mkldnn
        self._multiply, self._module = operations._linear_pointwise.default, module
        self._weight = operations._reorder_linear_weight(module.weight.detach(), _FEW)

    def __call__(self, given: torch.Tensor) -> torch.Tensor:
        if given.dtype != torch.bfloat16 or not given.is_cpu:
            return self._module(given)  # type: ignore[no-any-return]
        return self._multiply(given, self._weight, None, "none", [], "")  # type: ignore[no-any-return]
