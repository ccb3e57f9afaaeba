"""A shape in; a model with random weights, a tokenizer and problems to run `benchmarks.rollout` on, out.

python -m benchmarks.random_model FOLDER [--hidden-size 512] [--layers 8]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from benchmarks.tiny_models import make_model

HEAD_DIM = 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--hidden-size", type=int, default=512)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--problems", type=int, default=64)
    args = parser.parse_args()
    heads = args.hidden_size // HEAD_DIM
    make_model(
        args.folder / "model",
        hidden_size=args.hidden_size,
        intermediate_size=3 * args.hidden_size,
        num_hidden_layers=args.layers,
        num_attention_heads=heads,
        num_key_value_heads=max(heads // 4, 1),
    )
    rows = [{"problem": f"What is {a} plus {7 * a}?", "answer": str(8 * a)} for a in range(args.problems)]
    (args.folder / "problems.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    print(f"{args.folder / 'model'}, {args.folder / 'problems.jsonl'}")


if __name__ == "__main__":
    main()
