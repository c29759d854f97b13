"""The asynchronous client; every method is described at `steer.Client`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Sequence
from contextlib import aclosing
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
from steer.registries import AsyncRegistry
from steer.rpc import Call, Plan, Service

Result = TypeVar("Result")


class AsyncGenerationStream(AsyncIterator[Token]):
    """Tokens as they come. Leaving the `async with` block ends the generation."""

    def __init__(self, responses: AsyncGenerator[v1.GenerateResponse, None]) -> None:
        self._responses = responses
        self._reader = Reader()

    @property
    def generation(self) -> Generation:
        """What has come so far; complete once the stream has ended."""
        return self._reader.generation

    async def __anext__(self) -> Token:
        async for response in self._responses:
            token = self._reader.read(response)
            if token is not None:
                return token
        self._reader.end()
        raise StopAsyncIteration

    async def aclose(self) -> None:
        """Ends the generation; its slots are free before the model's next step."""
        await self._responses.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()


class AsyncClient:
    """Both services, for one event loop.

    >>> async with AsyncClient() as client:
    ...     haikus = await asyncio.gather(*(client.generate(p) for p in prompts))
    """

    def __init__(self, config: Config | None = None) -> None:
        self.config = config or Config()
        #: What the registry holds.
        self.registry = AsyncRegistry(self._run)
        self._channels: dict[Service, grpc.aio.Channel] = {}

    async def model(self) -> v1.GetModelResponse:
        """See `Client.model`."""
        return await self._run(rpc.ask(rpc.GET_MODEL, v1.GetModelRequest()))

    async def tokenize(
        self, prompt: Prompt, **options: Unpack[PromptOptions]
    ) -> v1.TokenizeResponse:
        """See `Client.tokenize`."""
        request = v1.TokenizeRequest(prompt=compose.prompt_message(prompt, options))
        return await self._run(rpc.ask(rpc.TOKENIZE, request), options.get("timeout"))

    async def generate(self, prompt: Prompt, **options: Unpack[GenerateOptions]) -> Generation:
        """See `Client.generate`."""
        async with await self.stream(prompt, **options) as tokens:
            async for _ in tokens:
                pass
            return tokens.generation

    async def stream(
        self, prompt: Prompt, **options: Unpack[GenerateOptions]
    ) -> AsyncGenerationStream:
        """See `Client.stream`.

        >>> async with await client.stream("Write a haiku.") as tokens:
        ...     async for token in tokens:
        ...         print(token.text, end="", flush=True)
        """
        timeout_s = self.config.limit_s(options.get("timeout"), streams=True)
        request = await self._run(compose.generate_request(prompt, options))
        return AsyncGenerationStream(self._messages(Call(rpc.GENERATE, request), timeout_s))

    async def sweep(
        self,
        prompt: Prompt,
        strengths: Iterable[float],
        *,
        feature: str | int | None = None,
        cav: str | None = None,
        **options: Unpack[SweepOptions],
    ) -> sweeps.Sweep:
        """See `Client.sweep`."""
        plan = sweeps.sweep(prompt, strengths, options, feature=feature, cav=cav)
        return await self._run(plan, options.get("timeout"))

    async def score(
        self,
        prompt: Prompt,
        continuation: str | Sequence[int],
        **options: Unpack[ScoreOptions],
    ) -> v1.ScoreTextResponse:
        """See `Client.score`."""
        timeout_s = self.config.limit_s(options.get("timeout"), streams=False)
        request = await self._run(compose.score_request(prompt, continuation, options))
        return await self._run(rpc.ask(rpc.SCORE_TEXT, request), timeout_s)

    def capture(
        self,
        texts: Iterable[str | Sequence[int]],
        hook_name: str,
        **options: Unpack[CaptureOptions],
    ) -> AsyncGenerator[Captured, None]:
        """See `Client.capture`."""
        requests = capture.requests(hook_name, texts, options)
        timeout_s = self.config.limit_s(options.get("timeout"), streams=True)
        return self._captured(requests, timeout_s)

    async def _captured(
        self, requests: Requests, timeout_s: float
    ) -> AsyncGenerator[Captured, None]:
        permits = asyncio.Semaphore(TEXTS_UNDER_WAY)

        async def questions() -> AsyncIterator[v1.CaptureActivationsRequest]:
            for question in requests:
                if question.HasField("text"):
                    await permits.acquire()
                yield question

        # Closed at once when the caller leaves, not when the garbage is collected.
        async with aclosing(self._messages(Call(rpc.CAPTURE, questions()), timeout_s)) as responses:
            async for response in responses:
                captured = capture.read(response)
                if captured is not None:
                    permits.release()
                    yield captured
            requests.raise_failure()

    async def activations(
        self,
        texts: Iterable[str | Sequence[int]],
        hook_name: str,
        **options: Unpack[CaptureOptions],
    ) -> NDArray[np.float32]:
        """See `Client.activations`."""
        if options.get("pooling", "mean") != "mean":
            raise ValueError("activations: pooling is mean; use capture for per_token")
        return capture.matrix([one async for one in self.capture(texts, hook_name, **options)])

    async def project(
        self, direction: str | ArrayLike, *, top: int = 10, sae: str | None = None
    ) -> v1.ProjectDirectionResponse:
        """See `Client.project`."""
        request = await self._run(compose.project_request(direction, top, sae))
        return await self._run(rpc.ask(rpc.PROJECT_DIRECTION, request))

    async def close(self) -> None:
        """Closes the connections."""
        channels, self._channels = self._channels, {}
        for channel in channels.values():
            await channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def _channel(self, service: Service) -> grpc.aio.Channel:
        if service not in self._channels:
            address, options = self.config.address(service), self.config.channel_options()
            self._channels[service] = (
                grpc.aio.secure_channel(address.target, self.config.credentials(), options)
                if address.tls
                else grpc.aio.insecure_channel(address.target, options)
            )
        return self._channels[service]

    async def _run(self, plan: Plan[Result], timeout_s: float | None = None) -> Result:
        try:
            call = next(plan)
            while True:
                call = plan.send(await self._answer(call, timeout_s))
        except StopIteration as done:
            result: Result = done.value
            return result

    async def _answer(self, call: Call, timeout_s: float | None) -> Any:
        limit_s = self.config.limit_s(timeout_s, streams=call.rpc.streams)
        last = None
        async for last in self._messages(call, limit_s):
            if call.on_message is not None:
                call.on_message(last)
        return last

    async def _messages(self, call: Call, timeout_s: float) -> AsyncGenerator[Any, None]:
        attempts = Attempts(self.config.retry, timeout_s)
        while True:
            came = False
            under_way = self._attempt(call, attempts.remaining_s())
            try:
                async for message in under_way:
                    came = True
                    yield message
                return
            except grpc.RpcError as failure:
                error = from_rpc_error(failure)
                pause = attempts.pause_s(error, retriable=call.rpc.retriable and not came)
            finally:
                under_way.cancel()
            await asyncio.sleep(pause)

    def _attempt(self, call: Call, timeout_s: float) -> Any:
        method, channel = call.rpc, self._channel(call.rpc.service)
        kind = ("stream" if method.streams_questions else "unary") + "_stream"
        invoke = getattr(channel, kind)(
            method.path,
            request_serializer=method.question.SerializeToString,
            response_deserializer=method.answer.FromString,
        )
        return invoke(call.question, timeout=timeout_s, metadata=self.config.metadata())
