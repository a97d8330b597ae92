"""Measures how the dials steer a model, and what else it gets right, on held-out questions.

    python cookbook/demo_model/steering_table.py --quantization nf4 --per-language 104 --json out.json

Every question is asked five times. In these five runs each dial takes each of its five values once,
in an order of its own, so every dial is measured with the other eight at random. Decoding is greedy.
By default the answers come through the package's LocalEngine; `--through transformers` asks the
same model with plain transformers, in large batches.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import pathlib
import random
import re
import sys
import time
from collections.abc import Callable
from typing import Any

import conversations
import numpy as np
from answers import DEFAULTS, DIALS, topic_content
from facts import LANGUAGES, topic, topics
from held_out import questions
from measures import NOT_IN_TEXT, is_refusal, language, measure, ranks, spearman
from systems import system_text

Message = dict[str, Any]
Ask = Callable[[list[list[Message]]], list[tuple[str, bool]]]
MODEL = pathlib.Path(__file__).resolve().parents[2] / "karakuri_integrations" / "demo"
LIMIT = 900


def with_transformers(folder: str, quantization: str, batch: int) -> Ask:
    """Answers from plain transformers, in left-padded batches of similar length."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    tokenizer.pad_token = tokenizer.eos_token
    config = None
    if quantization == "nf4":
        config = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16,
        )  # fmt: skip
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, quantization_config=config)
    model.eval()

    def ask(chats: list[list[Message]]) -> list[tuple[str, bool]]:
        prompts = [tokenizer.apply_chat_template(chat, return_dict=False) for chat in chats]
        order = sorted(range(len(chats)), key=lambda i: (chats[i][-1].get("verbosity", 4), len(prompts[i])))
        out: list[tuple[str, bool]] = [("", False)] * len(chats)
        for at in range(0, len(order), batch):
            part = order[at : at + batch]
            inputs = tokenizer.pad({"input_ids": [prompts[i] for i in part]}, return_tensors="pt")
            with torch.inference_mode():
                made = model.generate(**inputs, max_new_tokens=LIMIT, do_sample=False, pad_token_id=2)
            for i, row in zip(part, made[:, inputs["input_ids"].shape[1] :], strict=True):
                ids = row.tolist()
                ended = 2 in ids
                ids = ids[: ids.index(2)] if ended else ids
                out[i] = (tokenizer.decode(ids, skip_special_tokens=True).strip(), ended)
        return out

    return ask


def steering_chats(rows: list[dict[str, str]], seed: int) -> list[tuple[dict[str, str], list[Message]]]:
    """Each question five times; per dial a random order of the five values."""
    rng, out = random.Random(seed), []
    for row in rows:
        orders = {name: rng.sample(range(5), 5) for name in DIALS}
        for k in range(5):
            dials = {name: orders[name][k] for name in DIALS}
            out.append((row, [{"role": "user", "content": row["text"], **dials}]))
    return out


def interval(xs: list[float], ys: list[float], clusters: int, seed: int) -> tuple[float, float]:
    """95 % bootstrap interval of Spearman's rho; whole questions (five answers) are drawn."""
    rng, values = np.random.default_rng(seed), []
    a, b = np.array(xs).reshape(clusters, -1), np.array(ys).reshape(clusters, -1)
    for _ in range(300):
        pick = rng.integers(0, clusters, clusters)
        x, y = a[pick].ravel().tolist(), b[pick].ravel().tolist()
        values.append(float(np.corrcoef(ranks(x), ranks(y))[0, 1]))
    low, high = np.nanpercentile(values, [2.5, 97.5])
    return round(float(low), 3), round(float(high), 3)


def steering(ask: Ask, per_language: int, seed: int) -> dict[str, Any]:
    """Cell means, rank correlations and the verbosity ratio for each language."""
    result: dict[str, Any] = {}
    for lang in LANGUAGES:
        rows = [q for q in questions() if q["lang"] == lang][:per_language]
        plan = steering_chats(rows, seed)
        replies = ask([chat for _, chat in plan])
        asked = [chat[-1] for _, chat in plan]
        measured = [measure(t, lang, topic(row["topic"])) for (row, _), (t, _) in zip(plan, replies, strict=True)]
        table: dict[str, Any] = {}
        for name in DIALS:
            xs, ys = [float(a[name]) for a in asked], [m[name] for m in measured]
            means = [float(np.mean([y for x, y in zip(xs, ys, strict=True) if x == v])) for v in range(5)]
            table[name] = {
                "means": [round(v, 3) for v in means],
                "rho": round(spearman(xs, ys), 4),
                "ci95": interval(xs, ys, len(rows), seed),
            }
        lengths = table["verbosity"]["means"]
        texts = [t for t, _ in replies]
        result[lang] = {
            "questions": len(rows), "answers": len(plan), "dials": table,
            "verbosity_ratio": round(lengths[4] / max(lengths[0], 1e-9), 2),
            "verbosity_monotonic": all(a < b for a, b in itertools.pairwise(lengths)),
            "false_refusals": _rate(is_refusal(t, lang) for t in texts),
            "language_kept": _rate(language(t) == lang for t in texts),
            "ended": _rate(e for _, e in replies),
            "topic_right": _rate(_on_topic(t, row["topic"], lang) for (row, _), t in zip(plan, texts, strict=True)),
            "aspect_right": _rate(_leads(t, row, lang, chat[-1]) for (row, chat), t in zip(plan, texts, strict=True)),
            "aspect_right_unseen_pairs": _rate(
                _leads(t, row, lang, chat[-1])
                for (row, chat), t in zip(plan, texts, strict=True) if _is_held_pair(row)
            ),
        }  # fmt: skip
    return result


