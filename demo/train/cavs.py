"""Concept activation vectors: one per topic, as the workshop notebook trains them.

    python cavs.py
    python cavs.py --resume    # after an interrupted run

LinearSVC without intercept, one topic against the rest, on the mean over a text's tokens (BOS left
out) of blocks.3.hook_resid_post. Rows have unit length. Writes ../cavs.pt and adds each CAV's
dose-response to ../evaluation.json, at strengths that are multiples of the activations' mean norm.
"""

import argparse
import json

import torch
from sklearn.svm import LinearSVC

import corpus
import model as lm
import sae as sae_module
import tokenizer as tok
from labels import DEMO, choose, record, round_strength, sweep
from steering import Bench, add_vector, first_words, no_edit

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


def held_out_accuracy(cavs, model, tokenizer):
    """How often the sign of each CAV's projection tells its topic from the rest, on texts it was not fitted on."""
    x, topics, _ = pooled(model, tokenizer, "cavs-held-out", 1000)
    right = lambda vector, name: (x @ vector > 0) == torch.tensor([topic == name for topic in topics])
    return {name: right(vector, name).float().mean().item() for vector, name in zip(cavs, corpus.TOPICS)}


def measured():
    """The CAVs whose dose-response ../evaluation.json already has, and the mean norm their strengths come from."""
    evaluation = json.loads((DEMO / "evaluation.json").read_text())
    return evaluation["cavs"], evaluation["mean_norm"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--resume", action="store_true", help="keep ../cavs.pt and measure only what ../evaluation.json lacks")
    parser.add_argument("--prompts", type=int, default=64)
    options = parser.parse_args()
    model, tokenizer = lm.load(), tok.load(lm.FOLDER)
    if options.resume:
        cavs, (swept, norm) = torch.load(DEMO / "cavs.pt")["cavs"], measured()
    else:
        x, topics, norm = pooled(model, tokenizer, "cavs", 3000)
        cavs, swept, norm = fit(x, topics), {}, round(norm, 3)
        torch.save({"cavs": cavs, "labels": list(corpus.TOPICS)}, DEMO / "cavs.pt")
    accuracy = held_out_accuracy(cavs, model, tokenizer)
    bench = Bench(model, tokenizer)
    baseline = bench.run([no_edit(cavs.shape[1])], seed=21, n_prompts=options.prompts)[0]
    strengths = [round_strength(m * norm) for m in MULTIPLES]
    for number, name in enumerate(corpus.TOPICS):  # its own seed each: a resumed run measures what an unbroken one does
        if name in swept:
            continue
        edits = [add_vector(cavs[number], s) for s in strengths]
        points, results = sweep(bench, edits, strengths, name, baseline, seed=2000 + number, n_prompts=options.prompts)
        best = points.index(choose(points))
        swept[name] = {
            "held_out_accuracy": round(accuracy[name], 4), "points": points, "useful_strength": strengths[best],
            "samples": [first_words(t) for t in results[best]["without"]["texts"][:4]],
        }
        print(name, round(accuracy[name], 3), [(p["strength"], p["share"], p["ppl_ratio"]) for p in points], flush=True)
        record(mean_norm=norm, cavs=swept)


if __name__ == "__main__":
    main()
