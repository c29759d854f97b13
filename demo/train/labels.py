"""Labels, honestly: what fires on held-out text proposes, a causal gate disposes.

    python labels.py

1. Candidates: for each topic the features whose firing on held-out assistant text is on that topic.
2. A quick screen of the candidates with few prompts finds the feature that turns the topic best.
3. A sweep clamps that feature at several multiples of its own 99th percentile on 64 held-out neutral
   prompts, half of them with the generation prompt, and chooses a strength.
4. The gate: new samples at that strength, 64 prompts with and 64 without the generation prompt. The
   label passes if in both an independent classifier finds >= 60 % of the outputs on topic while their
   perplexity under the unsteered model stays <= 2 x the baseline's. A label that fails gets one more
   try at the next strength of its sweep; both tries stay in its evidence.

Writes ../labels.json (passing labels only), ../labels.jsonl (all that were gated, with evidence)
and the sweep into ../evaluation.json.
"""

import argparse
import json
import math
from collections import defaultdict
from pathlib import Path

import torch

import corpus
import model as lm
import sae as sae_module
import tokenizer as tok
from steering import HOOK, Bench, clamp, first_words, mean_perplexity, no_edit, perplexity_ratio, share, worst_share

DEMO = Path(__file__).resolve().parent.parent
MULTIPLES = [0.25, 0.5, 0.75, 1.0, 1.25, 1.6, 3.0]
SCREEN_MULTIPLES = [1.5, 3.0]
MIN_SHARE, MAX_RATIO = 0.60, 2.0


def firing(model, tokenizer, encoder, n):
    """Features on held-out plain texts: f [tokens, d_sae], each token's topic index and id, and its text."""
    topics = list(corpus.TOPICS)
    lines = corpus.corpus("label-candidates", n)
    rows, ids = sae_module.activations(model, tokenizer, [line["text"] for line in lines])
    f = sae_module.encode(encoder, torch.cat(rows))
    topic = torch.cat([torch.full((len(r),), topics.index(line["topic"])) for r, line in zip(rows, lines)])
    tokens = torch.cat([torch.tensor(i[1:]) for i in ids])
    return f, topic, tokens


def feature_facts(f, topic, tokens, tokenizer, feature):
    """Numbers on one feature's firing."""
    column = f[:, feature]
    on = column > 0
    values = column[on]
    total = torch.zeros(tok.VOCAB_SIZE).index_add_(0, tokens, column)
    count = torch.bincount(tokens, minlength=tok.VOCAB_SIZE)
    best = (total / (count + 10)).topk(8).indices.tolist()  # strong wherever they occur, not just frequent
    return {
        "density": round(on.float().mean().item(), 5),
        "p99_activation": round(values.quantile(0.99).item(), 4),
        "max_activation": round(values.max().item(), 4),
        "top_tokens": " ".join(tokenizer.id_to_token(t).replace("▁", "").replace("\n", "\\n") for t in best),
    }


def candidates(f, topic, per_topic):
    """For each topic the features with the best product of precision and reach, as (feature, precision, recall)."""
    onehot = torch.nn.functional.one_hot(topic, len(corpus.TOPICS)).float()
    mass = f.T @ onehot  # [d_sae, topics], summed activation
    precision = mass / mass.sum(1, keepdim=True).clamp(min=1e-9)
    recall = ((f > 0).float().T @ onehot) / onehot.sum(0)
    precision[(f > 0).sum(0) < 30] = 0
    found = {}
    for index, name in enumerate(corpus.TOPICS):
        score = precision[:, index] ** 2 * recall[:, index]
        best = score.topk(per_topic).indices.tolist()
        found[name] = [(i, precision[i, index].item(), recall[i, index].item()) for i in best]
    return found


def screen(bench, encoder, found, p99, n_prompts):
    """For each topic the candidate with the best mean share over the screen's strengths."""
    keys = [(name, i, m) for name, options in found.items() for i, _, _ in options for m in SCREEN_MULTIPLES]
    results = bench.run([clamp(encoder, i, m * p99[i]) for _, i, m in keys], seed=11, n_prompts=n_prompts)
    total = defaultdict(float)
    for (name, i, _), result in zip(keys, results):
        total[name, i] += share(result, name) / len(SCREEN_MULTIPLES)
    return {name: sorted(((total[name, i], i) for i, _, _ in options), reverse=True) for name, options in found.items()}


def sweep(bench, edits, strengths, topic, baseline, seed, n_prompts):
    """One dose-response: a list of points, with the raw results beside it."""
    results = bench.run(edits, seed, n_prompts, split=True)
    points = [
        {"strength": strength, "share": round(share(result, topic), 4), "ppl_ratio": round(perplexity_ratio(result, baseline), 4)}
        for strength, result in zip(strengths, results)
    ]
    return points, results


def choose(points):
    """The best point of a sweep that keeps a margin to the perplexity bound (the weakest of equals)."""
    allowed = [p for p in points if p["ppl_ratio"] <= 0.9 * MAX_RATIO] or points[:1]
    return max(allowed, key=lambda p: (p["share"], -p["strength"]))


def round_strength(value):
    """Two or three significant digits, as one would type."""
    digits = 1 - math.floor(math.log10(value))
    return round(value, max(digits, 0))


def write(labels):
    passing = {line["label"]: line["index"] for line in labels if line["passed"]}
    (DEMO / "labels.json").write_text(json.dumps(passing, indent=1) + "\n")
    (DEMO / "labels.jsonl").write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in labels))


