"""An answer's messages: however its tokens come and whenever it is told, they say the same in the end."""

from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from adamix_protos.v1 import inference_pb2 as pb
from adamix_server.channel.engine_frames import Event, Finish
from adamix_server.frontend.inference import generate_fields
from adamix_server.frontend.inference.answer import Answer
from adamix_server.frontend.inference.detokenization import Detokenizer
from adamix_server.frontend.inference.stops import Stops
from adamix_testing.byte_tokenizers import byte_level

TOKENIZER = byte_level(["the", " cat", "日本", "🙂", "\n\n"])
DETOKENIZER = Detokenizer(TOKENIZER)


def answer_to(stops: list[str]) -> Answer:
    request = pb.GenerateRequest(stop=stops, return_token_ids=True)
    return Answer(generate_fields.read(request, vocab_size=300, window=64), DETOKENIZER.begin(), "v")


@given(
    ids=st.lists(st.integers(0, TOKENIZER.get_vocab_size() - 1) | st.sampled_from([261, 264, 266]), max_size=24),
    stops=st.lists(st.text("the cat日本🙂\n\ufffd", min_size=1, max_size=4), max_size=3),
    cuts=st.lists(st.integers(0, 24), max_size=8),
    told=st.sets(st.integers(0, 9)),
)
def test_whatever_comes_together(ids: list[int], stops: list[str], cuts: list[int], told: set[int]) -> None:
    plain = Stops(stops)
    expected = plain.feed(TOKENIZER.decode(ids)) + plain.rest()
    answer = answer_to(stops)
    places = [0, *sorted(cut for cut in cuts if cut <= len(ids)), len(ids)]
    messages, num_counted = [], 0
    for number, (begin, end) in enumerate(pairwise(places)):
        if answer.is_stopped:
            break
        num_counted += answer.add(Event(id=1, final=False, tokens=np.asarray(ids[begin:end], dtype="<i4").tobytes()))
        if number in told and (message := answer.message()) is not None:
            messages.append(message)
        assert expected.startswith("".join(message.text_delta for message in messages))
    messages.append(answer.end(Finish(reason="length", num_tokens=len(ids), cached_tokens=0, seed=0), 1))
    assert "".join(message.text_delta for message in messages) == expected
    assert (messages[-1].finish_reason == pb.FINISH_REASON_STOP) == plain.is_hit
    counted = [token for message in messages for token in message.token_ids]
    assert counted == ids[: len(counted)]
    assert len(counted) == num_counted == answer.num_tokens == messages[-1].usage.generated_tokens
    # Not a token more than the stop took, however many came with its last one.
    fewer = Stops(stops)
    fewer.feed(TOKENIZER.decode(counted[:-1]))
    assert len(counted) == len(ids) or not fewer.is_hit or "\ufffd" in "".join(stops)
