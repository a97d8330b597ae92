"""Quantised copies: the tensors are transformers' own, runs go on where they stopped, damage and mix-ups are found."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections import namedtuple
from dataclasses import replace
from pathlib import Path

import pytest

from karakuri_integrations import cli
from karakuri_integrations.engines import LocalEngine, loading, manifest, quantizing, verifying
from karakuri_integrations.engines.checkpoint import Checkpoint, source_of
from karakuri_integrations.engines.manifest import MANIFEST
from karakuri_integrations.engines.precision import PRECISIONS
from karakuri_integrations.engines.quantizing import quantize
from karakuri_integrations.errors import (
    InsufficientMemoryError,
    ModelLoadError,
    OptionError,
    QuantizationError,
    UnsafeModelError,
)

from .conftest import answer, make_model
from .test_loading import mixtral  # noqa: F401  # a fixture
from .test_safety import changed

NF4 = PRECISIONS["nf4"]
SMALL = 60_000  # bytes of a shard: the tiny model makes several


def copy_of(folder: Path, out: Path, form: str = "nf4", **options):
    return quantize(Checkpoint(source_of(folder)), out, PRECISIONS[form], "cpu", **options)


def saved_by_transformers(source: Path, out: Path, form: str = "nf4") -> Path:
    """What a user gets who loads the source quantised with transformers and saves it at once."""
    import torch
    from transformers import AutoModelForCausalLM

    precision = PRECISIONS[form]
    AutoModelForCausalLM.from_pretrained(
        source,
        dtype=getattr(torch, precision.dtype),
        device_map={"": "cpu"},
        **loading.bitsandbytes_arguments(precision, {"": "cpu"}),
    ).save_pretrained(out)
    return out


def tensors(folder: Path) -> dict:
    from safetensors.torch import load_file

    return {name: one for file in folder.glob("*.safetensors") for name, one in load_file(file).items()}


def assert_same_tensors(found: Path, expected: Path) -> None:
    import torch

    ours, theirs = tensors(found), tensors(expected)
    assert ours.keys() == theirs.keys()
    for name, one in theirs.items():
        assert ours[name].dtype == one.dtype, name
        assert torch.equal(ours[name], one), name


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def copy(checkpoint, tmp_path_factory) -> Path:
    """A copy in NF4 that no test changes."""
    out = tmp_path_factory.mktemp("copies") / "tiny-llama-nf4"
    copy_of(checkpoint, out)
    return out


# The same as transformers


@pytest.mark.parametrize("form", ["nf4", "fp4", "int8"])
def test_the_weights_are_byte_for_byte_what_transformers_saves(checkpoint, tmp_path, form):
    copy_of(checkpoint, tmp_path / "ours", form)
    theirs = saved_by_transformers(checkpoint, tmp_path / "theirs", form)
    name = "model.safetensors"
    assert (tmp_path / "ours" / name).read_bytes() == (theirs / name).read_bytes()
    ours, expected = (json.loads((tmp_path / one / "config.json").read_text()) for one in ("ours", "theirs"))
    assert ours == expected


@pytest.mark.parametrize(
    ("dtype", "settings"),
    [
        ("float32", {}),
        ("float16", {"tie_word_embeddings": True}),
        ("bfloat16", {"attention_bias": True, "mlp_bias": True, "num_hidden_layers": 3}),
        ("bfloat16", {"hidden_size": 96, "intermediate_size": 100, "num_attention_heads": 3, "num_key_value_heads": 1}),
    ],
)
@pytest.mark.parametrize("form", ["nf4", "int8"])
def test_other_dtypes_shapes_and_several_shards(tmp_path, dtype, settings, form):
    import torch
    from transformers import AutoModelForCausalLM

    make_model(tmp_path / "one", **settings)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "one", dtype=getattr(torch, dtype))
    model.save_pretrained(tmp_path / "source", max_shard_size="70KB")
    assert len(list((tmp_path / "source").glob("*.safetensors"))) > 2
    copy_of(tmp_path / "source", tmp_path / "ours", form, shard_bytes=SMALL)
    assert len(list((tmp_path / "ours").glob("*.safetensors"))) > 1
    theirs = saved_by_transformers(tmp_path / "source", tmp_path / "theirs", form)
    assert_same_tensors(tmp_path / "ours", theirs)
    index = json.loads((tmp_path / "ours" / "model.safetensors.index.json").read_text())
    assert index["weight_map"].keys() == tensors(theirs).keys()
    assert index["metadata"]["total_size"] == sum(one.nbytes for one in tensors(theirs).values())
    _, info = AutoModelForCausalLM.from_pretrained(tmp_path / "ours", device_map={"": "cpu"}, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))


@pytest.mark.parametrize("form", ["nf4", "int8"])
def test_the_engine_answers_as_on_the_source_quantised_in_memory(checkpoint, tmp_path, form):
    copy_of(checkpoint, tmp_path / "copy", form, shard_bytes=SMALL)
    copied = LocalEngine(tmp_path / "copy", device="cpu")
    reference = LocalEngine(checkpoint, device="cpu", quantization=form)
    for text in ("富士山は？", "Mount Fuji", "ありがとう"):
        assert answer(copied, text, max_tokens=24) == answer(reference, text, max_tokens=24)
    report = copied.report()
    assert report.quantization == "bitsandbytes"
    assert report.quantized_modules == reference.report().quantized_modules
    assert copied.canary() == ()
    copied.close()
    reference.close()


def test_no_forward_pass_is_made_before_the_weights_are_saved(checkpoint, tmp_path, monkeypatch):
    import bitsandbytes

    loading.bitsandbytes_problem(NF4, "cpu")
    monkeypatch.setattr(quantizing, "bitsandbytes_problem", lambda *_: None)
    monkeypatch.setattr(bitsandbytes.nn.Linear4bit, "forward", lambda *_: pytest.fail("a forward pass"))
    copy_of(checkpoint, tmp_path / "copy")
    layers = [name for name in tensors(tmp_path / "copy") if name.endswith("proj.weight")]
    assert len(layers) == 14
    assert all(f"{name}.nested_absmax" in tensors(tmp_path / "copy") for name in layers)
    settings = json.loads((tmp_path / "copy" / "config.json").read_text())["quantization_config"]
    assert settings["bnb_4bit_use_double_quant"] is True


def test_a_source_that_is_quantised_already_is_refused(copy, tmp_path):
    with pytest.raises(QuantizationError, match="quantised already .*LocalEngine loads it as it is.*unquantised"):
        copy_of(copy, tmp_path / "again")
    assert not (tmp_path / "again").exists()


# What lies in the folder


def test_what_lies_beside_the_weights(checkpoint, tmp_path):
    source = Path(shutil.copytree(checkpoint, tmp_path / "karakuri-lm-70b-chat-v0.1"))
    (source / "LICENSE.txt").write_text("the licence")
    (source / "README.md").write_text("---\nlanguage:\n- ja\nlicense: other\ntags: [x]\n---\n\nThe card.\n")
    (source / "notes.json").write_text("{}")
    (source / "pytorch_model.bin").write_bytes(b"pickle")
    copy_of(source, tmp_path / "copy")
    taken = ("LICENSE.txt", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json")
    for name in taken:
        assert (tmp_path / "copy" / name).read_bytes() == (source / name).read_bytes()
    mine = {"README.md", "config.json", "model.safetensors", MANIFEST}
    assert {path.name for path in (tmp_path / "copy").iterdir()} == {*taken, *mine}
    card = (tmp_path / "copy" / "README.md").read_text()
    assert card.startswith("---\nlanguage:\n- ja\nlicense: other\nlibrary_name: transformers\n---\n")
    assert "developed by KARAKURI Inc." in card and "indicate your contributions" in card
    assert "NF4 with double quantisation" in card and card.endswith("The card.\n")
    assert str(tmp_path) not in card + (tmp_path / "copy" / MANIFEST).read_text()


def test_another_makers_model_gets_no_notice_of_karakuri(copy):
    card = (copy / "README.md").read_text()
    assert "KARAKURI Inc." not in card and "terms of the source" in card


def test_a_hub_model_is_recorded_with_its_commit(checkpoint, tmp_path):
    commit, repo = "c" * 40, tmp_path / "hub" / "models--someone--tiny"
    shutil.copytree(checkpoint, repo / "snapshots" / commit)
    (repo / "snapshots" / commit / "LICENSE").write_text("the licence")
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(commit)
    source = source_of("someone/tiny", None, tmp_path / "hub", True)
    with pytest.warns(UserWarning, match=f"now the commit {commit}"):
        made = quantize(Checkpoint(source), tmp_path / "copy", NF4, "cpu")
    assert (made.recipe.model, made.recipe.commit) == ("someone/tiny", commit)
    assert "LICENSE" in made.files
    card = (tmp_path / "copy" / "README.md").read_text()
    assert "base_model: someone/tiny\nbase_model_relation: quantized" in card and commit in card


def test_tensors_that_the_model_does_not_have_are_left_out(copied, tmp_path, copy):
    import torch
    from safetensors.torch import save_file

    more = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)}
    save_file({**tensors(copied), **more}, copied / "model.safetensors", metadata={"format": "pt"})
    copy_of(copied, tmp_path / "copy")
    assert_same_tensors(tmp_path / "copy", copy)


# Refused before anything is written


def test_weights_that_are_missing_or_of_another_shape(copied, tmp_path):
    from safetensors.torch import save_file

    weights = tensors(copied)
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, copied / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelLoadError, match=r"lacks 1 of .*model\.layers\.1\.mlp\.up_proj\.weight"):
        copy_of(copied, tmp_path / "copy")
    with pytest.raises(ModelLoadError, match="lacks 15 of"):
        copy_of(changed(copied, "config.json", intermediate_size=64, num_hidden_layers=3), tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


def test_experts_that_would_stay_as_they_are(mixtral, tmp_path):  # noqa: F811
    for form in ("nf4", "int8"):
        with pytest.raises(QuantizationError, match=r"only \d+%"):
            copy_of(mixtral, tmp_path / "copy", form)


def test_forms_and_devices_that_are_none(checkpoint, tmp_path):
    import torch

    with pytest.raises(OptionError, match="must be one of nf4, fp4, int8 to quantise to, got 'bf16'"):
        copy_of(checkpoint, tmp_path / "copy", "bf16")
    with pytest.raises(OptionError, match="device must be auto, cpu, cuda"):
        quantize(Checkpoint(source_of(checkpoint)), tmp_path / "copy", NF4, "balanced")
    if not torch.cuda.is_available():
        with pytest.raises(ModelLoadError, match="no CUDA device"):
            quantize(Checkpoint(source_of(checkpoint)), tmp_path / "copy", NF4, "cuda:1")


def test_unsafe_sources(copied, tmp_path):
    with pytest.raises(UnsafeModelError):
        copy_of(changed(copied, "config.json", auto_map={"AutoModelForCausalLM": "evil.Model"}), tmp_path / "copy")


def test_a_disk_or_memory_that_is_too_small(checkpoint, tmp_path, monkeypatch):
    usage = namedtuple("usage", "free")
    with monkeypatch.context() as patched:
        patched.setattr(quantizing.shutil, "disk_usage", lambda _: usage(10))
        with pytest.raises(QuantizationError, match=r"GiB more of disk and 0\.0 GiB are free"):
            copy_of(checkpoint, tmp_path / "copy")
    monkeypatch.setattr(quantizing, "free_ram", lambda: 10)
    with pytest.raises(InsufficientMemoryError, match="a shard of the copy and the largest layer"):
        copy_of(checkpoint, tmp_path / "copy")
    assert list((tmp_path / "copy").iterdir()) == []
    monkeypatch.undo()
    assert copy_of(checkpoint, tmp_path / "copy").complete


def test_a_folder_with_something_else_in_it(checkpoint, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(OptionError, match="holds other files"):
        copy_of(checkpoint, tmp_path / "mine")
    with pytest.raises(OptionError, match="is a file"):
        copy_of(checkpoint, tmp_path / "mine" / "thesis.txt")
    with pytest.raises(OptionError, match="holds other files"):
        copy_of(checkpoint, checkpoint)


# Interrupted runs

KILLED = """
import os, signal, sys
from pathlib import Path
import safetensors.torch
from karakuri_integrations.engines.checkpoint import Checkpoint, source_of
from karakuri_integrations.engines.precision import PRECISIONS
from karakuri_integrations.engines.quantizing import quantize

