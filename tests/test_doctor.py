"""`karakuri doctor`: what it finds, with and without torch, and whether its arithmetic is that of the models."""

from __future__ import annotations

import json
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from karakuri_integrations import cli
from karakuri_integrations.doctor import machine
from karakuri_integrations.doctor.fitting import fitting
from karakuri_integrations.doctor.machine import Device
from karakuri_integrations.doctor.naming import model_of
from karakuri_integrations.doctor.sizing import MODELS, _tensors, need_of
from karakuri_integrations.engines import hub
from karakuri_integrations.engines.checkpoint import DEFAULT, Checkpoint, source_of
from karakuri_integrations.engines.memory import estimate
from karakuri_integrations.engines.precision import PRECISIONS
from karakuri_integrations.engines.safety import tensors
from karakuri_integrations.errors import ModelLoadError, OptionError, UnsafeModelError

BIG, MIXTRAL, DEMO = "karakuri-lm-70b-chat-v0.1", "karakuri-lm-8x7b-chat-v0.1", "karakuri-demo"
GB = 10**9


def test_the_shapes_give_the_published_numbers_of_parameters():
    assert sum(one.count for one in _tensors(MODELS[BIG].config)) == 69_196_455_936
    assert sum(one.count for one in _tensors(MODELS[MIXTRAL].config)) == 46_702_792_704


def test_what_the_70b_needs():
    four = need_of(BIG, "nf4")
    assert four.per_token == 320 * 1024
    assert four.weights == pytest.approx(36.8 * GB, rel=0.001)
    assert need_of(BIG, "bf16").weights == 2 * 69_196_455_936
    assert need_of(MIXTRAL, "bf16").per_token == 128 * 1024
    assert need_of(BIG, "nf4", "int8").per_token == 80 * 2 * 8 * (128 + 2)


def test_the_embedded_models_need_is_that_of_its_files():
    held = sum(one.bytes for one in tensors(Checkpoint(DEFAULT)))
    assert need_of(DEMO, "bf16").weights == held
    assert held / 4 < need_of(DEMO, "nf4").weights < held / 2  # its embedding stays in bf16


@pytest.mark.parametrize(
    ("name", "free", "at_once", "calls", "advice"),
    [
        (BIG, 80 * GB, 1, 30, 'quantization="nf4", device="cuda:0"'),
        (BIG, 80 * GB, 40, 30, "30 calls at once fit instead of 40 (max_batch=30); serve it on another machine"),
        (BIG, 39 * GB, 1, 0, "a call of 1,090 tokens fits instead of 4,096 (context_window=1090)"),
        (BIG, 24 * GB, 1, 0, "serve it on another machine: karakuri serve-command 70b-chat --server vllm"),
        (DEMO, 10**6, 1, 0, "free memory, or use another machine"),
    ],
)
def test_what_fits_and_what_to_change(name, free, at_once, calls, advice):
    places = [Device("cpu", "main memory", 10**6), Device("cuda:0", "a GPU", free, free, True)]
    found = fitting(name, None, at_once, places)
    four = found.forms[0]
    assert four.quantization == "nf4"
    assert (four.places[1].calls, four.places[1].fits) == (calls, calls >= at_once)
    assert four.needed_bytes == need_of(name, "nf4").total(found.context * at_once)
    assert advice in found.advice


@pytest.mark.parametrize(("at_once", "fits"), [(30, False), (31, True), (60, True), (61, False)])
def test_eight_bits_are_advised_where_they_are_enough(at_once, fits):
    places = [Device("cuda:0", "a GPU", 80 * GB, 80 * GB, True)]
    advice = fitting(BIG, None, at_once, places).advice
    line = f'engine=LocalEngine(model="karakuri-ai/{BIG}", quantization="nf4", device="cuda:0", kv_cache_dtype="int8")'
    assert advice.startswith(f"with keys and values in 8 bits it fits: {line}; or 30 calls at once fit") == fits
    assert ("int8" in advice) == fits
    asked = fitting(BIG, None, at_once, places, "int8")
    assert asked.forms[0].places[0].calls == 60
    assert (asked.advice == line) == (at_once <= 60)


