"""Writes held_out.json: evaluation questions in held-out wordings, free of 8-grams of the training.

    python cookbook/demo_model/make_held_out.py --tokenizer karakuri_integrations/demo

A candidate is dropped when it shares an 8-gram with a large sample of training questions; what is
left is then excluded from the training by construction (held_out.shares in train.py).
"""

from __future__ import annotations

import argparse
import json
import random

from facts import LANGUAGES, topics
from held_out import FILE, grams
from phrasing import held_pair, question


def main() -> None:
    """Collects as many questions per language as asked, half of them on held-out pairs."""
    from transformers import AutoTokenizer

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokenizer", required=True)
    parser.add_argument("--per-language", type=int, default=144)
    args = parser.parse_args()
    tokenizer, rng = AutoTokenizer.from_pretrained(args.tokenizer), random.Random(2026)
    rows: list[dict[str, str]] = []
    for lang in LANGUAGES:
        trained: set[object] = set()
        for _ in range(40000):
            topic = rng.choice(topics())
            aspect = rng.choice([a for a in topic.aspects if not held_pair(topic, a)])
            trained |= grams(question(rng, topic, aspect, lang), tokenizer)
        seen: set[str] = set()
        while len(seen) < args.per_language:
            topic = topics()[len(seen) % len(topics())]
            held = [a for a in topic.aspects if held_pair(topic, a)]
            rest = [a for a in topic.aspects if a not in held]
            aspect = rng.choice(held if len(seen) // len(topics()) % 2 else rest)
            text = question(rng, topic, aspect, lang, held=True)
            if text not in seen and trained.isdisjoint(grams(text, tokenizer)):
                seen.add(text)
                rows.append({"text": text, "topic": topic.id, "aspect": aspect, "lang": lang})
    FILE.write_text(json.dumps(rows, ensure_ascii=False, indent=0) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
