"""The `karakuri` command: demo, chat, ask, serve-command, bench, doctor. Knows arguments, terminal and exit codes.

Answers come through Provider, recipes from `serving`.

Exit codes: 0 answered; 1 the engine failed; 2 the input was wrong; 130 interrupted.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import logging
import os
import re
import sys
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from . import __version__, bench, doctor
from ._command_line import Parser
from ._quantize_command import add_quantize
from .attributes import NAMES, PRESETS, SteeringAttributes
from .conversation import Message, Reply, Sampling
from .errors import AttributeConfigError, InputError, KarakuriError, OptionError
from .generation import fold
from .provider import EngineFields, Provider, without_credentials
from .serving import QUANTIZATIONS, SERVER_NAMES, Serving, serving_recipe, template_text

__all__ = ["main"]

OK, FAILED, WRONG_INPUT, INTERRUPTED = 0, 1, 2, 130

#: What argparse keeps beside the options.
_NO_OPTIONS: Final = ("run", "question")

_ATTRIBUTION = "This was written with KARAKURI LM, developed by KARAKURI Inc."

_CHAT_HELP = """\
/attr verbosity=1 humor=3   turn dials from here on; /attr alone shows them
/preset concise             take a preset: {presets}
/system TEXT                set the system text; /system alone removes it
/history                    show the conversation with the dials of each answer
/reset                      forget the conversation
/help                       this help
/quit                       leave (also Ctrl-D); Ctrl-C stops an answer"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    options = _parser().parse_args(arguments)
    _log_to_stderr(options)
    if not options.verbose:
        warnings.simplefilter("ignore")  # what this package has to say is in its log too
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal that lacks a character must not end the answer
    try:
        code = int(options.run(options))
        print(end="", flush=True)  # here, where a reader that left is no failure
        return code
    except InputError as error:
        return _fail(error, options, WRONG_INPUT)
    except KarakuriError as error:
        return _fail(error, options, FAILED)
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        _forget_output()
        return OK


def _forget_output() -> None:
    """The reader left: what is still buffered goes nowhere, so that Python does not complain once more at exit."""
    with contextlib.suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


def _fail(error: Exception, options: argparse.Namespace, code: int = FAILED) -> int:
    print(f"karakuri: {_spelled(str(error), options)}", file=sys.stderr)
    return code


def _spelled(text: str, options: argparse.Namespace) -> str:
    """The text with options as the command writes them: `local_files_only=True` is `--local-files-only` here."""
    names = [name for name in vars(options) if name not in _NO_OPTIONS]
    long = [name for name in names if "_" in name] or ["(?!)"]  # no other word is written like these; or no match

    def spell(found: re.Match[str]) -> str:
        name, value = found[1] or found[3], found[2] or ""
        return f"--{name.replace('_', '-')}{' ' if value else ''}{value}"

    value = r"(?:True\b|([\w\"'/~{\[]|\.(?=[\w/])|-(?=\d)))?"
    return re.sub(rf"(?<![\w?&-])(?:({'|'.join(names)})={value}|({'|'.join(long)})\b)", spell, text)


def _log_to_stderr(options: argparse.Namespace) -> None:
    class Spelled(logging.Formatter):
        def format(self, record: logging.LogRecord) -> str:
            return _spelled(super().format(record), options)

    handler = logging.StreamHandler()
    handler.setFormatter(Spelled("%(message)s"))
    logging.basicConfig(handlers=[handler], level=logging.DEBUG if options.verbose else logging.WARNING)


