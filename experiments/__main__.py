"""The experiments' command: python -m experiments 05 trains what its record lacks."""

import argparse
import datetime
import sys

from experiments import runner


def parser() -> argparse.ArgumentParser:
    """The command line."""
    text = "Train what data/experiments lacks, one row at a time; killed, the next call goes on."
    command = argparse.ArgumentParser(prog="python -m experiments", description=text)
    what = "a number or a name, such as 05 or 05_yolo; by default all"
    command.add_argument("lectures", nargs="*", metavar="LECTURE", help=what)
    command.add_argument("--variants", nargs="+", default=[], metavar="NAME", help="only these")
    what = "by default 0 1 2"
    command.add_argument("--seeds", nargs="+", type=int, default=list(runner.SEEDS), help=what)
    what = "say what there is and what is missing, and train nothing"
    command.add_argument("--list", action="store_true", help=what)
    command.add_argument(
        "--again", action="store_true", help="train even what is recorded, record nothing"
    )
    what = "train one recorded row again, another one each week, and compare it with the record"
    command.add_argument("--compare", action="store_true", help=what)
    return command


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit status: 0 good, 1 something is not, 2 usage."""
    options = parser().parse_args(arguments)
    try:
        for name in options.lectures or runner.names():
            module = runner.load(name)
            if options.list:
                _list(module, options)
            elif options.again:
                _again(module, options)
            elif options.compare:
                week = datetime.date.today().isocalendar().week
                print(runner.compare(module, week))
            else:
                made = runner.run(module, options.variants, options.seeds)
                print(f"{module.LECTURE}: {made} rows made")
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def _again(module, options: argparse.Namespace) -> None:
    for variant, seed in runner.missing(module, [], options.variants, options.seeds):
        row = runner.measured(module, variant, seed, runner.train(module, variant, seed))
        values = ", ".join(f"{key} {row[key]:.3f}" for key in ("AP", "AP50", "AP75"))
        print(
            f"{variant}, seed {seed}: {values}; {row['steps']} steps, {row['train_seconds']:.0f} s"
        )


def _list(module, options: argparse.Namespace) -> None:
    rows = runner.recorded(module)
    todo = runner.missing(module, rows, options.variants, options.seeds)
    for variant in module.VARIANTS:
        aps = [f"{row['AP']:.3f}" for row in rows if row["variant"] == variant]
        seeds = [str(seed) for name, seed in todo if name == variant]
        state = f"missing: seeds {', '.join(seeds)}" if seeds else "complete"
        print(f"{module.LECTURE}  {variant:30} {' '.join(aps) or '–':22} {state}")


if __name__ == "__main__":
    sys.exit(main())
