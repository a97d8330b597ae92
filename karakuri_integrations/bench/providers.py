"""Ours through both frameworks, and the bare loop underneath: what the layers between cost.

The bare loop is what one would write by hand with transformers: a pass, the best token, the next pass. It runs in the
engine's own thread on the engine's own weights.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from typing import Any

from .measures import Candidate
from .subject import Effort, Run, Subject, streamed, whole

__all__ = ["BARE", "loop", "ours"]

BARE = "bare loop"


def ours(subject: Subject, effort: Effort) -> list[Candidate]:
    """The bare loop, and what is installed of ChatKarakuri and KarakuriLLM."""
    found = [Candidate(BARE, lambda text: _bare(subject, text, effort.tokens))]
    found += _chat_karakuri(subject, effort) if find_spec("langchain_core") else []
    found += _karakuri_llm(subject, effort) if find_spec("llama_index") else []
    return found


def _bare(subject: Subject, text: str, tokens: int) -> Run:
    ids = subject.ids(subject.prompt(text))
    ends = subject.shared.checkpoint.eos_ids
    made, seconds, first = subject.look(lambda batch: loop(batch.model, ids, tokens, ends))
    return Run(len(made), seconds, (_decoded(subject, made),), first)


def loop(model: Any, ids: list[int], tokens: int, ends: frozenset[int]) -> tuple[list[int], float, float]:
    """The new ids, the seconds they took and those until the first one."""
    import torch
    from transformers import DynamicCache

    from ..engines.forward import cache_name

    began, first = time.perf_counter(), 0.0
    cache, made = {cache_name(model): DynamicCache()}, list[int]()
    device = model.get_input_embeddings().weight.device
    new = torch.tensor([ids], device=device)
    with torch.inference_mode():
        while len(made) < tokens and (not made or made[-1] not in ends):
            logits = model(input_ids=new, use_cache=True, logits_to_keep=1, **cache).logits
            new = logits[:, -1].argmax(-1, keepdim=True)
            made.append(int(new))
            first = first or time.perf_counter() - began
    return made, time.perf_counter() - began, first


def _decoded(subject: Subject, ids: list[int]) -> str:
    stream = subject.shared.tokens.text_stream()
    ends = subject.shared.checkpoint.eos_ids
    return "".join(stream.push(one) for one in ids if one not in ends)


def _tokens(subject: Subject, texts: Sequence[str], limit: int) -> int:
    """Tokens of replies. One that did not reach its limit also made the token that ends it."""
    return sum(min(limit, len(subject.plain.token_ids(one)) + 1) for one in texts)


def _chat_karakuri(subject: Subject, effort: Effort) -> list[Candidate]:
    from ..langchain import ChatKarakuri

    llm = ChatKarakuri(engine=subject.plain, max_tokens=effort.tokens, temperature=0)

    def call(text: str) -> Run:
        made: list[int] = []
        return streamed(_noted(llm.stream(text), made), lambda: sum(made))

    def gathered(work: Callable[[], Sequence[Any]]) -> Run:
        made: list[int] = []
        return whole(lambda: [*_noted(work(), made)], lambda _: sum(made))

    def by_threads(texts: Sequence[str]) -> Run:
        with ThreadPoolExecutor(len(texts)) as pool:
            return gathered(lambda: [*pool.map(llm.invoke, texts)])

    return [
        Candidate("ChatKarakuri.stream", call),
        Candidate("ChatKarakuri.invoke, threads", batch=by_threads),
        Candidate("ChatKarakuri.batch", batch=lambda texts: gathered(lambda: llm.batch([*texts]))),
        Candidate("ChatKarakuri.abatch", batch=lambda texts: gathered(lambda: asyncio.run(llm.abatch([*texts])))),
    ]


def _noted(messages: Iterable[Any], made: list[int]) -> Iterator[str]:
    """The texts of LangChain's messages; the tokens that they report go to `made`."""
    for one in messages:
        made.append((one.usage_metadata or {}).get("output_tokens", 0))
        yield str(one.text)


def _karakuri_llm(subject: Subject, effort: Effort) -> list[Candidate]:
    from llama_index.core.llms import ChatMessage

    from ..llama_index import KarakuriLLM

    llm = KarakuriLLM(engine=subject.plain, max_tokens=effort.tokens, temperature=0)

    def call(text: str) -> Run:
        said: list[str] = []

        def deltas() -> Iterator[str]:
            for part in llm.stream_chat([ChatMessage(role="user", content=text)]):
                said.append(part.delta or "")
                yield said[-1]

        return streamed(deltas(), lambda: _tokens(subject, ["".join(said)], effort.tokens))

    async def all_of_them(texts: Sequence[str]) -> list[str]:
        replies = await asyncio.gather(*(llm.achat([ChatMessage(role="user", content=one)]) for one in texts))
        return [one.message.content or "" for one in replies]

    def gather(texts: Sequence[str]) -> Run:
        return whole(lambda: asyncio.run(all_of_them(texts)), lambda found: _tokens(subject, found, effort.tokens))

    return [
        Candidate("KarakuriLLM.stream_chat", call),
        Candidate("KarakuriLLM.achat, gathered", batch=gather),
    ]
