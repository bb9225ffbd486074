"""Speed of training and encoding beside a naive loop and the machine's limit.

    python benchmarks/training.py            all tables (about four minutes on two quiet cores)
    python benchmarks/training.py --quick    three pairs, fewer images
    python benchmarks/training.py --rows epoch encode import gpu
    OMP_NUM_THREADS=1 python benchmarks/training.py --processor-time    on a machine that others use as well

An epoch: the loop of `vae_gmm.training` and the loop that a first course report would have (a Dataset item by item, a
DataLoader, sigmoid and binary cross-entropy, `.item()` in every batch, plain layers in the default memory format) take
turns on the same images, batches of 64 for both; the ratio is the median over the pairs. The limit is the time that the
multiplications and additions of forward and backward would take at the rate of a large float32 matrix product, measured
between the pairs.
"""
import argparse
import os
import subprocess
import sys
import time
from dataclasses import replace

THREADS = int(os.environ.setdefault("OMP_NUM_THREADS", "2"))

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, Dataset

from vae_gmm.config import TrainConfig
from vae_gmm.data import as_images
from vae_gmm.training import fit_vae, make_optimizer, train_epoch
from vae_gmm.vae import VAE, encode, evaluate

BATCH, NOISE = 64, 0.1
MUST, AIM = {"ratio": 1.25, "limit": 0.70, "encode": 0.90, "import": 1.2}, {"ratio": 1.4, "limit": 0.80}


# the naive loop -------------------------------------------------------------------------------------------------------

class NaiveVAE(VAE):
    "The same architecture with the layers of the course report, in PyTorch's default memory format."
    def __init__(self):
        super().__init__()
        for name, (i, o) in dict(deconv1=(256, 128), deconv3=(128, 64), deconv5=(32, 1)).items():
            setattr(self, name, nn.ConvTranspose2d(i, o, 3, stride=1, padding=1))
        for name, (i, o) in dict(deconv2=(128, 128), deconv4=(64, 32)).items():
            setattr(self, name, nn.ConvTranspose2d(i, o, 3, stride=2, padding=1, output_padding=1))
        self.to(memory_format=torch.contiguous_format)

    def encode(self, x):
        h = x
        for conv in (self.conv1, self.conv2, self.conv3, self.conv4, self.conv5): h = F.relu(conv(h))
        h = self.dropout_fc(F.relu(self.fc1(self.dropout_conv(h).flatten(1))))
        return self.fc_mu(h), self.fc_logvar(h)

    def decode(self, z):
        h = self.dropout_fc(F.relu(self.fc2(z))).view(-1, 256, 7, 7)
        for deconv in (self.deconv1, self.deconv2, self.deconv3, self.deconv4): h = F.relu(deconv(h))
        return self.deconv5(self.dropout_conv(h))


class Items(Dataset):
    "Images one at a time, scaled on the way and, if asked, varied as `augment_batch` and `add_noise` do."
    def __init__(self, images, varied=False):
        from vae_gmm.files import import_torchvision
        import_torchvision()
        from torchvision.transforms import v2
        bilinear = v2.InterpolationMode.BILINEAR
        self.images = images
        self.vary = v2.RandomAffine(10, (2 / 28, 2 / 28), (0.9, 1.1), interpolation=bilinear) if varied else None
    def __len__(self): return len(self.images)
    def __getitem__(self, i):
        x = torch.from_numpy(self.images[i].astype(np.float32) / 255)[None]
        if self.vary:
            x = self.vary(x)
            x = (x + NOISE * torch.randn_like(x)).clamp(0, 1)
        return x


def naive_epoch(model, items, optimizer, device, beta=0.5):
    model.train()
    total = 0.0
    for x in DataLoader(items, batch_size=BATCH, shuffle=True):
        x = x.to(device)
        mu, logvar = model.encode(x)
        z = mu + torch.exp(0.5 * logvar) * torch.randn_like(mu)
        bce = F.binary_cross_entropy(torch.sigmoid(model.decode(z)), x, reduction="sum")
        kl = -0.5 * torch.sum(1 + logvar - mu.pow(2) - logvar.exp())
        loss = (bce + beta * kl) / len(x)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total += loss.item()
    return total


# the limit ------------------------------------------------------------------------------------------------------------

def flops_per_image():
    "Multiplications and additions of forward and backward for one image, counted by PyTorch from the layers' shapes."
    from torch.utils.flop_counter import FlopCounterMode
    model = NaiveVAE()
    with FlopCounterMode(display=False) as counter:
        model(torch.rand(1, 1, 28, 28))[0].sum().backward()
    return counter.get_total_flops()