def test_a_cpu_that_holds_the_70b_is_not_advised_alone():
    found = fitting(BIG, 4096, 1, [Device("cpu", "main memory", 80 * GB)])
    assert 'device="cpu" fits, but' in found.advice
    assert "karakuri serve-command 70b-chat" in found.advice


def test_a_context_beyond_the_window_is_the_window():
    beyond, within = fitting(BIG, 10**6, 1, []), fitting(BIG, 1000, 1, [])
    assert beyond.context == 4096
    assert within.context == 1000
    assert {*beyond.notes} - {*within.notes} == {
        "1,000,000 tokens are more than its window holds, so 4,096 are counted"
    }


def test_unknown_memory_is_said_to_be_unknown():
    found = fitting(BIG, None, 1, [Device("cpu", "main memory", None)])
    assert found.forms[0].places[0].fits is None
    assert "psutil" in found.advice


def test_the_mixture_is_not_offered_in_four_bits():
    found = fitting(MIXTRAL, None, 1, [])
    assert [one.quantization for one in found.forms] == ["bf16"]
    assert "experts" in found.notes[0]


def test_extras_and_what_is_missing(monkeypatch):
    named = ["torch>=2.6; extra == 'local'", 'nothing-like-it>=1; extra == "local"', "pytest>=9; extra == 'dev'"]
    named += ["karakuri-integrations[remote]; extra == 'sagemaker'", "unheard-of<2,>=1.35; extra == 'sagemaker'"]
    monkeypatch.setattr(machine.metadata, "requires", lambda name: named)
    monkeypatch.setattr(machine, "_version", lambda package: "2.6" if package == "torch" else None)
    local, sagemaker = machine.extras()
    assert (dict(local.installed), local.missing) == ({"torch": "2.6"}, ("nothing-like-it",))
    assert local.line == 'pip install "karakuri-integrations[local]"'
    assert sagemaker.missing == ("unheard-of",)


def test_gpus_are_known_from_the_driver_where_torch_is_not(monkeypatch, tmp_path):
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 'NVIDIA H100, 80GB HBM3, 70000, 81559'\necho 'broken'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr(machine, "find_spec", lambda name: None)
    found = machine.devices()
    assert [one.name for one in found] == ["cpu", "cuda:0"]
    assert (found[1].what, found[1].free) == ("NVIDIA H100, 80GB HBM3", 70000 * 2**20)


def test_two_gpus_can_hold_a_model_together(monkeypatch):
    cards = [Device(f"cuda:{n}", "a GPU", 24 * GB, 24 * GB, True) for n in range(2)]
    monkeypatch.setattr(machine, "_cards", lambda: cards)
    places = machine.devices()
    assert (places[-1].name, places[-1].free) == ("balanced", 48 * GB)
    assert 'device="balanced"' in fitting(BIG, None, 1, places[1:]).advice


def test_the_command_shows_everything(capsys):
    assert cli.main(["doctor", "--context", "1000", "--at-once", "2"]) == 0
    shown = capsys.readouterr().out
    for part in ("── Installed", "── Devices", "processor", "320 KiB a token", "karakuri-demo: 2 x 1,000 tokens"):
        assert part in shown
    assert shown.count("next   ") == len(MODELS)


