#!/usr/bin/env python3
"""Writes the seeds of the targets that read text. Those of `request` are written by
`STEER_UPDATE_SEEDS=1 cargo test --release --workspace request_seeds`; targets that read
files begin from the fixtures in `tests/golden`."""

import json
from pathlib import Path

HERE = Path(__file__).parent
HASH = "ab" * 32

EDITS = [
    "baseball=525", "#1234:ablate", "sae/#7:add=-0.5max", "New York City:scale=0.5",
    "topic: sports:max=1e3", "calm=3", "calm@blocks.2.hook_resid_post=2unit", "calm:ablate",
    "baseball>0.5max", "cav:calm<-2", "baseball>3:once", "\u00fcber \u5bff\u53f8=1", "=", ":::", "#-1=1",
]  # fmt: skip
HOOKS = [
    "blocks.0.hook_resid_pre", "blocks.12.hook_resid_post", "blocks.3.hook_mlp_out",
    "blocks.3.attn.hook_z", "blocks.18446744073709551616.hook_resid_post", "blocks..hook_resid_mid",
]  # fmt: skip
KEYS = [
    f'{{"id":"a","sha256":"{HASH}","scopes":["generate"]}}\n\0Bearer x',
    f'# a comment\n\n{{"id":"b","sha256":"{HASH}","scopes":["admin","registry.read"],'
    '"expires":"2027-01-31T00:00:00Z","requests_per_minute":60,"concurrent_requests":4}\n\0bearer  y',
    '{"id":"","sha256":"0","scopes":[]}\n\0Basic eA==',
]
LABELS = [
    '{"baseball": 1, "law": 2}',
    '{"index": 1, "label": "baseball"}\n{"index": 2, "label": "law", "source": "x"}\n',
    '[{"index": "1", "description": "baseball"}, {"index": 2, "description": null}]',
    '{"index": 3, "label": "a", "candidate": true, "evidence": {"auc": 0.5}}',
]
SETTINGS = [
    "drain-timeout = 7\nmax-streams = 9\nallow-unauthenticated = true\n",
    'model = "m"\nlisten = "127.0.0.1:1"\nmax-stall = 0.5\n[table]\nx = 1\n',
    'api-keys = "keys.jsonl"\nquantize = "q4k"\notlp-endpoint = "http://h:1"\n',
]
TEMPLATES = [
    "{% for m in messages %}{{ m['role'] + ': ' + m['content'] | trim }}{% endfor %}",
    "{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(messages) }}",
    "{% set ns = namespace(n=0) %}{% for i in range(9) %}{% set ns.n = ns.n + i %}{% endfor %}{{ ns.n }}",
    "{{ messages | tojson(indent=2) }}{{ raise_exception('no') }}",
    "{% generation %}{{ bos_token }}{% endgeneration %}{{ 'a' * 3 }}{{ strftime_now('%Y') }}",
]


def main() -> None:
    """Writes a file per seed."""
    fixtures = sorted((HERE.parent / "golden/fixtures").glob("*/model/tokenizer_config.json"))
    templates = TEMPLATES + [json.loads(f.read_text())["chat_template"] for f in fixtures]
    texts = {
        "edit": EDITS, "hook": HOOKS, "keys": KEYS, "labels": LABELS,
        "settings": SETTINGS, "template": templates,
    }  # fmt: skip
    for target, seeds in texts.items():
        folder = HERE / "corpus" / target
        folder.mkdir(parents=True, exist_ok=True)
        for number, seed in enumerate(seeds):
            (folder / f"seed-{number:02}").write_text(seed)


if __name__ == "__main__":
    main()
