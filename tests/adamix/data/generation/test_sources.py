"""Text-generation data: own files, the original files of E2E, WebNLG and DART, and what is refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from adamix.data import SPLITS, GenerationExample, load_generation, split_of
from adamix.errors import InvalidConfig, InvalidData


def _write(path: Path, content: str | bytes) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(path)


def _lines(*values: object) -> str:
    return "".join(json.dumps(value, ensure_ascii=False) + "\n" for value in values)


def _everything(source: str) -> list[GenerationExample]:
    found: list[GenerationExample] = []
    for split in SPLITS:
        try:
            found += load_generation(source, split=split).examples
        except InvalidData as error:
            if error.reason != "SPLIT_EMPTY":
                raise
    return found


def test_jsonl_rows_of_one_source_are_one_example(tmp_path: Path) -> None:
    source = _write(
        tmp_path / "d.jsonl",
        _lines(
            {"source": " a : b ", "target": "one\n"},
            {"source": "c : d", "references": ["two", "three"], "id": 7},
            {"source": "a : b", "target": "four"},
            {"context": "e : f", "completion": "five", "cate": True},
        ),
    )
    found = {e.source: e.references for e in _everything(source)}
    assert found == {"a : b": ("one", "four"), "c : d": ("two", "three"), "e : f": ("five",)}


def test_one_file_is_split_by_source_so_that_no_source_is_in_two_splits(tmp_path: Path) -> None:
    rows = [{"source": f"s : {i % 60}", "target": f"text {i}"} for i in range(120)]
    source = _write(tmp_path / "d.jsonl", _lines(*rows))
    parts = {split: load_generation(source, split=split) for split in SPLITS}
    assert sum(len(part.examples) for part in parts.values()) == 60
    assert all(split_of(e.source) == split for split, part in parts.items() for e in part.examples)
    assert all(len(e.references) == 2 for part in parts.values() for e in part.examples)
    assert not any(part.is_synthetic for part in parts.values())


def test_directory_gives_its_files_as_they_are(tmp_path: Path) -> None:
    _write(tmp_path / "train.jsonl", _lines({"source": "a", "target": "x"}))
    _write(tmp_path / "dev.csv", 'source,target\na,"y, z"\n')
    _write(tmp_path / "test.txt", "a||one \n\nb||two\na||three")
    train, validation, test = (load_generation(str(tmp_path), split=split).examples for split in SPLITS)
    assert train == (GenerationExample("a", ("x",)),)
    assert validation == (GenerationExample("a", ("y, z",)),)
    assert test == (GenerationExample("a", ("one", "three")), GenerationExample("b", ("two",)))


def test_e2e_csv_files_by_their_published_names(tmp_path: Path) -> None:
    mr = "name[The Vaults], eatType[pub], priceRange[more than £30], customer rating[5 out of 5], familyFriendly[yes]"
    _write(tmp_path / "trainset.csv", f'mr,ref\n"{mr}","One, two."\n"{mr}",Three.\n')
    _write(tmp_path / "devset.csv", 'mr,ref\n"name[Aromi], near[Café Adriatic]",At  Aromi.\n')
    _write(tmp_path / "testset_w_refs.csv", '\ufeff"MR","ref"\r\n"name[X], food[]","X."\r\n')
    _write(tmp_path / "testset.csv", "MR\nname[X]\n")
    train, validation, test = (load_generation(str(tmp_path), split=split).examples for split in SPLITS)
    assert train == (
        GenerationExample(
            "name : The Vaults | Type : pub | price : more than £30 | customer rating : 5 out of 5 | "
            "family friendly : yes",
            ("One, two.", "Three."),
        ),
    )
    assert validation[0].source == "name : Aromi | near : Café Adriatic"
    assert test[0].source == "name : X | food :"


WEBNLG = """<?xml version="1.0" encoding="UTF-8"?>
<benchmark><entries>
  <entry category="Airport" eid="Id1" size="2">
    <originaltripleset><otriple>Aarhus_Airport | city | "Aarhus"@en</otriple></originaltripleset>
    <modifiedtripleset>
      <mtriple>Aarhus_Airport | cityServed | "Aarhus, Denmark"</mtriple>
      <mtriple>Aarhus | leader | Jacob Bundsgaard | 1</mtriple>
    </modifiedtripleset>
    <lex comment="good" lid="Id1">Aarhus &amp; its airport:
      fine.</lex>
    <lex comment="toFix" lid="Id2">wrong</lex>
    <lex comment="" lid="Id3" lang="ru">по-русски</lex>
    <lex comment="good" lid="Id4"><sortedtripleset><sentence ID="1"/></sortedtripleset>
      <text>Enriched text.</text><template>AGENT-1 text.</template></lex>
  </entry>
  <entry category="Artist" eid="Id2" size="1">
    <modifiedtripleset><mtriple>A | b | c</mtriple></modifiedtripleset>
    <lex>A b c.</lex>
  </entry>
  <entry category="Artist" eid="Id3"><modifiedtripleset><mtriple>D | e | f</mtriple></modifiedtripleset></entry>
