"""The maintainer's command: python -m tools COMMAND --help says what each one does."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from helpers.lessons import find, notebooks, read
from helpers.records import EXPERIMENTS, ROOT, write_atomic
from tools import adopt, check, errata, pages, publish, readme, run, slides, student
from tools.canonical import to_text


def _run(options: argparse.Namespace) -> int:
    return 0 if all(run.run(path) for path in _lectures(options.lectures)) else 1


def _check(options: argparse.Namespace) -> int:
    paths = _lectures(options.lectures)
    print(pages.table({path.stem: pages.measure(read(path)) for path in paths}))
    found = [f"{path.stem}: {sentence}" for path in paths for sentence in check.check(path)]
    print("\n".join(found) or "no problems")
    return 1 if found else 0


def _slides(options: argparse.Namespace) -> int:
    for path in _lectures(options.lectures):
        notebook = read(path)
        slides.add_breaks(notebook)
        write_atomic(path, to_text(notebook).encode())
        print(f"{path.stem}: {len(slides.deck(notebook))} slides")
    return 0


def _student(options: argparse.Namespace) -> int:
    print(f"{len(student.write_student_edition(options.folder))} lectures are in {options.folder}")
    return 0


def _publish(options: argparse.Namespace) -> int:
    changed = publish.publish(options.address)
    print("\n".join(str(path.relative_to(ROOT)) for path in changed) or "nothing to change")
    return 0


def _readme(options: argparse.Namespace) -> int:
    table, problems = readme.results(ROOT)
    for problem in problems:
        print(f"data/reference: {problem}", file=sys.stderr)
    path = ROOT / "README.md"
    return _renew(path, readme.updated(path.read_text(encoding="utf-8"), table), options)


def _errata(options: argparse.Namespace) -> int:
    return _renew(errata.PAGE, errata.page(errata.examined()), options)


def _adopt(options: argparse.Namespace) -> int:
    for path in _lectures(options.lectures):
        by_experiment = (EXPERIMENTS / f"{path.stem}.json").exists()
        done = (adopt.adopt_experiment if by_experiment else adopt.adopt)(path.stem)
        print(f"{path.stem}: {'; '.join(done)}")
    print("now: python -m tools readme")
    return 0


def _export(options: argparse.Namespace) -> int:
    from tools import export  # needs torch, which takes its time

    export.export(options.folder)
    print(f"the benchmark is in {options.folder}")
    return 0


def _lectures(names: list[str]) -> list[Path]:
    return [find(name) for name in names] or notebooks()


def _renew(path: Path, text: str, options: argparse.Namespace) -> int:
    """Write `text` to `path`, or with --check only say whether it differs."""
    name = path.relative_to(ROOT)
    if path.exists() and path.read_bytes().decode() == text:
        print(f"{name} is up to date")
        return 0
    if options.check:
        print(f"{name} is stale: run python -m tools {options.command}", file=sys.stderr)
        return 1
    write_atomic(path, text.encode())
    print(f"{name} was written")
    return 0


# Each command with what it does, and its argument: "lectures*" none, one or several of them,
# "lectures+" at least one, "check" the flag of that name, else the name of the one argument.
COMMANDS: dict[str, tuple[Callable[[argparse.Namespace], int], str, str]] = {
    "run": (_run, "lectures+", "execute lectures from top to bottom and write them back"),
    "check": (_check, "lectures*", "print the measure of the pages, and the rules they break"),
    "slides": (_slides, "lectures*", "break the slides that have become too full"),
    "student": (_student, "folder", "write the course without its solutions into a new folder"),
    "publish": (_publish, "address", "stamp https://github.com/OWNER/REPOSITORY into the course"),
    "readme": (_readme, "check", "renew the README's table of results from data/reference"),
    "errata": (_errata, "check", "run tests/claims and renew data/errata.md"),
    "adopt": (
        _adopt,
        "lectures+",
        "renew the committed records and weights from experiments or runs/",
    ),
    "export": (_export, "folder", "write the benchmark as PNG and COCO JSON into a new folder"),
}


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(prog="python -m tools", description="What a maintainer calls.")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (_, argument, text) in COMMANDS.items():
        command = commands.add_parser(name, help=text, description=text)
        if argument == "check":
            command.add_argument(
                "--check", action="store_true", help="only say whether it is stale"
            )
        elif argument.startswith("lectures"):
            what = "a number or a name, such as 05 or 05_yolo"
            what += "" if argument[-1] == "+" else "; by default all lectures"
            command.add_argument("lectures", nargs=argument[-1], metavar="LECTURE", help=what)
        else:
            command.add_argument(argument, metavar=argument.upper())
    return top


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit status: 0 good, 1 something is not, 2 usage."""
    options = parser().parse_args(arguments)
    try:
        return COMMANDS[options.command][0](options)
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
