"""Learning rates of an experiment's variants, compared on the validation images.

python -m experiments.rates 04 --variants main cross-entropy --rates 0.002 0.004 --steps 700
"""

import argparse
from collections.abc import Sequence
from types import ModuleType

from experiments.runner import load
from helpers.evaluation import coco_ap
from helpers.shapes import CLASSES, benchmark


def search(module: ModuleType, variants: Sequence[str], rates: Sequence[float], seed: int) -> None:
    """Train each variant with each learning rate; print the AP on the validation images."""
    module.lesson.test_set = data = benchmark("val")
    for variant in variants:
        for rate in rates:
            outcome = module.train(seed, **module.VARIANTS[variant] | {"rate": rate})
            targets = outcome.targets or data.targets
            most = max(int(label) for target in targets for label in target["labels"])
            ap = coco_ap(outcome.detections, targets, max(len(CLASSES), 1 + most))["AP"]
            print(f"{variant}, rate {rate:g}: AP {ap:.3f} after {outcome.steps} steps", flush=True)


def main(words: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="experiments.rates", description=__doc__.split("\n")[0])
    parser.add_argument("lecture", help="a number or a name, such as 04")
    parser.add_argument("--variants", nargs="+", default=["main"])
    parser.add_argument("--rates", type=float, nargs="+", default=[0.001, 0.002, 0.004])
    parser.add_argument("--steps", type=int, help="by default those of the lecture")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(words)
    module = load(options.lecture)
    module.STEPS = options.steps or module.STEPS
    search(module, options.variants, options.rates, options.seed)


if __name__ == "__main__":
    main()
