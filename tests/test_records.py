"""helpers.records: what is written can be read, and nothing else is taken for a record.

The latest of a record is the fresh one; of what is committed nothing broken is taken.
"""

import json
import os
import re
import subprocess
import sys
import threading
import time

import jsonschema
import numpy as np
import pytest
import torch

from helpers import records

METRICS = {"AP": 0.5, "AP50": 0.8, "AP75": 0.6, "AP_small": -1, "AP_medium": float("nan")}


def row(**changes):
    made = records.make_row(
        "05_yolo",
        "YOLO",
        "main",
        METRICS,
        parameters=10,
        steps=3,
        train_seconds=1.5,
        ms_per_image=None,
    )
    return {**made, **changes}


def read(*names, folder=None):
    return records.read_records(folder, names or ["05_yolo"])


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("LECTURE_RUNS", str(tmp_path / "runs"))
    monkeypatch.delenv("LECTURE_SEED", raising=False)


def test_make_row_fills_in_what_the_machine_knows(monkeypatch):
    made = row()
    assert tuple(made) == tuple(records.COLUMNS)
    assert made["AP"] == 0.5 and made["AP_small"] is made["AP_medium"] is made["AP_large"] is None
    assert made["device"] == ("cuda" if torch.cuda.is_available() else "cpu")
    assert made["threads"] == torch.get_num_threads() and made["torch"] == torch.__version__
    assert made["seed"] == 0
    monkeypatch.setenv("LECTURE_SEED", "7")
    assert row()["seed"] == 7


def test_rows_come_back_as_they_were(tmp_path):
    rows = [row(), row(variant="no prior"), row(seed=1)]
    path = records.write_records("05_yolo", rows)
    assert path == tmp_path / "runs" / "05_yolo.json"
    assert read() == (rows, [])
    records.write_records("05_yolo", rows[:1])
    assert read() == (rows[:1], [])
    assert list(path.parent.iterdir()) == [path]


def test_numbers_of_numpy_and_torch_become_plain_ones():
    given = {"AP": np.float32(0.25), "AP50": torch.tensor(0.5), "steps": np.int64(4)}
    records.write_records("05_yolo", [row(**given)])
    (found,), _ = read()
    assert (found["AP"], found["AP50"], found["steps"]) == (0.25, 0.5, 4)


def test_rows_of_experiments_have_more():
    more = {
        "versions": {"numpy": "2.0"},
        "resampled": np.array([0.5, 0.25]),
        "curve": [{"steps": 10, "seconds": 1.5, "AP": 0.1}],
        "extra": {"crowds": 0.25},
    }
    assert set(more) == set(records.MORE_COLUMNS)
    records.write_records("05_yolo", [row(**more)])
    assert read() == ([row(**more | {"resampled": [0.5, 0.25]})], [])


def test_the_schema_itself_is_one():
    jsonschema.Draft4Validator.check_schema(records._SCHEMA)


# ---------------------------------------------------------------- the folder


