"""Makes the byte-fallback BPE tokenizer in the shape of Llama's: unk 0, <s> 1, </s> 2, bytes, pieces."""

from __future__ import annotations

import json
import pathlib
import random

from conversations import conversation
from facts import LANGUAGES, topics
from prompt import prompt_text
from systems import SHORT
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import LlamaTokenizer

# A piece never crosses from one of these to the next, so names stay apart from particles.
_PIECES = (
    r"▁?\[/?(?:INST|ATTR)\]|▁?[a-z]+:|▁?[A-Za-zÀ-ÿ']+|[0-9]|\p{Han}+|\p{Hiragana}+|[\p{Katakana}ー]+"
    r"|-{2,}|▁+|\n+|."
)
SPECIAL = ("<unk>", "<s>", "</s>")


def build(folder: pathlib.Path, vocabulary: int, seed: int = 1) -> LlamaTokenizer:
    """Trains on generated conversations and saves the tokenizer files, the template kept."""
    rng = random.Random(seed)
    texts = []
    for _ in range(8000):
        text = prompt_text(conversation(rng))[0]
        texts.append(text.replace("<s>", "").replace("</s>", ""))
    # What has to be written most often should be written in few tokens.
    texts += [" " + pair[lang] for t in topics() for _, pair in t.sentences for lang in LANGUAGES] * 40
    texts += [line for lines in SHORT.values() for line in lines] * 20
    raw = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    raw.normalizer = normalizers.Replace(" ", "▁")
    raw.pre_tokenizer = pre_tokenizers.Split(Regex(_PIECES), "isolated")
    count = vocabulary - len(SPECIAL) - 256
    trainer = trainers.BpeTrainer(vocab_size=count, max_token_length=14, show_progress=False)
    raw.train_from_iterator(texts, trainer)
    model = json.loads(raw.to_str())["model"]
    pieces = sorted(model["vocab"], key=model["vocab"].get)
    merges = [tuple(pair) for pair in model["merges"]]
    names = [*SPECIAL, *(f"<0x{i:02X}>" for i in range(256)), *pieces]
    vocab = {name: i for i, name in enumerate(names)}
    made = LlamaTokenizer(
        vocab=vocab, merges=merges, legacy=False, add_bos_token=True, add_eos_token=False, model_max_length=4096
    )
    template = folder / "chat_template.jinja"
    made.chat_template = template.read_text(encoding="utf-8").rstrip("\n")
    made.save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    # Said outright, since loaders differ in what they take for granted.
    config |= {"legacy": False, "add_bos_token": True, "add_eos_token": False}
    path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    return made
