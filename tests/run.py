"""Run every test of the project, one stage after the other, and count: `python tests/run.py`.

Stages: what is derived agrees with its source (report/check.py); every notebook runs (nbdev_test); every notebook
prints what it has stored (nbval); tests/. All stages run, whatever the earlier ones found. The last line is
`N passed, N failed` (and `, N skipped`), and the exit status is not zero if anything failed.
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
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from report import cells  # noqa: E402


def run(tmp, *words, **kwargs):
    """Run Python on `words` in the project folder, whatever the user has set; its exit status."""
    return subprocess.run([sys.executable, *map(str, words)], cwd=ROOT, stdin=subprocess.DEVNULL,
                          **{"env": cells.environment(tmp), **kwargs})


def sync(tmp):
    """what is derived agrees with its source (one count for each check)"""
    out = Path(tmp, "sync.json")
    status = run(tmp, "-m", "report.check", "--json", out).returncode
    return counted(Counter(json.loads(out.read_text())) if out.exists() else Counter(), status)


def nbdev_test(tmp):
    """every notebook runs (one count for each)"""
    notebooks = sorted(cells.notebooks(ROOT), key=lambda path: -path.stat().st_size)  # about the longest first
    env = {"OMP_NUM_THREADS": "1", **cells.environment(tmp)}
    command = Path(sys.executable).with_name("nbdev_test")  # as many at a time as processors, one thread each

    def test(notebook):
        start = time.perf_counter()
        done = run(tmp, command, "--path", notebook, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                   text=True)
        seconds = time.perf_counter() - start
        result = "failed" if done.returncode else "passed"
        print(f"{cells.name_of(notebook, ROOT):30} {seconds:6.1f} s  {result}", flush=True)
        if done.returncode:
            print(done.stdout, flush=True)
        return result

    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        return Counter(pool.map(test, notebooks))


def pytest(tmp, *args):
    """pytest with `args`: one count for each test, taken from its report file."""
    out = Path(tmp, f"{len(os.listdir(tmp))}.xml")
    status = run(tmp, "-m", "pytest", "-q", *args, f"--junitxml={out}").returncode
    count = Counter()
    for case in ET.parse(out).iter("testcase") if out.exists() else ():
        kinds = {child.tag for child in case}
        count["failed" if kinds & {"failure", "error"} else "skipped" if "skipped" in kinds else "passed"] += 1
    return counted(count, status)


def nbval(tmp):
    """every notebook prints what it has stored (one count for each code cell)"""
    return pytest(tmp, "--nbval", "--nbval-current-env", "--nbval-sanitize-with", "nbval_sanitize.cfg", "nbs")


def tests(tmp):
    """what a notebook cannot show (one count for each test in tests/)"""
    return pytest(tmp, "tests")


def counted(count, status):
    """`count`, with one failure if the stage ended badly without counting one."""
    if status and not count["failed"]:
        count["failed"] += 1
    return count


STAGES = sync, nbdev_test, nbval, tests


def main():
    total, lines = Counter(), []
    with tempfile.TemporaryDirectory() as tmp:
        for stage in STAGES:
            print(f"\n== {stage.__name__}: {stage.__doc__}", flush=True)
            start = time.perf_counter()
            count = stage(tmp)
            lines.append(f"{stage.__name__:12} {count['passed']:5} passed {count['failed']:4} failed "
                         f"{count['skipped']:4} skipped {time.perf_counter() - start:7.0f} s")
            total += count
    print("\n" + "\n".join(lines))
    skipped = f", {total['skipped']} skipped" if total["skipped"] else ""
    print(f"{total['passed']} passed, {total['failed']} failed{skipped}", flush=True)
    return 1 if total["failed"] or not total["passed"] else 0


if __name__ == "__main__":
    sys.exit(main())
