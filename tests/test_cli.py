"""The command: arguments, output forms, exit codes, and the conversation of `karakuri chat`."""

import io
import json
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from karakuri_integrations import cli
from karakuri_integrations.conversation import Piece, Prompt, Sampling, Usage
from karakuri_integrations.engines import ScriptedEngine
from karakuri_integrations.errors import NumericalError, OptionError
from karakuri_integrations.provider import EngineFields


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> ScriptedEngine:
    scripted = ScriptedEngine(["最初の答え", "second", "third"])
    monkeypatch.setattr(cli, "_engine_fields", lambda options: EngineFields(engine=scripted))
    monkeypatch.setattr(sys, "stdin", Terminal())
    return scripted


def test_ask_prints_the_answer(engine: ScriptedEngine, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["ask", "富士山", "とは", "-a", "verbosity=1", "--preset", "playful"]) == 0
    assert capsys.readouterr().out == "最初の答え\n"
    assert "[INST] 富士山 とは [ATTR]" in engine.prompts[0]
    assert "complexity: 1 verbosity: 1 quality: 4 toxicity: 0 humor: 4 creativity: 3" in engine.prompts[0]


def test_every_option_of_a_call_arrives(engine) -> None:
    given = {
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 7,
        "min_p": 0.1,
        "repetition_penalty": 1.2,
        "seed": 3,
        "max_tokens": 4,
        "timeout": 60.0,
    }
    options = [part for name, value in given.items() for part in (f"--{name.replace('_', '-')}", str(value))]
    assert cli.main(["ask", "hi", *options, "--stop", "X", "--stop", "Y"]) == 0
    assert engine.samplings == [Sampling(**given, stop=("X", "Y"))]


def test_ask_reads_standard_input_after_the_question(engine, capsys, monkeypatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("a document\n"))
    assert cli.main(["ask", "Summarise:", "--system", "S", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["text"] == "最初の答え"
    assert shown["finish_reason"] == "stop"
    assert shown["attributes"]["verbosity"] == 4
    assert shown["usage"]["output_tokens"] == 5
    assert shown["model_name"] == engine.model
    assert "<<SYS>>\nS\n<</SYS>>\n\nSummarise:\n\na document [ATTR]" in engine.prompts[0]


def test_show_prompt_asks_nothing(engine, capsys) -> None:
    assert cli.main(["ask", "hi", "--show-prompt"]) == 0
    assert capsys.readouterr().out.startswith("<s>[INST] hi [ATTR] helpfulness: 4")
    assert engine.prompts == []


def test_attribution(engine, capsys) -> None:
    assert cli.main(["ask", "hi", "--attribution", "--model", "karakuri-lm-70b-chat-v0.1"]) == 0
    assert "KARAKURI LM, developed by KARAKURI Inc." in capsys.readouterr().out


@pytest.mark.parametrize("command", ["ask", "chat"])
@pytest.mark.parametrize("model", [[], ["--model", "karakuri-demo"]])
def test_the_embedded_model_is_not_said_to_be_karakuri_lm(engine, capsys, command, model) -> None:
    assert cli.main([command, *["hi"][: command == "ask"], "--attribution", *model]) != 0
    assert "--attribution is for KARAKURI LM" in capsys.readouterr().err
    assert engine.prompts == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["ask"], "nothing was asked"),
        (["ask", "hi", "-a", "verbosity=9"], "verbosity must be an integer 0 to 4, got 9"),
        (["ask", "hi", "-a", "verbosty=1"], "did you mean 'verbosity'"),
        (["ask", "hi", "-a", "verbosity"], "NAME=VALUE"),
        (["ask", "hi", "-a", "verbosity=high"], "verbosity must be an integer"),
        (["ask", "hi", "-a", "verbosity=--3"], "verbosity must be an integer"),
        (["ask", "hi", "-a", f"verbosity={'9' * 5000}"], "verbosity must be an integer"),
        (["ask", "hi", "--seed", str(2**70)], "seed must be an integer"),
        (["ask", "hi", "--temperature", "-1"], "temperature"),
        (["ask", "  "], "blank"),
    ],
)
def test_wrong_input_is_exit_code_2(engine, capsys, arguments: list[str], message: str) -> None:
    assert cli.main(arguments) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.out == ""
    assert "Traceback" not in captured.err


