"""The dials at llama.cpp's own 4 bits are as strong as without quantisation, on the same held-out questions.

Each question is asked five times, so that every dial takes each of its values once while the others are at random
(cookbook/demo_model/steering_table.py). What is compared with is the same model in bf16 on the same server, whose greedy
answers are the local engine's (test_real_servers.py): a hundred times faster to ask than the local engine itself.
"""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from real_servers import DEMO, MODEL, SLOTS, TEMPLATE, RealServer

from karakuri_integrations import SteeringAttributes
from karakuri_integrations.conversation import Message, Request, Sampling
from karakuri_integrations.engines import RemoteEngine
from karakuri_integrations.generation import fold, stream
from karakuri_integrations.templates import render

sys.path.insert(0, str(Path(__file__).parents[2] / "cookbook" / "demo_model"))

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
PER_LANGUAGE = 26
#: Where every answer is right the interval is a point; one answer of 130 that is not lies this little below it.
LITTLE = 0.02


def table(server: RealServer) -> dict[str, Any]:
    """The steering table of `steering_table.py`, asked through the package."""
    from answers import DIALS
    from steering_table import steering

    engine = RemoteEngine(server.url, MODEL, server=server.name, template=TEMPLATE, tokenizer=str(DEMO))
    own = SteeringAttributes()

    def one(chat: list[dict[str, Any]]) -> tuple[str, bool]:
        message = Message("user", chat[-1]["content"], {name: chat[-1][name] for name in DIALS})
        reply = fold(stream(engine, render(Request((message,), own, own), engine.family), Sampling(max_tokens=900)))
        return reply.text.strip(), reply.finish_reason == "stop"

    def ask(chats: list[list[dict[str, Any]]]) -> list[tuple[str, bool]]:
        with ThreadPoolExecutor(SLOTS) as pool:
            return list(pool.map(one, chats))

    return steering(ask, PER_LANGUAGE, 0)


def test_four_bits_steer_as_well(llama_cpp: RealServer, llama_cpp_4bit: RealServer) -> None:
    pytest.importorskip("numpy")
    expected, found = table(llama_cpp), table(llama_cpp_4bit)
    below = [
        f"{language} {name}: {dial['rho']} under {expected[language]['dials'][name]['ci95']}"
        for language, rows in found.items()
        for name, dial in rows["dials"].items()
        if dial["rho"] < expected[language]["dials"][name]["ci95"][0] - LITTLE
    ]
    assert not below
    assert all(rows["verbosity_monotonic"] and rows["verbosity_ratio"] > 3 for rows in found.values())
