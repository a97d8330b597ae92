"""What the models need: their shapes as data, and the loader's own arithmetic over them. No torch is imported.

Shapes: the config.json files of karakuri-ai/karakuri-lm-70b-chat-v0.1 (69,196,455,936 parameters, vocabulary 45,416)
and karakuri-ai/karakuri-lm-8x7b-chat-v0.1 (Mixtral). Of the embedded model, and of a caller's own, the headers of the
files are read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

from ..engines.checkpoint import DEFAULT, Checkpoint, Source
from ..engines.memory import estimate
from ..engines.precision import PRECISIONS, precision_of
from ..engines.safety import Tensor, tensors
from ..templates import FAMILIES

__all__ = ["EXPERTS", "MODELS", "WINDOW", "Model", "Need", "need_of"]

#: Tokens of a call where a checkpoint does not say; the loader counts with as many.
WINDOW: Final = 4096

EXPERTS: Final = "bitsandbytes leaves its experts in bf16, so nf4 is an error"


@dataclass(frozen=True)
class Model:
    """A model that the doctor looks at.

    forms: the quantizations that it can be loaded in, or the one that it is stored in. argument: how it is asked for in
    code. short: its name for `karakuri serve-command`. config: its shape; None: its files are read, those of `source`.
    family_window: tokens of a call where the files do not say.
    """

    name: str
    forms: tuple[str, ...]
    argument: str = ""
    short: str = ""
    config: Mapping[str, int] | None = None
    notes: tuple[str, ...] = ()
    source: Source = DEFAULT
    family_window: int = WINDOW

    @property
    def window(self) -> int:
        """Tokens of a call."""
        if self.config is not None:
            return self.config["max_position_embeddings"]
        return Checkpoint(self.source).window or self.family_window

    def measures(self) -> tuple[Mapping[str, Any], list[Tensor]]:
        """Its configuration, and its tensors as they are stored."""
        if self.config is not None:
            return self.config, list(_tensors(self.config))
        checkpoint = Checkpoint(self.source)
        return checkpoint.config, tensors(checkpoint)


@dataclass(frozen=True)
class Need:
    """Bytes: the weights as they are held, the margin for activations, and what each token of context adds."""

    weights: int
    margin: int
    per_token: int

    def total(self, tokens: int) -> int:
        return self.weights + self.margin + tokens * self.per_token


def _large(name: str, forms: tuple[str, ...], shape: Mapping[str, int], *notes: str) -> Model:
    short = name.removeprefix("karakuri-lm-").removesuffix("-v0.1")
    config = MappingProxyType({**shape, "max_position_embeddings": FAMILIES[name].context_window})
    return Model(name, forms, f'model="karakuri-ai/{name}", ', short, config, notes)


#: By name; the embedded model first.
MODELS: Final[Mapping[str, Model]] = MappingProxyType(
    {
        one.name: one
        for one in (
            Model(DEFAULT.name, ("nf4", "bf16")),
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
                f"{EXPERTS}; a 4-bit copy (AWQ, GPTQ) is served with karakuri serve-command 8x7b-chat --server vllm",
            ),
        )
    }
)


def need_of(model: str | Model, quantization: str, kv_cache_dtype: str = "auto") -> Need:
    """By the estimate that the loader holds against free memory; `model` by its name in MODELS, or itself."""
    config, held = (MODELS[model] if isinstance(model, str) else model).measures()
    stored = quantization not in PRECISIONS
    precision = precision_of("none" if stored else quantization)
    found = estimate(held, config, precision, stored=stored, window=1, kv_cache_dtype=kv_cache_dtype)
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
