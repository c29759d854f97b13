"""The language model: a small Gemma 2, trained on the corpus from scratch.

    python model.py --steps 2000

Trains on conversations with loss on every token, so that the model also opens its own turn, and
saves in Hugging Face's layout in bfloat16. Learning rate: warm-up, then cosine over the given time.
"""

import argparse
import json
import math
import os
import random
import tempfile
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from transformers import Gemma2Config, Gemma2ForCausalLM

import corpus
import tokenizer as tok

FOLDER = Path(__file__).resolve().parent.parent / "model"
TRAINING = FOLDER.parent / "train" / "training.json"
TOPIC_LAYER, TOPIC_WEIGHT = 3, 0.3  # see topic_loss
TOKENS_PER_BATCH = 1280  # of each worker
CONFIG = dict(
    vocab_size=tok.VOCAB_SIZE, hidden_size=128, intermediate_size=384, num_hidden_layers=6, num_attention_heads=4,
    num_key_value_heads=2, head_dim=32, query_pre_attn_scalar=32, sliding_window=128, attn_logit_softcapping=50.0,
    final_logit_softcapping=30.0, max_position_embeddings=512, rms_norm_eps=1e-6, tie_word_embeddings=True,
    bos_token_id=tok.BOS, eos_token_id=tok.EOS, pad_token_id=tok.PAD, hidden_activation="gelu_pytorch_tanh",
    attention_bias=False, attention_dropout=0.0, initializer_range=0.02,
)
GENERATION = {
    "do_sample": True, "temperature": 0.8, "top_k": 64, "top_p": 0.95,
    "bos_token_id": tok.BOS, "eos_token_id": [tok.EOS, tok.END_OF_TURN], "pad_token_id": tok.PAD,
}


def new_model(seed):
    torch.manual_seed(seed)
    model = Gemma2ForCausalLM(Gemma2Config(**CONFIG, attn_implementation="eager"))
    for layer in model.model.layers:  # residual branches start small, as depth asks for
        torch.nn.init.normal_(layer.self_attn.o_proj.weight, std=0.02 / math.sqrt(12))
        torch.nn.init.normal_(layer.mlp.down_proj.weight, std=0.02 / math.sqrt(12))
    return model


def batches(tokenizer, seed):
    """Endless (ids [rows, length], topics [rows]): fresh corpus text, padded, rows of similar length."""
    part, names = 0, list(corpus.TOPICS)
    rng = random.Random(f"batches-{seed}")
    while True:
        lines = corpus.corpus(f"{seed}-{part}", 6000)
        part += 1
        encoded = tokenizer.encode_batch([corpus.document(line) for line in lines])  # adds <bos>
        rows = [(e.ids[:512], names.index(line["topic"])) for e, line in zip(encoded, lines)]
        rows.sort(key=lambda row: len(row[0]) + rng.random() * 8)
        made, batch = [], []
        for row in rows:
            batch.append(row)
            if len(batch) * len(row[0]) >= TOKENS_PER_BATCH:
                made.append(batch)
                batch = []
        rng.shuffle(made)
        for batch in made:
            width = max(len(ids) for ids, _ in batch)
            yield torch.tensor([ids + [tok.PAD] * (width - len(ids)) for ids, _ in batch]), torch.tensor([topic for _, topic in batch])


def token_losses(model, ids, middle=None):
    """Cross entropy of every real next token, a flat tensor. Padding is on the right: causality hides it.

    A list as `middle` receives layer TOPIC_LAYER's output at the same positions, [tokens, d_model].
    """
    real = ids[:, 1:] != tok.PAD
    handle = None
    if middle is not None:
        handle = model.model.layers[TOPIC_LAYER].register_forward_hook(
            lambda _m, _i, out: middle.append((out[0] if isinstance(out, tuple) else out)[real]))
    hidden = model.model(ids[:, :-1], use_cache=False).last_hidden_state
    if handle:
        handle.remove()
    logits = hidden[real] @ model.lm_head.weight.T
    cap = CONFIG["final_logit_softcapping"]
    return F.cross_entropy(torch.tanh(logits / cap) * cap, ids[:, 1:][real], reduction="none")


def topic_loss(probe, middle, ids, topics):
    """How badly a linear probe reads the topic at each position of the middle layer (a training aid).

    It teaches the model early to keep one topic through a text. The probe is thrown away.
    """
    x = middle / middle.norm(dim=1, keepdim=True).clamp(min=1e-6) * middle.shape[1] ** 0.5
    target = topics[:, None].expand(-1, ids.shape[1] - 1)[ids[:, 1:] != tok.PAD]
    return F.cross_entropy(probe(x), target)


class Muon(torch.optim.Optimizer):
    """Momentum, made orthogonal by Newton-Schulz iterations in float32 (torch's own uses bfloat16: slow on a CPU).

    The step is scaled so that its root mean square is 0.2, as AdamW's is, and `lr` means the same.
    """

    def __init__(self, parameters, lr, weight_decay, momentum=0.95):
        super().__init__(parameters, dict(lr=lr, weight_decay=weight_decay, momentum=momentum))

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            by_shape = {}
            for p in group["params"]:
                by_shape.setdefault(p.shape, []).append(p)
            for same in by_shape.values():
                self._step_together(same, group)

    def _step_together(self, parameters, group):
        for p in parameters:
            state = self.state[p]
            if "momentum" not in state:
                state["momentum"] = torch.zeros_like(p)
            state["momentum"].lerp_(p.grad, 1 - group["momentum"])
        x = torch.stack([p.grad.lerp(self.state[p]["momentum"], group["momentum"]) for p in parameters])
        x = orthogonal(x) * 0.2 * max(x.shape[1:]) ** 0.5
        for p, step in zip(parameters, x):
            p.mul_(1 - group["lr"] * group["weight_decay"]).sub_(step, alpha=group["lr"])


