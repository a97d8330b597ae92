"""How to serve a family member at 4 bits: the exact commands for vLLM, SGLang and llama.cpp, as text. Starts nothing.

Knows which 4-bit checkpoints exist, what each server's flags are called, which combinations cannot work, and the
memory arithmetic. The chat template files that take the dials as `chat_template_kwargs` lie in `chat_templates/`;
which family a name means is `templates`' to say. A new server is a new record of `_SERVERS`.

Flags: docs.vllm.ai (`vllm serve`, Parallelism and Scaling), docs.sglang.io (Server Arguments, Custom Chat Template)
and tools/server/README.md of llama.cpp.
"""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from importlib.resources import files
from importlib.resources.abc import Traversable
from types import MappingProxyType
from typing import Final

from .errors import OptionError, UnknownModelError
from .templates import FAMILIES, Family, family_of_model

__all__ = ["QUANTIZATIONS", "SERVER_NAMES", "Serving", "serving_recipe", "template_text"]

_GB: Final = 10**9
#: What a GPU keeps for the server's own buffers, beside weights and KV cache; an assumption.
_OVERHEAD: Final = 2.5
#: The share of a GPU's memory that vLLM and SGLang take by default.
_USABLE: Final = 0.9
#: Parallel requests of a llama.cpp server where none are asked for.
_SLOTS: Final = 4


@dataclass(frozen=True)
class Serving:
    """What is to be served, and where.

    model: `70b-chat`, `8x7b-chat`, `8x7b-instruct` or the model's id. server: one of SERVER_NAMES. gpus: per host.
    quantization: one of QUANTIZATIONS, None for the server's best. weights: another 4-bit checkpoint than the known
    one, a repository or folder (for llama.cpp a repository or a .gguf file). context: tokens per request, None for
    the model's window. slots: parallel requests, for llama.cpp, which divides its cache by them. gpu_memory: GB per
    GPU, to check that everything fits. template_file: where the server finds the chat template, None for the
    package's own file.
    """

    model: str
    server: str
    gpus: int = 1
    hosts: int = 1
    quantization: str | None = None
    weights: str | None = None
    context: int | None = None
    slots: int | None = None
    gpu_memory: float | None = None
    template_file: str | None = None
    host: str = "127.0.0.1"
    port: int | None = None


@dataclass(frozen=True)
class _Member:
    """What a family member weighs. `bf16`, and per quantization (repository, GB); `kv` bytes of cache per token."""

    repository: str
    bf16: float
    kv: int
    kv_heads: int
    checkpoints: Mapping[str, tuple[str, float]]
    licence: str = ""


#: Layers x KV heads x 128 x 2 (keys and values) x 2 bytes. Sizes are those of the files listed on the hub.
_MEMBERS: Final[Mapping[str, _Member]] = MappingProxyType(
    {
        "karakuri-lm-70b-chat-v0.1": _Member(
            repository="karakuri-ai/karakuri-lm-70b-chat-v0.1",
            bf16=138.4,
            kv=80 * 8 * 128 * 2 * 2,
            kv_heads=8,
            checkpoints={
                "awq": ("masao1211/karakuri-lm-70b-chat-v0.1-AWQ", 36.8),
                "bitsandbytes": ("karakuri-ai/karakuri-lm-70b-chat-v0.1", 40.0),
                "gguf": ("mmnga/karakuri-lm-70b-chat-v0.1-gguf:Q4_K_M", 41.6),
            },
            licence="The model is under the Llama 2 Community License and KARAKURI's own terms: no commercial use "
            "without their word.",
        ),
        "karakuri-lm-8x7b-chat-v0.1": _Member(
            repository="karakuri-ai/karakuri-lm-8x7b-chat-v0.1",
            bf16=93.4,
            kv=32 * 8 * 128 * 2 * 2,
            kv_heads=8,
            checkpoints={
                "awq": ("GENIAC-Team-Ozaki/karakuri-lm-8x7b-chat-v0.1-awq", 24.7),
                "gguf": ("mradermacher/karakuri-lm-8x7b-chat-v0.1-GGUF:Q4_K_M", 28.4),
            },
        ),
        "karakuri-lm-8x7b-instruct-v0.1": _Member(
            repository="karakuri-ai/karakuri-lm-8x7b-instruct-v0.1",
            bf16=93.4,
            kv=32 * 8 * 128 * 2 * 2,
            kv_heads=8,
            checkpoints={"gguf": ("mradermacher/karakuri-lm-8x7b-instruct-v0.1-GGUF:Q4_K_M", 28.4)},
        ),
    }
)


