"""What both framework classes share: fields to engine, call options to Sampling, messages to Prompt. No framework here.

A framework class keeps its own pydantic fields, builds a Provider from them per call (cheap: no I/O) and maps its own
messages to `Message` values and deltas back. The Provider decides everything in between, so that both classes agree.
"""

from __future__ import annotations

import difflib
import os
import threading
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from types import MappingProxyType
from typing import Any, Final, Literal, TypeAlias, cast

from .attributes import NAMES, PRESETS, AttributeLike, AttributePolicy, SteeringAttributes, carried_attributes
from .conversation import Delta, Message, Prompt, Request, Sampling, ToolCall
from .errors import AttributeConfigError, OptionError, UnsupportedError
from .generation import Engine, astream, stream
from .templates import TemplateTokens, family_of_model, parse_raw, render
from .threads import in_thread
from .tools import TOOL_OPTIONS, tooling_of

__all__ = [
    "CALL_OPTIONS",
    "SAMPLING_FIELDS",
    "Call",
    "EngineFields",
    "OverflowPolicy",
    "Provider",
    "authorised",
    "check_address",
    "lasting_paths",
    "open_engine",
    "own_first",
    "without_credentials",
    "without_unset",
]

OverflowPolicy: TypeAlias = Literal["error", "drop_oldest_turns"]

#: The fields of Sampling, which both classes take in the constructor and per call.
SAMPLING_FIELDS: Final = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "repetition_penalty",
    "seed",
    "stop",
    "max_tokens",
    "timeout",
    "cache_scope",
)

#: What only `LocalEngine` takes, named where it is given to one of the classes.
_LOCAL_ENGINE: Final = frozenset(
    {
        "max_batch",
        "max_queue",
        "prefix_cache_mib",
        "prompt_lookup",
        "draft_model",
        "draft_revision",
        "kv_cache_dtype",
        "cuda_graphs",
    }
)

#: The other fields of both classes that no engine needs.
_POLICIES: Final = (
    "attributes", "message_attributes", "attribute_bounds", "template_tokens", "overflow", "tool_language",
)  # fmt: skip

#: Everything a single call may set.
CALL_OPTIONS: Final = (*SAMPLING_FIELDS, "attributes", "model", *TOOL_OPTIONS)

#: Options of old function calling, which has become tool calling.
_OLD_OPTIONS: Final = ("functions", "function_call")


@dataclass(frozen=True)
class EngineFields:
    """The constructor fields that decide which engine answers; the same in both classes."""

    model: str | None = None
    engine: Engine | None = None
    base_url: str | Sequence[str] | None = None
    template: str | None = None
    quantization: str = "nf4"
    device: str = "auto"
    revision: str | None = None
    cache_dir: str | None = None
    local_files_only: bool = False
    context_window: int | None = None
    server: str | None = None
    api_key: Any = field(default=None, repr=False)
    default_headers: Mapping[str, Any] | None = field(default=None, repr=False)
    max_retries: int = 2
    timeouts: Mapping[str, float] | None = None
    tokenizer: str | None = None
    extra_body: Mapping[str, Any] | None = field(default=None, repr=False)
    http_client: Any = field(default=None, repr=False)
    http_async_client: Any = field(default=None, repr=False)


_OWN_FIELDS: Final = frozenset({*_POLICIES, *SAMPLING_FIELDS, *EngineFields.__dataclass_fields__})

#: Fields of remote endpoints that are wrong without one. api_key and max_retries exist for every model.
_REMOTE: Final = (
    "server", "default_headers", "timeouts", "tokenizer", "extra_body", "http_client", "http_async_client",
)  # fmt: skip

#: Fields of local models that are wrong with a remote endpoint.
_LOCAL: Final = ("quantization", "device", "revision", "cache_dir", "local_files_only")

#: What every saved configuration of a model holds.
_SAVED: Final = frozenset(EngineFields.__dataclass_fields__) - {
    "api_key", "default_headers", "http_client", "http_async_client",
}  # fmt: skip

#: What an engine that was given has decided already.
_EXCLUDED: Final = ("base_url", "model", "template", *_LOCAL, *_REMOTE)


