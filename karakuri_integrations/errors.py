"""Every error this package raises, as one tree. No framework is imported here.

Each message names the value, the rule and the next step, and never holds prompt text, reply text or a secret.

    KarakuriError
    ├── InputError (also ValueError)     the caller can fix it; raised before any compute or network
    │   ├── AttributeConfigError         a steering attribute or a preset
    │   ├── OptionError                  an unknown or out-of-range constructor field or call option
    │   ├── ToolDefinitionError          a tool, a tool choice or a response format
    │   ├── MessageError                 a conversation that cannot be rendered; `.index`
    │   │   └── TemplateInjectionError   template tokens in data under the policy "reject"; `.offset`, `.literal`
    │   ├── UnknownModelError            no family matches; lists the known ones
    │   └── ContextOverflowError         prompt + max_tokens over the window; all three numbers
    ├── UnsupportedError (also NotImplementedError)  a feature that this model or version does not have
    │   └── UnsupportedSchemaError       a JSON schema that no grammar can hold a reply to; `.keyword`
    └── EngineError                      `.partial_text` holds what had been received, exactly
        ├── ModelLoadError               weights, tokenizer or configuration cannot be loaded
        │   ├── ModelFolderError (also InputError)  the folder that was named is not there, or holds no model
        │   ├── UnsafeModelError         a checkpoint that could run code or leave its folder
        │   ├── MissingDependencyError   (also ImportError) an optional library is not installed
        │   ├── QuantizationError        the 4-bit form is not what was asked for
        │   └── InsufficientMemoryError  the estimate does not fit; raised before loading starts
        ├── BusyError                    the queue is full
        ├── DeadlineError                the call's `timeout` passed
        ├── NumericalError               NaN or infinite logits; `.step`
        ├── DeviceMemoryError            out of memory while generating
        ├── WorkerError                  the engine's worker failed; `__cause__` says how
        ├── EngineClosedError            `close()` interrupted this call
        ├── ForkedProcessError           a loaded model is used in a forked child
        ├── ScriptError                  a ScriptedEngine ran out of replies
        ├── ReplyFormatError (also ValueError)  a reply is not of the form asked for: no call, or JSON that does not fit
        └── RemoteError                  an endpoint failed; `.status`, `.server_text`, `.request_id`, `.url`, `.tries`
            ├── RemoteConnectionError    refused, reset or closed before the first byte of the reply
            ├── RemoteTimeoutError (also DeadlineError)  `.stage`: connect, pool, first_token, idle, question, total
            ├── RemoteStatusError        an HTTP status that is no success
            │   ├── RemoteRequestError   400, 413, 422 and other 4xx: the request itself
            │   │   └── RemoteContextOverflowError (also ContextOverflowError)  the server says that it is too long
            │   ├── AuthenticationError  401: the key
            │   ├── AccessDeniedError    403
            │   ├── EndpointNotFoundError  404: the route or the model
            │   ├── RateLimitError       429; `.retry_after` in seconds where the server says it
            │   ├── ServerFaultError     408, 409, 425, 424 and 5xx
            │   └── RedirectError        3xx: neither key nor prompt is sent elsewhere
            ├── StreamInterruptedError   the connection ended in the middle of the reply
            ├── RemoteStreamError        the server reported an error in the middle of the reply
            ├── ProtocolError            what came back is no answer of this kind of server
            └── SteeringLostError        the server would drop the dials
"""

from __future__ import annotations

__all__ = [
    "AccessDeniedError",
    "AttributeConfigError",
    "AuthenticationError",
    "BusyError",
    "ContextOverflowError",
    "DeadlineError",
    "DeviceMemoryError",
    "EndpointNotFoundError",
    "EngineClosedError",
    "EngineError",
    "ForkedProcessError",
    "InputError",
    "InsufficientMemoryError",
    "KarakuriError",
    "MessageError",
    "MissingDependencyError",
    "ModelFolderError",
    "ModelLoadError",
    "NumericalError",
    "OptionError",
    "ProtocolError",
    "QuantizationError",
    "RateLimitError",
    "RedirectError",
    "RemoteConnectionError",
    "RemoteContextOverflowError",
    "RemoteError",
    "RemoteRequestError",
    "RemoteStatusError",
    "RemoteStreamError",
    "RemoteTimeoutError",
    "ReplyFormatError",
    "ScriptError",
    "ServerFaultError",
    "SteeringLostError",
    "StreamInterruptedError",
    "TemplateInjectionError",
    "ToolDefinitionError",
    "UnknownModelError",
    "UnsafeModelError",
    "UnsupportedError",
    "UnsupportedSchemaError",
    "WorkerError",
]


