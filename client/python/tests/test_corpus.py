"""A sharded, resumable capture, against the real worker on the demo model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import steer
from steer import Client, corpus

HOOK = "blocks.3.hook_resid_post"


def write_texts(folder: Path) -> Path:
    path = folder / "texts.jsonl"
    path.write_text("".join(f'{{"text": "the goalie waits {i} times"}}\n' for i in range(50)))
    return path


def test_shards_together_are_the_corpus(client: Client, tmp_path: Path) -> None:
    texts = list(corpus.read_texts(write_texts(tmp_path)))
    out = tmp_path / "out"
    for index in (2, 0, 1):
        parts = corpus.capture_shard(client, texts, out, HOOK, index=index, count=3, chunk=7)
        assert len(list(parts)) == 3
    loaded = [np.load(part) for part in sorted(out.glob("part-*.npz"))]
    places = np.concatenate([part["index"] for part in loaded])
    rows = np.concatenate([part["activations"] for part in loaded])[np.argsort(places)]
    assert sorted(places) == list(range(50))
    np.testing.assert_array_equal(rows, client.activations(texts, HOOK))


def test_a_job_that_starts_again_goes_on(
    config: steer.Config, client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts, out = write_texts(tmp_path), tmp_path / "out"
    cut = corpus.capture_shard(client, corpus.read_texts(texts), out, HOOK, chunk=10, max_tokens=8)
    first = [next(cut), next(cut)]
    stamps = [part.stat().st_mtime_ns for part in first]
    (out / ".part-00000-000002.npz").write_bytes(b"cut off in the middle")

    monkeypatch.setenv("STEER_WORKER", config.worker)
    arguments = [str(texts), str(out), "--hook", HOOK, "--chunk", "10", "--max-tokens", "8"]
    assert corpus.main(arguments) == 0
    assert len(list(out.glob("part-*.npz"))) == 5
    assert [part.stat().st_mtime_ns for part in first] == stamps
    assert not list(out.glob(".*"))
    with pytest.raises(ValueError, match="is of another run"):
        corpus.main([*arguments, "--skip-tokens", "2"])


def test_what_is_no_shard_or_no_text_is_refused(client: Client, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="shard 3 of 3: shards go from 0 to 2"):
        corpus.shard([], 3, 3)
    bad = tmp_path / "bad.jsonl"
    bad.write_text('"fine"\n{"words": "none"}\n')
    with pytest.raises(ValueError, match=r"bad.jsonl:2: neither a string"):
        list(corpus.read_texts(bad))
