"""Are new digits digits, and are all kinds among them? Three draws: `python -m experiments.new_digits [SEED ...]`.

The networks are those of accuracy.py; 500 samples of each of 1, 4 and 8. A small convolutional network that knows all
ten digits, trained with labels on 8,000 straightened MNIST training images that are not embedded, says what each
sample is. Its 64 features measure coverage and density (Naeem et al., 2020), with 5 neighbours: 1,500 official test
images of 1, 4 and 8 are the real ones, and the samples are held against 1,500 other test images in their place. Nothing
was chosen by the result. Beside it, in draw 0: samples of a network of stage one alone, from its prior N(0, I). No
copies: the distance of a sample to the nearest of the images that were trained on, beside that of real test images.
"""
import sys

import numpy as np
from sklearn.neighbors import NearestNeighbors
import torch
from torch import nn
import torch.nn.functional as F

from experiments import runs
from vae_gmm.data import as_images, straighten
from vae_gmm.vae import decode


def upright(images):
    """Straightened images, (n, 1, 28, 28)."""
    return straighten(as_images(images))[0]


def reader(x, labels, epochs=4, seed=0):
    """A network of two convolutions that reads ten digits: (what makes features, what reads them)."""
    torch.manual_seed(seed)
    features = nn.Sequential(nn.Conv2d(1, 16, 5, 2, 2), nn.ReLU(), nn.Conv2d(16, 32, 5, 2, 2), nn.ReLU(), nn.Flatten(),
                             nn.Dropout(0.25), nn.Linear(32 * 49, 64), nn.ReLU())
    answer, labels = nn.Linear(64, 10), torch.from_numpy(labels)
    weights = [*features.parameters(), *answer.parameters()]
    optimizer, steps = torch.optim.Adam(weights, 3e-3), epochs * -(-len(x) // 64)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps + 1)
    for _ in range(epochs):
        for batch in torch.randperm(len(x)).split(64):
            optimizer.zero_grad()
            F.cross_entropy(answer(features(x[batch])), labels[batch]).backward()
            optimizer.step()
            schedule.step()
    return features.eval(), answer


def density_and_coverage(real, made, k=5):
    """Naeem et al. (2020): balls around the real points, as wide as the distance to the k-th nearest other real one."""
    near = NearestNeighbors(n_neighbors=k + 1).fit(real)
    radius = near.kneighbors(real)[0][:, k]
    inside = np.linalg.norm(real[:, None] - made[None], axis=2) < radius[:, None]  # (real, made)
    return float(inside.sum() / (k * len(made))), float(inside.any(1).mean())


def nearest(x, known):
    """Median distance to the nearest of the known images."""
    distance = NearestNeighbors(n_neighbors=1).fit(known.flatten(1).numpy()).kneighbors(x.flatten(1).numpy())[0]
    return round(float(np.median(distance)), 3), round(float(distance.min()), 3)


@torch.no_grad()
def judged(x, meant, real, features, answer):
    """Share read as what was meant, and density and coverage among the features of the real images."""
    found = features(x)
    said = answer(found).argmax(1).numpy()
    right = {} if meant is None else dict(
        recognised=round(float((said == meant).mean()), 4),
        by_digit={int(d): round(float((said == d)[meant == d].mean()), 4) for d in runs.DIGITS})
    one_of = np.isin(said, runs.DIGITS).mean()
    density, coverage = density_and_coverage(features(real).numpy(), found.numpy())
    return right | dict(one_of_the_three=round(float(one_of), 4), density=round(density, 4),
                        coverage=round(coverage, 4))


def one(seed, samples):
    """What the reader makes of new digits, of real images, or of samples of stage one."""
    images, labels = runs.outside_images()
    chosen = np.random.default_rng(seed).permutation(len(images))[:8000]
    features, answer = reader(upright(images[chosen]), labels[chosen], seed=seed)
    test, names = runs.test_images()
    order = np.random.default_rng(seed).permutation(len(test))[:3000]
    x, meant = upright(test[order]), names[order]
    real, x, meant, draw = x[:1500], x[1500:], meant[1500:], runs.draw(seed)
    if samples == "new digits":
        clf = runs.trained(seed, draw)
        parts = [clf.sample(500, label=d, random_state=seed) for d in runs.DIGITS]
        x, meant = torch.from_numpy(np.concatenate([p[0] for p in parts])), np.concatenate([p[1] for p in parts])
    elif samples == "stage one":
        clf, meant = runs.trained(seed, draw, dict(prior_epochs=0)), None
        z = torch.randn(1500, clf.latent_dim, generator=torch.Generator().manual_seed(seed))
        x = torch.from_numpy(decode(clf.vae_, z))
    return judged(x, meant, real, features, answer) | dict(nearest=nearest(x, upright(draw[0])))


if __name__ == "__main__":
    seeds = [int(seed) for seed in sys.argv[1:]] or range(3)
    keys = [dict(seed=seed, samples=samples) for seed in seeds for samples in ("new digits", "real test images")]
    runs.measure(__file__, [*keys, *[dict(seed=0, samples="stage one")] * (0 in seeds)], one)
