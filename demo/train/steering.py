"""Steered sampling in batches where every row has its own edit, and what is measured on the texts.

An edit is one row of x' = x + (target − f(x)) · write with f = relu(h)·1[h > threshold],
h = read · x + bias: an SAE feature clamp, or with read = 0 a plain vector. It applies at the hook
`blocks.3.hook_resid_post`, at every position, <bos> and prompt included.
"""

import math
import re
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from transformers import DynamicCache

import corpus
import tokenizer as tok
from model import GENERATION

LAYER = 3
HOOK = f"blocks.{LAYER}.hook_resid_post"
HEADER = "<start_of_turn>model\n"


@dataclass
class Edit:
    """One row's edit; vectors are [d_model] and float32."""

    read: torch.Tensor
    bias: float
    threshold: float
    target: float
    write: torch.Tensor


def no_edit(d_model):
    return Edit(torch.zeros(d_model), 0.0, 0.0, 0.0, torch.zeros(d_model))


def clamp(sae, feature, value):
    """Sets one SAE feature; `sae` is a dict of tensors in Gemma Scope's layout."""
    return Edit(sae["W_enc"][:, feature], float(sae["b_enc"][feature]), float(sae["threshold"][feature]), value, sae["W_dec"][feature])


def add_vector(vector, strength):
    return Edit(torch.zeros_like(vector), 0.0, 0.0, strength, vector)


class RowHook:
    """The forward hook of a batch: row i of x [rows, tokens, d_model] gets edit i."""

    def __init__(self, edits):
        self.read = torch.stack([edit.read for edit in edits])
        self.write = torch.stack([edit.write for edit in edits])[:, None]
        column = lambda name: torch.tensor([getattr(edit, name) for edit in edits])[:, None]
        self.bias, self.threshold, self.target = column("bias"), column("threshold"), column("target")

    def keep(self, rows):
        for name in ("read", "write", "bias", "threshold", "target"):
            setattr(self, name, getattr(self, name)[rows])

    def __call__(self, _module, _inputs, output):
        x = output[0] if isinstance(output, tuple) else output
        h = torch.einsum("btd,bd->bt", x, self.read) + self.bias
        f = torch.relu(h) * (h > self.threshold)
        x = x + (self.target - f)[..., None] * self.write
        return (x,) + tuple(output[1:]) if isinstance(output, tuple) else x


def pick(logits, generator):
    """Samples one token per row as generation_config says: temperature, then top-k, then top-p."""
    top, ids = (logits / GENERATION["temperature"]).topk(GENERATION["top_k"], dim=-1)
    probabilities = top.softmax(-1)
    before = probabilities.cumsum(-1) - probabilities
    probabilities = probabilities.masked_fill(before >= GENERATION["top_p"], 0.0)
    return ids.gather(1, torch.multinomial(probabilities, 1, generator=generator))[:, 0]


