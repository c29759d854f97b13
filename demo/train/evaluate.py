"""Writes tables and the plot of ../README.md, and samples again at the listed strengths if asked.

    python evaluate.py              # tables and plot from ../evaluation.json
    python evaluate.py --confirm    # before that, samples again at the listed strengths, with another seed
"""

import argparse
import json

import matplotlib
import torch

matplotlib.use("svg")
import matplotlib.pyplot as plt

import model as lm
import sae as sae_module
import tokenizer as tok
from labels import DEMO, record
from steering import Bench, add_vector, clamp, no_edit, perplexity_ratio, share, worst_share

START, END = "<!-- measured: start -->", "<!-- measured: end -->"


def labels():
    return [json.loads(line) for line in (DEMO / "labels.jsonl").read_text().splitlines()]


def confirm(evaluation, seed, n_prompts):
    """Other samples at each listed strength; adds "confirmed" entries."""
    model, tokenizer, encoder = lm.load(), tok.load(lm.FOLDER), sae_module.load()
    stored = torch.load(DEMO / "cavs.pt")
    bench = Bench(model, tokenizer)
    jobs = [("features", line["label"], clamp(encoder, line["index"], line["strength"]), line["strength"]) for line in labels() if line["passed"]]
    for name in evaluation["cavs"]:
        row = stored["labels"].index(name)
        strength = evaluation["cavs"][name]["useful_strength"]
        jobs.append(("cavs", name, add_vector(stored["cavs"][row], strength), strength))
    results = bench.run([no_edit(stored["cavs"].shape[1])] + [edit for _, _, edit, _ in jobs], seed, n_prompts)
    baseline = results[0]
    for (kind, name, _, strength), result in zip(jobs, results[1:]):
        evaluation[kind][name]["confirmed"] = {
            "seed": seed, "strength": strength, "share": round(worst_share(result, name), 4), "baseline_share": round(share(baseline, name), 4),
            "ppl_ratio": round(perplexity_ratio(result, baseline), 4),
        }


def percent(value):
    return f"{100 * value:.0f} %"


def sweep_table(title, entries, baseline):
    """Rows: names. Columns: strengths as multiples; each cell share / perplexity ratio (strength)."""
    lines = [f"| {title} | unsteered | share of outputs on topic / perplexity ratio at strength |", "|---|---|---|"]
    for name, entry in entries.items():
        cells = " · ".join(f"**{p['strength']:g}**: {percent(p['share'])} / {p['ppl_ratio']:.2f}" for p in entry["points"])
        lines.append(f"| {name} | {percent(baseline[name])} | {cells} |")
    return lines


def label_table(rows):
    lines = ["| label | feature | strength | on topic | unsteered | perplexity ratio | tries | passed |", "|---|---|---|---|---|---|---|---|"]
    for line in rows:
        e = line["evidence"]
        lines.append(f"| {line['label']} | {line['index']} | {line['strength']:g} | {percent(e['share'])} "
                     f"| {percent(e['baseline_share'])} | {e['ppl_ratio']:.2f} | {e['tries']} | {'yes' if line['passed'] else 'no'} |")
    return lines


def confirmed_table(evaluation):
    """What confirm() measured; nothing if it has not been run."""
    found = [(kind, name, entry["confirmed"]) for kind in ("features", "cavs") for name, entry in evaluation[kind].items() if "confirmed" in entry]
    if not found:
        return []
    lines = ["", "### Again, with another seed", "", "| | strength | on topic | unsteered | perplexity ratio |", "|---|---|---|---|---|"]
    for kind, name, c in found:
        title = name if kind == "features" else f"cav {name}"
        lines.append(f"| {title} | {c['strength']:g} | {percent(c['share'])} | {percent(c['baseline_share'])} | {c['ppl_ratio']:.2f} |")
    return lines


def sample_lines(evaluation, rows):
    lines = ["| | what the model said first |", "|---|---|"] + [f"| unsteered | {text} |" for text in evaluation["baseline"]["samples"][:3]]
    for line in [line for line in rows if line["passed"]][:8]:
        lines.append(f"| {line['label']} = {line['strength']:g} | {evaluation['features'][line['label']]['samples'][0]} |")
    for name, entry in list(evaluation["cavs"].items())[:4]:
        lines.append(f"| cav {name}, {entry['useful_strength']:g} | {entry['samples'][0]} |")
    return lines


def plot(evaluation):
    """Left: share on topic. Right: perplexity ratio. One thin line per label or CAV, their median in bold."""
    figure, axes = plt.subplots(2, 2, figsize=(9, 6), sharex="row")
    for row, (kind, unit) in enumerate([("features", "clamp value"), ("cavs", "strength")]):
        for column, key in enumerate(["share", "ppl_ratio"]):
            axis = axes[row][column]
            entries = list(evaluation[kind].values())
            for entry in entries:
                axis.plot([p["strength"] for p in entry["points"]], [p[key] for p in entry["points"]], lw=0.7, alpha=0.5)
            count = min(len(entry["points"]) for entry in entries)
            middle = lambda k, i: sorted(entry["points"][i][k] for entry in entries)[len(entries) // 2]
            axis.plot([middle("strength", i) for i in range(count)], [middle(key, i) for i in range(count)], "k", lw=2)
            axis.set_xscale("log")
            axis.set_xlabel(unit)
            axis.set_title(f"{kind}: {'share on topic' if key == 'share' else 'perplexity ratio'}", fontsize=9)
            if key == "ppl_ratio":
                axis.set_yscale("log")
                axis.axhline(2, color="red", lw=0.7, ls=":")
            else:
                axis.axhline(0.6, color="red", lw=0.7, ls=":")
                axis.axhline(1 / 20, color="grey", lw=0.7, ls=":")
    figure.tight_layout()
    plt.rcParams["svg.hashsalt"] = "steer"
    figure.savefig(DEMO / "dose_response.svg", metadata={"Date": None})


def write_readme(evaluation):
    rows = labels()
    training = json.loads((DEMO / "train" / "training.json").read_text())
    sae = json.loads((DEMO / "train" / "sae.json").read_text())
    parts = ["### Numbers", "", "Model: " + ", ".join(f"{k} {v}" for k, v in training.items()) + ".", "",
             "SAE: " + ", ".join(f"{k} {v}" for k, v in sae.items()) + ".", "",
             "Unsteered perplexity of its own texts: " + ", ".join(f"{v} {k} generation prompt" for k, v in evaluation["baseline"]["perplexity"].items()) + ".", "",
             "### Labels, at the listed strength", ""] + label_table(rows) + confirmed_table(evaluation)
    parts += ["", "### Dose-response: features", ""] + sweep_table("label", evaluation["features"], evaluation["baseline"]["share"])
    parts += ["", "### Dose-response: CAVs", ""] + sweep_table("CAV", evaluation["cavs"], evaluation["baseline"]["share"])
    parts += ["", "### Samples", "", "The first held-out prompt's answer, not picked.", ""] + sample_lines(evaluation, rows)
    path = DEMO / "README.md"
    text = path.read_text()
    before, after = text.split(START)[0], text.split(END)[1]
    path.write_text(before + START + "\n" + "\n".join(parts) + "\n" + END + after)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--confirm", action="store_true")
    parser.add_argument("--seed", type=int, default=777_000)
    parser.add_argument("--prompts", type=int, default=64)
    options = parser.parse_args()
    evaluation = json.loads((DEMO / "evaluation.json").read_text())
    if options.confirm:
        confirm(evaluation, options.seed, options.prompts)
        record(**evaluation)
    plot(evaluation)
    write_readme(evaluation)


if __name__ == "__main__":
    main()
