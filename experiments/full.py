"""What do all of MNIST's images give, and does the accuracy drift? `python -m experiments.full [RUN ...]`.

The 60,000 training images without the labelled ones, or those of 1, 4 and 8, in batches of 32, else the default recipe;
draws 0 to 2. First 12 + 12 epochs, with the covariances shrunk as by default and not at all; nothing was tuned. After
every second epoch of stage two the official test images are read by the mixture of that epoch; this chooses nothing, it
shows the drift that earlier trials without shrinking had. Then 6 + 6 epochs, shrunk as by default, for 1, 4 and 8: the
shorter stage two that the drift led to, whose length was chosen with fewer images (stage_two.py). RUN is a number from
the list of runs. A GPU does one of three digits and 12 + 12 epochs in a minute, a core of a CPU one of 6 + 6 in half an
hour; `VAE_GMM_DATA` leads to MNIST.
"""
import sys

import numpy as np
from sklearn.neighbors import KNeighborsClassifier
import torch

from experiments import runs
from vae_gmm.classifier import VAEGMM, name_components
from vae_gmm.config import TrainConfig
from vae_gmm.data import as_images, straighten
from vae_gmm.files import mnist_digits
from vae_gmm.gmm import MixturePrior, e_step
from vae_gmm.training import fit_vae
from vae_gmm.vae import VAE, posterior

DIGITS = {"1, 4, 8": runs.DIGITS, "0 to 9": tuple(range(10))}


def reader(network, prior, labelled, test):
    """A function that reads the test images with the present mixture: accuracy, mean probability, volume, KL term."""
    (few, y_lab), (images, y_test) = labelled, test

    def read():
        z_lab, z = (posterior(network, x)[0].double() for x in (few, images))
        names = name_components(e_step(z_lab, *prior.mixture)[0].numpy(), y_lab)
        resp = e_step(z, *prior.mixture)[0].numpy()
        return dict(test=float((names[resp.argmax(1)] == y_test).mean()), sure=float(resp.max(1).mean()),
                    log_det=float(torch.logdet(prior.mixture.covariances).mean()))
    return read


def one(digits, epochs, shrinkage, seed):
    """The readings of one run, and the accuracy at its end."""
    chosen = DIGITS[digits]
    _, X_lab, y_lab = runs.draw(seed, chosen)
    X, y = runs.of_digits(*mnist_digits(train=True), chosen)
    known = {image.tobytes() for image in X_lab}
    fresh = np.array([image.tobytes() not in known for image in X])
    X, y, (test, y_test) = X[fresh], y[fresh], runs.test_images(chosen)
    straight, few, test = (straighten(as_images(images))[0] for images in (X, X_lab, test))
    torch.manual_seed(seed)
    network = VAE(max(8, len(chosen)), VAEGMM().dropout).to(runs.DEVICE)
    config = TrainConfig.fast(epochs=epochs, batch_size=32, shrinkage=shrinkage, seed=seed)
    prior, curve = MixturePrior(len(chosen), config.equal_weights, shrinkage), []
    read = reader(network, prior, (few, y_lab), (test, y_test))

    def look(history):
        row, second = history.rows[-1], len(history.rows) - config.epochs
        if row["stage"] == 2 and (second == 1 or second % 2 == 0):
            curve.append(dict(epoch=second, **read(), kl=row["train_kl"], reconstruction=row["train_reconstruction"]))

    history = fit_vae(network, straight, None, config, prior, callback=look)
    latents = posterior(network, straight)
    prior.refit(*latents, steps=5)
    near = KNeighborsClassifier(5).fit(latents[0].numpy(), y)
    return dict(n=len(X), **read(), neighbours=float(near.score(posterior(network, test)[0].numpy(), y_test)),
                curve=curve, seconds=round(sum(row["seconds"] for row in history.rows)))


if __name__ == "__main__":
    used = TrainConfig.fast().shrinkage
    keys = [dict(digits=digits, epochs=12, shrinkage=shrinkage, seed=seed) for digits in DIGITS
            for shrinkage in (used, 0.0) for seed in range(3)]
    keys += [dict(digits="1, 4, 8", epochs=6, shrinkage=used, seed=seed) for seed in range(3)]
    runs.measure(__file__, [keys[int(i)] for i in sys.argv[1:]] or keys, one)