def open_engine(fields: EngineFields) -> Engine:
    """The engine for these fields: the one given, a LocalEngine or a RemoteEngine. Nothing is loaded or contacted.

    Raises:
        OptionError: fields that exclude each other, such as `engine` and one that says which engine.
        UnknownModelError: no template is known for the model.
    """
    if fields.engine is not None:
        other = _first_set(fields, _EXCLUDED)
        if other:
            raise OptionError(f"engine= and {other}= exclude each other: the engine already says what answers")
        if not callable(getattr(fields.engine, "astream", None)):
            raise OptionError(
                f"engine must be an engine such as LocalEngine(...), got a {type(fields.engine).__name__}"
            )
        if fields.context_window is not None and fields.context_window != fields.engine.context_window:
            raise OptionError(
                f"context_window is {fields.context_window} and the engine's is {fields.engine.context_window}; "
                "leave it out with engine="
            )
        return fields.engine
    if fields.base_url is not None:
        return _remote_engine(fields)
    other = _first_set(fields, _REMOTE)
    if other:
        raise OptionError(f"{other}= belongs to a remote endpoint; give base_url= too, or leave it out")
    return _local_engine(fields)


def _first_set(fields: EngineFields, names: Sequence[str]) -> str | None:
    return next((name for name in names if getattr(fields, name) != getattr(EngineFields, name)), None)


def _remote_engine(fields: EngineFields) -> Engine:
    from .engines.remote import RemoteEngine

    other = _first_set(fields, _LOCAL)
    if other:
        raise OptionError(f"{other}= belongs to a local model; with base_url= the server decides it")
    return RemoteEngine(
        cast("str", fields.base_url),
        fields.model,
        server=fields.server,
        template=fields.template,
        api_key=_plain(fields.api_key),
        default_headers=_plain_headers(fields.default_headers),
        tokenizer=fields.tokenizer,
        context_window=fields.context_window,
        max_retries=fields.max_retries,
        timeouts=fields.timeouts,
        extra_body=fields.extra_body,
        http_client=fields.http_client,
        http_async_client=fields.http_async_client,
    )


def _plain_headers(headers: Any) -> Any:
    """The headers' texts; what is no mapping is refused by the engine."""
    return {name: _plain(value) for name, value in headers.items()} if isinstance(headers, Mapping) else headers


def _plain(secret: Any) -> str | None:
    """A secret's text, whether it is wrapped (as pydantic's SecretStr) or not."""
    unwrap = getattr(secret, "get_secret_value", None)
    return cast("str | None", unwrap() if unwrap is not None else secret)


def without_credentials(base_url: Any) -> tuple[Any, str | None]:
    """base_url as it may be shown, and the Authorization header of the user name and password in it."""
    from .engines.addresses import split_credentials

    return split_credentials(base_url)


def authorised(headers: Any, authorisation: str) -> dict[str, Any]:
    """default_headers with this Authorization."""
    if headers is not None and not isinstance(headers, Mapping):
        raise OptionError(f"default_headers must be a mapping, got a {type(headers).__name__}")
    return {**(headers or {}), "Authorization": authorisation}


def _local_engine(fields: EngineFields) -> Engine:
    from .engines.local import LocalEngine

    return LocalEngine(
        fields.model,
        template=fields.template,
        quantization=fields.quantization,
        device=fields.device,
        revision=fields.revision,
        cache_dir=fields.cache_dir,
        local_files_only=fields.local_files_only,
        context_window=fields.context_window,
    )


def without_unset(values: Mapping[str, Any], fields: Mapping[str, Any]) -> dict[str, Any]:
    """The constructor's arguments without those that are None where the (pydantic) field has a real default."""

    def unset(name: str, value: object) -> bool:
        return value is None and fields[name].default is not None and fields[name].default_factory is None

    return {name: value for name, value in values.items() if not unset(name, value)}


def check_address(given: Mapping[str, Any]) -> None:
    """Refuse an address that was given as None beside a key or retries: often an environment variable that is not set.

    The embedded model would answer in the server's place. Without the word base_url both exist for local models too,
    and all fields at once are another model's, as configurable_fields and from_dict pass them on.

    Raises:
        OptionError: names the fields.
    """
    if given.get("base_url", "") is not None or given.get("engine") is not None or given.keys() >= _SAVED:
        return
    other = next(
        (name for name in ("api_key", "max_retries", *_REMOTE) if _plain(given.get(name)) not in (None, "")), None
    )
    if other:
        raise OptionError(
            f"base_url is None and {other}= is for a server; is an environment variable not set? Give the address, "
            f"such as http://localhost:8000/v1, or leave out {other}= for a model in this process"
        )


