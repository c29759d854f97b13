#!/usr/bin/env python3
"""Our forward pass beside llama.cpp's: one file, two threads, in alternation.

    cargo build --release --workspace --example forward_speed
    pip install numpy && CMAKE_ARGS=-DGGML_NATIVE=ON pip install llama-cpp-python
    python services/worker/benches/compare.py MODEL.gguf [--rounds 5]

A round runs us and then llama.cpp, each in a process of its own. Printed are the medians
over rounds in tokens per second and the median of the rounds' ratios. llama.cpp decodes
with a control vector where we clamp an SAE feature, one for each sequence.
"""
import argparse, ctypes, json, pathlib, statistics, subprocess, sys, time

ROOT = pathlib.Path(__file__).resolve().parents[3]


def llama(path, threads):
    import llama_cpp as L
    import numpy as np

    quiet = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)(lambda *_: None)
    L.llama_log_set(quiet, ctypes.c_void_p(0))
    L.llama_backend_init()
    began = time.perf_counter()
    options = L.llama_model_default_params()
    options.n_gpu_layers = 0
    model = L.llama_model_load_from_file(path.encode(), options)
    yield "load_s", time.perf_counter() - began
    width, layers = L.llama_model_n_embd(model), L.llama_model_n_layer(model)
    greedy = L.llama_sampler_init_greedy()

    def read(context, sequences, start, tokens):
        """tokens[s] are read by sequence s from position start on."""
        count = sum(map(len, tokens))
        batch = L.llama_batch_init(count, 0, 1)
        at = 0
        for sequence, own in zip(sequences, tokens):
            for i, token in enumerate(own):
                batch.token[at], batch.pos[at], batch.n_seq_id[at] = token, start + i, 1
                batch.seq_id[at][0], batch.logits[at] = sequence, int(i == len(own) - 1)
                at += 1
        batch.n_tokens = count
        assert L.llama_decode(context, batch) == 0
        L.llama_batch_free(batch)

    def rate(prompt, sequences, steps, steered):
        options = L.llama_context_default_params()
        options.n_ctx, options.n_batch, options.n_ubatch = 1024 * max(1, sequences // 4), 1024, 512
        options.n_seq_max, options.n_threads, options.n_threads_batch = sequences, threads, threads
        context = L.llama_init_from_model(model, options)
        if steered:
            vectors = np.full((layers - 1, width), 0.01, np.float32)
            apply = getattr(L, "llama_set_adapter_cvec", None) or L.llama_apply_adapter_cvec
            pointer = vectors.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
            layer = layers // 2
            assert apply(context, pointer, vectors.size, width, layer, layer) == 0
        first = [1000 + 7 * i for i in range(prompt)]
        rates = []
        for repetition in range(4):
            L.llama_memory_clear(L.llama_get_memory(context), True)
            began = time.perf_counter()
            for sequence in range(sequences):
                read(context, [sequence], 0, [first])
            if steps == 0:
                rates.append(prompt / (time.perf_counter() - began))
                continue
            last = [1234] * sequences
            began = time.perf_counter()
            for i in range(steps):
                read(context, range(sequences), prompt + i, [[token] for token in last])
                last = [L.llama_sampler_sample(greedy, context, s) for s in range(sequences)]
            rates.append(sequences * steps / (time.perf_counter() - began))
        L.llama_free(context)
        return statistics.median(rates[1:])

    yield "prompt_128", rate(128, 1, 0, False)
    yield "prompt_512", rate(512, 1, 0, False)
    yield "decode_1", rate(32, 1, 48, False)
    yield "decode_1_clamp", rate(32, 1, 48, True)
    yield "decode_4_clamps", rate(32, 4, 48, True)
    yield "decode_16_clamps", rate(32, 16, 48, True)


def run(command):
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    return {entry["name"]: entry["median"] for entry in map(json.loads, lines)}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2, help="llama.cpp's; ours are the machine's")
    parser.add_argument("--ours", default=ROOT / "target/release/examples/forward_speed")
    parser.add_argument("--only-llama", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.only_llama:
        for name, value in llama(arguments.model, arguments.threads):
            print(json.dumps({"name": name, "median": round(value, 2)}), flush=True)
        return
    theirs = [sys.executable, __file__, arguments.model, "--only-llama", "--threads", str(arguments.threads)]
    rounds = []
    for number in range(arguments.rounds):
        rounds.append((run([arguments.ours, arguments.model, "3"]), run(theirs)))
        print(f"round {number + 1} of {arguments.rounds}", file=sys.stderr)
    print(f"{'':18}{'ours':>9}{'llama.cpp':>11}{'ratio':>8}   rounds' ratios")
    for name in rounds[0][0]:
        ours, peer = ([r[side][name] for r in rounds] for side in (0, 1))
        ratios = [a / b for a, b in zip(ours, peer)]
        spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
        medians = statistics.median(ours), statistics.median(peer), statistics.median(ratios)
        print(f"{name:18}{medians[0]:9.2f}{medians[1]:11.2f}{medians[2]:8.2f}   {spread}")


if __name__ == "__main__":
    main()
