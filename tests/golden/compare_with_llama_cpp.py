#!/usr/bin/env python3
"""Greedy continuations through the running services against llama.cpp on the same file.

    steer-worker --model FILE.gguf &
    python compare_with_llama_cpp.py llama_greedy.json MODEL_KEY [--steer path/to/steer]

Prints, per prompt, how many tokens agree, and where they part: llama.cpp's two
best tokens there, the gap between their logits, and our token. llama.cpp rounds
activations to 8 bits in every product and we do not, so near ties may fall
either way. Exits 1 if a prompt parts before 24 tokens at a gap above --tie.
"""
import argparse, json, subprocess, sys

ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
ap.add_argument("greedy", help="output of llama_cpp_greedy.py")
ap.add_argument("model", help="key in its `models`")
ap.add_argument("--steer", default="steer")
ap.add_argument("--tie", type=float, default=0.3, help="logit gap that counts as a near tie")
args = ap.parse_args()

failed = False
for case in json.load(open(args.greedy))["models"][args.model]:
    expected = case["token_ids"]
    command = [args.steer, "generate", case["prompt"], "--raw", "--greedy", "--json", "--max-new-tokens", str(len(expected))]
    answer = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert answer["prompt_token_ids"] == case["prompt_token_ids"], (case["prompt"], answer["prompt_token_ids"])
    ours = answer["variants"][0]["token_ids"]
    same = next((i for i, (a, b) in enumerate(zip(ours, expected)) if a != b), len(expected))
    line = f"{case['prompt']!r}: {same} of {len(expected)} tokens agree"
    if same < len(expected):
        step = case["steps"][same]
        line += f"; then llama.cpp's best two are {step['top2']}, {step['gap']:.3f} apart; ours is {ours[same]}"
        failed |= same < 24 and not (step["gap"] <= args.tie and ours[same] == step["top2"][1])
    print(line)
sys.exit(failed)