def test_an_unknown_model_is_exit_code_2(capsys, monkeypatch) -> None:
    pytest.importorskip("huggingface_hub", reason="without the extra `local` the missing library is told first")
    monkeypatch.setattr(sys, "stdin", Terminal())
    assert cli.main(["ask", "hi", "--model", "gpt-2", "--local-files-only"]) == 2
    told = capsys.readouterr().err
    assert told.startswith(
        "karakuri: model 'gpt-2' is not known to be one of the KARAKURI LM models; those are karakuri-"
    )
    names, template = told.index("karakuri-lm-8x7b-instruct-v0.1"), told.index('--template "karakuri-lm-70b-chat-v0.1"')
    assert names < told.index("a copy of one of them under another name") < template


# --- options, commands and folders that do not exist ---


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (
            "ask hi --verbosty 1",
            "unknown option --verbosty; did you mean -a verbosity=1? karakuri ask --help lists all",
        ),
        ("ask hi --modle x", "unknown option --modle; did you mean --model? karakuri ask --help lists all"),
        (
            "ask hi --base_ur=http://h",
            "unknown option --base_ur; did you mean --base-url? karakuri ask --help lists all",
        ),
        ("chat --concise", "unknown option --concise; did you mean --preset concise? karakuri chat --help lists all"),
        ("ask hi --frobnicate", "unknown option --frobnicate; karakuri ask --help lists the options"),
        ("doctor --peers", "unknown option --peers; karakuri doctor --help lists the options"),
        ("bench --peer", "unknown option --peer; did you mean --peers? karakuri bench --help lists all"),
        ("--vers", "unknown option --vers; did you mean --version? karakuri --help lists all"),
        ("bench --pears", "unknown option --pears; did you mean --peers? karakuri bench --help lists all"),
        ("quantize a b --verfy", "unknown option --verfy; did you mean --verify? karakuri quantize --help lists all"),
        ("doctor --verbosty", "unknown option --verbosty; karakuri doctor --help lists the options"),  # it has no dials
        (
            "--model x ask hi",
            "--model comes after the command: karakuri ask --model; karakuri --help lists the commands",
        ),
        ("--frobnicate ask hi", "unknown option --frobnicate; karakuri --help lists the options"),
        ("akk hi", "unknown command 'akk'; did you mean ask? karakuri --help lists the commands"),
        ("benhc", "unknown command 'benhc'; did you mean bench? karakuri --help lists the commands"),
    ],
)
def test_what_was_probably_meant(capsys, arguments: str, told: str) -> None:
    with pytest.raises(SystemExit) as left:
        cli.main(arguments.split())
    assert left.value.code == 2
    assert capsys.readouterr().err == f"karakuri: {told}\n"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["ask", "hi", "--frobnicate", "sk-private"], "unknown option --frobnicate"),
        (["ask", "hi", "--frobnicate=sk-private"], "unknown option --frobnicate"),
        (["ask", "hi", "--api-key", "sk-private"], "KARAKURI_API_KEY in the environment, never an argument"),
        (["ask", "hi", "--top-p", "0.5", "my private question"], "a word too many was given (1 in all)"),
        (["ask", "hi", "--top-p", "0.5", "my private question"], "a question in quotes: karakuri ask --help"),
        (["doctor", "private"], "karakuri doctor --help lists the options, all it takes"),
        (["my private question"], "the commands are demo, chat, ask, serve-command, quantize, bench, doctor"),
        (["private?"], 'a question stands after ask: karakuri ask "..."'),
    ],
)
def test_neither_keys_nor_questions_are_shown(capsys, arguments: list[str], told: str) -> None:
    with pytest.raises(SystemExit) as left:
        cli.main(arguments)
    assert left.value.code == 2
    shown = capsys.readouterr()
    assert told in shown.err and "private" not in shown.err + shown.out