class KarakuriError(Exception):
    """The base of every error of this package."""


class InputError(KarakuriError, ValueError):
    """Something the caller passed cannot be used; nothing was computed or sent."""


class AttributeConfigError(InputError):
    """A steering attribute, a preset name or an attribute bound is not valid."""


class OptionError(InputError):
    """A constructor field or call option is unknown or out of range."""


class MessageError(InputError):
    """A conversation cannot be rendered. `index` is the message's place in the list, or None."""

    def __init__(self, message: str, index: int | None = None) -> None:
        super().__init__(message)
        self.index = index


class TemplateInjectionError(MessageError):
    """Data holds template tokens and the policy is "reject".

    `offset` is the character position in the message's joined text, `literal` the template token found there.
    """

    def __init__(self, index: int | None, offset: int, literal: str) -> None:
        super().__init__(
            f"message {index}: the template token {literal!r} stands at character {offset} and "
            'template_tokens="reject" forbids it; remove it or use template_tokens="escape"',
            index,
        )
        self.offset = offset
        self.literal = literal

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.index, self.offset, self.literal)


class ToolDefinitionError(InputError):
    """A tool, a tool choice or a response format is not of the form that it must have."""


class UnknownModelError(InputError):
    """No known model family matches a model id or checkpoint."""


class ContextOverflowError(InputError):
    """The prompt, or the prompt and the reply asked for, do not fit the context window (all in tokens)."""

    def __init__(self, n_prompt: int, n_max_new: int | None, n_ctx: int) -> None:
        asked = "" if n_max_new is None else f" and max_tokens={n_max_new} ask for {n_prompt + n_max_new} tokens"
        rule = f"; the context window is {n_ctx}" if asked else f" leaves no room in the context window of {n_ctx}"
        room = f" to at most {n_ctx - n_prompt}" if asked and n_prompt < n_ctx else ""
        ways = [f"lower max_tokens{room}"] if asked else []
        if n_max_new is None or n_max_new < n_ctx or not room:  # otherwise no conversation is short enough
            ways = ["shorten the conversation", *ways, 'or pass overflow="drop_oldest_turns"']
        super().__init__(f"the prompt of {n_prompt} tokens{asked}{rule}; {', '.join(ways)}")
        self.n_prompt, self.n_max_new, self.n_ctx = n_prompt, n_max_new, n_ctx

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.n_prompt, self.n_max_new, self.n_ctx)


class UnsupportedError(KarakuriError, NotImplementedError):
    """This model or version does not have the feature asked for."""


class UnsupportedSchemaError(UnsupportedError):
    """No grammar can hold a reply to this JSON schema. `keyword`: the word in it that is the cause, "" if unknown."""

    keyword: str = ""


class EngineError(KarakuriError):
    """An engine failed. `partial_text` is the reply text received until then, exactly."""

    partial_text: str = ""


class ModelLoadError(EngineError):
    """A model's weights, tokenizer or configuration cannot be loaded."""


class ModelFolderError(InputError, ModelLoadError):
    """The folder that was named as a model is not there, or holds no model. What was passed is wrong, as `InputError`s
    are; `ModelLoadError` catches it with whatever else keeps a model from being loaded."""


class UnsafeModelError(ModelLoadError):
    """A checkpoint could run code or reach outside its folder; nothing of it was loaded."""


class MissingDependencyError(ModelLoadError, ImportError):
    """An optional library is needed; the message names the pip command."""


class QuantizationError(ModelLoadError):
    """The loaded model is not in the quantised form that was asked for."""


class InsufficientMemoryError(ModelLoadError):
    """The memory estimate exceeds what is free; raised before loading starts."""


