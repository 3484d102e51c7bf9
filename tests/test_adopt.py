"""helpers.reference: fresh before committed, nothing broken taken, nothing committed lost."""

import json

import pytest
import torch

from helpers import records, reference


def row(**changes):
    made = records.make_row(
        "05_yolo",
        "YOLO",
        "main",
        {"AP": 0.5},
        parameters=10,
        steps=3,
        train_seconds=1.5,
        ms_per_image=None,
        seed=0,
    )
    return {**made, **changes}


@pytest.fixture
def folders(tmp_path):
    """runs/, data/reference/ and data/weights/ of their own, as keyword arguments."""
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
    rows, problems = reference.latest_records(["05_yolo"], **two(folders))
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
    rows, _ = reference.latest_records(["05_yolo"], **two(folders))
    assert [r["source"] for r in rows] == ["runs"]


@pytest.mark.parametrize(
    "text, said",
    [
        ("", "Expecting value"),
        ('[{"notebook": "05_yo', "Unterminated string"),
        ("{}", "no list of rows"),
        ('[{"AP": 1}]', "COLUMNS"),
        (json.dumps([row(notebook="04_x")]), "rows of 04_x"),
        (json.dumps([row(AP=7)]), "AP must lie in 0..1"),
        (json.dumps([row()]).replace("0.5", "NaN"), "finite number"),
    ],
)
def test_a_broken_record_is_named_and_left_out(folders, text, said):
    records.write_records("05_yolo", [row(seed=1)], folders["reference"])
    (folders["runs"] / "05_yolo.json").write_text(text)
    rows, (problem,) = reference.latest_records(["05_yolo"], **two(folders))
    assert [r["source"] for r in rows] == ["reference"]
    assert problem.startswith("runs/05_yolo.json: left out") and said in problem
    (folders["reference"] / "05_yolo.json").write_text(text)
    rows, problems = reference.latest_records(["05_yolo"], **two(folders))
    assert rows == [] and len(problems) == 2
    assert problems[1].startswith("data/reference/05_yolo.json: left out")


def test_a_record_that_is_nowhere_is_named(folders):
    rows, (problem,) = reference.latest_records(["05_yolo"], **two(folders))
    assert rows == []
    assert problem == "data/reference/05_yolo.json: missing; run notebook 05_yolo to make it"


def test_every_committed_record_and_weight_can_be_read():
    names = [path.stem for path in sorted(reference.RECORDS.glob("*.json"))]
    rows, problems = reference.latest_records(names, runs=reference.ROOT / "no such folder")
    assert problems == [] and {r["notebook"] for r in rows} == set(names)
    for path in reference.WEIGHTS.glob("*.pt"):
        weights, source = reference.latest_weights(path.stem, runs=reference.ROOT / "none")
        assert source == "reference" and all(v.isfinite().all() for v in weights.values())


def test_latest_weights_prefers_runs_and_passes_over_damage(folders):
    some = {"w": torch.rand(2, 2), "n": torch.tensor(3)}
    where = {key: folders[key] for key in ("runs", "committed")}
    with pytest.raises(FileNotFoundError, match="no readable weights of 05_yolo"):
        reference.latest_weights("05_yolo", **where)
    records.save_weights("05_yolo", {"w": torch.ones(2, 2).half()}, folders["committed"])
    weights, source = reference.latest_weights("05_yolo", **where)
    assert source == "reference" and torch.equal(weights["w"], torch.ones(2, 2))
    path = records.save_weights("05_yolo", some, folders["runs"])
    weights, source = reference.latest_weights("05_yolo", **where)
    assert source == "runs" and torch.equal(weights["w"], some["w"]) and weights["n"] == 3
    path.write_bytes(path.read_bytes()[:100])
    assert reference.latest_weights("05_yolo", **where)[1] == "reference"


def test_adopting_seed_0_renews_the_record_and_keeps_other_seeds(folders):
    old = [row(AP=0.1), row(variant="gone"), row(seed=1), row(model="other")]
    records.write_records("05_yolo", old, folders["reference"])
    records.write_records("05_yolo", [row(AP=0.7), row(variant="new")], folders["runs"])
    weights = {"w": torch.rand(3, 3), "b": torch.tensor([1e-8]), "n": torch.tensor(2)}
    records.save_weights("05_yolo", weights, folders["runs"])
    reference.adopt("05_yolo", **folders)
    rows, _ = records.read_records(folders["reference"])
    assert [(r["model"], r["AP"], r["variant"], r["seed"]) for r in rows] == [
        ("YOLO", 0.7, "main", 0),
        ("YOLO", 0.5, "new", 0),
        ("other", 0.5, "main", 0),
        ("YOLO", 0.5, "main", 1),
    ]
    halves = records.load_weights("05_yolo", folders["committed"])
    assert halves["w"].dtype == torch.float16 and torch.allclose(
        halves["w"].float(), weights["w"], atol=1e-3
    )
    assert halves["b"].item() == weights["b"].item() and halves["n"] == 2


def test_adopting_another_seed_adds_its_main_rows_only(folders):
    records.write_records("05_yolo", [row(AP=0.1), row(variant="stays")], folders["reference"])
    fresh = [row(seed=2, AP=0.7), row(seed=2, variant="ablation")]
    records.write_records("05_yolo", fresh, folders["runs"])
    records.save_weights("05_yolo", {"w": torch.rand(3, 3)}, folders["runs"])
    reference.adopt("05_yolo", **folders)
    rows, _ = records.read_records(folders["reference"])
    assert [(r["AP"], r["variant"], r["seed"]) for r in rows] == [
        (0.1, "main", 0),
        (0.5, "stays", 0),
        (0.7, "main", 2),
    ]
    assert list(folders["committed"].iterdir()) == []


@pytest.mark.parametrize(
    "rows, said",
    [([], "missing"), (["main 0", "main 1"], r"seeds \[0, 1\]"), (["no prior 0"], r"seeds \[\]")],
)
def test_a_run_without_one_main_seed_is_not_adopted(folders, rows, said):
    if rows:
        made = [row(variant=r.rsplit(" ", 1)[0], seed=int(r[-1])) for r in rows]
        records.write_records("05_yolo", made, folders["runs"])
    with pytest.raises(ValueError, match=said):
        reference.adopt("05_yolo", **folders)
    assert list(folders["reference"].iterdir()) == []


def test_a_committed_record_that_cannot_be_read_is_not_overwritten(folders):
    records.write_records("05_yolo", [row()], folders["runs"])
    path = folders["reference"] / "05_yolo.json"
    path.write_text("[truncated")
    with pytest.raises(ValueError, match="would be lost"):
        reference.adopt("05_yolo", **folders)
    assert path.read_text() == "[truncated"


def test_command_line(capsys):
    assert reference.main([]) == reference.main(["adopt"]) == reference.main(["show", "05"]) == 2
    assert "usage" in capsys.readouterr().err
    assert reference.main(["adopt", "no such notebook"]) == 1
    assert "no notebook" in capsys.readouterr().err
