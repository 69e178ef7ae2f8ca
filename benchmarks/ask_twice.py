"""Ask a model two questions on each of several turns and print, as JSON, the seconds to the first token of both."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from longvlm.pipeline import LongVLM


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("video", type=Path)
    parser.add_argument("num_frames", type=int)
    parser.add_argument("repeats", type=int)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    model = LongVLM.from_pretrained(arguments.checkpoint, device=arguments.device)
    index = model.encode(arguments.video, num_frames=arguments.num_frames)

    def ask(question: str) -> float:
        return model.ask(index, question, max_new_tokens=1).timings.prefill_seconds

    first, second = [], []
    ask("What is it about?")  # reads the weights
    for turn in range(arguments.repeats):
        model.ask(None, "And without a video?", max_new_tokens=1)  # takes the place of what was kept
        first.append(ask(f"What happens in part {turn}?"))
        second.append(ask(f"Who is seen in part {turn}?"))
    print(json.dumps({"first": first, "second": second}))


if __name__ == "__main__":
    main()
