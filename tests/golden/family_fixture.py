"""Builds one family's fixture: model, tokenizer, SAE, labels, CAVs, cases, logits."""

import copy
import shutil
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from jinja2 import TemplateError
from safetensors.torch import save_file
from transformers import PreTrainedTokenizerFast

import corpus
import tiny_models
from common import TryAnotherSeed, resid_post, write_json
from reference import CAVIntervention, SAEIntervention, TableForm, check_jumprelu, full_logits, greedy, jumprelu_sae, residuals

N_NEW = 16
D_SAE = 96
MIN_GAP = 1e-3  # between the two best logits, at every step
MAX_ROUNDING = 4e-5  # between these float32 logits and the same computed in float64
MAX_SEEDS = 400
FACTORS = (1.0, 1.12, 0.91, 1.31, 0.8, 1.5)


# -- SAE and CAVs -----------------------------------------------------------------------------


def make_sae(x, seed):
    """A JumpReLU SAE for activations `x`: each feature fires on 10 to 35 % of the tokens."""
    rng = np.random.default_rng(seed)
    d_in, mean = x.shape[1], x.mean(0).numpy()
    rows = rng.standard_normal((D_SAE, d_in))
    W_dec = rows / np.linalg.norm(rows, axis=1, keepdims=True) * rng.uniform(0.6, 1.4, (D_SAE, 1))
    W_enc = (0.7 * W_dec + 0.05 * rng.standard_normal((D_SAE, d_in))).T
    b_enc = 0.2 * rng.standard_normal(D_SAE) - mean @ W_enc
    pre = x.numpy() @ W_enc + b_enc
    share = rng.uniform(0.10, 0.35, D_SAE)
    threshold = np.array([np.quantile(pre[:, i], 1 - share[i]) for i in range(D_SAE)]).clip(0.05)
    weights = {"W_enc": W_enc, "W_dec": W_dec, "b_enc": b_enc, "b_dec": mean + 0.1 * rng.standard_normal(d_in), "threshold": threshold}
    return {name: np.ascontiguousarray(value, dtype=np.float32) for name, value in weights.items()}


def make_cavs(d_model, dtype, seed):
    """Unit rows of float32 values (a float64 file then holds exactly representable numbers)."""
    generator = torch.Generator().manual_seed(seed)
    cavs = torch.randn(len(corpus.CAV_LABELS), d_model, generator=generator, dtype=torch.float64)
    cavs /= cavs.norm(dim=1, keepdim=True)
    return {"cavs": cavs.to(getattr(torch, dtype)), "labels": list(corpus.CAV_LABELS)}


def scaled(edit, factor):
    """The same intervention, `factor` times as strong."""
    strength = "value" if edit["kind"] == "feature" else "strength"
    return edit | {strength: round(edit[strength] * factor, 2)}


# -- cases ------------------------------------------------------------------------------------


