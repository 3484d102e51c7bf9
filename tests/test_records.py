"""helpers.records: what is written can be read, and nothing else is taken for a record."""

import json
import os
import re
import subprocess
import sys
import threading
import time

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
    assert records.read_records() == (rows, [])
    records.write_records("05_yolo", rows[:1])
    assert records.read_records() == (rows[:1], [])
    assert list(path.parent.iterdir()) == [path]


def test_numpy_numbers_become_plain_ones():
    records.write_records("05_yolo", [row(AP=np.float32(0.25), steps=np.int64(4))])
    (read,), _ = records.read_records()
    assert read["AP"] == 0.25 and read["steps"] == 4


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([row(extra=1)], "exactly the columns.*extra"),
        ([{k: v for k, v in row().items() if k != "AP"}], "exactly the columns.*AP"),
        ([row(AP=float("nan"))], "AP must be a finite number >= 0 or None, got nan"),
        ([row(AP=50.0)], r"AP must lie in 0\.\.1"),
        ([row(train_seconds=float("inf"))], "train_seconds must be"),
        ([row(steps=1.5)], "steps must be an integer >= 0"),
        ([row(steps=True)], "steps must be an integer >= 0"),
        ([row(device="")], "device must be a non-empty string"),
        ([row(notebook="06_ssd")], "a row of notebook '06_ssd'"),
        ([row(), row()], r"two rows for \(model, variant, seed\)"),
        (["row"], "differs in str"),
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
    (good.parent / "package.json").write_text(json.dumps({"name": "foreign"}))
    (good.parent / "08_detr.json").write_bytes(b"\xff\xfe")
    rows, problems = records.read_records()
    assert len(rows) == 1
    assert [p.split(":")[0] for p in problems] == [
        "06_ssd.json",
        "07_fcos.json",
        "08_detr.json",
        "package.json",
    ]
    _, problems = records.read_records(notebooks=["05_yolo", "01_rcnn"])
    assert problems == ["01_rcnn.json: missing; run notebook 01_rcnn to make it"]
    assert "no such folder" in records.read_records(tmp_path / "none")[1][0]


def test_concurrent_writers_leave_one_whole_file():
    def write(variant):
        for _ in range(20):
            records.write_records("05_yolo", [row(variant=variant), row(variant="x" * 5000)])

    writers = [threading.Thread(target=write, args=(str(i),)) for i in range(4)]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        rows, problems = records.read_records()
        assert len(rows) in (0, 2) and not [p for p in problems if "left out" in p]
    for writer in writers:
        writer.join()
    assert len(records.read_records()[0]) == 2


WRITER = """
import json, sys
from helpers import records
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
    for attempt in range(5):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER],
            cwd=records.ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        writer.stdin.write(json.dumps(rows) + "\n")
        writer.stdin.flush()
        assert writer.stdout.readline() == "written once\n"
        time.sleep(0.05 + 0.013 * attempt)
        writer.kill()
        writer.communicate()
        read, problems = records.read_records()
        assert read == rows and problems == []
    for name in os.listdir(folder):  # a killed writer's own file, which nobody reads
        assert name == "05_yolo.json" or re.fullmatch(r"\.05_yolo\.json\.\w+\.tmp", name)


def test_what_killed_writers_left_is_removed_later():
    path = records.write_records("05_yolo", [row()])
    names = [".05_yolo.json.old.tmp", ".05_yolo.json.new.tmp", ".06_ssd.json.old.tmp", "my.tmp"]
    for name in names:
        (path.parent / name).write_text("[")
        if "new" not in name:
            os.utime(path.parent / name, (0, 0))
    records.write_records("05_yolo", [row()])
    assert {p.name for p in path.parent.iterdir()} == {path.name, *names[1:]}


def test_a_failed_write_keeps_the_old_file(tmp_path, monkeypatch):
    path = records.write_records("05_yolo", [row()])

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(records.os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        records.write_records("05_yolo", [])
    assert list(path.parent.iterdir()) == [path]
    assert len(records.read_records()[0]) == 1


def test_weights_come_back_and_nothing_else_is_unpickled(tmp_path):
    model = torch.nn.Linear(2, 3)
    path = records.save_weights("05_yolo", model.state_dict())
    assert path == tmp_path / "runs" / "05_yolo.pt"
    loaded = records.load_weights("05_yolo")
    assert all(torch.equal(loaded[name], t) for name, t in model.state_dict().items())
    with pytest.raises(FileNotFoundError, match="run notebook 06_ssd"):
        records.load_weights("06_ssd")
    torch.save({"model": model}, path)
    with pytest.raises(Exception, match="[Ww]eights"):
        records.load_weights("05_yolo")
