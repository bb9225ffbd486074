"""The measurements, what each asks, and what is stored: `python -m experiments`; each runs by itself, as listed.

`python -m experiments replicate` runs one stored row again: a draw of accuracy.py or a change of steps.py, chosen by
the date. The accuracy on the official test images must agree within three standard deviations over draws, of this
change if those are more, since rounding on another machine makes another network of the same seed.
"""
import ast
import datetime
import json
import os
import tempfile
from importlib import import_module
from pathlib import Path
from statistics import stdev

import click

HERE = Path(__file__).parent
ROWS = {"accuracy": ("seed", "device"), "steps": ("change", "seed")}  # scripts whose rows can be drawn, and their keys


def stored(name):
    """The finished runs of a script."""
    path = HERE / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8"))["runs"] if path.exists() else []


@click.group(invoke_without_command=True)
@click.pass_context
def main(context):
    """List the measurements."""
    if context.invoked_subcommand:
        return
    for script in sorted(HERE.glob("*.py")):
        text = ast.get_docstring(ast.parse(script.read_text(encoding="utf-8"))) or ""
        if "`python -m experiments." not in text:
            continue
        runs = stored(script.stem)
        minutes = sum(run.get("seconds", 0) for run in runs) / 60
        click.echo(f"{script.stem:10} {len(runs):2} runs stored, {minutes:.0f} min of training. {text.splitlines()[0]}")


@main.command()
@click.option("--date", type=click.DateTime(["%Y-%m-%d"]), default=datetime.date.today().isoformat())
def replicate(date):
    """Run one stored row again, drawn by the date; exit status 1 if it does not agree; needs `VAE_GMM_DATA`."""
    rows = [(name, run) for name in ROWS for run in stored(name)]
    name, run = rows[date.toordinal() % len(rows)]
    key = {word: run[word] for word in ROWS[name]}
    click.echo(f"{name}.json, {key}: {run['test']:.4f}, measured on {run['provenance']['date']}; running it again")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["VAE_GMM_KEPT"] = folder  # trained anew
        found = import_module(f"experiments.{name}").one(**key)["test"]
    alike = [other["test"] for other in stored(name) if other.get("change") == run.get("change")]
    allowed = 3 * max(stdev(alike) if len(alike) > 1 else 0, stdev(run["test"] for run in stored("accuracy")))
    agrees = abs(found - run["test"]) <= allowed
    click.echo(f"{found:.4f}: {'agrees' if agrees else 'does not agree'} within {allowed:.4f}")
    raise SystemExit(not agrees)


if __name__ == "__main__":
    main()