@pytest.mark.parametrize("option", ["--version", "--help", "-h"])
def test_options_before_a_command_that_exist(capsys, option: str) -> None:
    with pytest.raises(SystemExit) as left:
        cli.main([option])
    assert left.value.code == 0
    assert "karakuri" in capsys.readouterr().out


@pytest.mark.parametrize("command", [["ask", "hi"], ["ask"], ["chat"], ["quantize", "copy"], ["bench"]])
@pytest.mark.parametrize(("given", "problem"), [("./nowhere", "does not exist"), ("./here", "has no config.json")])
def test_a_model_folder_that_is_none_is_exit_code_2(capsys, monkeypatch, tmp_path, command, given, problem) -> None:
    if command[0] in ("bench", "quantize"):
        pytest.importorskip("torch", reason="without the extra `local` the missing library is told first")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "stdin", Terminal())
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("a question was asked for"))
    named = [given] if command[0] == "quantize" else ["--model", given]
    assert cli.main([command[0], *named, *command[1:]]) == 2
    told = capsys.readouterr().err
    assert f"{given[2:]!r} {problem} (its path is {tmp_path / given[2:]}); name one in Hugging Face format" in told


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--quantization", "int4"], "got 'int4'; for 4 bits write --quantization \"nf4\""),
        (["--device", "gpu"], "got 'gpu'; for a GPU write --device \"cuda\""),
    ],
)
def test_a_form_or_device_by_another_name_is_refused_before_anything_is_read(
    capsys, monkeypatch, arguments, told
) -> None:
    monkeypatch.setattr(sys, "stdin", Terminal())
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("a question was asked for"))
    assert cli.main(["chat", *arguments]) == 2
    assert told in capsys.readouterr().err


def test_an_engine_failure_is_exit_code_1(monkeypatch, capsys) -> None:
    broken = ScriptedEngine([NumericalError("NaN in the logits")])
    monkeypatch.setattr(cli, "_engine_fields", lambda options: EngineFields(engine=broken))
    monkeypatch.setattr(sys, "stdin", Terminal())
    assert cli.main(["ask", "hi"]) == 1
    assert "NaN in the logits" in capsys.readouterr().err


def chat(monkeypatch, lines: str) -> int:
    monkeypatch.setattr(sys, "stdin", io.StringIO(lines))
    return cli.main(["chat"])


def test_chat_turns_dials_and_keeps_those_of_past_answers(engine, capsys, monkeypatch) -> None:
    lines = "one\n/attr verbosity=1 humor=3\n/system Be kind.\ntwo\n/history\n/reset\nthree\n/quit\nnever\n"
    assert chat(monkeypatch, lines) == 0
    first, second, third = engine.prompts
    assert "verbosity: 4" in first
    assert second.startswith("<s>[INST] <<SYS>>\nBe kind.\n<</SYS>>\n\none [ATTR]")
    past, now = second.split("最初の答え")
    assert "verbosity: 4" in past and "verbosity: 1" in now and "humor: 3" in now
    assert "最初" not in third
    out = capsys.readouterr().out
    assert "verbosity=1" in out and "assistant: second" in out


def test_chat_goes_on_after_a_mistake(engine, capsys, monkeypatch) -> None:
    assert chat(monkeypatch, "/attr verbosity=9\n/nothing\n/preset consise\n/attr\n/help\nhello\n") == 0
    captured = capsys.readouterr()
    assert captured.err.count("karakuri:") == 3
    assert "最初の答え" in captured.out
    assert "/reset" in captured.out


class Interrupted(ScriptedEngine):
    """Ctrl-C arrives after two characters of the first answer."""

    closed = False

    def stream(self, prompt: Prompt, sampling: Sampling) -> Iterator[Piece]:
        self.prompts.append(prompt.text)
        try:
            yield Piece("ab", Usage(1, 1))
            if len(self.prompts) == 1:
                raise KeyboardInterrupt
            yield Piece("", Usage(1, 1), "stop")
        finally:
            self.closed = True


