"""How long should stage two be when there are more images? Ten digits: `python -m experiments.stage_two [SEED ...]`.

The 3,950 unlabelled images of a draw, ten dimensions, 24 epochs of stage one, and from there stage two with schedules
of several lengths, each run to its end. Only development images are read, every twelfth MNIST training image outside
the embedded ones, after every second epoch and by the final mixture. Eight minutes for stage one and half a minute an
epoch of stage two on one core; `VAE_GMM_DATA` leads to MNIST.
"""
import copy
import sys
from dataclasses import replace

import torch

from experiments import runs
from vae_gmm.classifier import name_components
from vae_gmm.config import TrainConfig
from vae_gmm.data import as_images, straighten
from vae_gmm.devices import products, seeded
from vae_gmm.gmm import MixturePrior, e_step
from vae_gmm.training import Run, begin_stage_two, finish, run_epochs
from vae_gmm.vae import posterior

DIGITS, LENGTHS = tuple(range(10)), (8, 14)


def reader(network, few, y_lab, images, labels):
    """A function from a mixture to the share of the images that it reads rightly."""
    def read(mixture):
        z_lab, z = (posterior(network, x)[0].double() for x in (few, images))
        names = name_components(e_step(z_lab, *mixture)[0].numpy(), y_lab)
        return round(float((names[e_step(z, *mixture)[0].argmax(1).numpy()] == labels).mean()), 4)
    return read


def one(seed, epochs):
    """Accuracies on development images in the course of stage two, and by the number of EM steps after it."""
    X, X_lab, y_lab = draw = runs.draw(seed, DIGITS)
    clf = copy.deepcopy(runs.trained(seed, draw, dict(prior_epochs=0), latent_dim=10))
    images, labels = runs.development_images(12, DIGITS)
    x, few, images = (straighten(as_images(a))[0] for a in (X, X_lab, images))
    config = TrainConfig.fast(seed=seed, beta_warmup=0, prior_epochs=epochs)  # the warm-up was in stage one
    prior, device = MixturePrior(len(DIGITS), config.equal_weights, config.shrinkage), torch.device("cpu")
    read, curve = reader(clf.vae_, few, y_lab, images, labels), {}
    with seeded(seed, device), products(config.precision, device) as precision, torch.inference_mode(False):
        run = Run(clf.vae_, replace(config, precision=precision), len(x), prior)
        begin_stage_two(run, x)
        curve[0] = read(prior.mixture)

        def look():
            done = len(run.history.rows)
            if done % 2 == 0:
                run.model.eval()
                curve[done] = read(prior.mixture)
                run.model.train()

        run_epochs(run, x, None, [look], model=clf.vae_, step=None, record=lambda step: step)
    finish(run, clf.vae_)
    latents, trained, final = posterior(clf.vae_, x), prior.state_dict(), {}
    for steps in (0, 1, 2, 5, 10):
        prior.load_state_dict(trained)
        prior.refit(*latents, steps=steps)
        final[steps] = read(prior.mixture)
    return dict(curve=curve, development=final[5], em_steps=final, seconds=runs.seconds(clf) + round(
        sum(row["seconds"] for row in run.history.rows)))


if __name__ == "__main__":
    runs.measure(__file__, [dict(seed=int(seed), epochs=epochs) for seed in sys.argv[1:] or range(2)
                            for epochs in LENGTHS], one)
