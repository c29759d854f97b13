"""The asynchronous client, against the real services on the demo model."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from steer import AsyncClient, Client, Config, InvalidRequest

HOOK = "blocks.3.hook_resid_post"


def test_many_at_once_are_what_they_are_alone(config: Config, client: Client) -> None:
    async def together() -> list[list[int]]:
        async with AsyncClient(config) as several:
            calls = (
                several.generate("Write a haiku.", feature={"space": 5 * i}, seed=i)
                for i in range(8)
            )
            return [generation[0].token_ids for generation in await asyncio.gather(*calls)]

    alone = [
        client.generate("Write a haiku.", feature={"space": 5 * i}, seed=i)[0].token_ids
        for i in range(8)
    ]
    assert asyncio.run(together()) == alone


def test_everything_else_works_too(config: Config, client: Client) -> None:
    async def everything() -> None:
        async with AsyncClient(config) as several:
            async with await several.stream("Write a haiku.", seed=7) as tokens:
                async for token in tokens:
                    first = token
                    break
            with_sync = client.generate("Write a haiku.", seed=7)
            assert first.token_id == with_sync[0].token_ids[0]
            assert [one.label for one in await several.registry.search("hockey")] == ["ice-hockey"]
            texts = [f"text number {i}" for i in range(100)]
            np.testing.assert_array_equal(
                await several.activations(texts, HOOK), client.activations(texts, HOOK)
            )
            endless = several.capture((f"text {i}" for i in range(10**9)), HOOK)
            assert (await anext(endless)).activations.shape == (128,)
            await endless.aclose()
            sweep = await several.sweep("Write a haiku.", [0, 20], cav="birds", seed=1)
            assert (
                sweep.points[2].text
                == client.generate("Write a haiku.", cav="birds=20", seed=1).text
            )
            assert (await several.model()).model_id == client.model().model_id
            with pytest.raises(InvalidRequest):
                await several.generate("Write a haiku.", min_p=7.0)

    asyncio.run(everything())
