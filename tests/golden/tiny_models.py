"""Tiny random models in Hugging Face layout, and checks that they make fair fixtures."""

import copy
import json

import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM

import small_tokenizers
from common import TryAnotherSeed, write_json

MIN_DIFFERENCE = 2e-3  # in some logit, when a config value is overlooked
NEW_STYLE_KEYS = {"rope_parameters", "layer_types", "dtype"}
OLD_ONLY_KEYS = {"rope_theta", "rope_scaling", "rope_local_base_freq", "sliding_window_pattern", "torch_dtype", "cache_implementation"}


def resolve_ids(value, tokenizer):
    """Replaces token names by their ids in the *_token_id entries of a config."""
    if isinstance(value, dict):
        return {k: resolve_ids(v, tokenizer) if k.endswith("token_id") else v for k, v in value.items()}
    if isinstance(value, list):
        return [resolve_ids(item, tokenizer) for item in value]
    return tokenizer.token_to_id(value) if isinstance(value, str) else value


def write_tokenizer(family, folder):
    build, config = small_tokenizers.CONFIGS[family.tokenizer]
    tokenizer = build()
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    write_json(folder / "tokenizer_config.json", config | {"model_max_length": 512})
    return tokenizer


def write_configs(family, config, folder, beside):
    """config.json in the family's style, the other style beside the model folder."""
    write_json(folder / "config.json", config)
    loaded = AutoConfig.from_pretrained(folder)
    new = json.loads(loaded.to_json_string(use_diff=False))
    new = {k: v for k, v in new.items() if k in NEW_STYLE_KEYS or k in config and k not in OLD_ONLY_KEYS}
    new["transformers_version"] = loaded.to_dict()["transformers_version"]
    old_path, new_path = (folder / "config.json", beside) if family.style == "old" else (beside, folder / "config.json")
    write_json(old_path, config)
    write_json(new_path, new)


def random_model(family, folder, seed):
    """A model of random weights, drawn parameter by parameter so that a seed means one thing."""
    config = AutoConfig.from_pretrained(folder, attn_implementation="eager")
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in sorted(model.named_parameters()):
        noise = torch.randn(parameter.shape, generator=generator)
        if name.endswith("norm.weight"):
            parameter.copy_(family.norm_mean + family.norm_spread * noise)
        elif name.endswith("embed_tokens.weight"):
            parameter.copy_(family.embed_std * noise)
        elif name.endswith(".bias"):
            parameter.copy_(0.3 * noise)
        elif name == "lm_head.weight":
            parameter.copy_(3.0 / parameter.shape[1] ** 0.5 * noise)
        else:
            parameter.copy_(family.linear_gain / parameter.shape[1] ** 0.5 * noise)
    model.tie_weights()
    return model


def save_weights(family, model, folder):
    state = model.state_dict()
    if model.config.tie_word_embeddings:
        state.pop("lm_head.weight")
    state = {name: tensor.clone().contiguous() for name, tensor in state.items()}
    for stale in folder.glob("*.safetensors*"):
        stale.unlink()
    if not family.shards:
        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
        return
    names = sorted(state)
    halves = [names[: len(names) // 2], names[len(names) // 2:]]
    weight_map = {}
    for number, half in enumerate(halves, 1):
        file = f"model-{number:05}-of-{len(halves):05}.safetensors"
        save_file({name: state[name] for name in half}, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(half, file)
    size = sum(tensor.numel() * 4 for tensor in state.values())
    write_json(folder / "model.safetensors.index.json", {"metadata": {"total_size": size}, "weight_map": weight_map})


def check_reload(model, folder, beside, prompt_ids):
    """Both spellings of the config load from disk to the model that was written."""
    ids = torch.tensor([prompt_ids])
    want = model(ids).logits
    for alternative in (False, True):
        config = AutoConfig.from_pretrained(beside if alternative else folder, attn_implementation="eager")
        loaded = AutoModelForCausalLM.from_pretrained(folder, config=config, dtype=torch.float32).eval()
        torch.testing.assert_close(loaded(ids).logits, want, rtol=0, atol=1e-6)


def check_precision(model, prompt_ids):
    """The model does not amplify rounding: float32 logits are near those of float64."""
    ids = torch.tensor([prompt_ids])
    exact = copy.deepcopy(model).double()(ids).logits
    if (exact - model(ids).logits).abs().max() > 3e-5:
        raise TryAnotherSeed("float32 and float64 logits differ")


def check_overlooked(family, config, model, prompt_ids, scratch):
    """Every awkward config value matters: a reader who missed one would be far beyond 1e-4."""
    ids = torch.tensor([prompt_ids])
    want = model(ids).logits
    for key, value in family.overlooked.items():
        write_json(scratch / "config.json", config | {key: value})
        other = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(scratch, attn_implementation="eager"), dtype=torch.float32)
        other.load_state_dict(model.state_dict())
        difference = float((other.eval()(ids).logits - want).abs().max())
        if difference < MIN_DIFFERENCE:
            raise TryAnotherSeed(f"{key} hardly matters: {difference:.1e}")
