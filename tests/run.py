"""Run every test of the project and count: `python tests/run.py`.

Stages: what is derived agrees with its source (report/check.py); every notebook runs (nbdev_test); every notebook
prints what it has stored (nbval); tests/. Each stage is cut into parts, and as many parts run at once as there are
cores, each on one thread: two processes of one thread do more than one of two. Notebooks and files of tests are put
together so that the parts take about as long as one another, by the seconds of the last run (build/tests.json), the
first time by those of a run that tests/seconds.json keeps, or by size. Notebooks that train what others take begin, so
that these wait as little as possible; the other parts follow, the longest first, so that no core is idle at the end.
Those of nbdev_test are short, and forked from one process that has loaded the libraries (tests/notebooks.py).

All stages run, whatever the others found. The last line is `N passed, N failed` (and `, N skipped`), and the exit
status is not zero if anything failed.
"""
import json
import os
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ET
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from report import cells, plan  # noqa: E402
from report.run import available_cores  # noqa: E402

TIMES = ROOT / "build" / "tests.json"
FIRST_TIMES = ROOT / "tests" / "seconds.json"  # a copy of TIMES, made now and then
NBVAL = "--nbval", "--nbval-current-env", "--nbval-sanitize-with", "nbval_sanitize.cfg"


def run(tmp, *words):
    """Run Python on `words` in the project folder, whatever the user has set; its exit status and what it said."""
    env = {"OMP_NUM_THREADS": "1", **cells.environment(tmp)}
    env["VAE_GMM_KEPT"] = env.get("VAE_GMM_KEPT") or str(ROOT / "build" / "kept")
    done = subprocess.run([sys.executable, *map(str, words)], cwd=ROOT, stdin=subprocess.DEVNULL, env=env, text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    return done.returncode, done.stdout


def sync(tmp, folder):
    """what is derived agrees with its source (one count for each check)"""
    out = Path(tmp, "sync.json")
    status, said = run(folder, "-m", "report.check", "--json", out)
    return counted(Counter(json.loads(out.read_text())) if out.exists() else Counter(), status), said


def nbdev_test(tmp, folder, *notebooks):
    """every notebook runs (one count for each)"""
    out = Path(folder, "notebooks.json")
    if hasattr(os, "fork"):
        _, said = run(folder, "tests/notebooks.py", out, *notebooks)
        done = json.loads(out.read_text(encoding="utf-8")) if out.exists() else {}
    else:
        command, start = Path(sys.executable).with_name("nbdev_test"), time.perf_counter()
        ends = {path: run(folder, command, "--path", path) for path in notebooks}
        each = (time.perf_counter() - start) / len(ends)
        done, said = {path: (status, each) for path, (status, _) in ends.items()}, "".join(s for _, s in ends.values())
    Path(folder, "seconds.json").write_text(json.dumps({name_of(path): end[1] for path, end in done.items()}))
    return Counter("failed" if done.get(path, [1])[0] else "passed" for path in notebooks), said


def nbval(tmp, folder, *notebooks):
    """every notebook prints what it has stored (one count for each code cell)"""
    return pytest(tmp, folder, *NBVAL, *notebooks)


def tests(tmp, folder, *files):
    """what a notebook cannot show (one count for each test in tests/)"""
    return pytest(tmp, folder, *files)


def pytest(tmp, folder, *args):
    """pytest with `args`: one count for each test, taken from its report file."""
    out = Path(folder, "report.xml")
    status, said = run(folder, "-m", "pytest", "-q", *args, f"--junitxml={out}")
    count, seconds = Counter(), Counter()
    for case in ET.parse(out).iter("testcase") if out.exists() else ():
        kinds = {child.tag for child in case}
        count["failed" if kinds & {"failure", "error"} else "skipped" if "skipped" in kinds else "passed"] += 1
        seconds[case.get("classname")] += float(case.get("time"))
    Path(folder, "seconds.json").write_text(json.dumps(seconds))
    return counted(count, status), said


def counted(count, status):
    """`count`, with one failure if the stage ended badly without counting one."""
    if status and not count["failed"]:
        count["failed"] += 1
    return count


STAGES = sync, nbdev_test, nbval, tests


def last_times():
    """The seconds of the parts of earlier runs: {stage: {file in the project: seconds}}."""
    found = {}
    for path in FIRST_TIMES, TIMES:
        with suppress(OSError, ValueError):
            for stage, times in json.loads(path.read_text(encoding="utf-8")).items():
                found[stage] = found.get(stage, {}) | times
    return found


def shared_out(files, times, n):
    """`files` in `n` lists that take about as long as one another; `times` has the seconds of some."""
    known = [path for path in files if path in times]
    rate = sum(times[path] for path in known) / max(1, sum((ROOT / path).stat().st_size for path in known)) or 1e-3
    weight = {path: times.get(path, rate * (ROOT / path).stat().st_size) for path in files}
    bins = [[] for _ in range(min(n, len(files)))]
    for path in sorted(files, key=lambda path: -weight[path]):
        min(bins, key=lambda found: sum(weight[other] for other in found)).append(path)
    return bins


def parts(cores, times):
    """What is to be run, in order: (stage, files)."""
    notebooks = [path.relative_to(ROOT).as_posix() for path in cells.notebooks(ROOT)]
    files = sorted(path.relative_to(ROOT).as_posix() for path in Path(ROOT, "tests").glob("test_*.py"))
    trains = [path.relative_to(ROOT).as_posix() for path in plan.makers(ROOT)[0]["kept("]]
    others = [path for path in notebooks if path not in trains]
    return [*((nbdev_test, [path]) for path in trains),
            *((tests, each) for each in shared_out(files, times.get("tests", {}), cores)),
            *((nbval, each) for each in shared_out(notebooks, times.get("nbval", {}), cores)),
            *((nbdev_test, each) for each in shared_out(others, times.get("nbdev_test", {}), cores)), (sync, [])]


def name_of(path):
    """What pytest calls a file in its report."""
    return path.removesuffix(".py").replace("/", ".")


def files_of(names, files):
    """{file: seconds} from {name of a file: seconds}."""
    return {path: names.get(name_of(path), 0) for path in files}


def carry_out(part, tmp):
    """Run one part, say how it went; its stage, count, seconds, and the seconds of its files."""
    stage, files = part
    folder, start = tempfile.mkdtemp(dir=tmp), time.perf_counter()
    count, said = stage(tmp, folder, *files)
    seconds = time.perf_counter() - start
    what = files[0] if len(files) == 1 else f"{len(files)} files" if files else ""
    print(f"{stage.__name__:10} {what:36} {seconds:6.1f} s  {in_words(count)}", flush=True)
    if count["failed"]:
        print(said, flush=True)
    times = Path(folder, "seconds.json")
    return stage, count, seconds, files_of(json.loads(times.read_text()), files) if times.exists() else dict.fromkeys(
        files, seconds)


def in_words(count):
    """The counts in one line."""
    return f"{count['passed']} passed, {count['failed']} failed" + f", {count['skipped']} skipped" * bool(
        count["skipped"])


def main():
    cores, times, start = available_cores(), last_times(), time.perf_counter()
    count, seconds = {stage: Counter() for stage in STAGES}, Counter()
    with tempfile.TemporaryDirectory() as tmp, ThreadPoolExecutor(cores) as pool:
        for stage, found, took, files in pool.map(lambda part: carry_out(part, tmp), parts(cores, times)):
            count[stage] += found
            seconds[stage] += took
            if not found["failed"]:
                times.setdefault(stage.__name__, {}).update({path: round(value, 1) for path, value in files.items()})
    TIMES.parent.mkdir(exist_ok=True)
    TIMES.write_text(json.dumps(times, indent=1) + "\n", encoding="utf-8")
    print()
    for stage in STAGES:
        print(f"{stage.__name__:10} {in_words(count[stage]):36} {seconds[stage]:6.1f} s  {stage.__doc__}")
    total = sum(count.values(), Counter())
    print(f"{time.perf_counter() - start:.0f} s with {cores} {'core' if cores == 1 else 'cores'}")
    print(in_words(total), flush=True)
    return 1 if total["failed"] or not total["passed"] else 0


if __name__ == "__main__":
    sys.exit(main())
