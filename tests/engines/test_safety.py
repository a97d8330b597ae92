"""What must not be loaded is refused before anything of it is read by torch or transformers."""

from __future__ import annotations

import builtins
import json
import os
import pickle
import shutil
import struct
import warnings
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest

from karakuri_integrations.conversation import Sampling
from karakuri_integrations.engines import LocalEngine, hub, safety
from karakuri_integrations.engines.checkpoint import DEFAULT, Checkpoint, Source, source_of
from karakuri_integrations.errors import (
    InputError,
    MissingDependencyError,
    ModelFolderError,
    ModelLoadError,
    UnsafeModelError,
)

from .conftest import answer, prompt_of


@pytest.fixture
def nothing_is_loaded(monkeypatch):
    """Fails the test when transformers loads anything or a weights file is opened."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    for loader in (AutoModelForCausalLM, AutoTokenizer):
        monkeypatch.setattr(loader, "from_pretrained", lambda *_, **__: pytest.fail("transformers loaded something"))
    real = builtins.open

    def spy(file, *rest, **more):
        if str(file).endswith((".bin", ".pt", ".pkl")):
            pytest.fail(f"{file} was opened")
        return real(file, *rest, **more)

    monkeypatch.setattr(builtins, "open", spy)
    monkeypatch.setattr(pickle, "load", lambda *_: pytest.fail("unpickled"))


def refused(folder: Path, error: type[Exception] = UnsafeModelError, match: str | None = None) -> None:
    for call in (lambda engine: engine.count_tokens(prompt_of()), answer, LocalEngine.report):
        with pytest.raises(error, match=match) as caught:
            call(LocalEngine(folder, device="cpu", template="karakuri-lm-70b-chat-v0.1"))
        assert str(folder.parent) not in str(caught.value)


def changed(folder: Path, file: str, **settings: object) -> Path:
    path = folder / file
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))
    return folder


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "weights.pkl"])
def test_a_folder_with_only_pickles(copied, nothing_is_loaded, name):
    (copied / "model.safetensors").unlink()
    (copied / name).write_bytes(b"cos\nsystem\n(S'touch owned'\ntR.")
    refused(copied, match="only as pickles")


def test_pickles_beside_safetensors_are_never_opened(copied, monkeypatch):
    (copied / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    monkeypatch.setattr(pickle, "load", lambda *_: pytest.fail("unpickled"))
    engine = LocalEngine(copied, device="cpu")
    assert answer(engine)
    engine.close()


@pytest.mark.parametrize(
    "settings",
    [
        {"auto_map": {"AutoModelForCausalLM": "evil.Model"}},
        {"auto_map": {}},
        {"_attn_implementation": "evil/kernel"},
        {"_attn_implementation_internal": "evil/x"},
        {"attn_implementation": "evil/x:fn"},
        {"_attn_implementation": {"": "evil/x"}},
        {"_experts_implementation": "evil/x"},
        {"trust_remote_code": True},
        {"text_config": {"deep": [{"trust_remote_code": True}]}},
        {"vision_config": {"_attn_implementation": "evil/x"}},
        {"kernel_config": {"RMSNorm": "evil/x"}},
        {"model_type": "evil"},
        {"model_type": None},
        {"model_type": ["llama"]},
        {"model_type": "lightglue"},
    ],
)
def test_a_config_that_could_run_code(copied, nothing_is_loaded, settings):
    refused(changed(copied, "config.json", **settings))


@pytest.mark.parametrize("file", ["tokenizer_config.json", "generation_config.json"])
def test_other_settings_that_could_run_code(copied, nothing_is_loaded, file):
    refused(changed(copied, file, auto_map={"AutoTokenizer": ["evil.T", None]}), match=file)


def test_harmless_settings_are_allowed(copied):
    changed(copied, "config.json", _attn_implementation="sdpa", trust_remote_code=False)
    safety.check_checkpoint(Checkpoint(source_of(copied)))


@pytest.mark.parametrize(
    "shard", ["../../x.safetensors", "/etc/x.safetensors", "a/b.safetensors", "x.bin", "..\\x.safetensors", ""]
)
def test_a_shard_index_that_leaves_the_folder(copied, nothing_is_loaded, shard):
    (copied / "model.safetensors").rename(copied / "model-00001-of-00001.safetensors")
    (copied / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"lm_head.weight": shard}}))
    refused(copied, match="not a safetensors file of its folder")


def test_a_link_that_leaves_the_folder(copied, nothing_is_loaded, tmp_path):
    shutil.move(copied / "model.safetensors", tmp_path / "elsewhere.safetensors")
    (copied / "model.safetensors").symlink_to(tmp_path / "elsewhere.safetensors")
    refused(copied, match="link that leaves")


def test_an_adapter(copied, nothing_is_loaded):
    (copied / "adapter_config.json").write_text('{"base_model_name_or_path": "evil/base"}')
    refused(copied, match="adapter")


def hub_layout(
    checkpoint: Path, cache: Path, commit: str = "a" * 40, name: str = "someone/karakuri-lm-70b-chat-v0.1-tiny"
) -> str:
    """The checkpoint as the hub's cache keeps it: links into blobs."""
    repo = cache / f"models--{name.replace('/', '--')}"
    (repo / "blobs").mkdir(parents=True)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(commit)
    (repo / "snapshots" / commit).mkdir(parents=True)
    for number, path in enumerate(sorted(checkpoint.iterdir())):
        shutil.copy(path, repo / "blobs" / f"{number:040d}")
        (repo / "snapshots" / commit / path.name).symlink_to(f"../../blobs/{number:040d}")
    return name