def record(**parts):
    """Replaces parts of ../evaluation.json; the file is never half written."""
    path, scratch = DEMO / "evaluation.json", DEMO / "evaluation.json.new"
    evaluation = (json.loads(path.read_text()) if path.exists() else {}) | parts
    scratch.write_text(json.dumps(evaluation, indent=1) + "\n")
    scratch.replace(path)


def describe_baseline(baseline):
    """What the unsteered model says to the same prompts."""
    topics = [topic for part in baseline.values() for topic in part["topics"]]
    return {
        "prompts": len(topics) // 2,
        "perplexity": {mode: round(mean_perplexity(baseline, mode), 3) for mode in baseline},
        "share": {name: round(topics.count(name) / len(topics), 4) for name in corpus.TOPICS},
        "samples": [first_words(text) for text in baseline["without"]["texts"][:8]],
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--screen-prompts", type=int, default=8)
    parser.add_argument("--candidates", type=int, default=4)
    options = parser.parse_args()
    model, tokenizer, encoder = lm.load(), tok.load(lm.FOLDER), sae_module.load()
    bench = Bench(model, tokenizer)
    f, topic, tokens = firing(model, tokenizer, encoder, 3000)
    found = candidates(f, topic, options.candidates)
    precision = {(name, i): (p, r) for name, rows in found.items() for i, p, r in rows}
    facts = {i: feature_facts(f, topic, tokens, tokenizer, i) for _, i in precision}
    p99 = {i: fact["p99_activation"] for i, fact in facts.items()}
    ranked = screen(bench, encoder, found, p99, options.screen_prompts)
    print({name: rows[:3] for name, rows in ranked.items()}, flush=True)
    baseline = bench.run([no_edit(encoder["W_enc"].shape[0])], seed=21, n_prompts=options.prompts)[0]
    described = describe_baseline(baseline)
    record(hook=HOOK, baseline=described)
    features = {name: rows[0][1] for name, rows in ranked.items()}
    swept = {}
    for number, (name, feature) in enumerate(features.items()):
        strengths = [round_strength(m * p99[feature]) for m in MULTIPLES]
        edits = [clamp(encoder, feature, s) for s in strengths]
        points, results = sweep(bench, edits, strengths, name, baseline, seed=1000 + number, n_prompts=options.prompts)
        best = choose(points)
        texts = results[strengths.index(best["strength"])]["without"]["texts"]
        swept[name] = {"index": feature, "p99": p99[feature], "strength": best["strength"], "points": points, "samples": [first_words(t) for t in texts[:4]]}
        print(name, feature, best, [(p["share"], p["ppl_ratio"]) for p in points], flush=True)
        record(features=swept)
    edits = [clamp(encoder, entry["index"], entry["strength"]) for entry in swept.values()]
    gated = bench.run(edits, seed=5000, n_prompts=options.prompts)
    rows = [
        gate(name, swept[name], result, baseline, facts[features[name]], precision[name, features[name]])
        for name, result in zip(swept, gated)
    ]
    write([row if row["passed"] else second_try(row, swept[row["label"]], bench, encoder, baseline, options.prompts) for row in rows])


def second_try(row, entry, bench, encoder, baseline, n_prompts):
    """One more try with new samples at the next strength of the sweep: lower if the text broke, else higher."""
    strengths = [point["strength"] for point in entry["points"]]
    step = -1 if row["evidence"]["ppl_ratio"] > MAX_RATIO else 1
    strength = strengths[min(max(strengths.index(row["strength"]) + step, 0), len(strengths) - 1)]
    result = bench.run([clamp(encoder, row["index"], strength)], seed=6000, n_prompts=n_prompts)[0]
    on_topic, ratio = round(worst_share(result, row["label"]), 4), round(perplexity_ratio(result, baseline), 4)
    return after_second_try(row, strength, on_topic, ratio, first_words(result["without"]["texts"][0]))


def after_second_try(row, strength, on_topic, ratio, sample):
    """The line after its second try; the figures of the try that did not count stay in the evidence."""
    first = row["evidence"]
    if on_topic < MIN_SHARE or ratio > MAX_RATIO:
        other = {"other_try_strength": strength, "other_try_share": on_topic, "other_try_ppl_ratio": ratio}
        return row | {"evidence": first | {"tries": 2} | other}
    other = {"other_try_strength": first["strength"], "other_try_share": first["share"], "other_try_ppl_ratio": first["ppl_ratio"]}
    measured = {"strength": strength, "share": on_topic, "ppl_ratio": ratio, "sample": sample}
    return row | {"strength": strength, "score": on_topic, "passed": True, "evidence": first | measured | {"tries": 2} | other}


def gate(name, entry, result, baseline, facts, precision):
    """A line of labels.jsonl: the chosen strength tried on all prompts in both modes, and whether it passes."""
    on_topic, ratio = worst_share(result, name), perplexity_ratio(result, baseline)
    passed = on_topic >= MIN_SHARE and ratio <= MAX_RATIO
    evidence = facts | {
        "topic_precision": round(precision[0], 4), "topic_recall": round(precision[1], 4), "strength": entry["strength"],
        "share": round(on_topic, 4), "baseline_share": round(share(baseline, name), 4), "ppl_ratio": round(ratio, 4),
        "prompts": len(result["with"]["topics"]), "sample": first_words(result["without"]["texts"][0]), "tries": 1,
    }
    print(name, "passed" if passed else "failed", round(on_topic, 3), round(ratio, 3), flush=True)
    return {"index": entry["index"], "label": name, "source": "causal-gate", "score": round(on_topic, 4), "passed": passed,
            "max_activation": facts["max_activation"], "strength": entry["strength"], "evidence": evidence}


if __name__ == "__main__":
    main()
