"""Several calls in one: `batch`, `generate` and their siblings give a local model as many as it answers together.

LangChain's own batch has as many threads as the machine has cores and four more, and its abatch starts all calls at
once; `generate` makes them one after another. A model in this process answers `max_batch` together, and refuses those
that its queue does not hold.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any
from uuid import UUID

from langchain_core.callbacks import Callbacks
from langchain_core.language_models import LanguageModelInput
from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import LLMResult
from langchain_core.runnables import RunnableConfig
from langchain_core.runnables.config import get_config_list, get_executor_for_config
from langchain_core.runnables.utils import gather_with_concurrency
from typing_extensions import override

from .errors import OptionError

__all__ = ["Batches"]

_Configs = RunnableConfig | Sequence[RunnableConfig] | None


class Batches(BaseChatModel):
    """A chat model that may know how many calls it answers together."""

    def _together(self) -> int | None:
        """How many; None leaves it to LangChain."""
        return None

    def _configs(self, config: _Configs, count: int) -> Any:
        """With `max_concurrency`, where the caller says nothing of it.

        Raises:
            OptionError: it is below 1; LangChain would wait for ever in `abatch`.
        """
        configs = get_config_list(config, count)
        asked = configs[0].get("max_concurrency") if configs else None  # LangChain asks the first one
        if asked is not None and asked < 1:
            raise OptionError(f"max_concurrency must be at least 1, got {asked}")
        if configs and asked is None and (most := self._together()) is not None:
            configs[0]["max_concurrency"] = most
        return configs

    @override
    def batch(
        self,
        inputs: list[LanguageModelInput],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> list[AIMessage]:
        configs = self._configs(config, len(inputs))
        return super().batch(inputs, configs, return_exceptions=return_exceptions, **kwargs)

    @override
    async def abatch(
        self,
        inputs: list[LanguageModelInput],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> list[AIMessage]:
        configs = self._configs(config, len(inputs))
        return await super().abatch(inputs, configs, return_exceptions=return_exceptions, **kwargs)

    @override
    def batch_as_completed(
        self, inputs: Sequence[LanguageModelInput], config: _Configs = None, **kwargs: Any
    ) -> Iterator[tuple[int, Any]]:
        return super().batch_as_completed(inputs, self._configs(config, len(inputs)), **kwargs)

    @override
    def abatch_as_completed(
        self, inputs: Sequence[LanguageModelInput], config: _Configs = None, **kwargs: Any
    ) -> AsyncIterator[tuple[int, Any]]:
        return super().abatch_as_completed(inputs, self._configs(config, len(inputs)), **kwargs)

    @override
    def generate(
        self,
        messages: list[list[BaseMessage]],
        stop: list[str] | None = None,
        callbacks: Callbacks = None,
        *,
        run_id: UUID | None = None,
        **kwargs: Any,
    ) -> LLMResult:
        one_call = super().generate
        if len(messages) < 2 or (most := self._together()) is None:
            return one_call(messages, stop, callbacks, run_id=run_id, **kwargs)

        def call(number: int) -> LLMResult:
            return one_call([messages[number]], stop, callbacks, run_id=None if number else run_id, **kwargs)

        with get_executor_for_config({"max_concurrency": most}) as pool:
            return self._joined([*pool.map(call, range(len(messages)))])

    @override
    async def agenerate(
        self,
        messages: list[list[BaseMessage]],
        stop: list[str] | None = None,
        callbacks: Callbacks = None,
        *,
        run_id: UUID | None = None,
        **kwargs: Any,
    ) -> LLMResult:
        one_call = super().agenerate
        most = self._together()
        if len(messages) < 2 or most is None:
            return await one_call(messages, stop, callbacks, run_id=run_id, **kwargs)

        async def call(number: int) -> LLMResult | Exception:
            try:
                return await one_call([messages[number]], stop, callbacks, run_id=None if number else run_id, **kwargs)
            except Exception as error:  # noqa: BLE001  # the others end first, as LangChain has it
                return error

        done = await gather_with_concurrency(most, *map(call, range(len(messages))))
        for failed in (one for one in done if isinstance(one, Exception)):
            raise failed
        return self._joined(done)

    def _joined(self, results: Sequence[LLMResult]) -> LLMResult:
        """As if it had been one call."""
        whole = LLMResult(
            generations=[one for result in results for one in result.generations],
            llm_output=self._combine_llm_outputs([result.llm_output for result in results]),
        )
        runs = [run for result in results for run in result.run or []]
        whole.run = runs or None
        return whole
