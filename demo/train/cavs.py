"""Concept activation vectors: one per topic, as the workshop notebook trains them.

    python cavs.py

LinearSVC without intercept, one topic against the rest, on the mean over a text's tokens (BOS left
out) of blocks.3.hook_resid_post. Rows have unit length. Writes ../cavs.pt and adds each CAV's
dose-response to ../evaluation.json, at strengths that are multiples of the activations' mean norm.
"""

import json

import torch
from sklearn.svm import LinearSVC

import corpus
import model as lm
import sae as sae_module
import tokenizer as tok
from labels import DEMO, round_strength, sweep
from steering import Bench, add_vector, first_words, no_edit, perplexity_ratio

MULTIPLES = [0.1, 0.2, 0.4, 0.6, 0.8, 1.2, 2.0, 4.0]


def pooled(model, tokenizer, seed, n):
    """Mean activation of each text, [n, d_model], the topics, and the mean norm over tokens."""
    lines = corpus.corpus(seed, n)
    rows, _ = sae_module.activations(model, tokenizer, [line["text"] for line in lines])
    norm = torch.cat(rows).norm(dim=1).mean().item()
    return torch.stack([row.mean(0) for row in rows]), [line["topic"] for line in lines], norm


def fit(x, topics):
    """Unit vectors [topics, d_model]."""
    vectors = []
    for name in corpus.TOPICS:
        svc = LinearSVC(fit_intercept=False, random_state=0, max_iter=5000)
        svc.fit(x.numpy(), [topic == name for topic in topics])
        vector = torch.tensor(svc.coef_[0], dtype=torch.float32)
        vectors.append(vector / vector.norm())
    return torch.stack(vectors)


def main():
    model, tokenizer = lm.load(), tok.load(lm.FOLDER)
    x, topics, norm = pooled(model, tokenizer, "cavs", 3000)
    cavs = fit(x, topics)
    torch.save({"cavs": cavs, "labels": list(corpus.TOPICS)}, DEMO / "cavs.pt")
    fresh, fresh_topics, _ = pooled(model, tokenizer, "cavs-held-out", 1000)
    bench = Bench(model, tokenizer)
    evaluation = json.loads((DEMO / "evaluation.json").read_text())
    baseline = bench.run([no_edit(cavs.shape[1])], seed=21)[0]
    evaluation["mean_norm"] = round(norm, 3)
    for number, name in enumerate(corpus.TOPICS):
        is_topic = torch.tensor([topic == name for topic in fresh_topics])
        accuracy = ((fresh @ cavs[number] > 0) == is_topic).float().mean().item()
        strengths = [round_strength(m * norm) for m in MULTIPLES]
        points, results = sweep(bench, [add_vector(cavs[number], s) for s in strengths], strengths, name, baseline, seed=2000 + number)
        good = [i for i, p in enumerate(points) if p["ppl_ratio"] <= 2.0] or [0]
        best = max(good, key=lambda i: points[i]["share"])
        evaluation["cavs"][name] = {
            "held_out_accuracy": round(accuracy, 4), "points": points, "useful_strength": strengths[best],
            "samples": [first_words(t) for t in results[best]["without"]["texts"][:4]],
        }
        print(name, round(accuracy, 3), [(p["strength"], p["share"], p["ppl_ratio"]) for p in points], flush=True)
        (DEMO / "evaluation.json").write_text(json.dumps(evaluation, indent=1) + "\n")


if __name__ == "__main__":
    main()