def test_the_hubs_own_cache_layout_is_loaded_and_an_open_revision_is_named(checkpoint, tmp_path):
    name = hub_layout(checkpoint, tmp_path)
    engine = LocalEngine(name, device="cpu", cache_dir=tmp_path, local_files_only=True)
    assert engine.model == name
    assert engine.context_window == 4096
    with pytest.warns(UserWarning, match=f'revision="{"a" * 40}"'):
        answer(engine)
    engine.close()


def test_a_full_commit_hash_is_silent(checkpoint, tmp_path):
    name = hub_layout(checkpoint, tmp_path)
    engine = LocalEngine(name, device="cpu", cache_dir=tmp_path, local_files_only=True, revision="a" * 40)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        answer(engine)
    assert not [one for one in seen if "revision" in str(one.message)]
    engine.close()


def test_a_cached_model_of_unknown_name_is_known_by_its_config(checkpoint, tmp_path):
    name = hub_layout(checkpoint, tmp_path, name="someone/nameless")
    engine = LocalEngine(name, cache_dir=tmp_path, local_files_only=True)
    assert engine.family.name == "karakuri-lm-70b-chat-v0.1"


# The hub


@pytest.mark.parametrize("offline", [True, False])
def test_a_model_that_is_not_cached_says_what_to_do(tmp_path, monkeypatch, offline):
    import huggingface_hub

    if offline:
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    engine = LocalEngine("karakuri-lm-70b-chat-v0.1", cache_dir=tmp_path, local_files_only=not offline)
    assert engine.family.name == "karakuri-lm-70b-chat-v0.1"
    assert engine.context_window == 4096
    with pytest.raises(ModelLoadError, match="hf download karakuri-ai/karakuri-lm-70b-chat-v0.1") as caught:
        next(engine.stream(prompt_of(), Sampling()))
    assert caught.value.__cause__ is not None


class FakeHub:
    """Stands in for huggingface_hub."""

    class constants:  # noqa: N801
        HF_HUB_CACHE = "."

    class errors:  # noqa: N801
        class DryRunError(Exception):
            pass

    def __init__(self, outcome) -> None:
        self.outcome, self.asked = outcome, []

    def snapshot_download(self, name, **given):
        self.asked.append(given)
        if given.get("dry_run"):
            return [
                SimpleNamespace(file_size=2**60, will_download=True),
                SimpleNamespace(file_size=None, will_download=True),
            ]
        if isinstance(self.outcome, Exception):
            raise self.outcome
        return self.outcome


def test_a_download_that_the_disk_cannot_hold_is_refused(tmp_path, monkeypatch):
    fake = FakeHub(None)
    monkeypatch.setattr(hub, "_library", lambda: fake)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    with pytest.raises(ModelLoadError, match=r"1073741824\.0 GiB of disk .* cache_dir="):
        hub.fetch(Source("someone/model", cache_dir=str(tmp_path / "not" / "yet")), weights=True)
    assert all(given.get("dry_run") for given in fake.asked)


def test_only_data_files_are_ever_asked_for(checkpoint, monkeypatch):
    fake = FakeHub(str(checkpoint))
    monkeypatch.setattr(hub, "_library", lambda: fake)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    hub.fetch(Source("someone/model"), weights=True)
    assert set(fake.asked[0]["allow_patterns"]) == {"*.json", "*.jinja", "tokenizer.model", "*.safetensors"}


@pytest.mark.parametrize(
    ("kind", "advice"),
    [
        ("RepositoryNotFoundError", "HF_TOKEN"),
        ("GatedRepoError", "accept its terms"),
        ("RevisionNotFoundError", "check revision="),
        ("LocalEntryNotFoundError", "hf download"),
        ("ConnectError", "check the network"),
    ],
)
def test_each_failure_of_the_hub_says_what_to_do(monkeypatch, kind, advice):
    monkeypatch.setattr(hub, "_library", lambda: FakeHub(type(kind, (Exception,), {})("secret url")))
    with pytest.raises(ModelLoadError, match=advice) as caught:
        hub.fetch(Source("someone/model"), weights=False)
    assert kind in str(caught.value)
    assert "secret" not in str(caught.value)


