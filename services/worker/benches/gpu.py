"""Decoding on an NVIDIA GPU, beside Hugging Face transformers with a hook.

    python services/worker/benches/gpu.py target/release/examples/forward_speed

makes a model of gemma-2-2b's shape with random weights in bf16, reads it with
`forward_speed` (built with `--features cuda`) and with transformers (eager
attention, one feature clamped in a forward hook), and prints tokens per second,
and which share of the memory's measured bandwidth reading the weights takes.
Needs torch, transformers and safetensors.
"""

import argparse
import json
import pathlib
import statistics
import subprocess
import tempfile
import time

import torch
from safetensors.torch import save_file
from transformers import Gemma2Config, Gemma2ForCausalLM

CONFIG = {
    "architectures": ["Gemma2ForCausalLM"],
    "model_type": "gemma2",
    "vocab_size": 256000,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "sliding_window": 4096,
    "query_pre_attn_scalar": 256,
    "attn_logit_softcapping": 50.0,
    "final_logit_softcapping": 30.0,
    "tie_word_embeddings": True,
    "bos_token_id": 2,
    "eos_token_id": 1,
    "pad_token_id": 0,
    "torch_dtype": "bfloat16",
}


def weights() -> dict[str, torch.Tensor]:
    width, inner, heads = CONFIG["hidden_size"], CONFIG["intermediate_size"], 256
    q, kv = CONFIG["num_attention_heads"] * heads, CONFIG["num_key_value_heads"] * heads
    generator = torch.Generator("cuda").manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        values = torch.randn(*shape, generator=generator, device="cuda", dtype=torch.bfloat16)
        return (values * 0.02).cpu()

    def norm() -> torch.Tensor:
        return torch.zeros(width, dtype=torch.bfloat16)

    tensors = {"model.embed_tokens.weight": random(CONFIG["vocab_size"], width), "model.norm.weight": norm()}
    for layer in range(CONFIG["num_hidden_layers"]):
        at = f"model.layers.{layer}."
        for name in ["input", "post_attention", "pre_feedforward", "post_feedforward"]:
            tensors[f"{at}{name}_layernorm.weight"] = norm()
        tensors[f"{at}self_attn.q_proj.weight"] = random(q, width)
        tensors[f"{at}self_attn.k_proj.weight"] = random(kv, width)
        tensors[f"{at}self_attn.v_proj.weight"] = random(kv, width)
        tensors[f"{at}self_attn.o_proj.weight"] = random(width, q)
        tensors[f"{at}mlp.gate_proj.weight"] = random(inner, width)
        tensors[f"{at}mlp.up_proj.weight"] = random(inner, width)
        tensors[f"{at}mlp.down_proj.weight"] = random(width, inner)
    return tensors


def bandwidth() -> tuple[float, float]:
    """GB/s of a copy, counting what is read and written, and of a sum."""
    source = torch.randn(1 << 30, device="cuda", dtype=torch.bfloat16)
    target = torch.empty_like(source)

    def seconds(work) -> float:
        times = []
        for _ in range(12):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            work()
            end.record()
            torch.cuda.synchronize()
            times.append(start.elapsed_time(end) / 1e3)
        return statistics.median(times[2:])

    size = source.numel() * 2 / 1e9
    return 2 * size / seconds(lambda: target.copy_(source)), size / seconds(lambda: source.max())


def transformers_rate(tensors: dict[str, torch.Tensor], streams: int, steps: int) -> float:
    """Tokens per second of `generate`'s loop with a feature clamped at layer 13."""
    config = Gemma2Config(**{k: v for k, v in CONFIG.items() if k != "torch_dtype"})
    config._attn_implementation = "eager"
    with torch.device("meta"):
        model = Gemma2ForCausalLM(config)
    model = model.to_empty(device="cuda").to(torch.bfloat16)
    model.load_state_dict(tensors, strict=False)
    model.tie_weights()
    # What `to_empty` left without values is no weight, and is made anew.
    model.model.rotary_emb = type(model.model.rotary_emb)(config).to("cuda")
    width = config.hidden_size
    encoder, decoder = torch.randn(2, width, device="cuda", dtype=torch.bfloat16)

    def clamp(_module, _inputs, output):
        x = output[0] if isinstance(output, tuple) else output
        pre = x @ encoder
        f = torch.where(pre > 1.0, pre, 0.0)
        x = x + ((50.0 - f)[..., None] * decoder).to(x.dtype)
        return (x, *output[1:]) if isinstance(output, tuple) else x

    model.model.layers[13].register_forward_hook(clamp)
    ids = torch.arange(32, device="cuda").repeat(streams, 1) * 7 + 1000
    with torch.inference_mode():
        for n in (4, steps):
            torch.cuda.synchronize()
            out = model(ids, use_cache=True)
            torch.cuda.synchronize()
            began = time.perf_counter()
            for _ in range(n):
                token = out.logits[:, -1:].argmax(-1)
                out = model(token, past_key_values=out.past_key_values, use_cache=True)
            torch.cuda.synchronize()
    return streams * steps / (time.perf_counter() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("forward_speed", help="the example's binary")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--without-transformers", action="store_true")
    parser.add_argument("--folder", help="where the model is kept, some 5 GB")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = pathlib.Path(options.folder or temporary)
        folder.mkdir(parents=True, exist_ok=True)
        tensors = weights()
        save_file(tensors, folder / "model.safetensors")
        (folder / "config.json").write_text(json.dumps(CONFIG))
        bytes_read = sum(t.numel() * 2 for t in tensors.values())
        copy, read = bandwidth()
        print(f"{torch.cuda.get_device_name()}: copies {copy:.0f} GB/s, reads {read:.0f} GB/s")
        print(f"weights: {bytes_read / 1e9:.2f} GB, at that rate {read * 1e9 / bytes_read:.0f} steps/s")
        if not options.without_transformers:
            for streams in (1, 8):
                rate = transformers_rate(tensors, streams, 32)
                print(f"transformers, eager, {streams} with a clamp: {rate:.1f} tokens/s")
                torch.cuda.empty_cache()
        torch.cuda.empty_cache()
        command = [options.forward_speed, folder, str(options.repetitions), "", "cuda"]
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        for line in map(json.loads, output.splitlines()):
            streams = next((int(part) for part in line["name"].split("_") if part.isdigit()), 0)
            share = ""
            if line["name"].startswith("decode"):
                share = f", {line['median'] / streams * bytes_read / read / 1e9:.0%} of the bandwidth"
            print(f"{line['name']}: {line['median']} ({line['min']} to {line['max']}){share}")


if __name__ == "__main__":
    main()
