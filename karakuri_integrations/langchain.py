"""ChatKarakuri: LangChain's chat model interface over a Provider.

Knows LangChain's hooks, fields, traces and cache keys. Messages become values in `_langchain_messages`, fields are
checked in `_langchain_fields`, several calls at once are `_langchain_batches`', tools and calls `_langchain_tools`',
structured output is `_langchain_structured`'s, errors become langchain-core's in `_langchain_errors`; which engine
answers, attributes and prompts are the Provider's (`provider`).
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, closing
from typing import Any, Self, cast

try:
    import langchain_core  # noqa: F401  # asked first, so that what is missing is named with its extra
except ModuleNotFoundError as error:
    from .errors import MissingDependencyError

    raise MissingDependencyError(
        'karakuri_integrations.langchain needs langchain-core: pip install "karakuri-integrations[langchain]"'
    ) from error

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import LangSmithParams, LanguageModelInput
from langchain_core.language_models.model_profile import ModelProfile
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.outputs import ChatGenerationChunk, ChatResult
from langchain_core.prompt_values import PromptValue
from langchain_core.runnables import Runnable, RunnableConfig
from langchain_core.tools import BaseTool
from langchain_core.utils import secret_from_env
from pydantic import ConfigDict, Field, PrivateAttr, SecretStr, ValidationError, model_validator
from typing_extensions import override

from . import __version__
from ._langchain_batches import Batches
from ._langchain_errors import core_errors
from ._langchain_fields import (
    NOT_PICKLED,
    OUTPUT_FIELDS,
    call_options,
    checked_fields,
    first_error,
    model_profile,
    sampling_value,
    shown_attributes,
    shown_tools,
)
from ._langchain_messages import PROVIDER, to_chunks, to_prompt_value, to_result, to_values
from ._langchain_structured import bound_options, parsed_by
from ._langchain_tools import as_openai, check_bound
from .attributes import AttributeLike, AttributePolicy, SteeringAttributes
from .closing import Owned, aclosing
from .conversation import Sampling
from .errors import KarakuriError, OptionError
from .generation import Engine
from .provider import SAMPLING_FIELDS, EngineFields, Provider, check_options

__all__ = ["ChatKarakuri"]

_ENGINE_FIELDS = tuple(EngineFields.__dataclass_fields__)
#: What LangChain binds beside a call's options and takes out again before the call.
_TRACED = "ls_structured_output_format"


class ChatKarakuri(Batches):
    """KARAKURI LM Chat with its nine steering dials, as a LangChain chat model.

    Setup:
        ```bash
        pip install "karakuri-integrations[langchain,local]"
        ```

        No key and no network are needed: `ChatKarakuri()` runs a small demo model that ships with the package. For real
        use name a KARAKURI model; it is loaded in 4 bits on the first call, once per process.

    Key init args: completion params:
        attributes: SteeringAttributes | Mapping[str, int] | None
            The dials, integers 0 to 4: helpfulness, correctness, coherence, complexity, verbosity, quality (4 when not
            named), toxicity, humor, creativity (0 when not named).
        temperature: float
            0.0 (the default) is greedy; otherwise above 0.
        top_p: float
            Above 0, at most 1 (the default: off).
        top_k: int
            0 is off (the default).
        min_p: float
            0 to 1; 0 is off (the default).
        repetition_penalty: float
            Above 0; 1 is off (the default).
        max_tokens: int | None
            Tokens of the reply, at least 1; None (the default) is the rest of the context window.
        stop: str | list[str] | None
            Texts at which the reply ends; they are not part of it. A call's `stop` replaces them. Also
            `stop_sequences`.
        seed: int | None
            At least 0; None (the default) draws a fresh one when temperature is above 0.
        timeout: float | None
            Seconds for one whole call. Also `request_timeout`.
        cache_scope: str | None
            What was read of prompts is reused among calls of one scope only, such as a tenant's. Local models and vLLM.

        Each of these can also be set per call, as in
        `llm.invoke(messages, attributes={"verbosity": 1}, max_tokens=50)`; `bind` and `configurable_fields` work too.

    Key init args: model and policy params:
        model: str | None
            A KARAKURI model id or a local folder; None is the embedded demo model. Also `model_name`.
        engine: Engine | None
            An engine of your own, such as `ScriptedEngine`, in place of `model`. A model with an engine cannot be
            loaded from LangChain's serialised form (`langchain_core.load.load` says so).
        template: str | None
            The prompt family, where the model's id does not tell.
        quantization, device, revision, cache_dir, local_files_only, context_window
            How a local model is loaded; see `LocalEngine`. `context_window` is in tokens.
        template_tokens: "escape" | "reject" | "allow"
            What happens to texts such as `[INST]` in messages; the default escapes them reversibly.
        message_attributes: "allow" | "clamp" | "ignore" | "error"
            What attributes on single messages may do; they can come from untrusted clients.
        tool_language: "auto" | "ja" | "en"
            The language of the words that tell the model of its tools; the default follows the conversation.
        attribute_bounds: Mapping[str, tuple[int, int]] | None
            Lowest and highest value per dial for attributes on messages, such as `{"toxicity": (0, 1)}`; "clamp" needs
            them.
        overflow: "error" | "drop_oldest_turns"
            What happens to a conversation that does not fit the window. Dropped messages are listed (by index) in
            `response_metadata["dropped_messages"]`.

    Key init args: remote endpoint params:
        base_url: str | list[str] | None
            The address of a server, with or without `/v1`; a list shares the calls over several. A user name and
            password in it are sent as Basic authorisation and shown nowhere.
        server: str | None
            The kind of server, such as "vllm" or "llama.cpp"; None asks it once.
        api_key: SecretStr | None
            Sent as a Bearer token; read from `KARAKURI_API_KEY` where it is not given. Never pickled. A local model
            takes it, as frameworks pass it to every model, and does nothing with it; beside base_url=None it is an
            error.
        default_headers: dict[str, str] | None
            Sent with every request; the values are kept as secrets, and never pickled.
        max_retries: int
            Further tries (2 by default) while the reply has not begun.
        timeouts: dict[str, float] | None
            Seconds, of `connect` (5), `pool` (10), `first_token` (600) and `idle` between two events (120); `timeout`
            is the whole call's.
        tokenizer: str | None
            A tokenizer.json, its folder or a hub id: prompts go as token ids where the server takes them, and
            tokens are counted here.
        extra_body: dict[str, Any] | None
            Merged into every request's body.
        http_client, http_async_client
            A urllib3.PoolManager and an aiohttp.ClientSession of your own.

    Instantiate:
        ```python
        from karakuri_integrations.langchain import ChatKarakuri

        llm = ChatKarakuri(attributes={"verbosity": 1}, max_tokens=200)
        ```

    Invoke:
        ```python
        messages = [("system", "You are a travel guide."), ("user", "What should I see in Kyoto?")]
        llm.invoke(messages)
        ```

    Stream:
        ```python
        for chunk in llm.stream("What should I see in Kyoto?"):
            print(chunk.text, end="", flush=True)
        ```

    Async:
        ```python
        await llm.ainvoke("What should I see in Kyoto?")

        async for chunk in llm.astream("What should I see in Kyoto?"):
            print(chunk.text, end="", flush=True)
        ```

        Natively async: no thread is used per call, and cancelling the task stops the model.

    Tool calling:
        ```python
        from pydantic import BaseModel, Field


        class GetWeather(BaseModel):
            '''Get the current weather in a given place.'''

            place: str = Field(description="The city, such as Kyoto")


        llm_with_tools = llm.bind_tools([GetWeather])
        reply = llm_with_tools.invoke("How is the weather in Kyoto?")
        reply.tool_calls  # [{"name": "GetWeather", "args": {"place": "Kyoto"}, "id": "call_...", "type": "tool_call"}]
        ```

        Also functions, TypedDict classes, BaseTools, dicts in OpenAI's or Anthropic's form and JSON schemas with a
        title. The model was never taught tools: they are described to it in the prompt, and the grammar of their
        schemas holds its calls to them. `tool_choice` is "auto" (text or calls), "any", "none" or a tool's name;
        `parallel_tool_calls=False` allows one call. A call that max_tokens cut stands in `invalid_tool_calls`, with
        its text, and finish_reason is "length". In a stream the text comes as `tool_call_chunks`; that of a cut call
        then ends with a bracket that closes nothing, so that LangChain does not complete and run it.

    Structured output:
        ```python
        class Joke(BaseModel):
            '''Joke to tell user.'''

            setup: str = Field(description="The setup of the joke")
            punchline: str = Field(description="The punchline to the joke")


        structured_llm = llm.with_structured_output(Joke)
        structured_llm.invoke("Tell me a joke about cats")  # Joke(setup=..., punchline=...)
        ```

        See `ChatKarakuri.with_structured_output` for the methods and schemas.

    JSON mode:
        ```python
        json_llm = llm.bind(response_format={"type": "json_object"})
        json_llm.invoke("Return a JSON object with a key random_ints and 10 random integers").text
        ```

    Token usage:
        ```python
        llm.invoke("Hello").usage_metadata  # {"input_tokens": ..., "output_tokens": ..., "total_tokens": ...}

        from langchain_core.messages import HumanMessage

        llm.get_num_tokens_from_messages([HumanMessage("Hello")])  # of the real prompt, dials included
        ```

        Counts are exact. In a stream they stand on the last chunk.

    Response metadata:
        ```python
        llm.invoke("Hello").response_metadata
        # {"model_name": ..., "model_provider": "karakuri", "finish_reason": "stop",
        #  "attributes": {"helpfulness": 4, "correctness": 4, ...}}
        ```

        finish_reason is "stop", "length" or "tool_calls". `karakuri_escaped` counts template tokens that were escaped
        in messages, when there were any. In a stream the metadata stands on the last chunk.

    Steering:
        ```python
        llm = ChatKarakuri(attributes={"verbosity": 1})  # every turn
        llm.invoke(messages, attributes={"humor": 3})  # this call: a mapping changes the dials it names
        llm.invoke([HumanMessage("Why?", additional_kwargs={"attributes": {"complexity": 0}})])  # this turn
        llm.render_prompt(messages)  # the exact prompt; nothing is loaded
        ```

        A message's own values win over the call's, these over the constructor's. A SteeringAttributes object sets all
        nine dials. Past replies keep the values they were answered with (their `response_metadata["attributes"]`), so a
        conversation is never re-steered. A message's `name` is not rendered.

    Raises:
        OptionError: an unknown or out-of-range field or call option.
        AttributeConfigError: an unknown dial or a value that is not an integer 0 to 4.
        MessageError: a conversation that cannot be rendered; `.index` says where.
        UnknownModelError: no prompt family is known for the model.
        ModelFolderError: the folder that is named as the model is not there, or holds no model.
        ToolDefinitionError: a tool, tool choice or response format that is not of its form.
        UnsupportedSchemaError: a JSON schema that no grammar can hold a reply to.
        UnsupportedError: strict=True with a server that has no grammars.
        ContextOverflowError: the prompt, or the prompt and max_tokens, exceed the window.
        EngineError: loading or generating failed; `.partial_text` holds what had arrived.
        RemoteError: the endpoint failed; its subclasses say how, `.status` and `.server_text` what it said.

        All are in `karakuri_integrations.errors` and are langchain-core's `ModelError`s as well.
    """

    model_config = ConfigDict(
        arbitrary_types_allowed=True, extra="forbid", hide_input_in_errors=True, protected_namespaces=()
    )

    model: str | None = None
    engine: Any = None
    base_url: str | list[str] | None = None
    api_key: SecretStr | None = Field(default_factory=secret_from_env("KARAKURI_API_KEY", default=None))
    max_retries: int = Field(default=2, ge=0, strict=True)
    timeout: float | None = None
    attributes: dict[str, int] | None = None
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    max_tokens: int | None = None
    stop: list[str] | None = None
    seed: int | None = None
    cache_scope: str | None = None
    # None, not False: copies made by configurable_fields set every field, and langchain-core reads a False that was set
    # as "never stream".
    streaming: bool | None = None
    context_window: int | None = Field(default=None, strict=True)
    template: str | None = None
    template_tokens: str = "escape"
    tool_language: str = "auto"
    message_attributes: str = "allow"
    attribute_bounds: dict[str, tuple[int, int]] | None = None
    overflow: str = "error"
    quantization: str = "nf4"
    device: str = "auto"
    revision: str | None = None
    cache_dir: str | None = None
    local_files_only: bool = False
    server: str | None = None
    default_headers: dict[str, SecretStr] | None = Field(default=None, repr=False)
    timeouts: dict[str, float] | None = None
    tokenizer: str | None = None
    extra_body: dict[str, Any] | None = None
    http_client: Any = Field(default=None, repr=False, exclude=True)
    http_async_client: Any = Field(default=None, repr=False, exclude=True)

    _open: AsyncExitStack | None = PrivateAttr(default=None)

    def __init__(self, **fields: Any) -> None:
        with core_errors():
            values = checked_fields(fields, type(self).model_fields)
            try:
                super().__init__(**values)
            except ValidationError as error:
                raise OptionError(first_error(error)) from None
            self._provider().checked_engine()

    @model_validator(mode="after")
    def _set_karakuri_version(self) -> Self:
        self._add_version("karakuri-integrations", __version__)
        return self

    # --- one call ---

    def _provider(self) -> Provider:
        """Made anew for each call, so that a field that was set later holds and is checked."""
        with core_errors():
            return Provider(
                EngineFields(**{name: getattr(self, name) for name in _ENGINE_FIELDS}),
                SteeringAttributes.overlay(self.attributes),
                Sampling(**{name: sampling_value(name, getattr(self, name)) for name in SAMPLING_FIELDS}),
                AttributePolicy(cast("Any", self.message_attributes), self.attribute_bounds),
                cast("Any", self.template_tokens),
                cast("Any", self.overflow),
                self.tool_language,
            )

    @override
    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        with core_errors():
            provider = self._provider()
            call = provider.prepare(to_values(messages, provider), call_options(stop, kwargs))
            with closing(cast("Any", call.stream(whole=True))) as deltas:
                return to_result(list(deltas), call)

    @override
    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        with core_errors():
            provider = self._provider()
            call = await provider.aprepare(to_values(messages, provider), call_options(stop, kwargs))
            async with aclosing(cast("Any", call.astream(whole=True))) as deltas:
                return to_result([delta async for delta in deltas], call)

    @override
    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        with core_errors():
            provider = self._provider()
            call = provider.prepare(to_values(messages, provider), call_options(stop, kwargs))
            with closing(cast("Any", call.stream())) as deltas:
                for delta in deltas:
                    yield from to_chunks(delta, call, first_index=self._first_index)

    @override
    def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        chunks = self._achunks(messages, stop, kwargs)
        if self._open is None:
            return chunks
        own = Owned[ChatGenerationChunk](chunks)
        self._open.push_async_callback(own.aclose)
        return own

    async def _achunks(
        self, messages: list[BaseMessage], stop: list[str] | None, kwargs: Mapping[str, Any]
    ) -> AsyncGenerator[ChatGenerationChunk, None]:
        with core_errors():
            provider = self._provider()
            call = await provider.aprepare(to_values(messages, provider), call_options(stop, kwargs))
            async with aclosing(cast("Any", call.astream())) as deltas:
                async for delta in deltas:
                    for chunk in to_chunks(delta, call, first_index=self._first_index):
                        yield chunk

    @property
    def _first_index(self) -> int:
        """Of calls in a stream. As content blocks they are counted with the text, which langchain-core gives 0."""
        return 1 if self.output_version == "v1" else 0

    @override
    async def astream(
        self,
        input: LanguageModelInput,
        config: RunnableConfig | None = None,
        *,
        stop: list[str] | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[AIMessageChunk]:
        # langchain-core leaves `_astream` to the garbage collector when its own stream is closed; a copy of this model,
        # which belongs to this one stream, hands it over, so that closing the stream has closed the engine's.
        own = self.model_copy()
        chunks = cast("Any", super(ChatKarakuri, own).astream(input, config, stop=stop, **kwargs))
        async with aclosing(chunks) as inner, AsyncExitStack() as own._open:
            async for chunk in inner:
                yield chunk

    @override
    def _together(self) -> int | None:
        try:
            return getattr(self._provider().engine(), "max_batch", None)
        except KarakuriError:  # each call raises it: its fallback answers, or it is among the results
            return None

    # --- tools and structured output ---

    @override
    def bind_tools(
        self,
        tools: Sequence[dict[str, Any] | type | Callable[..., Any] | BaseTool],
        *,
        tool_choice: str | bool | dict[str, Any] | None = None,
        strict: bool | None = None,
        parallel_tool_calls: bool | None = None,
        response_format: Any = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, AIMessage]:
        """The model with tools that it may call.

        Args:
            tools: functions, pydantic or TypedDict classes, BaseTools, dicts in OpenAI's or Anthropic's form, or JSON
                schemas with a title. They may be empty.
            tool_choice: "auto" or None (text or calls), "any", "required" or True (at least one call), "none" or False
                (no call), a tool's name, or OpenAI's dict with a name.
            strict: an error, instead of parsing what came, where the engine cannot hold a reply to the schemas.
            parallel_tool_calls: False allows one call per reply.
            response_format: what a reply that is no call must be: a schema of any kind, or OpenAI's dict.
            kwargs: further call options, such as attributes or max_tokens.

        A list whose schema has `uniqueItems` (a set) holds each item once. A local reply that could only repeat one is
        cut there, and a served one that does repeat one is in `invalid_tool_calls`.

        Raises:
            ToolDefinitionError: something here is not of its form.
            OptionError: an unknown option.
        """
        given = {
            "tools": list(tools) if isinstance(tools, tuple) else tools,
            "tool_choice": tool_choice,
            "strict": strict,
            "parallel_tool_calls": parallel_tool_calls,
            "response_format": response_format,
        }
        structured = {name: kwargs.pop(name) for name in (_TRACED,) if name in kwargs}
        with core_errors():
            options = as_openai(check_options({**given, **kwargs}))
            check_bound(options, self.tool_language)
        return self.bind(**options, **structured)

    @override
    def with_structured_output(
        self,
        schema: dict[str, Any] | type | None = None,
        *,
        method: str = "json_schema",
        include_raw: bool = False,
        strict: bool | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, Any]:
        """The model, answering with a value of a schema.

        Args:
            schema: a pydantic class (its instances come back), or a TypedDict class, a JSON schema or a tool in
                OpenAI's form (dicts come back). None only with "json_mode".
            method: "json_schema" (the reply is JSON of the schema), "function_calling" (a forced call), or "json_mode"
                (as "json_schema"; without a schema any JSON object).
            include_raw: a dict with "raw" (the AIMessage), "parsed" and "parsing_error" instead of the value; a reply
                that cannot be read then raises nothing.
            strict: an error, instead of parsing what came, where the engine cannot hold a reply to the schema.
            kwargs: further call options, such as attributes or max_tokens.

        In a stream, dicts come as they grow and instances when they are whole. A reply that was cut raises
        langchain-core's OutputParserException, whose `llm_output` is the reply. Sets are as in `bind_tools`; where a
        served reply repeats an item, pydantic makes a set of it all the same.

        Raises:
            OptionError: an unknown method or option.
            ToolDefinitionError: a schema that is none.
        """
        with core_errors():
            options, parser = bound_options(schema, method, strict)
            shown = {name: options.pop(name) for name in (_TRACED,) if name in options}
            double = sorted(kwargs.keys() & options.keys())
            if double:
                raise OptionError(f'{double[0]}= is what method="{method}" sets; leave it out')
            options = check_options({**kwargs, **options})
            check_bound(options, self.tool_language)
        return parsed_by(self.bind(**options, **shown), parser, include_raw=include_raw)

    # --- prompts and tokens ---

    @override
    def _convert_input(self, model_input: LanguageModelInput) -> PromptValue:
        with core_errors():
            return to_prompt_value(model_input)

    def render_prompt(
        self,
        messages: LanguageModelInput,
        attributes: AttributeLike | None = None,
        tools: Sequence[Any] | None = None,
        **options: Any,
    ) -> str:
        """The exact prompt text of a call, leading `<s>` included; no weights are loaded.

        Args:
            messages: what `invoke` takes.
            attributes: the call's attributes.
            tools: what `bind_tools` takes.
            options: further call options that show in a prompt, such as tool_choice and response_format.

        Raises:
            MessageError, AttributeConfigError, ToolDefinitionError, OptionError: as a call would.
        """
        with core_errors():
            options = call_options(None, {**options, "attributes": attributes, "tools": tools})
            provider = self._provider()
            return provider.render(to_values(to_prompt_value(messages).to_messages(), provider), options).text

    @override
    def get_num_tokens_from_messages(self, messages: Sequence[BaseMessage], tools: Sequence[Any] | None = None) -> int:
        """Tokens of the real prompt of these messages, dials and `<s>` included; loads a tokenizer at most.

        A part of a conversation, which ends with a reply or has only system messages, is counted too, as
        `trim_messages` needs it; an empty list is 0.
        """
        with core_errors():
            options = call_options(None, {"tools": tools})
            provider = self._provider()
            return provider.count_tokens(to_values(to_prompt_value(messages).to_messages(), provider), options)

    @override
    def get_token_ids(self, text: str) -> list[int]:
        """Ids of plain text in the model's own tokenizer, without `<s>`; loads a tokenizer at most."""
        if self.custom_get_token_ids is not None:
            return self.custom_get_token_ids(text)
        with core_errors():
            return self._provider().engine().token_ids(text)

    def close(self) -> None:
        """Free the loaded model, for everyone who shares it; the next call loads it again."""
        with core_errors():
            self._provider().engine().close()

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> Self:
        memo = {} if memo is None else memo
        for shared in (self.engine, self.http_client, self.http_async_client):
            memo[id(shared)] = shared  # weights and connections are shared, never copied
        return super().__deepcopy__(memo)

    def __getstate__(self) -> dict[Any, Any]:
        """As pydantic pickles, without key, headers and clients: no secret leaves the process in a pickle."""
        state = super().__getstate__()
        state["__dict__"] = {**state["__dict__"], **dict.fromkeys(NOT_PICKLED)}
        return state

    def __setstate__(self, state: dict[Any, Any]) -> None:
        super().__setstate__(state)
        self.__dict__["api_key"] = secret_from_env("KARAKURI_API_KEY", default=None)()

    # --- what LangChain reports, caches and stores ---

    @property
    @override
    def _llm_type(self) -> str:
        return "karakuri-chat"

    @property
    @override
    def _identifying_params(self) -> dict[str, Any]:
        """Everything that can change a reply; no secret and no message."""
        provider = self._provider()
        engine = provider.engine()
        return {
            "model": provider.model_at_hand(),
            "engine": _described(engine),
            "attributes": dict(provider.own_attributes),
            **{name: getattr(self, name) for name in (*SAMPLING_FIELDS, *OUTPUT_FIELDS)},
        }

    @override
    def _get_invocation_params(self, stop: list[str] | None = None, **kwargs: Any) -> dict[str, Any]:
        params = super()._get_invocation_params(stop=stop, **kwargs)
        params["stop"] = self.stop if stop is None else stop
        if kwargs.get("attributes") is not None:
            params["attributes"] = shown_attributes(self.attributes, kwargs["attributes"])
        params.update(shown_tools(kwargs))
        return params

    @override
    def _get_llm_string(self, stop: list[str] | None = None, **kwargs: Any) -> str:
        # langchain-core's key is the serialised model, taken once: it leaves out engines (they are no JSON) and does
        # not see a field that was set later.
        params = self._get_invocation_params(stop=stop, **kwargs)
        identity = getattr(self._provider().engine(), "identity", None)
        if identity is not None:  # what a server says of its model is not known before the first call
            params |= {"engine": identity, "model": kwargs.get("model", self.model)}
        return str(sorted({**params, "source": self.model}.items()))

    @override
    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        params = super()._get_ls_params(stop=self.stop if stop is None else stop, **kwargs)
        params["ls_provider"] = PROVIDER
        if not isinstance(kwargs.get("model"), str):
            params["ls_model_name"] = self._provider().model_at_hand() or ""
        return params

    @override
    def _resolve_model_profile(self) -> ModelProfile | None:
        provider = self._provider()
        engine = provider.engine()
        # Of an unknown hub model only a download would tell; nothing is downloaded at construction.
        window = engine.context_window if provider.family_at_hand() else self.context_window
        return model_profile(provider.model_at_hand() or "", window)

    @classmethod
    @override
    def is_lc_serializable(cls) -> bool:
        return True

    @property
    @override
    def lc_secrets(self) -> dict[str, str]:
        return {"api_key": "KARAKURI_API_KEY"}


def _described(engine: Engine) -> str:
    """An engine in a trace or cache key: what it says of itself, never an address in memory."""
    return type(engine).__name__ if type(engine).__repr__ is object.__repr__ else repr(engine)
