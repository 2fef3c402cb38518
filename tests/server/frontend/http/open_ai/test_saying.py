"""Messages -> choices: whole answers and pieces of them, in both shapes."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adamix.errors import Cancelled
from adamix_protos.v1 import inference_pb2 as pb
from adamix_server.frontend.http.open_ai.saying import Chats, Completions, Frame, Shape, Text, usage
from adamix_server.frontend.http.open_ai.token_texts import TokenTexts
from adamix_testing.byte_tokenizers import FIRST_BYTE, byte_level

TOKENS = TokenTexts(byte_level())
DIGEST = "0123456789abcdef" * 4


def logprob(byte: int, value: float, *others: tuple[int, float]) -> pb.TokenLogprob:
    return pb.TokenLogprob(
        token_id=FIRST_BYTE + byte,
        logprob=value,
        alternatives=[pb.TokenLogprob(token_id=FIRST_BYTE + other, logprob=likely) for other, likely in others],
    )


def text(*messages: pb.GenerateResponse, index: int = 0) -> Text:
    made = Text(index)
    for message in messages:
        made.add(message)
    return made


def end(reason: str = "EOS", **fields: Any) -> pb.GenerateResponse:
    return pb.GenerateResponse(finish_reason=f"FINISH_REASON_{reason}", **fields)


@pytest.mark.parametrize(("reason", "said"), [("EOS", "stop"), ("STOP", "stop"), ("LENGTH", "length")])
def test_how_an_answer_ended(reason: str, said: str) -> None:
    assert text(end(reason)).finish == said


def test_an_answer_that_somebody_else_ended_is_an_error() -> None:
    with pytest.raises(Cancelled):
        text(end("CANCELLED"))


def test_a_whole_completion() -> None:
    answer = text(pb.GenerateResponse(text_delta="a", version=DIGEST), end(text_delta="b"), index=1)
    frame = Frame(Completions(None, TOKENS), "r1", 7, "writer")
    whole = frame.whole([answer])
    assert whole == {
        "id": "cmpl-r1",
        "object": "text_completion",
        "created": 7,
        "model": "writer",
        "system_fingerprint": DIGEST[:12],
        "choices": [{"index": 1, "text": "ab", "logprobs": None, "finish_reason": "stop"}],
        "usage": usage([answer]),
    }


def test_a_whole_chat() -> None:
    frame = Frame(Chats(None, TOKENS), "r1", 7, "writer")
    whole = frame.whole([text(pb.GenerateResponse(text_delta="a"), end("LENGTH"))])
    assert (whole["id"], whole["object"]) == ("chatcmpl-r1", "chat.completion")
    message = {"role": "assistant", "content": "a", "refusal": None}
    assert whole["choices"] == [{"index": 0, "message": message, "logprobs": None, "finish_reason": "length"}]


def test_the_usage_of_several_answers_together() -> None:
    first = text(end(usage=pb.Usage(prompt_tokens=3, generated_tokens=2, cached_tokens=1)))
    second = text(end(usage=pb.Usage(prompt_tokens=4, generated_tokens=5)))
    assert usage([first, second]) == {
        "prompt_tokens": 7,
        "completion_tokens": 7,
        "total_tokens": 14,
        "prompt_tokens_details": {"cached_tokens": 1},
    }


def parts(choice: dict[str, Any]) -> tuple[str, list[Any], Any]:
    """The text of a choice, its tokens with all that is said of them, and how it ended."""
    said = choice.get("text") or (choice.get("delta") or choice.get("message") or {}).get("content") or ""
    likely = choice["logprobs"] or {}
    lists = [likely[name] for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset") if name in likely]
    return said, likely.get("content") or list(zip(*lists, strict=True)), choice["finish_reason"]


@pytest.mark.parametrize("shape", [Completions(1, TOKENS), Chats(1, TOKENS)])
@given(said=st.text("aé日🙂 \n", min_size=1, max_size=12), cuts=st.lists(st.booleans(), min_size=12, max_size=12))
@settings(max_examples=30)
def test_pieces_are_the_whole(shape: Shape, said: str, cuts: list[bool]) -> None:
    """Whatever is told when, it is what is told at once."""
    messages = [
        pb.GenerateResponse(text_delta=letter, logprobs=[logprob(byte, -0.5, (0x41, -2)) for byte in letter.encode()])
        for letter in said
    ]
    messages.append(end())
    told, pieces = Text(0), list[dict[str, Any]]()
    for message, is_told in zip(messages, [*cuts, True], strict=False):
        told.add(message)
        if is_told or message.finish_reason:
            pieces += shape.pieces(told)
    text_said, tokens, finish = parts(shape.choice(text(*messages)))
    found = [parts(piece) for piece in pieces]
    assert "".join(part[0] for part in found) == text_said == said
    assert [token for part in found for token in part[1]] == tokens
    assert [part[2] for part in found if part[2]] == [finish] == ["stop"]
    assert found[-1][2] == "stop"


def test_probabilities_of_a_completion() -> None:
    shape = Completions(2, TOKENS)
    answer = text(
        pb.GenerateResponse(text_delta="a日", logprobs=[logprob(0x61, -0.5, (0x62, -0.25), (0x61, -0.5))]),
        pb.GenerateResponse(logprobs=[logprob(byte, -20_000) for byte in "日".encode()]),
        end(logprobs=[logprob(0x78, -1)]),
    )
    found = shape.choice(answer)["logprobs"]
    assert found["tokens"] == ["a", "bytes:\\xe6", "bytes:\\x97", "bytes:\\xa5", "x"]
    assert found["token_logprobs"] == [-0.5, -9999.0, -9999.0, -9999.0, -1.0]
    # The token that was chosen is among them, likely or not.
    assert found["top_logprobs"][0] == {"b": -0.25, "a": -0.5}
    assert found["top_logprobs"][4] == {"x": -1.0}
    assert found["text_offset"] == [0, 1, 1, 1, 2]


def test_without_alternatives_the_chosen_tokens_alone_are_told() -> None:
    answer = text(end(text_delta="a", logprobs=[logprob(0x61, -0.5, (0x62, -0.25))]))
    found = Completions(0, TOKENS).choice(answer)["logprobs"]
    assert (found["tokens"], found["top_logprobs"]) == (["a"], None)
    answer = text(end(text_delta="a", logprobs=[logprob(0x61, -0.5, (0x62, -0.25))]))
    (token,) = Chats(0, TOKENS).choice(answer)["logprobs"]["content"]
    assert token == {"token": "a", "logprob": -0.5, "bytes": [0x61], "top_logprobs": []}


def test_a_chat_begins_with_its_role_and_ends_with_its_reason() -> None:
    shape = Chats(None, TOKENS)
    assert shape.begin(Text(0))[0]["delta"] == {"role": "assistant", "content": ""}
    last = shape.pieces(text(end(text_delta="x")))
    assert [(piece["delta"], piece["finish_reason"]) for piece in last] == [({"content": "x"}, None), ({}, "stop")]
