"""tools.adopt: nothing broken is taken from a run, and nothing that is committed gets lost."""

import pytest
import torch

from helpers import records
from tools.adopt import adopt, adopt_experiment


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


def test_adopting_seed_0_renews_the_record_and_keeps_other_seeds(folders):
    old = [row(AP=0.1), row(variant="gone"), row(seed=1), row(model="other")]
    records.write_records("05_yolo", old, folders["reference"])
    records.write_records("05_yolo", [row(AP=0.7), row(variant="new")], folders["runs"])
    weights = {"w": torch.rand(3, 3), "b": torch.tensor([1e-8]), "n": torch.tensor(2)}
    records.save_weights("05_yolo", weights, folders["runs"])
    done = ["2 rows of seed 0, 2 older ones kept", "weights in half precision"]
    assert adopt("05_yolo", **folders) == done
    rows, _ = records.read_records(folders["reference"], ["05_yolo"])
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
    assert adopt("05_yolo", **folders) == ["1 rows of seed 2, 2 older ones kept"]
    rows, _ = records.read_records(folders["reference"], ["05_yolo"])
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
        adopt("05_yolo", **folders)
    assert list(folders["reference"].iterdir()) == []


def test_a_committed_record_that_cannot_be_read_is_not_overwritten(folders):
    records.write_records("05_yolo", [row()], folders["runs"])
    path = folders["reference"] / "05_yolo.json"
    path.write_text("[truncated")
    with pytest.raises(ValueError, match="would be lost"):
        adopt("05_yolo", **folders)
    assert path.read_text() == "[truncated"


def test_the_first_record_of_a_lecture_is_adopted(folders):
    records.write_records("05_yolo", [row()], folders["runs"])
    folders["reference"].rmdir()
    assert adopt("05_yolo", **folders) == ["1 rows of seed 0, 0 older ones kept"]
    assert records.read_records(folders["reference"], ["05_yolo"]) == ([row()], [])


def test_an_experiment_renews_the_main_rows_and_keeps_the_others(tmp_path):
    reference, experiments = tmp_path / "reference", tmp_path / "experiments"
    with pytest.raises(ValueError, match="05_yolo cannot be adopted: .*missing"):
        adopt_experiment("05_yolo", experiments, reference)
    records.write_records("05_yolo", [row(AP=0.1), row(variant="short")], reference)
    fresh = [row(AP=0.6, resampled=[0.5]), row(seed=1), row(variant="other")]
    records.write_records("05_yolo", fresh, experiments)
    adopt_experiment("05_yolo", experiments, reference)
    rows, _ = records.read_records(reference, ["05_yolo"])
    assert [(r["AP"], r["variant"], r["seed"]) for r in rows] == [
        (0.6, "main", 0),
        (0.5, "main", 1),
        (0.5, "short", 0),
    ]
    assert all(tuple(r) == tuple(records.COLUMNS) for r in rows)
