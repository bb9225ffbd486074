"""The long measurements behind nbs/06_results.ipynb: `make experiments` writes figures/experiments.json.

Seeds, baselines and ablations on the embedded digits. Each classifier is scored on the held-out digits, on MNIST's
official test images and, where a setting is to be chosen, on development images: MNIST training images that are not
embedded. The folder that VAE_GMM_DATA names holds MNIST. The networks are trained side by side, one process for each
processor, and the file says when, with which versions, on what machine and on which data they ran. Trained networks
are kept in .experiments/, so that an interrupted run goes on where it was; remove the folder to train them anew.

Two parts behind nbs/04_training.ipynb take longer and run only when asked for: `--only recipes` compares recipes on the
embedded digits, and `--only full` compares some of them on all of MNIST's training images of these digits (hours; with
`--missing` only what is not stored yet is measured; each of these rows says when, and with how many threads).
"""
import datetime
import hashlib
import json
import multiprocessing
import os
import platform
import tempfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import click
import numpy as np
import torch
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.neighbors import KNeighborsClassifier
from tqdm import tqdm

import vae_gmm
from vae_gmm.classifier import VAEGMM, average, em_solutions, label_shares, overlaps, start_means
from vae_gmm.data import as_images, embedded_digits, load_npz, mnist_digits, split_indices, write_course_files
from vae_gmm.mixture import GaussianMixture
from vae_gmm.model_files import load_vae, save_vae
from vae_gmm.training import TrainConfig, fit_vae
from vae_gmm.vae import VAE, elbo, encode, evaluate

ROOT = Path(__file__).resolve().parent.parent
DIGITS = np.array([1, 4, 8])
NETWORKS = ROOT / ".experiments"
OURS = "VAE and mixture (this report)"
ABLATIONS = {  # what differs from the recipe, one at a time
    "beta": (0.1, 0.25, 1.0, 2.0, 4.0), "latent_dim": (1, 4, 8, 16), "dropout": (0.0, 0.5), "images": (150, 300, 600)}
PER_CLASS, LABELS, RHOS, DRAWS = (1, 2, 3, 4, 6), (1, 2, 5, 20), (0.0, 0.5, 0.8, 0.9), 20  # these need no training
COURSE, FAST, WITHOUT = "course project", "one cycle, batches of 16 (fast)", "fast, without dropout"
RECIPES = {  # what was tried against the course project's recipe
    COURSE: TrainConfig(),
    "one cycle, batches of 32": TrainConfig.fast(batch_size=32),
    "the same, twice the step size": TrainConfig.fast(batch_size=32, lr=2e-3),
    FAST: TrainConfig.fast()}
RECIPE_SEEDS = 3
SHORT = TrainConfig.fast(epochs=20, precision="bfloat16")
FULL = {  # on fifteen times as many images, with shorter numbers to save hours: configuration and dropout
    COURSE: (TrainConfig(precision="bfloat16"), 0.2),
    FAST: (SHORT, 0.2),
    WITHOUT: (SHORT, 0.0)}


class Split:
    """The course's files for one seed as arrays, other images to score on, and the training file's hidden labels."""

    def __init__(self, seed, root=None):
        with tempfile.TemporaryDirectory() as folder:
            parts = {k: load_npz(p) for k, p in write_course_files(folder, tuple(DIGITS.tolist()), seed=seed).items()}
        known = {image.tobytes(): label for image, label in zip(*embedded_digits())}
        self.train, self.labelled, self.y_labelled = parts["train"].images, parts["val"].images, parts["val"].labels
        self.y_train = np.array([known[image.tobytes()] for image in self.train])
        official, labels = mnist_digits(root, train=False)
        keep = np.isin(labels, DIGITS)
        images, others = mnist_digits(root, train=True)
        fresh = np.array([label in DIGITS and image.tobytes() not in known for image, label in zip(images, others)])
        chosen = np.random.default_rng(0).choice(np.flatnonzero(fresh), 3000, replace=False)
        self.parts = {"held_out": (parts["test"].images, parts["test"].labels),
                      "official": (official[keep], labels[keep]), "development": (images[chosen], others[chosen])}

    def keep(self, chosen):
        """Leave only the chosen training images."""
        self.train, self.y_train = self.train[chosen], self.y_train[chosen]

    def score(self, predict, parts=("held_out", "official")):
        """Accuracy of `predict` on the named images."""
        return {part: float((predict(self.parts[part][0]) == self.parts[part][1]).mean()) for part in parts}


def flat(images):
    """Images as float64 (n, 784) in [0, 1]."""
    return as_images(images).flatten(1).double().numpy()


