"""Checkpoints with random weights in a Llama's shape, for measuring what a model of that size costs.

They have the embedded model's tokenizer and template. What they say means nothing. Small ones are written with their
weights; of those in LARGE only the files beside the weights are, which `random_model` makes on the device.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, NamedTuple

from ..engines.checkpoint import DEFAULT

__all__ = ["LARGE", "SIZES", "Shape", "make_checkpoint", "make_outline"]

_FILES: Final = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json")


class Shape(NamedTuple):
    """Of a Llama. `shared`: heads of keys and values."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    shared: int
    vocabulary: int = 4096


SIZES: Final[Mapping[str, Shape]] = {
    "1m": Shape(128, 256, 2, 4, 2),
    "94m": Shape(1024, 2624, 8, 16, 4),
    # karakuri-lm-70b-chat-v0.1, by its config.json.
    "70b": Shape(8192, 28672, 80, 64, 8, 45416),
    # As it in small: as many heads share one of keys and values, and there are more tokens than the tokenizer has.
    "70b-small": Shape(512, 1792, 2, 16, 2, 5120),
}
#: Those whose weights are made on the device, layer by layer.
LARGE: Final = ("70b", "70b-small")


def make_checkpoint(size: str, folder: Path) -> Path:
    """Write one, the same at each call, and return its folder.

    A thread of its own computes: OpenMP's threads for the caller's would stay, and slow down what is measured.
    """
    target = make_outline(size, folder)
    with ThreadPoolExecutor(1) as pool:
        pool.submit(_write_weights, SIZES[size], target).result()
    shutil.copy(Path(str(DEFAULT.folder)) / "generation_config.json", target)  # as it was before the model was saved
    return target


def _write_weights(shape: Shape, target: Path) -> None:
    import torch
    from transformers import LlamaForCausalLM

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = LlamaForCausalLM(_config(shape)).to(torch.bfloat16)
    with torch.no_grad():
        model.lm_head.weight[2] = 0  # so that it does not end by itself, and all replies are equally long
    model.save_pretrained(target)


def make_outline(size: str, folder: Path, layers: int | None = None) -> Path:
    """Write all files of one but its weights, with so many layers where they are given, and return its folder."""
    shape = SIZES[size]
    target = folder / (f"random-llama-{size}" if layers is None else f"random-llama-{size}-{layers}-layers")
    target.mkdir(parents=True)
    _config(shape if layers is None else shape._replace(layers=layers)).save_pretrained(target)
    for name in _FILES:
        shutil.copy(Path(str(DEFAULT.folder)) / name, target / name)
    return target


def _config(shape: Shape) -> Any:
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.shared,
        max_position_embeddings=4096,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=None,
        tie_word_embeddings=False,
        architectures=["LlamaForCausalLM"],
    )
