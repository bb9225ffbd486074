"""Running notebooks: what runs, after what, side by side, in build/ or in place; what is compared; how tests run."""
import asyncio
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from unittest import mock

import pytest
from click.testing import CliRunner
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from report import cells, check, headlines, plan, run

ROOT = Path(__file__).resolve().parent.parent
TRAINS = """import os
def kept(): print(os.environ["OMP_NUM_THREADS"], os.environ["VAE_GMM_KEPT"])
kept(), os.nice(0)"""
RESULTS = """import json
from pathlib import Path
OUT = Path("..", "figures")
share = json.loads((OUT / "experiments.json").read_text())["share"]
R = dict(test=dict(accuracy=share))
(OUT / "results.json").write_text(json.dumps(R));"""
READS = "print(open('../figures/results.json').read(), len(open('../Makefile').read()) > 100)"


def write(path, *sources):
    """A notebook of code cells, after one with text."""
    made = [new_markdown_cell("# Title"), *map(new_code_cell, sources)]
    for i, cell in enumerate(made):
        cell["id"] = f"c{i}"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(run.cleaned(new_notebook(cells=made, metadata={"kernelspec": cells.KERNEL})), encoding="utf-8")


def edit(path, old, new):
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")


NAMES = "01_data.ipynb", "04_training.ipynb", "05_classifier.ipynb", "06_results.ipynb", "index.ipynb"
ROOM = "rooms/files.ipynb"


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """Four chapters, a room and an index, in a git repository; what git says of it before a run in build/ and after;
    how the run went."""
    root = tmp_path_factory.mktemp("original") / "a project"
    (root / "report").mkdir(parents=True)
    (root / "vae_gmm").mkdir()
    (root / "figures").mkdir()
    for name in "settings.ini", "Makefile", ".gitignore", "report/metadata.yaml":
        shutil.copy(ROOT / name, root / name)
    (root / "vae_gmm" / "data.py").write_text("x = 1\n")
    (root / "figures" / "experiments.json").write_text('{"share": 0.9}')
    (root / "figures" / "results.json").write_text('{"test": {"accuracy": 0.5}}')
    write(root / "nbs" / "01_data.ipynb", "import os\n1 + 1, os.nice(0)")
    write(root / "nbs" / "04_training.ipynb", TRAINS)
    write(root / "nbs" / "05_classifier.ipynb", TRAINS)
    write(root / "nbs" / "06_results.ipynb", "def kept(): pass\nkept()", RESULTS)
    write(root / "nbs" / "rooms" / "files.ipynb", "print('a room')")
    write(root / "nbs" / "index.ipynb", READS)
    git = [subprocess.run(["git", *words], cwd=root, capture_output=True, text=True, check=True).stdout
           for words in (["init", "-q"], ["add", "-A"], ["status", "--porcelain", "-uall"])]
    ran, _ = report_run(root, "--build")
    after = subprocess.run(["git", "status", "--porcelain", "-uall"], cwd=root, capture_output=True, text=True).stdout
    return root, git[-1], after, ran


@pytest.fixture
def project(original, tmp_path):
    """A copy of that project, with its run in build/."""
    plan.makers.cache_clear(), plan.waits.cache_clear(), plan.everywhere.cache_clear()
    return Path(shutil.copytree(original[0], tmp_path / "a project"))