class BusyError(EngineError):
    """The engine's queue is full."""


class DeadlineError(EngineError):
    """The call's `timeout` (seconds) passed before the reply ended."""


class NumericalError(EngineError):
    """The model produced NaN or infinite logits. `step` counts generated tokens before it."""

    def __init__(self, message: str, step: int = 0) -> None:
        super().__init__(message)
        self.step = step


class DeviceMemoryError(EngineError):
    """The device ran out of memory while generating; the engine stays usable."""


class WorkerError(EngineError):
    """The engine's worker failed; `__cause__` holds the original error."""


class EngineClosedError(EngineError):
    """`close()` ended this call before its reply did."""


class ForkedProcessError(EngineError):
    """A model loaded before fork() is used in the child process."""


class ScriptError(EngineError):
    """A ScriptedEngine has no reply left."""


class ReplyFormatError(EngineError, ValueError):
    """A reply is not of the form that was asked for; `partial_text` is its text."""


class RemoteError(EngineError):
    """A remote endpoint failed.

    Args:
        message: what happened and the next step; without prompt, reply or key.
        status: the HTTP status, where there was one.
        server_text: what the server said, at most 500 characters, with the key and prompt taken out.
        request_id: the server's id of the request, else the one that was sent.
        url: the endpoint without user name, password and query.
        tries: how often it was asked.

    `partial_text` is the reply received until then, exactly.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        server_text: str = "",
        request_id: str = "",
        url: str = "",
        tries: int = 1,
    ) -> None:
        Exception.__init__(self, message)  # a subclass is also an error with arguments of its own
        self.status, self.server_text, self.request_id, self.url = status, server_text, request_id, url
        self.tries = tries

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), self.args, self.__dict__

    def __str__(self) -> str:
        facts = [f"HTTP {self.status}" if self.status else "", self.url]
        facts += [f"request {self.request_id}" if self.request_id else ""]
        facts += [f"{self.tries} tries" if self.tries > 1 else ""]
        shown = ", ".join(fact for fact in facts if fact)
        said = f"; the server says: {self.server_text}" if self.server_text else ""
        return f"{self.args[0]}{said}" + (f" [{shown}]" if shown else "")


class RemoteConnectionError(RemoteError):
    """The endpoint could not be reached, or closed the connection before the reply began."""


class RemoteTimeoutError(RemoteError, DeadlineError):
    """A time limit passed. `stage` is connect, pool, first_token, idle (between two events), question (what a server is
    asked beside replies) or total."""

    stage: str = "total"


class RemoteStatusError(RemoteError):
    """The endpoint answered with an HTTP status that is no success."""


class RemoteRequestError(RemoteStatusError):
    """The endpoint refuses the request (400, 413, 422 and other 4xx); sending it again cannot help."""


class RemoteContextOverflowError(RemoteRequestError, ContextOverflowError):
    """The server says that prompt and reply exceed its context window.

    `n_prompt`, `n_max_new` and `n_ctx` are 0 or None where the server does not name them.
    """

    n_prompt = 0
    n_max_new: int | None = None
    n_ctx = 0


class AuthenticationError(RemoteStatusError):
    """The endpoint does not accept the key (401)."""


class AccessDeniedError(RemoteStatusError):
    """The key may not use this endpoint or model (403)."""


class EndpointNotFoundError(RemoteStatusError):
    """There is no such route or model (404)."""


class RateLimitError(RemoteStatusError):
    """The endpoint is busy or a quota is used up (429). `retry_after`: seconds, where the server says it."""

    retry_after: float | None = None


class ServerFaultError(RemoteStatusError):
    """The endpoint failed (408, 409, 424, 425 and 5xx)."""


class RedirectError(RemoteStatusError):
    """The endpoint redirects (3xx); nothing was sent to the new place."""


class StreamInterruptedError(RemoteError):
    """The connection ended before the reply did."""


class RemoteStreamError(RemoteError):
    """The server reported an error, or gave up, after it had begun to answer."""


class ProtocolError(RemoteError):
    """What came back is no answer that this kind of server gives."""


class SteeringLostError(RemoteError):
    """The server would answer without the steering attributes; the message says what to change."""
