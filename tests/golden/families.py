"""The families: one small, deliberately awkward config each.

`style` says how config.json is written: "old" as in most files on the hub (rope_theta,
torch_dtype, sliding_window_pattern), "new" as transformers 5 writes it (rope_parameters, dtype,
layer_types). The other spelling of the same config is written beside the model folder and
checked to load to the same model.
"""

from dataclasses import dataclass, field


@dataclass
class Family:
    """One family's model, and how its fixture is made."""

    name: str
    tokenizer: str
    config: dict  # old spelling, as written by hand
    style: str
    eos: list
    generation: dict = field(default_factory=dict)
    embed_std: float = 0.45
    linear_gain: float = 1.4
    norm_mean: float = 1.0  # of the stored norm weights; Gemma adds 1 to what is stored
    norm_spread: float = 0.3
    shards: bool = False
    sae_layer: int = 2
    cav_layer: int = 3
    cav_dtype: str = "float32"
    # Values that a reader who overlooks the key might use instead. Each must change the logits.
    overlooked: dict = field(default_factory=dict)


_SMALL = {"torch_dtype": "float32", "use_cache": True, "attention_dropout": 0.0, "initializer_range": 0.02}

FAMILIES = {
    family.name: family
    for family in [
        Family(
            "gemma2", "gemma2",
            _SMALL | {
                "architectures": ["Gemma2ForCausalLM"], "model_type": "gemma2", "hidden_size": 48,
                "intermediate_size": 56, "num_hidden_layers": 5, "num_attention_heads": 4, "num_key_value_heads": 2,
                "head_dim": 20, "query_pre_attn_scalar": 24, "sliding_window": 8, "attn_logit_softcapping": 5.0,
                "final_logit_softcapping": 4.0, "rope_theta": 7500.0, "rms_norm_eps": 0.02,
                "max_position_embeddings": 512, "hidden_act": "gelu_pytorch_tanh",
                "hidden_activation": "gelu_pytorch_tanh", "attention_bias": False, "cache_implementation": "hybrid",
                "tie_word_embeddings": True, "bos_token_id": 2, "eos_token_id": 1, "pad_token_id": 0,
            },
            style="old", eos=["<eos>"], embed_std=0.2, norm_mean=0.6, norm_spread=0.5,
            overlooked={
                "sliding_window": 4096, "attn_logit_softcapping": None, "final_logit_softcapping": None,
                "query_pre_attn_scalar": 20, "rope_theta": 10000.0, "rms_norm_eps": 1e-6, "hidden_activation": "gelu",
                "layer_types": ["full_attention", "sliding_attention"] * 2 + ["full_attention"],
            },
        ),
        Family(
            "gemma3", "gemma3",
            _SMALL | {
                "architectures": ["Gemma3ForCausalLM"], "model_type": "gemma3_text", "hidden_size": 40,
                "intermediate_size": 48, "num_hidden_layers": 6, "num_attention_heads": 4, "num_key_value_heads": 2,
                "head_dim": 24, "query_pre_attn_scalar": 18, "sliding_window": 7, "sliding_window_pattern": 3,
                "attn_logit_softcapping": None, "final_logit_softcapping": None, "rope_theta": 50000.0,
                "rope_local_base_freq": 300.0, "rope_scaling": {"factor": 3.0, "rope_type": "linear"},
                "rms_norm_eps": 0.015, "max_position_embeddings": 512, "hidden_activation": "gelu_pytorch_tanh",
                "attention_bias": False, "tie_word_embeddings": True, "bos_token_id": 2, "eos_token_id": [1, 6],
                "pad_token_id": 0,
            },
            style="new", eos=["<eos>", "<end_of_turn>"], embed_std=0.22, norm_mean=0.6, norm_spread=0.5, cav_layer=4,
            cav_dtype="float64",
            generation={"do_sample": True, "top_k": 64, "top_p": 0.95, "cache_implementation": "hybrid"},
            overlooked={
                "sliding_window": 4096, "sliding_window_pattern": 6, "query_pre_attn_scalar": 24, "rope_theta": 1e6,
                "rope_local_base_freq": 10000.0, "rope_scaling": None, "rms_norm_eps": 1e-6, "hidden_activation": "gelu",
            },
        ),
        Family(
            "llama", "llama2",
            _SMALL | {
                "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 48,
                "intermediate_size": 64, "num_hidden_layers": 4, "num_attention_heads": 6, "num_key_value_heads": 3,
                "head_dim": 10, "rope_theta": 700.0, "rope_scaling": None, "rms_norm_eps": 3e-3,
                "max_position_embeddings": 256, "hidden_act": "silu", "attention_bias": True, "mlp_bias": True,
                "pretraining_tp": 1, "tie_word_embeddings": False, "bos_token_id": 1, "eos_token_id": 2,
            },
            style="old", eos=["</s>"], cav_layer=1,
            overlooked={"rope_theta": 10000.0, "rms_norm_eps": 1e-6, "hidden_act": "gelu"},
        ),
        Family(
            "llama_rope3", "llama3",
            _SMALL | {
                "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 48,
                "intermediate_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2,
                "head_dim": 16, "rope_theta": 500000.0,
                "rope_scaling": {
                    "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                    "original_max_position_embeddings": 64, "rope_type": "llama3",
                },
                "rms_norm_eps": 5e-3, "max_position_embeddings": 512, "hidden_act": "silu", "attention_bias": False,
                "mlp_bias": False, "pretraining_tp": 1, "tie_word_embeddings": True,
                "bos_token_id": "<|begin_of_text|>", "eos_token_id": ["<|end_of_text|>", "<|eot_id|>"],
            },
            style="new", eos=["<|end_of_text|>", "<|eot_id|>"], cav_dtype="float64",
            generation={"do_sample": True, "temperature": 0.6, "top_p": 0.9},
            overlooked={"rope_scaling": None, "rope_theta": 10000.0, "rms_norm_eps": 1e-6},
        ),
        Family(
            "smollm2", "smollm2",
            # No head_dim here, as in SmolLM2's own config: it is hidden_size / num_attention_heads.
            _SMALL | {
                "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 48,
                "intermediate_size": 56, "num_hidden_layers": 5, "num_attention_heads": 6, "num_key_value_heads": 2,
                "rope_theta": 100000.0, "rope_scaling": None, "rope_interleaved": False, "rms_norm_eps": 5e-3,
                "max_position_embeddings": 512, "hidden_act": "silu", "attention_bias": False, "mlp_bias": False,
                "pretraining_tp": 1, "tie_word_embeddings": True, "is_llama_config": True,
                "transformers.js_config": {"kv_cache_dtype": {"fp16": "float16"}}, "bos_token_id": 1,
                "eos_token_id": 2, "pad_token_id": 2,
            },
            style="old", eos=["<|im_end|>"],
            overlooked={"rope_theta": 10000.0, "rms_norm_eps": 1e-6},
        ),
        Family(
            "qwen2", "qwen2",
            _SMALL | {
                "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_size": 48,
                "intermediate_size": 52, "num_hidden_layers": 5, "num_attention_heads": 4, "num_key_value_heads": 2,
                "rope_theta": 33000.0, "rms_norm_eps": 4e-3, "max_position_embeddings": 512, "hidden_act": "silu",
                "use_sliding_window": True, "sliding_window": 8, "max_window_layers": 2, "use_mrope": False,
                "tie_word_embeddings": True, "bos_token_id": "<|endoftext|>", "eos_token_id": "<|im_end|>",
            },
            style="old", eos=["<|im_end|>"],
            overlooked={
                "use_sliding_window": False, "sliding_window": 4096, "max_window_layers": 0, "rope_theta": 10000.0,
                "rms_norm_eps": 1e-6,
            },
            generation={
                "do_sample": True, "temperature": 0.8, "top_k": 20, "top_p": 0.9, "repetition_penalty": 1.1,
                "pad_token_id": "<|endoftext|>", "eos_token_id": ["<|im_end|>", "<|endoftext|>"],
            },
        ),
        Family(
            "qwen3", "qwen3",
            _SMALL | {
                "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "hidden_size": 48,
                "intermediate_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2,
                "head_dim": 20, "rope_theta": 20000.0, "rope_scaling": None, "rms_norm_eps": 2e-3,
                "max_position_embeddings": 512, "hidden_act": "silu", "attention_bias": False,
                "use_sliding_window": False, "sliding_window": None, "max_window_layers": 4,
                "tie_word_embeddings": False, "bos_token_id": "<|endoftext|>", "eos_token_id": "<|im_end|>",
            },
            style="new", eos=["<|im_end|>"], shards=True, cav_dtype="float64", cav_layer=1,
            overlooked={"rope_theta": 1e6, "rms_norm_eps": 1e-6},
        ),
    ]
}
