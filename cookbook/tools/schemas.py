"""Forced calls for many JSON schemas: how many finish, and whether those that finish parse and fit their schema.

    python cookbook/tools/schemas.py --count 1000 --seed 0
    python cookbook/tools/schemas.py --count 1000 --weights demo
    python cookbook/tools/schemas.py --server http://127.0.0.1:8080/v1
    python cookbook/tools/schemas.py --suite FOLDER

The schemas are random ones over the whole vocabulary of keywords (random_schemas.py), or those of the JSON Schema Test
Suite, from a folder such as tests/draft2020-12 of https://github.com/json-schema-org/JSON-Schema-Test-Suite. Each is
asked for once through LangChain and once through LlamaIndex, at temperature 1 and with at most 512 tokens. Whether
arguments fit is the jsonschema library's word; `format` is an annotation to it, as in the standard.

"Refused" are schemas that no grammar can be made of: an error names the word before anything is computed. On a server
our two classes are asked with strict=True too, which also refuses the words that it would pass over.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import statistics
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation
from itertools import islice
from pathlib import Path
from typing import Any

from contenders import Contender, Outcome, local, served
from jsonschema import Draft202012Validator, validators
from random_schemas import Schema, random_schemas

LIMIT = 512
DEMO = Path(__file__).parents[2] / "karakuri_integrations" / "demo"


# --- schemas ---------------------------------------------------------------------------------------------------------


def groups(folder: Path) -> Iterator[tuple[str, Schema, list[dict[str, Any]]]]:
    """(name, schema, instances) of the test suite, each schema as that of a tool's only argument."""
    for file in sorted(folder.glob("*.json")):
        for group in json.loads(file.read_text(encoding="utf-8")):
            schema = group["schema"]
            if isinstance(schema, dict):
                schema = {key: value for key, value in schema.items() if key != "$schema"}
            inner = schema if isinstance(schema, dict) and "$id" in schema else moved(schema, "#/properties/value")
            whole = {"type": "object", "properties": {"value": inner}, "required": ["value"]}
            yield f"{file.stem}: {group['description']}", whole, group["tests"]


def moved(schema: Any, place: str) -> Any:
    """With its local references pointing to where it now stands."""
    if isinstance(schema, list):
        return [moved(one, place) for one in schema]
    if not isinstance(schema, dict):
        return schema
    return {key: _moved_value(key, value, place) for key, value in schema.items()}


def _moved_value(key: str, value: Any, place: str) -> Any:
    if key in ("enum", "const"):
        return value
    if key == "$ref" and isinstance(value, str) and (value == "#" or value.startswith("#/")):
        return place + value[1:]
    return moved(value, place)


# --- does it fit? ----------------------------------------------------------------------------------------------------

# Binary fractions are no multiples of 0.01, so numbers are compared as they are written.
_INTEGER = Draft202012Validator.TYPE_CHECKER.redefine(
    "integer",
    lambda _checker, one: not isinstance(one, bool) and (isinstance(one, int) or _integral(one)),
)
Validator = validators.extend(Draft202012Validator, type_checker=_INTEGER)


def _integral(one: object) -> bool:
    return isinstance(one, Decimal | float) and math.isfinite(one) and one == int(one)


def _decimal(text: str) -> Decimal | float:
    try:
        return Decimal(text)
    except InvalidOperation:  # an exponent beyond any
        return float(text)


def _exact(value: Any) -> Any:
    return json.loads(json.dumps(value), parse_float=_decimal)


def problem(schema: Schema, arguments: Any) -> str | None:
    """Why the arguments do not fit; None if they do."""
    try:
        errors = Validator(_exact(schema)).iter_errors(_exact(arguments))
        found = next(iter(errors), None)
    except ArithmeticError:
        return None  # a number too large to divide: `multipleOf` of it is for nobody to say
    return None if found is None else f"{found.json_path}: {found.message}"


# --- counting --------------------------------------------------------------------------------------------------------


@dataclass
class Row:
    """What came of one contender's calls."""

    name: str
    asked: int = 0
    finished: int = 0
    valid: int = 0
    cut: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    tokens: list[int] = field(default_factory=list)
    wrong: list[tuple[int, str]] = field(default_factory=list)
    seconds: float = 0.0

    def add(self, place: int, schema: Schema, outcome: Outcome) -> None:
        self.asked += 1
        if outcome.refused is not None:
            self.refused[outcome.refused] += 1
            return
        self.tokens.append(outcome.tokens)
        if not outcome.finished:
            self.cut += outcome.failed is None
            if outcome.failed:
                self.failed[outcome.failed] += 1
            return
        self.finished += 1
        wrong = problem(schema, outcome.arguments)
        if wrong is None:
            self.valid += 1
        else:
            self.wrong.append((place, wrong))

    def cells(self) -> list[str]:
        held = self.asked - sum(self.refused.values())
        return [
            self.name, str(self.asked), str(sum(self.refused.values())), f"{self.finished} ({_share(self.finished, held)})",
            f"{self.valid} ({_share(self.valid, self.finished)})", str(self.cut), str(sum(self.failed.values())),
            f"{statistics.median(self.tokens):.0f}" if self.tokens else "-", f"{self.seconds:.0f}",
        ]  # fmt: skip