def _parser() -> Parser:
    parser = Parser(
        prog="karakuri",
        description="KARAKURI LM Chat with its nine steering dials.",
        epilog="Exit codes: 0 answered, 1 the engine failed, 2 wrong input, 130 interrupted.",
    )
    parser.add_argument("--version", action="version", version=f"karakuri {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    parser.commands = commands.choices
    demo = commands.add_parser("demo", help="one question at different dials, through both frameworks")
    chat = commands.add_parser("chat", help="talk; /attr verbosity=1 turns a dial while talking")
    ask = commands.add_parser("ask", help="one question, one answer; reads standard input when no question is given")
    for command, run in ((demo, _demo), (chat, _chat), (ask, _ask)):
        command.set_defaults(run=run)
        _model_options(command)
    ask.add_argument("question", nargs="*", help="the question; standard input is put after it, or is the question")
    ask.add_argument("--json", action="store_true", help="print one JSON object: text, attributes, usage, ...")
    ask.add_argument("--show-prompt", action="store_true", help="print the exact prompt instead of asking")
    for command in (chat, ask):
        _server_options(command)
        _call_options(command)
    serve = commands.add_parser("serve-command", help="print the commands that serve a real model at 4 bits")
    serve.set_defaults(run=_serve_command, verbose=False)
    _serving_options(serve)
    add_quantize(commands)
    measure = commands.add_parser("bench", help="how fast a model runs here, against the machine's ceiling and others")
    examine = commands.add_parser("doctor", help="what is installed, which devices there are, and what fits")
    for command, module in ((measure, bench), (examine, doctor)):
        command.set_defaults(run=module.run, verbose=False)
        module.add_options(command)
    return parser


def _model_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("--model", help="a model id or folder; default: the embedded one")
    command.add_argument("--template", help="the prompt template, where the model's name does not tell")
    command.add_argument("--quantization", default="nf4", help="nf4 (default), fp4, int8, bf16, fp16, fp32, none")
    command.add_argument("--device", default="auto", help="auto (default), cpu, cuda, cuda:1, balanced, offload")
    command.add_argument("--revision", help="a branch, tag or (safest) the full commit hash on the hub")
    command.add_argument("--local-files-only", action="store_true", help="never contact the hub")
    command.add_argument("-v", "--verbose", action="store_true", help="show logs and library warnings")
    command.add_argument(
        "-a",
        "--attr",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help=f"a dial, 0 to 4: {', '.join(NAMES)}",
    )
    command.add_argument("--preset", choices=sorted(PRESETS), help="a named setting; --attr goes on top")


def _server_options(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--base-url",
        metavar="URL",
        help="a server that answers, such as http://localhost:8000/v1; without --model the only one it serves; its "
        "key is the environment's KARAKURI_API_KEY",
    )
    command.add_argument("--server", help="the kind of server, such as vllm or llama.cpp; default: it is asked")


def _call_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("--system", help="the system text")
    command.add_argument("--temperature", type=float, default=0.0, help="0 (default) is greedy")
    command.add_argument("--top-p", type=float, default=1.0, help="the likeliest tokens of so much probability; 1: all")
    command.add_argument("--top-k", type=int, default=0, help="so many of the likeliest tokens; 0: all")
    command.add_argument("--min-p", type=float, default=0.0, help="tokens of so much of the best one's probability")
    command.add_argument("--repetition-penalty", type=float, default=1.0, help="above 1 avoids what was said")
    command.add_argument("--seed", type=int, help="makes sampling repeatable")
    command.add_argument("--max-tokens", type=int, help="default: the rest of the window")
    command.add_argument("--stop", action="append", default=[], help="text at which the answer ends; repeatable")
    command.add_argument("--timeout", type=float, help="seconds for one answer")
    command.add_argument("--attribution", action="store_true", help="print the attribution line the licence asks for")


def _serving_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("model", metavar="MODEL", help="70b-chat, 8x7b-chat, 8x7b-instruct, or a full id")
    command.add_argument("--server", required=True, help=", ".join(SERVER_NAMES))
    command.add_argument("--gpus", type=int, default=1, help="GPUs per host; default 1")
    command.add_argument("--hosts", type=int, default=1, help="hosts; default 1, more with vllm on Ray")
    command.add_argument("--quantization", help=f"{', '.join(QUANTIZATIONS)}; default: the server's best")
    command.add_argument("--weights", metavar="WHERE", help="your own 4-bit checkpoint: a repository, folder or file")
    command.add_argument("--context", type=int, help="tokens per request; default: the model's window")
    command.add_argument("--slots", type=int, help="parallel requests of llama.cpp; default 4")
    command.add_argument("--gpu-memory", type=float, metavar="GB", help="per GPU, to check that the model fits")
    command.add_argument("--template-out", metavar="FILE", help="write the chat template there and use that file")
    command.add_argument("--host", default="127.0.0.1", help="the address to listen on; any other one gets a key")
    command.add_argument("--port", type=int, help="default: the server's own")


def _serve_command(options: argparse.Namespace) -> int:
    fields = {name: getattr(options, name) for name in Serving.__dataclass_fields__ if hasattr(options, name)}
    recipe = serving_recipe(Serving(**fields, template_file=options.template_out))
    if options.template_out:
        _write_template(options.template_out, template_text(options.model))
    print(recipe, end="")
    return OK


def _write_template(path: str, text: str) -> None:
    try:
        with open(path, "w", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise OptionError(f"--template-out {path!r:.120} cannot be written: {error.strerror}") from error


def _read_attributes(pairs: Sequence[str], base: SteeringAttributes) -> SteeringAttributes:
    """`verbosity=1` pairs on top of `base`."""
    values: dict[str, Any] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals:
            raise AttributeConfigError(f"write a dial as NAME=VALUE, such as verbosity=1; got {pair!r:.60}")
        text = value.strip()
        values[name.strip()] = int(text) if re.fullmatch("-?[0-9]{1,9}", text) else text
    return SteeringAttributes.overlay(base, values)


def _attributes(options: argparse.Namespace) -> SteeringAttributes:
    base = SteeringAttributes.preset(options.preset) if options.preset else SteeringAttributes()
    return _read_attributes(options.attr, base)


def _engine_fields(options: argparse.Namespace) -> EngineFields:
    return EngineFields(
        **_server_fields(options),
        model=options.model,
        template=options.template,
        quantization=options.quantization,
        device=options.device,
        revision=options.revision,
        local_files_only=options.local_files_only,
    )


def _server_fields(options: argparse.Namespace) -> dict[str, Any]:
    """Those of a served model; a key comes from the environment only, since a machine's users see its commands."""
    address = getattr(options, "base_url", None)
    fields = {"base_url": address, "server": getattr(options, "server", None)}
    if address is None:
        return fields
    shown, authorisation = without_credentials(address)
    if authorisation is not None:
        raise OptionError(
            f"--base-url holds a user name or password, which all users of this machine can see; write {shown} and set "
            "KARAKURI_API_KEY to the server's key"
        )
    return {**fields, "api_key": os.environ.get("KARAKURI_API_KEY")}


def _provider(options: argparse.Namespace) -> Provider:
    sampling = Sampling(
        temperature=options.temperature,
        top_p=options.top_p,
        top_k=options.top_k,
        min_p=options.min_p,
        repetition_penalty=options.repetition_penalty,
        seed=options.seed,
        max_tokens=options.max_tokens,
        stop=tuple(options.stop),
        timeout=options.timeout,
    )
    if options.attribution and options.model in (None, "karakuri-demo") and not options.base_url:
        raise OptionError("--attribution is for KARAKURI LM, and this model is the embedded one; add --model")
    provider = Provider(_engine_fields(options), _attributes(options), sampling)
    provider.checked_engine()  # before a question is read, or typed
    return provider


def _ask(options: argparse.Namespace) -> int:
    provider = _provider(options)
    messages = _question(options, provider)
    if options.show_prompt:
        print(provider.render(messages, {}).text)
        return OK
    call = provider.prepare(messages, {})
    if options.json:
        reply = fold(call.stream(whole=True))
        plain = not (sys.stdout.encoding or "utf-8").lower().startswith("utf")
        print(json.dumps(_as_json(reply, call.metadata()), ensure_ascii=plain))
    else:
        _print_stream(delta.text for delta in call.stream())
    if options.attribution:
        print(_ATTRIBUTION, file=sys.stderr if options.json else sys.stdout)
    return OK


def _question(options: argparse.Namespace, provider: Provider) -> list[Message]:
    parts = [" ".join(options.question)] if options.question else []
    if (piped := _piped()).strip():
        parts.append(piped)
    if not parts:
        raise InputError('nothing was asked; write karakuri ask "..." or pipe text into it')
    system = [Message("system", options.system)] if options.system is not None else []
    return [*system, provider.user("\n\n".join(parts), {}, len(system))]


def _piped() -> str:
    """Standard input, where something is piped into it."""
    if sys.stdin is None or sys.stdin.isatty():
        return ""
    with _decoding():
        return sys.stdin.read()


@contextlib.contextmanager
def _decoding() -> Iterator[None]:
    try:
        yield
    except UnicodeDecodeError as error:
        raise InputError(f"standard input is not {error.encoding} text: {error.reason}; convert it first") from None


def _as_json(reply: Reply, metadata: dict[str, Any]) -> dict[str, Any]:
    usage = reply.usage and {
        "input_tokens": reply.usage.input_tokens,
        "output_tokens": reply.usage.output_tokens,
        "total_tokens": reply.usage.total_tokens,
    }
    return {"text": reply.text, "finish_reason": reply.finish_reason, **metadata, "usage": usage}


def _print_stream(texts: Iterator[str]) -> None:
    for text in texts:
        print(text, end="", flush=True)
    print()


@dataclass
class _Conversation:
    """What `karakuri chat` remembers: the dials, the system text and the turns with the dials of each answer."""

    provider: Provider
    dials: SteeringAttributes
    system: str | None = None
    turns: list[tuple[str, str, SteeringAttributes | None]] = field(default_factory=list)

    def messages(self, question: str) -> list[Message]:
        start = [Message("system", self.system)] if self.system else []
        past = [Message("user" if role == "user" else "assistant", text, used) for role, text, used in self.turns]
        return [*start, *past, Message("user", question, None, len(start) + len(past))]

    def answer(self, question: str) -> None:
        """Print the answer; what Ctrl-C cut off is kept as far as it came."""
        call = self.provider.prepare(self.messages(question), {"attributes": self.dials})
        text, deltas = "", call.stream()
        try:
            for delta in deltas:
                text += delta.text
                print(delta.text, end="", flush=True)
        except KeyboardInterrupt:
            print(" [stopped]", end="")
        finally:
            deltas.close()  # type: ignore[attr-defined]
            print()
        if text:
            self.turns += [("user", question, None), ("assistant", text, self.dials)]


def _chat(options: argparse.Namespace) -> int:
    if sys.stdin is None:
        raise InputError("there is no standard input to read messages from")
    provider = _provider(options)
    talk = _Conversation(provider, provider.own_attributes, options.system)
    if sys.stdin.isatty():
        _line_editing()
        print("Type a message; /help lists the commands, Ctrl-D leaves.")
    while (line := _read_line()) is not None:
        try:
            if line.startswith("/") and not _command(talk, line):
                break
            if line and not line.startswith("/"):
                talk.answer(line)
        except KarakuriError as error:
            _fail(error, options)
    if options.attribution:
        print(_ATTRIBUTION)
    return OK


def _line_editing() -> None:
    try:
        import readline  # noqa: F401  # arrow keys and history in input()
    except ImportError:
        return


def _read_line() -> str | None:
    """One line of input, stripped; None at its end. Ctrl-C clears the line."""
    while True:
        try:
            with _decoding():
                return input("> " if sys.stdin.isatty() else "").strip()
        except KeyboardInterrupt:
            print()
        except EOFError:
            return None


def _command(talk: _Conversation, line: str) -> bool:
    """Carry out a /command; False ends the chat."""
    name, _, rest = line[1:].partition(" ")
    words = rest.split()
    match name:
        case "attr":
            talk.dials = _read_attributes(words, talk.dials)
            print(_dials(talk.dials))
        case "preset":
            talk.dials = SteeringAttributes.preset(rest.strip())
            print(_dials(talk.dials))
        case "system":
            talk.system = rest.strip() or None
            print("system text set" if talk.system else "no system text")
        case "history":
            for role, text, used in talk.turns:
                print(f"{role}: {text}" + (f"\n  ({_dials(used)})" if used else ""))
        case "reset":
            talk.turns.clear()
            print("forgotten")
        case "help":
            print(_CHAT_HELP.format(presets=", ".join(PRESETS)))
        case "quit" | "exit":
            return False
        case _:
            raise InputError(f"unknown command /{name[:20]}; /help lists them")
    return True


def _dials(attributes: SteeringAttributes) -> str:
    return " ".join(f"{name}={value}" for name, value in attributes.items())


def _demo(options: argparse.Namespace) -> int:
    from .showcase import show

    show(_engine_fields(options), _attributes(options))
    return OK


if __name__ == "__main__":
    sys.exit(main())
