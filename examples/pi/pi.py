"""Estimates pi by throwing darts at a square: the smallest experiment that leaves something to look at.

Writes two files into the folder it runs in: `result.json`, the estimate and how far off it is, and `convergence.csv`,
how the estimate came closer, ready to plot. The same samples and seed give the same bytes on every machine.
Needs nothing but Python 3.6 or newer.
"""

import argparse
import csv
import json
import math
import random

#: Rows of convergence.csv: one after each hundredth of the samples.
ROWS = 100


def main():
    """Throw, write both files, print the estimate."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=1000000, help="darts to throw (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="seed of the throws (default: %(default)s)")
    options = parser.parse_args()
    if options.samples < 1:
        parser.error("--samples must be at least 1")

    rng = random.Random(options.seed)
    inside = 0
    estimate = 0.0
    step = max(1, options.samples // ROWS)
    with open("convergence.csv", "w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["samples", "estimate", "error"])
        for thrown in range(1, options.samples + 1):
            x = rng.random()
            y = rng.random()
            inside += x * x + y * y <= 1.0
            if thrown % step == 0 or thrown == options.samples:
                estimate = 4.0 * inside / thrown
                table.writerow([thrown, f"{estimate:.6f}", f"{abs(estimate - math.pi):.6f}"])

    # What chance alone explains: one standard deviation of the estimate.
    deviation = 4.0 * math.sqrt(math.pi / 4 * (1 - math.pi / 4) / options.samples)
    with open("result.json", "w") as file:
        json.dump(
            {
                "samples": options.samples,
                "seed": options.seed,
                "estimate": estimate,
                "error": abs(estimate - math.pi),
                "standard_deviation": deviation,
            },
            file,
            indent=2,
        )
        file.write("\n")
    print(
        f"pi is about {estimate:.6f} (off by {abs(estimate - math.pi):.6f}, chance explains {deviation:.6f})"
    )


if __name__ == "__main__":
    main()