@dataclass(frozen=True)
class _Plan:
    """Everything checked: what the writers of the commands need."""

    asked: Serving
    family: Family
    member: _Member
    quantization: str
    weights: str
    gigabytes: float
    context: int
    template: str
    port: int

    @property
    def gpus(self) -> int:
        return self.asked.gpus * self.asked.hosts

    @property
    def url(self) -> str:
        host = "127.0.0.1" if self.asked.host in ("0.0.0.0", "::") else self.asked.host  # noqa: S104  # compared only
        return f"http://{host}:{self.port}/v1"


@dataclass(frozen=True)
class _Server:
    """A server's facts: its name, default port, forms of 4 bits (the best first), install line and command."""

    name: str
    port: int
    quantizations: tuple[str, ...]
    install: str
    command: Callable[[_Plan], list[str]]
    several_hosts: bool = False
    slots: bool = False


def template_text(name: str) -> str:
    """The chat template file of a family, by its name or its model's."""
    return _template_file(_family(name)).read_text(encoding="utf-8")


def _template_file(family: Family) -> Traversable:
    return files("karakuri_integrations") / "chat_templates" / f"{family.name}.jinja"


def serving_recipe(asked: Serving) -> str:
    """The commands that serve it, how to connect, and the arithmetic, as a shell script with comments.

    Raises:
        OptionError: values that cannot work together; the message names the value, the rule and the next step.
        UnknownModelError: no family of that name.
    """
    plan = _plan(asked)
    parts = [_heading(plan), _memory(plan), _server_lines(plan), _connect(plan)]
    return "\n\n".join(parts) + "\n"


# --- checking ----------------------------------------------------------------------------------------------------


def _plan(asked: Serving) -> _Plan:
    family = _family(asked.model)
    server = _server(asked.server)
    asked = replace(asked, server=server.name)
    member = _MEMBERS[family.name]
    _check_sizes(asked, server, member)
    quantization, weights, gigabytes = _checkpoint(asked, server, family, member)
    context = _context(asked, family)
    plan = _Plan(
        asked=asked,
        family=family,
        member=member,
        quantization=quantization,
        weights=weights,
        gigabytes=gigabytes,
        context=context,
        template=asked.template_file or str(_template_file(family)),
        port=server.port if asked.port is None else asked.port,
    )
    _check_memory(plan)
    return plan


def _family(model: str) -> Family:
    family = FAMILIES.get(f"karakuri-lm-{model}-v0.1") or family_of_model(model)
    if family is None:
        short = ", ".join(name.removeprefix("karakuri-lm-").removesuffix("-v0.1") for name in _MEMBERS)
        raise UnknownModelError(
            f"no recipe for model {model!r:.80}; the models are {short}, or name one by its full id"
        )
    return family


def _server(name: str) -> _Server:
    """The record of a name; `llamacpp` is as good as `llama.cpp`, as in Python."""
    plain = name.lower().replace(".", "").replace("-", "")
    found = next((one for one in _SERVERS.values() if one.name.replace(".", "") == plain), None)
    if found is None:
        raise OptionError(f"server must be one of {', '.join(_SERVERS)}, got {name!r:.40}")
    return found