def orthogonal(x, steps=4):
    """Pushes the singular values of each matrix in x [n, rows, columns] towards 1."""
    tall = x.shape[1] > x.shape[2]
    x = x.mT if tall else x
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = 3.4445 * x + (-4.775 * gram + 2.0315 * gram @ gram) @ x
    return x.mT if tall else x


def optimizers_for(model, lr):
    """Muon for the matrices of the blocks, AdamW for embeddings and norms."""
    blocks = [p for p in model.model.layers.parameters() if p.dim() == 2]
    names = {id(p) for p in blocks}
    others = [p for p in model.parameters() if id(p) not in names]
    return [Muon(blocks, lr=lr, weight_decay=0.05), torch.optim.AdamW(others, lr=lr, betas=(0.9, 0.97), weight_decay=0.0)]


def average(model, extra, workers):
    """Averages gradients, and the numbers in `extra`, over the workers."""
    parameters = [p for p in model.parameters() if p.grad is not None]
    flat = torch.cat([p.grad.flatten() for p in parameters] + [torch.tensor(extra, dtype=torch.float32)])
    if workers > 1:
        torch.distributed.all_reduce(flat)
        flat /= workers
    offset = 0
    for p in parameters:
        p.grad.copy_(flat[offset: offset + p.numel()].view_as(p))
        offset += p.numel()
    return flat[offset:].tolist()


def train(rank, options):
    """One of `options.workers` processes, each on one core: the same weights, different texts."""
    torch.set_num_threads(1)
    if options.workers > 1:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        torch.distributed.init_process_group("gloo", init_method=f"file://{options.meeting}", rank=rank, world_size=options.workers)
    model = new_model(options.seed)
    if options.resume:
        model.load_state_dict(load().state_dict())
        model.requires_grad_(True)
    model.topic_probe = torch.nn.Linear(CONFIG["hidden_size"], len(corpus.TOPICS))
    optimizers = optimizers_for(model, options.lr)
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    start, tokens, recent = time.time(), 0, []
    done = 0.0
    for step, (ids, topics) in enumerate(batches(tok.load(FOLDER), f"{options.seed}-{rank}")):
        middle = []
        losses = token_losses(model, ids, middle)
        aid = topic_loss(model.topic_probe, middle[0], ids, topics)
        (losses.mean() + TOPIC_WEIGHT * aid).backward()
        minutes = (time.time() - start) / 60
        progress = step / options.steps if options.steps else minutes / options.minutes
        done, loss, count, aid = average(model, [progress, losses.mean().item(), losses.numel(), aid.item()], options.workers)
        if done >= 1:
            break
        rate = options.lr * min(1.0, (step + 1) / 60) * min(1.0, 0.02 + (1 - done) / 0.6)  # falls over the last 60 %
        for group in groups:
            group["lr"] = rate
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        tokens += round(count * options.workers)
        recent = (recent + [loss])[-25:]
        if rank == 0 and step % 25 == 0:
            print(f"step {step} loss {sum(recent) / len(recent):.3f} topic {aid:.2f} tokens {tokens:,} done {done:.2f} lr {rate:.1e} minutes {minutes:.1f}", flush=True)
        if rank == 0 and step % 100 == 99:
            export(model)
    if rank == 0:
        export(model)
        summary = {"parameters": sum(p.numel() for p in model.model.parameters()), "steps": step, "tokens": tokens, "minutes": round(minutes, 1)}
        TRAINING.write_text(json.dumps(summary, indent=1) + "\n")


def export(model):
    """Writes config.json, generation_config.json and model.safetensors (bfloat16, tied head left out)."""
    state = {k: v.detach().to(torch.bfloat16).clone().contiguous() for k, v in model.state_dict().items() if k.startswith("model.")}
    save_file(state, FOLDER / "model.safetensors", metadata={"format": "pt"})
    config = CONFIG | {
        "architectures": ["Gemma2ForCausalLM"], "model_type": "gemma2", "torch_dtype": "bfloat16", "rope_theta": 10000.0,
        "hidden_act": "gelu_pytorch_tanh", "use_cache": True, "cache_implementation": "hybrid",
    }
    (FOLDER / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    (FOLDER / "generation_config.json").write_text(json.dumps(GENERATION, indent=1) + "\n")


def load():
    """The exported model, in float32, for inference."""
    model = Gemma2ForCausalLM.from_pretrained(FOLDER, dtype=torch.float32, attn_implementation="eager")
    return model.eval().requires_grad_(False)


@torch.no_grad()
def held_out(model, tokenizer, n_batches=40):
    """Mean loss in nats and perplexity per token on corpus text of a seed that training never uses."""
    losses = [token_losses(model, ids) for (ids, _), _ in zip(batches(tokenizer, "held-out"), range(n_batches))]
    loss = torch.cat(losses).mean().item()
    return {"loss": round(loss, 4), "perplexity": round(math.exp(loss), 3)}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--steps", type=int, help="exactly so many steps, whatever time they take")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--lr", type=float, default=4e-3)
    parser.add_argument("--resume", action="store_true", help="go on from ../model")
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    options.meeting = tempfile.mktemp(prefix="steer-demo-")
    if options.workers == 1:
        train(0, options)
    else:
        torch.multiprocessing.spawn(train, (options,), nprocs=options.workers)
    summary = json.loads(TRAINING.read_text()) | held_out(load(), tok.load(FOLDER))
    TRAINING.write_text(json.dumps(summary, indent=1) + "\n")
    print(summary)


if __name__ == "__main__":
    main()
