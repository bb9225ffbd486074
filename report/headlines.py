"""Print the figures of this machine's run beside the published ones: `python -m report.headlines`.

The run of `make report` writes them to build/figures/results.json, the published ones are in figures/results.json. A
network trained on another maker's processor, or on another number of threads, is another network: sums are taken in
another order, and after some epochs the weights differ.
"""
import json
from pathlib import Path

import click

from report import cells

SHOWN = {  # what is shown of results.json, where it has it: place, name, format
    "test.accuracy": ("accuracy on the test images", "{:.4f}"),
    "official.accuracy": ("accuracy on MNIST's official test images", "{:.4f}"),
    "test.f1_macro": ("F1, macro", "{:.4f}"),
    "reconstruction.ssim": ("SSIM of the reconstructions", "{:.4f}"),
    "reconstruction.one_minus_mse": ("1 - MSE of the reconstructions", "{:.4f}"),
    "training.elbo_test": ("ELBO on the test images, nats", "{:.2f}")}


def value(results, place):
    """What `results` holds at a place such as test.accuracy, or None."""
    for name in place.split("."):
        results = results.get(name) if isinstance(results, dict) else None
    return results


def table(here, published):
    """Lines with the figures of two results.json, one beside the other."""
    rows = [("", "here", "published")]
    for place, (name, form) in SHOWN.items():
        values = value(here, place), value(published, place)
        if any(v is not None for v in values):
            rows.append((name, *("-" if v is None else form.format(v) for v in values)))
    return [f"{name:42} {a:>10} {b:>10}" for name, a, b in rows]


@click.command()
@click.option("--root", default=cells.ROOT, type=click.Path(file_okay=False, path_type=Path), help="Project folder.")
def main(root):
    """Print the headline figures of build/ beside the published ones."""
    files = Path(root, "build", "figures", "results.json"), Path(root, "figures", "results.json")
    try:
        here, published = (json.loads(path.read_text(encoding="utf-8")) for path in files)
    except (OSError, ValueError) as err:
        raise click.ClickException(f"{err}; expected the results of `make report`") from None
    click.echo("\n".join(["", *table(here, published), ""]))
    pairs = [(value(here, place), value(published, place)) for place in SHOWN]
    click.echo("They are the same." if all(a == b for a, b in pairs if None not in (a, b)) else
               "They differ, as processors do: another order of sums, another network.")


if __name__ == "__main__":
    main()