def _check_sizes(asked: Serving, server: _Server, member: _Member) -> None:
    for name, value in (("gpus", asked.gpus), ("hosts", asked.hosts), ("slots", asked.slots)):
        if value is not None and value < 1:
            raise OptionError(f"{name} must be at least 1, got {value}")
    if asked.port is not None and not 1 <= asked.port <= 65535:
        raise OptionError(f"port must be 1 to 65535, got {asked.port}")
    if server.name != "llama.cpp" and member.kv_heads % asked.gpus:
        raise OptionError(
            f"gpus={asked.gpus} cannot share the model's {member.kv_heads} KV heads evenly by tensor parallelism; "
            "take 1, 2, 4 or 8 per host, and more hosts for more"
        )
    if asked.hosts > 1 and not server.several_hosts:
        raise OptionError(f"hosts={asked.hosts}: {server.name} is set up here on one host only; take --server vllm")
    if asked.slots is not None and not server.slots:
        raise OptionError(
            f"slots={asked.slots}: {server.name} shares its cache by itself and has none; leave it out, "
            "or take --server llama.cpp"
        )


def _checkpoint(asked: Serving, server: _Server, family: Family, member: _Member) -> tuple[str, str, float]:
    """(quantization, repository or path, GB)."""
    if asked.quantization is not None and asked.quantization not in server.quantizations:
        raise OptionError(
            f"quantization={asked.quantization!r:.40}: {server.name} serves 4 bits here as "
            f"{' or '.join(server.quantizations)}; take one of these or another server"
        )
    wanted = (asked.quantization,) if asked.quantization else server.quantizations
    known = [name for name in wanted if name in member.checkpoints]
    if asked.weights is not None:
        quantization = wanted[0]
        sizes = [size for name, (_, size) in member.checkpoints.items() if name == quantization]
        return quantization, asked.weights, sizes[0] if sizes else max(s for _, s in member.checkpoints.values())
    if not known:
        raise OptionError(_no_checkpoint(wanted, server, family))
    return known[0], *member.checkpoints[known[0]]


def _no_checkpoint(wanted: tuple[str, ...], server: _Server, family: Family) -> str:
    mixtral = "mixtral" in family.model_types and "bitsandbytes" in wanted
    why = "; Mixtral's experts are not quantised while loading" if mixtral else ""
    return (
        f"no {' or '.join(wanted)} checkpoint of {family.name} is known for {server.name}{why}. "
        "Take --server llama.cpp, or name one of yours with --weights"
    )


def _context(asked: Serving, family: Family) -> int:
    context = family.context_window if asked.context is None else asked.context
    if not 256 <= context <= family.context_window:
        raise OptionError(
            f"context={context} must be 256 to {family.context_window}, the window of {family.name}; "
            "for longer requests take another model"
        )
    return context


def _check_memory(plan: _Plan) -> None:
    memory = plan.asked.gpu_memory
    if memory is None:
        return
    if not memory > 0:
        raise OptionError(f"gpu_memory must be above 0 (GB per GPU), got {memory:g}")
    needed = plan.gigabytes + _cache(plan, _parallel(plan)) + _OVERHEAD * plan.gpus
    free = memory * _USABLE * plan.gpus
    if needed > free:
        raise OptionError(
            f"gpu_memory={memory:g}: {plan.gigabytes:g} GB of weights, {_cache(plan, _parallel(plan)):.1f} GB for "
            f"{_parallel(plan)} x {plan.context} tokens and {_OVERHEAD:g} GB per GPU make {needed:.1f} GB, and "
            f"{_count(plan.gpus, 'GPU')} of {memory:g} GB hold{'s' if plan.gpus == 1 else ''} {free:.1f} GB at "
            f"{_USABLE:.0%}; take more GPUs, or a smaller --context"
            + (" or fewer --slots" if _SERVERS[plan.asked.server].slots else "")
        )


def _parallel(plan: _Plan) -> int:
    """How many full windows the server must hold at once: llama.cpp reserves its slots, the others need one."""
    return (plan.asked.slots or _SLOTS) if _SERVERS[plan.asked.server].slots else 1


def _cache(plan: _Plan, windows: int) -> float:
    """GB of KV cache for so many full requests."""
    return windows * plan.context * plan.member.kv / _GB


# --- writing -----------------------------------------------------------------------------------------------------


