"""A tokenizer of the 70B model's size, 45,416 tokens, for measuring: its own is not at hand.

A byte-fallback BPE as Llama's is, trained on made-up words of both languages and on the JSON of calls. What a grammar
costs depends on how many tokens there are and how long they are, hardly on which.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

VOCABULARY = 45_416
_KANA = "あいうえおかきくけこさしすせそたちつてとなにぬねのはひふへほまみむめもやゆよらりるれろわをんアイウエオカキクケコサシスセソタチツテトナニヌネノ"
_JSON = (
    '{"name": "', '", "arguments": {"', '": "', '"}}]', '[{"', '": ', '", "', "0", "12", "345", "},", ' {"', "[]", "{}", '"},', "}", ":",
    '"]', "true", "false", "null",
)  # fmt: skip


def big_tokenizer(folder: Path) -> Any:
    """The tokenizer, from the folder if it was made before."""
    from tokenizers import Tokenizer

    file = folder / f"karakuri-overhead-{VOCABULARY}.json"
    if not file.is_file():
        file.write_text(_trained(), encoding="utf-8")
    return Tokenizer.from_file(str(file))


def _trained() -> str:
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    raw = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    raw.normalizer = normalizers.Replace(" ", "▁")
    raw.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=True)
    special = ["<unk>", "<s>", "</s>", *(f"<0x{n:02X}>" for n in range(256))]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=special, show_progress=False, max_token_length=16
    )
    raw.train_from_iterator(_texts(random.Random(0)), trainer)
    raw.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    if raw.get_vocab_size() != VOCABULARY:
        raise RuntimeError(f"the vocabulary came out with {raw.get_vocab_size()} tokens")
    description = json.loads(raw.to_str())
    description["added_tokens"] = description["added_tokens"][:3]  # bytes are plain pieces, as in Llama's
    return json.dumps(description, ensure_ascii=False)


def _texts(rng: random.Random) -> Iterator[str]:
    kanji = [chr(0x4E00 + place * 7) for place in range(2500)]
    syllables = [
        a + b for a in "bcdfghjklmnpqrstvwxz" for b in ("a", "e", "i", "o", "u", "ar", "en", "ing", "er", "on")
    ]
    words = ["".join(rng.choices(syllables, k=rng.randint(1, 4))) for _ in range(30_000)]
    japanese = [
        "".join(rng.choices(kanji, k=rng.randint(1, 3)) + rng.choices(_KANA, k=rng.randint(0, 3)))
        for _ in range(30_000)
    ]
    for _ in range(20_000):
        yield "".join(
            " " + rng.choice(words) if rng.random() < 0.5 else rng.choice(japanese if rng.random() < 0.8 else _JSON)
            for _ in range(60)
        )
