"""What chapter 6 has published: figures/results.json agrees with itself, and figures/ holds what the chapter draws."""
import json
import re
from pathlib import Path

import pytest

from report import cells
from vae_gmm.classifier import wilson_interval

ROOT = Path(__file__).resolve().parent.parent
RESULTS = json.loads((ROOT / "figures" / "results.json").read_text(encoding="utf-8"))
CELLS = cells.read(ROOT / "nbs" / "06_results.ipynb").cells
CODE = "\n".join(cell.source for cell in CELLS if cell.cell_type == "code")
SCORES = "accuracy", "precision_macro", "recall_macro", "f1_macro", "f1_micro"
SCORED = {name: part for name, part in {
    "test": RESULTS["test"], "labelled": RESULTS["labelled"], "official": RESULTS["official"],
    **{f"course, {name}": RESULTS["course"][name] for name in ("test", "labelled", "official")}}.items() if part}


@pytest.mark.parametrize("part", SCORED.values(), ids=SCORED)
def test_scores_agree_with_each_other(part):
    assert part["accuracy"] == part["f1_micro"] == pytest.approx(part["right"] / part["n"], abs=1e-4)
    assert part["interval"] == pytest.approx(wilson_interval(part["right"], part["n"]), abs=1e-4)
    assert all(0 <= part[name] <= 1 for name in SCORES)
    if matrix := part.get("confusion"):
        assert sum(map(sum, matrix)) == part["n"]
        assert sum(matrix[i][i] for i in range(len(matrix))) == part["right"]


def test_the_parts_have_their_sizes():
    data, course = RESULTS["data"], RESULTS["course"]
    assert data["unlabelled"] + data["labelled"] + data["test"] == 500 * len(data["digits"])
    assert RESULTS["test"]["n"] == course["test"]["n"] == data["test"]
    assert RESULTS["labelled"]["n"] == course["labelled"]["n"] == data["labelled"]
    assert RESULTS["training"]["stage_one"] + RESULTS["training"]["stage_two"] == RESULTS["training"]["epochs"]
    assert course["best_epoch"] <= course["epochs"]


def test_it_reads_better_than_the_course_projects_system():
    assert RESULTS["test"]["accuracy"] >= 0.97
    assert RESULTS["test"]["accuracy"] > RESULTS["course"]["test"]["accuracy"]


def test_the_folder_holds_what_the_chapter_draws_and_nothing_else():
    drawn = set(re.findall(r'drawn\["(\w+)"\]', CODE))
    there = {path.name for path in cells.files(ROOT / "figures", "*") if path.parent.name == "figures"}
    assert there == {f"{name}.{ending}" for name in drawn for ending in ("png", "svg")} | {"results.json"}