def _heading(plan: _Plan) -> str:
    asked = plan.asked
    where = _count(asked.gpus, "GPU") + (f" on each of {asked.hosts} hosts" if asked.hosts > 1 else "")
    lines = [f"# {plan.family.name} on {asked.server}, {_FORMS[plan.quantization]}, {where}"]
    if plan.member.licence:
        lines.append(f"# {plan.member.licence}")
    return "\n".join(lines)


def _memory(plan: _Plan) -> str:
    windows = _parallel(plan)
    weights, cache = plan.gigabytes, _cache(plan, windows)
    each = (weights + cache) / plan.gpus + _OVERHEAD
    lines = [
        f"# Memory: {weights:g} GB of weights at 4 bits (bf16: {plan.member.bf16:g} GB), "
        f"{plan.member.kv // 1024} KiB of KV cache per token,",
        f"# so {_cache(plan, 1):.2f} GB for a request of {plan.context:,} tokens. "
        f"With {_count(windows, 'such request')} and about {_OVERHEAD:g} GB of buffers",
        f"# it takes {each:.1f} GB per GPU: {_count(plan.gpus, 'GPU')} of {math.ceil(each / _USABLE)} GB or more, "
        f"{_USABLE:.0%} of it used (arithmetic, not measured).",
    ]
    if plan.quantization == "bitsandbytes":
        lines.append(f"# The bf16 weights ({plan.member.bf16:g} GB) are downloaded and quantised at every start.")
    return "\n".join(lines)


def _server_lines(plan: _Plan) -> str:
    server = _SERVERS[plan.asked.server]
    if plan.asked.hosts > 1:
        return _ray(plan, server)
    return f"{_install(plan, server)}\n{_joined(server.command(plan))}"


def _install(plan: _Plan, server: _Server) -> str:
    more = ' "bitsandbytes>=0.49.2"' if plan.quantization == "bitsandbytes" else ""
    more += ' "ray[cgraph]>=2.48.0"' if plan.asked.hosts > 1 else ""  # no longer comes with vLLM
    return server.install + more


def _joined(command: list[str]) -> str:
    """One option a line, as people paste it. The first word is the program."""
    return " \\\n  ".join(command)


def _option(name: str, value: object) -> str:
    return f"{name} {shlex.quote(str(value))}"


def _address(plan: _Plan) -> list[str]:
    options = [_option("--host", plan.asked.host), _option("--port", plan.port)]
    if plan.asked.host not in ("127.0.0.1", "localhost", "::1"):
        options.append('--api-key "$KARAKURI_API_KEY"')
    return options


#: With its default, a model can write white space between two tokens of JSON until max_tokens (vllm#40080); only the
#: command line can forbid that (vllm#48765), and only where it names the backend (vllm/config/structured_outputs.py).
_VLLM_GRAMMARS: Final = {"backend": "guidance", "disable_any_whitespace": True}


def _vllm(plan: _Plan) -> list[str]:
    asked = plan.asked
    # Under both names that people write (vllm#2894); a reply reports the first.
    names = f"--served-model-name {shlex.quote(plan.family.name)} {shlex.quote(plan.member.repository)}"
    command = [f"vllm serve {shlex.quote(plan.weights)}", names]
    if plan.quantization == "bitsandbytes":
        command.append("--quantization bitsandbytes")  # AWQ is read from the checkpoint's config
    if asked.gpus > 1:
        command.append(_option("--tensor-parallel-size", asked.gpus))
    if asked.hosts > 1:
        command += [_option("--pipeline-parallel-size", asked.hosts), "--distributed-executor-backend ray"]
    return [
        *command,
        _option("--max-model-len", plan.context),
        _option("--chat-template", plan.template),
        "--enable-prompt-tokens-details",
        _option("--structured-outputs-config", json.dumps(_VLLM_GRAMMARS)),
        *_address(plan),
    ]


def _sglang(plan: _Plan) -> list[str]:
    command = [
        f"python -m sglang.launch_server {_option('--model-path', plan.weights)}",
        _option("--served-model-name", plan.family.name),
    ]
    if plan.asked.gpus > 1:
        command.append(_option("--tp-size", plan.asked.gpus))
    return [
        *command,
        _option("--context-length", plan.context),
        _option("--chat-template", plan.template),
        "--enable-cache-report",
        "--grammar-backend llguidance",  # whose grammars read the style that calls are asked for in
        *_address(plan),
    ]