def test_the_folder_is_the_same_from_everywhere(tmp_path, monkeypatch):
    """A kernel works in notebooks/, the tests and tools at the root; no shell expands a tilde."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("USERPROFILE", str(tmp_path / "home"))
    expected = {
        "": records.ROOT / "runs",
        "runs/seed1": records.ROOT / "runs" / "seed1",
        "~/lecture runs": tmp_path / "home" / "lecture runs",
        str(tmp_path / "x"): tmp_path / "x",
    }
    for folder in (records.ROOT, tmp_path):
        monkeypatch.chdir(folder)
        for value, path in expected.items():
            monkeypatch.setenv("LECTURE_RUNS", value)
            assert records.runs_folder() == path
            assert records.runs_folder(tmp_path / "given") == tmp_path / "given"
    monkeypatch.delenv("LECTURE_RUNS")
    assert records.runs_folder() == records.ROOT / "runs"


# ---------------------------------------------------------------- files


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([row(more=1)], r"'more' was unexpected"),
        ([{k: v for k, v in row().items() if k != "AP"}], "'AP' is a required property"),
        ([row(AP=float("nan"))], "AP: nan is not of type 'number', 'null'"),
        ([row(AP=50.0)], r"a row is wrong, AP: 50\.0 is greater than the maximum of 1"),
        ([row(AP=-0.5)], r"a row is wrong, AP: -0\.5 is less than the minimum of 0"),
        ([row(AP="0.5")], "AP: '0.5' is not of type 'number', 'null'"),
        ([row(train_seconds=float("inf"))], "train_seconds: inf is not of type 'number', 'null'"),
        ([row(steps=1.5)], "steps: 1.5 is not of type 'integer'"),
        ([row(steps=3.0)], "steps: 3.0 is not of type 'integer'"),
        ([row(steps=True)], "steps: True is not of type 'integer'"),
        ([row(steps=-1)], "steps: -1 is less than the minimum of 0"),
        ([row(device="")], "device: ''"),
        ([row(device=object())], "a row must hold numbers and texts: .*'tolist'"),
        ([row(resampled=[0.5, 2.0, -1])], "resampled: 2: -1 is less than the minimum of 0"),
        ([row(extra={"x": float("nan")})], "extra: x: nan is not of type 'number'"),
        ([row(curve=[{"steps": "many"}])], "curve: 0: steps: 'many' is not of type 'number'"),
        ([row(versions={"torch": 2})], "versions: torch: 2 is not of type 'string'"),
        ([row(notebook="06_ssd")], "a row of notebook '06_ssd'"),
        ([row(), row()], r"two rows for \(model, variant, seed\)"),
        (["row"], "'row' is not of type 'object'"),
    ],
)
def test_a_bad_row_is_refused_and_nothing_is_written(tmp_path, rows, message):
    with pytest.raises(ValueError, match=message):
        records.write_records("05_yolo", rows)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("name", ["../05_yolo", "05_yolo.json", ""])
def test_a_name_cannot_leave_the_folder(name):
    with pytest.raises(ValueError, match="notebook must be a name"):
        records.write_records(name, [])


def test_read_names_what_it_leaves_out(tmp_path):
    good = records.write_records("05_yolo", [row()])
    (good.parent / "06_ssd.json").write_text(good.read_text()[:-30])
    (good.parent / "07_fcos.json").write_text(good.read_text())
    (good.parent / "08_detr.json").write_bytes(b"\xff\xfe")
    (good.parent / "package.json").write_text(json.dumps({"name": "foreign"}))
    (good.parent / "numbers.json").write_text("[1, 2]")
    (good.parent / "nameless.json").write_text(json.dumps([{"AP": 1}]))
    names = ["06_ssd", "07_fcos", "08_detr", "package", "numbers", "nameless", "01_rcnn"]
    rows, problems = read("05_yolo", *names)
    assert len(rows) == 1
    assert [p.split(":")[0] for p in problems] == [f"{name}.json" for name in names]
    assert problems[-1] == "01_rcnn.json: missing; run notebook 01_rcnn to make it"
    assert "no such folder" in read(folder=tmp_path / "none")[1][0]


def test_concurrent_writers_leave_one_whole_file():
    def write(variant):
        for _ in range(20):
            records.write_records("05_yolo", [row(variant=variant), row(variant="x" * 5000)])

    writers = [threading.Thread(target=write, args=(str(i),)) for i in range(4)]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        rows, problems = read()
        assert len(rows) in (0, 2) and not [p for p in problems if "left out" in p]
    for writer in writers:
        writer.join()
    assert len(read()[0]) == 2


WRITER = """
import json, sys
from helpers import records
import jsonschema  # it takes seconds, before the writer's turn
rows = json.loads(sys.stdin.readline())
records.write_records("05_yolo", rows)
print("written once", flush=True)
while True:
    records.write_records("05_yolo", rows)