# Versions and damage


@pytest.mark.parametrize(
    ("name", "version", "cve"), [("torch", "2.5.1+cu121", "CVE-2025-32434"), ("transformers", "5.2.9", "CVE-2026-4372")]
)
def test_libraries_with_known_holes_are_refused_by_cve(checkpoint, nothing_is_loaded, monkeypatch, name, version, cve):
    real = metadata.version
    monkeypatch.setattr(metadata, "version", lambda one: version if one == name else real(one))
    with pytest.raises(MissingDependencyError, match=f"{version.replace('+', '.')} is installed.*{cve}.*pip install"):
        LocalEngine(checkpoint, quantization="fp16").report()


def test_a_missing_library_names_the_pip_command(checkpoint, monkeypatch):
    def absent(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", absent)
    with pytest.raises(MissingDependencyError, match=r'pip install "karakuri-integrations\[local\]"') as caught:
        LocalEngine(checkpoint, quantization="fp16").report()
    assert isinstance(caught.value, ImportError)


def test_damaged_files_are_named(checkpoint, tmp_path):
    whole = (checkpoint / "model.safetensors").read_bytes()
    for number, (data, match) in enumerate(
        [
            (whole[:-10], "header describes"),
            (whole[:20], "cut short"),
            (b"", "cut short"),
            (struct.pack("<Q", 2) + b"[]", "damaged header"),
            (struct.pack("<Q", 2**62) + b"{}", "cut short"),
        ]
    ):
        folder = Path(shutil.copytree(checkpoint, tmp_path / str(number)))
        (folder / "model.safetensors").write_bytes(data)
        with pytest.raises(ModelLoadError, match=match):
            LocalEngine(folder, device="cpu").report()


def test_a_missing_shard_is_named(copied):
    index = {"weight_map": {"lm_head.weight": "model-00002-of-00002.safetensors"}}
    (copied / "model.safetensors").rename(copied / "model-00001-of-00002.safetensors")
    (copied / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelLoadError, match=r"model-00002-of-00002.safetensors' is missing"):
        LocalEngine(copied, device="cpu").report()


@pytest.mark.parametrize("text", ["{", "[]", "\x00", '{"a":' * 100_000])
def test_a_config_that_is_no_object(copied, text):
    (copied / "config.json").write_text(text)
    with pytest.raises(ModelLoadError, match="config.json"):
        LocalEngine(copied, device="cpu").report()


def test_a_folder_that_is_none(tmp_path):
    with pytest.raises(ModelLoadError, match="'missing' does not exist"):
        LocalEngine(tmp_path / "missing").count_tokens(prompt_of())
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelLoadError, match="'empty' has no config.json"):
        LocalEngine(tmp_path / "empty").count_tokens(prompt_of())


def test_a_folder_that_is_none_is_wrong_input(tmp_path):
    (tmp_path / "file").write_text("")
    for name, problem in (("missing", "does not exist"), ("file", "is a file")):
        engine = LocalEngine(tmp_path / name)  # it may come later, or be on the machine that unpickles this
        again = pickle.loads(pickle.dumps(engine))
        for one in (engine.check_folder, again.check_folder, lambda e=engine: e.count_tokens(prompt_of())):
            with pytest.raises(ModelFolderError, match=f"'{name}' {problem}.*{tmp_path / name}.*or a hub id") as caught:
                one()
            assert isinstance(caught.value, InputError) and isinstance(caught.value, ValueError)
    shutil.copytree(DEFAULT.folder, tmp_path / "missing")
    LocalEngine(tmp_path / "missing").check_folder()
    for name in (None, "karakuri-demo", "someone/model"):
        LocalEngine(name).check_folder()


def test_a_tokenizer_that_is_missing(copied):
    os.unlink(copied / "tokenizer.json")
    with pytest.raises(ModelLoadError, match=r"has no tokenizer\.json"):
        LocalEngine(copied, device="cpu").count_tokens(prompt_of())


@pytest.mark.parametrize("text", ["{", "{}", '{"version": "1.0", "model": {"type": "BPE"}}'])
def test_a_tokenizer_that_is_damaged(copied, text):
    (copied / "tokenizer.json").write_text(text)
    with pytest.raises(ModelLoadError, match="tokenizer"):
        LocalEngine(copied, device="cpu").count_tokens(prompt_of())


def test_a_tokenizer_of_a_larger_vocabulary(copied):
    engine = LocalEngine(changed(copied, "config.json", vocab_size=100), device="cpu")
    with pytest.raises(ModelLoadError, match="do not belong together"):
        next(engine.stream(prompt_of(), Sampling()))
