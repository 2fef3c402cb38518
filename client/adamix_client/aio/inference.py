"""The client's part of the data plane: texts in, answers out.

Made of `adamix_client.inference`, by `adamix_client.aio.make`.
"""

from collections.abc import AsyncGenerator, AsyncIterable, Iterable, Mapping, Sequence
from contextlib import aclosing
from typing import Any, overload

from adamix_client.aio.calling import AsyncCalls
from adamix_client.bounds import MAX_TIMEOUT_S
from adamix_client.chunks import Asked, OnError, Text, one_call
from adamix_client.generate_values import ChatMessage, GenerateDelta, to_delta, to_generate_request
from adamix_client.values import (
    Input,
    Prediction,
    Predictions,
    StreamedPrediction,
    StreamInput,
    Timing,
    to_json,
    to_stream_request,
    to_streamed_prediction,
    to_timing,
)
from adamix_protos.v1 import inference_pb2

CALLS_IN_FLIGHT = 4


class AsyncInference:
    """Part of a `AsyncClient`, which says what all its methods raise."""

    def __init__(self, calls: AsyncCalls) -> None:
        self._calls = calls

    @overload
    async def predict(  # type: ignore[overload-overlap]
        self,
        task: str,
        texts: str,
        *,
        version: str = "",
        truncate: bool = False,
        return_logits: bool = False,
        on_error: OnError = "raise",
        calls_in_flight: int = CALLS_IN_FLIGHT,
    ) -> Prediction: ...

    @overload
    async def predict(
        self,
        task: str,
        texts: Iterable[Text] | AsyncIterable[Text],
        *,
        version: str = "",
        truncate: bool = False,
        return_logits: bool = False,
        on_error: OnError = "raise",
        calls_in_flight: int = CALLS_IN_FLIGHT,
    ) -> Predictions: ...

    @overload
    async def predict(
        self,
        task: Iterable[Input] | AsyncIterable[Input],
        *,
        return_logits: bool = False,
        on_error: OnError = "raise",
        calls_in_flight: int = CALLS_IN_FLIGHT,
    ) -> Predictions: ...

    async def predict(
        self,
        task: str | Iterable[Input] | AsyncIterable[Input],
        texts: str | Iterable[Text] | AsyncIterable[Text] | None = None,
        *,
        version: str = "",
        truncate: bool = False,
        return_logits: bool = False,
        on_error: OnError = "raise",
        calls_in_flight: int = CALLS_IN_FLIGHT,
    ) -> Prediction | Predictions:
        """Answer one text, or any number of texts in order.

        As many calls are made as a server takes (64 inputs and 4 MiB each), a few of them at a time.

        >>> answer = await client.predict("sst2", "w1 w2")
        >>> answer.label, answer.score > 0.9
        ('yes', True)
        >>> answers = await client.predict("sst2", ["w1", "w2", ("w1", "w2")])
        >>> [answer.label for answer in answers]
        ['yes', 'yes', 'yes']
        >>> await client.predict("sst2", ["w1", " "])
        Traceback (most recent call last):
            ...
        adamix_client.errors.InvalidRequest: text 2 is empty

        Args:
            task: all texts are for it; or, in place of both, inputs that each have a task of their own.
            texts: one; or several, each a text or a pair of texts that are read together.
            version: a digest; the live version if empty.
            truncate: cut texts that are too long for the task, which is an error otherwise.
            return_logits: also give each head's raw output.
            on_error: `raise` raises what the first text that failed has met; `return` leaves each error in its place.
            calls_in_flight: how many calls run at a time, where one does not hold all.

        Returns:
            A Prediction of one text; of several a list of them, which also tells the time that the calls took.
        """
        asked, items = one_call(task, texts, version, truncate, return_logits, on_error)
        found: list[Prediction] = []
        timings: list[Timing] = []
        async with aclosing(self._calls.answers(_predict, asked, items, calls_in_flight)) as answers:
            async for chunk, response in answers:
                found += asked.answers(chunk, response)
                if isinstance(response, inference_pb2.PredictResponse):
                    timings.append(to_timing(response.timing))
        return found[0] if asked.is_single else Predictions(found, timings)

    async def predict_iter(
        self,
        task: str | Iterable[Input] | AsyncIterable[Input],
        texts: Iterable[Text] | AsyncIterable[Text] | None = None,
        *,
        version: str = "",
        truncate: bool = False,
        return_logits: bool = False,
        on_error: OnError = "raise",
        calls_in_flight: int = CALLS_IN_FLIGHT,
    ) -> AsyncGenerator[Prediction, None]:
        """As `predict` of several texts, one answer after the other: for more than memory should hold.

        Texts are read as answers are taken, no further than the calls that run. Closing the iterator ends these.

        >>> async for answer in client.predict_iter("sst2", (f"w{i}" for i in range(3))):
        ...     print(answer.label)
        yes
        yes
        yes
        """
        asked, items = one_call(task, texts, version, truncate, return_logits, on_error)
        async with aclosing(self._calls.answers(_predict, asked, items, calls_in_flight)) as answers:
            async for chunk, response in answers:
                for prediction in asked.answers(chunk, response):
                    yield prediction

    async def predict_json(
        self,
        inputs: Sequence[Input] = (),
        *,
        task: str = "",
        texts: Sequence[str] = (),
        truncate: bool = False,
        return_logits: bool = False,
    ) -> dict[str, Any]:
        """What the server says to one call, with `inputs` and then `texts`: in proto3 JSON with the proto's names.

        Up to 64 inputs; one that fails leaves an `error` in its place, and the call raises when all fail for the same
        reason.
        """
        asked = Asked(task=task, truncate=truncate, return_logits=return_logits)
        request = asked.request([*inputs, *texts])
        response = await self._calls.ask(_predict, request, task=task)
        return to_json(response)

    @overload
    async def embed(  # type: ignore[overload-overlap]
        self, task: str, texts: str, *, version: str = "", truncate: bool = False
    ) -> tuple[float, ...]: ...

    @overload
    async def embed(
        self, task: str, texts: Iterable[Text] | AsyncIterable[Text], *, version: str = "", truncate: bool = False
    ) -> list[tuple[float, ...]]: ...

    async def embed(
        self, task: str, texts: str | Iterable[Text] | AsyncIterable[Text], *, version: str = "", truncate: bool = False
    ) -> tuple[float, ...] | list[tuple[float, ...]]:
        """The vector of one text, or of each of several in order. Raises as `predict`.

        >>> vector = await client.embed("vectors", "w1")
        >>> len(vector)
        3

        Raises:
            InvalidConfig: the task answers with something else.
        """
        found = await self.predict(task, texts, version=version, truncate=truncate)
        if isinstance(found, Prediction):
            return found.embedding
        return [prediction.embedding for prediction in found]

    async def predict_stream(
        self, inputs: Iterable[StreamInput] | AsyncIterable[StreamInput]
    ) -> AsyncGenerator[StreamedPrediction, None]:
        """Answer any number of inputs over one stream, each as soon as it is ready: in any order, under its id.

        `inputs` is read beside the answers, while there is room on the stream, so it may be endless and may wait for
        answers. An exception it raises is raised here, after the answers to what it gave before. Closing the iterator
        ends the stream, and what is under way. Nothing is asked for twice.

        >>> asked = [StreamInput("first", Input("sst2", text="w1"))]
        >>> async for answer in client.predict_stream(asked):
        ...     print(answer.id, answer.prediction.label)
        first yes
        """
        async with aclosing(self._calls.exchange(_predict_stream, inputs, to_stream_request)) as messages:
            async for message in messages:
                yield to_streamed_prediction(message)

    def generate(
        self,
        task: str,
        prompt: str | None = None,
        *,
        chat: Sequence[ChatMessage | Mapping[str, str]] | None = None,
        token_ids: Sequence[int] | None = None,
        version: str = "",
        max_new_tokens: int | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        repetition_penalty: float | None = None,
        presence_penalty: float | None = None,
        frequency_penalty: float | None = None,
        no_repeat_ngram_size: int | None = None,
        seed: int | None = None,
        num_beams: int | None = None,
        length_penalty: float | None = None,
        renormalize: bool | None = None,
        stop: Sequence[str] = (),
        stop_token_ids: Sequence[int] = (),
        ignore_eos: bool = False,
        logprobs: int = 0,
        return_token_ids: bool = False,
        timeout_s: float = MAX_TIMEOUT_S,
    ) -> AsyncGenerator[GenerateDelta, None]:
        """Write a text, and give it piece by piece as it comes; the last delta has its end, usage and seed.

        Leaving the iterator ends the call, and what the server computes for it. An error, also in the middle of a text,
        is raised after the deltas that came before it; after the first one nothing is asked for again.

        >>> async for delta in client.generate("poet", "The sea is", max_new_tokens=2):
        ...     print(delta.text, end="")
        w3 w3

        Args:
            prompt: a text in the form that the task's adapter was made for; or in its place
            chat: messages, each a role and a content, for the chat template; or
            token_ids: ids of the backbone's vocabulary, taken as they are.
            version: a digest; the live version if empty.
            max_new_tokens: 1 up to the backbone's window; 64 if None.
            temperature: 0, or None, takes the likeliest token each time; what else is drawn by, `Sampling` says.
            seed: of the draws; the server's own choice if None, told in the last delta.
            stop, stop_token_ids: the text ends before any of these.
            ignore_eos: go on after an end of text.
            logprobs: how many alternatives to report per token, up to 20; 0 for no probabilities.
            timeout_s: for the whole text, in seconds; what came before it passes stays.

        Raises:
            InvalidConfig: at once: not exactly one of prompt, chat and token_ids, or a value that cannot be sent.
        """
        request = to_generate_request(
            task,
            prompt,
            chat,
            token_ids,
            sampling={
                "temperature": temperature,
                "top_k": top_k,
                "top_p": top_p,
                "min_p": min_p,
                "repetition_penalty": repetition_penalty,
                "presence_penalty": presence_penalty,
                "frequency_penalty": frequency_penalty,
                "no_repeat_ngram_size": no_repeat_ngram_size,
                "seed": seed,
                "length_penalty": length_penalty,
                "renormalize": renormalize,
            },
            settings={
                "version": version,
                "max_new_tokens": max_new_tokens,
                "num_beams": num_beams,
                "stop": stop,
                "stop_token_ids": stop_token_ids,
                "ignore_eos": ignore_eos,
                "logprobs": logprobs,
                "return_token_ids": return_token_ids,
            },
        )
        return self._deltas(request, timeout_s)

    async def _deltas(
        self, request: inference_pb2.GenerateRequest, timeout_s: float
    ) -> AsyncGenerator[GenerateDelta, None]:
        begin = self._calls.messages(_generate, request, timeout_s=timeout_s, task=request.task)
        async with aclosing(begin) as messages:
            async for message in messages:
                yield to_delta(message)


def _predict(link: Any) -> Any:
    return link.inference.Predict


def _predict_stream(link: Any) -> Any:
    return link.inference.PredictStream


def _generate(link: Any) -> Any:
    return link.inference.Generate
