"""KarakuriLLM: KARAKURI LM Chat as a LlamaIndex LLM.

Knows LlamaIndex's contract: fields, the eight entry points, events, Settings. Messages and responses are mapped in
`_llama_index_messages`, tools in `_llama_index_tools`, structured output in `_llama_index_structured`; prompts,
attributes and engines are `provider`'s and below.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from typing import Any, Final

try:
    import llama_index.core  # noqa: F401  # asked first, so that what is missing is named with its extra
except ModuleNotFoundError as error:
    from .errors import MissingDependencyError

    raise MissingDependencyError(
        'karakuri_integrations.llama_index needs llama-index-core: pip install "karakuri-integrations[llama-index]"'
    ) from error

from llama_index.core.base.llms.generic_utils import messages_to_prompt as generic_messages_to_prompt
from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    ChatResponseAsyncGen,
    ChatResponseGen,
    CompletionResponse,
    CompletionResponseAsyncGen,
    CompletionResponseGen,
    LLMMetadata,
)
from llama_index.core.llms.callbacks import llm_chat_callback, llm_completion_callback
from llama_index.core.llms.llm import ToolSelection, default_completion_to_prompt
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, SecretStr, ValidationError, field_serializer

from ._llama_index_calls import Plan, PreparesTools, acloses, acollect, astream, closes, collect, stream
from ._llama_index_fields import (
    NOT_PICKLED,
    can_pickle,
    checked_address,
    checked_path,
    checked_text,
    first_error,
    plain_attributes,
    provider_of,
    secret,
    usable_window,
)
from ._llama_index_messages import Answer, to_messages, to_values
from ._llama_index_structured import StructuredPredict
from ._llama_index_tools import checked_selections, offered, without_calls
from .attributes import AttributeLike, PolicyMode, SteeringAttributes
from .conversation import ToolLanguage
from .errors import OptionError
from .provider import (
    OverflowPolicy,
    Provider,
    check_address,
    check_options,
    lasting_paths,
    own_first,
    unknown_option,
    without_unset,
)
from .templates import TemplateTokens

__all__ = ["KarakuriLLM"]

#: What `configure_settings` changes. The public getters would build OpenAI's defaults only to look at them.
_SETTINGS: Final = ("_llm", "_prompt_helper", "_chat_prompt_helper")


def _limits(helper: object, *names: str) -> dict[str, Any]:
    return {} if helper is None else {name: getattr(helper, name) for name in names}


class KarakuriLLM(PreparesTools, StructuredPredict):
    """KARAKURI LM Chat in LlamaIndex, steered by nine attributes from 0 to 4.

    Install with `pip install "karakuri-integrations[llama-index,local]"`.

    Examples:
        ```python
        from llama_index.core.llms import ChatMessage
        from karakuri_integrations.llama_index import KarakuriLLM

        llm = KarakuriLLM(attributes={"verbosity": 1})   # the small demo model that ships with the package
        print(llm.complete("東京の名物は何ですか。").text)

        messages = [ChatMessage(role="system", content="Answer briefly."), ChatMessage(role="user", content="Hello!")]
        for item in llm.stream_chat(messages, attributes={"humor": 3}):   # for this call only
            print(item.delta, end="")
        ```

        The real model, in 4 bits on this machine: `KarakuriLLM(model="karakuri-ai/karakuri-lm-70b-chat-v0.1")`; on a
    server: the same with `base_url="http://host:8000/v1"`.
        One loaded model for both frameworks: `KarakuriLLM(engine=engine)`.

    **Attributes.** Weakest first: the constructor's, the call's, the user message's own (`additional_kwargs`, flat or
    under "attributes"; `message_attributes` and `attribute_bounds` say what is allowed). A mapping changes the keys
    it has, a SteeringAttributes object replaces all nine. Past turns keep the values they were answered with: the
    reply's message carries them as a record that memories keep. ContextChatEngine, CondensePlusContextChatEngine,
    CondenseQuestionChatEngine and the ReAct agent rebuild past turns from their text; for those turns the
    constructor's values hold.

    **Responses.** `raw` of a whole response and of a stream's last item is plain JSON: `model`, `usage`
    (`prompt_tokens`, `completion_tokens`, `total_tokens`, exact), `finish_reason` ("stop", "length" or "tool_calls"),
    `attributes` (the nine values used). The counts stand in the response's `additional_kwargs` too. Stream items carry
    the text so far and the new piece in `delta`.

    **Prompts.** Chat and complete write the model's own template; `render_prompt` shows it. `complete(prompt,
    formatted=True)` sends the prompt as it is and honours the control tokens in it, so never pass it text from
    others; `<s>` is put before it where it lacks that. A `messages_to_prompt` or `completion_to_prompt` of your own
    replaces the template: what it returns is sent as such a formatted prompt, and attributes are then its business.

    **Tools.** `chat_with_tools` and the agents describe tools in the prompt and hold calls to the tools' schemas; so do
    `chat(messages, tools=[...], tool_choice=...)` and `response_format=` for replies that are JSON. A call that the
    reply's length cut is listed in the message's `additional_kwargs["invalid_tool_calls"]` and never run.
    `structured_predict` and `as_structured_llm` hold the reply to the class's schema. `tool_language` is that of the
    words around tools ("ja", "en"; "auto" follows the conversation). For Japanese prompts and parsers of LlamaIndex's
    agents, selectors and evaluators see `karakuri_integrations.llama_index_ja`.

    **Sizes.** `metadata.context_window`, which LlamaIndex's prompt helpers fill, is the window less one turn's
    template. `metadata.num_output` is `max_tokens`, or without it a sixteenth of the window. Call
    `configure_settings()` once, so that LlamaIndex counts with this model's tokenizer.

    Errors are those of `karakuri_integrations.errors`; none is swallowed or wrapped.

    Raises:
        OptionError: an unknown field (the near one is named), a value out of range, or fields that exclude each other.
        AttributeConfigError: attributes or bounds that are not valid.
        ModelFolderError: the folder that is named as the model is not there, or holds no model.
        UnknownModelError: an unknown `template`; a model of no known family is refused when it is first used.
        ToolDefinitionError: a tool, tool choice or response format that is not of the form that it must have.
        RemoteError: the endpoint failed; `.partial_text` holds what had arrived.
    """

    model_config = ConfigDict(
        arbitrary_types_allowed=True, extra="forbid", hide_input_in_errors=True, protected_namespaces=()
    )

    model: str | None = Field(default=None, description="Model id or folder; None is the model that ships here.")
    engine: Any = Field(default=None, repr=False, description="An engine that answers; excludes model and base_url.")
    base_url: str | list[str] | None = Field(
        default=None, description="The address of a server (also api_base), or several of the same model."
    )
    api_key: SecretStr | None = Field(
        default_factory=lambda: secret(os.environ.get("KARAKURI_API_KEY")),
        exclude=True,
        description="For remote endpoints only, or the environment variable KARAKURI_API_KEY.",
    )
    max_retries: int = Field(default=2, ge=0, description="Further tries, for remote endpoints only.")
    timeout: float | None = Field(default=None, description="Seconds for a whole call; None is without limit.")
    attributes: dict[str, int] | None = Field(default=None, description="Steering attributes, integers 0 to 4.")
    temperature: float = Field(default=0.0, description="0 is greedy.")
    top_p: float = Field(default=1.0, description="0 < top_p <= 1.")
    top_k: int = Field(default=0, description="0 is off.")
    min_p: float = Field(default=0.0, description="0 to 1; 0 is off.")
    repetition_penalty: float = Field(default=1.0, description="Above 0; 1 is off.")
    max_tokens: int | None = Field(default=None, description="Tokens of a reply; None is the rest of the window.")
    stop: str | list[str] | None = Field(default=None, description="Where a reply ends; a call's own replaces it.")
    seed: int | None = Field(default=None, description="Makes sampling reproducible.")
    cache_scope: str | None = Field(default=None, description="What was read is reused within one scope only.")
    context_window: int | None = Field(default=None, description="Tokens of prompt and reply; None is the model's.")
    template: str | None = Field(default=None, description="The prompt family, where the model id does not tell.")
    template_tokens: TemplateTokens = Field(default="escape", description="Template tokens in data.")
    message_attributes: PolicyMode = Field(default="allow", description="Whether messages may carry attributes.")
    attribute_bounds: dict[str, tuple[int, int]] | None = Field(
        default=None, description="What messages may ask for, as {name: (lowest, highest)}."
    )
    tool_language: ToolLanguage = Field(default="auto", description="Of the words around tools: auto, ja or en.")
    overflow: OverflowPolicy = Field(default="error", description="Too long a chat: error or drop_oldest_turns.")
    quantization: str = Field(default="nf4", description="The form of local weights.")
    device: str = Field(default="auto", description="Where local weights go.")
    revision: str | None = Field(default=None, description="Commit of the model to download.")
    cache_dir: str | None = Field(default=None, description="Where downloads are kept.")
    local_files_only: bool = Field(default=False, description="Never download.")
    server: str | None = Field(default=None, description="The kind of server, such as vllm; None asks it once.")
    default_headers: dict[str, SecretStr] | None = Field(
        default=None, repr=False, exclude=True, description="Sent with every request; the values are secrets."
    )
    timeouts: dict[str, float] | None = Field(
        default=None, description="Seconds: connect 5, pool 10, first_token 600, idle 120."
    )
    tokenizer: str | None = Field(default=None, description="A tokenizer.json or hub id for a remote model.")
    extra_body: dict[str, Any] | None = Field(default=None, description="Merged into every request's body.")
    http_client: Any = Field(default=None, repr=False, exclude=True, description="A urllib3.PoolManager.")
    http_async_client: Any = Field(default=None, repr=False, exclude=True, description="An aiohttp.ClientSession.")

    _model_window: int | None = PrivateAttr(default=None)

    def __init__(self, **data: Any) -> None:
        data = self._checked(data)
        provider = provider_of({**self._defaults(), **data})  # our errors, before pydantic would wrap them
        engine, given = provider.checked_engine(), data.get("context_window")
        if given is None:
            data["context_window"] = engine.context_window if provider.family_at_hand() else None
        try:
            super().__init__(**data)
        except ValidationError as error:
            raise OptionError(first_error(error)) from None
        self._model_window = self.context_window if given is None else None
        self._own_templates()

    @classmethod
    def _checked(cls, data: Mapping[str, Any]) -> dict[str, Any]:
        """The constructor's arguments with aliases resolved and copies made; unknown ones are refused."""
        data = dict(data)
        if "api_base" in data:
            if data.get("base_url") is not None:
                raise OptionError("base_url and api_base are the same option; give one of them")
            data["base_url"] = data.pop("api_base")
        for name in data:
            if name not in cls.model_fields:
                raise OptionError(unknown_option(name, (*own_first(cls.model_fields), "api_base")))
        data = without_unset(data, cls.model_fields)
        check_address(data)
        if isinstance(data.get("engine"), str):
            raise OptionError(
                f"engine: this configuration was saved with an engine of its own (for {data['engine']!r:.120}); "
                "give it again: from_dict(data, engine=...)"
            )
        if data.get("attributes") is not None:
            data["attributes"] = plain_attributes(data["attributes"])
        for name in ("model", "cache_dir", "tokenizer"):
            if data.get(name) is not None:
                checked_path(data[name], name)
        return {**data, **lasting_paths(data), **checked_address(data)}

    @classmethod
    def _defaults(cls) -> dict[str, Any]:
        return {name: field.get_default(call_default_factory=True) for name, field in cls.model_fields.items()}

    @classmethod
    def class_name(cls) -> str:
        return "karakuri_llm"

    @property
    def metadata(self) -> LLMMetadata:
        """Sizes and abilities; loads and contacts nothing."""
        provider = self._provider
        window = usable_window(provider)
        return LLMMetadata(
            context_window=window,
            num_output=self.max_tokens or max(1, (self.context_window or window) // 16),
            is_chat_model=True,
            is_function_calling_model=isinstance(self.messages_to_prompt, _OwnTemplate),
            model_name=provider.model_at_hand() or "unknown",
        )

    def to_payload(self) -> dict[str, Any]:
        """What traces show of this model: no secret, no path."""
        payload = super().to_payload()
        return {
            **payload,
            "model": payload["model_name"],
            "temperature": self.temperature,
            "attributes": dict(SteeringAttributes.overlay(self.attributes)),
        }

    # -- the eight entry points ------------------------------------------------------------------------------------

    @llm_chat_callback()
    def chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """Answer a conversation.

        Call options: attributes, model, the sampling fields, and tools, tool_choice, parallel_tool_calls,
        response_format and strict as OpenAI has them; `tools` may hold LlamaIndex's tools and functions too.
        """
        return collect(self._chat(messages, kwargs)).chat()

    @llm_chat_callback()
    async def achat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """As `chat`, natively async."""
        return (await acollect(self._chat(messages, kwargs))).chat()

    @llm_completion_callback()
    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        """Answer one user message; `formatted=True` sends the prompt as it is (unsafe for text from others)."""
        return collect(self._completion(prompt, formatted, kwargs)).completion()

    @llm_completion_callback()
    async def acomplete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        """As `complete`, natively async."""
        return (await acollect(self._completion(prompt, formatted, kwargs))).completion()

    @closes
    @llm_chat_callback()
    def stream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseGen:
        """As `chat`, item by item. Closing the generator stops the model."""
        return stream(self._chat(messages, kwargs), Answer.chat)

    @acloses
    @llm_chat_callback()
    async def astream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseAsyncGen:
        """As `stream_chat`, natively async: `async for item in await llm.astream_chat(messages)`."""
        return await astream(self._chat(messages, kwargs), Answer.chat)

    @closes
    @llm_completion_callback()
    def stream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponseGen:
        """As `complete`, item by item. Closing the generator stops the model."""
        return stream(self._completion(prompt, formatted, kwargs), Answer.completion)

    @acloses
    @llm_completion_callback()
    async def astream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponseAsyncGen:
        """As `stream_complete`, natively async: `async for item in await llm.astream_complete(prompt)`."""
        return await astream(self._completion(prompt, formatted, kwargs), Answer.completion)

    # -- what this class has beside LlamaIndex's contract ----------------------------------------------------------

    def render_prompt(
        self, messages: object, attributes: AttributeLike | None = None, tools: Sequence[Any] | None = None
    ) -> str:
        """The exact prompt text in the model's template; no engine is needed and nothing is loaded.

        Args:
            messages: text, a ChatMessage, or a list of ChatMessages, dicts and texts.
            attributes: as a call's option.
            tools: LlamaIndex tools, functions or OpenAI's form, as a call's option.
        """
        provider, options = self._provider, self._shown(attributes, tools)
        return provider.render(to_values(to_messages(messages), provider), options).text

    def count_tokens(
        self, messages: object, attributes: AttributeLike | None = None, tools: Sequence[Any] | None = None
    ) -> int:
        """Tokens of the prompt as it would be sent; loads a tokenizer at most."""
        provider, options = self._provider, self._shown(attributes, tools)
        return provider.count_tokens(to_values(to_messages(messages), provider), options)

    @staticmethod
    def _shown(attributes: AttributeLike | None, tools: Sequence[Any] | None) -> dict[str, Any]:
        return offered(check_options({"attributes": attributes, "tools": tools}))[0]

    def configure_settings(self) -> AbstractContextManager[object]:
        """Set LlamaIndex's global Settings to this model: its llm, tokenizer and the sizes in both prompt helpers.

        Nothing else is changed: not the callback manager, not the embedding model, not a node parser that exists
        already (it keeps the tokenizer it was made with). An existing prompt helper's chunk limits are kept.

        Returns:
            A context manager; leaving it puts back what was there before. Without `with`, the settings stay.
        """
        from llama_index import core
        from llama_index.core.indices.prompt_helper import ChatPromptHelper, PromptHelper
        from llama_index.core.utils import set_global_tokenizer

        settings, metadata = core.Settings, self.metadata
        before = {name: getattr(settings, name) for name in _SETTINGS}
        undo = ExitStack()
        undo.callback(setattr, core, "global_tokenizer", core.global_tokenizer)
        for name, value in before.items():
            undo.callback(setattr, settings, name, value)
        tokenizer = self._provider.engine().token_ids
        set_global_tokenizer(tokenizer)
        settings._llm = self  # the public setter would also replace this model's callback manager
        kept = _limits(before["_prompt_helper"], "chunk_overlap_ratio", "chunk_size_limit", "separator")
        settings.prompt_helper = PromptHelper.from_llm_metadata(metadata, tokenizer=tokenizer, **kept)
        kept = _limits(before["_chat_prompt_helper"], "chunk_overlap_ratio", "chunk_size_limit")
        settings.chat_prompt_helper = ChatPromptHelper.from_llm_metadata(metadata, tokenizer=tokenizer, **kept)
        return undo

    def close(self) -> None:
        """Free the loaded model, for everyone who shares it; the next call loads it again."""
        self._provider.engine().close()

    # -- tools -------------------------------------------------------------------------------------------------------

    def get_tool_calls_from_response(
        self, response: ChatResponse, error_on_no_tool_call: bool = True, **kwargs: Any
    ) -> list[ToolSelection]:
        """The calls of a response, or those so far of a streamed item; calls that were cut are left out of the end.

        Raises:
            ReplyFormatError: `error_on_no_tool_call` and there is none; it is a ValueError.
        """
        return checked_selections(response.message, needed=error_on_no_tool_call)

    # -- inside ------------------------------------------------------------------------------------------------------

    @property
    def _provider(self) -> Provider:
        """This model's configuration as it stands now: fields may be assigned at any time."""
        values = dict(self.__dict__)
        if self.context_window == self._model_window:
            values["context_window"] = None
        return provider_of(values)

    def _chat(self, messages: Sequence[ChatMessage], kwargs: Mapping[str, Any]) -> Plan:
        options, offer = offered(check_options(kwargs))
        provider, template = self._provider, self.messages_to_prompt
        if template is not None and not isinstance(template, _OwnTemplate):
            return Plan(provider, checked_text(template(messages), "messages_to_prompt"), options)
        return Plan(provider, to_values(to_messages(messages), provider), options, offer)

    def _completion(self, prompt: str, formatted: bool, kwargs: Mapping[str, Any]) -> Plan:
        options, provider, template = without_calls(check_options(kwargs)), self._provider, self.completion_to_prompt
        checked_text(prompt, "prompt")
        if formatted:
            return Plan(provider, prompt, options)
        if template is not None and not isinstance(template, _OwnTemplate):
            return Plan(provider, checked_text(template(prompt), "completion_to_prompt"), options)
        return Plan(provider, to_values(to_messages(prompt), provider), options)

    def _own_templates(self) -> None:
        """Where the user gave no template of their own, this model's stands in its place."""
        own: Any = _OwnTemplate(self)
        if self.messages_to_prompt is generic_messages_to_prompt or isinstance(self.messages_to_prompt, _OwnTemplate):
            self.messages_to_prompt = own
        if self.completion_to_prompt is default_completion_to_prompt or isinstance(
            self.completion_to_prompt, _OwnTemplate
        ):
            self.completion_to_prompt = own

    @field_serializer("engine")
    def _engine_id(self, engine: Any) -> str | None:
        return None if engine is None else str(engine.model)

    def __copy__(self) -> KarakuriLLM:
        copied = super().__copy__()
        copied._own_templates()
        return copied

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> KarakuriLLM:
        memo = {} if memo is None else memo
        for shared in (self.engine, self.http_client, self.http_async_client):
            memo[id(shared)] = shared  # weights and connections are shared, never copied
        copied = super().__deepcopy__(memo)
        copied._own_templates()
        return copied

    def __getstate__(self) -> dict[str, Any]:
        """As LlamaIndex pickles, but what it leaves out stays in this object, and the engine is never left out."""
        state: dict[Any, Any] = BaseModel.__getstate__(self)
        kept = {**self.__dict__, **dict.fromkeys(NOT_PICKLED)}
        state["__dict__"] = {name: value for name, value in kept.items() if can_pickle(name, value)}
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.__dict__["api_key"] = secret(os.environ.get("KARAKURI_API_KEY"))


class _OwnTemplate:
    """The default of both template fields: the model's own. A user's callable in its place is told apart by type."""

    def __init__(self, llm: KarakuriLLM | None = None) -> None:
        self._llm = llm

    def __call__(self, messages: object) -> str:
        if self._llm is None:
            raise RuntimeError("this template has lost its model")
        return self._llm.render_prompt(messages)

    def __repr__(self) -> str:
        return "<the model's own template>"

    def __deepcopy__(self, memo: dict[int, Any]) -> _OwnTemplate:
        return self  # its model's copy makes a new one

    def __reduce__(self) -> tuple[type[_OwnTemplate], tuple[()]]:
        return _OwnTemplate, ()
