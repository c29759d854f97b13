"""The synchronous client."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack

import grpc
import numpy as np
from numpy.typing import ArrayLike, NDArray

from steer import capture, compose, rpc, sweeps, v1
from steer.capture import TEXTS_UNDER_WAY, Captured, CaptureOptions, Requests
from steer.connection import Attempts, Config
from steer.errors import from_rpc_error
from steer.generation import Generation, Reader, Token
from steer.options import GenerateOptions, Prompt, PromptOptions, ScoreOptions, SweepOptions
from steer.registries import Registry
from steer.rpc import Call, Plan, Service

Result = TypeVar("Result")


class GenerationStream(Iterator[Token]):
    """Tokens as they come. Leaving the `with` block, or `cancel`, ends the generation."""

    def __init__(self, responses: Iterator[v1.GenerateResponse], call: _Cancel) -> None:
        self._responses = responses
        self._call = call
        self._reader = Reader()

    @property
    def generation(self) -> Generation:
        """What has come so far; complete once the stream has ended."""
        return self._reader.generation

    def __next__(self) -> Token:
        for response in self._responses:
            token = self._reader.read(response)
            if token is not None:
                return token
        self._reader.end()
        raise StopIteration

    def cancel(self) -> None:
        """Ends the generation; its slots are free before the model's next step."""
        self._call.cancel()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.cancel()


class _Cancel:
    """Cancels the attempt that is under way."""

    def __init__(self) -> None:
        self.call: Any = None

    def cancel(self) -> None:
        if self.call is not None:
            self.call.cancel()


