"""The reference: interventions as forward hooks on a Hugging Face model, greedy decoding, logits.

This is how researchers steer a model in a notebook, kept as plain as possible: a whole SAE runs at
every token, and the hook replaces the output of a decoder layer.
"""

from contextlib import contextmanager

import torch
from sae_lens.saes.jumprelu_sae import JumpReLUSAE, JumpReLUSAEConfig
from transformers import GenerationConfig


class SAEIntervention:
    """Set SAE features to a value: error + decode(clamp(encode(x))).

    `values` maps a feature index to the value it is held at. Being a mapping, a feature that two
    labels name counts once.
    """

    def __init__(self, sae, values):
        self.sae = sae
        self.mask = torch.zeros(sae.cfg.d_sae)
        self.value = torch.zeros(sae.cfg.d_sae)
        for index, value in values.items():
            self.mask[index] = 1.0
            self.value[index] = value

    def __call__(self, x):
        x32 = x.float()
        error = x32 - self.sae.decode(self.sae.encode(x32))
        features = self.sae.encode(x32)
        features = features * (1 - self.mask) + self.value * self.mask
        return (error + self.sae.decode(features)).to(x.dtype)


class CAVIntervention:
    """Add a concept activation vector: x + strength * cav. The vector is used as given."""

    def __init__(self, cav, strength):
        self.cav = cav
        self.strength = strength

    def __call__(self, x):
        return (x.float() + self.strength * self.cav.float()).to(x.dtype)


class TableForm:
    """The same edits without the SAE's other features: x + sum of (value - f_i(x)) d_i + offsets."""

    def __init__(self, sae):
        self.sae = sae
        self.features = {}
        self.offsets = []

    def __call__(self, x):
        total = x + sum(self.offsets)
        for index, value in self.features.items():
            pre = x @ self.sae.W_enc[:, index].to(x.dtype) + self.sae.b_enc[index].to(x.dtype)
            f = torch.relu(pre) * (pre > self.sae.threshold[index].to(x.dtype))
            total = total + (value - f)[..., None] * self.sae.W_dec[index].to(x.dtype)
        return total


class InterventionForwardHook:
    """Applies interventions to what a decoder layer returns.

    With several at one layer, each reads the unedited activation and their changes add up, so that
    their order does not matter. With one this is the plain notebook hook.
    """

    def __init__(self, interventions):
        self.interventions = interventions

    def __call__(self, _module, _inputs, output):
        if isinstance(output, tuple):
            return (self.edit(output[0]),) + tuple(output[1:])
        return self.edit(output)

    def edit(self, x):
        if len(self.interventions) == 1:
            return self.interventions[0](x)
        return x + sum(intervention(x) - x for intervention in self.interventions)


@contextmanager
def hooked(model, by_layer):
    """Registers one hook per layer of `by_layer`, {layer: [intervention]}, while the block runs."""
    handles = [
        model.model.layers[layer].register_forward_hook(InterventionForwardHook(interventions))
        for layer, interventions in by_layer.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def jumprelu_sae(weights):
    """A SAELens JumpReLU SAE with Gemma Scope's conventions, from a dict of arrays or tensors."""
    weights = {name: torch.as_tensor(value) for name, value in weights.items()}
    d_in, d_sae = weights["W_enc"].shape
    sae = JumpReLUSAE(JumpReLUSAEConfig(d_in=d_in, d_sae=d_sae, apply_b_dec_to_input=False))
    sae.load_state_dict(weights)
    return sae.requires_grad_(False)


def check_jumprelu(sae, x):
    """Asserts that SAELens computes f = relu(h) * 1[h > threshold] and x_hat = f W_dec + b_dec."""
    pre = x @ sae.W_enc + sae.b_enc
    features = torch.relu(pre) * (pre > sae.threshold)
    torch.testing.assert_close(sae.encode(x), features)
    torch.testing.assert_close(sae.decode(features), features @ sae.W_dec + sae.b_dec)


@torch.no_grad()
def greedy(model, prompt_ids, by_layer, n_new, eos_ids):
    """Greedy tokens from `generate` with its KV cache, and the logits that chose them.

    The logits come from one full forward pass over prompt and continuation; row i chose token i.
    They must agree with the cached pass to 1e-4, or the fixture would not be a fair reference.
    """
    config = GenerationConfig(
        do_sample=False, max_new_tokens=n_new, eos_token_id=eos_ids, pad_token_id=0,
        repetition_penalty=1.0, return_dict_in_generate=True, output_logits=True, use_cache=True,
    )
    prompt = torch.tensor([prompt_ids])
    with hooked(model, by_layer):
        out = model.generate(prompt, attention_mask=torch.ones_like(prompt), generation_config=config)
    tokens = out.sequences[0, len(prompt_ids):].tolist()
    logits = full_logits(model, prompt_ids, tokens, by_layer)
    cached = torch.cat(out.logits)
    assert (logits - cached).abs().max() <= 1e-4, (logits - cached).abs().max()
    assert logits.argmax(-1).tolist() == tokens
    return tokens, logits.float()


@torch.no_grad()
def full_logits(model, prompt_ids, tokens, by_layer):
    """One forward pass over prompt and continuation; row i are the logits that choose token i."""
    with hooked(model, by_layer):
        ids = torch.tensor([prompt_ids + tokens[:-1]])
        return model(ids, use_cache=False).logits[0, len(prompt_ids) - 1:]


@torch.no_grad()
def residuals(model, prompt_ids, layer):
    """What decoder layer `layer` returns at every position of a prompt, [tokens, d_model]."""
    seen = []

    def record(_module, _inputs, output):
        seen.append(output[0] if isinstance(output, tuple) else output)

    handle = model.model.layers[layer].register_forward_hook(record)
    try:
        model(torch.tensor([prompt_ids]), use_cache=False)
    finally:
        handle.remove()
    return seen[0][0]
