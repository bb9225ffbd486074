"""What the measurements share: the protocol of one draw, the images that are read, and a file of finished runs.

Protocol. Draw s takes everything from the seed s: which of the embedded digits are labelled, tested on or left for
training (`write_course_files`), the weights, the order of the images, the variation. Settings were chosen on
development images (MNIST training images outside the embedded 5,000); trials before that had looked at official test
images. Here the official test images are read once a run, after training, and decide about nothing. Five draws of a
shorter recipe, 18 + 18 epochs in float32, had been read before (shorter.json); the longer one was chosen since it did
best on development images (settings.json) and bfloat16 had made room for it. `VAE_GMM_DEVICE=cuda` trains on a GPU.
"""
import datetime
import hashlib
import json
import os
import platform
import tempfile
from importlib.metadata import version
from pathlib import Path

from filelock import FileLock
import numpy as np
import torch

from vae_gmm.checkpoint import kept
from vae_gmm.classifier import VAEGMM
from vae_gmm.config import TrainConfig
from vae_gmm.data import embedded_digits, load_npz, write_course_files
from vae_gmm.files import mnist_digits, replacing

DIGITS = 1, 4, 8
DEVICE = os.environ.get("VAE_GMM_DEVICE", "cpu")


def draw(seed, digits=DIGITS):
    """Unlabelled images, labelled images and their labels for this seed, as `vae_gmm data --seed` writes them."""
    with tempfile.TemporaryDirectory() as folder:
        paths = write_course_files(folder, digits, seed=seed)
        return load_npz(paths["train"]).images, *load_npz(paths["val"])


def of_digits(images, labels, digits=DIGITS):
    """The images of these digits."""
    chosen = np.isin(labels, digits)
    return images[chosen], labels[chosen]


def trained(seed, images, changes={}, **arguments):
    """A classifier trained on a draw's images as `draw` gives them, with changes of the recipe; kept from earlier."""
    config = TrainConfig.fast(len(images[0]), **changes) if changes else None
    clf = VAEGMM(config=config, random_state=seed, device=DEVICE, **arguments)
    with kept(clf, images[0]) as path:
        return clf.fit_labelled(*images, checkpoint=path, resume=True)


def seconds(clf):
    """How long the training took, in whole seconds."""
    return round(sum(row["seconds"] for row in clf.history_.rows))


def test_images(digits=DIGITS):
    """The official test images, 3,091 of 1, 4 and 8; the MNIST folder is in `VAE_GMM_DATA`."""
    return of_digits(*mnist_digits(train=False), digits)


def outside_images():
    """The MNIST training images that are not embedded, of all ten digits."""
    images, labels = mnist_digits(train=True)
    embedded = {image.tobytes() for image in embedded_digits()[0]}
    outside = np.array([image.tobytes() not in embedded for image in images])
    return images[outside], labels[outside]


def development_images(every=3, digits=DIGITS):
    """Every third of the MNIST training images that are not embedded."""
    images, labels = of_digits(*outside_images(), digits)
    return images[::every], labels[::every]


def other_pens():
    """Digits never trained on: scikit-learn's 8 x 8 digits at MNIST's size; test images with another stroke width."""
    from scipy.ndimage import grey_dilation, grey_erosion, zoom
    from scipy.optimize import brentq
    from sklearn.datasets import load_digits
    images, labels = of_digits(*load_digits(return_X_y=True))
    large = np.stack([np.pad(zoom(image.reshape(8, 8), 2.5, order=1), 4) for image in images]).clip(0, 16) / 16
    def thinned(t): return ((large - t) / 0.4).clip(0, 1)
    ink = embedded_digits()[0].mean() / 255
    threshold = brentq(lambda t: thinned(t).mean() - ink, 0, 1)
    test, names = test_images()
    cross = np.array([[0, 1, 0], [1, 1, 1], [0, 1, 0]], bool)[None]
    thick, thin = grey_dilation(test, footprint=cross), grey_erosion(test, footprint=np.ones((1, 2, 2), bool))
    half = {f"test images, strokes half a pixel {word}": ((test / 510 + other / 510), names)
            for word, other in (("thicker", thick), ("thinner", thin))}
    return {"8 x 8 digits of scikit-learn": (large, labels),
            "the same, with as much ink as MNIST's": (thinned(threshold), labels), **half,
            "test images, strokes a pixel thicker": (thick, names),
            "test images, strokes a pixel thinner": (thin, names)}


def provenance(**more):
    """Date, versions, data and machine."""
    names = "torch", "numpy", "scikit-learn", "mlxtend"
    return dict(date=datetime.date.today().isoformat(), python=platform.python_version(),
                versions={name: version(name) for name in names}, processor=platform.processor() or platform.machine(),
                device=torch.cuda.get_device_name() if DEVICE == "cuda" else DEVICE,
                threads=torch.get_num_threads(), data=hashlib.sha256(embedded_digits()[0].tobytes()).hexdigest()[:16],
                **more)


def measure(script, keys, one):
    """Run one(**key) for each key whose result is not in SCRIPT.json yet; each finished run is written at once."""
    path = Path(script).with_suffix(".json")

    def others(key):
        """The finished runs, without that of `key`; other processes add to them meanwhile."""
        stored = json.loads(path.read_text())["runs"] if path.exists() else []
        return stored, [run for run in stored if any(run.get(k) != v for k, v in key.items())]

    for key in keys:
        stored, rest = others(key)
        if len(rest) < len(stored):
            continue
        run = key | one(**key) | dict(provenance=provenance())
        with FileLock(path.with_suffix(".lock")):
            runs = sorted([*others(key)[1], run], key=lambda run: json.dumps([run[k] for k in key]))
            with replacing(path) as part:
                part.write_text(json.dumps({"runs": runs}, indent=1) + "\n")
        print({k: v for k, v in run.items() if k != "provenance"}, flush=True)
