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

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

import torch
from torch.nn import functional

from .packed import Projection, joined, ordered, shortened

__all__ = ["LlamaPass", "chosen"]

_REACH: Final = 512  # places more, each time the angles' table has to be made longer
#: Rotations whose angles depend on nothing but the place; others also know how long the text is.
_FIXED_ROTATIONS: Final = ("default", "linear", "llama3", "yarn")


class _Cache(Protocol):
    def update(self, keys: Any, values: Any, layer_idx: int) -> tuple[Any, Any]: ...


@dataclass(frozen=True)
class _Layer:
    """`attention_in` gives queries, keys and values beside each other, `mlp_in` the gate and what goes through it."""

    before_attention: Any
    attention_in: Sequence[Projection]
    attention_out: Projection
    before_mlp: Any
    mlp_in: Sequence[Projection]
    mlp_out: Projection
    activation: Projection
    device: torch.device


class LlamaPass:
    """One model's. Use `of`."""

    def __init__(self, model: Any) -> None:
        inner, config = model.model, model.config
        attention = inner.layers[0].self_attn
        self._embed, self._norm, self._head = inner.embed_tokens, inner.norm, ordered(model.lm_head)
        self._vocabulary = model.lm_head.out_features
        self._width = attention.head_dim
        self._heads, self._shared = config.num_attention_heads, config.num_key_value_heads
        self._many = self._heads // self._shared
        self._scale = attention.scaling
        self._layers = [_layer(one) for one in inner.layers]
        self._angles = {
            one: _Angles(inner.rotary_emb, config, inner.embed_tokens.weight, one)
            for one in {layer.device for layer in self._layers}
        }
        #: LLM.int8()'s matrices choose what they round by all tokens of a pass, so that none may be left out.
        self._eight_bits = any(type(one).__name__ == "Linear8bitLt" for one in model.modules())
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
        return alone and not self._eight_bits

    def reach(self, columns: int) -> bool:
        """Know the places before this one; True where tables were made anew for it."""
        made = [one.reach(columns) for one in self._angles.values()]
        return any(made)

    @property
    def watched(self) -> bool:
        """Whether a hook hangs on a module: nothing calls it here, so that transformers' forward is to run."""
        return len(self._angles) == 1 and any(self._hooks)

    def __call__(self, ids: Any, positions: Any, mask: Any, cache: _Cache, wanted: Any) -> torch.Tensor:
        """Logits of the last `wanted` columns, (rows, wanted, vocabulary), or of each row's that `wanted` (rows,) says.

        `ids` and `positions` are (rows, columns), these below what `reach` was told. `mask` (rows, 1, columns, keys)
        says which keys are seen; without it one new token sees them all, and several what stands before them, the
        first of them nothing.
        """
        hidden, device, last = self._embed(ids), None, len(self._layers) - 1
        for number, layer in enumerate(self._layers):
            if layer.device != device:
                device = layer.device
                hidden, positions = hidden.to(device), positions.to(device)
                seeing = None if mask is None else self._added(mask.to(device), hidden)
                cosines, sines = self._angles[device].at(positions)
            normed = _normed(layer.before_attention, hidden)
            queries, keys, values = self._heads_of(layer, normed, cosines, sines)
            keys, values = cache.update(keys, values, number)
            if number == last and isinstance(wanted, int) and not wanted:
                return hidden.new_empty((len(hidden), 0, self._vocabulary))  # type: ignore[no-any-return]
            seen = self._seen(queries, keys, values, seeing)
            if number == last and not self._eight_bits:  # what nobody looks at is not computed
                seen, hidden = chosen(seen, wanted), chosen(hidden, wanted)
            hidden = hidden + layer.attention_out(seen.reshape(*hidden.shape[:2], -1))
            normed = _normed(layer.before_mlp, hidden)
            gate, through = _parts(layer.mlp_in, normed)
            hidden = hidden + layer.mlp_out(layer.activation(gate) * through)
        if self._eight_bits:
            hidden = chosen(hidden, wanted)
        return self._head(_normed(self._norm, hidden.to(self._norm.weight.device)))  # type: ignore[no-any-return]

    def _added(self, mask: Any, like: Any) -> torch.Tensor:
        """What SDPA makes of a mask of bools, in each layer: what is added to scores, here of all heads of one key."""
        added = torch.zeros(mask.shape, dtype=like.dtype, device=mask.device).masked_fill_(~mask, float("-inf"))
        return added.repeat(1, 1, self._many, 1) if mask.shape[2] > 1 else added

    def _heads_of(self, layer: _Layer, normed: Any, cosines: Any, sines: Any) -> tuple[Any, Any, Any]:
        """Queries (rows, columns, heads, width); keys and values (rows, heads, columns, width)."""
        rows, count, _ = normed.shape
        both = self._heads + self._shared
        made = [one(normed) for one in layer.attention_in]
        every = (made[0] if len(made) == 1 else torch.cat(made, -1)).view(rows, count, -1, self._width)
        turned = _turned(every[:, :, :both], cosines, sines)
        keys, values = turned[:, :, self._heads :], every[:, :, both:]
        return turned[:, :, : self._heads], keys.transpose(1, 2), values.transpose(1, 2)

    def _seen(self, queries: Any, keys: Any, values: Any, added: Any) -> torch.Tensor:
        """(rows, columns, heads, width). Heads that share keys are several queries of one, so that no keys are copied.

        Several tokens without a mask use SDPA's own causal triangle, which is for as many queries as keys.
        """
        rows, count = queries.shape[:2]
        if added is None and count > 1:
            return functional.scaled_dot_product_attention(
                queries.transpose(1, 2),
                keys,
                values,
                is_causal=True,
                scale=self._scale,
                enable_gqa=self._many > 1,
            ).transpose(1, 2)
        split = queries.reshape(rows, count, self._shared, self._many, self._width)
        together = split.permute(0, 2, 3, 1, 4).reshape(rows, self._shared, -1, self._width)
        found = functional.scaled_dot_product_attention(together, keys, values, added, scale=self._scale)
        return found.reshape(rows, self._shared, self._many, count, self._width).permute(0, 3, 1, 2, 4)


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


def chosen(numbers: Any, wanted: Any) -> Any:
    """Of (rows, columns, ...) the last `wanted` columns, or of each row the one that `wanted` (rows,) says."""
    if isinstance(wanted, int):
        return numbers[:, numbers.shape[1] - wanted :]
    return numbers[torch.arange(len(numbers), device=numbers.device), wanted.to(numbers.device)][:, None]


def _normed(norm: Any, hidden: Any) -> torch.Tensor:
    """LlamaRMSNorm: in fp32, and rounded before it is scaled."""
    exact = functional.rms_norm(hidden.float(), hidden.shape[-1:], None, norm.variance_epsilon)
    return norm.weight * exact.to(hidden.dtype)  # type: ignore[no-any-return]


def _parts(projections: Sequence[Projection], given: Any) -> Sequence[torch.Tensor]:
    made = [one(given) for one in projections]
    return made[0].chunk(2, -1) if len(made) == 1 else made


def _layer(layer: Any) -> _Layer:
    attention, mlp = layer.self_attn, layer.mlp
    return _Layer(
        layer.input_layernorm,
        joined([attention.q_proj, attention.k_proj, attention.v_proj]),
        shortened(attention.o_proj),
        layer.post_attention_layernorm,
        joined([mlp.gate_proj, mlp.up_proj]),
        shortened(mlp.down_proj),
        mlp.act_fn,
        layer.input_layernorm.weight.device,
    )
