"""Every error this package raises, as one tree. No framework is imported here.

Each message names the value, the rule and the next step, and never holds prompt text, reply text or a secret.

    KarakuriError
    ├── InputError (also ValueError)     the caller can fix it; raised before any compute or network
    │   ├── AttributeConfigError         a steering attribute or a preset
    │   ├── OptionError                  an unknown or out-of-range constructor field or call option
    │   ├── MessageError                 a conversation that cannot be rendered; `.index`
    │   │   └── TemplateInjectionError   template tokens in data under the policy "reject"; `.offset`, `.literal`
    │   ├── UnknownModelError            no family matches; lists the known ones
    │   └── ContextOverflowError         prompt + max_tokens over the window; all three numbers
    ├── UnsupportedError (also NotImplementedError)  a feature that this model or version does not have
    └── EngineError                      `.partial_text` holds what had been received, exactly
        ├── ModelLoadError               weights, tokenizer or configuration cannot be loaded
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
        └── ScriptError                  a ScriptedEngine ran out of replies
"""

from __future__ import annotations

__all__ = [
    "AttributeConfigError",
    "BusyError",
    "ContextOverflowError",
    "DeadlineError",
    "DeviceMemoryError",
    "EngineClosedError",
    "EngineError",
    "ForkedProcessError",
    "InputError",
    "InsufficientMemoryError",
    "KarakuriError",
    "MessageError",
    "MissingDependencyError",
    "ModelLoadError",
    "NumericalError",
    "OptionError",
    "QuantizationError",
    "ScriptError",
    "TemplateInjectionError",
    "UnknownModelError",
    "UnsafeModelError",
    "UnsupportedError",
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


class UnknownModelError(InputError):
    """No known model family matches a model id or checkpoint."""


class ContextOverflowError(InputError):
    """The prompt, or the prompt and the reply asked for, do not fit the context window (all in tokens)."""

    def __init__(self, n_prompt: int, n_max_new: int | None, n_ctx: int) -> None:
        asked = "" if n_max_new is None else f" and max_tokens={n_max_new} ask for {n_prompt + n_max_new} tokens"
        rule = f"; the context window is {n_ctx}" if asked else f" leaves no room in the context window of {n_ctx}"
        super().__init__(
            f"the prompt of {n_prompt} tokens{asked}{rule}; shorten the conversation, lower max_tokens, "
            'or pass overflow="drop_oldest_turns"'
        )
        self.n_prompt, self.n_max_new, self.n_ctx = n_prompt, n_max_new, n_ctx

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.n_prompt, self.n_max_new, self.n_ctx)


class UnsupportedError(KarakuriError, NotImplementedError):
    """This model or version does not have the feature asked for."""


class EngineError(KarakuriError):
    """An engine failed. `partial_text` is the reply text received until then, exactly."""

    partial_text: str = ""


class ModelLoadError(EngineError):
    """A model's weights, tokenizer or configuration cannot be loaded."""


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