clock = time.perf_counter


def seconds(f, device="cpu"):
    started = clock()
    result = f()
    if device != "cpu": torch.cuda.synchronize()
    return clock() - started, result


def matrix_rate(device="cpu", dtype=torch.float32, n=2048, repeat=3):
    "Floating-point operations a second of a large matrix product."
    A, B = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
    def product(): return A @ B
    seconds(product, device)
    return 2 * n ** 3 / min(seconds(product, device)[0] for _ in range(repeat))


# the rows -------------------------------------------------------------------------------------------------------------

def digits(n):
    "n uint8 images: the embedded digits, repeated if need be."
    from vae_gmm.data import embedded_digits
    images = embedded_digits()[0]
    return np.tile(images, (-(-n // len(images)), 1, 1))[:n]


def epoch_row(pairs, n, failed):
    images, work = digits(n), flops_per_image()
    x = as_images(images)
    print(f"\nan epoch of {n} images, {THREADS} threads, {work / 1e6:.0f} MFLOP an image, median of {pairs} pairs; "
          "varied: with random rotation, scale, shift and noise, as the course project's data set has them")
    print("| images | ours images/s | naive images/s | times naive (range) | must | aim | matrix product Gflop/s "
          "| share of the limit | must | aim | bfloat16 images/s | times naive |")
    print("|---|---|---|---|---|---|---|---|---|---|---|---|")
    for varied in (False, True):
        config = TrainConfig(batch_size=BATCH, augment=varied, noise_std=NOISE * varied)
        short_config = replace(config, precision="bfloat16")
        ours, naive, short = VAE(), NaiveVAE(), VAE()
        optimizer, short_adam = (make_optimizer(m, n, config)[0] for m in (ours, short))
        plain_adam = torch.optim.Adam(naive.parameters(), lr=1e-3, foreach=False)
        epochs = (lambda: train_epoch(ours, x, optimizer, config),
                  lambda: naive_epoch(naive, Items(images, varied), plain_adam, "cpu"),
                  lambda: train_epoch(short, x, short_adam, short_config))
        for warm in epochs: warm()
        times = []
        for _ in range(pairs):
            rate = matrix_rate()
            times.append([seconds(f)[0] for f in epochs] + [n * work / rate])
        a, b, c, limit = np.array(times).T
        ratio, share = np.median(b / a), np.median(limit / a)
        kind = "varied" if varied else "as they are"
        print(f"| {kind} | {n / np.median(a):.0f} | {n / np.median(b):.0f} "
              f"| {ratio:.2f} ({(b / a).min():.2f} to {(b / a).max():.2f}) | {MUST['ratio']} | {AIM['ratio']} "
              f"| {np.median(n * work / limit) / 1e9:.0f} | {share:.0%} | {MUST['limit']:.0%} | {AIM['limit']:.0%} "
              f"| {n / np.median(c):.0f} | {np.median(b / c):.2f} |", flush=True)
        failed += [f"{name}, {kind}" for name, value in (("ratio", ratio), ("limit", share)) if value < MUST[name]]


def encode_row(pairs, n, failed):
    from vae_gmm.classifier import VAEGMM
    x, clf = as_images(digits(n)), VAEGMM()
    clf.vae_ = VAE(8).eval()
    clf.fit_gmm(x[:300], x[:300], np.arange(300) % 3)
    batches = x.split(512)
    @torch.inference_mode()
    def bare():
        for batch in batches: clf.vae_.encode(batch)
    def encoding(): return encode(clf.vae_, x)
    def classifying(): return clf.predict(x)
    for warm in (bare, encoding, classifying): warm()
    a, b, c = np.array([[seconds(f)[0] for f in (bare, encoding, classifying)] for _ in range(pairs)]).T
    print(f"\nencoding and classifying {n} images in batches of 512, share of the bare encoder's throughput, "
          f"median of {pairs} rounds")
    print("| bare encoder images/s | encode | classify | must |\n|---|---|---|---|")
    shares = {"encode": np.median(a / b), "classify": np.median(a / c)}
    print(f"| {n / np.median(a):.0f} | {shares['encode']:.1%} | {shares['classify']:.1%} | {MUST['encode']:.0%} |",
          flush=True)
    failed += [name for name, value in shares.items() if value < MUST["encode"]]


def import_row(pairs, failed):
    code = f"import time; t = time.{clock.__name__}(); import {{}}; print(time.{clock.__name__}() - t)"
    names = "torch", "vae_gmm", "vae_gmm.training"
    def one(name):
        command = [sys.executable, "-c", code.format(name)]
        return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    for name in names: one(name)
    times = np.array([[one(name) for name in names] for _ in range(pairs)])
    base = times[:, :1]
    ratios = np.median(times / base, axis=0)
    print(f"\nimports in fresh processes, times `import torch` ({np.median(base):.2f} s), median of {pairs} rounds")
    print("| vae_gmm | vae_gmm.training | must |\n|---|---|---|")
    print(f"| {ratios[1]:.2f} | {ratios[2]:.2f} | {MUST['import']} |", flush=True)
    failed += [f"import {name}" for name, ratio in zip(names[1:], ratios[1:]) if ratio > MUST["import"]]


def gpu_rows(failed):
    if not torch.cuda.is_available():
        print("\nGPU: none here")
        return
    from vae_gmm.data import mnist_digits, split_indices
    print(f"\nGPU: {torch.cuda.get_device_name()}; whole runs of fit_vae, validation included")
    if not os.environ.get("VAE_GMM_DATA"):
        print("(VAE_GMM_DATA does not lead to MNIST: the embedded digits, repeated to the same number)")
    limits = {name: matrix_rate("cuda", getattr(torch, name), 8192) for name in ("float32", "bfloat16")}
    torch.set_float32_matmul_precision("high")
    limits["tf32"] = matrix_rate("cuda", n=8192)
    torch.set_float32_matmul_precision("highest")
    print("| digits | precision | epochs | seconds | must | images/s in training | times naive | must "
          "| share of the matrix rate | best validation loss | against float32 |")
    print("|---|---|---|---|---|---|---|---|---|---|---|")
    for name, keep, epochs, most in (("1, 4, 8", (1, 4, 8), 50, 10), ("all ten", range(10), 30, 30)):
        if os.environ.get("VAE_GMM_DATA"):
            images, labels = mnist_digits(train=True)
            images = images[np.isin(labels, list(keep))]
        else:
            images = digits(18_435 if len(keep) == 3 else 60_000)
        train, val = split_indices(len(images), 0.8)
        x, y = as_images(images[train]), as_images(images[val])
        naive = NaiveVAE().cuda()
        adam = torch.optim.Adam(naive.parameters(), lr=1e-3, foreach=False)
        few = Items(images[train][:2048])
        naive_epoch(naive, few, adam, "cuda")
        naive_rate = len(few) / seconds(lambda: naive_epoch(naive, few, adam, "cuda"), "cuda")[0]
        reference = None
        for precision in ("float32", "tf32", "bfloat16"):
            torch.manual_seed(0)
            model, config = VAE().cuda(), TrainConfig(epochs=epochs, stop_patience=10**6, precision=precision)
            took, history = seconds(lambda: fit_vae(model, x, y, config, progress=False), "cuda")
            rate = epochs * len(x) / (took - epochs * seconds(lambda: evaluate(model, y.cuda()), "cuda")[0])
            loss = history.best["val_loss"]
            reference = reference or loss
            print(f"| {name} | {precision} | {epochs} | {took:.1f} | {most} | {rate:.0f} | {rate / naive_rate:.1f} "
                  f"| 10 | {rate * flops_per_image() / limits[precision]:.1%} | {loss:.2f} "
                  f"| {loss / reference - 1:+.1%} |", flush=True)
        if took > most or rate < 10 * naive_rate: failed.append(f"GPU, {name}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    rows = "epoch", "encode", "import", "gpu"
    parser.add_argument("--rows", nargs="*", choices=rows, default=rows)
    parser.add_argument("--quick", action="store_true", help="three pairs, fewer images")
    parser.add_argument("--processor-time", action="store_true", help="count the processor's seconds, not the clock's")
    arguments = parser.parse_args()
    if arguments.processor_time: clock = time.process_time
    torch.set_num_threads(THREADS)
    failed, (pairs, n) = [], (3, 512) if arguments.quick else (7, 1536)
    if "epoch" in arguments.rows: epoch_row(pairs, n, failed)
    if "encode" in arguments.rows: encode_row(pairs, 4 * n, failed)
    if "import" in arguments.rows: import_row(pairs, failed)
    if "gpu" in arguments.rows: gpu_rows(failed)
    sys.exit(f"missed: {', '.join(failed)}" if failed else 0)
