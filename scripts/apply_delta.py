"""Add a weight delta to its base: the reference's command, carried out by `longvlm weights apply-delta`.

    python scripts/apply_delta.py --base LLAMA_7B --target LLAVA_7B --delta LLAVA_DELTA_7B

Any option of `longvlm weights apply-delta` may follow, as `--max-shard-size 2GB`.
"""

from __future__ import annotations

import argparse
import sys

from longvlm.cli import main

parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
)
parser.add_argument("--base", "--base-model-path", required=True, help="folder or hub id of the base (LLaMA)")
parser.add_argument("--target", "--target-model-path", required=True, help="the folder to write the sum into")
parser.add_argument("--delta", "--delta-path", required=True, help="folder or hub id of the delta")
arguments, others = parser.parse_known_args()

places = ["--base", arguments.base, "--target", arguments.target, "--delta", arguments.delta]
sys.argv = ["longvlm", "weights", "apply-delta", *places, *others]
main()
