"""CAV files in every accepted form, and `expected.json` with the values they hold.

Every form is float32 or holds float32 values, so one table of expected numbers serves them all.
"""

import json
import shutil

import gguf
import torch
from safetensors.torch import save_file

from common import write_json

D_MODEL = 24
LABELS = ["rec.sport.baseball", "sci.space", "Grüße 🙂", "日本語"]


def unit_rows(seed, n, dtype=torch.float32):
    rows = torch.randn(n, D_MODEL, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (rows / rows.norm(dim=1, keepdim=True)).to(dtype)


def build(root):
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir(parents=True)
    cavs, exact = unit_rows(1, len(LABELS)), unit_rows(1, len(LABELS), torch.float64)
    table = lambda rows: [{"label": label, "cav": row.tolist()} for label, row in zip(LABELS, rows)]
    expected = {}

    def ok(file, cavs, **more):
        expected[file] = {"expectation": "ok", "d_model": D_MODEL, "cavs": cavs} | more

    torch.save({"cavs": cavs, "labels": LABELS}, root / "notebook_f32.pt")
    ok("notebook_f32.pt", table(cavs))
    torch.save({"cavs": exact, "labels": LABELS}, root / "notebook_f64.pt")
    ok("notebook_f64.pt", table(exact), note="float64 in the file")
    # A slice of a larger tensor, transposed: storage offset and strides both matter.
    view = torch.zeros(D_MODEL, len(LABELS) + 3)
    view[:, 2:-1] = cavs.T
    torch.save({"labels": LABELS, "cavs": view[:, 2:-1].T}, root / "notebook_view.pt")
    ok("notebook_view.pt", table(cavs), note="a strided view with a storage offset, keys in the other order")
    torch.save({"cavs": cavs, "labels": LABELS}, root / "legacy.pt", _use_new_zipfile_serialization=False)
    expected["legacy.pt"] = {"expectation": "refused", "why": "not a zip: torch.save's format from before 1.6"}
    torch.save({"cavs": cavs, "labels": LABELS[:3]}, root / "label_count.pt")
    expected["label_count.pt"] = {"expectation": "refused", "why": "4 vectors, 3 labels"}
    save_file({"cavs": cavs}, root / "cavs.safetensors", metadata={"labels": json.dumps(LABELS, ensure_ascii=False)})
    ok("cavs.safetensors", table(cavs))
    write_json(root / "cavs.json", table(cavs))
    ok("cavs.json", table(cavs))
    ok("control_vector.gguf", control_vector(root / "control_vector.gguf"), model_hint="llama", layer_count=3,
       note="direction.N is added to the output of layer N: blocks.N.hook_resid_post")
    write_json(root / "expected.json", expected)
    print(f"cavs: {len(expected)} files", flush=True)


def control_vector(path):
    """A llama.cpp control vector, as repeng exports it: one direction per layer, not of unit norm."""
    directions = {layer: 1.5 * row for layer, row in zip((1, 2, 4), unit_rows(2, 3))}
    writer = gguf.GGUFWriter(path, "controlvector")
    writer.add_string("controlvector.model_hint", "llama")
    writer.add_uint32("controlvector.layer_count", len(directions))
    for layer, direction in directions.items():
        writer.add_tensor(f"direction.{layer}", direction.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return [
        {"tensor": f"direction.{layer}", "layer": layer, "hook": f"blocks.{layer}.hook_resid_post", "cav": direction.tolist()}
        for layer, direction in directions.items()
    ]
