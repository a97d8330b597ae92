"""Real servers of the embedded model: how they are found, started on a free port of this machine, and stopped.

`transformers serve` needs fastapi, uvicorn and openai beside transformers. `llama-server` is looked for in
$KARAKURI_LLAMA_SERVER (the file), in the cache folder that build_llama_server.sh fills, and on PATH. What is not
there is a skip with its reason. The weights are always the package's own.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import pytest

import karakuri_integrations

DEMO = Path(karakuri_integrations.__file__).parent / "demo"
TEMPLATE = "karakuri-lm-70b-chat-v0.1"
TEMPLATE_FILE = DEMO.parent / "chat_templates" / f"{TEMPLATE}.jinja"
MODEL = "karakuri-demo"
SLOTS = 2
#: Loading torch takes long on a machine that does other work.
START = 400.0


@dataclass(frozen=True)
class RealServer:
    """A running server. `name` as in `server=`; `root` without /v1; `log` is its output."""

    name: str
    root: str
    log: Path

    @property
    def url(self) -> str:
        return f"{self.root}/v1"


@contextlib.contextmanager
def running(name: str, command: list[str], port: int, folder: Path, **environment: str) -> Iterator[RealServer]:
    """Start it, wait until /health is good, and end it whatever happens."""
    log = folder / f"{name}.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, cwd=folder, stdout=output, stderr=subprocess.STDOUT, env={**os.environ, **environment}
        )
    server = RealServer(name, f"http://127.0.0.1:{port}", log)
    try:
        _wait(server, process)
        yield server
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait(server: RealServer, process: subprocess.Popen[bytes]) -> None:
    ends_at = time.monotonic() + START
    while time.monotonic() < ends_at:
        if process.poll() is not None:
            break
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{server.root}/health", timeout=5):
            return
        time.sleep(0.2)
    tail = server.log.read_text(encoding="utf-8", errors="replace")[-2000:]
    raise RuntimeError(f"{server.name} did not become ready within {START:g} s (exit code {process.poll()}):\n{tail}")


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


# --- transformers serve --------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def transformers_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealServer]:
    missing = [name for name in ("transformers", "torch", "fastapi", "uvicorn", "openai") if find_spec(name) is None]
    if missing:
        pytest.skip(f"`transformers serve` needs {', '.join(missing)}: pip install fastapi uvicorn openai")
    folder, port = tmp_path_factory.mktemp("transformers"), free_port()
    (folder / MODEL).symlink_to(DEMO, target_is_directory=True)  # the id that requests must name
    (folder / "hub" / "hub").mkdir(parents=True)  # /v1/models fails without a cache
    program = "from transformers.cli.transformers import app; app()"
    command = [sys.executable, "-c", program, "serve", MODEL, "--device", "cpu", "--dtype", "bfloat16"]
    command += ["--host", "127.0.0.1", "--port", str(port)]
    settings = {"HF_HOME": str(folder / "hub"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    with running("transformers", command, port, folder, **settings) as server:
        yield server


# --- llama-server --------------------------------------------------------------------------------------------------


def llama_server_binary() -> Path:
    """The llama-server to use; skips where there is none."""
    named = os.environ.get("KARAKURI_LLAMA_SERVER")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "karakuri-tests" / "llama-server"
    found = named or (str(cache) if cache.is_file() else shutil.which("llama-server"))
    if not found or not Path(found).is_file():
        where = f"KARAKURI_LLAMA_SERVER={named} is no file" if named else "llama-server is not installed"
        pytest.skip(f"{where}; tests/remote/build_llama_server.sh builds one")
    return Path(found)


@contextlib.contextmanager
def llama_server(folder: Path, quantization: str, template: Path = TEMPLATE_FILE) -> Iterator[RealServer]:
    """The embedded model on llama-server, in bf16 or q4_0, with a full window for each of its slots."""
    binary = llama_server_binary()
    pytest.importorskip("gguf", reason="the converter needs it: pip install gguf")
    from gguf_file import write

    model, port = write(folder / f"{MODEL}-{quantization}.gguf", quantization), free_port()
    command = [str(binary), "--model", str(model), "--alias", MODEL, "--host", "127.0.0.1", "--port", str(port)]
    command += ["--ctx-size", str(4096 * SLOTS), "--parallel", str(SLOTS), "--threads", "1", "--poll", "0"]
    command += ["--jinja", "--chat-template-file", str(template), "--offline", "--slots"]
    with running("llamacpp", command, port, folder) as server:
        yield server


@pytest.fixture(scope="session")
def llama_cpp(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealServer]:
    """The same weights as the local engine without quantisation."""
    with llama_server(tmp_path_factory.mktemp("llama-cpp"), "bf16") as server:
        yield server


@pytest.fixture(scope="session")
def llama_cpp_4bit(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealServer]:
    """llama.cpp's own 4 bits."""
    with llama_server(tmp_path_factory.mktemp("llama-cpp-4bit"), "q4_0") as server:
        yield server
