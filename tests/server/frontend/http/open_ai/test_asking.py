"""Bodies -> messages: all that is asked, what is left to the server, and what no message can hold."""

import json
from typing import Any

import pytest

from adamix.errors import InvalidRequest
from adamix_protos.v1 import inference_pb2 as pb
from adamix_server.frontend.http.open_ai import asking
from adamix_server.frontend.http.open_ai.bodies import ChatBody, CompletionBody, EmbeddingBody, read_body
from adamix_server.frontend.http.open_ai.models import Model
from adamix_server.limits.messages import MAX_INPUTS_PER_CALL
from adamix_server.limits.open_ai import MAX_EMBEDDED_INPUTS, MAX_PROMPTS

TASK = "tenants/default/tasks/writer"


def completion(model: Model, **fields: Any) -> list[pb.GenerateRequest]:
    body = {"model": "writer", "prompt": "abc"} | fields
    return asking.completions(read_body(json.dumps(body).encode(), CompletionBody), model)


def chat(model: Model, **fields: Any) -> pb.GenerateRequest:
    body = {"model": "writer", "messages": [{"role": "user", "content": "abc"}]} | fields
    return asking.chat(read_body(json.dumps(body).encode(), ChatBody), model)


def inputs(model: Model, given: Any, **fields: Any) -> list[pb.PredictRequest]:
    body = {"model": "writer", "input": given} | fields
    return asking.inputs(read_body(json.dumps(body).encode(), EmbeddingBody), model)


def refused(error: pytest.ExceptionInfo[InvalidRequest]) -> tuple[str, str | None]:
    return error.value.reason, error.value.field


def test_the_least_leaves_all_to_the_server_but_the_temperature(model: Model) -> None:
    expected = pb.GenerateRequest(task=TASK, prompt="abc", sampling=pb.Sampling(temperature=1.0))
    assert completion(model) == [expected]


def test_everything_that_may_be_asked(model: Model) -> None:
    sampled = {
        "temperature": 0,
        "top_p": 0.5,
        "presence_penalty": -1,
        "frequency_penalty": 1.5,
        "top_k": 7,
        "min_p": 0.25,
        "repetition_penalty": 1.25,
        "seed": 3,
    }
    more = {"max_tokens": 9, "stop": ["a", "b"], "stop_token_ids": [1, 2], "ignore_eos": True, "logprobs": 2}
    (request,) = completion(model, **sampled, **more)
    assert request.sampling == pb.Sampling(**sampled)
    assert (request.max_new_tokens, request.logprobs, request.ignore_eos) == (9, 2, True)
    assert (list(request.stop), list(request.stop_token_ids)) == (["a", "b"], [1, 2])


def test_words_of_other_servers(model: Model) -> None:
    (request,) = completion(model, stop="x", top_k=-1, max_completion_tokens=4, max_tokens=4)
    assert (list(request.stop), request.sampling.top_k, request.max_new_tokens) == (["x"], 0, 4)


@pytest.mark.parametrize(("seed", "sent"), [(0, 0), (2**64 - 1, 2**64 - 1), (-1, 2**64 - 1), (-(2**63), 2**63)])
def test_any_integer_of_64_bits_is_a_seed(model: Model, seed: int, sent: int) -> None:
    assert completion(model, seed=seed)[0].sampling.seed == sent


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 10**12}, "max_tokens"),
        ({"max_completion_tokens": -1}, "max_completion_tokens"),
        ({"max_tokens": 3, "max_completion_tokens": 4}, "max_tokens"),
        ({"seed": 2**64}, "seed"),
        ({"top_k": 10**12}, "top_k"),
        ({"logprobs": 21}, "logprobs"),
        ({"logprobs": -1}, "logprobs"),
    ],
)
def test_what_no_message_can_hold(model: Model, fields: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidRequest) as error:
        completion(model, **fields)
    assert refused(error) == ("OUT_OF_RANGE", field)


def test_prompts_are_texts_or_ids_one_or_several(model: Model) -> None:
    assert [r.prompt for r in completion(model, prompt=["a", "b"])] == ["a", "b"]
    (request,) = completion(model, prompt=[5, 6])
    assert list(request.token_ids.ids) == [5, 6]
    assert [list(r.token_ids.ids) for r in completion(model, prompt=[[5], [6, 7]])] == [[5], [6, 7]]


@pytest.mark.parametrize("prompt", [["a", 1], ["a", [1]], [[1], 1]])
def test_kinds_of_prompts_are_not_mixed(model: Model, prompt: Any) -> None:
    with pytest.raises(InvalidRequest) as error:
        completion(model, prompt=prompt)
    assert refused(error) == ("FIELD_INVALID", "prompt")