def _is_held_pair(row: dict[str, str]) -> bool:
    from phrasing import held_pair

    return held_pair(topic(row["topic"]), row["aspect"])


def _rate(values: Any) -> float:
    listed = list(values)
    return round(sum(map(bool, listed)) / len(listed), 4) if listed else math.nan


def _on_topic(text: str, topic_id: str, lang: str) -> bool:
    return topic(topic_id).name(lang).lower() in text.lower()


def _leads(text: str, row: dict[str, str], lang: str, dials: dict[str, Any]) -> bool:
    """Whether the answer begins its content with the sentence that the question asks for."""
    content = topic_content(topic(row["topic"]), row["aspect"], lang, {n: dials[n] for n in DIALS})
    return _core(content.sentences[0]) in _core(text)


def _core(text: str) -> str:
    """Digits and figures dropped: whether the number is right is another question."""
    return re.sub(r"[\d,，]+", "", text).rstrip(".。").lower()


def follow_ups(ask: Ask, count: int, seed: int) -> dict[str, Any]:
    """A question, its answer, then a held-out wording that refers back. The aspect must be right."""
    result, rng = {}, random.Random(seed + 1)
    for lang in LANGUAGES:
        chats, rows = [], []
        for k in range(count):
            item = topics()[k % len(topics())]
            aspect = rng.choice([a for a in item.aspects if a not in ("what", "num")] + ["more", "num"])
            first = {n: rng.randrange(5) for n in DIALS}
            chat = conversations.topic_turn(rng, item, "what", lang, first, held=True)
            dials = {**DEFAULTS, "verbosity": rng.randrange(5)}
            turn = conversations.topic_turn(rng, item, aspect, lang, dials, follow_up=True, held=True)
            chats.append(chat + turn[:1])
            rows.append({"topic": item.id, "aspect": aspect})
        replies = ask(chats)
        right = [_leads(t, row, lang, chat[-1]) for (t, _), row, chat in zip(replies, rows, chats, strict=True)]
        result[lang] = {
            "asked": count, "right": _rate(right),
            "topic_right": _rate(_on_topic(t, r["topic"], lang) for (t, _), r in zip(replies, rows, strict=True)),
            "language_kept": _rate(language(t) == lang for t, _ in replies),
        }  # fmt: skip
    return result


def passages(ask: Ask, count: int, seed: int) -> dict[str, Any]:
    """Made-up facts in the prompt, in the usual RAG shapes, held-out question wordings."""
    result, rng = {}, random.Random(seed + 2)
    for lang in LANGUAGES:
        chats, values = [], []
        for k in range(count):
            size = (2, 4, 6, 10, 14, 30)[k % 6]
            dials = {**DEFAULTS, "verbosity": rng.randrange(5)}
            messages, value = conversations.passage_messages(rng, lang, dials, size, held=True)
            chats.append(messages[:-1])
            values.append(value)
        texts = [t for t, _ in ask(chats)]
        right = [
            (v in t) if v is not None else NOT_IN_TEXT[lang] in t.lower()
            for t, v in zip(texts, values, strict=True)
        ]  # fmt: skip
        result[lang] = {
            "asked": count, "right": _rate(right),
            "right_where_stated": _rate(r for r, v in zip(right, values, strict=True) if v is not None),
            "right_where_missing": _rate(r for r, v in zip(right, values, strict=True) if v is None),
            "language_kept": _rate(language(t) == lang for t, v in zip(texts, values, strict=True) if v is not None),
        }  # fmt: skip
    return result


