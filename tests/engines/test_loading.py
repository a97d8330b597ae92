"""Loading: what is refused before it costs anything, what is measured after it, and the canary."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from karakuri_integrations.engines import LocalEngine, loading, memory, precision
from karakuri_integrations.engines import checkpoint as checkpoints
from karakuri_integrations.engines.checkpoint import Checkpoint, source_of
from karakuri_integrations.engines.precision import PRECISIONS
from karakuri_integrations.engines.safety import tensors
from karakuri_integrations.errors import (
    InsufficientMemoryError,
    MissingDependencyError,
    ModelLoadError,
    QuantizationError,
)

from .conftest import answer, loaded_model, make_tokenizer, prompt_of
from .test_safety import changed

SEVENTY = {
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "hidden_size": 8192,
}


def seventy_billion() -> list:
    """The tensors of karakuri-lm-70b-chat-v0.1, in bfloat16."""
    shapes = [
        ("model.embed_tokens.weight", (45416, 8192)),
        ("lm_head.weight", (45416, 8192)),
        ("model.norm.weight", (8192,)),
    ]
    for layer in range(80):
        shapes += [
            (f"model.layers.{layer}.{name}.weight", shape)
            for name, shape in {
                "self_attn.q_proj": (8192, 8192),
                "self_attn.k_proj": (1024, 8192),
                "self_attn.v_proj": (1024, 8192),
                "self_attn.o_proj": (8192, 8192),
                "mlp.gate_proj": (28672, 8192),
                "mlp.up_proj": (28672, 8192),
                "mlp.down_proj": (8192, 28672),
                "input_layernorm": (8192,),
                "post_attention_layernorm": (8192,),
            }.items()
        ]
    from karakuri_integrations.engines.safety import Tensor

    made = [Tensor(name, shape, 0) for name, shape in shapes]
    return [Tensor(one.name, one.shape, one.count * 2) for one in made]


def test_the_estimate_of_the_real_model():
    parts = seventy_billion()
    assert sum(one.count for one in parts) == 69_196_455_936
    found = memory.estimate(parts, SEVENTY, PRECISIONS["nf4"], stored=False, window=4096)
    assert found.weights / 1e9 == pytest.approx(36.8, abs=0.1)
    assert found.cache == 4096 * 327_680
    assert memory.estimate(parts, SEVENTY, PRECISIONS["bf16"], stored=False, window=4096).weights == 2 * 69_196_455_936
    assert memory.estimate(parts, SEVENTY, PRECISIONS["fp32"], stored=False, window=4096).weights == 4 * 69_196_455_936


def test_the_estimate_matches_what_is_loaded(engine, checkpoint):
    found = memory.estimate(
        tensors(Checkpoint(source_of(checkpoint))), {}, PRECISIONS["nf4"], stored=False, window=4096
    )
    assert engine.report().weight_bytes == pytest.approx(found.weights, rel=0.2)


def test_too_little_memory_is_refused_before_loading_with_the_numbers(checkpoint, monkeypatch):
    from transformers import AutoModelForCausalLM

    monkeypatch.setattr(loading, "free_ram", lambda: 10 * 2**20)
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", lambda *_, **__: pytest.fail("loaded"))
    with pytest.raises(InsufficientMemoryError, match=r"needs about 0\.1 GiB on cpu .* 0\.0 GiB are free; .*nf4"):
        LocalEngine(checkpoint, device="cpu", quantization="fp16").report()


def test_free_memory_is_a_number():
    assert 2**20 < memory.free_ram() < 2**50


def test_a_container_limit_counts(monkeypatch):
    monkeypatch.setattr(memory, "_container_room", lambda: [123])
    assert memory.free_ram() == 123


# What bitsandbytes cannot do


@pytest.fixture(scope="session")
def mixtral(tmp_path_factory) -> Path:
    import torch
    from transformers import MixtralConfig, MixtralForCausalLM

    folder = tmp_path_factory.mktemp("mixtral") / "karakuri-lm-8x7b-chat-v0.1"
    make_tokenizer(folder)
    config = MixtralConfig(
        vocab_size=400, hidden_size=64, intermediate_size=128, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=2, num_local_experts=4, max_position_embeddings=512,
    )  # fmt: skip
    MixtralForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    return folder


def test_experts_that_would_stay_in_bf16_are_an_error_before_the_weights_are_fetched(mixtral, monkeypatch):
    monkeypatch.setattr(Checkpoint, "complete", lambda _: pytest.fail("fetched"))
    with pytest.raises(QuantizationError, match=r'only \d+% .*quantization="none"'):
        LocalEngine(mixtral, device="cpu").report()


def test_a_mixture_runs_unquantised(mixtral):
    engine = LocalEngine(mixtral, device="cpu", quantization="none")
    assert engine.family.name == "karakuri-lm-8x7b-chat-v0.1"
    assert engine.context_window == 512
    assert len(answer(engine)) > 0
    engine.close()


def test_a_model_that_came_out_unquantised_is_an_error(checkpoint, monkeypatch):
    bits = loading.bitsandbytes_arguments

    def skipping(*given):
        made = bits(*given)
        made["quantization_config"].llm_int8_skip_modules = ["gate_proj", "up_proj", "down_proj", "lm_head"]
        return made

    monkeypatch.setattr(loading, "bitsandbytes_arguments", skipping)
    engine = LocalEngine(checkpoint, device="cpu")
    engine.close()
    with pytest.raises(QuantizationError, match="only 33%"):
        engine.report()


def test_where_bitsandbytes_fails_only_the_packaged_model_falls_back(checkpoint, monkeypatch):
    def broken():
        raise OSError("no native library")

    monkeypatch.setattr(loading, "import_bitsandbytes", broken)
    engine = LocalEngine(checkpoint, device="cpu", quantization="fp4")
    engine.close()
    with pytest.raises(QuantizationError, match=r'\(OSError\).*quantization="none"'):
        engine.report()
    packaged = checkpoints.Source(name="packaged", folder=str(checkpoint), packaged=True)
    with pytest.warns(UserWarning, match="held in bf16 instead of nf4"):
        loaded = loading.load(Checkpoint(packaged), PRECISIONS["nf4"], "cpu")
    assert loaded.report.quantization == "bf16"
    assert loaded.report.quantized_modules == ()


def test_bitsandbytes_that_is_not_installed_is_a_missing_dependency(checkpoint, monkeypatch):
    find = precision.importlib.util.find_spec
    monkeypatch.setattr(
        precision.importlib.util, "find_spec", lambda name: None if name == "bitsandbytes" else find(name)
    )
    with pytest.raises(
        MissingDependencyError, match=r'pip install "karakuri-integrations\[local\]".*quantization="none"'
    ):
        loading.load(Checkpoint(source_of(checkpoint)), PRECISIONS["nf4"], "cpu")


def test_importing_bitsandbytes_fetches_no_code(tmp_path, monkeypatch):
    (tmp_path / "kernels.py").write_text("")
    (tmp_path / "bitsandbytes.py").write_text("try:\n import kernels\nexcept ImportError:\n kernels = None\n")
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("kernels", "bitsandbytes"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    assert loading.import_bitsandbytes().kernels is None
    import kernels  # it is hidden only meanwhile

    assert kernels is sys.modules["kernels"]
    monkeypatch.delitem(sys.modules, "kernels")


# Checkpoints that are stored quantised


def test_a_checkpoint_stored_in_4_bits_is_loaded_as_it_is(checkpoint, tmp_path):
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        checkpoint,
        dtype=torch.bfloat16,
        device_map={"": "cpu"},
        **loading.bitsandbytes_arguments(PRECISIONS["nf4"], loading._CPU),
    )
    folder = tmp_path / "stored"
    model.save_pretrained(folder)
    make_tokenizer(folder)
    engine, reference = LocalEngine(folder, device="cpu"), LocalEngine(checkpoint, device="cpu")
    report = engine.report()
    assert report.quantization == "bitsandbytes"
    assert len(report.quantized_modules) == 14
    assert report.quantized_share == 1
    assert answer(engine) == answer(reference)
    with pytest.raises(QuantizationError, match='cannot be loaded as "bf16"'):
        LocalEngine(folder, device="cpu", quantization="bf16").report()
    engine.close()


@pytest.mark.parametrize(("method", "names"), [("gptq", "gptqmodel"), ("awq", "gptqmodel")])
def test_gptq_and_awq_without_their_library_name_the_pip_command(copied, method, names):
    changed(copied, "config.json", quantization_config={"quant_method": method, "bits": 4, "group_size": 128})
    with pytest.raises(MissingDependencyError, match=f"quantised with {method}: pip install {names}"):
        LocalEngine(copied, device="cpu").report()


@pytest.mark.parametrize(
    "settings", [{"quant_method": "exl2"}, {"quant_method": None}, "gptq", {"quant_method": ["gptq"]}]
)
def test_an_unknown_stored_form_is_named(copied, settings):
    changed(copied, "config.json", quantization_config=settings)
    with pytest.raises(QuantizationError, match="this engine loads bitsandbytes, gptq, awq"):
        LocalEngine(copied, device="cpu").report()


# Damage and devices


def test_weights_that_are_missing_are_an_error_not_random_numbers(copied):
    from safetensors.torch import load_file, save_file

    weights = load_file(copied / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, copied / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelLoadError, match=r"lacks 1 of the weights .*model\.layers\.1\.mlp\.up_proj\.weight"):
        LocalEngine(copied, device="cpu", quantization="bf16").report()


def test_weights_of_another_shape_are_an_error(copied):
    changed(copied, "config.json", intermediate_size=256)
    with pytest.raises(ModelLoadError):
        LocalEngine(copied, device="cpu", quantization="bf16").report()


@pytest.mark.parametrize("device", ["cuda", "cuda:1", "balanced"])
def test_a_device_that_is_not_there(checkpoint, device):
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(ModelLoadError, match="torch sees no CUDA device"):
        LocalEngine(checkpoint, device=device, quantization="bf16").report()


@pytest.mark.parametrize(
    ("device", "free", "place"),
    [
        ("auto", [10**9], {"": "cuda:0"}),
        ("auto", [10**9, 2 * 10**9], {"": "cuda:1"}),
        ("auto", [60 * 2**20, 60 * 2**20], "auto"),
        ("balanced", [10**9, 10**9], "balanced"),
        ("cuda", [10**9, 10**9], {"": "cuda:0"}),
        ("cuda:1", [10**9, 10**9], {"": "cuda:1"}),
        ("cpu", [10**9], {"": "cpu"}),
        ("cuda:2", [10**9], ModelLoadError),
        ("cuda", [10**6], InsufficientMemoryError),
        ("auto", [10**6, 10**6], InsufficientMemoryError),
    ],
)
def test_where_a_model_goes(checkpoint, monkeypatch, device, free, place):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(free))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda card: (free[card], free[card]))
    given = (Checkpoint(source_of(checkpoint)), PRECISIONS["nf4"], None, device, "auto")
    if isinstance(place, type):
        with pytest.raises(place):
            loading._placed(*given)
    else:
        assert loading._placed(*given) == place


# The canary and notices


def test_the_canary_is_silent_when_all_agree(engine):
    assert engine.canary() == ()


@pytest.mark.parametrize(
    ("template", "found"),
    [
        (
            "{{ bos_token }}[INST] {{ messages[0]['content'] }} [ATTR] [/ATTR] [/INST]",
            "writes another prompt, from character",
        ),
        ("{{ raise_exception('no') }} [INST] [ATTR]", "cannot render"),
        ("{% for m in messages %}{{ m.nothing.at.all }}{% endfor %}[INST] [ATTR]", "cannot render"),
    ],
)
def test_another_chat_template_is_reported_and_warned_of(checkpoint, tmp_path, template, found):
    import shutil

    folder = Path(shutil.copytree(checkpoint, tmp_path / "other-template"))
    (folder / "chat_template.jinja").write_text(template)
    engine = LocalEngine(folder, device="cpu")
    with pytest.warns(UserWarning, match="other-template differs from the prompt format karakuri-lm-70b-chat-v0.1"):
        assert answer(engine)
    assert found in engine.canary()[0]
    engine.close()


def test_without_a_chat_template_the_ids_are_compared(checkpoint, tmp_path):
    import shutil

    folder = Path(shutil.copytree(checkpoint, tmp_path / "karakuri-lm-70b-chat-v0.1"))
    (folder / "chat_template.jinja").unlink()
    assert LocalEngine(folder, device="cpu").canary() == ()


def test_a_vocabulary_without_the_end_token_is_reported(checkpoint):
    engine = LocalEngine(checkpoint, device="cpu", template="karakuri-lm-8x7b-instruct-v0.1")
    with pytest.warns(UserWarning, match="vocabulary lacks"):
        found = engine.canary()
    assert any("<|END_OF_TURN_TOKEN|>" in one for one in found)


def test_a_tokenizer_that_changes_text_is_reported(checkpoint, tmp_path):
    import shutil

    folder = Path(shutil.copytree(checkpoint, tmp_path / "karakuri-lm-70b-chat-v0.1"))
    path = folder / "tokenizer.json"
    settings = json.loads(path.read_text())
    settings["added_tokens"].append(
        {
            "id": 399,
            "content": "[INST]",
            "single_word": False,
            "lstrip": False,
            "rstrip": True,
            "normalized": False,
            "special": True,
        }
    )
    path.write_text(json.dumps(settings))
    with pytest.warns(UserWarning, match="tokenizer gives other ids"):
        LocalEngine(folder, device="cpu").canary()


def test_a_small_model_loads_without_a_progress_bar(checkpoint, capfd):
    engine = LocalEngine(checkpoint, device="cpu", quantization="fp4")
    engine.close()
    loaded_model(engine)
    assert "Loading weights" not in capfd.readouterr().err
    engine.close()


def test_warnings_as_errors_do_not_break_a_load(checkpoint, tmp_path):
    import shutil
    import warnings

    folder = Path(shutil.copytree(checkpoint, tmp_path / "other"))
    (folder / "chat_template.jinja").write_text("{{ messages }} [INST] [ATTR]")
    engine = LocalEngine(folder, device="cpu", quantization="bf16")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        assert answer(engine)
    engine.close()


def test_prompts_are_in_no_repr(engine):
    from karakuri_integrations.conversation import Sampling
    from karakuri_integrations.engines.channel import Deadline

    job = engine._job(prompt_of("合言葉"), Sampling(), Deadline(None))
    assert "合言葉" not in repr(job)
    assert "prompt_ids" not in repr(job)