class Builder:
    """Runs the cases of one family on one random model."""

    def __init__(self, family, folder, tokenizer, model, seed):
        self.family, self.folder, self.tokenizer, self.model = family, folder, tokenizer, model
        self.chat_tokenizer = PreTrainedTokenizerFast.from_pretrained(folder / "model")
        self.eos_ids = [tokenizer.token_to_id(token) for token in family.eos]
        tokens = [self.tokenizer.encode(text).ids for text in corpus.PROMPTS + [corpus.LONG_PROMPT]]
        x = torch.cat([residuals(model, ids, family.sae_layer) for ids in tokens])
        self.norm = float(x.norm(dim=1).mean())
        self.exact_model = copy.deepcopy(model).double()
        self.sae_weights = make_sae(x, seed)
        self.sae = jumprelu_sae(self.sae_weights)
        check_jumprelu(self.sae, x)
        self.cavs = make_cavs(x.shape[1], family.cav_dtype, seed)
        self.labels = self.make_labels(x)
        self.cases, self.logits, self.baselines = [], {}, {}

    def make_labels(self, x):
        """Labels for features that fire; the first two labels name one feature."""
        strength = (self.sae.encode(x) * self.sae.W_dec.norm(dim=1)).sum(0)
        best = strength.argsort(descending=True).tolist()
        indices = [best[0], best[0]] + best[1: len(corpus.LABELS) - 1]
        return dict(zip(corpus.LABELS, indices))

    # Interventions as they stand in cases.json.

    def feature(self, labels, share):
        """Hold the labels' feature so that its part of the activation has `share` of the norm."""
        labels = labels if isinstance(labels, list) else [labels]
        index = self.labels[labels[0]]
        value = round(share * self.norm / float(self.sae.W_dec[index].norm()), 2)
        return {"kind": "feature", "labels": labels, "feature_index": index, "value": value, "op": "set", "hook": resid_post(self.family.sae_layer)}

    def cav(self, row, share, layer=None):
        layer = self.family.cav_layer if layer is None else layer
        strength = round(share * self.norm, 2)
        return {"kind": "cav", "label": corpus.CAV_LABELS[row], "cav_index": row, "strength": strength, "hook": resid_post(layer)}

    def by_layer(self, interventions):
        """The hooks of a case. Features at one layer are one SAE pass, as the notebook's mask is."""
        features, layers = {}, {}
        for edit in interventions:
            layer = int(edit["hook"].split(".")[1])
            if edit["kind"] == "feature":
                features.setdefault(layer, {})[edit["feature_index"]] = edit["value"]
            else:
                layers.setdefault(layer, []).append(CAVIntervention(self.cavs["cavs"][edit["cav_index"]], edit["strength"]))
        for layer, values in features.items():
            layers.setdefault(layer, []).append(SAEIntervention(self.sae, values))
        return layers

    def decode(self, prompt_ids, interventions):
        tokens, logits = greedy(self.model, prompt_ids, self.by_layer(interventions), N_NEW, self.eos_ids)
        top = logits.topk(2, dim=-1).values
        if len(tokens) != N_NEW or set(tokens) & set(self.eos_ids):
            raise TryAnotherSeed("ends early")
        if float((top[:, 0] - top[:, 1]).min()) < MIN_GAP:
            raise TryAnotherSeed("near tie")
        return tokens, logits

    def check_rounding(self, ids, tokens, interventions, logits):
        """The table form of the same edits, in float64, gives the same logits.

        So a clamp is x + (value - f(x)) d exactly, and the model does not amplify rounding: an
        implementation in float32 can be held to 1e-4.
        """
        layers = {}
        for edit in interventions:
            table = layers.setdefault(int(edit["hook"].split(".")[1]), [TableForm(self.sae)])[0]
            if edit["kind"] == "feature":
                table.features[edit["feature_index"]] = edit["value"]
            else:
                table.offsets.append(edit["strength"] * self.cavs["cavs"][edit["cav_index"]].double())
        exact = full_logits(self.exact_model, ids, tokens, layers)
        if float((exact - logits).abs().max()) > MAX_ROUNDING:
            raise TryAnotherSeed("amplifies rounding")

    def check_thresholds(self, ids, interventions):
        """No clamped feature sits on the edge of its threshold, where rounding would decide."""
        indices = sorted({edit["feature_index"] for edit in interventions if edit["kind"] == "feature"})
        if not indices:
            return
        x = residuals(self.model, ids, self.family.sae_layer)
        edge = (x @ self.sae.W_enc + self.sae.b_enc - self.sae.threshold)[:, indices]
        if float(edge.abs().min()) < 3e-5:
            raise TryAnotherSeed("pre-activation at the threshold")

    def add(self, name, prompt, interventions=()):
        """Runs a case, at slightly other strengths where the given ones end in a near tie."""
        for attempt, factor in enumerate(FACTORS if interventions else (1.0,), 1):
            try:
                return self.add_once(name, prompt, [scaled(edit, factor) for edit in interventions])
            except TryAnotherSeed:
                if attempt == len(FACTORS) or not interventions:
                    raise

    def add_once(self, name, prompt, interventions):
        """Runs a case. `prompt` is {"text"} or {"messages", "add_generation_prompt"}."""
        prompt = dict(prompt)
        if "text" in prompt:
            ids = self.tokenizer.encode(prompt["text"]).ids
        else:
            rendered = self.chat_tokenizer.apply_chat_template(
                prompt["messages"], tokenize=False, add_generation_prompt=prompt["add_generation_prompt"]
            )
            prompt["rendered"] = rendered
            ids = self.tokenizer.encode(rendered, add_special_tokens=False).ids
        tokens, logits = self.decode(ids, interventions)
        self.check_thresholds(ids + tokens, interventions)
        self.check_rounding(ids, tokens, interventions, logits)
        case = {"name": name, "prompt": prompt, "prompt_token_ids": ids, "interventions": interventions, "token_ids": tokens}
        if interventions:
            key = tuple(ids)
            if key not in self.baselines:
                self.baselines[key] = self.decode(ids, [])[0]
                if len(set(self.baselines[key])) < 3:
                    raise TryAnotherSeed("repeats itself")
            case["baseline_token_ids"] = self.baselines[key]
            if case["baseline_token_ids"] == tokens:
                raise TryAnotherSeed(f"{name} changes nothing")
            if len(set(tokens)) < 2:
                raise TryAnotherSeed("repeats itself")
        elif len(set(tokens)) < 4:
            raise TryAnotherSeed("repeats itself")
        case["text"] = self.tokenizer.decode(tokens)
        self.cases.append(case)
        self.logits[name] = logits.contiguous()

    def add_ablation(self, name, text):
        """Sets a feature that fires on the prompt to 0: the strongest whose loss changes the tokens."""
        x = residuals(self.model, self.tokenizer.encode(text).ids, self.family.sae_layer)
        strength = (self.sae.encode(x) * self.sae.W_dec.norm(dim=1)).sum(0)
        for label in sorted(self.labels, key=lambda label: -float(strength[self.labels[label]])):
            try:
                return self.add_once(name, {"text": text}, [self.feature(label, 0.0)])
            except TryAnotherSeed as reason:
                last_reason = reason
        raise last_reason

    def run(self):
        texts = [{"text": text} for text in corpus.PROMPTS]
        chat = {"messages": corpus.CHAT, "add_generation_prompt": False}
        turns = {"messages": corpus.CHAT_TURNS, "add_generation_prompt": True}
        sae_layer, last = self.family.sae_layer, self.model.config.num_hidden_layers - 1
        self.add("baseline", texts[0])
        self.add("clamp", texts[1], [self.feature("weather", 0.9)])
        self.add("two_clamps", texts[2], [self.feature("basketball", 0.7), self.feature("poetry", 0.9)])
        self.add("same_feature_two_labels", texts[3], [self.feature(["basketball", "nba"], 0.9)])
        self.add_ablation("ablation", corpus.LONG_PROMPT)
        self.add("cav", texts[4], [self.cav(0, 0.9)])
        self.add("cav_negative", texts[4], [self.cav(1, -0.8)])
        self.add("two_layers", texts[5], [self.feature("soup", 0.7), self.cav(2, 0.6)])
        self.add("clamp_and_cav_same_layer", texts[1], [self.feature("código", 0.7), self.cav(3, 0.6, sae_layer)])
        self.add("cav_last_layer", texts[0], [self.cav(1, 0.8, last)])
        self.add("long_prompt", {"text": corpus.LONG_PROMPT})
        self.add("long_prompt_clamp", {"text": corpus.LONG_PROMPT}, [self.feature("history of the city", 0.8)])
        self.add("chat", chat)
        self.add("chat_generation_prompt", turns)
        self.add("chat_clamp", chat, [self.feature("poetry", 0.9)])
        if self.family.name != "gemma2":  # its template refuses a system message
            self.add("chat_system", {"messages": [corpus.SYSTEM] + corpus.CHAT, "add_generation_prompt": True})

    def refused_chats(self):
        """Conversations that the family's template raises on, with its message."""
        refused = []
        for messages in ([corpus.SYSTEM] + corpus.CHAT, corpus.CHAT * 2):
            try:
                self.chat_tokenizer.apply_chat_template(messages, tokenize=False)
            except TemplateError as error:
                refused.append({"messages": messages, "message": str(error)})
        return refused

    def write(self):
        family, folder = self.family, self.folder
        (folder / "sae_gemma_scope").mkdir(exist_ok=True)
        np.savez(folder / "sae_gemma_scope" / "params.npz", **self.sae_weights)
        write_json(folder / "labels.json", self.labels)
        torch.save(self.cavs, folder / "cavs.pt")
        save_file(self.logits, folder / "logits.safetensors")
        config = self.model.config
        write_json(folder / "cases.json", {
            "family": family.name,
            "d_model": config.hidden_size,
            "n_layers": config.num_hidden_layers,
            "vocab_size": config.vocab_size,
            "n_new": N_NEW,
            "sae": {"path": "sae_gemma_scope/params.npz", "labels": "labels.json", "hook": resid_post(family.sae_layer), "d_sae": D_SAE},
            "cavs": {"path": "cavs.pt", "hook": resid_post(family.cav_layer), "dtype": family.cav_dtype, "labels": self.cavs["labels"]},
            "mean_norm_at_sae_hook": round(self.norm, 4),
            "cases": self.cases,
            "refused_chats": self.refused_chats(),
        })