def report_run(root, *words, **env):
    """What `python -m report.run` did: {notebook: how it went}, and its output."""
    env = {k: v for k, v in os.environ.items() if k not in ("VAE_GMM_KEPT", "OMP_NUM_THREADS")} | env
    done = subprocess.run([sys.executable, "-m", "report.run", "--root", root, *words], cwd=ROOT, env=env, text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    return dict(re.findall(r"^(\S+\.ipynb) +[\d.]+ s  (.*)$", done.stdout, re.M)), done.stdout


def built(root, name):
    """The outputs of a notebook in build/, as one text."""
    return json.dumps([cell.get("outputs") for cell in cells.read(root / "build" / "nbs" / name).cells])


def to_run(root):
    """The notebooks that would run again, by their keys alone."""
    plan.makers.cache_clear(), plan.waits.cache_clear(), plan.everywhere.cache_clear()
    plan.prepare(root)
    return {name for name in NAMES
            if not plan.is_done(root / "nbs" / name, plan.key(root / "nbs" / name, root), root)}


def test_a_run_in_build_changes_nothing_that_git_tracks(original):
    root, before, after, ran = original
    assert ran == dict.fromkeys(NAMES, "run")  # rooms are not printed
    assert after == before
    assert json.loads((root / "build" / "figures" / "results.json").read_text()) == {"test": {"accuracy": 0.9}}
    assert '0.9}} True' in built(root, "index.ipynb")  # of this run
    assert json.dumps(str(root / "build" / "kept"))[1:-1] in built(root, "04_training.ipynb")
    here = os.nice(0) if os.name != "nt" else 0
    assert f"(None, {here})" in built(root, "04_training.ipynb")  # others wait for it, and so it goes before
    assert os.name == "nt" or f"(2, {min(here + 15, 19)})" in built(root, "01_data.ipynb")


def test_what_is_unchanged_does_not_run_again(project):
    edit(project / "nbs" / "05_classifier.ipynb", "# Title", "# Another title")  # text does not run
    edit(project / "nbs" / "01_data.ipynb", "1 + 1", "1 + 2")
    edit(project / "nbs" / ROOM, "a room", "another room")
    ran, _ = report_run(project, "--build")
    assert ran == {**dict.fromkeys(NAMES, "unchanged"), "01_data.ipynb": "run"}
    copy = (project / "build" / "nbs" / "05_classifier.ipynb").read_text()
    assert "Another title" in copy and '"(None, ' in copy and '"(3, ' in built(project, "01_data.ipynb")
    assert to_run(project) == set()


CHANGES = {
    "the code of a chapter": ("nbs/01_data.ipynb", "1 + 1", "1 + 2", {"01_data.ipynb"}),
    "a module": ("vae_gmm/data.py", "1", "2", set(NAMES)),
    "data that any may read": ("figures/experiments.json", "0.9", "0.8", set(NAMES)),
    "a file that one names": ("Makefile", "help:", "help :", {"index.ipynb"}),
    "results that one writes and another reads": ("build/figures/results.json", "0.9", "0.8", {"index.ipynb"}),
    "the published results": ("figures/results.json", "0.5", "0.6", set()),
    "what came out of one that others wait for": (
        "build/nbs/04_training.ipynb", "stdout", "stderr", {"06_results.ipynb"}),
    "a text": ("nbs/index.ipynb", "# Title", "# Another", set()),
    "the keys themselves": ("build/runs.json", "{", "", set(NAMES))}


@pytest.mark.parametrize("file, old, new, names", CHANGES.values(), ids=CHANGES)
def test_what_a_change_makes_run_again(project, file, old, new, names):
    assert to_run(project) == set()
    edit(project / file, old, new)
    assert to_run(project) == names


def test_data_from_elsewhere_and_other_versions_count(project, monkeypatch):
    monkeypatch.setenv("VAE_GMM_DATA", "elsewhere")
    assert to_run(project) == set(NAMES)
    monkeypatch.delenv("VAE_GMM_DATA")
    assert to_run(project) == set()
    installed = plan.versions()
    assert any(text.startswith("nbformat ") for text in installed)
    monkeypatch.setattr(plan, "versions", lambda: installed[:-1])
    assert to_run(project) == set(NAMES)


def test_what_a_library_adds_to_the_path_is_not_installed(tmp_path, monkeypatch):
    """setuptools, once loaded, adds the libraries that it brings along."""
    before, metadata = plan.versions.__wrapped__(), tmp_path / "another-1.0.dist-info" / "METADATA"
    metadata.parent.mkdir()
    metadata.write_text("Metadata-Version: 2.1\nName: another\nVersion: 1.0\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert version("another") == "1.0" and plan.versions.__wrapped__() == before
    assert any(text.startswith("nbformat ") for text in before)


def test_a_failure_ends_the_run_and_what_is_done_stays_done(project):
    edit(project / "nbs" / "06_results.ipynb", "share = ", "share = 0 / 0 + ")
    ran, out = report_run(project, "--build")
    assert "06_results.ipynb: cell 2 (id c2) failed" in out and "ZeroDivisionError" in out
    assert "index.ipynb" not in ran and set(ran.values()) <= {"unchanged"}
    edit(project / "nbs" / "06_results.ipynb", "share = 0 / 0 + ", "share = ")
    assert to_run(project) - {"index.ipynb"} == {"06_results.ipynb"}


def test_a_notebook_by_name_brings_what_it_waits_for(project):
    shutil.rmtree(project / "build")
    (project / "build" / "nbs").mkdir(parents=True)
    (project / "build" / "nbs" / "07_gone.ipynb").write_text("{}")
    ran, _ = report_run(project, "--build", project / "nbs" / "06_results.ipynb", project / "nbs" / ROOM)
    names = ["04_training.ipynb", "05_classifier.ipynb", "06_results.ipynb", ROOM]
    assert ran == dict.fromkeys(names, "run")
    assert [cells.name_of(p, project / "build") for p in cells.notebooks(project / "build")] == names


def test_cells_left_out_are_not_taken_for_done(project):
    edit(project / "nbs" / "01_data.ipynb", "import os", "#| slow\\nimport os")
    ran, _ = report_run(project, "--build", "--skip", "slow", project / "nbs" / "01_data.ipynb")
    assert ran == {"01_data.ipynb": "run"} and '"(2, ' not in built(project, "01_data.ipynb")
    assert "01_data.ipynb" in to_run(project)


def test_in_place_notebooks_store_what_they_show_and_write_figures(project):
    shutil.rmtree(project / "build")
    nbs = project / "nbs"
    ran, _ = report_run(project, nbs / "06_results.ipynb", nbs / "04_training.ipynb", VAE_GMM_KEPT=str(nbs / "mine"))
    assert list(ran.items()) == [("04_training.ipynb", "written"), ("06_results.ipynb", "as stored")]  # shows nothing
    assert not (project / "build" / "nbs").exists()
    assert json.loads((project / "figures" / "results.json").read_text()) == {"test": {"accuracy": 0.9}}
    assert json.dumps(str(nbs / "mine"))[1:-1] in (nbs / "04_training.ipynb").read_text()


def test_in_place_rooms_run_too(project, monkeypatch):
    ran = []

    async def execute(path, *_):
        ran.append(cells.name_of(path, project))

    monkeypatch.setattr(run, "execute", execute)
    with mock.patch.dict(os.environ):
        assert CliRunner().invoke(run.main, ["--root", str(project)]).exit_code == 0
    assert sorted(ran) == sorted([*NAMES, ROOM])


def test_the_order_follows_from_what_notebooks_share(project):
    names = {cells.name_of(path, project): [cells.name_of(other, project) for other in others]
             for path, others in plan.waits(project).items()}
    assert names == {
        "01_data.ipynb": [], "04_training.ipynb": [], "05_classifier.ipynb": [],
        "06_results.ipynb": ["04_training.ipynb", "05_classifier.ipynb"], ROOM: [], "index.ipynb": ["06_results.ipynb"]}


def test_this_reports_results_are_written_before_they_are_read():
    waits = {cells.name_of(path): {cells.name_of(other) for other in others} for path, others in plan.waits().items()}
    assert [cells.name_of(path) for path in plan.makers()[0]["results.json"]] == ["06_results.ipynb"]
    assert "06_results.ipynb" in waits["index.ipynb"]  # which shows its story.png, too
    order = list(waits)
    assert all(order.index(other) < order.index(name) for name, others in waits.items() for other in others)


@pytest.mark.parametrize("trains", [[], ["train"], ["train", "too"]], ids=len)
@pytest.mark.parametrize("cores, most, half", [(1, 1, 1), (2, 2, 1), (4, 3, 2), (8, 5, 4)])
def test_as_many_run_at_once_as_there_are_cores(cores, most, half, trains):
    waits = {**{name: [] for name in "abcdef"}, "train": [], "too": [], "results": ["train"], "index": ["results", "a"]}
    running, at_once, threads, begun = set(), [], {}, []

    async def job(name, n):
        assert not set(waits[name]) - (set(begun) - running)
        running.add(name)
        begun.append(name)
        at_once.append(len(running))
        threads[name] = n
        await asyncio.sleep(0.01)
        running.remove(name)

    asyncio.run(run.side_by_side(waits, job, cores, trains))
    assert sorted(begun) == sorted(waits) and begun[:len(trains)] == trains
    assert max(at_once) == most + (len(trains) > 1)
    assert threads == {name: half if name in trains else 1 for name in waits}


def test_the_first_failure_ends_the_others():
    async def job(name, n):
        if name == "bad":
            raise ValueError("bad")
        await asyncio.sleep(60)

    start = time.monotonic()
    with pytest.raises(ValueError, match="bad"):
        asyncio.run(run.side_by_side({"bad": [], "long": [], "after": ["bad"]}, job, 4))
    assert time.monotonic() - start < 10


@pytest.mark.skipif(os.name == "nt", reason="no such signals")
def test_ctrl_c_ends_the_kernels_and_says_no_more_than_that(project):
    for name in "01_data", "04_training":
        write(project / "nbs" / f"{name}.ipynb", f"import os, time\nopen('{name}', 'w').write(str(os.getpid()))\n"
                                                 "time.sleep(600)")
    process = subprocess.Popen([sys.executable, "-m", "report.run", "--build", "--root", project], cwd=ROOT, text=True,
                               stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                               preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler))
    first = project / "build" / "nbs" / "01_data"
    while not (first.exists() and first.read_text()):
        assert process.poll() is None
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 1 and out.strip().endswith("Aborted!") and "Traceback" not in out
    with pytest.raises(ProcessLookupError):
        os.kill(int(first.read_text()), 0)


def test_the_headlines_stand_beside_the_published_ones(project):
    (project / "build" / "figures" / "results.json").unlink()
    done = CliRunner().invoke(headlines.main, ["--root", str(project)])
    assert done.exit_code == 1 and "expected the results of `make report`" in done.output
    here = project / "build" / "figures" / "results.json"
    here.write_text('{"test": {"accuracy": 0.75}, "reconstruction": {"ssim": 0.7}}')
    lines = CliRunner().invoke(headlines.main, ["--root", str(project)]).output.split("\n")
    assert lines[1].split() == ["here", "published"]
    assert re.fullmatch(r"accuracy on the test images +0\.7500 +0\.5000", lines[2])
    assert re.fullmatch(r"SSIM of the reconstructions +0\.7000 +-", lines[3])
    assert "They differ" in lines[-2]
    shutil.copy(project / "figures" / "results.json", here)
    assert "They are the same." in CliRunner().invoke(headlines.main, ["--root", str(project)]).output


def test_this_reports_results_have_headlines():
    results = json.loads((ROOT / "figures" / "results.json").read_text(encoding="utf-8"))
    assert len(headlines.table(results, results)) >= 4


def test_outputs_stay_with_their_cells_when_text_is_added():
    def notebook(*made):
        return new_notebook(cells=list(made))

    old = notebook(new_code_cell("a", outputs=[new_output("stream", text="1")]), new_code_cell("b"))
    new = notebook(new_markdown_cell("# New"), new_code_cell("a"), new_markdown_cell("text"), new_code_cell("b"))
    assert [len(c.outputs) for c in plan.with_outputs(new, old).cells if c.cell_type == "code"] == [1, 0]


PICTURE = {"image/png": "", "text/plain": "<Figure size 600x400 with 1 Axes>"}


@pytest.mark.parametrize("source, tags, output, counts", [
    ("print(1)", [], "1", (1, 1)), ("1", [], {"text/plain": "1"}, (1, 1)),
    ("table", [], {"text/html": "<table>", "text/plain": "a"}, (1, 1)),
    ("text", [], {"text/markdown": "a", "text/plain": "<IPython.core.display.Markdown object>"}, (1, 1)),
    ("plot()", [], PICTURE, (0, 0)), ("warn()", [], None, (0, 0)), ("x = 1", [], "", (0, 0)),
    ("#| once\nprint(1)", [], "1", (1, 1)), ("#| slow\nprint(1)", [], "1", (0, 1)),
    ("#| eval: false\nprint(1)", [], "1", (0, 1)),
    ("# NBVAL_IGNORE_OUTPUT\nprint(1)", [], "1", (0, 1)), ("#NBVAL_SKIP\nprint(1)", [], "1", (0, 1)),
    ("print(1)", ["nbval-ignore-output"], "1", (0, 1)), ("print(1)", ["nbval-skip"], "1", (0, 1))])
def test_output_cells_that_nbval_compares_are_counted(project, source, tags, output, counts):
    out = (new_output("stream", name="stderr", text="careful") if output is None
           else new_output("display_data", output) if isinstance(output, dict) else new_output("stream", text=output))
    cell = new_code_cell(source, outputs=[out] if output != "" else [], metadata={"tags": tags})
    path = project / "nbs" / "01_data.ipynb"
    path.write_text(run.cleaned(new_notebook(cells=[cell], metadata={"kernelspec": cells.KERNEL})), encoding="utf-8")
    assert check.compared(project)["01_data.ipynb"] == counts
    (_, problem), *others = check.check_compared(project)
    assert (problem is None) == (counts[0] == counts[1]) and len(others) == 3  # rooms and the index are not counted
    assert problem is None or f"nbval compares 0 of {counts[1]} output cells, less than 70%" in problem


def test_seven_of_ten_output_cells_are_enough(project):
    made = [new_code_cell("#| slow\n1" if i < 3 else "1", outputs=[new_output("stream", text="1")]) for i in range(10)]
    path = project / "nbs" / "01_data.ipynb"
    path.write_text(run.cleaned(new_notebook(cells=made, metadata={"kernelspec": cells.KERNEL})), encoding="utf-8")
    assert check.compared(project)["01_data.ipynb"] == (7, 10)
    assert [problem for _, problem in check.check_compared(project)] == [None] * 4


def test_the_check_prints_shares_and_finds_long_lines(project):
    (project / "tests").mkdir()
    (project / "tests" / "test_a.py").write_text("x = 1\n# " + "é" * 118 + "\n# " + "x" * 119 + "\n", encoding="utf-8")
    done = CliRunner().invoke(check.main, ["--root", str(project)])
    assert "tests/test_a.py, line 3: 121 columns" in done.output and "line 2" not in done.output
    assert re.search(r"^04_training.ipynb +0 of +0 output cells compared, 0%$", done.output, re.M)
    (project / "tests" / "test_a.py").unlink()
    (project / "tests" / "test_house.py").write_text("def faults(root): yield f'{root.name} is crooked'\n")
    assert dict(check.check_house(project))["house"].endswith("\n  a project is crooked")


@pytest.fixture
def suite():
    """tests/run.py as a module, which is none of pytest's."""
    spec = importlib.util.spec_from_file_location("suite", ROOT / "tests" / "run.py")
    suite = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(suite)
    return suite


@pytest.mark.parametrize("cores", [1, 2, 4])
def test_every_notebook_and_every_file_of_tests_is_in_one_part_of_each_stage(suite, cores):
    notebooks = sorted(path.relative_to(ROOT).as_posix() for path in cells.notebooks())
    files = sorted(f"tests/{path.name}" for path in (ROOT / "tests").glob("test_*.py"))
    parts = suite.parts(cores, {"tests": {files[0]: 100.0}, "nbdev_test": {"nbs/index.ipynb": 50.0}})
    stages = {stage: [each for other, each in parts if other is stage] for stage in suite.STAGES}
    found = {stage: sorted(path for each in lists for path in each) for stage, lists in stages.items()}
    assert found == {suite.sync: [], suite.nbdev_test: notebooks, suite.nbval: notebooks, suite.tests: files}
    assert stages[suite.sync] == [[]]
    assert len(stages[suite.nbval]) == len(stages[suite.tests]) == cores
    trains = [path.relative_to(ROOT).as_posix() for path in plan.makers()[0]["kept("]]
    assert parts[:len(trains)] == [(suite.nbdev_test, [path]) for path in trains]


def test_the_first_run_goes_by_the_seconds_of_another(suite, tmp_path, monkeypatch):
    for name, seconds in ("FIRST_TIMES", {"tests": {"a": 1.0, "b": 2.0}}), ("TIMES", {"tests": {"b": 3.0}}):
        monkeypatch.setattr(suite, name, tmp_path / name)
        (tmp_path / name).write_text(json.dumps(seconds))
    assert suite.last_times() == {"tests": {"a": 1.0, "b": 3.0}}
    (tmp_path / "TIMES").write_text("{")
    assert suite.last_times() == {"tests": {"a": 1.0, "b": 2.0}}


def test_parts_take_about_as_long_as_one_another(suite):
    files = [f"tests/{path.name}" for path in sorted((ROOT / "tests").glob("test_*.py"))][:6]
    seconds = dict(zip(files, (9.0, 5.0, 4.0, 1.0, 1.0, 2.0)))
    assert [sum(map(seconds.get, each)) for each in suite.shared_out(files, seconds, 2)] == [11.0, 11.0]
    assert suite.shared_out(files[:1], {}, 4) == [files[:1]]
    assert sorted(sum(suite.shared_out(files, {}, 3), [])) == files
    by_name = suite.files_of({"tests.test_a": 1.5, "nbs.rooms.b.ipynb": 2.0}, ["tests/test_a.py", "nbs/rooms/b.ipynb"])
    assert by_name == {"tests/test_a.py": 1.5, "nbs/rooms/b.ipynb": 2.0}


def test_notebooks_run_apart_and_each_counts(suite, tmp_path, capsys):
    """What one does to its libraries, its folder or its process, another does not see; nor if one ends its process."""
    spoil = "import builtins, os, numpy, torch\nnumpy.spoilt = builtins.spoilt = os.environ['SPOILT'] = '1'\n"
    sound = "import os, sys, numpy, torch\nassert not hasattr(numpy, 'spoilt') and 'SPOILT' not in os.environ\n" \
            "assert torch.get_default_dtype() == torch.float32 and 'vae_gmm' not in sys.modules\ntry: spoilt\n" \
            "except NameError: pass\nelse: 1 / 0"
    sources = dict(a=spoil + "torch.set_default_dtype(torch.float64)", b=sound, c="raise ValueError('bad')",
                   d="import os\nos._exit(3)", e=sound, f="#| slow\n1 / 0", g="import nbdev; nbdev.nbdev_export(1, 2)")
    for name, source in sources.items():
        write(tmp_path / f"{name}.ipynb", source)
    files = [str(tmp_path / f"{name}.ipynb") for name in sources]
    stage, count, _, seconds = suite.carry_out((suite.nbdev_test, files), tmp_path)
    said = capsys.readouterr().out
    assert stage is suite.nbdev_test and count == {"passed": 5, "failed": 2}, said
    assert "ValueError: bad" in said and "c.ipynb" in said and list(seconds) == files and min(seconds.values()) > 0


def test_a_stage_that_ends_badly_counts_as_a_failure(suite, tmp_path, capsys):
    write(tmp_path / "fails.ipynb", "1 / 0")
    for part in (suite.tests, ["tests/test_that_is_not_there.py"]), (suite.nbval, [str(tmp_path / "fails.ipynb")]):
        stage, count, seconds, files = suite.carry_out(part, tmp_path)
        assert stage is part[0] and count["failed"] == 1 and seconds > 0 and list(files) == part[1]
    said = capsys.readouterr().out
    assert "not found" in said and "ZeroDivisionError" in said
    assert suite.in_words({"passed": 2, "failed": 0, "skipped": 1}) == "2 passed, 0 failed, 1 skipped"