"""


def test_a_killed_writer_leaves_a_whole_file():
    """A kernel can be killed at any moment: the record is the old one or the new one."""
    rows = [row(seed=seed, variant="x" * 2000) for seed in range(200)]
    folder = records.write_records("05_yolo", rows[:1]).parent
    command, pipe = [sys.executable, "-c", WRITER], subprocess.PIPE
    writers = [
        subprocess.Popen(command, cwd=records.ROOT, stdin=pipe, stdout=pipe, text=True)
        for _ in range(4)
    ]
    for attempt, writer in enumerate(writers):
        writer.stdin.write(json.dumps(rows) + "\n")
        writer.stdin.flush()
        assert writer.stdout.readline() == "written once\n"
        time.sleep(0.05 + 0.017 * attempt)
        writer.kill()
        writer.communicate()
        assert read() == (rows, [])
    for name in os.listdir(folder):  # a killed writer's own file, which nobody reads
        assert name == "05_yolo.json" or re.fullmatch(r"\.05_yolo\.json\.\w+\.tmp", name)


def test_a_failed_write_keeps_the_old_file(tmp_path, monkeypatch):
    path = records.write_records("05_yolo", [row()])

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(records.os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        records.write_records("05_yolo", [])
    assert list(path.parent.iterdir()) == [path]
    assert len(read()[0]) == 1


def test_weights_come_back_and_nothing_else_is_unpickled(tmp_path):
    model = torch.nn.Linear(2, 3)
    path = records.save_weights("05_yolo", model.state_dict())
    assert path == tmp_path / "runs" / "05_yolo.pt"
    loaded = records.load_weights("05_yolo")
    assert all(torch.equal(loaded[name], t) for name, t in model.state_dict().items())
    with pytest.raises(FileNotFoundError, match="06_ssd.pt"):
        records.load_weights("06_ssd")
    torch.save({"model": model}, path)
    with pytest.raises(Exception, match="[Ww]eights"):
        records.load_weights("05_yolo")


# ---------------------------------------------------------------- fresh before committed


@pytest.fixture
def folders(tmp_path):
    """runs/, data/reference/ and data/weights/ of their own."""
    names = {"runs": "runs", "reference": "reference", "committed": "weights"}
    for folder in names.values():
        (tmp_path / folder).mkdir()
    return {key: tmp_path / folder for key, folder in names.items()}


def two(folders):
    return {key: folders[key] for key in ("runs", "reference")}


def test_fresh_rows_replace_committed_ones_and_keep_their_other_seeds(folders):
    committed = [row(AP=0.4), row(AP=0.45, seed=1), row(variant="no prior")]
    records.write_records("05_yolo", committed, folders["reference"])
    records.write_records("05_yolo", [row(AP=0.6)], folders["runs"])
    rows, problems = records.latest_records(["05_yolo"], **two(folders))
    assert problems == []
    found = [(r["AP"], r["seed"], r["variant"], r["source"]) for r in rows]
    assert found == [
        (0.6, 0, "main", "runs"),
        (0.45, 1, "main", "reference"),
        (0.5, 0, "no prior", "reference"),
    ]


@pytest.mark.parametrize("other", [{"device": "cuda"}, {"threads": 64}])
def test_rows_of_another_machine_are_not_mixed_in(folders, other):
    records.write_records("05_yolo", [row(seed=1), row(seed=2)], folders["reference"])
    records.write_records("05_yolo", [row(**other)], folders["runs"])
    rows, _ = records.latest_records(["05_yolo"], **two(folders))
    assert [r["source"] for r in rows] == ["runs"]


@pytest.mark.parametrize(
    "text, said",
    [
        ("", "Expecting value"),
        ('[{"notebook": "05_yo', "Unterminated string"),
        ("{}", "no list of rows"),
        ('[{"AP": 1}]', "rows of None"),
        ('[{"notebook": "05_yolo", "AP": 1}]', "'model' is a required property"),
        (json.dumps([row(notebook="04_x")]), "rows of 04_x"),
        (json.dumps([row(AP=7)]), "AP: 7 is greater than the maximum of 1"),
        (json.dumps([row()]).replace("0.5", "NaN"), "AP: nan is not of type"),
    ],
)
def test_a_broken_record_is_named_and_left_out(folders, text, said):
    records.write_records("05_yolo", [row(seed=1)], folders["reference"])
    (folders["runs"] / "05_yolo.json").write_text(text)
    rows, (problem,) = records.latest_records(["05_yolo"], **two(folders))
    assert [r["source"] for r in rows] == ["reference"]
    assert problem.startswith("runs/05_yolo.json: left out") and said in problem
    (folders["reference"] / "05_yolo.json").write_text(text)
    rows, problems = records.latest_records(["05_yolo"], **two(folders))
    assert rows == [] and len(problems) == 2
    assert problems[1].startswith("data/reference/05_yolo.json: left out")


def test_a_record_that_is_nowhere_is_named(folders):
    rows, (problem,) = records.latest_records(["05_yolo"], **two(folders))
    assert rows == []
    assert problem == "data/reference/05_yolo.json: missing; run notebook 05_yolo to make it"


def test_every_committed_row_keeps_to_the_schema():
    for folder in (records.RECORDS, records.EXPERIMENTS):
        names = [path.stem for path in folder.glob("*.json")]
        rows, problems = records.read_records(folder, names)
        assert len(rows) > 8 and problems == []
        assert [records.checked_row(row) for row in rows] == rows


def test_every_committed_record_and_weight_can_be_read():
    names = [path.stem for path in sorted(records.RECORDS.glob("*.json"))]
    rows, problems = records.latest_records(names, runs=records.ROOT / "no such folder")
    assert problems == [] and {r["notebook"] for r in rows} == set(names)
    for path in records.WEIGHTS.glob("*.pt"):
        weights, source = records.latest_weights(path.stem, runs=records.ROOT / "none")
        assert source == "reference" and all(v.isfinite().all() for v in weights.values())


def test_latest_weights_prefers_runs_and_passes_over_damage(folders):
    some = {"w": torch.rand(2, 2), "n": torch.tensor(3)}
    where = {key: folders[key] for key in ("runs", "committed")}
    with pytest.raises(FileNotFoundError, match="no readable weights of 05_yolo"):
        records.latest_weights("05_yolo", **where)
    records.save_weights("05_yolo", {"w": torch.ones(2, 2).half()}, folders["committed"])
    weights, source = records.latest_weights("05_yolo", **where)
    assert source == "reference" and torch.equal(weights["w"], torch.ones(2, 2))
    path = records.save_weights("05_yolo", some, folders["runs"])
    weights, source = records.latest_weights("05_yolo", **where)
    assert source == "runs" and torch.equal(weights["w"], some["w"]) and weights["n"] == 3
    path.write_bytes(path.read_bytes()[:100])
    assert records.latest_weights("05_yolo", **where)[1] == "reference"
