"""What the models need: their shapes as data, and the loader's own arithmetic over them. No torch is imported.

Shapes: the config.json files of karakuri-ai/karakuri-lm-70b-chat-v0.1 (69,196,455,936 parameters, vocabulary 45,416)
and karakuri-ai/karakuri-lm-8x7b-chat-v0.1 (Mixtral); the embedded model's files are read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

from ..engines.checkpoint import DEFAULT, Checkpoint
from ..engines.memory import estimate
from ..engines.precision import precision_of
from ..engines.safety import Tensor, tensors
from ..templates import FAMILIES

__all__ = ["MODELS", "Model", "Need", "need_of"]


@dataclass(frozen=True)
class Model:
    """A model that the doctor looks at.

    forms: the quantizations that it can be loaded in. argument: how it is asked for in code. short: its name for
    `karakuri serve-command`. config: its shape; None: it is the embedded model's, which is read when it is needed.
    """

    forms: tuple[str, ...]
    argument: str = ""
    short: str = ""
    config: Mapping[str, int] | None = None
    notes: tuple[str, ...] = ()

    @property
    def window(self) -> int:
        """Tokens of a call."""
        config = Checkpoint(DEFAULT).config if self.config is None else self.config
        return int(config["max_position_embeddings"])

    @property
    def large(self) -> bool:
        return self.config is not None


@dataclass(frozen=True)
class Need:
    """Bytes: the weights as they are held, the margin for activations, and what each token of context adds."""

    weights: int
    margin: int
    per_token: int

    def total(self, tokens: int) -> int:
        return self.weights + self.margin + tokens * self.per_token


def _large(name: str, forms: tuple[str, ...], shape: Mapping[str, int], *notes: str) -> tuple[str, Model]:
    short = name.removeprefix("karakuri-lm-").removesuffix("-v0.1")
    config = MappingProxyType({**shape, "max_position_embeddings": FAMILIES[name].context_window})
    return name, Model(forms, f'model="karakuri-ai/{name}", ', short, config, notes)


#: By name; the embedded model first.
MODELS: Final[Mapping[str, Model]] = MappingProxyType(
    {
        DEFAULT.name: Model(("nf4", "bf16")),
        **dict(
            [
                _large(
                    "karakuri-lm-70b-chat-v0.1",
                    ("nf4", "int8", "bf16"),
                    {
                        "hidden_size": 8192,
                        "num_hidden_layers": 80,
                        "num_attention_heads": 64,
                        "num_key_value_heads": 8,
                        "intermediate_size": 28672,
                        "vocab_size": 45416,
                    },
                ),
                _large(
                    "karakuri-lm-8x7b-chat-v0.1",
                    ("bf16",),
                    {
                        "hidden_size": 4096,
                        "num_hidden_layers": 32,
                        "num_attention_heads": 32,
                        "num_key_value_heads": 8,
                        "intermediate_size": 14336,
                        "vocab_size": 32000,
                        "num_local_experts": 8,
                    },
                    "bitsandbytes leaves its experts in bf16, so nf4 is an error; a 4-bit copy (AWQ, GPTQ) is served "
                    "with karakuri serve-command 8x7b-chat --server vllm",
                ),
            ]
        ),
    }
)


def need_of(name: str, quantization: str, kv_cache_dtype: str = "auto") -> Need:
    """By the estimate that the loader holds against free memory."""
    shape = MODELS[name].config
    checkpoint = Checkpoint(DEFAULT)
    config: Mapping[str, Any] = checkpoint.config if shape is None else shape
    held = tensors(checkpoint) if shape is None else list(_tensors(shape))
    precision = precision_of(quantization)
    found = estimate(held, config, precision, stored=False, window=1, kv_cache_dtype=kv_cache_dtype)
    return Need(found.weights, found.margin, found.cache)


def _tensors(shape: Mapping[str, int]) -> Iterator[Tensor]:
    """Those of a Llama, or of a Mixtral where there are experts, in bf16; norms are counted too."""
    hidden, inner, vocabulary = shape["hidden_size"], shape["intermediate_size"], shape["vocab_size"]
    narrow = hidden // shape["num_attention_heads"] * shape["num_key_value_heads"]
    experts = shape.get("num_local_experts", 1)
    for layer in range(shape["num_hidden_layers"]):
        sizes = [("q", hidden, hidden), ("k", narrow, hidden), ("v", narrow, hidden), ("o", hidden, hidden)]
        sizes += [(part, inner, hidden) for part in ("gate", "up", "down") for _ in range(experts)]
        sizes += [("router", experts, hidden)] if experts > 1 else []
        for part, rows, columns in sizes:
            yield _tensor(f"layers.{layer}.{part}", rows, columns)
        yield from (_tensor(f"layers.{layer}.norm{number}", hidden) for number in range(2))
    yield _tensor("norm", hidden)
    yield _tensor("embed_tokens", vocabulary, hidden)
    yield _tensor("lm_head", vocabulary, hidden)


def _tensor(name: str, *shape: int) -> Tensor:
    count = 1
    for one in shape:
        count *= one
    return Tensor(name, shape, 2 * count)
