"""What a directory of PEFT says about prompts: the chat template that was saved beside the adapter, and our own note.

PEFT's own files say nothing of prompts. Who trains on chats saves the tokenizer beside the adapter, and with it the
template; without one an adapter goes on with texts. An adapter that was trained here goes on after a source and its
separator: what is exported carries a note of that, which PEFT passes over, so that it comes back as it was.
"""

import contextlib
import json
from pathlib import Path

import msgspec

from adamix.errors import InvalidAdapter, InvalidConfig, InvalidData
from adamix.files.manifest import MAX_CHAT_TEMPLATE_BYTES, Manifest, PromptForm
from adamix.interop.assembly import PromptPart
from adamix.interop.reading import converted, read_json, read_text
from adamix.prompts.chat import ChatRenderer

TEMPLATE_FILE = "chat_template.jinja"
NOTE_FILE = "adamix_prompt.json"
_TOKENIZER_FILE = "tokenizer_config.json"
# It lists the tokens that were added, of which there may be many.
_MAX_TOKENIZER_BYTES = 16 << 20


class _Note(msgspec.Struct, frozen=True):
    prompt: PromptForm


def read_prompt(source: Path) -> PromptPart:
    """How the adapter in a directory is asked.

    Raises:
        InvalidAdapter: its chat template is too long, or none that can be compiled; a file is damaged.
    """
    template = _template(source)
    if template is not None:
        _check(template)
    form: PromptForm = "text" if template is None else "chat"
    with contextlib.suppress(FileNotFoundError):
        form = converted(read_json(source / NOTE_FILE), _Note, NOTE_FILE).prompt
    return PromptPart(form=form, chat_template=template)


def prompt_files(manifest: Manifest) -> dict[str, bytes]:
    """What `read_prompt` makes the same prompts of, by the names of the files."""
    files: dict[str, bytes] = {}
    if manifest.chat_template is not None:
        files[TEMPLATE_FILE] = manifest.chat_template.encode()
    if manifest.prompt_form != ("text" if manifest.chat_template is None else "chat"):
        files[NOTE_FILE] = json.dumps({"prompt": manifest.prompt_form}).encode()
    return files


def _template(source: Path) -> str | None:
    """The template that `AutoTokenizer` finds; of several the default."""
    with contextlib.suppress(FileNotFoundError):
        return read_text(source / TEMPLATE_FILE, MAX_CHAT_TEMPLATE_BYTES)
    with contextlib.suppress(FileNotFoundError):
        found = read_json(source / _TOKENIZER_FILE, _MAX_TOKENIZER_BYTES).get("chat_template")
        if isinstance(found, list):
            named = converted(found, list[dict[str, str]], f"{_TOKENIZER_FILE}: chat_template")
            found = {entry.get("name"): entry.get("template") for entry in named}.get("default")
        return None if found is None else converted(found, str, f"{_TOKENIZER_FILE}: chat_template")
    return None


def _check(template: str) -> None:
    renderer = ChatRenderer()
    try:
        renderer.check(template)
    except (InvalidConfig, InvalidData) as error:
        raise InvalidAdapter(f"{TEMPLATE_FILE}: {error.message}", reason="UNSUPPORTED") from None
    finally:
        renderer.close()