def test_the_command_as_json(capsys):
    assert cli.main(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [one["model"] for one in found["models"]] == [*MODELS]
    assert found["models"][1]["forms"][0]["kv_bytes_per_token"] == 327_680
    assert found["devices"][0]["name"] == "cpu"


def test_the_command_counts_in_eight_bits(capsys):
    assert cli.main(["doctor", "--kv-cache-dtype", "int8"]) == 0
    shown = capsys.readouterr().out
    assert "162.5 KiB a token" in shown and "320 KiB" not in shown
    assert cli.main(["doctor", "--kv-cache-dtype", "int4"]) == 2
    assert "--kv-cache-dtype must be one of auto, int8, got 'int4'" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--context", "--at-once"])
def test_wrong_numbers_are_exit_code_2(capsys, option):
    assert cli.main(["doctor", option, "0"]) == 2
    assert f"{option} must be at least 1, got 0" in capsys.readouterr().err


# --- a model of one's own ---


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A folder `own` here with the files of a small Llama: two tensors of 16 bits, all zeros."""
    shapes = {"model.embed_tokens.weight": [1000, 64], "model.layers.0.mlp.up_proj.weight": [2048, 64]}
    folder = tmp_path / "own"
    folder.mkdir()
    start, header = 0, {}
    for name, (rows, columns) in shapes.items():
        header[name] = {"dtype": "BF16", "shape": [rows, columns], "data_offsets": [start, start + 2 * rows * columns]}
        start += 2 * rows * columns
    text = json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + bytes(start))
    change(folder, model_type="llama", hidden_size=64, num_hidden_layers=2, num_attention_heads=4)
    change(folder, num_key_value_heads=2, max_position_embeddings=512)
    monkeypatch.chdir(tmp_path)
    return folder


def change(folder: Path, **settings: object) -> Path:
    file = folder / "config.json"
    held = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps({key: one for key, one in {**held, **settings}.items() if one is not None}))
    return folder


def test_a_folder_is_sized_by_its_files_as_the_loader_does(own):
    found = fitting(model_of("./own"), None, 1, [])
    assert (found.model, found.window, found.context) == ("own", 512, 512)
    checkpoint = Checkpoint(source_of("./own"))
    for form in found.forms:
        needed = estimate(
            tensors(checkpoint), checkpoint.config, PRECISIONS[form.quantization], stored=False, window=512
        )
        assert (form.weight_bytes, form.needed_bytes) == (needed.weights, needed.total)
        assert form.kv_bytes_per_token == 2 * 2 * 2 * 16 * 2
    assert [one.quantization for one in found.forms] == ["nf4", "int8", "bf16"]
    assert found.forms[2].weight_bytes == 2 * (1000 * 64 + 2048 * 64)
    assert found.forms[0].weight_bytes < 2 * 1000 * 64 + 0.6 * 2048 * 64


def test_what_fits_of_a_folder_and_what_to_change(own):
    model, room = model_of("own"), 2**26 + 2**20
    for free, at_once, advice in (
        (room, 1, 'model="own", quantization="nf4", device="cpu"'),
        (
            room,
            20,
            "6 calls at once fit instead of 20 (max_batch=6); free memory, or use another machine (nf4 on cpu lacks",
        ),
        (2**26 + 265_616, 1, "a call of 273 tokens fits instead of 512 (context_window=273); free memory"),
        (2**20, 1, "free memory, or use another machine (nf4 on cpu lacks 63.3 MiB)"),
    ):
        found = fitting(model, None, at_once, [Device("cpu", "main memory", free)])
        assert found.advice.startswith(advice)
        assert found.forms[0].places[0].fits == (at_once == 1 and free == room)
    eight = fitting(model, None, 8, [Device("cpu", "main memory", room)], "int8")
    assert eight.forms[0].kv_bytes_per_token == 2 * 2 * 2 * (16 + 2)
    assert (eight.forms[0].places[0].calls, 'kv_cache_dtype="int8"' in eight.advice) == (11, True)


def test_the_command_sizes_one_model(own, capsys):
    change(own, max_position_embeddings=2048)
    assert cli.main(["doctor", "--model", "./own", "--context", "1000", "--at-once", "2"]) == 0
    shown = capsys.readouterr().out
    assert "── own: 2 x 1,000 tokens, window 2,048" in shown and "0.25 KiB a token" in shown
    assert 'next   model="./own", quantization="nf4", device=' in shown
    assert shown.count("next   ") == 1 and "karakuri-demo" not in shown
    assert "neither its name nor its files tell its prompt template: pass template=" in shown
    assert cli.main(["doctor", "--model", "./own", "--kv-cache-dtype", "int8", "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)["models"]
    assert (found["model"], found["forms"][0]["kv_bytes_per_token"]) == ("own", 144)


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        (DEMO, DEMO),
        (BIG, BIG),
        (f"karakuri-ai/{MIXTRAL}", MIXTRAL),
        ("karakuri-lm-8x7b-instruct-v0.1", "karakuri-lm-8x7b-instruct-v0.1"),
    ],
)
def test_the_familys_names_need_no_files(name, shown, monkeypatch):
    monkeypatch.setattr(hub, "fetch", lambda *_, **__: pytest.fail("the hub was asked"))
    found = fitting(model_of(name), None, 1, [Device("cpu", "main memory", 10**12)])
    assert found.model == shown
    if shown != DEMO:
        assert f'model="karakuri-ai/{shown}", ' in found.advice
        assert f"serve-command {shown.removeprefix('karakuri-lm-').removesuffix('-v0.1')} --server" in found.advice


def test_a_stored_form_and_a_mixture(own):
    mixture = fitting(model_of(str(change(own, num_local_experts=4, model_type="mixtral"))), None, 1, [])
    assert [one.quantization for one in mixture.forms] == ["bf16"]
    assert "experts" in mixture.notes[0]
    change(own, num_local_experts=None, quantization_config={"quant_method": "awq"})
    stored = fitting(model_of("own"), None, 1, [Device("cpu", "main memory", 10**9)])
    assert [one.quantization for one in stored.forms] == ["awq"]
    assert stored.forms[0].weight_bytes == 2 * (1000 * 64 + 2048 * 64)
    assert "it is stored quantised (awq) and loaded so" in stored.notes
    assert stored.advice == 'model="own", device="cpu"'


def test_a_hub_model_is_read_where_it_is_cached_and_never_asked_for(own, monkeypatch):
    monkeypatch.setattr(hub, "fetch", lambda *_, **__: pytest.fail("the hub was asked"))
    monkeypatch.setattr(hub, "cached_folder", lambda source: own if source.name == "someone/cached" else None)
    assert fitting(model_of("someone/cached"), None, 1, []).forms[2].weight_bytes == 2 * (1000 * 64 + 2048 * 64)
    with pytest.raises(OptionError, match=r"run `hf download foo/bar` first, or name a folder .*karakuri-lm-8x7b-inst"):
        model_of("foo/bar")
    with pytest.raises(OptionError, match=f"--model {BIG} sizes what it is a copy of"):
        model_of(f"someone/{BIG}-AWQ")


@pytest.mark.parametrize("value", [None, 0, "64", True, [1]])
@pytest.mark.parametrize("key", ["hidden_size", "num_hidden_layers"])
def test_a_shape_that_is_none(own, key, value):
    with pytest.raises(ModelLoadError, match=f"own: config.json must have an integer of at least 1 as {key}, got"):
        model_of(str(change(own, **{key: value})))


def test_what_the_loader_would_refuse_is_not_sized(own, capsys):
    assert cli.main(["doctor", "--model", "./nowhere"]) == 2
    assert "'nowhere' does not exist" in capsys.readouterr().err
    with pytest.raises(UnsafeModelError, match="known are"):
        model_of(str(change(own, model_type="gpt2")))
    change(own, model_type="llama")
    (own / "model.safetensors").unlink()
    assert cli.main(["doctor", "--model", "own"]) == 1
    assert "'model.safetensors' is missing" in capsys.readouterr().err


def test_the_embedded_models_copy_needs_what_it_does(tmp_path):
    shutil.copytree(str(DEFAULT.folder), tmp_path / "copy")
    assert need_of(model_of(str(tmp_path / "copy")), "nf4") == need_of(DEMO, "nf4")


def test_it_runs_without_torch_and_says_so():
    """In a Python that finds neither torch nor psutil."""
    program = """
import importlib.util, sys
real = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name == "torch" else real(name, package)
for name in ("torch", "psutil", "transformers"):
    sys.modules[name] = None
from karakuri_integrations.cli import main
sys.exit(main(["doctor"]))
"""
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert "not installed, so no model runs in this process: pip install" in found.stdout
    assert "free memory unknown" in found.stdout
    assert "unknown" in found.stdout.split("karakuri-lm-70b-chat")[1]


def test_finding_out_loads_nothing():
    program = (
        "import sys, karakuri_integrations.cli; print([m for m in ('torch', 'numpy', 'httpx') if m in sys.modules])"
    )
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert shown.stdout.strip() == "[]"
