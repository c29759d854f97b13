"""A corpus captured by many jobs: each takes its shard, and goes on where it was cut off.

    python -m steer.corpus texts.jsonl out/ --hook blocks.21.hook_resid_post \\
        --shard "$JOB_COMPLETION_INDEX" --shards 64

Every `--chunk` texts become one `part-SHARD-CHUNK.npz` with `index` (the text's line, from 0),
`activations` [n, width] and `dropped`. A part appears whole or not at all, so a job that
starts again skips what is there.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Unpack

import numpy as np

from steer import checks
from steer.capture import CaptureOptions
from steer.client import Client


def shard(texts: Iterable[str], index: int, count: int) -> Iterator[tuple[int, str]]:
    """Every `count`-th text from `index` on, with its place in the corpus."""
    if not 0 <= index < count:
        raise ValueError(f"shard {index} of {count}: shards go from 0 to {count - 1}")
    several = checks.several(texts, "texts")
    return ((place, text) for place, text in enumerate(several) if place % count == index)


def capture_shard(
    client: Client,
    texts: Iterable[str],
    folder: Path,
    hook_name: str,
    *,
    index: int = 0,
    count: int = 1,
    chunk: int = 1000,
    **options: Unpack[CaptureOptions],
) -> Iterator[Path]:
    """Captures mean activations of a shard, part by part; gives the parts that it wrote."""
    if options.get("pooling", "mean") != "mean":
        raise ValueError(
            "capture_shard: pooling is mean; per-token activations need another layout"
        )
    if chunk < 1:
        raise ValueError(f"chunk: {chunk} is below 1")
    folder.mkdir(parents=True, exist_ok=True)
    # What a part holds follows from these; parts of another run must not be mixed in.
    read = {name: options.get(name, 0) for name in ("max_tokens", "skip_tokens", "chat")}
    run = {"hook_name": hook_name, "shards": count, "chunk": chunk, **read}
    _agree(folder / "run.json", {**run, "model": client.model().model_digest})
    mine = shard(texts, index, count)
    for number in itertools.count():
        batch = list(itertools.islice(mine, chunk))
        if not batch:
            return
        part = folder / f"part-{index:05}-{number:06}.npz"
        if part.exists():
            continue
        captured = sorted(
            client.capture((text for _, text in batch), hook_name, **options),
            key=lambda one: one.index,
        )
        width = max((one.activations.size for one in captured), default=0)
        nothing = np.full(width, np.nan, dtype=np.float32)
        unfinished = part.with_name(f".{part.name}")
        with unfinished.open("wb") as file:
            np.savez(
                file,
                index=np.array([place for place, _ in batch], dtype=np.int64),
                activations=np.stack([nothing if c.dropped else c.activations for c in captured]),
                dropped=np.array([bool(one.dropped) for one in captured]),
            )
            file.flush()
            os.fsync(file.fileno())
        unfinished.rename(part)
        yield part


def _agree(path: Path, run: dict[str, object]) -> None:
    """Stores what the run is, or fails if another run is stored there."""
    text = json.dumps(run, sort_keys=True)
    mine = path.with_name(f".run-{os.getpid()}-{os.urandom(4).hex()}")
    mine.write_text(text)
    try:
        # The first job's stays, whole: several start at the same time.
        os.link(mine, path)
    except FileExistsError:
        if path.read_text() != text:
            raise ValueError(f"{path} is of another run: {path.read_text()}, not {text}") from None
    finally:
        mine.unlink()


def read_texts(path: Path) -> Iterator[str]:
    """The texts of a `.jsonl` file (strings, or objects with "text"), or the lines of another."""
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if path.suffix != ".jsonl":
                yield line.rstrip("\n")
                continue
            parsed = json.loads(line)
            text = parsed.get("text") if isinstance(parsed, dict) else parsed
            if not isinstance(text, str):
                raise ValueError(f'{path}:{number}: neither a string nor an object with "text"')
            yield text


def main(arguments: list[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m steer.corpus",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("texts", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--hook", required=True)
    parser.add_argument("--shard", type=int, default=0)
    parser.add_argument("--shards", type=int, default=1)
    parser.add_argument("--chunk", type=int, default=1000)
    parser.add_argument("--max-tokens", type=int, default=0)
    parser.add_argument("--skip-tokens", type=int, default=0)
    given = parser.parse_args(arguments)
    with Client() as client:
        for part in capture_shard(
            client,
            read_texts(given.texts),
            given.folder,
            given.hook,
            index=given.shard,
            count=given.shards,
            chunk=given.chunk,
            max_tokens=given.max_tokens,
            skip_tokens=given.skip_tokens,
        ):
            print(part, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
