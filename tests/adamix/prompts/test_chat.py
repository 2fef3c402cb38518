"""Chat templates: what transformers renders, and in a sentence what a template may not do."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from adamix.errors import AdamixError, InvalidConfig, InvalidData
from adamix.prompts.chat import ChatRenderer
from adamix.prompts.prompts import Message
from adamix_testing.chat_templates import ALTERNATING, REAL

SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}
CHATS = {
    "question": [Message("user", "What is 2 + 2?")],
    "turns": [
        Message("system", " Be kind.\n"),
        Message("user", "Hi <b>\u00e9\U0001f600 {{ 7 * 7 }} {% if %}"),
        Message("assistant", "<think>hm</think>\n\nHo"),
        Message("user", ""),
    ],
}


@pytest.fixture(scope="module")
def theirs() -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"a": 0}, unk_token="a")), **SPECIAL)


@pytest.mark.parametrize("chat", CHATS)
@pytest.mark.parametrize("name", REAL)
def test_a_chat_is_rendered_as_transformers_does(
    name: str, chat: str, renderer: ChatRenderer, theirs: PreTrainedTokenizerFast
) -> None:
    messages = [{"role": message.role, "content": message.content} for message in CHATS[chat]]
    expected = theirs.apply_chat_template(
        messages, chat_template=REAL[name], tokenize=False, add_generation_prompt=True
    )
    assert renderer.render(REAL[name], CHATS[chat], SPECIAL) == expected


@pytest.mark.parametrize(
    "template",
    [
        "{{ messages | tojson(indent=2) }}|{{ {'b': 1, 'a': '<é>'} | tojson(sort_keys=true) }}",
        "{{ dict(a=1) }}{{ dict.fromkeys('ab') }}{{ namespace(self=3).self }}{{ tools }}{{ documents }}",
        "{% for i in range(5) %}{% if i == 3 %}{% break %}{% endif %}{{ i }}{% endfor %}{{ 7 // 2 }}{{ missing }}",
        "  {% if true %}\n  x\n  {% endif %}\n{% generation %}\n{{ messages[0].content }}\n{% endgeneration %}\n",
        "{{ '<b>a</b> &lt; c' | striptags | wordwrap(3) }}{{ [{'a': 1}] | pprint }}{{ 'a b' | urlize | title }}",
        "{{ ('a,b'.split(',') + ['c']) | join('-') }}{{ '%s is %d' | format('x', 3) }}{{ '{:>5}'.format('y') }}",
    ],
)
def test_what_templates_know_is_what_they_know_in_transformers(
    template: str, renderer: ChatRenderer, theirs: PreTrainedTokenizerFast
) -> None:
    chat = [Message("user", "Hi")]
    expected = theirs.apply_chat_template(
        [{"role": "user", "content": "Hi"}], chat_template=template, tokenize=False, add_generation_prompt=True
    )
    assert renderer.render(template, chat, SPECIAL) == expected


@pytest.mark.parametrize(
    ("template", "kind", "message"),
    [
        (ALTERNATING, InvalidData, r"refuses these messages \(line 11\): Roles must alternate user/assistant/user/.*"),
        ("a\n{% include 'x' %}", InvalidConfig, r"loads another template, and there is none .* \(line 2\)"),
        ("{% import 'x' as x %}", InvalidConfig, "loads another template, .*"),
        ("{% from 'x' import y %}", InvalidConfig, "loads another template, .*"),
        ("{% extends 'x' %}", InvalidConfig, "loads another template, .*"),
        ("{% if a %}{% include x %}{% endif %}", InvalidConfig, "loads another template, .*"),
        ("\n\n{% if %}", InvalidConfig, r"is not in jinja2's language \(line 3\): Expected an expression.*"),
        ("{{ a | no_such_filter }}", InvalidConfig, r"is not in jinja2's language \(line 1\): No filter named .*"),
        ("\n{{ messages[9].content }}", InvalidData, r"uses what these messages do not have \(line 2\)"),
        ("{{ 1 + 'a' }}", InvalidData, r"fails on these messages \(line 1\)"),
        ("{{ 1 / 0 }}", InvalidData, r"fails on these messages \(line 1\)"),
        ("{{ '\\ud800' }}", InvalidData, "fails on these messages"),
        (
            "{{ raise_exception('a\n\\x1b[2J' ~ 'b' * 999) }}",
            InvalidData,
            r"refuses these messages \(line 1\): a  \[2Jb+",
        ),
    ],
)
def test_what_is_wrong_is_one_sentence(
    template: str, kind: type[AdamixError], message: str, renderer: ChatRenderer
) -> None:
    with pytest.raises(kind, match=rf"^the chat template {message}$") as said:
        renderer.render(template, [Message("assistant", "Hi")], SPECIAL)
    assert len(said.value.message) < 300
    assert said.value.message.isprintable()


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.__class__.__init__.__globals__ }}",
        "{{ cycler.__init__.__globals__.os.listdir('/') }}",
        "{{ raise_exception.__globals__['os'].environ }}",
        "{{ (messages|attr('__class__'))() }}",
        "{{ ''['__class__'].mro() }}",
        "{{ '{0.__class__.mro}'.format('')() }}",
        "{{ ('{0.__class__}'|attr('format'))(messages).x.y }}",
        "{{ self._TemplateReference__context.x }}",
        "{{ namespace(_x=1) }}",
        "{% set ns = namespace() %}{% set ns._x = 1 %}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update(a=1) }}",
        "{{ dict.__class__.x }}",
        "{{ (lipsum|attr('__globals__')).x }}",
        "{{ strftime_now.__code__.x }}",
        "{{ loop.__init__.x }}",
        "{{ ([].__class__.__base__.__subclasses__)() }}",
    ],
)
def test_what_no_template_may_do_is_refused(template: str, renderer: ChatRenderer) -> None:
    with pytest.raises(InvalidData, match=r"(does what no template may|uses what these messages do not have|fails on)"):
        renderer.render(template, [Message("user", "Hi")], SPECIAL)


def test_what_a_template_changes_is_gone_with_it(renderer: ChatRenderer) -> None:
    chat = [Message("user", "Hi")]
    renderer.render("{% set dict = 1 %}{% set messages = 2 %}{% macro raise_exception(x) %}{% endmacro %}", chat, {})
    assert renderer.render("{{ dict(a=messages[0].role) }}", chat, {}) == "{'a': 'user'}"
    with pytest.raises(InvalidData, match="refuses these messages"):
        renderer.render("{{ raise_exception('no') }}", chat, {})


def test_threads_share_a_renderer(renderer: ChatRenderer) -> None:
    def render(index: int) -> str:
        return renderer.render("{{ messages[0].content }}", [Message("user", f"text {index}" * 50)], {})

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(render, range(40))) == [f"text {index}" * 50 for index in range(40)]
