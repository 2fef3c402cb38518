"""A backbone directory that brings Python code of its own: none of it runs."""

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from adamix.backbones import backbone
from adamix.errors import InvalidConfig

CODE = """
from pathlib import Path
from transformers import PretrainedConfig, PreTrainedModel
Path({mark!r}).touch()
class OwnConfig(PretrainedConfig):
    model_type = "own"
class OwnModel(PreTrainedModel):
    config_class = OwnConfig
"""


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A tiny BERT whose every file asks for `own.py`, which would leave a mark."""
    tokenizer = Tokenizer(models.WordLevel({"[PAD]": 0, "[UNK]": 1}, unk_token="[UNK]"))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]").save_pretrained(tmp_path)
    sizes = {
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 8,
        "vocab_size": 8,
    }
    BertModel(BertConfig(**sizes)).save_pretrained(tmp_path)
    (tmp_path / "own.py").write_text(CODE.format(mark=str(tmp_path / "ran")))
    own = {"AutoConfig": "own.OwnConfig", "AutoModel": "own.OwnModel", "AutoTokenizer": [None, "own.OwnTokenizer"]}
    for name in ("config.json", "tokenizer_config.json"):
        path = tmp_path / name
        path.write_text(json.dumps(json.loads(path.read_text()) | {"auto_map": own}))
    return tmp_path


def test_a_backbone_of_a_known_kind_is_loaded_by_the_code_that_is_installed(directory: Path) -> None:
    loaded = backbone.load(str(directory))
    assert type(loaded.model) is BertModel
    backbone.load_tokenizer(str(directory))
    assert not (directory / "ran").exists()


def test_a_backbone_that_needs_its_own_code_is_refused(directory: Path) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_type": "own", "architectures": ["OwnModel"]}))
    with pytest.raises(InvalidConfig):
        backbone.load(str(directory))
    assert not (directory / "ran").exists()
