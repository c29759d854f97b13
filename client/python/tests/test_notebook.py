"""The example notebook runs from top to bottom, and says what it says in the repository.

With STEER_UPDATE_NOTEBOOK=1 its outputs are written back.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest

from steer import Config

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")

NOTEBOOK = Path(__file__).parents[1] / "examples/workshop.ipynb"
#: The stored outputs stay small enough to be read in a diff.
STORED_BYTES_MAX = 60_000


def printed(notebook: Any) -> list[str]:
    """What the cells print, but for digits: the last of them are the machine's."""
    outputs = (output for cell in notebook.cells for output in cell.get("outputs", ()))
    texts = (output.text for output in outputs if output.output_type == "stream")
    return [re.sub(r"[\d.]+|\s+", " ", text) for text in texts]


def test_the_notebook_runs(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STEER_WORKER", config.worker)
    monkeypatch.setenv("STEER_REGISTRY", config.registry)
    stored = nbformat.read(NOTEBOOK, as_version=4)
    run = nbformat.read(NOTEBOOK, as_version=4)
    folder = {"metadata": {"path": str(NOTEBOOK.parent)}}
    notebook = nbclient.NotebookClient(run, timeout=300, resources=folder, coalesce_streams=True)
    notebook.execute()
    if os.environ.get("STEER_UPDATE_NOTEBOOK"):
        for cell in run.cells:
            cell.metadata.pop("execution", None)
        nbformat.write(run, NOTEBOOK)
    else:
        assert printed(run) == printed(stored)
    assert NOTEBOOK.stat().st_size < STORED_BYTES_MAX