def lasting_paths(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The constructor's model, cache_dir and tokenizer as text; what is a path here stays that one after os.chdir.

    An engine is made for each call, so a relative path would mean another folder later. A served model's id is never
    a path here, whatever folders there are.
    """
    served = fields.get("base_url") is not None or fields.get("engine") is not None
    looks = {"model": os.path.isdir, "tokenizer": os.path.exists, "cache_dir": lambda _: True}
    if served:
        del looks["model"]
    given = {name: fields[name] for name in ("model", "tokenizer", "cache_dir") if fields.get(name) is not None}
    return {name: _lasting(value, looks.get(name)) for name, value in given.items()}


def _lasting(value: Any, looks_so: Callable[[str], bool] | None) -> Any:
    text = os.fspath(value) if isinstance(value, os.PathLike) else value
    if not isinstance(text, str) or not text or looks_so is None:
        return text
    path = os.path.expanduser(text)
    a_path = isinstance(value, os.PathLike) or text.startswith((".", "~", os.sep)) or looks_so(path)
    return os.path.abspath(path) if a_path else text


_demo_told = threading.Lock()  # taken once and kept: calls that begin together tell it once


def _demo_notice() -> None:
    if not _demo_told.acquire(blocking=False):
        return
    from .engines.checkpoint import notify

    notify(
        "karakuri-demo answers: a small model that ships with this package to try it out. It knows a few everyday "
        'topics only. For real use pass model="karakuri-ai/karakuri-lm-70b-chat-v0.1".'
    )


@dataclass(frozen=True)
class Call:
    """One prepared call: the exact prompt, how to sample, and which messages an overflow policy left out."""

    engine: Engine
    prompt: Prompt
    sampling: Sampling
    dropped: tuple[int, ...] = ()

    def stream(self, *, whole: bool = False) -> Iterator[Delta]:
        """As `generation.stream`."""
        return stream(self.engine, self.prompt, self.sampling, whole=whole)

    def astream(self, *, whole: bool = False) -> AsyncIterator[Delta]:
        return astream(self.engine, self.prompt, self.sampling, whole=whole)

    def metadata(self) -> dict[str, Any]:
        """What a reply reports beside finish reason and usage: plain JSON values."""
        shown: dict[str, Any] = {"model_name": self.engine.model}
        if not self.prompt.raw:
            shown["attributes"] = dict(self.prompt.attributes)
        if self.prompt.escaped:
            shown["karakuri_escaped"] = self.prompt.escaped
        if self.dropped:
            shown["dropped_messages"] = list(self.dropped)
        return shown


@dataclass(frozen=True)
class Provider:
    """A model as one framework object configures it."""

    fields: EngineFields = field(default_factory=EngineFields)
    attributes: AttributeLike | None = None
    sampling: Sampling = field(default_factory=Sampling)
    policy: AttributePolicy = field(default_factory=AttributePolicy)
    template_tokens: TemplateTokens = "escape"
    overflow: OverflowPolicy = "error"
    tool_language: str = "auto"

    def __post_init__(self) -> None:
        tooling_of({}, self.tool_language)
        if self.overflow not in ("error", "drop_oldest_turns"):
            raise OptionError(f"overflow must be error or drop_oldest_turns, got {self.overflow!r:.40}")
        if self.template_tokens not in ("escape", "reject", "allow"):
            raise OptionError(f"template_tokens must be escape, reject or allow, got {self.template_tokens!r:.40}")

    @property
    def own_attributes(self) -> SteeringAttributes:
        """The constructor's nine values."""
        return SteeringAttributes.overlay(self.attributes)

    def engine(self, model: str | None = None) -> Engine:
        """The engine that answers; `model` is a call's override."""
        if model is None or (self.fields.engine is not None and model == self.fields.engine.model):
            return self._engine
        revision = self.fields.revision if model == self.fields.model else None  # another model has other commits
        template = None if family_of_model(model) is not None else self.fields.template
        return open_engine(replace(self.fields, model=model, revision=revision, template=template))

    def checked_engine(self) -> Engine:
        """The engine, for a model that is being constructed: a folder that was named is there, nothing is loaded.

        Raises:
            ModelFolderError: it is not there, or holds no model.
        """
        engine = self.engine()
        if (check := getattr(engine, "check_folder", None)) is not None:
            check()
        return engine

    @cached_property
    def _engine(self) -> Engine:
        return open_engine(self.fields)

    def user(self, text: str, extra: Mapping[str, Any], index: int) -> Message:
        """A user message with the attributes in its extra keys, after the policy."""
        return Message("user", text, self.policy.read(extra, f"message {index}"), index)

    def system(self, text: str, extra: Mapping[str, Any], index: int) -> Message:
        """A system message; it has no dials of its own.

        Raises:
            AttributeConfigError: it carries attributes, which would steer nothing.
        """
        if self.policy.mode != "ignore" and carried_attributes(extra, f"message {index}") is not None:
            raise AttributeConfigError(
                f"message {index}: a system message carries no steering attributes; put them on a user message, "
                "the call or the model"
            )
        return Message("system", text, None, index)

    def assistant(
        self,
        text: str,
        recorded: object,
        index: int,
        extra: Mapping[str, Any] = MappingProxyType({}),
        calls: Sequence[ToolCall] = (),
    ) -> Message:
        """A past reply with the attributes recorded on it (without a record: those in `extra`), after the policy."""
        if recorded is None and self.policy.mode != "ignore":
            recorded = carried_attributes(extra, f"message {index}")
        values = self.policy.recorded(recorded, self.own_attributes, f"message {index}")
        return Message("assistant", text, values, index, tuple(calls))

    def tool(self, text: str, call_id: str, name: str, index: int, *, failed: bool = False) -> Message:
        """What a tool returned for the call of this id; `name` where the conversation does not hold the call."""
        return Message("tool", text, None, index, call_id=call_id, name=name, failed=failed)

    def request(self, messages: Sequence[Message], options: Mapping[str, Any]) -> Request:
        """The request of a call with these options; see `check_options`."""
        own = self.own_attributes
        tooling = tooling_of(options, self.tool_language)
        return Request(tuple(messages), SteeringAttributes.overlay(own, options.get("attributes")), own, tooling)

    def render(self, messages: Sequence[Message], options: Mapping[str, Any]) -> Prompt:
        """The exact prompt; loads nothing."""
        engine = self.engine(options.get("model"))
        return render(self.request(messages, options), engine.family, self.template_tokens)

    def count_tokens(self, messages: Sequence[Message], options: Mapping[str, Any]) -> int:
        """Tokens of the real rendered prompt; loads a tokenizer at most.

        A part of a conversation (empty, or ending with a reply) is counted too: see `render(partial=True)`.
        """
        if not messages:
            return 0
        engine = self.engine(options.get("model"))
        request = self.request(messages, options)
        return engine.count_tokens(render(request, engine.family, self.template_tokens, partial=True))

    def prepare(self, messages: Sequence[Message], options: Mapping[str, Any]) -> Call:
        """Everything before the engine; `options` as from `check_options`. Pure unless an overflow policy counts."""
        engine, sampling = self._open(options), self.merged(options)
        if self.overflow == "error":
            return Call(engine, self.render(messages, options), sampling)
        return self._fitted(engine, messages, options, sampling)

    def prepare_raw(self, text: str, options: Mapping[str, Any]) -> Call:
        """As `prepare`, for a prompt that the caller has written out in full; see `templates.parse_raw`.

        Raises:
            OptionError: attributes, which a finished prompt already holds.
        """
        for name in ("attributes", *TOOL_OPTIONS):
            if options.get(name) is not None:
                raise OptionError(f"{name}= cannot change a formatted prompt; write it into it or pass formatted=False")
        engine = self._open(options)
        return Call(engine, parse_raw(text, engine.family), self.merged(options))

    def _open(self, options: Mapping[str, Any]) -> Engine:
        engine = self.engine(options.get("model"))
        if getattr(engine, "embedded", False):
            _demo_notice()
        return engine

    def model_at_hand(self, model: str | None = None) -> str | None:
        """The model's id, where it can be told without asking a server."""
        engine = self.engine(model)
        return cast("str | None", engine.known_model if hasattr(engine, "known_model") else engine.model)

    def family_at_hand(self, model: str | None = None) -> bool:
        """Whether the prompt family is known without asking a hub for the checkpoint's configuration."""
        return bool(getattr(self.engine(model), "family_known", True))

    async def aprepare(self, messages: Sequence[Message], options: Mapping[str, Any]) -> Call:
        """As `prepare`; what counts tokens or asks a hub runs in a thread, so the event loop never blocks."""
        if self.overflow == "error" and self.family_at_hand(options.get("model")):
            return self.prepare(messages, options)
        return await in_thread(self.prepare, messages, options)

    async def aprepare_raw(self, text: str, options: Mapping[str, Any]) -> Call:
        """As `prepare_raw`; what asks a hub runs in a thread."""
        if self.family_at_hand(options.get("model")):
            return self.prepare_raw(text, options)
        return await in_thread(self.prepare_raw, text, options)

    def merged(self, options: Mapping[str, Any]) -> Sampling:
        """The constructor's sampling with a call's options on top; a call's `stop` replaces the constructor's."""
        return replace(self.sampling, **{k: v for k, v in options.items() if k in SAMPLING_FIELDS and v is not None})

    def _fitted(
        self, engine: Engine, messages: Sequence[Message], options: Mapping[str, Any], sampling: Sampling
    ) -> Call:
        """Drop the fewest oldest turns that make the prompt fit; system texts and the last turn always stay.

        Without max_tokens a sixteenth of the window is kept free for the reply.
        """
        room = sampling.max_tokens or max(1, engine.context_window // 16)
        starts = _turn_starts(messages)
        low, high = 0, len(starts) - 1
        while low < high:
            middle = (low + high) // 2
            if self._fits(engine, _without(messages, starts[middle])[0], options, room):
                high = middle
            else:
                low = middle + 1
        kept, dropped = _without(messages, starts[low] if starts else 0)
        return Call(engine, self.render(kept, options), sampling, dropped)  # the engine refuses what is still too long

    def _fits(self, engine: Engine, messages: Sequence[Message], options: Mapping[str, Any], room: int) -> bool:
        return engine.count_tokens(self.render(messages, options)) + room <= engine.context_window


def _turn_starts(messages: Sequence[Message]) -> list[int]:
    """Where conversations that keep their end could begin: 0 and each user message after an assistant's."""
    starts = [0]
    answered = False
    for place, message in enumerate(messages):
        if message.role == "user" and answered:
            starts.append(place)
            answered = False
        elif message.role == "assistant":
            answered = True
    return starts


def _without(messages: Sequence[Message], start: int) -> tuple[list[Message], tuple[int, ...]]:
    """The messages from `start` on with every earlier system message, and the indexes of what was left out."""
    early, late = messages[:start], messages[start:]
    kept = [message for message in early if message.role == "system"]
    return [*kept, *late], tuple(message.index for message in early if message.role != "system")


def check_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options of one call, without those that are None; unknown ones are refused by name.

    Raises:
        OptionError: an option that does not exist; the near one is named.
        UnsupportedError: options that no longer exist anywhere.
    """
    known: dict[str, Any] = {}
    for name, value in options.items():
        if name in CALL_OPTIONS:
            if value is not None:
                known[name] = value
        elif name in _OLD_OPTIONS:
            if value:
                raise UnsupportedError(f"{name}: functions have become tools; use tools= and tool_choice=")
        else:
            raise OptionError(unknown_option(name, CALL_OPTIONS))
    return known


def unknown_option(name: str, known: Sequence[str]) -> str:
    """The message for a misspelt option or field; its value is never shown. `known`: the likeliest first."""
    if name == "preset" or name in PRESETS:
        shown = "concise" if name == "preset" else name
        return f'unknown option {name!r}: a preset goes into attributes=SteeringAttributes.preset("{shown}")'
    if name in _LOCAL_ENGINE:
        return f"unknown option {name!r}: it belongs to a local engine: engine=LocalEngine({name}=...)"
    near = difflib.get_close_matches(name, (*known, *NAMES), 1)
    if near and near[0] not in known:
        return f'unknown option {name[:60]!r}: a dial goes into attributes={{"{near[0]}": 1}}'
    if near:
        return f"unknown option {name[:60]!r}: did you mean {near[0]!r}?"
    return f"unknown option {name[:60]!r}; the options are {', '.join(known)}"


def own_first(names: Iterable[str]) -> list[str]:
    """A class's fields with those that are ours, and not its framework's, first."""
    return sorted(names, key=lambda name: name not in _OWN_FIELDS)