class Client:
    """Both services. Connects on first use, and again when needed; safe to share by threads.

    >>> client = Client()                                   # services on this machine
    >>> client = Client(Config(worker="https://host:50051", api_key="…"))
    """

    def __init__(self, config: Config | None = None) -> None:
        self.config = config or Config()
        #: What the registry holds.
        self.registry = Registry(self._run)
        self._channels: dict[Service, grpc.Channel] = {}
        self._lock = threading.Lock()

    def model(self) -> v1.GetModelResponse:
        """What the worker serves: model, hook points, limits."""
        return self._run(rpc.ask(rpc.GET_MODEL, v1.GetModelRequest()))

    def tokenize(self, prompt: Prompt, **options: Unpack[PromptOptions]) -> v1.TokenizeResponse:
        """Token ids and pieces of a prompt, and the prompt as the chat template renders it."""
        request = v1.TokenizeRequest(prompt=compose.prompt_message(prompt, options))
        return self._run(rpc.ask(rpc.TOKENIZE, request), options.get("timeout"))

    def generate(self, prompt: Prompt, **options: Unpack[GenerateOptions]) -> Generation:
        """Generates text; see `steer.options.GenerateOptions` for what can be asked for.

        >>> client.generate("Write a haiku.", feature={"baseball": 525}, compare=True, seed=7)
        """
        with self.stream(prompt, **options) as tokens:
            for _ in tokens:
                pass
            return tokens.generation

    def stream(self, prompt: Prompt, **options: Unpack[GenerateOptions]) -> GenerationStream:
        """The same, token by token; variants come interleaved.

        >>> with client.stream("Write a haiku.", feature={"baseball": 525}) as tokens:
        ...     for token in tokens:
        ...         print(token.text, end="", flush=True)
        """
        timeout_s = self.config.limit_s(options.get("timeout"), streams=True)
        request = self._run(compose.generate_request(prompt, options))
        cancel = _Cancel()
        return GenerationStream(
            self._messages(Call(rpc.GENERATE, request), timeout_s, cancel), cancel
        )

    def sweep(
        self,
        prompt: Prompt,
        strengths: Iterable[float],
        *,
        feature: str | int | None = None,
        cav: str | None = None,
        **options: Unpack[SweepOptions],
    ) -> sweeps.Sweep:
        """One feature set to, or one CAV added with, many strengths, as one batch.

        >>> client.sweep("Write a haiku.", range(0, 1001, 25), feature="baseball").to_pandas()
        """
        plan = sweeps.sweep(prompt, strengths, options, feature=feature, cav=cav)
        return self._run(plan, options.get("timeout"))

    def score(
        self,
        prompt: Prompt,
        continuation: str | Sequence[int],
        **options: Unpack[ScoreOptions],
    ) -> v1.ScoreTextResponse:
        """ln p of every token of a continuation, under any steering."""
        timeout_s = self.config.limit_s(options.get("timeout"), streams=False)
        request = self._run(compose.score_request(prompt, continuation, options))
        return self._run(rpc.ask(rpc.SCORE_TEXT, request), timeout_s)

    def capture(
        self,
        texts: Iterable[str | Sequence[int]],
        hook_name: str,
        **options: Unpack[CaptureOptions],
    ) -> Iterator[Captured]:
        """Activations of texts at a hook point, in order of completion.

        Texts are taken as they are needed, so there may be any number of them.
        """
        requests = capture.requests(hook_name, texts, options)
        timeout_s = self.config.limit_s(options.get("timeout"), streams=True)
        return self._captured(requests, timeout_s)

    def _captured(self, requests: Requests, timeout_s: float) -> Iterator[Captured]:
        permits = threading.Semaphore(TEXTS_UNDER_WAY)
        ended = threading.Event()

        def questions() -> Iterator[v1.CaptureActivationsRequest]:
            for question in requests:
                while question.HasField("text") and not permits.acquire(timeout=0.5):
                    if ended.is_set():
                        return
                yield question

        cancel = _Cancel()
        try:
            for response in self._messages(Call(rpc.CAPTURE, questions()), timeout_s, cancel):
                captured = capture.read(response)
                if captured is not None:
                    permits.release()
                    yield captured
            requests.raise_failure()
        finally:
            ended.set()
            cancel.cancel()

    def activations(
        self,
        texts: Iterable[str | Sequence[int]],
        hook_name: str,
        **options: Unpack[CaptureOptions],
    ) -> NDArray[np.float32]:
        """Mean activations, a row per text in the order of the texts; NaN where one was dropped."""
        if options.get("pooling", "mean") != "mean":
            raise ValueError("activations: pooling is mean; use capture for per_token")
        return capture.matrix(self.capture(texts, hook_name, **options))

    def project(
        self, direction: str | ArrayLike, *, top: int = 10, sae: str | None = None
    ) -> v1.ProjectDirectionResponse:
        """The tokens that a direction speaks of: a feature's label, "cav:NAME", or a vector."""
        request = self._run(compose.project_request(direction, top, sae))
        return self._run(rpc.ask(rpc.PROJECT_DIRECTION, request))

    def close(self) -> None:
        """Closes the connections."""
        with self._lock:
            for channel in self._channels.values():
                channel.close()
            self._channels.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _channel(self, service: Service) -> grpc.Channel:
        with self._lock:
            if service not in self._channels:
                address, options = self.config.address(service), self.config.channel_options()
                self._channels[service] = (
                    grpc.secure_channel(address.target, self.config.credentials(), options)
                    if address.tls
                    else grpc.insecure_channel(address.target, options)
                )
            return self._channels[service]

    def _run(self, plan: Plan[Result], timeout_s: float | None = None) -> Result:
        try:
            call = next(plan)
            while True:
                call = plan.send(self._answer(call, timeout_s))
        except StopIteration as done:
            result: Result = done.value
            return result

    def _answer(self, call: Call, timeout_s: float | None) -> Any:
        """The last message of the answer."""
        limit_s = self.config.limit_s(timeout_s, streams=call.rpc.streams)
        last = None
        for last in self._messages(call, limit_s, _Cancel()):
            if call.on_message is not None:
                call.on_message(last)
        return last

    def _messages(self, call: Call, timeout_s: float, cancel: _Cancel) -> Iterator[Any]:
        """The messages of an answer; attempts are made until the first of them is there."""
        attempts = Attempts(self.config.retry, timeout_s)
        while True:
            came = False
            try:
                for message in self._attempt(call, attempts.remaining_s(), cancel):
                    came = True
                    yield message
                return
            except grpc.RpcError as failure:
                error = from_rpc_error(failure)
                pause = attempts.pause_s(error, retriable=call.rpc.retriable and not came)
            time.sleep(pause)

    def _attempt(self, call: Call, timeout_s: float, cancel: _Cancel) -> Iterator[Any]:
        method, channel = call.rpc, self._channel(call.rpc.service)
        kind = ("stream" if method.streams_questions else "unary") + "_stream"
        # A unary answer is a stream of one message, so one kind of call serves all methods.
        invoke = getattr(channel, kind)(
            method.path,
            request_serializer=method.question.SerializeToString,
            response_deserializer=method.answer.FromString,
        )
        cancel.call = invoke(call.question, timeout=timeout_s, metadata=self.config.metadata())
        yield from cancel.call