def test_ctrl_c_stops_the_answer_and_not_the_program(monkeypatch, capsys) -> None:
    engine = Interrupted([])
    monkeypatch.setattr(cli, "_engine_fields", lambda options: EngineFields(engine=engine))
    assert chat(monkeypatch, "one\ntwo\n") == 0
    assert "ab [stopped]" in capsys.readouterr().out
    assert engine.closed
    assert "[/INST] ab </s><s>[INST] two" in engine.prompts[1]


# --- a served model ---


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """A completion server that says はい。, and what it was sent: path, key and body."""
    pytest.importorskip("urllib3")
    seen: list[dict[str, Any]] = []

    class Answers(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.say("application/json", b'{"data": [{"id": "karakuri-lm-70b-chat-v0.1", "owned_by": "vllm"}]}')

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            seen.append({"path": self.path, "key": self.headers["Authorization"], **body})
            event = {"choices": [{"index": 0, "text": "はい。", "finish_reason": "stop"}], "usage": None}
            self.say("text/event-stream", b"data: " + json.dumps(event).encode() + b"\n\ndata: [DONE]\n\n")

        def say(self, kind: str, body: bytes) -> None:
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("KARAKURI_API_KEY", "sk-from-the-environment")
    monkeypatch.setattr(sys, "stdin", Terminal())
    yield f"http://127.0.0.1:{server.server_port}/v1", seen
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("named", [[], ["--server", "vllm", "--model", "karakuri-lm-70b-chat-v0.1"]])
def test_ask_asks_a_server(served, capsys, named: list[str]) -> None:
    url, seen = served
    assert cli.main(["ask", "hi", "--base-url", url, "--max-tokens", "9", "-a", "verbosity=1", "--json", *named]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["text"], shown["model_name"]) == ("はい。", "karakuri-lm-70b-chat-v0.1")
    (sent,) = seen
    assert (sent["path"], sent["key"]) == ("/v1/completions", "Bearer sk-from-the-environment")
    assert "verbosity: 1" in sent["prompt"]
    assert sent["max_tokens"] == 9


def test_chat_talks_to_a_server(served, capsys, monkeypatch) -> None:
    url, seen = served
    monkeypatch.setattr(sys, "stdin", io.StringIO("one\ntwo\n"))
    assert cli.main(["chat", "--base-url", url, "--max-tokens", "9"]) == 0
    assert capsys.readouterr().out == "はい。\nはい。\n"
    assert "one" in seen[1]["prompt"] and "はい。" in seen[1]["prompt"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--base-url", "http://me:sk-secret@127.0.0.1:9/v1"], "write http://127.0.0.1:9 and set KARAKURI_API_KEY"),
        (["--base-url", ""], "got ''; is an environment variable not set?"),
        (["--base-url", "http://127.0.0.1:9/v1/completions"], "which is added: http://127.0.0.1:9/v1"),
        (["--server", "vllm"], "--server belongs to a remote endpoint; give --base-url too"),
        (["--base-url", "http://127.0.0.1:9", "--device", "cpu"], "--device belongs to a local model"),
        (["--base-url", "http://127.0.0.1:9", "--server", "tgi2"], "server must be one of vllm"),
    ],
)
def test_a_server_that_cannot_be_asked_is_exit_code_2(served, capsys, arguments: list[str], message: str) -> None:
    assert cli.main(["ask", "hi", *arguments]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert "secret" not in captured.err


def test_a_server_that_is_not_there_is_exit_code_1(capsys, monkeypatch) -> None:
    pytest.importorskip("urllib3")
    monkeypatch.setattr(sys, "stdin", Terminal())
    monkeypatch.setattr("time.sleep", lambda _: None)
    real = ["--server", "openai", "--model", "karakuri-ai/karakuri-lm-70b-chat-v0.1"]
    assert cli.main(["ask", "hi", "--base-url", "http://127.0.0.1:9", *real, "--max-tokens", "9"]) == 1
    told = capsys.readouterr().err
    assert "check --base-url" in told and "http://127.0.0.1:9/v1/completions" in told


# --- words ---


@pytest.mark.parametrize(
    ("python", "here"),
    [
        ("pass local_files_only=True", "pass --local-files-only"),
        ("leave out local_files_only= and HF_HUB_OFFLINE", "leave out --local-files-only and HF_HUB_OFFLINE"),
        ('then pass base_url="http://h/v1" (more)', 'then pass --base-url "http://h/v1" (more)'),
        ("and max_tokens=150 ask for", "and --max-tokens 150 ask for"),
        ("pass tokenizer=, or max_tokens=.", "pass tokenizer=, or --max-tokens."),
        ('quantization="none" works; check model=', '--quantization "none" works; check --model'),
        ("base_url must end; temperature=-1", "--base-url must end; --temperature -1"),
        ("http://h/x?model=a and my_model=b", "http://h/x?model=a and my_model=b"),
    ],
)
def test_options_are_written_as_the_command_writes_them(python: str, here: str, engine, monkeypatch, capsys) -> None:
    def fails(options: object) -> EngineFields:
        logging.getLogger("karakuri_integrations").warning(python)
        raise OptionError(python)

    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    monkeypatch.setattr(cli, "_engine_fields", fails)
    assert cli.main(["ask", "hi"]) == 2
    assert capsys.readouterr().err == f"{here}\nkarakuri: {here}\n"


def test_ctrl_c_while_asking_is_130(monkeypatch, capsys) -> None:
    engine = Interrupted([])
    monkeypatch.setattr(cli, "_engine_fields", lambda options: EngineFields(engine=engine))
    monkeypatch.setattr(sys, "stdin", Terminal())
    assert cli.main(["ask", "one"]) == 130


def test_without_standard_input_the_question_is_enough(engine, capsys, monkeypatch) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    assert cli.main(["ask", "hi"]) == 0
    assert capsys.readouterr().out == "最初の答え\n"
    assert cli.main(["chat"]) == 2
    assert "no standard input" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["ask", "chat"])
