"""The sparse autoencoder on blocks.3.hook_resid_post, written in both layouts.

    python sae.py

Trained as BatchTopK (the k·batch largest activations of a batch survive), then stored as JumpReLU
with one threshold for all features: the mean smallest surviving activation of late training.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

import corpus
import model as lm
import tokenizer as tok
from steering import HOOK, LAYER

FOLDER = Path(__file__).resolve().parent.parent / "sae"


@torch.no_grad()
def activations(model, tokenizer, documents, skip_bos=True, tokens_at_once=4096):
    """Per document, what decoder layer LAYER returns at each token, [tokens, d_model] (BOS left out)."""
    seen = []
    handle = model.model.layers[LAYER].register_forward_hook(
        lambda _m, _i, out: seen.append(out[0] if isinstance(out, tuple) else out))
    ids = [e.ids[:512] for e in tokenizer.encode_batch(documents)]
    order, result = sorted(range(len(ids)), key=lambda i: len(ids[i])), [None] * len(ids)
    try:
        while order:
            rows = order[: max(1, tokens_at_once // len(ids[order[0]]))]
            order = order[len(rows):]
            width = max(len(ids[i]) for i in rows)
            model.model(torch.tensor([ids[i] + [tok.PAD] * (width - len(ids[i])) for i in rows]), use_cache=False)
            x = seen.pop()
            for row, i in zip(x, rows):
                result[i] = row[int(skip_bos): len(ids[i])].clone()
    finally:
        handle.remove()
    return result, ids


def train(x, d_sae, k, steps, batch, lr, seed):
    """BatchTopK on activations x [n, d]. Returns Gemma Scope's tensors, in the units of x."""
    torch.manual_seed(seed)
    n, d = x.shape
    scale = d ** 0.5 / x.norm(dim=1).mean()  # folded back below
    centre = x.mean(0)
    W_dec = torch.nn.functional.normalize(torch.randn(d_sae, d), dim=1).requires_grad_()
    W_enc = W_dec.detach().T.clone().requires_grad_()
    b_enc, b_dec = torch.zeros(d_sae, requires_grad=True), (centre * scale).clone().requires_grad_()
    optimizer = torch.optim.Adam([W_enc, W_dec, b_enc, b_dec], lr=lr, betas=(0.9, 0.99))
    idle, threshold = torch.zeros(d_sae), 0.0
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = lr * min(1.0, (step + 1) / 50, 0.02 + (steps - step) / (0.4 * steps))
        rows = x[torch.randint(n, (batch,))] * scale
        pre = torch.relu((rows - b_dec) @ W_enc + b_enc)
        cut = pre.detach().flatten().topk(k * batch).values[-1]
        f = pre * (pre > cut)
        error = rows - (f @ W_dec + b_dec)
        loss = error.square().sum(1).mean()
        idle = (idle + 1) * (f.detach() == 0).all(0)
        dead = idle > 100
        if dead.any():  # dead features learn what is left over
            weak = pre * dead
            kept = weak.topk(min(k, int(dead.sum())), dim=1)
            left = error.detach() - torch.zeros_like(weak).scatter(1, kept.indices, kept.values) @ W_dec
            loss = loss + left.square().sum(1).mean() / 16
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            W_dec /= W_dec.norm(dim=1, keepdim=True)
        if step > steps // 2:
            threshold = float(cut) if threshold == 0 else 0.99 * threshold + 0.01 * float(cut)
        if step % 100 == 0 or step == steps - 1:
            explained = 1 - error.square().sum() / (rows - rows.mean(0)).square().sum()
            print(f"step {step} loss {loss.item():.2f} explained {explained.item():.4f} dead {int(dead.sum())} cut {float(cut):.3f}", flush=True)
    with torch.no_grad():  # fold b_dec's subtraction and the scale
        return {"W_enc": W_enc.detach(), "W_dec": W_dec.detach(), "b_enc": (b_enc - b_dec @ W_enc) / scale,
                "b_dec": b_dec.detach() / scale, "threshold": torch.full((d_sae,), threshold / float(scale))}


def encode(sae, x):
    h = x @ sae["W_enc"] + sae["b_enc"]
    return torch.relu(h) * (h > sae["threshold"])


def save(sae):
    """params.npz as Gemma Scope stores it, and SAELens' folder; SAELens itself must agree."""
    sae = {name: tensor.float().contiguous() for name, tensor in sae.items()}
    (FOLDER / "gemma_scope").mkdir(parents=True, exist_ok=True)
    (FOLDER / "saelens").mkdir(parents=True, exist_ok=True)
    np.savez(FOLDER / "gemma_scope" / "params.npz", **{name: tensor.numpy() for name, tensor in sae.items()})
    save_file(sae, FOLDER / "saelens" / "sae_weights.safetensors")
    d_in, d_sae = sae["W_enc"].shape
    cfg = {
        "architecture": "jumprelu", "d_in": d_in, "d_sae": d_sae, "dtype": "float32", "device": "cpu",
        "apply_b_dec_to_input": False, "normalize_activations": "none", "reshape_activations": "none",
        "metadata": {"model_name": "steer-demo", "hook_name": HOOK, "hook_head_index": None, "prepend_bos": True,
                     "context_size": 512, "sae_lens_version": "6.54.0"},
    }
    (FOLDER / "saelens" / "cfg.json").write_text(json.dumps(cfg, indent=1) + "\n")


def load():
    with np.load(FOLDER / "gemma_scope" / "params.npz") as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays.files}


def check_with_saelens(x):
    """SAELens loads its folder and encodes and decodes x as the npz says."""
    from sae_lens import SAE

    ours, theirs = load(), SAE.load_from_disk(str(FOLDER / "saelens"), device="cpu")
    f = encode(ours, x)
    torch.testing.assert_close(theirs.encode(x), f, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(theirs.decode(f), f @ ours["W_dec"] + ours["b_dec"], rtol=1e-4, atol=1e-4)


def statistics(sae, x):
    """On held-out activations: mean number of active features, features that never fire, explained variance."""
    f = encode(sae, x)
    error = x - (f @ sae["W_dec"] + sae["b_dec"])
    return {
        "l0": round((f > 0).sum(1).float().mean().item(), 2), "dead": int((f == 0).all(0).sum()), "d_sae": f.shape[1],
        "explained_variance": round(1 - (error.square().sum() / (x - x.mean(0)).square().sum()).item(), 4),
        "mean_norm": round(x.norm(dim=1).mean().item(), 2), "held_out_tokens": len(x),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in dict(features=512, k=12, steps=1500, batch=512, lines=5000, seed=1).items():
        parser.add_argument("--" + name, type=int, default=default)
    parser.add_argument("--lr", type=float, default=1e-3)
    options = parser.parse_args()
    model, tokenizer = lm.load(), tok.load(lm.FOLDER)
    documents = lambda seed, n: [corpus.document(line) for line in corpus.corpus(seed, n)]
    x = torch.cat(activations(model, tokenizer, documents("sae", options.lines))[0])
    print(f"{len(x):,} activations, mean norm {x.norm(dim=1).mean():.1f}", flush=True)
    save(train(x, options.features, options.k, options.steps, options.batch, options.lr, options.seed))
    fresh = torch.cat(activations(model, tokenizer, documents("sae-held-out", 500))[0])
    check_with_saelens(fresh[:500])
    summary = statistics(load(), fresh) | {"training_tokens": len(x), "k": options.k, "steps": options.steps}
    (FOLDER.parent / "train" / "sae.json").write_text(json.dumps(summary, indent=1) + "\n")
    print(summary)


if __name__ == "__main__":
    main()
