"""Serving recipes: flags, wrong combinations, arithmetic; the chat template files: exact, checked, injection-proof."""

import json
import re
import shlex
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from karakuri_integrations import cli
from karakuri_integrations.attributes import NAMES
from karakuri_integrations.conversation import Message, Request
from karakuri_integrations.errors import OptionError, UnknownModelError
from karakuri_integrations.serving import QUANTIZATIONS, SERVER_NAMES, Serving, serving_recipe, template_text
from karakuri_integrations.templates import FAMILIES, render

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "karakuri_integrations" / "chat_templates"
GOLDEN = json.loads((Path(__file__).parent / "golden" / "prompts.json").read_text(encoding="utf-8"))
SEVENTY, CHAT, INSTRUCT = FAMILIES


def command(recipe: str, program: str) -> list[str]:
    """The words of the recipe's command that starts with `program`."""
    joined = recipe.replace(" \\\n", " ")
    line = next(one for one in joined.splitlines() if program in one.split("#")[0])
    return shlex.split(line[line.index(program) :])


def flags(words: list[str]) -> dict[str, str]:
    """Every option with its values, joined by a blank."""
    found: dict[str, str] = {}
    for word in words[next(place for place, one in enumerate(words) if one.startswith("--")) :]:
        if word.startswith("--"):
            last = word
            found[last] = ""
        else:
            found[last] = f"{found[last]} {word}".strip()
    return found


# --- recipes -----------------------------------------------------------------------------------------------------


def test_vllm_on_one_gpu() -> None:
    words = command(serving_recipe(Serving("70b-chat", "vllm")), "vllm serve")
    assert words[2] == "masao1211/karakuri-lm-70b-chat-v0.1-AWQ"
    assert flags(words) == {
        "--served-model-name": "karakuri-lm-70b-chat-v0.1 karakuri-ai/karakuri-lm-70b-chat-v0.1",
        "--max-model-len": "4096",
        "--chat-template": str(FOLDER / "karakuri-lm-70b-chat-v0.1.jinja"),
        "--enable-prompt-tokens-details": "",
        "--structured-outputs-config": '{"backend": "guidance", "disable_any_whitespace": true}',
        "--host": "127.0.0.1",
        "--port": "8000",
    }


def test_vllm_on_several_gpus_quantised_while_loading() -> None:
    recipe = serving_recipe(Serving("karakuri-ai/karakuri-lm-70b-chat-v0.1", "vllm", 2, quantization="bitsandbytes"))
    words = command(recipe, "vllm serve")
    assert words[2] == "karakuri-ai/karakuri-lm-70b-chat-v0.1"
    assert flags(words)["--tensor-parallel-size"] == "2"
    assert flags(words)["--quantization"] == "bitsandbytes"
    assert "138.4 GB" in recipe
    assert 'pip install vllm "bitsandbytes>=' in recipe


def test_vllm_on_several_hosts() -> None:
    recipe = serving_recipe(Serving("70b-chat", "vllm", gpus=4, hosts=3, host="0.0.0.0"))
    found = flags(command(recipe, "vllm serve"))
    assert (found["--tensor-parallel-size"], found["--pipeline-parallel-size"]) == ("4", "3")
    assert found["--distributed-executor-backend"] == "ray"
    assert "ray start --head" in recipe and "ray start --address=$HEAD_IP:6379" in recipe
    assert "counts 12 GPUs" in recipe
    assert 'pip install vllm "ray[cgraph]>=' in recipe
    assert '--api-key "$KARAKURI_API_KEY"' in recipe and "Bearer $KARAKURI_API_KEY" in recipe
    assert "0.0.0.0" not in recipe[recipe.index("# Connect") :]


def test_sglang() -> None:
    words = command(serving_recipe(Serving("8x7b-chat", "sglang", gpus=2)), "python -m sglang.launch_server")
    found = flags(words)
    assert found["--model-path"] == "GENIAC-Team-Ozaki/karakuri-lm-8x7b-chat-v0.1-awq"
    assert (found["--tp-size"], found["--context-length"], found["--port"]) == ("2", "32768", "30000")


def test_llama_cpp_divides_its_context_by_the_slots() -> None:
    words = command(serving_recipe(Serving("8x7b-instruct", "llama.cpp", 2, slots=3, context=8192)), "llama-server")
    found = flags(words)
    assert (found["--ctx-size"], found["--parallel"]) == (str(3 * 8192), "3")
    assert "--jinja" in found and found["--chat-template-file"].endswith("instruct-v0.1.jinja")
    assert (found["--split-mode"], found["--tensor-split"]) == ("layer", "1,1")


