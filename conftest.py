"""What pytest needs to run the notebooks: patience, an order, and an honest verdict.

`pytest` alone runs tests/ and then every cell of every notebook, through nbval.
"""

import os
import time
from collections import Counter, defaultdict

# Before anything imports torch: more threads than cores make small models slower, two processes run
# side by side (pyproject.toml), and a CI machine may report cores that it does not give. Set the
# variables yourself to have more.
_threads = max(1, min(2, (os.cpu_count() or 2) // 2))
for _variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_variable, str(_threads))
os.environ.setdefault("LECTURE_QUIET", "1")  # no progress bars: nobody watches

import hypothesis  # noqa: E402
import pytest  # noqa: E402

OUTPUT_TIMEOUT = 600  # seconds; for what hangs, not for a slow machine
SLOWEST = 10
LONGEST = "08_detr.ipynb"  # begun last, it would leave the other process idle for minutes

# The same examples on every run, and no limit per example: a busy machine must not fail a test.
hypothesis.settings.register_profile("lectures", max_examples=50, deadline=None, derandomize=True)
hypothesis.settings.load_profile("lectures")

_start = time.perf_counter()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run tests/, then the longest notebook, then the rest; let a busy machine take its time."""
    items.sort(key=_turn)  # stable: cells stay in order
    for item in items:
        if hasattr(item, "output_timeout"):
            item.output_timeout = OUTPUT_TIMEOUT  # nbval hard-codes 5 s


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_sessionfinish(session: pytest.Session):
    """Fail the session if a cell was xfailed, and print the counts after pytest's own last line.

    After a timeout nbval marks the rest of a notebook as xfailed, which pytest takes for success.
    """
    terminal = session.config.pluginmanager.get_plugin("terminalreporter")
    if terminal is None or session.config.option.collectonly:
        return (yield)
    excused = [
        report.nodeid
        for outcome in ("xfailed", "xpassed")
        for report in terminal.stats.get(outcome, [])
        if _notebook(report.nodeid)
    ]
    if excused and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
    result = yield
    if excused:
        terminal.write_line(f"lectures: {len(excused)} notebook cells were xfailed: a failure")
    terminal.write_line(_summary(terminal.stats))
    return result


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the seconds per notebook and the slowest cells."""
    per_notebook: dict[str, float] = defaultdict(float)
    per_cell: Counter[str] = Counter()
    for reports in terminalreporter.stats.values():
        for report in reports:
            notebook = _notebook(report.nodeid) if isinstance(report, pytest.TestReport) else None
            if notebook:
                per_notebook[notebook] += report.duration
                per_cell[_cell_name(report.nodeid)] += report.duration
    if not per_notebook:
        return
    terminalreporter.section("seconds per notebook")
    for notebook, seconds in sorted(per_notebook.items()):
        terminalreporter.write_line(f"{seconds:7.1f}  {notebook}")
    terminalreporter.section(f"slowest {SLOWEST} cells")
    for name, seconds in per_cell.most_common(SLOWEST):
        terminalreporter.write_line(f"{seconds:7.1f}  {name}")


def _turn(item: pytest.Item) -> int:
    notebook = _notebook(item.nodeid)
    return 0 if notebook is None else 1 if notebook.endswith(LONGEST) else 2


def _notebook(nodeid: str) -> str | None:
    path = nodeid.split("::")[0]
    return path if path.endswith(".ipynb") else None


def _cell_name(nodeid: str) -> str:
    """The cell as Jupyter numbers it, from 1: nbval counts from 0."""
    path, _, cell = nodeid.partition("::Cell ")
    return f"{path} [{int(cell) + 1}]" if cell.isdigit() else nodeid


def _summary(stats: dict[str, list]) -> str:
    count = {outcome: len(reports) for outcome, reports in stats.items()}
    failed = count.get("failed", 0) + count.get("error", 0)
    excused = count.get("xfailed", 0) + count.get("xpassed", 0)
    return (
        f"lectures: {count.get('passed', 0)} passed, {failed} failed, "
        f"{count.get('skipped', 0)} skipped, {excused} xfailed "
        f"in {time.perf_counter() - _start:.0f} s"
    )
