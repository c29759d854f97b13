"""Small files that must be refused cleanly: nothing executed, no large allocation, no crash.

`expected.json` maps each file to what it poses as and why it must be refused.
"""

import io
import json
import pickle
import shutil
import struct
import zipfile

import numpy as np
import torch
from safetensors.torch import save

from common import write_json
from sae_formats import draw, npz_arrays

CANARY = "steer_golden_canary"


def npy(header, data=b""):
    """An .npy file with the given header text, whether or not it is true."""
    raw = header.encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(raw)) + raw + data


def npz(members, compression=zipfile.ZIP_STORED):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression, compresslevel=9) as archive:
        for name, data in members.items():
            archive.writestr(zipfile.ZipInfo(f"{name}.npy", (2020, 1, 1, 0, 0, 0)), data, compression)
    return buffer.getvalue()


def array_bytes(array):
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def npz_files():
    arrays = npz_arrays(draw(50))
    good = {name: array_bytes(array) for name, array in arrays.items()}
    whole = npz(good)
    huge = "{'descr': '<f4', 'fortran_order': False, 'shape': (%s), }"
    yield "truncated.npz", "sae", whole[: len(whole) // 2], "cut in half: no central directory"
    yield "huge_shape.npz", "sae", npz(good | {"W_enc": npy(huge % "2305843009213693952, 4", b"\0" * 64)}), "a shape whose size overflows"
    yield "large_shape.npz", "sae", npz(good | {"W_dec": npy(huge % "4000000000, 20", b"\0" * 64)}), "declares 320 GB, holds 64 bytes"
    yield "negative_shape.npz", "sae", npz(good | {"b_enc": npy(huge % "-1,", b"\0" * 4)}), "a negative dimension"
    yield "bomb.npz", "sae", bomb(good), "80 KB that inflate to 80 MB, declared as 40 float32"
    yield "object_array.npz", "sae", npz(good | {"b_dec": object_array()}), "an array of Python objects is a pickle"
    yield "bad_header.npz", "sae", npz(good | {"b_dec": npy("{'descr': __import__('os'), ", b"")}), "the header is not a literal"
    yield "missing_w_dec.npz", "sae", npz({k: v for k, v in good.items() if k != "W_dec"}), "W_dec is missing"
    mismatched = good | {"b_enc": array_bytes(arrays["b_enc"][:-1])}
    yield "shape_mismatch.npz", "sae", npz(mismatched), "b_enc is one short of W_enc"
    for name, index, value in (("W_dec", (3, 4), np.nan), ("W_enc", (3, 4), np.inf), ("threshold", 7, np.nan)):
        broken = arrays[name].copy()
        broken[index] = value
        kind = "nan" if np.isnan(value) else "inf"
        yield f"{kind}_{name.lower()}.npz", "sae", npz(good | {name: array_bytes(broken)}), f"{kind} in {name}"


def bomb(good):
    """The header tells the truth about 40 numbers; 80 MB of zeros follow."""
    header = "{'descr': '<f4', 'fortran_order': False, 'shape': (40,), }"
    stored = npz({"b_enc": npy(header, b"\0" * (80 << 20))} | {k: v for k, v in good.items() if k != "b_enc"}, zipfile.ZIP_DEFLATED)
    assert len(stored) < 100 << 10, len(stored)
    return stored


def object_array():
    buffer = io.BytesIO()
    np.save(buffer, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    return buffer.getvalue()


def torch_zip(pickled, storages=()):
    """A torch.save archive around any pickle."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        members = {"data.pkl": pickled, "byteorder": b"little", "version": b"3\n"} | dict(storages)
        for name, data in members.items():
            archive.writestr(zipfile.ZipInfo(f"archive/{name}", (2020, 1, 1, 0, 0, 0)), data)
    return buffer.getvalue()


def tensor_pickle(size, shape):
    """{"cavs": a float32 tensor over storage "0", "labels": ["a"]}, with sizes of one's choosing."""
    number = lambda n: b"\x8a" + bytes([9]) + n.to_bytes(9, "little", signed=True)
    text = lambda s: b"X" + struct.pack("<I", len(s)) + s.encode()
    storage = b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text("0") + text("cpu") + number(size) + b"tQ"
    dims = b"(" + b"".join(number(n) for n in shape) + b"t"
    strides = b"(" + number(shape[1]) + number(1) + b"t"
    tensor = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + number(0) + dims + strides + b"\x89ccollections\nOrderedDict\n)RtR"
    return b"\x80\x02}(" + text("cavs") + tensor + text("labels") + b"](" + text("a") + b"eu."


def pickle_files():
    system = b"\x80\x02cposix\nsystem\n(X" + struct.pack("<I", len(f"touch {CANARY}")) + f"touch {CANARY}".encode() + b"tR."
    yield "os_system.pt", "cavs", torch_zip(system), f"a pickle that calls os.system; if {CANARY} appears in the working folder, it ran"
    evaluate = b"\x80\x04\x95\x00\x00\x00\x00\x00\x00\x00\x00\x8c\x08builtins\x8c\x04eval\x93\x8c\x031+1\x85R."
    yield "builtins_eval.pt", "cavs", torch_zip(evaluate), "builtins.eval by STACK_GLOBAL"
    yield "stack_underflow.pt", "cavs", torch_zip(b"\x80\x02RRR."), "the pickle pops what it never pushed"
    yield "deep_nesting.pt", "cavs", torch_zip(b"\x80\x02" + b"]" * 40_000 + b"a" * 39_999 + b"."), "40,000 nested lists"
    yield "no_stop.pt", "cavs", torch_zip(b"\x80\x02}"), "no STOP opcode"
    yield "long_string.pt", "cavs", torch_zip(b"\x80\x04\x8d" + struct.pack("<Q", 1 << 60) + b"abc."), "a string of 2^60 bytes"
    yield "storage_too_short.pt", "cavs", torch_zip(tensor_pickle(24, (1, 24)), {"data/0": b"\0" * 8}), "24 floats declared, 8 bytes stored"
    yield "huge_tensor.pt", "cavs", torch_zip(tensor_pickle(1 << 60, (1 << 30, 1 << 30)), {"data/0": b"\0" * 96}), "2^60 floats declared"
    yield "missing_storage.pt", "cavs", torch_zip(tensor_pickle(24, (1, 24))), "the storage is not in the archive"
    nan = torch.full((1, 24), 0.2)
    nan[0, 5] = float("nan")
    yield "nan_cav.pt", "cavs", saved({"cavs": nan, "labels": ["a"]}), "nan in a vector"
    yield "labels_not_strings.pt", "cavs", saved({"cavs": torch.ones(2, 24), "labels": [1, 2]}), "labels are numbers"
    yield "not_a_dict.pt", "cavs", saved([torch.ones(2, 24)]), "a list where a dict is expected"
    good = saved({"cavs": torch.ones(2, 24), "labels": ["a", "b"]})
    yield "truncated.pt", "cavs", good[: len(good) // 2], "cut in half"


def saved(value):
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def safetensors_files():
    good = save({"cavs": torch.ones(2, 24)}, metadata={"labels": '["a", "b"]'})
    header = lambda entry: json.dumps(entry).encode()
    framed = lambda h, data=b"": struct.pack("<Q", len(h)) + h + data
    entry = lambda shape, offsets: {"cavs": {"dtype": "F32", "shape": shape, "data_offsets": offsets}}
    yield "huge_header.safetensors", "cavs", struct.pack("<Q", 1 << 62) + b"{}", "a header of 2^62 bytes"
    yield "large_header.safetensors", "cavs", struct.pack("<Q", 90_000_000) + b'{"a":', "a header of 90 MB that is not there"
    yield "truncated.safetensors", "cavs", good[:-10], "the last 10 bytes are missing"
    yield "offsets_past_end.safetensors", "cavs", framed(header(entry([2, 24], [0, 1 << 50])), b"\0" * 192), "data ends beyond the file"
    yield "shape_overflow.safetensors", "cavs", framed(header(entry([1 << 40, 1 << 40], [0, 192])), b"\0" * 192), "a shape whose size overflows"
    yield "no_labels.safetensors", "cavs", save({"cavs": torch.ones(2, 24)}), "no labels in the metadata"


def gguf_files():
    text = lambda s: struct.pack("<Q", len(s)) + s.encode()
    head = lambda tensors, entries: b"GGUF" + struct.pack("<IQQ", 3, tensors, entries)
    architecture = text("general.architecture") + struct.pack("<I", 8) + text("controlvector")
    tensor = lambda dims, kind=0, offset=0: text("direction.1") + struct.pack("<I", len(dims)) + struct.pack(f"<{len(dims)}Q", *dims) + struct.pack("<IQ", kind, offset)
    yield "truncated.gguf", "cavs", head(1, 2) + architecture[:20], "cut inside the metadata"
    yield "tensor_count.gguf", "cavs", head(1 << 60, 1) + architecture, "2^60 tensors"
    yield "metadata_count.gguf", "cavs", head(0, 1 << 60) + architecture, "2^60 metadata entries"
    yield "string_length.gguf", "cavs", head(0, 1) + struct.pack("<Q", 1 << 60) + b"abc", "a key of 2^60 bytes"
    array = text("a") + struct.pack("<IIQ", 9, 4, 1 << 60)
    yield "array_length.gguf", "cavs", head(0, 1) + array, "an array of 2^60 numbers"
    nested = text("a") + struct.pack("<I", 9) + struct.pack("<IQ", 9, 1) * 10_000
    yield "nested_arrays.gguf", "cavs", head(0, 1) + nested, "arrays nested 10,000 deep"
    yield "tensor_size.gguf", "cavs", head(1, 1) + architecture + tensor([1 << 40, 1 << 40]) + b"\0" * 128, "a shape whose size overflows"
    yield "tensor_offset.gguf", "cavs", head(1, 1) + architecture + tensor([24], offset=1 << 50) + b"\0" * 128, "data beyond the file"
    yield "dimension_count.gguf", "cavs", head(1, 1) + architecture + text("direction.1") + struct.pack("<I", 1 << 31) + b"\0" * 64, "2^31 dimensions"
    yield "wrong_magic.gguf", "cavs", b"GGML" + b"\0" * 64, "another format"


def label_files():
    yield "labels_index_negative.json", "labels", b'{"a": -1}', "a negative index"
    yield "labels_index_out_of_range.json", "labels", b'{"a": 99999999}', "an index beyond the SAE"
    yield "labels_index_fraction.json", "labels", b'{"a": 1.5}', "not a whole number"
    yield "labels_nested.json", "labels", b"[" * 20_000, "20,000 nested lists"
    yield "labels_empty_name.json", "labels", b'{"": 3}', "an empty label"


def build(root):
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir(parents=True)
    expected = {}
    for source in (npz_files, pickle_files, safetensors_files, gguf_files, label_files):
        for name, kind, data, why in source():
            (root / name).write_bytes(data)
            expected[name] = {"kind": kind, "expectation": "refused", "why": why}
    write_json(root / "expected.json", expected)
    print(f"hostile: {len(expected)} files", flush=True)