def _llama_cpp(plan: _Plan) -> list[str]:
    asked = plan.asked
    source = "--model" if plan.weights.endswith(".gguf") else "--hf-repo"
    command = [f"llama-server {_option(source, plan.weights)}", _option("--alias", plan.family.name)]
    if asked.gpus > 1:
        command.append(_option("--split-mode", "layer"))
        command.append(_option("--tensor-split", ",".join("1" * asked.gpus)))
    return [
        *command,
        "--n-gpu-layers 99",
        f"--ctx-size {plan.context * _parallel(plan)} --parallel {_parallel(plan)}",  # divided by the slots
        "--jinja",
        _option("--chat-template-file", plan.template),
        *_address(plan),
    ]


def _ray(plan: _Plan, server: _Server) -> str:
    """vLLM across hosts: tensor parallel inside a host, pipeline parallel between them."""
    local = "" if plan.weights.startswith(("/", ".", "~")) else f"hf download {shlex.quote(plan.weights)}\n"
    return f"""\
# 1. On every host: the same packages, weights and template file, in the same places. A private network: what the
#    hosts send each other is neither encrypted nor checked.
{_install(plan, server)}
{local}
# 2. On the first host; HEAD_IP is its address in that network
VLLM_HOST_IP=$HEAD_IP ray start --head --node-ip-address=$HEAD_IP --port=6379

# 3. On {"the other host" if plan.asked.hosts == 2 else "each other host"}; OWN_IP is its own
VLLM_HOST_IP=$OWN_IP ray start --address=$HEAD_IP:6379 --node-ip-address=$OWN_IP

# 4. On the first host, once `ray status` counts {plan.gpus} GPUs
VLLM_HOST_IP=$HEAD_IP {_joined(server.command(plan))}"""


def _connect(plan: _Plan) -> str:
    body = {
        "model": plan.family.name,
        "messages": [{"role": "user", "content": "富士山について教えてください。"}],
        "chat_template_kwargs": {"attributes": {"verbosity": 1, "humor": 2}},
    }
    key = ' \\\n  -H "Authorization: Bearer $KARAKURI_API_KEY"' if "--api-key" in " ".join(_address(plan)) else ""
    return f"""\
# Connect, in Python; the dials are checked and every turn keeps its own (the key: KARAKURI_API_KEY)
#   from karakuri_integrations.langchain import ChatKarakuri
#   llm = ChatKarakuri(base_url="{plan.url}", attributes={{"verbosity": 1}})
#   from karakuri_integrations.llama_index import KarakuriLLM
#   llm = KarakuriLLM(base_url="{plan.url}", attributes={{"verbosity": 1}})

# Or steer from any OpenAI client: with the package `openai` it is
#   client.chat.completions.create(..., extra_body={{"chat_template_kwargs": {{"attributes": {{"verbosity": 1}}}}}})
curl {plan.url}/chat/completions -H "Content-Type: application/json"{key} \\
  -d '{json.dumps(body, ensure_ascii=False)}'"""


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


_FORMS: Final = {
    "awq": "4 bits (AWQ)",
    "bitsandbytes": "4 bits (NF4, quantised while loading)",
    "gguf": "4 bits (GGUF)",
}
_SERVERS: Final[Mapping[str, _Server]] = {
    server.name: server
    for server in (
        _Server("vllm", 8000, ("awq", "bitsandbytes"), "pip install vllm", _vllm, True),
        _Server("sglang", 30000, ("awq",), 'pip install "sglang[all]"', _sglang),
        _Server(
            "llama.cpp",
            8080,
            ("gguf",),
            "# llama-server: https://github.com/ggml-org/llama.cpp/releases, built for your GPU",
            _llama_cpp,
            slots=True,
        ),
    )
}

#: The servers that recipes exist for.
SERVER_NAMES: Final = tuple(_SERVERS)
#: The forms of 4 bits that some server takes.
QUANTIZATIONS: Final = tuple(_FORMS)
