"""The same replies by transformers' `generate` and by what LangChain and LlamaIndex have for it, as a user writes them.

They share a model that transformers loads for them, from the same checkpoint, in the same precision and on the same
device: the engine's own has layers that are shortened (`fused`). Their tokens are counted by the passes they make, one
a token of each reply.
"""

from __future__ import annotations

import contextlib
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from typing import Any

from .measures import Candidate
from .subject import Effort, Run, Subject, streamed, whole

__all__ = ["peers"]

INLINE, STREAMED = "transformers: generate", "transformers: generate + TextIteratorStreamer"
CHAT, LLM = "ChatHuggingFace", "HuggingFaceLLM"


def peers(subject: Subject, effort: Effort) -> list[Candidate]:
    """All of them; those that are not installed say so."""
    effort.say("loading the model a second time, for the others")
    common = _Common(subject, _loaded(subject), effort.tokens)
    return [
        Candidate(INLINE, common.inline),
        Candidate(STREAMED, common.streamer),
        *_installed(CHAT, "langchain_huggingface", "langchain-huggingface", lambda: _chat(common)),
        *_installed(
            LLM, "llama_index.llms.huggingface", "llama-index-llms-huggingface", lambda: [_huggingface_llm(common)]
        ),
    ]


def _loaded(subject: Subject) -> Any:
    """The model as transformers loads it."""
    from transformers import AutoModelForCausalLM

    from ..engines.loading import bitsandbytes_arguments

    own = subject.look(lambda batch: batch.model)
    settings = {} if subject.stored else bitsandbytes_arguments(subject.precision, {"": str(own.device)})
    with _quiet():
        return AutoModelForCausalLM.from_pretrained(
            subject.folder, dtype=own.dtype, device_map={"": own.device}, local_files_only=True, **settings
        ).eval()


def _installed(name: str, module: str, package: str, make: Callable[[], list[Candidate]]) -> list[Candidate]:
    """What `make` gives, or why nothing can be measured: a peer that fails must not end the measurement."""
    try:
        if find_spec(module) is None:
            raise ModuleNotFoundError
        with warnings.catch_warnings(), _quiet():
            warnings.simplefilter("ignore")
            return make()
    except ModuleNotFoundError:
        return [Candidate(name, absent=f"not installed (pip install {package})")]
    except Exception as error:  # noqa: BLE001  # it is somebody else's code
        return [Candidate(name, absent=f"it cannot be used here ({type(error).__name__})")]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """transformers' advice on its options is not for the table."""
    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)


class _Common:
    """Model, tokenizer and the two ways to call `generate`."""

    def __init__(self, subject: Subject, model: Any, tokens: int) -> None:
        from transformers import AutoTokenizer

        self.subject, self.model, self.tokens = subject, model, tokens
        self.tokenizer = AutoTokenizer.from_pretrained(subject.folder, local_files_only=True)
        self.options: dict[str, Any] = {
            "max_new_tokens": tokens,
            "do_sample": False,
            "pad_token_id": min(subject.shared.checkpoint.eos_ids, default=0),
        }

    @contextlib.contextmanager
    def counted(self) -> Iterator[Callable[[], int]]:
        """A count of the tokens made: a pass makes one for each row."""
        made = [0]

        def passed(_module: Any, _given: Any, output: Any) -> None:
            made[0] += int(output.logits.shape[0])

        hook = self.model.register_forward_hook(passed)
        try:
            with warnings.catch_warnings(), _quiet():
                warnings.simplefilter("ignore")
                yield lambda: made[0]
        finally:
            hook.remove()

    def stream(self, texts: Callable[[], Iterator[str]]) -> Run:
        """Take a stream to its end."""
        with self.counted() as made:
            return streamed(texts(), made)

    def whole(self, texts: Callable[[], Sequence[str]]) -> Run:
        """Replies that come as a whole."""
        with self.counted() as made:
            return whole(texts, lambda _: made())

    def _ids(self, text: str) -> Any:
        import torch

        ids = self.subject.ids(self.subject.prompt(text))
        return torch.tensor([ids], device=self.model.get_input_embeddings().weight.device)

    def inline(self, text: str) -> Run:
        return self.whole(lambda: [self._generated(self._ids(text))])

    def _generated(self, ids: Any) -> str:
        import torch

        out = self.model.generate(ids, attention_mask=torch.ones_like(ids), **self.options)
        return str(self.tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True))

    def streamer(self, text: str) -> Run:
        return self.stream(lambda: self._streamed(self._ids(text)))

    def _streamed(self, ids: Any) -> Iterator[str]:
        import torch
        from transformers import TextIteratorStreamer

        streamer = TextIteratorStreamer(self.tokenizer, skip_prompt=True, skip_special_tokens=True)
        options = {**self.options, "attention_mask": torch.ones_like(ids), "streamer": streamer}
        thread = threading.Thread(target=self.model.generate, args=(ids,), kwargs=options)
        thread.start()
        yield from streamer
        thread.join()


def _chat(common: _Common) -> list[Candidate]:
    """ChatHuggingFace around a transformers pipeline, as its documentation shows."""
    import transformers
    from langchain_core.messages import HumanMessage
    from langchain_huggingface import ChatHuggingFace, HuggingFacePipeline

    pipeline = transformers.pipeline(
        "text-generation",
        model=common.model,
        tokenizer=common.tokenizer,
        return_full_text=False,
        **common.options,
    )
    chat = ChatHuggingFace(llm=HuggingFacePipeline(pipeline=pipeline), tokenizer=common.tokenizer)

    def stream(text: str) -> Run:
        return common.stream(lambda: (str(chunk.text) for chunk in chat.stream([HumanMessage(text)])))

    def invoke(text: str) -> Run:
        return common.whole(lambda: [str(chat.invoke([HumanMessage(text)]).text)])

    def batch(texts: Sequence[str]) -> Run:
        return common.whole(lambda: [str(one.text) for one in chat.batch([[HumanMessage(text)] for text in texts])])

    beside = "ChatKarakuri.stream"
    return [
        Candidate(f"{CHAT}.stream", stream, beside=beside),
        Candidate(f"{CHAT}.invoke", invoke, beside=beside),
        Candidate(f"{CHAT}.batch", batch=batch),
    ]


def _huggingface_llm(common: _Common) -> Candidate:
    from llama_index.core.llms import ChatMessage
    from llama_index.llms.huggingface import HuggingFaceLLM

    llm = HuggingFaceLLM(
        model=common.model,
        tokenizer=common.tokenizer,
        context_window=common.subject.plain.context_window,
        max_new_tokens=common.tokens,
        generate_kwargs={key: value for key, value in common.options.items() if key != "max_new_tokens"},
    )

    def stream(text: str) -> Run:
        return common.stream(
            lambda: (part.delta or "" for part in llm.stream_chat([ChatMessage(role="user", content=text)]))
        )

    return Candidate(f"{LLM}.stream_chat", stream, beside="KarakuriLLM.stream_chat")