def tokenizer_cases(tokenizer, folder):
    """Ids and decoded text; `PreTrainedTokenizerFast` must agree with the tokenizers library."""
    fast = PreTrainedTokenizerFast.from_pretrained(folder / "model")
    cases = []
    specials = "".join(sorted(t.content for t in tokenizer.get_added_tokens_decoder().values())[:2])
    for text in corpus.TOKENIZER_TEXTS + [f"a{specials} b"]:
        ids = tokenizer.encode(text).ids
        decoded = tokenizer.decode(ids, skip_special_tokens=True)
        assert fast(text)["input_ids"] == ids and fast.decode(ids, skip_special_tokens=True) == decoded, text
        cases.append({
            "text": text,
            "ids": ids,
            "ids_without_special": tokenizer.encode(text, add_special_tokens=False).ids,
            "decoded": decoded,
            "decoded_with_special": tokenizer.decode(ids, skip_special_tokens=False),
        })
    write_json(folder / "tokenizer_cases.json", cases)


def build(family, fixtures, first_seed=0):
    """Writes fixtures/<family>, replacing what was there once the new one is whole."""
    with tempfile.TemporaryDirectory(dir=fixtures) as scratch:
        folder = Path(scratch) / family.name
        build_in(family, folder, Path(scratch), first_seed)
        shutil.rmtree(fixtures / family.name, ignore_errors=True)
        folder.rename(fixtures / family.name)


