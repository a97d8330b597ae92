"""A Llama's forward pass on the modules that transformers loaded: the same numbers, in a fraction of the calls.

What transformers' own forward does for every architecture, cache and attention (wrappers, hooks, masks, a dozen small
operations for each norm and rotation) costs as much as the matrices of a small model, and on a GPU as much as several
layers of a large one. Here is only what a pass of `batching` needs. All weights stay where they are, so transformers'
forward still works; matrices that read the same input are multiplied together where that costs no memory to speak of.

The numbers are those of transformers' LlamaForCausalLM, rounding included (norms and rotations round where it rounds).
Layers may be on several devices, where nobody else moves what they are given. Other architectures, accelerate's hooks
and attention other than SDPA are not for this: `LlamaPass.of` gives None. While a hook hangs on a module,
transformers' forward is to run, which knows one device. Runs in a model's worker thread; imports torch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

import torch
from torch.nn import functional

__all__ = ["LlamaPass"]

_JOINED_BYTES: Final = 2**24  # matrices that are larger take so long that a call more or less is nothing
_PACKED_ROWS: Final = 32  # that bitsandbytes' CPU format takes together
_REACH: Final = 512  # places more, each time the angles' table has to be made longer
#: Rotations whose angles depend on nothing but the place; others also know how long the text is.
_FIXED_ROTATIONS: Final = ("default", "linear", "llama3", "yarn")

_Projection = Callable[[torch.Tensor], torch.Tensor]


class _Cache(Protocol):
    def update(self, keys: Any, values: Any, layer_idx: int) -> tuple[Any, Any]: ...


@dataclass(frozen=True)
class _Layer:
    """`attention_in` gives queries, keys and values beside each other, `mlp_in` the gate and what goes through it."""

    before_attention: Any
    attention_in: Sequence[_Projection]
    attention_out: _Projection
    before_mlp: Any
    mlp_in: Sequence[_Projection]
    mlp_out: _Projection
    activation: _Projection
    device: torch.device


class LlamaPass:
    """One model's. Use `of`."""

    def __init__(self, model: Any) -> None:
        inner, config = model.model, model.config
        self._model = model
        attention = inner.layers[0].self_attn
        self._embed, self._norm, self._head = inner.embed_tokens, inner.norm, model.lm_head
        self._width = attention.head_dim
        self._heads, self._shared = config.num_attention_heads, config.num_key_value_heads
        self._scale = attention.scaling
        self._layers = [_layer(one) for one in inner.layers]
        self._angles = {
            one: _Angles(inner.rotary_emb, config, inner.embed_tokens.weight, one)
            for one in {layer.device for layer in self._layers}
        }
        self._hooks = [hooks for one in model.modules() for hooks in (one._forward_hooks, one._forward_pre_hooks)]

    @classmethod
    def of(cls, model: Any) -> LlamaPass | None:
        """None where the model is another one than this knows."""
        from transformers import LlamaForCausalLM

        if type(model) is not LlamaForCausalLM or model.config._attn_implementation != "sdpa":
            return None
        return None if any(hasattr(one, "_hf_hook") for one in model.modules()) else cls(model)

    @property
    def recordable(self) -> bool:
        """Whether nothing in a pass asks the device for a number: 8-bit matrices do, and angles that vary."""
        alone = len(self._angles) == 1 and all(one.fixed for one in self._angles.values())
        return alone and not any(type(one).__name__ == "Linear8bitLt" for one in self._model.modules())

    def reach(self, columns: int) -> bool:
        """Know the places before this one; True where tables were made anew for it."""
        made = [one.reach(columns) for one in self._angles.values()]
        return any(made)

    @property
    def watched(self) -> bool:
        """Whether a hook hangs on a module: nothing calls it here, so that transformers' forward is to run."""
        return len(self._angles) == 1 and any(self._hooks)

    def __call__(self, ids: Any, positions: Any, mask: Any, cache: _Cache, wanted: int) -> torch.Tensor:
        """Logits of the last `wanted` columns, (rows, wanted, vocabulary).

        `ids` and `positions` are (rows, columns), these below what `reach` was told. `mask` (rows, 1, columns, keys)
        says which keys are seen; without it one new token sees them all, and several what stands before them, the
        first of them nothing.
        """
        hidden, device = self._embed(ids), None
        for number, layer in enumerate(self._layers):
            if layer.device != device:
                device = layer.device
                hidden, positions = hidden.to(device), positions.to(device)
                mask = None if mask is None else mask.to(device)
                cosines, sines = self._angles[device].at(positions)
            normed = _normed(layer.before_attention, hidden)
            hidden = hidden + self._attended(number, layer, normed, cosines, sines, mask, cache)
            normed = _normed(layer.before_mlp, hidden)
            gate, through = _parts(layer.mlp_in, normed)
            hidden = hidden + layer.mlp_out(layer.activation(gate) * through)
        last = hidden[:, -wanted:].to(self._norm.weight.device)
        return self._head(_normed(self._norm, last))  # type: ignore[no-any-return]

    def _attended(
        self, number: int, layer: _Layer, normed: Any, cosines: Any, sines: Any, mask: Any, cache: _Cache
    ) -> torch.Tensor:
        rows, count, _ = normed.shape
        both = self._heads + self._shared
        made = [one(normed) for one in layer.attention_in]
        every = (made[0] if len(made) == 1 else torch.cat(made, -1)).view(rows, count, -1, self._width)
        turned = _turned(every[:, :, :both], cosines, sines)
        keys, values = cache.update(
            turned[:, :, self._heads :].transpose(1, 2), every[:, :, both:].transpose(1, 2), number
        )
        seen = self._seen(turned[:, :, : self._heads], keys, values, mask)
        return layer.attention_out(seen.reshape(rows, count, -1))

    def _seen(self, queries: Any, keys: Any, values: Any, mask: Any) -> torch.Tensor:
        """(rows, columns, heads, width). Of one new token, heads that share keys are several queries of one head."""
        rows, count = queries.shape[:2]
        if count == 1:
            together = queries.reshape(rows, self._shared, -1, self._width)
            found = functional.scaled_dot_product_attention(together, keys, values, mask, scale=self._scale)
            return found.reshape(rows, 1, -1, self._width)
        many = self._heads // self._shared
        if mask is not None and many > 1:  # with a mask, SDPA's fast kernels take as many keys as queries only
            keys, values = keys.repeat_interleave(many, 1), values.repeat_interleave(many, 1)
        return functional.scaled_dot_product_attention(
            queries.transpose(1, 2),
            keys,
            values,
            mask,
            is_causal=mask is None,
            scale=self._scale,
            enable_gqa=mask is None and many > 1,
        ).transpose(1, 2)


