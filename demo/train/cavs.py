"""Concept activation vectors: one per topic, as the workshop notebook trains them.

    python cavs.py

LinearSVC without intercept, one topic against the rest, on the mean over a text's tokens (BOS left
out) of blocks.3.hook_resid_post. Rows have unit length. Writes ../cavs.pt and adds each CAV's
dose-response to ../evaluation.json, at strengths that are multiples of the activations' mean norm.
"""

import torch
from sklearn.svm import LinearSVC

import corpus
import model as lm
import sae as sae_module
import tokenizer as tok
from labels import DEMO, choose, record, round_strength, sweep
from steering import Bench, add_vector, first_words, no_edit, perplexity_ratio

MULTIPLES = [0.1, 0.25, 0.4, 0.5, 0.6, 0.8, 1.5]
C = 1e-6  # strong regularisation: a wide margin, and a direction that steers; C = 1 separates better and steers worse


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
        svc = LinearSVC(fit_intercept=False, C=C, class_weight="balanced", random_state=0, max_iter=5000)
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
    baseline = bench.run([no_edit(cavs.shape[1])], seed=21)[0]
    swept = {}
    for number, name in enumerate(corpus.TOPICS):
        is_topic = torch.tensor([topic == name for topic in fresh_topics])
        accuracy = ((fresh @ cavs[number] > 0) == is_topic).float().mean().item()
        strengths = [round_strength(m * norm) for m in MULTIPLES]
        points, results = sweep(bench, [add_vector(cavs[number], s) for s in strengths], strengths, name, baseline, seed=2000 + number)
        best = points.index(choose(points))
        swept[name] = {
            "held_out_accuracy": round(accuracy, 4), "points": points, "useful_strength": strengths[best],
            "samples": [first_words(t) for t in results[best]["without"]["texts"][:4]],
        }
        print(name, round(accuracy, 3), [(p["strength"], p["share"], p["ppl_ratio"]) for p in points], flush=True)
        record(mean_norm=round(norm, 3), cavs=swept)


if __name__ == "__main__":
    main()