@torch.no_grad()
def generate(model, prompts, edits, seed, max_new_tokens=48):
    """New token ids for each row; `prompts` are lists of ids, padded on the left here."""
    generator = torch.Generator().manual_seed(seed)
    width = max(map(len, prompts))
    ids = torch.tensor([[tok.PAD] * (width - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
    hook, cache = RowHook(edits), DynamicCache(config=model.config)
    answers, rows = [[] for _ in prompts], torch.arange(len(prompts))  # rows: which are still being written
    handle = model.model.layers[LAYER].register_forward_hook(hook)
    try:
        step, positions = ids, (mask.cumsum(1) - 1).clamp(min=0)
        for _ in range(max_new_tokens):
            out = model(step, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True, logits_to_keep=1)
            chosen = pick(out.logits[:, -1], generator)
            for row, token in zip(rows.tolist(), chosen.tolist()):
                answers[row].append(token)
            going = ((chosen != tok.EOS) & (chosen != tok.END_OF_TURN)).nonzero()[:, 0]
            if len(going) == 0:
                break
            step, positions = chosen[:, None], positions[:, -1:] + 1
            mask = torch.cat([mask, torch.ones(len(mask), 1, dtype=mask.dtype)], 1)
            if len(going) < len(rows):
                rows, step, positions, mask = rows[going], step[going], positions[going], mask[going]
                hook.keep(going)
                cache.batch_select_indices(going)
    finally:
        handle.remove()
    return answers


def split_header(tokenizer, ids):
    """How many leading tokens only open the model's turn (which it does by itself when asked without it)."""
    header = tokenizer.encode(HEADER, add_special_tokens=False).ids
    return len(header) if ids[: len(header)] == header else 0


def readable(tokenizer, ids):
    return tokenizer.decode(ids[split_header(tokenizer, ids):], skip_special_tokens=True).strip()


@torch.no_grad()
def perplexities(model, tokenizer, prompts, answers, batch=128):
    """Per text, exp of the mean loss of its tokens under the unsteered model (the turn's header left out)."""
    pairs, result = list(zip(prompts, answers)), [0.0] * len(prompts)
    order = sorted(range(len(pairs)), key=lambda i: len(pairs[i][0]) + len(pairs[i][1]))
    for start in range(0, len(order), batch):
        rows = order[start: start + batch]
        width = max(len(pairs[i][0]) + len(pairs[i][1]) for i in rows)
        ids = torch.full((len(rows), width), tok.PAD)
        own = torch.zeros(len(rows), width - 1, dtype=torch.bool)
        for row, i in enumerate(rows):
            prompt, answer = pairs[i]
            ids[row, : len(prompt) + len(answer)] = torch.tensor(prompt + answer)
            own[row, len(prompt) + split_header(tokenizer, answer) - 1: len(prompt) + len(answer) - 1] = True
        hidden = model.model(ids[:, :-1], use_cache=False).last_hidden_state[own]
        cap = model.config.final_logit_softcapping
        losses = torch.zeros(own.shape)
        losses[own] = F.cross_entropy(torch.tanh(model.lm_head(hidden) / cap) * cap, ids[:, 1:][own], reduction="none")
        mean = losses.sum(1) / own.sum(1)
        for row, i in enumerate(rows):
            result[i] = math.exp(min(mean[row].item(), 20.0)) if own[row].any() else math.exp(20.0)
    return result


def topic_classifier(seed="classifier", n=5000):
    """TF-IDF and logistic regression on assistant texts of a seed that nothing else uses."""
    lines = corpus.corpus(seed, n)
    classifier = make_pipeline(TfidfVectorizer(sublinear_tf=True, min_df=2), LogisticRegression(C=10, max_iter=300))
    return classifier.fit([line["text"] for line in lines], [line["topic"] for line in lines])


class Bench:
    """Held-out neutral prompts, in both chat modes, and the measures on what the model says to them."""

    def __init__(self, model, tokenizer):
        self.model, self.tokenizer, self.classifier = model, tokenizer, topic_classifier()
        texts = [prompt for _, prompt in corpus.held_out_prompts()]
        self.modes = {
            mode: [tok.chat_prompt_ids(tokenizer, text, mode == "with") for text in texts]
            for mode in ("without", "with")  # a generation prompt
        }

    def run(self, edits, seed, n_prompts=64, split=False, rows_at_once=512):
        """For each edit {mode: {"topics", "perplexities", "texts"}} over n prompts, spread over all forms.

        `split`: each prompt in one mode only, the modes taking turns; otherwise every prompt in both.
        """
        results = [{} for _ in edits]
        for first, (mode, all_prompts) in enumerate(self.modes.items()):
            stride = [all_prompts[i * len(all_prompts) // n_prompts] for i in range(n_prompts)]
            stride = stride[first::2] if split else stride
            jobs = [(e, p) for e in range(len(edits)) for p in stride]
            topics, losses, texts = [], [], []
            for start in range(0, len(jobs), rows_at_once):
                part = jobs[start: start + rows_at_once]
                prompts = [p for _, p in part]
                answers = generate(self.model, prompts, [edits[e] for e, _ in part], seed + start)
                said = [readable(self.tokenizer, a) for a in answers]
                topics += self.classifier.predict(said).tolist()
                losses += perplexities(self.model, self.tokenizer, prompts, answers)
                texts += said
            for e in range(len(edits)):
                own = slice(e * len(stride), (e + 1) * len(stride))
                results[e][mode] = {"topics": topics[own], "perplexities": losses[own], "texts": texts[own]}
        return results


def share(result, topic):
    """On-topic share of all outputs."""
    topics = [t for part in result.values() for t in part["topics"]]
    return topics.count(topic) / len(topics)


def worst_share(result, topic):
    """The lower of the two modes' on-topic shares."""
    return min(part["topics"].count(topic) / len(part["topics"]) for part in result.values())


def mean_perplexity(result, mode):
    values = result[mode]["perplexities"]
    return sum(values) / len(values)


def perplexity_ratio(result, baseline):
    """The higher of the two modes' ratios of mean per-text perplexity."""
    return max(mean_perplexity(result, mode) / mean_perplexity(baseline, mode) for mode in result)


def first_words(text, limit=160):
    return re.sub(r"\s*\n\s*", " / ", text)[:limit]
