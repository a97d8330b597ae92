"""What happens when a server fails, for our two classes and for others in the same run, as one table.

    python cookbook/remote/faults.py                       # every row
    python cookbook/remote/faults.py --only "drop" --out table.md

Each row of `tests/remote/fault_table.py` is one fault. Every class is asked whole and streamed, sync and async, against a
scripted server on 127.0.0.1. Ours must end each row with the right text or with a typed error that holds the exact part
received; otherwise the command fails. langchain-openai and llama-index-llms-openai-like are asked the same where they
are installed (`pip install langchain-openai llama-index-llms-openai-like`), otherwise the table says that they are
absent; they are judged more mildly: any error of their SDK's or LangChain's tree is "typed".
"""

from __future__ import annotations

import argparse
import importlib.metadata
import logging
import sys
import warnings
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests" / "remote"))

from calls import OURS, Client, Outcome, Run, ask_langchain, ask_llama_index, problems, run_row, servers
from fault_table import KEY, ROWS, Bad, Good, Row
from wires import TEXT

PEERS = {"ChatOpenAI": "langchain-openai", "OpenAILike": "llama-index-llms-openai-like"}
SHOWN = ("karakuri-integrations", "langchain-core", "llama-index-core", "aiohttp", "urllib3", *PEERS.values(), "openai")


# --- the others ---


def _chat_openai(url: str, row: Row) -> Any:
    from langchain_openai import ChatOpenAI

    return ChatOpenAI(model="karakuri", base_url=url, api_key=KEY, timeout=row.peer, stream_usage=True)


def _openai_like(url: str, row: Row) -> Any:
    from llama_index.llms.openai_like import OpenAILike

    return OpenAILike(model="karakuri", api_base=url, api_key=KEY, is_chat_model=True, timeout=row.peer)


def peers() -> tuple[Client, ...]:
    """The other clients that are installed."""
    known = (
        Client("ChatOpenAI", "langchain_openai", _chat_openai, ask_langchain),
        Client("OpenAILike", "llama_index.llms.openai_like", _openai_like, ask_llama_index),
    )
    return tuple(client for client in known if version(PEERS[client.name]))


def version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


# --- one cell ---


@dataclass(frozen=True)
class Verdict:
    """How a run ended, in one word and in a few."""

    kind: str  # right, typed, cut, wrong, raw, hang
    shown: str


def verdict(row: Row, run: Run) -> Verdict:
    outcome = run.outcome
    if outcome.hung:
        return Verdict("hang", f"**still waiting after {outcome.seconds:g} s**")
    if outcome.error is not None:
        return _failed(row, outcome)
    texts = [one.text for one in row.expect if isinstance(one, Good)]
    if (outcome.text or "") in texts:
        return Verdict("right", "right text")
    got = outcome.text if isinstance(outcome.text, str) else ""
    if TEXT.startswith(got):
        return Verdict("cut", f"**success, {len(got)}/{len(TEXT)}**")
    return Verdict("wrong", "**success, wrong text**")


def _failed(row: Row, outcome: Outcome) -> Verdict:
    error = outcome.error
    name = type(error).__name__
    if not _typed(error):
        return Verdict("raw", f"raw `{name}`")
    partial = getattr(error, "partial_text", None)
    held = f", {len(partial)}/{len(TEXT)}" if partial else ""
    if not any(isinstance(one, Bad) for one in row.expect):
        return Verdict("wrong", f"`{name}`{held} though the answer was whole")
    return Verdict("typed", f"`{name}`{held}")


def _typed(error: Any) -> bool:
    """Whether the error belongs to our tree, LangChain's, or the SDK's."""
    roots = {"KarakuriError", "ModelError", "OpenAIError"}
    return any(base.__name__ in roots for base in type(error).__mro__)


def cell(row: Row, runs: list[Run]) -> str:
    """The four ways of one client, folded where they agree."""
    shown: dict[str, list[str]] = {}
    for run in runs:
        found = f" ⚠ {problems(row, run)[0][:80]}" if run.client in OURS and problems(row, run) else ""
        tries = f" ({len(run.exchanges)})" if len(run.exchanges) != 1 else ""
        shown.setdefault(verdict(row, run).shown + tries + found, []).append(run.way)
    if len(shown) == 1:
        return next(iter(shown))
    return "; ".join(f"{'/'.join(ways)}: {text}" for text, ways in shown.items())


# --- the table ---


def table(rows: Iterable[Row], clients: tuple[Client, ...], out: Any) -> tuple[list[str], dict[str, Counter[str]]]:
    """Run and write every row; what is wrong with ours, and how often each client ended how."""
    wrong: list[str] = []
    counts: dict[str, Counter[str]] = {client.name: Counter() for client in clients}
    print("| case | fault | " + " | ".join(client.name for client in clients) + " |", file=out)
    print("|---|---|" + "---|" * len(clients), file=out)
    with servers(clients) as at, ThreadPoolExecutor(4) as threads:
        pending = {row.name: threads.submit(run_row, row, clients, at) for row in rows if not row.heavy}
        for row in rows:
            runs = run_row(row, clients, at) if row.heavy else pending[row.name].result()
            by = {client.name: [run for run in runs if run.client is client] for client in clients}
            print(f"| {row.case} | {row.name} | " + " | ".join(cell(row, by[c.name]) for c in clients) + " |", file=out)
            out.flush()
            for run in runs:
                counts[run.client.name][verdict(row, run).kind] += 1
                if run.client in OURS:
                    wrong += [f"{row.name}: {run.client.name}.{run.way}: {found}" for found in problems(row, run)]
    return wrong, counts


def summary(counts: dict[str, Counter[str]], out: Any) -> None:
    kinds = ("right", "typed", "cut", "wrong", "raw", "hang")
    print(
        "\n| calls that end | right text | typed error | **cut or empty text as success** | wrong | raw exception | hang |",
        file=out,
    )
    print("|---|---|---|---|---|---|---|", file=out)
    for name, counted in counts.items():
        total = sum(counted.values())
        print(f"| {name} ({total}) | " + " | ".join(str(counted[kind]) for kind in kinds) + " |", file=out)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", default="", help="only rows whose name holds this")
    parser.add_argument("--ours", action="store_true", help="leave the others out")
    parser.add_argument("--out", help="write the table into this file")
    asked = parser.parse_args()
    logging.disable(logging.CRITICAL)  # other clients' transports complain about closed loops, their models of shapes
    warnings.simplefilter("ignore")
    others = () if asked.ours else peers()
    rows = [row for row in ROWS if asked.only.lower() in row.name.lower()]
    out = open(asked.out, "w", encoding="utf-8") if asked.out else sys.stdout  # noqa: SIM115  # closed by the exit
    versions = ", ".join(f"{name} {version(name)}" for name in SHOWN if version(name))
    print(
        f"Python {sys.version.split()[0]}, {versions}. A number in brackets: requests the server saw, where not 1.\n",
        file=out,
    )
    for name, package in PEERS.items():
        if not asked.ours and not version(package):
            print(f"**peer absent**: {name} (pip install {package})\n", file=out)
    wrong, counts = table(rows, (*OURS, *others), out)
    summary(counts, out)
    print(
        "\n".join(f"WRONG: {one}" for one in wrong) or f"\nAll {len(rows)} rows hold for both of our classes.", file=out
    )
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