def test_standard_input_that_is_no_text_is_exit_code_2(engine, capsys, monkeypatch, command: str) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"caf\xe9\n"), encoding="utf-8"))
    assert cli.main([command]) == 2
    assert "standard input is not utf-8 text" in capsys.readouterr().err


@pytest.mark.parametrize("form", [[], ["--json"]])
def test_an_output_that_lacks_the_characters_does_not_end_the_answer(engine, monkeypatch, form: list[str]) -> None:
    out = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(out, encoding="ascii"))
    assert cli.main(["ask", "hi", *form]) == 0
    sys.stdout.flush()
    shown = out.getvalue().decode("ascii")
    assert json.loads(shown)["text"] == "最初の答え" if form else shown == "?????\n"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="a shell pipe")
def test_a_reader_that_leaves_is_no_failure() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    script = "import sys; from karakuri_integrations.cli import main; sys.exit(main(sys.argv[1:]))"
    run = [sys.executable, "-c", script, "ask", "hi", "--show-prompt"]
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    done = subprocess.run(
        run, stdin=subprocess.DEVNULL, stdout=writer, stderr=subprocess.PIPE, env=buffered, check=False
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize("module", ["karakuri_integrations", "karakuri_integrations.cli"])
def test_python_m_is_the_command(module):
    import subprocess
    import sys

    found = subprocess.run([sys.executable, "-m", module, "nosuch"], capture_output=True, text=True, check=False)
    assert found.returncode == 2
    assert "the first word is no command" in found.stderr


@pytest.mark.parametrize(
    "arguments",
    [["ask", "hi", "-pSECRET"], ["-SECRET"], ["--my SECRET word"], ["-p SECRET word"]],
)
def test_what_begins_with_a_dash_is_not_shown_whole(capsys, arguments):
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    assert caught.value.code == 2
    assert "SECRET" not in capsys.readouterr().err
