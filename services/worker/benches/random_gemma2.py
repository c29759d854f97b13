#!/usr/bin/env python3
"""A GGUF file of gemma-2-2b's shape with random weights, for measuring speed alone.

    pip install gguf
    python services/worker/benches/random_gemma2.py random-2b.gguf

Matrices are Q4_K, the embedding, which is the output head too, Q6_K. There is no
vocabulary: `compare.py` needs none, the worker does and refuses the file.
"""
import sys

import gguf
import numpy as np

LAYERS, WIDTH, HEADS, KV_HEADS, HEAD, MLP, VOCABULARY = 26, 2304, 8, 4, 256, 9216, 256_000
ROWS_AT_ONCE = 4096


def q4k(random, blocks):
    """d and dmin, 12 bytes of scales, 256 × 4 bits (ggml's block_q4_K)."""
    out = random.integers(0, 256, (blocks, 144), np.uint8)
    out[:, :2] = np.float16(1e-4).tobytes()[0], np.float16(1e-4).tobytes()[1]
    out[:, 2:4] = np.float16(7e-4).tobytes()[0], np.float16(7e-4).tobytes()[1]
    return out


def q6k(random, blocks):
    """256 × 4 bits, 256 × 2 bits, 16 scales, d (ggml's block_q6_K)."""
    out = random.integers(0, 256, (blocks, 210), np.uint8)
    out[:, 192:208] %= 16
    out[:, 208:] = np.float16(1e-4).tobytes()[0], np.float16(1e-4).tobytes()[1]
    return out


def main(path):
    random = np.random.default_rng(7)
    writer = gguf.GGUFWriter(path, "gemma2", use_temp_file=True)
    writer.add_name("random weights of gemma-2-2b's shape")
    writer.add_context_length(8192)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(MLP)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_key_length(HEAD)
    writer.add_value_length(HEAD)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_attn_logit_softcapping(50.0)
    writer.add_final_logit_softcapping(30.0)
    writer.add_sliding_window(4096)
    writer.add_vocab_size(VOCABULARY)
    writer.add_tokenizer_model("no_vocab")

    def matrix(name, rows, width, kind, blocks):
        data = np.concatenate(
            [
                blocks(random, min(ROWS_AT_ONCE, rows - row) * width // 256)
                for row in range(0, rows, ROWS_AT_ONCE)
            ]
        )
        writer.add_tensor(f"{name}.weight", data.reshape(rows, -1), raw_dtype=kind)

    def norm(name):
        writer.add_tensor(f"{name}.weight", np.ones(WIDTH, np.float32))

    q4, q6 = gguf.GGMLQuantizationType.Q4_K, gguf.GGMLQuantizationType.Q6_K
    matrix("token_embd", VOCABULARY, WIDTH, q6, q6k)
    norm("output_norm")
    for layer in range(LAYERS):
        block = f"blk.{layer}"
        for name in ("attn_norm", "post_attention_norm", "ffn_norm", "post_ffw_norm"):
            norm(f"{block}.{name}")
        matrix(f"{block}.attn_q", HEADS * HEAD, WIDTH, q4, q4k)
        matrix(f"{block}.attn_k", KV_HEADS * HEAD, WIDTH, q4, q4k)
        matrix(f"{block}.attn_v", KV_HEADS * HEAD, WIDTH, q4, q4k)
        matrix(f"{block}.attn_output", WIDTH, HEADS * HEAD, q4, q4k)
        matrix(f"{block}.ffn_gate", MLP, WIDTH, q4, q4k)
        matrix(f"{block}.ffn_up", MLP, WIDTH, q4, q4k)
        matrix(f"{block}.ffn_down", WIDTH, MLP, q4, q4k)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(sys.argv[1])
