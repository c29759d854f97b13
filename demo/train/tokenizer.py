"""The tokenizer: byte-pair encoding in Gemma's form, trained on the corpus.

Spaces become "▁", nothing is put before a text, bytes stand in where no piece fits, <bos> comes from
the post-processor. Merges never cross words, lines or punctuation, so that most words are one token.
"""

import json
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

import corpus

VOCAB_SIZE = 3072
SPECIAL = ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"]
PAD, EOS, BOS, UNK, START_OF_TURN, END_OF_TURN = range(6)
CHAT_TEMPLATE = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}"
    "{% endif %}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if (message['role'] == 'assistant') %}{% set role = 'model' %}{% else %}{% set role = message['role'] %}"
    "{% endif %}{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{'<start_of_turn>model\n'}}{% endif %}"
)


def learn_merges(texts, count):
    """The first `count` byte-pair merges of the texts, as (left, right)."""
    scratch = Tokenizer(models.BPE())
    scratch.normalizer = normalizers.Replace(" ", "▁")
    scratch.pre_tokenizer = pre_tokenizers.Split(Regex(r"▁?[\p{L}']+|\n|▁?[^\p{L}\n▁]|▁"), "isolated")
    trainer = trainers.BpeTrainer(vocab_size=20_000, min_frequency=8, show_progress=False)
    scratch.train_from_iterator(texts, trainer)
    merges = json.loads(scratch.to_str())["model"]["merges"]
    return [tuple(m) if isinstance(m, list) else tuple(m.split(" ")) for m in merges][:count]


def build(texts):
    """A `tokenizers.Tokenizer`. Ids: specials, 256 bytes, characters, merges."""
    characters = sorted({character for text in texts for character in text.replace(" ", "▁")})
    pieces = SPECIAL + [f"<0x{byte:02X}>" for byte in range(256)] + characters
    merges = learn_merges(texts, VOCAB_SIZE - len(pieces))
    pieces = list(dict.fromkeys(pieces + ["".join(merge) for merge in merges]))
    pieces += [f"<unused{i}>" for i in range(VOCAB_SIZE - len(pieces))]
    vocab = {piece: number for number, piece in enumerate(pieces)}
    model = models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", pair="<bos> $A <bos>:1 $B:1", special_tokens=[("<bos>", BOS)]
    )
    return tokenizer


def save(folder, seed=1, n=60_000):
    """Trains on `n` lines of the corpus and writes tokenizer.json and tokenizer_config.json."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    texts = []
    for line in corpus.corpus(seed, n):
        texts += line["turns"] or [line["text"]]
    texts += ["user\n", "model\n"] * 20_000
    tokenizer = build(texts)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "add_bos_token": True, "add_eos_token": False, "bos_token": "<bos>", "eos_token": "<eos>",
        "pad_token": "<pad>", "unk_token": "<unk>", "tokenizer_class": "GemmaTokenizer",
        "clean_up_tokenization_spaces": False, "chat_template": CHAT_TEMPLATE, "model_max_length": 512,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=1) + "\n")
    return tokenizer


def load(folder):
    return Tokenizer.from_file(str(Path(folder) / "tokenizer.json"))


def chat_prompt_ids(tokenizer, prompt, generation_prompt):
    """The token ids of a user's prompt in the chat template, <bos> included."""
    text = corpus.chat_text([prompt]) + ("<start_of_turn>model\n" if generation_prompt else "")
    return [BOS] + tokenizer.encode(text, add_special_tokens=False).ids


if __name__ == "__main__":
    import sys

    made = save(sys.argv[1] if len(sys.argv) > 1 else "../model")
    print(made.encode("<start_of_turn>user\nWrite a haiku.<end_of_turn>\n").tokens)
