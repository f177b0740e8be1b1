"""Zero-shot accuracy of a model on IconShift: ID, every shift, unseen classes, and context recognition by style.

python benchmarks/iconclip/evaluate.py [--model iconclip] [--data iconshift]
"""

from __future__ import annotations

import argparse

from surefoot.data import load
from surefoot.methods import get
from surefoot.model import load_model
from surefoot.protocols import Judge
from surefoot.train import start_state


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="iconclip")
    parser.add_argument("--data", default="iconshift")
    given = parser.parse_args()
    model, dataset = load_model(given.model), load(given.data)
    start = start_state(model, dataset)
    outcome = Judge(model, dataset, start).judge(get("zero_shot"), start)
    for name, value in outcome.accuracy.items():
        count = len(outcome.correct[name]) if name in outcome.correct else ""
        print(f"{name:28s} {100 * value:5.1f}  {count}")


if __name__ == "__main__":
    main()
