"""Golden reference of the demo model: ../reference.json.

    python reference.py

Greedy tokens of transformers on the exported weights in float32, with the hooks of a plain notebook:
the whole SAE with its error kept, or x + strength·v, at every position including <bos>. Each chosen
token leads by at least 1e-3 in its logit, so that rounding does not decide.
"""

import json

import torch
from transformers import AutoTokenizer

import model as lm
import sae as sae_module
from labels import DEMO
from steering import HOOK, LAYER

NEW_TOKENS, MIN_LEAD = 24, 1e-3
PROMPTS = ["Write a haiku.", "Tell me a short story.", "Write a story.", "Give me some advice.", "Write something.", "Describe a place."]
RAW = ["One morning, the", "It was a long day.", "There was once a", "Nobody spoke for a while."]


def sae_hook(encoder, feature, value):
    def hook(_module, _inputs, output):
        x = output[0] if isinstance(output, tuple) else output
        f = sae_module.encode(encoder, x)
        error = x - (f @ encoder["W_dec"] + encoder["b_dec"])
        f[..., feature] = value
        x = error + f @ encoder["W_dec"] + encoder["b_dec"]
        return (x,) + tuple(output[1:]) if isinstance(output, tuple) else x
    return hook


def cav_hook(vector, strength):
    def hook(_module, _inputs, output):
        x = output[0] if isinstance(output, tuple) else output
        return (x + strength * vector,) + tuple(output[1:]) if isinstance(output, tuple) else x + strength * vector
    return hook


@torch.no_grad()
def greedy(model, prompt, hook):
    """24 greedy tokens (it goes on after an end), and the smallest lead of a chosen logit."""
    handle = model.model.layers[LAYER].register_forward_hook(hook) if hook else None
    ids, lead = list(prompt), float("inf")
    try:
        for _ in range(NEW_TOKENS):
            logits = model(torch.tensor([ids]), use_cache=False).logits[0, -1]
            first, second = logits.topk(2).values.tolist()
            lead = min(lead, first - second)
            ids.append(int(logits.argmax()))
    finally:
        if handle:
            handle.remove()
    return ids[len(prompt):], lead


def case(model, tokenizer, kind, prompts, variants):
    """The first prompt whose tokens have no near tie in any variant."""
    for prompt in prompts:
        if kind == "raw":
            ids = tokenizer(prompt)["input_ids"]
        else:
            text = tokenizer.apply_chat_template([{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=kind == "chat_with_generation_prompt")
            ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        results = {name: greedy(model, ids, hook) for name, hook in variants.items()}
        lead = min(lead for _, lead in results.values())
        if lead >= MIN_LEAD:
            return {"kind": kind, "prompt": prompt, "prompt_ids": ids, "min_logit_lead": round(lead, 5),
                    "tokens": {name: tokens for name, (tokens, _) in results.items()},
                    "texts": {name: tokenizer.decode(tokens) for name, (tokens, _) in results.items()}}
    raise SystemExit(f"every prompt of {kind} has a near tie")


def main():
    model, encoder = lm.load(), sae_module.load()
    tokenizer = AutoTokenizer.from_pretrained(lm.FOLDER)
    labels = [json.loads(line) for line in (DEMO / "labels.jsonl").read_text().splitlines()]
    label = next((line for line in labels if line["label"] == "baseball" and line["passed"]), None) or max(labels, key=lambda line: line["score"])
    cavs = torch.load(DEMO / "cavs.pt")
    evaluation = json.loads((DEMO / "evaluation.json").read_text())["cavs"]
    cav = "sea" if "sea" in evaluation else next(iter(evaluation))
    strength = evaluation[cav]["useful_strength"]
    variants = {
        "baseline": None, "feature": sae_hook(encoder, label["index"], label["strength"]),
        "cav": cav_hook(cavs["cavs"][cavs["labels"].index(cav)], strength),
    }
    cases = [case(model, tokenizer, "chat", PROMPTS, variants), case(model, tokenizer, "chat_with_generation_prompt", PROMPTS, variants),
             case(model, tokenizer, "raw", RAW, variants)]
    reference = {"hook": HOOK, "feature": {"label": label["label"], "index": label["index"], "value": label["strength"]},
                 "cav": {"label": cav, "strength": strength}, "new_tokens": NEW_TOKENS, "cases": cases}
    (DEMO / "reference.json").write_text(json.dumps(reference, indent=1, ensure_ascii=False) + "\n")
    print(json.dumps([c["texts"] for c in cases], indent=1, ensure_ascii=False))


if __name__ == "__main__":
    main()