def build_in(family, folder, scratch, first_seed):
    model_folder, beside = folder / "model", folder / f"config_{'new' if family.style == 'old' else 'old'}_style.json"
    tokenizer = tiny_models.write_tokenizer(family, model_folder)
    config = tiny_models.resolve_ids(family.config, tokenizer) | {"vocab_size": tokenizer.get_vocab_size()}
    tiny_models.write_configs(family, config, model_folder, beside)
    generation = {"_from_model_config": True, "bos_token_id": config["bos_token_id"], "eos_token_id": config["eos_token_id"]}
    write_json(model_folder / "generation_config.json", generation | tiny_models.resolve_ids(family.generation, tokenizer))
    long_ids = tokenizer.encode(corpus.LONG_PROMPT).ids
    passed_over = Counter()
    for seed in range(first_seed, first_seed + MAX_SEEDS):
        model = tiny_models.random_model(family, model_folder, seed)
        try:
            tiny_models.check_precision(model, long_ids)
            tiny_models.check_overlooked(family, config, model, long_ids, scratch)
            builder = Builder(family, folder, tokenizer, model, seed)
            builder.run()
        except TryAnotherSeed as reason:
            passed_over[str(reason).split(":")[0]] += 1
            continue
        tiny_models.save_weights(family, model, model_folder)
        tiny_models.check_reload(model, model_folder, beside, long_ids)
        builder.write()
        tokenizer_cases(tokenizer, folder)
        print(f"{family.name}: seed {seed}, {len(builder.cases)} cases; passed over {dict(passed_over)}", flush=True)
        return
    raise SystemExit(f"{family.name}: no seed fits, {dict(passed_over)}")
