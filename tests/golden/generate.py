"""Writes the golden fixtures. See README.md.

    python generate.py                     # everything
    python generate.py gemma2 qwen3        # some families
    python generate.py sae_formats cavs cav_training hostile
"""

import argparse
import os
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch

FIXTURES = Path(__file__).parent / "fixtures"


def main():
    from families import FAMILIES

    extras = ["sae_formats", "cavs", "cav_training", "hostile"]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", nargs="*", choices=[[], *FAMILIES, *extras], default=[])
    parser.add_argument("--out", type=Path, default=FIXTURES)
    arguments = parser.parse_args()
    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    for name in arguments.what or [*FAMILIES, *extras]:
        if name in FAMILIES:
            import family_fixture

            family_fixture.build(FAMILIES[name], arguments.out)
        elif name == "sae_formats":
            import sae_formats

            sae_formats.build(arguments.out / name)
        elif name == "cavs":
            import cav_formats

            cav_formats.build(arguments.out / name)
        elif name == "cav_training":
            import cav_training

            cav_training.build(arguments.out / name)
        else:
            import hostile

            hostile.build(arguments.out / name)


if __name__ == "__main__":
    main()
