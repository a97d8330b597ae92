"""The JSON Schema Test Suite's own instances under the grammar: what is valid, and what is let through.

    python cookbook/tools/instances.py FOLDER

FOLDER is one such as tests/draft2020-12 of https://github.com/json-schema-org/JSON-Schema-Test-Suite. Each schema is
that of a tool's only argument, each instance its value; no model is asked. Of the valid ones a grammar need not let
through all: properties come in the schema's order, an object takes no property but those it lists, a `format` is held.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from schemas import groups

from karakuri_integrations.conversation import Grammar
from karakuri_integrations.engines.grammars import fitting
from karakuri_integrations.errors import UnsupportedSchemaError
from karakuri_integrations.tools import tooling_of


def grammar_of(schema: dict[str, Any]) -> Grammar:
    (tool,) = tooling_of({"tools": [{"name": "record", "parameters": schema}]}).tools
    return Grammar(tool.parameters)


def let_through(schema: dict[str, Any], tests: list[dict[str, Any]]) -> Iterator[tuple[bool, bool, str]]:
    """(valid, let through, description) of each instance; none where the schema is refused."""
    grammar = grammar_of(schema)
    for test in tests:
        text = json.dumps({"value": test["data"]}, ensure_ascii=False)
        try:
            yield test["valid"], fitting(grammar, text) is None, test["description"]
        except UnsupportedSchemaError:
            return


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    found = [
        (f"{name}: {description}", valid, through)
        for name, schema, tests in groups(parser.parse_args().folder)
        for valid, through, description in let_through(schema, tests)
    ]
    valid, invalid = [one for one in found if one[1]], [one for one in found if not one[1]]
    wrong = [name for name, _, through in invalid if through]
    print("| instances | let through |\n|---|---|")
    print(f"| valid: {len(valid)} | {sum(through for _, _, through in valid)} |")
    print(f"| invalid: {len(invalid)} | {len(wrong)} |")
    print(*wrong, sep="\n")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