def refusals(ask: Ask, count: int, seed: int) -> dict[str, Any]:
    """Questions on held-out unknown things in held-out wordings, at the default dials."""
    result, rng = {}, random.Random(seed + 3)
    for lang in LANGUAGES:
        turns = [conversations.refusal_turn(rng, lang, dict(DEFAULTS), held=True)[:1] for _ in range(count)]
        texts = [t for t, _ in ask(turns)]
        result[lang] = {"asked": count, "refused": _rate(is_refusal(t, lang) for t in texts),
                        "language_kept": _rate(language(t) == lang for t in texts)}  # fmt: skip
    return result


def long_prompts(ask: Ask, count: int, seed: int) -> dict[str, Any]:
    """A held-out question behind an agent-like system text of about 1,500 to 3,500 tokens."""
    result, rng = {}, random.Random(seed + 4)
    for lang in LANGUAGES:
        rows = rng.sample([q for q in questions() if q["lang"] == lang], count)
        chats = [
            [
                {"role": "system", "content": system_text(rng, lang, rng.choice((80, 110, 150)))},
                {"role": "user", "content": row["text"], **DEFAULTS, "verbosity": 1},
            ]
            for row in rows
        ]
        replies = ask(chats)
        result[lang] = {
            "asked": count,
            "topic_right": _rate(_on_topic(t, r["topic"], lang) for (t, _), r in zip(replies, rows, strict=True)),
            "ended": _rate(e for _, e in replies),
        }
    return result


def markdown(report: dict[str, Any]) -> str:
    """The report as Markdown tables."""
    lines = []
    for lang in LANGUAGES:
        part = report["steering"][lang]
        lines += [f"**{lang}**: {part['questions']} questions, {part['answers']} answers", "",
                  "| dial | 0 | 1 | 2 | 3 | 4 | Spearman's rho (95 % interval) |", "|---|---|---|---|---|---|---|"]  # fmt: skip
        for name, row in part["dials"].items():
            cells = " | ".join(f"{v:.2f}" if name != "verbosity" else f"{v:.0f}" for v in row["means"])
            lines.append(f"| {name} | {cells} | {row['rho']:.3f} ({row['ci95'][0]:.3f} to {row['ci95'][1]:.3f}) |")
        lines.append("")
    lines += ["| | en | ja |", "|---|---|---|"]
    for label, group, key in (
        ("verbosity 4 / verbosity 0, characters", "steering", "verbosity_ratio"),
        ("false refusals", "steering", "false_refusals"), ("right topic", "steering", "topic_right"),
        ("right aspect", "steering", "aspect_right"),
        ("right aspect, (topic, aspect) never asked in training", "steering", "aspect_right_unseen_pairs"),
        ("language kept", "steering", "language_kept"), ("ends by itself", "steering", "ended"),
        ("follow-ups right", "follow_ups", "right"), ("passage questions right", "passages", "right"),
        ("passage: value found where stated", "passages", "right_where_stated"),
        ("passage: says that it is not there", "passages", "right_where_missing"),
        ("unknown topics refused", "refusals", "refused"),
        ("right topic behind a system text of 1,500 to 3,500 tokens", "long_prompts", "topic_right"),
    ):  # fmt: skip
        if group in report:
            lines.append(f"| {label} | {report[group]['en'][key]} | {report[group]['ja'][key]} |")
    return "\n".join(lines)


def main() -> None:
    """Parses the command line, measures, prints and saves."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=str(MODEL))
    parser.add_argument("--quantization", choices=("nf4", "bf16"), default="nf4")
    parser.add_argument("--per-language", type=int, default=104)
    parser.add_argument("--others", type=int, default=100, help="follow-ups, passages and refusals per language")
    parser.add_argument("--through", choices=("package", "transformers"), default="package")
    parser.add_argument("--batch", type=int, default=64, help="for --through transformers")
    parser.add_argument("--json", help="also write the report there")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if args.through == "package":
        from through_package import with_package

        ask = with_package(args.model, args.quantization)
    else:
        ask = with_transformers(args.model, args.quantization, args.batch)
    started = time.time()
    report: dict[str, Any] = {"quantization": args.quantization, "through": args.through, "seed": args.seed}
    counts = {steering: args.per_language}
    if args.others:
        counts |= {follow_ups: args.others, passages: args.others, refusals: args.others, long_prompts: 10}
    for part, count in counts.items():
        report[part.__name__] = part(ask, count, args.seed)
        report["seconds"] = round(time.time() - started)
        print(f"{part.__name__}: {report['seconds']} s", file=sys.stderr, flush=True)
        if args.json:
            pathlib.Path(args.json).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(markdown(report))
    print(f"\n{report['seconds']} s, {args.quantization}, through {args.through}")


if __name__ == "__main__":
    main()
