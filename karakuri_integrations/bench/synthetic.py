"""Checkpoints with random weights in a Llama's shape, for measuring what a model of that size costs.

They have the embedded model's tokenizer and template. What they say means nothing.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from ..engines.checkpoint import DEFAULT

__all__ = ["SIZES", "make_checkpoint"]

_FILES: Final = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json")

#: hidden size, intermediate size, layers, heads, heads of keys and values
SIZES: Final[Mapping[str, tuple[int, int, int, int, int]]] = {
    "1m": (128, 256, 2, 4, 2),
    "94m": (1024, 2624, 8, 16, 4),
}


def make_checkpoint(size: str, folder: Path) -> Path:
    """Write one, the same at each call, and return its folder."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    demo = Path(str(DEFAULT.folder))
    hidden, intermediate, layers, heads, shared = SIZES[size]
    config = LlamaConfig(
        vocab_size=4096,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=shared,
        max_position_embeddings=4096,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=None,
        tie_word_embeddings=False,
    )
    target = folder / f"random-llama-{size}"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = LlamaForCausalLM(config).to(torch.bfloat16)
    with torch.no_grad():
        model.lm_head.weight[2] = 0  # so that it does not end by itself, and all replies are equally long
    model.save_pretrained(target)
    for name in _FILES:
        shutil.copy(demo / name, target / name)
    return target
