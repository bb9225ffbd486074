"""The measurements, what each asks, and what is stored: `python -m experiments`; each runs by itself, as listed."""
import ast
import json
from pathlib import Path

import click


@click.command()
def main():
    """List the measurements."""
    for script in sorted(Path(__file__).parent.glob("*.py")):
        text = ast.get_docstring(ast.parse(script.read_text(encoding="utf-8"))) or ""
        if "`python -m experiments." not in text:
            continue
        stored = script.with_suffix(".json")
        runs = json.loads(stored.read_text(encoding="utf-8"))["runs"] if stored.exists() else []
        minutes = sum(run.get("seconds", 0) for run in runs) / 60
        click.echo(f"{script.stem:10} {len(runs):2} runs stored, {minutes:.0f} min of training. {text.splitlines()[0]}")


if __name__ == "__main__":
    main()
