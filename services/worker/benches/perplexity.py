#!/usr/bin/env python3
"""Perplexity of a text under a GGUF file, here and in llama.cpp, on the same tokens.

    target/release/steer-worker --model MODEL.gguf &
    pip install numpy llama-cpp-python
    python services/worker/benches/perplexity.py MODEL.gguf TEXT [--tokens 20000]

The text is read in pieces of about 2,000 characters, each on its own behind "The";
`steer score --raw` gives the tokens and our ln p, llama.cpp gets the same tokens.
"""
import argparse, ctypes, json, math, pathlib, subprocess

ROOT = pathlib.Path(__file__).resolve().parents[3]


def scored(steer, piece):
    """All tokens, and ln p of those behind the prompt's."""
    command = [steer, "score", "The", piece, "--raw", "--json"]
    answer = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return answer["prompt_token_ids"], answer["token_ids"], answer["variants"][0]["logprobs"]


def llama(path):
    """A function from tokens to the ln p of all but the first."""
    import llama_cpp as L
    import numpy as np

    quiet = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)(lambda *_: None)
    L.llama_log_set(quiet, ctypes.c_void_p(0))
    model = L.Llama(path, n_ctx=2048, n_batch=2048, logits_all=True, verbose=False)

    def logprobs(tokens):
        model.reset()
        model.eval(tokens)
        logits = np.asarray(model.scores[: len(tokens) - 1], np.float64)
        top = logits.max(axis=1, keepdims=True)
        total = top[:, 0] + np.log(np.exp(logits - top).sum(axis=1))
        return logits[np.arange(len(tokens) - 1), tokens[1:]] - total

    return logprobs, quiet


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("text")
    parser.add_argument("--tokens", type=int, default=20_000)
    parser.add_argument("--steer", default=str(ROOT / "target/release/steer"))
    arguments = parser.parse_args()
    text = pathlib.Path(arguments.text).read_text()
    theirs, _keep = llama(arguments.model)
    ours_sum = theirs_sum = 0.0
    count, worst = 0, 0.0
    for at in range(0, len(text), 2000):
        piece = " " + text[at : at + 2000].strip()
        if len(piece) < 100:
            continue
        prompt, tokens, ours = scored(arguments.steer, piece)
        peer = theirs(prompt + tokens)[len(prompt) - 1 :]
        ours_sum, theirs_sum = ours_sum + sum(ours), theirs_sum + sum(peer)
        worst = max([worst, *(abs(a - b) for a, b in zip(ours, peer))])
        count += len(tokens)
        if count >= arguments.tokens:
            break
    ours, peer = (math.exp(-total / count) for total in (ours_sum, theirs_sum))
    print(f"{count} tokens: perplexity {ours:.4f} here, {peer:.4f} in llama.cpp, ratio {ours / peer:.5f}")
    print(f"largest difference of a token's ln p: {worst:.3f}")


if __name__ == "__main__":
    main()