real, written = safetensors.torch.save_file, []

def save_file(tensors, path, metadata):
    if len(written) == 2:  # the third shard: half of it, then the power fails
        Path(path).write_bytes(b"half")
        Path(path).with_name(".tmp12345").write_bytes(b"half")  # as safetensors does
        os.kill(os.getpid(), signal.SIGKILL)
    written.append(path)
    real(tensors, path, metadata)

safetensors.torch.save_file = save_file
quantize(Checkpoint(source_of(sys.argv[1])), Path(sys.argv[2]), PRECISIONS["nf4"], "cpu", shard_bytes=int(sys.argv[3]))
"""


@pytest.fixture
def killed(checkpoint, tmp_path) -> Path:
    """A copy whose process was killed in the middle of the third shard."""
    out = tmp_path / "killed"
    done = subprocess.run([sys.executable, "-c", KILLED, str(checkpoint), str(out), str(SMALL)], capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    return out


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system has no SIGKILL")
def test_a_killed_run_goes_on_with_the_shards_that_are_missing(checkpoint, tmp_path, killed, monkeypatch):
    first = {path.name: path.stat().st_mtime_ns for path in killed.glob("*.safetensors")}
    assert len(first) == 2
    assert len(list((killed / ".part").iterdir())) == 2
    with pytest.raises(ModelLoadError, match=r"no config\.json"):
        LocalEngine(killed, device="cpu", template="karakuri-lm-70b-chat-v0.1").report()
    with pytest.raises(OptionError, match="is not finished"):
        verifying.check_files_intact(killed)
    written = count_writes(monkeypatch)
    made = copy_of(checkpoint, killed, shard_bytes=SMALL)
    assert made.complete
    assert written and not written & first.keys()
    assert {name: (killed / name).stat().st_mtime_ns for name in first} == first
    copy_of(checkpoint, tmp_path / "whole", shard_bytes=SMALL)
    assert bytes_of(killed) == bytes_of(tmp_path / "whole")
    assert {path.stat().st_mode for path in killed.iterdir()} == {(killed / "README.md").stat().st_mode}


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system has no SIGKILL")
def test_a_shard_that_was_damaged_meanwhile_is_made_again(checkpoint, killed, monkeypatch):
    name = "model-00001-of-" + next(killed.glob("model-00001-of-*")).name.partition("-of-")[2]
    damage(killed / name)
    written = count_writes(monkeypatch)
    copy_of(checkpoint, killed, shard_bytes=SMALL)
    assert name in written
    verifying.check_files_intact(killed)


def count_writes(monkeypatch) -> set[str]:
    written = set()
    real = quantizing._Writer.write

    def write(self, shard, advance):
        written.add(shard.name)
        real(self, shard, advance)

    monkeypatch.setattr(quantizing._Writer, "write", write)
    return written


def damage(path: Path) -> None:
    """One bit, somewhere behind the header; size and time stay."""
    content = bytearray(path.read_bytes())
    content[-1000] ^= 1
    stat = path.stat()
    path.write_bytes(content)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def test_a_complete_copy_is_not_written_again(checkpoint, copy, monkeypatch):
    before = {path.name: path.stat().st_mtime_ns for path in copy.iterdir()}
    written = count_writes(monkeypatch)
    assert copy_of(checkpoint, copy).complete
    assert not written
    assert {path.name: path.stat().st_mtime_ns for path in copy.iterdir()} == before


def test_another_source_or_option_is_refused(checkpoint, copied, copy, tmp_path):
    out = Path(shutil.copytree(copy, tmp_path / "copy"))
    before = bytes_of(out)
    with pytest.raises(OptionError, match=r"another quantization: this run has 'fp4', it was 'nf4'.*empty folder"):
        copy_of(checkpoint, out, "fp4")
    with pytest.raises(OptionError, match="another shard_bytes"):
        copy_of(checkpoint, out, shard_bytes=SMALL)
    with pytest.raises(OptionError, match="another model: this run has 'damaged', it was 'tiny-llama'"):
        copy_of(copied, out)
    other = copied.rename(tmp_path / "tiny-llama")
    damage(other / "model.safetensors")
    with pytest.raises(OptionError, match=r"another fingerprint: this run has other weights or another config\.json"):
        copy_of(other, out)
    assert bytes_of(out) == before


def test_a_write_that_fails_leaves_no_half_shard(checkpoint, tmp_path, monkeypatch):
    import safetensors.torch

    def full(_, path, metadata):
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(safetensors.torch, "save_file", full)
        with pytest.raises(QuantizationError, match=r"cannot be written \(OSError\).*goes on"):
            copy_of(checkpoint, tmp_path / "copy")
    assert not list((tmp_path / "copy").glob("*model*")) and not (tmp_path / "copy" / ".part").exists()
    assert copy_of(checkpoint, tmp_path / "copy").complete


def test_two_runs_do_not_write_to_one_folder(checkpoint, tmp_path):
    with manifest.locked(tmp_path / "copy"), pytest.raises(OptionError, match="another run writes to 'copy'"):
        copy_of(checkpoint, tmp_path / "copy")
    assert copy_of(checkpoint, tmp_path / "copy").complete


# Verifying


def test_damage_is_found(copy, tmp_path):
    out = Path(shutil.copytree(copy, tmp_path / "copy"))
    assert verifying.check_files_intact(out).complete
    damage(out / "model.safetensors")
    (out / "tokenizer.json").unlink()
    with pytest.raises(QuantizationError, match=r"2 of \d+ files .*: model\.safetensors, tokenizer\.json; run"):
        verifying.check_files_intact(out)


@pytest.mark.parametrize("name", ["chat_template.json", "model-00002-of-00002.safetensors", "evil.bin"])
def test_a_file_that_was_added_is_found(copy, tmp_path, name):
    out = Path(shutil.copytree(copy, tmp_path / "copy"))
    (out / "thoughts.txt").write_text("is not read with the model")
    verifying.check_files_intact(out)
    (out / name).write_text("{}")
    with pytest.raises(QuantizationError, match=f"{name} stands in the folder and not in its manifest"):
        verifying.check_files_intact(out)


@pytest.mark.parametrize(
    "change",
    [
        {"format": 2},
        {"recipe": {"model": "x"}},
        {"files": {"../x": {"bytes": 1, "sha256": ""}}},
        {"files": []},
        {"files": {"x": 3}},
        {"logits": {"top": 3}},
    ],
)
def test_a_damaged_manifest(checkpoint, copy, tmp_path, change):
    out = Path(shutil.copytree(copy, tmp_path / "copy"))
    changed(out, MANIFEST, **change)
    for call in (lambda: verifying.check_files_intact(out), lambda: copy_of(checkpoint, out)):
        with pytest.raises(QuantizationError, match="quantise again into an empty folder"):
            call()


def test_the_logits_are_compared_with_the_source_and_recorded(checkpoint, copied, copy):
    made = manifest.read(copy)
    compared, found = verifying.compare_with_source(made, copy, Checkpoint(source_of(checkpoint)), "cpu")
    assert found == "the logits equal those of tiny-llama quantised in memory, to the last bit"
    assert len(compared.logits.top) == 20
    assert "to the last bit" in verifying.compare_with_record(compared, copy, "cpu")
    assert "no logits were recorded" in verifying.compare_with_record(made, copy, "cpu")
    elsewhere = replace(
        compared.logits, environment="torch 9", top=tuple((a, b * 1.01) for a, b in compared.logits.top)
    )
    found = verifying.compare_with_record(replace(compared, logits=elsewhere), copy, "cpu")
    assert "within 0.99% of those recorded" in found
    far = replace(elsewhere, top=tuple((a, -b) for a, b in compared.logits.top))
    with pytest.raises(QuantizationError, match=r"differ by \d+% .*rounding"):
        verifying.compare_with_record(replace(compared, logits=far), copy, "cpu")
    wrong = replace(compared.logits, sha256="0" * 64)
    with pytest.raises(QuantizationError, match="the files are right"):
        verifying.compare_with_record(replace(compared, logits=wrong), copy, "cpu")
    damage(copied / "model.safetensors")
    with pytest.raises(OptionError, match="was made from tiny-llama .*damaged has other weights"):
        verifying.compare_with_source(made, copy, Checkpoint(source_of(copied)), "cpu")


def test_a_copy_made_elsewhere_may_differ_by_rounding_only(checkpoint, copy, tmp_path):
    from safetensors.torch import save_file

    out = Path(shutil.copytree(copy, tmp_path / "copy"))
    weights = tensors(out)
    name = "model.layers.1.mlp.down_proj.weight"
    weights[name][5] ^= 1  # one 4-bit value, to its neighbour
    save_file(weights, out / "model.safetensors", metadata={"format": "pt"})
    made, source = manifest.read(out), Checkpoint(source_of(checkpoint))
    elsewhere = replace(made, recipe=replace(made.recipe, device="cuda"))
    _, found = verifying.compare_with_source(elsewhere, out, source, "cpu")
    assert "the logits are within 0." in found and "quantised here (the copy: cuda, torch" in found
    with pytest.raises(QuantizationError, match="differ from those of tiny-llama"):
        verifying.compare_with_source(made, out, source, "cpu")


def test_weights_whose_logits_differ_are_found(checkpoint, copy, tmp_path):
    from safetensors.torch import save_file

    out = Path(shutil.copytree(copy, tmp_path / "copy"))
    weights = tensors(out)
    name = "model.layers.0.mlp.up_proj.weight"
    weights[name] = weights[name].flip(0)
    save_file(weights, out / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(QuantizationError, match=r"differ from those of tiny-llama quantised in memory, by \d"):
        verifying.compare_with_source(manifest.read(out), out, Checkpoint(source_of(checkpoint)), "cpu")


# The command


def test_the_command(checkpoint, tmp_path, capsys):
    source, out = str(checkpoint), str(tmp_path / "copy")
    assert cli.main(["quantize", source, out, "--device", "cpu"]) == 0
    printed = capsys.readouterr().out
    assert "copy: tiny-llama as nf4, 0.2 MB" in printed
    assert "the logits equal those of tiny-llama quantised in memory, to the last bit" in printed
    assert cli.main(["quantize", "--verify", out, "--device", "cpu"]) == 0
    assert "the logits are those that were recorded, to the last bit" in capsys.readouterr().out
    assert cli.main(["quantize", "--verify", source, out, "--device", "cpu"]) == 0
    assert "equal those of tiny-llama" in capsys.readouterr().out
    assert cli.main(["quantize", source, out, "--quantization", "int8"]) == 2
    assert "another quantization" in capsys.readouterr().err
    damage(tmp_path / "copy" / "model.safetensors")
    assert cli.main(["quantize", "--verify", out]) == 1
    assert "not what was written: model.safetensors" in capsys.readouterr().err
    assert cli.main(["quantize", source, out, "--no-logits", "--device", "cpu"]) == 0
    assert cli.main(["quantize", "--verify", out, "--no-logits"]) == 0
    assert "logits" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a"], "takes MODEL OUT, got 1"),
        (["a", "b", "c"], "takes MODEL OUT, got 3"),
        (["--verify", "a", "b", "c"], "--verify OUT or --verify MODEL OUT"),
        (["--verify", "nowhere", "--quantization", "nf4"], "--quantization is for writing"),
        (["--verify", "nowhere"], "no folder that `karakuri quantize` wrote"),
        (["karakuri-demo", "nowhere", "--quantization", "bf16"], "nf4, fp4, int8"),
        (["karakuri-demo", "nowhere", "--quantization", "q4"], "--quantization must be one of nf4, fp4, int8, got"),
    ],
)
def test_wrong_arguments(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["quantize", *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "nowhere").exists()


def test_a_machine_too_small_for_the_logits_still_gets_its_copy(checkpoint, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(loading, "free_ram", lambda: 10)
    assert cli.main(["quantize", str(checkpoint), str(tmp_path / "copy"), "--device", "cpu"]) == 0
    assert "the logits were not compared, the files are written and hashed" in capsys.readouterr().err
    assert verifying.check_files_intact(tmp_path / "copy").logits is None


def test_an_interruption_says_how_to_go_on(checkpoint, tmp_path, capsys, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(quantizing._Writer, "write", interrupted)
    assert cli.main(["quantize", str(checkpoint), str(tmp_path / "copy"), "--device", "cpu"]) == 130
    assert "run the same command again to go on" in capsys.readouterr().err


def test_progress_shows_on_a_terminal(checkpoint, tmp_path, capsys, monkeypatch):
    copy_of(checkpoint, tmp_path / "silent")
    assert "Quantising" not in capsys.readouterr().err
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    copy_of(checkpoint, tmp_path / "shown")
    assert "Quantising weights: 100%" in capsys.readouterr().err


def test_the_command_is_in_the_help(capsys):
    with pytest.raises(SystemExit):
        cli.main(["quantize", "--help"])
    assert "--verify" in capsys.readouterr().out
