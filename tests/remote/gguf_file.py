"""The embedded model as a GGUF file, for llama-server: bf16 as it is, or 4 bits (Q4_0).

Knows how LlamaForCausalLM's tensors are named and laid out in GGUF, and how a byte-fallback BPE vocabulary is written
as a SentencePiece one: every piece comes from exactly one merge, so the merge's rank is the piece's score and the ids
are the same. Text after `<s>` gets no leading space there, as in the tokenizer's own ids.

usage: python tests/remote/gguf_file.py FILE.gguf [bf16|q4_0]
"""

from __future__ import annotations

import json
import re
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np

import karakuri_integrations

DEMO = Path(karakuri_integrations.__file__).parent / "demo"
TEMPLATE = Path(karakuri_integrations.__file__).parent / "chat_templates" / "karakuri-lm-70b-chat-v0.1.jinja"
NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def write(target: Path, quantization: str = "bf16", source: Path = DEMO) -> Path:
    """Write the checkpoint at `source` as a GGUF file and return its path."""
    config = json.loads((source / "config.json").read_text())
    writer = gguf.GGUFWriter(target, "llama")
    _write_shape(writer, config)
    _write_vocabulary(writer, json.loads((source / "tokenizer.json").read_text(encoding="utf-8")))
    for name, bits in _tensors(source / "model.safetensors"):
        _write_tensor(writer, _named(name), _laid_out(name, bits, config), quantization)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


def _write_shape(writer: gguf.GGUFWriter, config: dict[str, Any]) -> None:
    writer.add_name("karakuri-demo")
    writer.add_vocab_size(config["vocab_size"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])


def _write_vocabulary(writer: gguf.GGUFWriter, tokenizer: dict[str, Any]) -> None:
    ids = tokenizer["model"]["vocab"]
    pieces = sorted(ids, key=ids.__getitem__)
    ranks = {"".join(pair): place for place, pair in enumerate(tokenizer["model"]["merges"])}
    writer.add_tokenizer_model("llama")
    writer.add_token_list(pieces)
    writer.add_token_scores([-float(ranks[piece]) if piece in ranks else -1e6 for piece in pieces])
    writer.add_token_types([_kind(piece) for piece in pieces])
    writer.add_bos_token_id(ids["<s>"])
    writer.add_eos_token_id(ids["</s>"])
    writer.add_unk_token_id(ids["<unk>"])
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(False)
    writer.add_add_space_prefix(False)
    writer.add_chat_template(TEMPLATE.read_text(encoding="utf-8"))


def _kind(piece: str) -> gguf.TokenType:
    if piece == "<unk>":
        return gguf.TokenType.UNKNOWN
    if piece in ("<s>", "</s>"):
        return gguf.TokenType.CONTROL
    return gguf.TokenType.BYTE if re.fullmatch("<0x[0-9A-F]{2}>", piece) else gguf.TokenType.NORMAL


def _tensors(path: Path) -> Iterator[tuple[str, np.ndarray]]:
    """(name, the bits of its bf16 numbers) of a safetensors file; numpy has no bf16 of its own."""
    with path.open("rb") as file:
        header = json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))
        data = file.read()
    for name, entry in header.items():
        if name != "__metadata__":
            assert entry["dtype"] == "BF16", (name, entry["dtype"])
            start, end = entry["data_offsets"]
            yield name, np.frombuffer(data[start:end], np.uint16).reshape(entry["shape"])


def _named(name: str) -> str:
    stem = name.removesuffix(".weight")
    layer = re.fullmatch(r"model\.layers\.(\d+)\.(.+)", stem)
    return f"blk.{layer[1]}.{NAMES[layer[2]]}.weight" if layer else f"{NAMES[stem]}.weight"


def _laid_out(name: str, bits: np.ndarray, config: dict[str, Any]) -> np.ndarray:
    """GGUF's Llama rotates pairs of neighbours, transformers' the two halves of a head: the rows are interleaved."""
    heads = {"q_proj": "num_attention_heads", "k_proj": "num_key_value_heads"}
    for projection, count in heads.items():
        if projection in name:
            halves = bits.reshape(config[count], 2, -1, bits.shape[1])
            return halves.swapaxes(1, 2).reshape(bits.shape)
    return bits


def _write_tensor(writer: gguf.GGUFWriter, name: str, bits: np.ndarray, quantization: str) -> None:
    numbers = (bits.astype(np.uint32) << 16).view(np.float32)
    # The embeddings are the output layer too, which llama-quantize keeps at more bits.
    name_of_kind = "q8_0" if name == "token_embd.weight" and quantization == "q4_0" else quantization
    kind = gguf.GGMLQuantizationType[name_of_kind.upper()]
    if numbers.ndim == 1:
        writer.add_tensor(name, numbers)  # llama.cpp takes norms as f32 only
    else:
        writer.add_tensor(name, gguf.quants.quantize(numbers, kind), raw_dtype=kind)


if __name__ == "__main__":
    write(Path(sys.argv[1]), *sys.argv[2:])
