"""Greedy continuations by llama.cpp, to compare a worker with on a real GGUF file.

    pip install llama-cpp-python numpy
    python llama_cpp_greedy.py OUT.json NAME=MODEL.gguf [NAME=MODEL.gguf ...] [--new 32] [--threads 2]

For every model and prompt: the prompt's token ids (special tokens as the file asks, so Gemma gets
its BOS), the greedy token ids, and at each step the two best tokens with their logit gap, so that a
difference can be told from a near tie.
"""

import argparse
import ctypes
import json

import llama_cpp as llama
import numpy as np

PROMPTS = [
    "I would like to tell you about",
    "The capital of France is",
    "Once upon a time",
    "def fibonacci(n):",
    "The theory of relativity",
    "My favourite recipe",
]

SILENT = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)(lambda *_: None)


def load(path):
    parameters = llama.llama_model_default_params()
    parameters.n_gpu_layers = 0
    return llama.llama_model_load_from_file(path.encode(), parameters)


def tokenize(vocab, text):
    raw, buffer = text.encode(), (llama.llama_token * 4096)()
    return list(buffer[: llama.llama_tokenize(vocab, raw, len(raw), buffer, 4096, True, True)])


def detokenize(vocab, ids):
    buffer, tokens = ctypes.create_string_buffer(65536), (llama.llama_token * len(ids))(*ids)
    n = llama.llama_detokenize(vocab, tokens, len(ids), buffer, len(buffer), False, False)
    return buffer.raw[:n].decode("utf-8", "replace")


def feed(context, ids, start):
    batch = llama.llama_batch_init(len(ids), 0, 1)
    for i, token in enumerate(ids):
        batch.token[i], batch.pos[i], batch.n_seq_id[i] = token, start + i, 1
        batch.seq_id[i][0], batch.logits[i] = 0, int(i == len(ids) - 1)
    batch.n_tokens = len(ids)
    assert llama.llama_decode(context, batch) == 0
    llama.llama_batch_free(batch)


def greedy(model, prompt, n_new, threads):
    vocab = llama.llama_model_get_vocab(model)
    n_vocab = llama.llama_vocab_n_tokens(vocab)
    parameters = llama.llama_context_default_params()
    parameters.n_ctx = 512
    parameters.n_threads = parameters.n_threads_batch = threads
    context = llama.llama_init_from_model(model, parameters)
    ids, tokens, steps = tokenize(vocab, prompt), [], []
    feed(context, ids, 0)
    for step in range(n_new):
        logits = np.ctypeslib.as_array(llama.llama_get_logits_ith(context, -1), shape=(n_vocab,))
        first, second = (int(i) for i in np.argsort(-logits, kind="stable")[:2])
        steps.append({"top2": [first, second], "gap": round(float(logits[first] - logits[second]), 5)})
        tokens.append(first)
        if llama.llama_vocab_is_eog(vocab, first):
            break
        feed(context, [first], len(ids) + step)
    llama.llama_free(context)
    return {"prompt": prompt, "prompt_token_ids": ids, "token_ids": tokens, "text": detokenize(vocab, tokens), "steps": steps}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out")
    parser.add_argument("models", nargs="+", metavar="NAME=PATH")
    parser.add_argument("--new", type=int, default=32)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    llama.llama_log_set(SILENT, ctypes.c_void_p(0))
    llama.llama_backend_init()
    result = {}
    for entry in arguments.models:
        name, path = entry.split("=", 1)
        model = load(path)
        result[name] = [greedy(model, prompt, arguments.new, arguments.threads) for prompt in PROMPTS]
        llama.llama_model_free(model)
    with open(arguments.out, "w") as file:
        json.dump({"llama_cpp_python": llama.__version__, "models": result}, file, ensure_ascii=False, indent=1)


if __name__ == "__main__":
    main()
