"""Trains a small neural network on generated data, in plain Python: an experiment with parameters, metrics and a checkpoint.

The data are two interleaved spirals, made from the seed. Writes into the folder it runs in:

    metrics.csv      loss and accuracy after each epoch, ready to plot
    metrics.json     the last row, with the parameters it came from
    checkpoint.json  all that is needed to go on

Each is replaced in one step after each epoch, so a reader never meets half a file.

A run that was cut short goes on with `--resume checkpoint.json` and then writes exactly the numbers that a run in one go
would have written: the checkpoint holds the weights, the momentum, the generator's state and the rows so far.
Needs nothing but Python 3.6 or newer.
"""

# A host may have a Python as old as 3.6, where zip has no `strict`.
# ruff: noqa: B905

import argparse
import csv
import io
import json
import math
import os
import random
import sys

#: Part of the checkpoint's format; another one is refused.
FORMAT = 1
POINTS = 240
MOMENTUM = 0.9
#: What a checkpoint must have in common with the run that goes on from it.
FIXED = ("lr", "width", "seed")


def spirals(seed):
    """Return the training and the test points of two noisy spirals, each (x, y, label)."""
    rng = random.Random(seed)
    points = []
    for index in range(POINTS):
        label = index % 2
        radius = (index + 1) / POINTS
        angle = 7.0 * radius + math.pi * label
        x = radius * math.cos(angle) + rng.gauss(0.0, 0.03)
        y = radius * math.sin(angle) + rng.gauss(0.0, 0.03)
        points.append((x, y, label))
    rng.shuffle(points)
    return points[: POINTS * 3 // 4], points[POINTS * 3 // 4 :]


def new_weights(width, rng):
    """Return rows of (x, y, bias, out) for each hidden unit, and the bias of the output last."""
    spreads = (2.0, 2.0, 1.0, 0.5)
    return [[rng.gauss(0.0, spread) for spread in spreads] for _ in range(width)] + [[0.0]]


def forward(weights, x, y):
    """Return the hidden units' values and the probability of label 1."""
    hidden = [math.tanh(unit[0] * x + unit[1] * y + unit[2]) for unit in weights[:-1]]
    total = weights[-1][0] + sum(unit[3] * value for unit, value in zip(weights, hidden))
    return hidden, 1.0 / (1.0 + math.exp(-max(-30.0, min(30.0, total))))


def learn(weights, speed, point, lr):
    """Move the weights one step downhill for one point; return its loss before the step."""
    x, y, label = point
    hidden, probability = forward(weights, x, y)
    slope = probability - label
    for unit, pace, value in zip(weights, speed, hidden):
        back = slope * unit[3] * (1.0 - value * value)
        for place, gradient in enumerate((back * x, back * y, back, slope * value)):
            pace[place] = MOMENTUM * pace[place] - lr * gradient
            unit[place] += pace[place]
    speed[-1][0] = MOMENTUM * speed[-1][0] - lr * slope
    weights[-1][0] += speed[-1][0]
    return -math.log(max(1e-12, probability if label else 1.0 - probability))


def accuracy(weights, points):
    """Return the share of points on the right side."""
    return sum((forward(weights, x, y)[1] > 0.5) == bool(label) for x, y, label in points) / len(points)


def replace_file(name, text):
    """Write a file so that whoever looks finds the old one or the new one, whole, whenever we are killed."""
    temporary = name + ".new"
    with open(temporary, "w", newline="") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, name)


def load(path, options):
    """Return the state in a checkpoint; end the program with a message when it does not belong to this run."""
    try:
        with open(path) as file:
            state = json.load(file)
    except (OSError, ValueError) as error:
        sys.exit(f"train.py: cannot go on from {path}: {error}")
    if state.get("format") != FORMAT:
        sys.exit(f"train.py: {path} is no checkpoint of this program")
    for name in FIXED:
        if state[name] != getattr(options, name):
            sys.exit(f"train.py: {path} was made with --{name} {state[name]}, not {getattr(options, name)}")
    return state


def fresh(options):
    """Return the state before the first epoch."""
    rng = random.Random(options.seed + 1)
    weights = new_weights(options.width, rng)
    return {
        "format": FORMAT,
        "lr": options.lr,
        "width": options.width,
        "seed": options.seed,
        "weights": weights,
        "speed": [[0.0] * len(unit) for unit in weights],
        "random": rng.getstate(),
        "rows": [],
    }


def write_metrics(rows, options):
    """Write metrics.csv and metrics.json from the rows so far."""
    text = io.StringIO()
    table = csv.writer(text)
    table.writerow(["epoch", "loss", "train_accuracy", "test_accuracy"])
    table.writerows(rows)
    replace_file("metrics.csv", text.getvalue())
    epoch, loss, train, test = rows[-1]
    parameters = {name: getattr(options, name) for name in FIXED}
    record = dict(parameters, epochs=epoch, loss=loss, train_accuracy=train, test_accuracy=test)
    replace_file("metrics.json", json.dumps(record, indent=2) + "\n")


def main():
    """Train for as many epochs as are left, leaving a checkpoint after each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lr", type=float, default=0.02, help="learning rate (default: %(default)s)")
    parser.add_argument("--width", type=int, default=12, help="hidden units (default: %(default)s)")
    parser.add_argument("--epochs", type=int, default=60, help="epochs in all (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="of data and weights (default: %(default)s)")
    parser.add_argument("--resume", metavar="CHECKPOINT", help="go on from here, up to --epochs in all")
    options = parser.parse_args()
    if options.epochs < 1 or options.width < 1 or not options.lr > 0:
        parser.error("--epochs, --width and --lr must be positive")

    train, test = spirals(options.seed)
    state = load(options.resume, options) if options.resume else fresh(options)
    weights, speed, rows = state["weights"], state["speed"], state["rows"]
    if len(rows) > options.epochs:
        sys.exit(
            f"train.py: {options.resume} has {len(rows)} epochs already, more than --epochs {options.epochs}"
        )
    version, words, gauss_next = state["random"]
    rng = random.Random()
    rng.setstate((version, tuple(words), gauss_next))

    if rows:
        # Whatever is left to do, the folder we run in ends up with the whole table.
        write_metrics(rows, options)
    for epoch in range(len(rows) + 1, options.epochs + 1):
        # Sorted first: the order then depends on the generator alone, not on epochs before the checkpoint.
        order = sorted(train)
        rng.shuffle(order)
        loss = sum(learn(weights, speed, point, options.lr) for point in order) / len(order)
        rows.append([epoch, loss, accuracy(weights, train), accuracy(weights, test)])
        state["random"] = rng.getstate()
        # The checkpoint goes last: the metrics may then be an epoch ahead of it, never behind.
        write_metrics(rows, options)
        replace_file("checkpoint.json", json.dumps(state))
        if epoch % 10 == 0 or epoch == options.epochs:
            print(f"epoch {epoch:3d}  loss {loss:.4f}  test accuracy {rows[-1][3]:.3f}", flush=True)


if __name__ == "__main__":
    main()
