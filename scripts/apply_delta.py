"""Add a weight delta to its base: `longvlm weights apply-delta` under the name of the reference's script.

python scripts/apply_delta.py --base LLAMA_7B --target LLAVA_7B --delta LLAVA_DELTA_7B
"""

from __future__ import annotations

import sys

from longvlm.cli import main

if __name__ == "__main__":
    sys.argv[1:1] = ["weights", "apply-delta"]
    main()