def named(gmm, z, z_labelled, y_labelled, embed=lambda z: z, rho=0.5):
    """The classifier of chapter 5 from a mixture of the points z, as a function of what `embed` takes."""
    shares = label_shares(gmm.predict_proba(z_labelled), y_labelled, DIGITS, overlaps(gmm.predict_proba(z)), rho)
    return lambda x: DIGITS[(gmm.predict_proba(embed(x)) @ shares).argmax(1)]


def mixture(split, embed, seed, per_class=2):
    """The classifier of chapter 5 on `embed`ded images."""
    z, z_labelled = embed(split.train), embed(split.labelled)
    start = start_means(z, z_labelled, split.y_labelled, DIGITS, per_class, seed)
    gmm = average(em_solutions(z, start, random_state=seed))
    return named(gmm, z, z_labelled, split.y_labelled, embed)


def k_means(split, seed, per_class=4):
    """k-means on pixels; a cluster has the name of the labelled image nearest to its centre."""
    model = KMeans(per_class * len(DIGITS), n_init=20, random_state=seed).fit(flat(split.train))
    names = KNeighborsClassifier(1).fit(flat(split.labelled), split.y_labelled).predict(model.cluster_centers_)
    return lambda images: names[model.predict(flat(images))]


def pixel_mixture(split, seed, per_class=4):
    """A mixture with diagonal covariances on pixels; 784 x 784 matrices could not be learned from so few images."""
    pixels = flat(split.train)
    gmm = GaussianMixture(per_class * len(DIGITS), covariance_type="diag", reg_covar=1e-2, init_params="k-means++",
                          n_init=20, max_iter=500, random_state=seed).fit(pixels)
    return named(gmm, pixels, flat(split.labelled), split.y_labelled, flat)


def neighbours(split, embed):
    """15 nearest neighbours with all training labels on `embed`ded images."""
    knn = KNeighborsClassifier(15).fit(embed(split.train), split.y_train)
    return lambda images: knn.predict(embed(images))


def supervised(split, seed, epochs=15):
    """A small convolutional network trained with all labels."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = torch.nn.Sequential(
            torch.nn.Conv2d(1, 16, 3, 2, 1), torch.nn.ReLU(),
            torch.nn.Conv2d(16, 32, 3, 2, 1), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(32 * 49, 3))
        optimizer = torch.optim.Adam(net.parameters(), 1e-3)
        x, y = as_images(split.train), torch.from_numpy(np.searchsorted(DIGITS, split.y_train))
        for _ in range(epochs):
            for index in torch.randperm(len(x)).split(32):
                optimizer.zero_grad()
                torch.nn.functional.cross_entropy(net(x[index]), y[index]).backward()
                optimizer.step()
    return lambda images: DIGITS[net(as_images(images)).argmax(1).numpy()]


class Autoencoder(VAE):
    """The network without noise in the latent space."""

    def reparameterize(self, mu, logvar, generator=None):
        return mu


def network(images, config, latent_dim=2, dropout=0.2, kind=VAE):
    """A network trained on images as `VAEGMM.fit_vae` does it, its validation images, the epochs: trained and best."""
    x = as_images(images)
    train, val = split_indices(len(x), config.train_share, config.seed)
    data = hashlib.sha256(images.tobytes()).hexdigest()
    key = repr((vae_gmm.__version__, data, asdict(config), latent_dim, dropout, kind.__name__))
    path = NETWORKS / hashlib.sha256(key.encode()).hexdigest()[:16]
    facts = path.with_suffix(".json")
    if facts.exists():
        return load_vae(path), x[val], json.loads(facts.read_text())
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        net = kind(latent_dim, dropout)
    NETWORKS.mkdir(exist_ok=True)
    checkpoint = path.with_suffix(".checkpoint")
    history = fit_vae(net, x[train], x[val], config, checkpoint, resume=True)
    save_vae(net, path)
    facts.write_text(json.dumps(dict(epochs=len(history.rows), best_epoch=history.best_epoch)))
    checkpoint.unlink()
    return net, x[val], json.loads(facts.read_text())


def autoencoder(split, seed):
    """Latent points of an autoencoder trained like the VAE, with beta = 0 and without sampling."""
    net, _, _ = network(split.train, TrainConfig.fast(seed=seed, beta=0.0), kind=Autoencoder)
    return lambda images: encode(net, as_images(images))


def baselines(split, seed, latent):
    """Accuracy of each method the report is compared with; group 0 has 15 labels, group 1 all training images'."""
    pca = {d: PCA(d, random_state=seed).fit(flat(split.train)) for d in (2, 32)}
    methods = {
        ("k-means on pixels", 0): k_means(split, seed),
        ("diagonal mixture on pixels", 0): pixel_mixture(split, seed),
        ("PCA to 2, mixture", 0): mixture(split, lambda x: pca[2].transform(flat(x)), seed),
        ("PCA to 32, mixture", 0): mixture(split, lambda x: pca[32].transform(flat(x)), seed, per_class=1),
        ("autoencoder, mixture", 0): mixture(split, autoencoder(split, seed), seed),
        ("VAE, 15 nearest neighbours", 1): neighbours(split, latent),
        ("supervised CNN", 1): supervised(split, seed),
    }
    return [dict(method=m, group=g, seed=seed, **split.score(predict)) for (m, g), predict in methods.items()]


