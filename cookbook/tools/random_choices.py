"""Random JSON schemas without a model: of the tokens that the grammar allows one is drawn, each as likely.

    python cookbook/tools/random_choices.py --count 1000

As schemas.py on random weights, in half a minute and on one core; the vocabulary is the embedded model's.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from itertools import islice

import numpy as np
from contenders import tool_of
from random_schemas import Schema, random_schemas
from schemas import DEMO, LIMIT, problem
from tokenizers import Tokenizer

from karakuri_integrations.conversation import Grammar
from karakuri_integrations.engines.grammars import Constraint, Grammars
from karakuri_integrations.engines.tokens import Tokens
from karakuri_integrations.errors import UnsupportedSchemaError
from karakuri_integrations.tools import SYNTAXES, list_of_calls, tooling_of

FORM = SYNTAXES["brackets"].form
END = 2


def grammars() -> Grammars:
    raw = Tokenizer.from_file(str(DEMO / "tokenizer.json"))
    size = raw.get_vocab_size()
    return Grammars(raw.to_str(), size, size, END, Tokens(raw).bytes_of)


def reply(constraint: Constraint, seed: int) -> list[int]:
    drawn, made = np.random.default_rng(seed), list[int]()
    while len(made) < LIMIT and not constraint.finished and END not in made[-1:]:
        made += constraint.take(int(drawn.choice(np.flatnonzero(constraint.allowed()))))
    return made


def outcome(one: Grammars, schema: Schema, seed: int) -> str:
    """What came of a forced call: valid, wrong, cut, or refused and the word."""
    tooling = tooling_of({"tools": [tool_of(schema)], "tool_choice": "record", "parallel_tool_calls": False})
    try:
        constraint = one.constraint(Grammar(list_of_calls(tooling, FORM)), LIMIT)
    except UnsupportedSchemaError as error:
        return f"refused: {error.keyword}"
    tokens = [token for token in reply(constraint, seed) if token != END]
    try:
        call = json.loads(one.tokenizer.decode_bytes(tokens))[0]
    except ValueError:
        return "cut"
    return "wrong" if problem(schema, call["arguments"]) else "valid"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    asked, one = parser.parse_args(), grammars()
    schemas = enumerate(islice(random_schemas(asked.seed), asked.count))
    found = Counter(outcome(one, schema, asked.seed + place) for place, schema in schemas)
    for what, count in found.most_common():
        print(f"| {what} | {count} |")
    return int(bool(found["wrong"] or found["cut"]))


if __name__ == "__main__":
    sys.exit(main())
