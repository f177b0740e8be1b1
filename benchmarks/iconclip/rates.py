"""ID validation accuracy on IconShift by learning rate and length, for the choice in recipes/iconshift.toml.

    python benchmarks/iconclip/rates.py

Only the train and val splits are read; no test set and no shift is opened.
"""

from __future__ import annotations

from surefoot.data import Dataset, Images, load
from surefoot.methods import get
from surefoot.model import load_model
from surefoot.protocols import Judge
from surefoot.train import Training, fit, part, start_state

GRID = ((1e-4, 6), (3e-4, 6), (6e-4, 6), (1e-3, 6), (3e-4, 10))


def main() -> None:
    whole = load("iconshift")
    model = load_model("iconclip", precision="bf16")
    data = Dataset(whole.root, "id", whole.class_names, {name: whole.split(name) for name in ("train", "val")}, whole.templates)
    start = start_state(model, data)
    judge, images = Judge(model, data, start), Images(data.split("train").paths, model.preprocess_train, random=True)
    for learning_rate, epochs in GRID:
        for method in ("tp_ft", "flyp"):
            model.load_weights(part(start, "model"))
            training = Training(epochs=epochs, batch_size=128, learning_rate=learning_rate)
            end = fit(get(method), model, data, training, start=start, images=images).state
            accuracy = judge.judge(get(method), end).accuracy["val"]
            print(f"{method:6s} learning rate {learning_rate:.0e}, {epochs:2d} epochs: {100 * accuracy:.1f}", flush=True)


if __name__ == "__main__":
    main()