</entries></benchmark>
"""


def test_webnlg_xml_as_published(tmp_path: Path) -> None:
    _write(tmp_path / "train" / "2triples" / "Airport.xml", WEBNLG)
    _write(tmp_path / "dev" / "1triples" / "Airport.xml", WEBNLG.replace("fine", "good"))
    _write(tmp_path / "test" / "testdata_with_lex.xml", WEBNLG)
    train = load_generation(str(tmp_path), split="train")
    assert train.examples == (
        GenerationExample(
            'Aarhus_Airport : cityServed : "Aarhus, Denmark" | Aarhus : leader : Jacob Bundsgaard | 1',
            ("Aarhus & its airport: fine.", "Enriched text."),
            "Airport",
        ),
        GenerationExample("A : b : c", ("A b c.",), "Artist"),
    )
    assert load_generation(str(tmp_path), split="validation").examples[0].references[0].endswith("good.")
    seen, unseen = (load_generation(str(tmp_path), split="test", subset=s).examples for s in ("seen", "unseen"))
    assert (seen, unseen) == (train.examples[:1], train.examples[1:])


def test_webnlg_json_is_what_its_xml_is(tmp_path: Path) -> None:
    entry = {
        "category": "Food",
        "modifiedtripleset": [{"subject": "A_B", "property": "madeOf", "object": '"c d"'}],
        "lexicalisations": [
            {"comment": "good", "lang": "", "lex": "One."},
            {"comment": "toFix", "lang": "", "lex": "Two."},
        ],
    }
    empty = entry | {"lexicalisations": []}
    source = _write(tmp_path / "test.json", json.dumps({"entries": [{"1": entry}, {"2": empty}]}))
    assert _everything(source) == [GenerationExample('A_B : madeOf : "c d"', ("One.",), "Food")]
    assert load_generation(str(tmp_path), split="test").examples == tuple(_everything(source))


def test_dart_json_by_its_published_names(tmp_path: Path) -> None:
    def document(text: str) -> str:
        triples = [["Mars Hill", "JOINED", "1973"], ["[TABLECONTEXT]", "[TITLE]", "Hill \n sides"]]
        annotations = [{"source": "WikiSQL", "text": text}, {"source": "other", "text": "Also."}]
        return json.dumps([{"tripleset": triples, "subtree_was_extended": False, "annotations": annotations}])

    for split in ("train", "dev", "test"):
        _write(tmp_path / f"dart-v1.1.1-full-{split}.json", document(split))
    for split, text in zip(SPLITS, ("train", "dev", "test"), strict=True):
        (example,) = load_generation(str(tmp_path), split=split).examples
        assert example.source == "Mars Hill : joined : 1973 | [TABLECONTEXT] : [title] : Hill sides"
        assert example.references == (text, "Also.")


JSONL_REFUSALS: dict[str, tuple[str, str]] = {
    "no source": ('{"target": "x"}', "source is missing"),
    "no target": ('{"source": "x"}', "there must be a target"),
    "both": ('{"source": "x", "target": "y", "references": ["z"]}', "there must be a target"),
    "references no list": ('{"source": "x", "references": "y"}', "references is not a list"),
    "references empty": ('{"source": "x", "references": []}', "no reference text here"),
    "reference a number": ('{"source": "x", "references": ["y", 3]}', "reference is not a string"),
    "reference blank": ('{"source": "x", "target": " "}', "reference is empty"),
    "source an object": ('{"source": {}, "target": "y"}', "source is not a string"),
    "control character": ('{"source": "x\\u0000", "target": "y"}', r"source has the control character U\+0000"),
    "escape sequence": ('{"source": "x", "target": "\\u001b[2J"}', r"reference has the control character U\+001B"),
    "half a surrogate": ('{"source": "x", "target": "\\ud800"}', "reference is not valid Unicode"),
    "huge text": ('{"source": "x", "target": "' + "y" * 131_073 + '"}', "reference is over 131072 characters"),
    "not JSON": ("source: x", "not valid JSON"),
    "nested": ("[" * 100_000, "not valid JSON"),
}


@pytest.mark.parametrize("case", JSONL_REFUSALS)
def test_malformed_jsonl_is_refused_at_its_line(tmp_path: Path, case: str) -> None:
    line, message = JSONL_REFUSALS[case]
    source = _write(tmp_path / "d.jsonl", _lines({"source": "fine", "target": "fine"}) + "\n" + line + "\n")
    with pytest.raises(InvalidData, match=rf"^d\.jsonl:3: {message}"):
        load_generation(source, split="train")


FILE_REFUSALS: dict[str, tuple[str, str | bytes, str]] = {
    "columns": ("d.csv", "mr,text\nname[a],b\n", r"d\.csv:1: the header needs the columns mr and ref"),
    "column twice": ("d.csv", "mr,ref,ref\n", r"d\.csv:1: two columns named ref"),
    "not a representation": ("d.csv", "mr,ref\nname is X,b\n", r"d\.csv:2: meaning representation is not of the form"),
    "bracket open": ("d.csv", 'mr,ref\n\n"name[a], food[b",c\n', r"d\.csv:3: meaning representation is not"),
    "empty representation": ("d.csv", "mr,ref\n ,c\n", r"d\.csv:2: no meaning representation"),
    "no bars": ("d.txt", "a||b\na b\n", r"d\.txt:2: no \|\| between"),
    "not UTF-8": ("d.txt", b"a||b\nc||caf\xe9\n", r"d\.txt:2: not UTF-8"),
    "document type": ("d.xml", '<!DOCTYPE a [<!ENTITY x "y">]><a>&x;</a>', r"d\.xml:1: XML with a document type"),
    "not XML": ("d.xml", "<a>\n<b></a>", r"d\.xml:2: malformed XML \(mismatched tag"),
    "entity": ("d.xml", "<a>&x;</a>", r"d\.xml:1: malformed XML \(undefined entity"),
    "encoding": ("d.xml", '<?xml version="1.0" encoding="utf-7"?><a/>', r"d\.xml:1: malformed XML"),
    "deep": ("d.xml", "<a>" * 40, r"d\.xml:1: XML elements are nested over 32 deep"),
    "long": ("d.xml", f"<entry>\n<lex>{'x' * 140_000}</lex></entry>", r"d\.xml:2: text is over"),
    "triple": (
        "d.xml",
        "<a>\n<entry><mtriple>a | b</mtriple><lex>x</lex></entry></a>",
        r"d\.xml:2: a triple is not of the form",
    ),
    "no triples": ("d.xml", "<entry><lex>x</lex></entry>", r"d\.xml:1: no triples here"),
    "empty subject": ("d.xml", "<entry><mtriple> | b | c</mtriple><lex>x</lex></entry>", r"d\.xml:1: a triple "),
    "not JSON at all": ("d.json", "[", r"d\.json: not valid JSON"),
    "deep JSON": ("d.json", "[" * 100_000, r"d\.json: not valid JSON"),
    "JSON of something": ("d.json", '{"rows": []}', r"d\.json: neither DART"),
    "DART entry": ("d.json", '[{"tripleset": [["a", "b", "c"]]}]', r"d\.json: entry 1: not an object with"),
    "DART triple": (
        "d.json",
        '[{"tripleset": [["a", "b"]], "annotations": []}]',
        r"d\.json: entry 1: a triple is not of the form",
    ),
    "DART part": (
        "d.json",
        '[{"tripleset": [["a", "b", 3]], "annotations": [{"text": "x"}]}]',
        r"d\.json: entry 1: a triple has a part that is not",
    ),
    "DART annotation": (
        "d.json",
        '[{"tripleset": [["a", "b", "c"]], "annotations": ["x"]}]',
        r"d\.json: entry 1: an annotation is not",
    ),
    "DART without text": (
        "d.json",
        '[{"tripleset": [["a", "b", "c"]], "annotations": [{}]}]',
        r"d\.json: entry 1: reference is missing",
    ),
    "WebNLG entry": ("d.json", '{"entries": [{"1": 5}]}', r"d\.json: entry 1: not an object with the entry"),
    "WebNLG parts": ("d.json", '{"entries": [{"1": {}}]}', r"d\.json: entry 1: no modifiedtripleset"),
    "suffix": ("d.parquet", b"PAR1", r"d\.parquet is none of \.jsonl, \.csv"),
}


@pytest.mark.parametrize("case", FILE_REFUSALS)
def test_malformed_files_are_refused_with_the_place(tmp_path: Path, case: str) -> None:
    name, content, message = FILE_REFUSALS[case]
    with pytest.raises(InvalidData, match=f"^{message}"):
        load_generation(_write(tmp_path / name, content), split="train")


def test_external_entities_are_not_fetched(tmp_path: Path) -> None:
    secret = _write(tmp_path / "secret", "do not read")
    document = f'<?xml version="1.0"?><!DOCTYPE a [<!ENTITY x SYSTEM "file://{secret}">]><entry><lex>&x;</lex></entry>'
    with pytest.raises(InvalidData, match="document type") as caught:
        load_generation(_write(tmp_path / "d.xml", document), split="train")
    assert "do not read" not in caught.value.message


def test_directory_refusals(tmp_path: Path) -> None:
    with pytest.raises(InvalidData, match="without train, validation or test"):
        load_generation(str(tmp_path), split="train")
    _write(tmp_path / "train.jsonl", _lines({"source": "a", "target": "b"}))
    _write(tmp_path / "test" / "notes.md", "")
    with pytest.raises(InvalidData, match="test is a folder with no XML files"):
        load_generation(str(tmp_path), split="test")
    with pytest.raises(InvalidData, match="no validation split, only train, test") as caught:
        load_generation(str(tmp_path), split="validation")
    assert caught.value.reason == "SPLIT_MISSING"
    _write(tmp_path / "trainset.csv", "mr,ref\n")
    with pytest.raises(InvalidData, match=r"both train\.jsonl and trainset\.csv; keep one"):
        load_generation(str(tmp_path), split="train")


def test_arguments_are_checked(tmp_path: Path) -> None:
    source = _write(tmp_path / "train.jsonl", _lines({"source": "a", "target": "b"}))
    with pytest.raises(InvalidConfig, match="'dev' is not one of train"):
        load_generation(source, split="dev")
    with pytest.raises(InvalidConfig, match="subset 'some' is not one of all, seen, unseen"):
        load_generation(source, split="train", subset="some")
    with pytest.raises(InvalidData, match="no categories; only WebNLG"):
        load_generation(source, split="train", subset="seen")
    with pytest.raises(InvalidData, match="has no reference"):
        GenerationExample("a", ())
    for nothing in ("", "no such thing", "nul\0", "a/b/c"):
        with pytest.raises(InvalidData, match="no file, no data set name and not synthetic-e2e"):
            load_generation(nothing, split="train")
    with pytest.raises(InvalidData, match=r"gone\.jsonl does not exist"):
        load_generation("gone.jsonl", split="train")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """`hub(train=[row, …], …)` makes `load_dataset` answer those rows."""
    import datasets

    def serve(**splits: list[dict[str, Any]]) -> None:
        parts = {name: datasets.Dataset.from_list(rows) for name, rows in splits.items()}
        monkeypatch.setattr(datasets, "load_dataset", lambda name, config=None: datasets.DatasetDict(parts))

    return serve


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        pytest.param(
            [{"meaning_representation": "name[A], eatType[pub]", "human_reference": text} for text in ("x", "y")],
            GenerationExample("name : A | Type : pub", ("x", "y")),
            id="e2e_nlg",
        ),
        pytest.param(
            [{"gem_id": "1", "meaning_representation": "name[A]", "target": "x", "references": []}],
            GenerationExample("name : A", ("x",)),
            id="GEM/e2e_nlg",
        ),
        pytest.param(
            [
                {
                    "category": "City",
                    "modified_triple_sets": {"mtriple_set": [["A_B | c | d | e"]]},
                    "lex": {"comment": ["good", "bad", "good"], "lang": ["en", "en", "ru"], "text": ["x", "y", "z"]},
                }
            ],
            GenerationExample("A_B : c : d | e", ("x",), "City"),
            id="web_nlg",
        ),
        pytest.param(
            [
                {"modified_triple_sets": [{"mtriple_set": ["A | b | c"]}], "lex": [{"text": "x"}, {"text": "y"}]},
            ],
            GenerationExample("A : b : c", ("x", "y")),
            id="web_nlg of lists",
        ),
        pytest.param(
            [
                {
                    "input": ["A | b | c", "D | e | f"],
                    "target": "x",
                    "references": ["x", "y"],
                    "category": "Food",
                    "webnlg_id": "1",
                }
            ],
            GenerationExample("A : b : c | D : e : f", ("x", "y"), "Food"),
            id="GEM/web_nlg",
        ),
        pytest.param(
            [{"tripleset": [["A", "B C", "d"]], "annotations": {"source": ["s", "s"], "text": ["x", "y"]}}],
            GenerationExample("A : b c : d", ("x", "y")),
            id="dart",
        ),
        pytest.param(
            [{"tripleset": [["A", "B", "c"]], "target": "x", "references": ["y"]}],
            GenerationExample("A : b : c", ("y",)),
            id="GEM/dart",
        ),
        pytest.param([{"source": "a", "target": "x"}], GenerationExample("a", ("x",)), id="own"),
    ],
)
def test_data_sets_by_name_are_told_apart_by_their_columns(
    hub: Callable[..., None], rows: list[dict[str, Any]], expected: GenerationExample
) -> None:
    hub(train=rows, test=rows)
    loaded = load_generation("some/set:config", split="test")
    assert (loaded.name, loaded.examples) == ("some/set:config", (expected,))


def test_data_sets_by_name_are_refused_with_a_reason(hub: Callable[..., None]) -> None:
    hub(train=[{"text": "a", "label": 1}], dev=[{"source": "a", "target": ""}])
    with pytest.raises(InvalidData, match="has the columns text, label; known are those of E2E, WebNLG and DART"):
        load_generation("some-set", split="train")
    with pytest.raises(InvalidData, match="some-set validation row 0: reference is empty"):
        load_generation("some-set", split="validation")
    with pytest.raises(InvalidData, match="has no test split, only train, validation"):
        load_generation("some-set", split="test")