def test_an_id_that_no_message_can_hold(model: Model) -> None:
    for fields in ({"prompt": [1 << 31]}, {"stop_token_ids": [-(1 << 31) - 1]}):
        with pytest.raises(InvalidRequest) as error:
            completion(model, **fields)
        assert error.value.reason == "TOKEN_ID_OUT_OF_RANGE"


def test_so_many_prompts_and_no_more(model: Model) -> None:
    assert len(completion(model, prompt=["x"] * MAX_PROMPTS)) == MAX_PROMPTS
    with pytest.raises(InvalidRequest) as error:
        completion(model, prompt=["x"] * (MAX_PROMPTS + 1))
    assert refused(error) == ("INPUT_COUNT", "prompt")
    with pytest.raises(InvalidRequest):
        completion(model, prompt=[])


def test_so_many_inputs_and_no_more(model: Model) -> None:
    requests = inputs(model, ["x"] * MAX_EMBEDDED_INPUTS)
    assert [len(request.inputs) for request in requests] == [MAX_INPUTS_PER_CALL] * 32
    with pytest.raises(InvalidRequest) as error:
        inputs(model, ["x"] * (MAX_EMBEDDED_INPUTS + 1))
    assert refused(error) == ("INPUT_COUNT", "input")


def test_inputs_keep_their_order_over_calls(model: Model) -> None:
    texts = [f"w{number}" for number in range(MAX_INPUTS_PER_CALL + 2)]
    requests = inputs(model, texts)
    assert [item.text for request in requests for item in request.inputs] == texts
    assert {item.task for request in requests for item in request.inputs} == {TASK}


def test_a_text_is_cut_where_that_is_asked(model: Model) -> None:
    (request,) = inputs(model, "x", truncate_prompt_tokens=-1)
    assert request.inputs[0].truncation == pb.TRUNCATION_RIGHT
    (request,) = inputs(model, [3, 4])
    assert (request.inputs[0].truncation, list(request.inputs[0].token_ids.ids)) == (pb.TRUNCATION_ERROR, [3, 4])
    with pytest.raises(InvalidRequest) as error:
        inputs(model, "x", truncate_prompt_tokens=8)
    assert refused(error) == ("PARAMETER_UNSUPPORTED", "truncate_prompt_tokens")


def test_no_probabilities_are_not_those_of_the_chosen_token_alone(model: Model) -> None:
    assert completion(model)[0].logprobs == 0
    # Without alternatives the server says nothing at all.
    assert completion(model, logprobs=0)[0].logprobs == 1
    assert chat(model).logprobs == 0
    assert chat(model, logprobs=True).logprobs == 1
    assert chat(model, logprobs=True, top_logprobs=5).logprobs == 5


def test_alternatives_need_probabilities(model: Model) -> None:
    with pytest.raises(InvalidRequest) as error:
        chat(model, top_logprobs=2)
    assert refused(error) == ("OUT_OF_RANGE", "top_logprobs")


def test_turns_of_a_chat(model: Model) -> None:
    turns = [
        {"role": "developer", "content": "be short"},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        # As an answer comes back from a client.
        {"role": "assistant", "content": "c", "refusal": None, "annotations": [], "tool_calls": None},
        {"role": "system", "content": ""},
    ]
    said = [(turn.role, turn.content) for turn in chat(model, messages=turns).chat.messages]
    assert said == [("system", "be short"), ("user", "a\nb"), ("assistant", "c"), ("system", "")]


def test_a_chat_of_no_turns_is_a_chat(model: Model) -> None:
    assert chat(model, messages=[]).WhichOneof("content") == "chat"


@pytest.mark.parametrize(
    ("turn", "reason", "field"),
    [
        ({"role": "tool", "content": "x"}, "CHAT_INVALID", "messages[0].role"),
        ({"role": "user"}, "FIELD_MISSING", "messages[0].content"),
        (
            {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]},
            "PARAMETER_UNSUPPORTED",
            "messages[0].content[0].type",
        ),
        ({"role": "user", "content": [{"type": "text"}]}, "FIELD_MISSING", "messages[0].content[0].text"),
        ({"role": "user", "content": "x", "name": "me"}, "PARAMETER_UNSUPPORTED", "messages[0].name"),
        (
            {"role": "assistant", "content": "", "tool_calls": [{"id": "1"}]},
            "PARAMETER_UNSUPPORTED",
            "messages[0].tool_calls",
        ),
    ],
)
def test_what_a_turn_cannot_have(model: Model, turn: dict[str, Any], reason: str, field: str) -> None:
    with pytest.raises(InvalidRequest) as error:
        chat(model, messages=[turn])
    assert refused(error) == (reason, field)


def test_options_of_a_stream_need_a_stream(model: Model) -> None:
    assert chat(model, stream=True, stream_options={"include_usage": True, "include_obfuscation": False})
    with pytest.raises(InvalidRequest) as error:
        chat(model, stream_options={"include_usage": True})
    assert refused(error) == ("PARAMETER_UNSUPPORTED", "stream_options")
