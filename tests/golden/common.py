"""What the generator's modules share."""

import json


class TryAnotherSeed(Exception):
    """This seed's random model makes a poor fixture: a near tie, an early end, no visible steering."""


def resid_post(layer):
    """The hook point at the output of a decoder layer."""
    return f"blocks.{layer}.hook_resid_post"


def write_json(path, value):
    path.write_text(json.dumps(value, ensure_ascii=False, indent=1) + "\n")