class _Angles:
    """Cosines and sines of places, as the model's own rotary embedding makes them."""

    def __init__(self, rotary: Any, config: Any, like: Any, device: Any) -> None:
        self._rotary, self._like, self._device = rotary, like, device
        self.fixed = rotary.rope_type in _FIXED_ROTATIONS
        self._table: tuple[Any, Any] | None = None
        self._most = 0
        self.reach(config.max_position_embeddings)

    def reach(self, columns: int) -> bool:
        """Fill the table so far; whether it had to be made anew. A short row has places behind its end, too."""
        if not self.fixed or columns <= self._most:
            return False
        self._most = (columns // _REACH + 1) * _REACH
        self._table = self._made(torch.arange(self._most, device=self._like.device)[None])
        return True

    def at(self, positions: Any) -> tuple[Any, Any]:
        """(rows, columns, 1, width) each: one for all heads."""
        if self._table is None:
            cosines, sines = self._made(positions)
        else:
            cosines, sines = (one[0, positions] for one in self._table)
        return cosines[:, :, None], sines[:, :, None]

    def _made(self, positions: Any) -> tuple[Any, Any]:
        with torch.no_grad():
            made = self._rotary(self._like, positions.to(self._like.device))
            cosines, sines = (one.to(self._device) for one in made)
            half = sines.shape[-1] // 2
            return cosines, torch.cat((-sines[..., :half], sines[..., half:]), -1)


def _turned(heads: Any, cosines: Any, sines: Any) -> torch.Tensor:
    """transformers' apply_rotary_pos_emb; its change of sign is in the sines."""
    return heads * cosines + heads.roll(heads.shape[-1] // 2, -1) * sines  # type: ignore[no-any-return]


def _normed(norm: Any, hidden: Any) -> torch.Tensor:
    """LlamaRMSNorm: in fp32, and rounded before it is scaled."""
    exact = functional.rms_norm(hidden.float(), hidden.shape[-1:], None, norm.variance_epsilon)
    return norm.weight * exact.to(hidden.dtype)  # type: ignore[no-any-return]


def _parts(projections: Sequence[_Projection], given: Any) -> Sequence[torch.Tensor]:
    made = [one(given) for one in projections]
    return made[0].chunk(2, -1) if len(made) == 1 else made


def _layer(layer: Any) -> _Layer:
    attention, mlp = layer.self_attn, layer.mlp
    return _Layer(
        layer.input_layernorm,
        _joined([attention.q_proj, attention.k_proj, attention.v_proj]),
        _shortened(attention.o_proj),
        layer.post_attention_layernorm,
        _joined([mlp.gate_proj, mlp.up_proj]),
        _shortened(mlp.down_proj),
        mlp.act_fn,
        layer.input_layernorm.weight.device,
    )


# --- matrices in 4 bits on a CPU ---


def _shortened(module: Any) -> _Projection:
    """Without what bitsandbytes' module looks at in each call."""
    state = _packed(module)
    return module if state is None else _multiply(module.weight, state)


def _joined(modules: Sequence[Any]) -> Sequence[_Projection]:
    """One projection in the place of several that read the same; or these, shortened, where they cannot be one.

    bitsandbytes' kernels go through a matrix in blocks of rows, each with its own scales, so that one below the other
    gives the numbers that each of them gives.
    """
    states = [_packed(one) for one in modules]
    first = states[0]
    if first is None or any(one is None or one.shape[1:] != first.shape[1:] for one in states):
        return [_shortened(one) for one in modules]
    if sum(one.weight.nbytes for one in modules) > _JOINED_BYTES:
        return [_shortened(one) for one in modules]
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


def _multiply(weight: Any, state: Any) -> _Projection:
    from bitsandbytes import matmul_4bit

    return lambda given: matmul_4bit(given, weight, state)