def without_training(split, seed, latent):
    """Accuracy for other numbers of components and labelled images a digit and other walks, on one network's points."""
    z, z_labelled, rows = latent(split.train), latent(split.labelled), []
    points = {part: (latent(images), y) for part, (images, y) in split.parts.items()}
    for per_class in PER_CLASS:
        start = start_means(z, z_labelled, split.y_labelled, DIGITS, per_class, seed)
        solutions = em_solutions(z, start, random_state=seed)
        facts = dict(seed=seed, per_class=per_class, bic=solutions[0].bic(z))
        mixtures = {len(solutions): average(solutions), 1: solutions[0]}
        resp = {n: {part: gmm.predict_proba(p) for part, (p, _) in points.items()} for n, gmm in mixtures.items()}
        T = {n: overlaps(gmm.predict_proba(z)) for n, gmm in mixtures.items()}
        settings = [(len(solutions), labels, rho) for labels in LABELS for rho in RHOS] + [(1, 5, 0.0), (1, 5, 0.5)]
        for n, labels, rho in settings:
            scores = []
            for draw in range(DRAWS):
                rng = np.random.default_rng(draw)
                chosen = [rng.choice(np.flatnonzero(split.y_train == d), labels, replace=False) for d in DIGITS]
                chosen = np.concatenate(chosen)
                shares = label_shares(mixtures[n].predict_proba(z[chosen]), split.y_train[chosen], DIGITS, T[n], rho)
                scores.append({part: (DIGITS[(resp[n][part] @ shares).argmax(1)] == y).mean()
                               for part, (_, y) in points.items()})
            rows += [dict(facts, solutions=n, labels=labels, rho=rho, draws=DRAWS,
                          **{f"{part}_{name}": float(f([score[part] for score in scores]))
                             for part in points for name, f in (("mean", np.mean), ("worst", np.min))})]
    return rows


def classifier(split, net, config, **sizes):
    """The classifier of chapter 5 on a trained network."""
    clf = VAEGMM(**sizes, config=config, random_state=config.seed)
    clf.vae_ = net
    return clf.fit_gmm(split.train, split.labelled, split.y_labelled)


def at_full_scale(name, seed):
    """A recipe on all of MNIST's training images of the digits."""
    config, dropout = FULL[name]
    images, labels = mnist_digits(train=True)
    split, config = Split(seed), replace(config, seed=seed)
    chosen = np.isin(labels, DIGITS)
    split.train, split.y_train = images[chosen], labels[chosen]
    net, val, epochs = network(split.train, config, dropout=dropout)
    clf = classifier(split, net, config, dropout=dropout)
    def latent(images): return encode(net, as_images(images))
    def official(predict): return split.score(predict, ("official",))["official"]
    gmm, z, y = clf.gmm_, latent(split.train), split.y_train
    mixed = label_shares(gmm.predict_proba(z), y, DIGITS).max(1) < 0.9  # components without a digit of nine tenths
    return dict(recipe=name, seed=seed, **when(), **epochs, images=len(split.train) - len(val),
                precision=config.precision, elbo=elbo(net, val), official=official(clf.predict),
                all_labels=official(named(gmm, z, z, y, latent)),
                neighbours=official(neighbours(split, latent)), mixed=float(gmm.weights_[mixed].sum()))


def when():
    """The date, and the threads in use."""
    return dict(date=datetime.date.today().isoformat(), threads=torch.get_num_threads())


