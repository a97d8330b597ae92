"""The dials at llama.cpp's own 4 bits: as strong as at the local engine's, on the same held-out questions.

Each question is asked five times, so that every dial takes each of its values once while the others are at random
(cookbook/demo_model/steering_table.py). The server's rank correlation of a dial must lie in the local one's 95 % interval,
or above it.
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
from karakuri_integrations.engines import LocalEngine, RemoteEngine
from karakuri_integrations.generation import fold, stream
from karakuri_integrations.templates import render

sys.path.insert(0, str(Path(__file__).parents[2] / "cookbook" / "demo_model"))

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]
pytest.importorskip("torch", reason="the local engine is what the server is compared with")
PER_LANGUAGE = 12


def asker(engine: Any, workers: int) -> Any:
    """What `steering` asks through: answers and whether they ended, in order."""

    def one(chat: list[dict[str, Any]]) -> tuple[str, bool]:
        from answers import DIALS

        message = Message("user", chat[-1]["content"], {name: chat[-1][name] for name in DIALS})
        own = SteeringAttributes()
        reply = fold(stream(engine, render(Request((message,), own, own), engine.family), Sampling(max_tokens=900)))
        return reply.text.strip(), reply.finish_reason == "stop"

    def ask(chats: list[list[dict[str, Any]]]) -> list[tuple[str, bool]]:
        with ThreadPoolExecutor(workers) as pool:
            return list(pool.map(one, chats))

    return ask


def test_the_steering_table_lies_within_the_local_interval(llama_cpp_4bit: RealServer) -> None:
    from steering_table import steering

    served = RemoteEngine(llama_cpp_4bit.url, MODEL, server=llama_cpp_4bit.name, template=TEMPLATE, tokenizer=str(DEMO))
    there = steering(asker(served, SLOTS), PER_LANGUAGE, 0)
    local = LocalEngine()
    here = steering(asker(local, 1), PER_LANGUAGE, 0)
    local.close()
    below = [
        f"{language} {name}: {found['rho']} under {here[language]['dials'][name]['ci95']}"
        for language in here
        for name, found in there[language]["dials"].items()
        if found["rho"] < here[language]["dials"][name]["ci95"][0]
    ]
    assert not below
    assert all(found["verbosity_ratio"] > 3 for found in there.values())