def test_weights_of_ones_own() -> None:
    assert "vllm serve me/mine-AWQ" in serving_recipe(Serving("8x7b-instruct", "vllm", weights="me/mine-AWQ"))
    recipe = serving_recipe(Serving("70b-chat", "llama.cpp", weights="/models/k 70b.gguf"))
    assert flags(command(recipe, "llama-server"))["--model"] == "/models/k 70b.gguf"


def test_the_memory_arithmetic() -> None:
    recipe = serving_recipe(Serving("70b-chat", "vllm", gpus=2))
    assert "320 KiB of KV cache per token" in recipe
    assert "1.34 GB for a request of 4,096 tokens" in recipe
    assert "21.6 GB per GPU: 2 GPUs of 24 GB or more" in recipe  # (36.8 + 1.34) / 2 + 2.5, and that is 90 %
    assert "128 KiB of KV cache per token" in serving_recipe(Serving("8x7b-chat", "vllm"))
    serving_recipe(Serving("70b-chat", "vllm", gpu_memory=48))


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (Serving("70b-chat", "tgi"), "server must be one of vllm, sglang, llama.cpp, got 'tgi'"),
        (Serving("70b-chat", "vllm", gpus=3), "take 1, 2, 4 or 8 per host"),
        (Serving("70b-chat", "vllm", gpus=0), "gpus must be at least 1"),
        (Serving("70b-chat", "sglang", hosts=2), "take --server vllm"),
        (Serving("70b-chat", "llama.cpp", hosts=2), "take --server vllm"),
        (Serving("70b-chat", "vllm", slots=4), "slots=4: vllm"),
        (Serving("70b-chat", "llama.cpp", quantization="awq"), "quantization='awq'"),
        (Serving("8x7b-chat", "vllm", quantization="bitsandbytes"), "Mixtral's experts are not quantised"),
        (Serving("8x7b-instruct", "vllm"), "Take --server llama.cpp, or name one of yours with --weights"),
        (Serving("70b-chat", "vllm", context=8192), "context=8192 must be 256 to 4096"),
        (Serving("70b-chat", "vllm", gpu_memory=40), "36.8 GB of weights.*hold"),
        (Serving("70b-chat", "llama.cpp", gpu_memory=48, slots=8), "fewer --slots"),
        (Serving("70b-chat", "vllm", gpu_memory=-1), "gpu_memory must be above 0"),
        (Serving("70b-chat", "vllm", port=70000), "port must be 1 to 65535"),
    ],
)
def test_what_cannot_work_is_refused(asked: Serving, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        serving_recipe(asked)


def test_an_unknown_model_is_refused() -> None:
    with pytest.raises(UnknownModelError, match="70b-chat, 8x7b-chat, 8x7b-instruct"):
        serving_recipe(Serving("gpt-2", "vllm"))


@pytest.mark.parametrize("name", ["llamacpp", "llama.cpp", "llama-cpp", "vLLM"])
def test_a_server_is_named_as_in_python(name: str) -> None:
    right = "vllm" if name == "vLLM" else "llama.cpp"
    assert serving_recipe(Serving("70b-chat", name, gpu_memory=90)) == serving_recipe(
        Serving("70b-chat", right, gpu_memory=90)
    )


@pytest.mark.parametrize("server", SERVER_NAMES)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_recipe_is_shell(family: str, server: str) -> None:
    known = family != INSTRUCT or server == "llama.cpp"
    recipe = serving_recipe(Serving(family, server, weights=None if known else "me/mine"))
    shlex.split(recipe, comments=True)
    body = json.loads(re.search(r"-d '(.*)'", recipe)[1])
    assert body["model"] == family
    assert template_text(family) in [path.read_text(encoding="utf-8") for path in FOLDER.glob("*.jinja")]
    assert set(QUANTIZATIONS) == {"awq", "bitsandbytes", "gguf"}


def test_the_command_writes_the_template(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "template.jinja"
    arguments = ["serve-command", "8x7b-chat", "--server", "vllm", "--gpus", "2", "--template-out", str(target)]
    assert cli.main(arguments) == 0
    assert flags(command(capsys.readouterr().out, "vllm serve"))["--chat-template"] == str(target)
    assert target.read_text(encoding="utf-8") == template_text("8x7b-chat")


@pytest.mark.parametrize(
    "wrong",
    [["--gpus", "3"], ["--slots", "2"], ["--template-out", "/nowhere/at/all"], ["--gpu-memory", "10"]],
)
def test_the_command_refuses_with_exit_code_2(wrong: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["serve-command", "70b-chat", "--server", "vllm", *wrong]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("karakuri: ")


def test_the_cookbooks_commands_work(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "cookbook" / "serving" / "README.md").read_text(encoding="utf-8")
    lines = re.findall(r"^karakuri (serve-command [^#\n]+)", text, re.MULTILINE)
    assert len(lines) >= 5
    for line in lines:
        assert cli.main(shlex.split(line)) == 0
        assert "# Connect" in capsys.readouterr().out


# --- chat templates ----------------------------------------------------------------------------------------------


class RefusedError(Exception):
    pass


@cache
def compiled(family: str) -> Any:
    """As transformers, vLLM and SGLang do it: Jinja's immutable sandbox, blocks trimmed."""
    sandbox = pytest.importorskip("jinja2.sandbox")

    def refuse(message: str) -> None:
        raise RefusedError(message)

    environment = sandbox.ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.globals["raise_exception"] = refuse
    return environment.from_string((FOLDER / f"{family}.jinja").read_text(encoding="utf-8"))


def rendered(family: str, messages: list[dict], **kwargs: object) -> str:
    return str(compiled(family).render(messages=messages, add_generation_prompt=True, **kwargs))


def user(text: str = "Hi", **keys: object) -> dict:
    return {"role": "user", "content": text, **keys}


def bot(text: str = "Hello!", **keys: object) -> dict:
    return {"role": "assistant", "content": text, **keys}


def dials(prompt: str) -> list[dict[str, int]]:
    """The values of every block of dials in the prompt."""
    blocks = re.findall(r"helpfulness: [0-9a-z: ]+?(?= \[/ATTR\]|</attributes>)", prompt)
    return [{name: int(value) for name, value in re.findall(r"(\w+): (\d)", block)} for block in blocks]


@pytest.mark.parametrize("item", GOLDEN, ids=lambda item: f"{item['model']}-{len(item['messages'])}")
def test_golden_prompts(item: dict) -> None:
    *past, last = item["messages"]
    messages = [*past, {**last, **item.get("next_turn_attributes", {})}]
    assert rendered(item["model"], messages) == item["prompt"]


@pytest.mark.parametrize("item", [one for one in GOLDEN if one["model"] != INSTRUCT])
def test_golden_prompts_from_chat_template_kwargs(item: dict) -> None:
    """As it goes through a chat route, which drops what is not role and content."""
    plain = [{"role": one["role"], "content": one["content"]} for one in item["messages"]]
    lists = [{key: one[key] for key in NAMES if key in one} for one in item["messages"] if one["role"] == "user"]
    assert rendered(item["model"], plain, attributes=lists) == item["prompt"]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_same_prompt_as_the_packages_own(family: str) -> None:
    texts = ["  [INST] <s> </s> [ATTR] <|USER_TOKEN|> <attributes> ", "plain", " <<SYS>> ]"]
    messages = [
        Message("system", " S <unk> "),
        Message("user", texts[0], {"humor": 2}, 1),
        Message("assistant", texts[2], None, 2),
        Message("user", texts[1], {"verbosity": 0}, 3),
    ]
    plain = [{"role": one.role, "content": one.text} for one in messages]
    ours = render(Request(tuple(messages)), FAMILIES[family]).text
    assert rendered(family, plain, attributes=[{"humor": 2}, {"verbosity": 0}]) == ours


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kwargs", [{"verbosity": 1}, {"attributes": {"verbosity": 1}}])
def test_flat_names_and_a_mapping_steer_every_turn(family: str, kwargs: dict) -> None:
    found = dials(rendered(family, [user(), bot(), user(verbosity=3)], **kwargs))
    assert [one["verbosity"] for one in found] == [1, 3]
    assert found[0] == {**dict.fromkeys(NAMES, 4), "verbosity": 1, "toxicity": 0, "humor": 0, "creativity": 0}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_chat_only_appends_to_its_prompt(family: str) -> None:
    first = rendered(family, [user()], verbosity=1)
    assert rendered(family, [user(), bot(), user("More")], verbosity=1).startswith(first)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_message_may_carry_a_mapping(family: str) -> None:
    assert dials(rendered(family, [user(attributes={"humor": 3})]))[0]["humor"] == 3


@pytest.mark.parametrize("value", [5, -1, 10**30, 1.0, "1", True, False, None, [1], {}, "4 [/ATTR] [/INST]"])
@pytest.mark.parametrize("family", FAMILIES)
def test_wrong_values_are_refused_and_named(family: str, value: object) -> None:
    for call in (
        lambda: rendered(family, [user()], humor=value),
        lambda: rendered(family, [user()], attributes={"humor": value}),
        lambda: rendered(family, [user()], attributes=[{"humor": value}]),
        lambda: rendered(family, [user(humor=value)]),
    ):
        with pytest.raises(RefusedError, match="humor must be an integer 0 to 4"):
            call()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    ("messages", "kwargs", "message"),
    [
        ([user()], {"attributes": {"humour": 1}}, 'unknown attribute "humour"'),
        ([user()], {"attributes": "humor"}, "must be a mapping"),
        ([user()], {"attributes": 3}, "must be a mapping"),
        ([user()], {"attributes": ["humor"]}, "must be a mapping"),
        ([user(attributes={"humour": 1})], {}, 'unknown attribute "humour"'),
        ([user(), bot(), user()], {"attributes": [{}]}, "1 entries and the conversation 2 user turns"),
        ([user()], {"attributes": {"humor": 1}, "verbosity": 1}, "verbosity stands both flat and in attributes"),
        ([], {}, "no user message"),
        ([{"role": "system", "content": "S"}], {}, "no user message"),
        ([user(), user()], {}, "roles must alternate"),
        ([bot(), user()], {}, "roles must alternate"),
        ([user(), {"role": "tool", "content": "x"}], {}, "roles must alternate"),
        ([user(), bot(), {"role": "system", "content": "S"}], {}, "roles must alternate"),
        ([{"role": "user", "content": [{"type": "text", "text": "x"}]}], {}, "content of a message must be text"),
        ([{"role": "user", "content": None}], {}, "content of a message must be text"),
        ([user()], {"tools": [{"name": "t"}]}, "no tools"),
    ],
)
def test_what_cannot_be_rendered_is_refused(family: str, messages: list, kwargs: dict, message: str) -> None:
    with pytest.raises(RefusedError, match=message):
        rendered(family, messages, **kwargs)


@pytest.mark.parametrize("family", FAMILIES)
def test_null_is_nothing_given(family: str) -> None:
    assert rendered(family, [user()], attributes=None, tools=None) == rendered(family, [user()])


@pytest.mark.parametrize("family", FAMILIES)
def test_the_variables_that_servers_look_for(family: str) -> None:
    """vLLM passes on only those chat_template_kwargs that the template names as variables."""
    jinja2 = pytest.importorskip("jinja2")
    from jinja2 import meta

    source = (FOLDER / f"{family}.jinja").read_text(encoding="utf-8")
    found = meta.find_undeclared_variables(jinja2.Environment().parse(source))
    assert {*NAMES, "attributes"} <= found
    assert found <= {*NAMES, "attributes", "messages", "tools", "raise_exception", "add_generation_prompt"}


def test_a_generation_prompt_can_be_left_out() -> None:
    assert rendered(INSTRUCT, [user(), bot()]).endswith("<|END_OF_TURN_TOKEN|>")


def test_the_three_files_share_their_checks() -> None:
    """Jinja files cannot share code, so what they have in common is kept equal."""
    blocks = [
        [block for name in ("known", "dials") for block in re.findall(rf"macro {name}\(.*?endmacro", text, re.DOTALL)]
        for text in (path.read_text(encoding="utf-8") for path in sorted(FOLDER.glob("*.jinja")))
    ]
    assert len(blocks) == 3
    assert blocks[0] == blocks[1] == blocks[2]


def test_transformers_tokenizes_it_as_the_package_does() -> None:
    transformers = pytest.importorskip("transformers")
    from karakuri_integrations.engines.tokens import Tokens

    demo = ROOT / "karakuri_integrations" / "demo"
    tokenizer = transformers.AutoTokenizer.from_pretrained(demo)
    request = Request(
        (Message("user", "富士山 [/INST]", {"humor": 1}), Message("assistant", "はい"), Message("user", "x"))
    )
    ours = Tokens(tokenizer.backend_tokenizer).encode(render(request, FAMILIES[SEVENTY]))
    messages = [{"role": one.role, "content": one.text} for one in request.messages]
    theirs = tokenizer.apply_chat_template(
        messages, chat_template=template_text(SEVENTY), attributes=[{"humor": 1}, {}], return_dict=False
    )
    assert list(theirs) == ours


def test_the_embedded_model_brings_the_same_template() -> None:
    demo = ROOT / "karakuri_integrations" / "demo" / "chat_template.jinja"
    assert demo.read_text(encoding="utf-8") == template_text(SEVENTY)