def run(job, threads=1):
    """One network and what is measured on it: rows by table."""
    torch.set_num_threads(threads)
    kind, seed, changed = job
    if kind == "full":
        return dict(full=[at_full_scale(changed["recipe"], seed)])
    changed = dict(changed)
    name, images = changed.pop("recipe", FAST), changed.pop("images", None)
    sizes = {k: changed.pop(k) for k in ("latent_dim", "dropout") if k in changed}
    split = Split(seed)
    if images:
        split.keep(np.random.default_rng(seed).permutation(len(split.train))[:images])
    config = replace(RECIPES[name], seed=seed, **changed)
    net, val, epochs = network(split.train, config, **sizes)
    clf = classifier(split, net, config, **sizes)
    def latent(images): return encode(net, as_images(images))
    scores = split.score(clf.predict, ("held_out", "official", "development"))
    if kind == "recipes":
        return dict(recipes=[dict(recipe=name, seed=seed, **when(), **epochs, elbo=elbo(net, val),
                                  development=scores["development"])])
    reconstruction, kl = evaluate(net, val)
    knn = split.score(neighbours(split, latent), ("official", "development"))
    row = dict(seed=seed, **scores, neighbours=knn["official"], neighbours_development=knn["development"],
               val_loss=reconstruction + config.beta * kl, reconstruction=reconstruction, kl=kl)
    if kind == "ablations":
        setting, value = next(iter(job[2].items()))
        return dict(ablations=[dict(setting=setting, value=value, **row)])
    ours = dict(method=OURS, group=0, seed=seed, held_out=scores["held_out"], official=scores["official"])
    return dict(seeds=[row], baselines=[ours, *baselines(split, seed, latent)],
                choices=without_training(split, seed, latent))


def rounded(value):
    """The same structure, floats to five decimals."""
    if isinstance(value, dict):
        return {k: rounded(v) for k, v in value.items()}
    if isinstance(value, list):
        return [rounded(v) for v in value]
    return round(value, 5) if isinstance(value, float) else value


def about(split, threads):
    """Where and on what the measurements were made."""
    many = "one thread" if threads == 1 else f"{threads} threads"
    return dict(date=when()["date"], version=vae_gmm.__version__, python=platform.python_version(),
                torch=torch.__version__, machine=f"{platform.machine()}, {os.cpu_count()} processors, {many} a network",
                data_sha256=hashlib.sha256(split.parts["official"][0].tobytes()).hexdigest()[:16],
                n_official=len(split.parts["official"][1]), n_held_out=len(split.parts["held_out"][1]),
                n_development=len(split.parts["development"][1]))


def order(row):
    """Rows in the order of the settings, whichever process was done first."""
    place = (list(ABLATIONS).index(row["setting"]) if "setting" in row
             else [*RECIPES, WITHOUT].index(row["recipe"]) if "recipe" in row else 0)
    rest = "per_class", "labels", "solutions", "rho", "epochs"
    return place, float(row.get("value", 0)), row["seed"], *(row.get(k, 0) for k in rest)


@click.command()
@click.option("--seeds", default=5, show_default=True, help="Number of repetitions.")
@click.option("--only", type=click.Choice(["seeds", "ablations", "recipes", "full"]), multiple=True,
              default=["seeds", "ablations"], show_default=True, help="These parts; the others are kept as stored.")
@click.option("--missing", is_flag=True, help="Keep stored rows of recipes and full, and measure what is not there.")
@click.option("--threads", default=1, type=click.IntRange(1), show_default=True,
              help="For each network; so many fewer are trained side by side.")
def main(seeds, only, missing, threads):
    """Run the long measurements and write figures/experiments.json."""
    path = ROOT / "figures" / "experiments.json"
    stored = json.loads(path.read_text()) if path.exists() else {}
    facts = about(Split(0), threads)
    jobs = dict(
        seeds=[("seeds", seed, {}) for seed in range(seeds)],
        recipes=[("recipes", seed, dict(recipe=name)) for name in RECIPES for seed in range(RECIPE_SEEDS)],
        ablations=[("ablations", 0, {setting: value}) for setting, values in ABLATIONS.items() for value in values],
        full=[("full", seed, dict(recipe=name)) for name in FULL for seed in range(RECIPE_SEEDS)])
    jobs = [job for part in only for job in jobs[part]]
    kept = {part: stored[part] for part in ("recipes", "full") if missing and part in only and part in stored}
    found = {part: table["runs"] for part, table in kept.items()}
    there = {(part, row["seed"], row["recipe"]) for part, rows in found.items() for row in rows}
    jobs = [(part, seed, setting) for part, seed, setting in jobs if (part, seed, setting.get("recipe")) not in there]
    with ProcessPoolExecutor(max(os.cpu_count() // threads, 1), multiprocessing.get_context("spawn")) as pool:
        for tables in tqdm(pool.map(partial(run, threads=threads), jobs), total=len(jobs), unit="network"):
            for name, rows in tables.items():
                found.setdefault(name, []).extend(rows)
            stored |= {name: dict(kept.get(name, facts), runs=rows if name == "baselines" else sorted(rows, key=order))
                       for name, rows in found.items()}
            path.write_text(json.dumps(rounded(stored), indent=None, separators=(",", ":")).replace("{", "\n{") + "\n")


if __name__ == "__main__":
    main()