def _share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f} %" if whole else "-"


HEAD = ["", "asked", "refused", "finished", "of those valid", "cut", "no call", "median tokens", "seconds"]


def measure(contenders: Iterable[Contender], schemas: Sequence[Schema], asked: argparse.Namespace) -> list[Row]:
    rows = []
    for contender in contenders:
        row = Row(contender.name)
        began = time.perf_counter()
        with ThreadPoolExecutor(asked.at_once) as pool:
            outcomes = pool.map(
                lambda place, own=contender: own.ask(schemas[place], asked.seed + place), range(len(schemas))
            )
            for place, (schema, outcome) in enumerate(zip(schemas, outcomes, strict=True)):
                row.add(place, schema, outcome)
                if row.asked % 100 == 0:
                    print(f"{row.name}: {row.asked} of {len(schemas)}", file=sys.stderr)
        row.seconds = time.perf_counter() - began
        rows.append(row)
        print(f"| {' | '.join(row.cells())} |", flush=True)
        for place, why in row.wrong[: asked.show]:
            print(f"    schema {place}: {why[:200]}", file=sys.stderr)
    return rows


def report(rows: Iterable[Row]) -> None:
    for row in rows:
        for what, counted in (("refused", row.refused), ("no call", row.failed)):
            if counted:
                words = ", ".join(f"{word} {count}" for word, count in counted.most_common())
                print(f"\n{row.name}, {what}: {words}")


# --- models ----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def checkpoint(weights: str, seed: int) -> Iterator[str | None]:
    """The folder of a model; None is the embedded one. Random weights speak the embedded model's vocabulary."""
    if weights != "random":
        yield None if weights == "demo" else weights
        return
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    with tempfile.TemporaryDirectory() as found:
        folder = Path(found) / "random-weights"
        torch.manual_seed(seed)
        config = LlamaConfig(
            vocab_size=4096, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=4096, bos_token_id=1, eos_token_id=2, initializer_range=0.2,
        )  # fmt: skip
        LlamaForCausalLM(config).save_pretrained(folder)
        for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
            (folder / name).write_bytes((DEMO / name).read_bytes())
        yield str(folder)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--count", type=int, default=1000, help="random schemas")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--weights", default="random", help="random, demo, or a checkpoint's folder")
    parser.add_argument("--quantization", help="nf4, bf16 or fp32; random weights are fp32 by default, others nf4")
    parser.add_argument("--server", help="a server of the embedded model, such as http://127.0.0.1:8080/v1")
    parser.add_argument("--suite", type=Path, help="a folder of the JSON Schema Test Suite, in place of random schemas")
    parser.add_argument("--at-once", type=int, default=16, help="calls at a time")
    parser.add_argument("--only", help="one contender, by name")
    parser.add_argument("--show", type=int, default=5, help="how many arguments that do not fit are described")
    asked = parser.parse_args()
    warnings.filterwarnings("ignore")
    schemas = [schema for _, schema, _ in groups(asked.suite)] if asked.suite else _random(asked.seed, asked.count)
    options = {"temperature": 1.0, "max_tokens": LIMIT}
    print(f"| {' | '.join(HEAD)} |\n|{'---|' * len(HEAD)}", flush=True)
    if asked.server:
        contenders, absent = served(asked.server, options)
        rows = measure(_chosen(contenders, asked.only), schemas, asked)
        for name in absent:
            print(f"| {name} | absent |{' |' * (len(HEAD) - 2)}")
    else:
        from karakuri_integrations.engines import LocalEngine

        with checkpoint(asked.weights, asked.seed) as folder:
            engine = LocalEngine(folder, device="cpu", quantization=asked.quantization or _usual(asked.weights))
            rows = measure(_chosen(local(engine, options), asked.only), schemas, asked)
            engine.close()
    report(rows)
    ours = [row for row in rows if "Karakuri" in row.name]
    return int(any(row.valid < row.finished or row.failed for row in ours))


def _random(seed: int, count: int) -> list[Schema]:
    return list(islice(random_schemas(seed), count))


def _usual(weights: str) -> str:
    """In 4 bits random weights are as random, and slower on a CPU."""
    return "fp32" if weights == "random" else "nf4"


def _chosen(contenders: Sequence[Contender], name: str | None) -> Sequence[Contender]:
    return [one for one in contenders if name in (None, one.name)]


if __name__ == "__main__":
    sys.exit(main())
