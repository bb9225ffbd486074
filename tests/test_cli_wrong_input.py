"""Wrong input: each row of the table drives the real command, and has to end in one clear line.

A row says what to prepare in a folder of good files, what to type, and what the answer must mention. Every row checks
the exit code (1 failed, 2 misused), one line on standard error and nothing on standard output, no new file, and that
every file that was there is as it was. Rows about permissions run as a process of their own, the others in this one.
"""
import ctypes
import io
import os
import pickle
import resource
import shlex
import shutil
import subprocess
import sys
import tempfile
import zipfile
from contextlib import contextmanager, nullcontext, suppress
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from commands import call, environment, run
from PIL import Image

TRAIN = "train train.npz val.npz --model new.pth --gmm new.pkl --device cpu"
RECON = "test_reconstruction recon.npz --model vae.pth"
TEST = "test_classifier test.npz --model vae.pth --gmm gmm.pkl"
CASES = {}


def case(name, words, *expected, code=1, **options):
    """A row of the table; as a decorator, the function prepares the folder."""
    def add(prepare):
        assert name not in CASES, name
        CASES[name] = (words.split() if isinstance(words, str) else words, prepare, code, expected, options)
        return prepare
    return add


def plain(*args, **options):
    """A row that needs no preparation."""
    case(*args, **options)(lambda folder: None)


class Trap:
    """Unpickled, it leaves a file named `fired` in the current folder."""

    def __reduce__(self):
        return open, ("fired", "w")


def data(folder, name="train.npz"):
    """The arrays of one of the good files."""
    with np.load(folder / name) as arrays:
        return dict(arrays)


def npz(name, **arrays):
    """Prepare: put this file in the place of a good one; a function gets the good arrays."""
    def prepare(folder):
        good = data(folder, name)
        new = {key: value(good[key]) if callable(value) else value for key, value in arrays.items()}
        new = {**good, **new}
        (folder / name).unlink()
        with open(folder / name, "wb") as file:  # a name alone would get the ending npz
            np.savez(file, **{key: value for key, value in new.items() if value is not None})
    return prepare


def content(name, text):
    """Prepare: a file with this content; a function gets the good file's bytes."""
    def prepare(folder):
        good = (folder / name).read_bytes() if (folder / name).exists() else b""
        (folder / name).unlink(missing_ok=True)
        (folder / name).write_bytes(text(good) if callable(text) else text)
    return prepare


def member(shape, descr="|u1", body=b"", version=(1, 0), method=zipfile.ZIP_STORED):
    """An npz file made by hand: `data.npy` with any header, whatever its content."""
    header = io.BytesIO()
    write = np.lib.format.write_array_header_1_0 if version == (1, 0) else np.lib.format.write_array_header_2_0
    write(header, {"descr": descr, "fortran_order": False, "shape": shape})
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method, compresslevel=1) as archive:
        with archive.open("data.npy", "w", force_zip64=True) as file:
            file.write(header.getvalue())
            for part in body if not isinstance(body, bytes) else [body]:
                file.write(part)
    return out.getvalue()


# --- misused: the words of the command line -------------------------------------------------------------------------
misused = dict(code=2)
plain("no such command", "trian train.npz val.npz", "'trian'", **misused)
plain("a command misspelt, in the course's order", "test.npz test_classifer vae.pth gmm.pkl", "'test.npz'",
      "expected one of anomalies, data, explore, info, sample, show, test_classifier", **misused)
plain("an empty word", [""], "No such command ''", "expected one of", **misused)
plain("no such option", "train train.npz val.npz --epoch 3", "--epoch", "vae_gmm train --help", **misused)
plain("no file given", "train", "Missing argument 'TRAIN'", **misused)
plain("one file only", "train train.npz", "Missing argument 'VAL'", **misused)
plain("course order, one file only", "train.npz train new.pth new.pkl", "Missing argument 'VAL'", **misused)
plain("course order, two files for one", "a.npz b.npz test_reconstruction vae.pth", "unexpected extra argument (b.npz)",
      **misused)
plain("course order, a file too many", "test.npz test_classifier vae.pth gmm.pkl more",
      "unexpected extra argument (more)", **misused)
plain("option without value", "train train.npz val.npz --model", "'--model' requires an argument", **misused)
plain("no epochs", TRAIN + " --epochs 0", "'--epochs'", "1<=x<=2147483647", **misused)
plain("epochs in words", TRAIN + " --epochs two", "'--epochs'", "'two'", **misused)
plain("no batch", TRAIN + " --batch-size 0", "'--batch-size'", "1<=x<=2147483647", **misused)
plain("a batch beyond all numbers", TRAIN + " --batch-size 1" + "0" * 30, "'--batch-size'", "1<=x<=2147483647",
      **misused)
plain("no dimension", TRAIN + " --latent-dim 0", "'--latent-dim'", "1<=x<=512", **misused)
plain("too many dimensions", TRAIN + " --latent-dim 100000", "'--latent-dim'", "1<=x<=512", **misused)
plain("nothing left to train", TRAIN + " --dropout 1", "'--dropout'", "0<=x<1", **misused)
plain("negative beta", TRAIN + " --beta -1", "'--beta'", "x>=0", **misused)
plain("beta not a number", TRAIN + " --beta nan", "'--beta'", "not a finite number", **misused)
plain("no time", TRAIN + " --max-minutes 0", "'--max-minutes'", "x>0", **misused)
plain("endless time", TRAIN + " --max-minutes inf", "'--max-minutes'", "not a finite number", **misused)
plain("negative seed", TRAIN + " --seed -1", "'--seed'", "0<=x<=4294967295", **misused)
plain("unknown device", "test_classifier test.npz --device gpu", "'--device'", "'gpu' is not a device", "cuda:0",
      **misused)
plain("unknown recipe", TRAIN + " --recipe best", "'--recipe'", "'fast', 'course'", **misused)
plain("labels to keep in words", TRAIN + " --keep-labels one,two", "'--keep-labels'", "such as 1,4,8", **misused)
plain("one label to train on", TRAIN + " --keep-labels 4", "'--keep-labels'", "expected 2 or more", **misused)
plain("one digit", "data --digits 4", "'--digits'", "expected 2 or more", **misused)
plain("no labelled image", "data --labels-per-digit 0", "'--labels-per-digit'", "1<=x<=2147483647", **misused)
plain("digits that there are not", "data --digits 1,12", "'--digits'", "names 12", "expected 0 to 9",
      **misused)

# --- the file of images ---------------------------------------------------------------------------------------------
plain("no such file", "train nowhere.npz val.npz", "nowhere.npz: no such file", "expected an npz file")
plain("no such file, with blanks and umlauts in its name", ["info", "zwölf Übungen.npz"],
      "zwölf Übungen.npz: no such file", "expected images")
plain("a folder that the network would be written to", "train . val.npz", "vae.pth: would be written among the images",
      "expected another folder")
case("an empty file", TRAIN, "train.npz: is empty", "expected an npz file")(content("train.npz", b""))
case("cut short", TRAIN, "train.npz: not an npz file, or cut short", "numpy.savez")(
    content("train.npz", lambda good: good[:-100]))
case("damaged inside", TRAIN, "train.npz: not an npz file, or cut short or damaged")(
    content("train.npz", lambda good: good[:5000] + b"x" * 9 + good[5009:]))
case("npy for npz", TRAIN, "train.npz: a single npy array", "expected an npz file")(
    lambda folder: (images := data(folder)["data"], np.save(folder / "a.npy", images),
                    os.replace(folder / "a.npy", folder / "train.npz")))
case("a text file", TRAIN, "train.npz: not an npz file")(content("train.npz", b"1,4,8\n"))
case("no data", TRAIN, "train.npz: has no array 'data'", "(n, 28, 28)")(npz("train.npz", data=None, images=np.zeros(3)))
case("booby-trapped data", TRAIN, "train.npz: array 'data' holds Python objects", "expected plain numbers")(
    npz("train.npz", data=np.array([Trap()], dtype=object)))
case("a pickle for npz", TRAIN, "train.npz: not an npz file")(content("train.npz", pickle.dumps(Trap())))
case("declares too much", TRAIN, "train.npz: array 'data' declares 784,000,000,000 bytes", "at most 1,073,741,824")(
    content("train.npz", member((10**9, 28, 28))))
case("zip bomb", TRAIN, "train.npz: array 'data' declares 1,254,400,000 bytes", "at most 1,073,741,824")(
    content("train.npz", lambda good: member((1_600_000, 28, 28), body=[bytes(12_544_000)] * 100,
                                             method=zipfile.ZIP_DEFLATED)))
case("declares more than it holds", TRAIN, "train.npz: array 'data' is cut short")(
    content("train.npz", member((60, 28, 28), body=bytes(784))))
case("endless header", TRAIN, "train.npz: array 'data' is in an unusual npy format", "expected version 1.0")(
    content("train.npz", member((60, 28, 28), version=(2, 0))))
case("negative size", TRAIN, "train.npz: damaged npz file")(
    content("train.npz", member((-60, 28, 28), body=bytes(784))))
case("one image without an axis", TRAIN, "train.npz: 'data'", "shape (28, 28)", "expected (n, 28, 28)")(
    npz("train.npz", data=lambda x: x[0]))
case("four axes", TRAIN, "'data'", "shape (60, 2, 28, 28)", "expected (n, 28, 28)")(
    npz("train.npz", data=lambda x: np.stack([x, x], 1)))
case("larger images", TRAIN, "'data'", "shape (60, 32, 32)", "expected (n, 28, 28)")(
    npz("train.npz", data=np.zeros((60, 32, 32), np.uint8)))
case("fractions", TRAIN, "'data'", "type float64", "whole numbers 0 to 255", "fractions x in [0, 1] with (255 * x)")(
    npz("train.npz", data=lambda x: x / 255))
case("whole numbers as floats", RECON, "recon.npz: 'data'", "type float32",
     "whole numbers 0 to 255 (convert with x.round()")(
    npz("recon.npz", data=lambda x: x.astype(np.float32)))
case("not a number", TEST, "test.npz: 'data'", "type float64", "whole numbers 0 to 255\n")(
    npz("test.npz", data=lambda x: x * np.nan))
case("black or white", TEST, "test.npz: 'data'", "type bool", "255 * x.astype('uint8')")(
    npz("test.npz", data=lambda x: x > 127))
case("negative grey values", TRAIN, "'data'", "values from -1 to", "expected 0 to 255")(
    npz("train.npz", data=lambda x: x.astype(int) - 1))
case("too large grey values", RECON, "recon.npz: 'data'", "values from 0 to", "expected 0 to 255")(
    npz("recon.npz", data=lambda x: x * np.uint16(2)))
case("no image", TEST, "test.npz: 'data': holds no image")(
    npz("test.npz", data=np.zeros((0, 28, 28), np.uint8), labels=np.zeros(0, int)))
case("text for images", TRAIN, "'data'", "type <U1")(npz("train.npz", data=np.full((60, 28, 28), "a")))
case("four images", TRAIN, "train.npz: 'data' holds 4 images", "expected 5 or more")(
    npz("train.npz", data=lambda x: x[:4]))

# --- labels ---------------------------------------------------------------------------------------------------------
case("no labels", TRAIN, "val.npz: has no array 'labels'", "expected one label an image")(npz("val.npz", labels=None))
case("labels of another length", TRAIN, "val.npz: 'labels': holds 8 labels for 9 images")(
    npz("val.npz", labels=lambda y: y[1:]))
case("labels of another length in TEST", TEST, "test.npz: 'labels': holds 49 labels for 50 images")(
    npz("test.npz", labels=lambda y: y[1:]))
case("labels in words", TRAIN, "val.npz: 'labels'", "type <U21", "whole numbers")(
    npz("val.npz", labels=lambda y: y.astype(str)))
case("labels as fractions", TRAIN, "val.npz: 'labels'", "type float64", "whole numbers")(
    npz("val.npz", labels=lambda y: y * 1.0))
case("one-hot labels", TRAIN, "val.npz: 'labels'", "shape (9, 3)", "shape (9,)")(
    npz("val.npz", labels=lambda y: np.eye(3, dtype=int)[y // 4]))
case("huge labels", TRAIN, "val.npz: 'labels'", "18446744073709551615")(
    npz("val.npz", labels=np.full(9, 2**64 - 1, np.uint64)))
case("booby-trapped labels", TRAIN, "val.npz: array 'labels' holds Python objects")(
    npz("val.npz", labels=np.array([Trap()] * 9)))
case("one label only", TRAIN, "val.npz: 'labels' holds 4 only", "expected two or more")(
    npz("val.npz", labels=lambda y: y * 0 + 4))
case("one labelled image only", TRAIN, "val.npz: 'labels' holds", "two or more")(
    npz("val.npz", data=lambda x: x[:1], labels=lambda y: y[:1]))
plain("a digit without labelled image", TRAIN + " --keep-labels 1,4,9", "val.npz: 'labels' has no 9",
      "--keep-labels 1,4,9")
plain("no label to keep", TRAIN + " --keep-labels 2,3", "val.npz: holds no image labelled 2, 3",
      "its labels are 1, 4, 8")
plain("no label to keep in TEST", TEST + " --keep-labels 7", "test.npz: holds no image labelled 7",
      "its labels are 1, 4, 8")
case("no labels to choose by", TEST + " --keep-labels 1", "test.npz: has no array 'labels'")(
    npz("test.npz", labels=None))

# --- arguments in the wrong place -----------------------------------------------------------------------------------
plain("TRAIN and VAL swapped", "train val.npz train.npz --model new.pth --gmm new.pkl",
      "train.npz: has no array 'labels'")
plain("a model to train on", "train vae.pth val.npz --model new.pth", "vae.pth: not an npz file")
plain("model and mixture swapped", "test_classifier test.npz --model gmm.pkl --gmm vae.pth", "gmm.pkl",
      "expected a model file")
plain("images for a model", "test_reconstruction recon.npz --model test.npz", "test.npz", "expected a model file")
plain("images for a mixture", "test_classifier test.npz --model vae.pth --gmm val.npz",
      "val.npz: not a mixture of this package")
plain("a model for a mixture", "test_classifier test.npz --model vae.pth --gmm vae.pth",
      "vae.pth: not a mixture of this package")

# --- the network and the mixture ------------------------------------------------------------------------------------
plain("a GPU that is not there", TEST + " --device cuda:99", "--device cuda:99: not in this machine", "expected cpu")
plain("a beta beyond all numbers", TRAIN + " --beta 1e300 --quiet", "beta is 1e+300", "expected a number from 0")
plain("no such model", "test_reconstruction recon.npz --model nowhere.pth", "nowhere.pth: no such file",
      "expected a model file")
plain("no such mixture", "test_classifier test.npz --model vae.pth --gmm nowhere.pkl", "nowhere.pkl: no such file",
      "expected a mixture file")
plain("a folder for a model", "test_reconstruction recon.npz --model .", ".: is a folder", "expected a model file")
case("a trap for a model", RECON, "vae.pth: a pickle; pickles can run code and are never loaded",
     "torch.save(model.state_dict()")(content("vae.pth", pickle.dumps(Trap())))
case("a trap for a mixture", TEST, "gmm.pkl: a pickle; pickles can run code and are never loaded",
     "expected a file written by `vae_gmm train`")(content("gmm.pkl", pickle.dumps(Trap())))
case("a model cut short", RECON, "vae.pth: not a complete safetensors file", "expected a model file")(
    content("vae.pth", lambda good: good[:10_000]))


def torch_zip(folder, root, *more):
    with zipfile.ZipFile(folder / "trap.pth", "w") as archive:
        archive.writestr("archive/data.pkl", root)
        archive.writestr("archive/version", b"3\n")
        archive.writestr("archive/byteorder", b"little")
        for name in more:
            archive.writestr(f"archive/{name}", root)


@case("torch.save with a trap", "test_reconstruction recon.npz --model trap.pth",
      "trap.pth: a torch.save file with more in it than plain tensors",
      "torch.save(model.state_dict()")
def _(folder):
    torch_zip(folder, pickle.dumps({"conv1.weight": Trap()}, protocol=2))


@case("torch.save that declares too much", "test_reconstruction recon.npz --model trap.pth",
      "trap.pth: declares 300,000,", "at most 268,435,456")
def _(folder):
    with zipfile.ZipFile(folder / "trap.pth", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.writestr("archive/data.pkl", bytes(10))
        archive.writestr("archive/data/0", bytes(300_000_000))


@case("state_dict of another network", "test_reconstruction recon.npz --model other.pth",
      "other.pth: its tensors are not this network's",
      "fc_mu.weight has shape (2, 100), expected shape (2, 512) of float32")
def _(folder):
    import torch
    from vae_gmm.vae import VAE
    torch.save({**VAE().state_dict(), "fc_mu.weight": torch.zeros(2, 100)}, folder / "other.pth")


@case("state_dict in half precision", "test_reconstruction recon.npz --model half.pth",
      "half.pth: its tensors are not this network's",
      "is torch.float16, expected shape (32, 1, 3, 3) of float32")
def _(folder):
    import torch
    from vae_gmm.vae import VAE
    torch.save({name: value.half() for name, value in VAE().state_dict().items()}, folder / "half.pth")


@case("an empty state_dict", "test_reconstruction recon.npz --model empty.pth",
      "conv1.weight is missing, expected shape (32, 1, 3, 3)")
def _(folder):
    import torch
    torch.save({}, folder / "empty.pth")


@case("state_dict in the format of old", "test_reconstruction recon.npz --model old.pth", "old.pth: a pickle",
      "in its present format")
def _(folder):
    import torch
    torch.save({"conv1.weight": torch.zeros(1)}, folder / "old.pth", _use_new_zipfile_serialization=False)


@case("TorchScript", "test_reconstruction recon.npz --model trap.pth",
      "trap.pth: a torch.save file with more in it than plain tensors")
def _(folder):
    torch_zip(folder, pickle.dumps(Trap(), protocol=2), "constants.pkl")


case("a zip archive of another kind", "test_reconstruction recon.npz --model a.zip",
     "a.zip: a zip archive of another kind", "expected a model file")(
    lambda folder: zipfile.ZipFile(folder / "a.zip", "w").close())
case("a pickle of old for a model", RECON, "vae.pth: not a complete safetensors file",
     "expected a model file, written by `vae_gmm train`")(
    content("vae.pth", pickle.dumps(Trap(), protocol=0)))
case("a pickle of old for a mixture", TEST, "gmm.pkl: not a mixture of this package", "written by `vae_gmm train`")(
    content("gmm.pkl", pickle.dumps(Trap(), protocol=0)))


def tensors(**changes):
    """Prepare: save the good network's file with other tensors or another header."""
    def prepare(folder):
        from safetensors import safe_open
        from safetensors.numpy import save_file
        with safe_open(folder / "vae.pth", "np") as file:
            header, good = file.metadata(), {k: file.get_tensor(k) for k in file.keys()}
        if "header" in changes:
            header = changes["header"](header)
        (folder / "vae.pth").unlink()
        save_file({k: changes[k](v) if k in changes else v for k, v in good.items()}, folder / "vae.pth",
                  metadata=header)
    return prepare


bias = "fc_mu.bias"
case("a foreign safetensors file", RECON, "vae.pth: not a model of this package", "expected a header")(
    tensors(header=lambda h: None))
case("a header of another size", RECON, "vae.pth: its tensors are not this network's", "with 3 latent dimensions")(
    tensors(header=lambda h: {"vae_gmm": h["vae_gmm"].replace('"latent_dim": 8', '"latent_dim": 3')}))
case("a header with half a truth", RECON, "vae.pth: not a model of this package")(
    tensors(header=lambda h: {"vae_gmm": h["vae_gmm"].replace('"straightened": true', '"straightened": "yes"')}))
case("a header with nonsense", RECON, "vae.pth: not a model of this package", "dropout=7")(
    tensors(header=lambda h: {"vae_gmm": h["vae_gmm"].replace('"dropout": 0.2', '"dropout": 7')}))
case("a header without end", RECON, "vae.pth: not a complete safetensors file")(
    tensors(header=lambda h: {"vae_gmm": "[" * 100_000}))
case("weights of another type", RECON, "vae.pth: its tensors are not this network's", "F64")(
    tensors(**{bias: lambda v: v.astype(np.float64)}))
case("infinite weights", RECON, "vae.pth: holds weights that are not finite")(
    tensors(**{bias: lambda v: v + np.float32(np.inf)}))
case("another run's model", TEST, "gmm.pkl: belongs to another model than vae.pth", "of the same training run")(
    tensors(**{bias: lambda v: v + 1}))
case("a mixture of another size", TEST, "gmm.pkl: a mixture in 3 dimensions; the model vae.pth has 8")(
    npz("gmm.pkl", means=lambda m: np.zeros((len(m), 3)), covariances=lambda c: np.stack([np.eye(3)] * len(c))))
case("a mixture that is not finite", TEST, "gmm.pkl: damaged mixture")(npz("gmm.pkl", means=lambda m: m * np.nan))
case("a mixture without shape", TEST, "gmm.pkl: damaged mixture")(npz("gmm.pkl", covariances=lambda c: -c))
case("a mixture beyond all numbers", TEST, "gmm.pkl: damaged mixture")(
    npz("gmm.pkl", covariances=lambda c: c * 0 + 1e-310 * np.eye(8)))
case("a mixture without weights", TEST, "gmm.pkl: damaged mixture", "'weights'")(npz("gmm.pkl", weights=None))
case("a mixture whose weights are no shares", TEST, "gmm.pkl: damaged mixture")(npz("gmm.pkl", weights=lambda w: w + 1))
case("two labels of one name", TEST, "gmm.pkl: damaged mixture", "different labels in 'classes'")(
    npz("gmm.pkl", classes=np.array([1, 1, 8])))
case("shares that do not sum to one", TEST, "gmm.pkl: damaged mixture", "'shares'")(
    npz("gmm.pkl", shares=lambda s: s + 1))
case("a booby-trapped mixture", TEST, "gmm.pkl: array 'format' holds Python objects")(
    npz("gmm.pkl", format=np.array([Trap()], dtype=object)))


@case("a damaged checkpoint", TRAIN + " --checkpoint state", "state: not a complete checkpoint", "move it away")
def _(folder):
    (folder / "state").write_bytes(b"{}")


plain("a model for a checkpoint", TRAIN + " --checkpoint vae.pth", "vae.pth: not a training checkpoint", "move it away")


# --- where output goes ----------------------------------------------------------------------------------------------
plain("folder of the model missing", "train train.npz val.npz --model nowhere/vae.pth",
      "nowhere/vae.pth: the folder nowhere does not exist")
plain("folder of the mixture missing", "train train.npz val.npz --model new.pth --gmm nowhere/g",
      "nowhere/g: the folder nowhere does not exist")
plain("output folder missing", TEST + " --out-dir nowhere", "nowhere/vae.csv: the folder nowhere does not exist")
plain("output folder missing for data", "data --out-dir nowhere",
      "nowhere/mnist_1_4_8_train.npz: the folder nowhere does not exist", "expected an existing folder")
plain("a folder in the model's place", "train train.npz val.npz --model .", ".: cannot be written, it is a folder")
plain("a name that is too long to write", "train train.npz val.npz --epochs 1 --model " + "m" * 250,
      "mmm: cannot be written (File name too long)")
plain("a checkpoint's name that is too long", TRAIN + " --checkpoint " + "c" * 300,
      "ccc: cannot be written (File name too long)")
plain("a folder's name that is too long", TEST + " --out-dir " + "d" * 300, "ddd/vae.csv: cannot be written (File name")
plain("one name for two outputs", "train train.npz val.npz --model new --gmm ./new", "new: would be written twice")
plain("an input as output", "train train.npz val.npz --model new.pth --gmm val.npz",
      "val.npz: is an input and would be overwritten")
case("a folder named vae.csv", TEST, "vae.csv: cannot be written, it is a folder")(
    lambda folder: (folder / "vae.csv").mkdir())
case("files that exist", "data", "mnist_1_4_8_val.npz: exists already", "--force")(
    content("mnist_1_4_8_val.npz", b"precious"))
plain("more labels than images", "data --labels-per-digit 500", "500 images of 1", "expected more than")
plain("no MNIST in the folder", "data --root .", ".: no MNIST here", "MNIST/raw")


@contextmanager
def small_disk(size):
    """No file can grow beyond this size, as on a disk that is full."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


plain("disk full at once", TEST, "vae.csv: cannot be written", disk=0)
plain("disk full while the copies are written", RECON, "vae_reconstructed.npz: cannot be written",
      disk=1000)
plain("disk full while the network is written", TRAIN + " --epochs 1 --quiet", "new.pth: cannot be written", disk=10**6)

plain("disk full while the state is kept", TRAIN + " --epochs 1 --quiet --checkpoint state", "state: cannot be written",
      disk=10**6)

# --- scans, and what is drawn -----------------------------------------------------------------------------------
SCANS = "test_classifier scans --model vae.pth --gmm gmm.pkl"
SHOW = "show test.npz --model vae.pth --gmm gmm.pkl"


def scans(name="8_1.png", **options):
    """Prepare: a folder of one scan; a function makes it of a digit on paper, another the file of its bytes."""
    def prepare(folder):
        (folder / "scans").mkdir()
        image = Image.fromarray(255 - data(folder)["data"][0]).resize((90, 90))
        image = options.get("image", lambda image: image)(image)
        image.save(out := io.BytesIO(), **{"format": "PNG", **options.get("save", {})})
        (folder / "scans" / name).write_bytes(options.get("content", lambda file: file)(out.getvalue()))
    return prepare


case("an empty folder", SCANS, "scans: holds no image", "expected PNG or JPEG files")(
    lambda folder: (folder / "scans").mkdir())
case("a folder of what systems add", SCANS, "scans: holds no image")(scans(".DS_Store"))
case("a text among the scans", SCANS, "scans/8_1.png: not a PNG or JPEG image", "expected a folder of such only")(
    scans(content=lambda file: b"Dear diary, ..."))
case("an empty file among the scans", SCANS, "scans/8_1.png: is empty")(scans(content=lambda file: b""))
case("a TIFF image", SCANS, "scans/8_1.png: not a PNG or JPEG image")(scans(save=dict(format="TIFF")))
case("a PNG file cut short", SCANS, "scans/8_1.png: a damaged image")(scans(content=lambda file: file[:len(file) // 2]))
case("a JPEG file cut short", SCANS, "scans/8_1.jpg: a damaged image")(
    scans("8_1.jpg", save=dict(format="JPEG"), content=lambda file: file[:len(file) // 2]))
case("a PNG file that is damaged", SCANS, "scans/8_1.png: a damaged image")(
    scans(content=lambda file: file[:60] + b"x" * 9 + file[69:]))
case("a blank scan", SCANS, "scans/8_1.png: is blank", "expected a digit on paper")(
    scans(image=lambda image: Image.new("L", (90, 90), 255)))
case("a scan of few pixels", SCANS, "scans/8_1.png: is blank, or too small")(
    scans(image=lambda image: image.resize((4, 4))))
case("a huge scan", SCANS, "scans/8_1.png: too many pixels; at most 67,108,864 are read")(
    scans(image=lambda image: Image.new("1", (10_000, 7_000), 1)))
case("an animation", SCANS, "scans/8_1.png: an animation of 2 pictures")(
    scans(save=dict(save_all=True, append_images=[Image.new("L", (90, 90))])))
case("scans without labels to choose by", SCANS + " --keep-labels 8", "scans: has no label for scan.png",
     "expected 8_NAME.png")(scans("scan.png"))
case("scans without labels to train with", "train train.npz scans --model new.pth", "scans: has no label for scan.png")(
    scans("scan.png"))
case("no scan to keep", SCANS + " --keep-labels 1", "scans: holds no image labelled 1; its labels are 8")(scans())
case("a table among the scans", SCANS + " --out-dir scans", "scans/vae.csv: would be written among the images")(
    scans())
case("an image for an npz file", TEST, "test.npz: not an npz file")(
    lambda folder: (scans()(folder), os.replace(folder / "scans" / "8_1.png", folder / "test.npz"),
                    (folder / "scans").rmdir()))
plain("a sheet that is no PNG file", SHOW + " --out a.jpg", "'--out'", "'a.jpg' does not end in .png", **misused)
plain("a sheet of no image", SHOW + " -n 0", "'-n'", "1<=x", **misused)
plain("a sheet in no folder", SHOW + " --out nowhere/sheet.png", "nowhere/sheet.png: the folder nowhere does not exist")
plain("what was misread, without labels", "show recon.npz --misread --model vae.pth --gmm gmm.pkl",
      "recon.npz: has no array 'labels'")
plain("new digits of no label", "sample new.png --label 5 --model vae.pth --gmm gmm.pkl", "label is 5",
      "expected one of [1, 4, 8]")
plain("new digits in a file that is no PNG", "sample new --model vae.pth --gmm gmm.pkl", "'new' does not end in .png",
      **misused)
plain("anomalies beside nothing", "anomalies test.npz --model vae.pth", "Missing option '--normal'", **misused)
plain("all alarms false", "anomalies test.npz --normal recon.npz --false-alarms 1", "'--false-alarms'", "0<x<1",
      **misused)
plain("anomalies beside few images", "anomalies test.npz --normal recon.npz --model vae.pth --gmm gmm.pkl",
      "recon.npz: holds 4 images; expected 19 or more for --false-alarms 0.05")
plain("anomalies in the place of images",
      "anomalies test.npz --normal train.npz --model vae.pth --gmm gmm.pkl --out test.npz",
      "test.npz: is an input and would be overwritten")
plain("a page in no folder", "explore --no-open --model vae.pth --gmm gmm.pkl --out nowhere/page.html",
      "nowhere/page.html: the folder nowhere does not exist")

# --- info -----------------------------------------------------------------------------------------------------------
case("info on a text file", "info notes.txt", "notes.txt: not a file of this package", "expected images")(
    content("notes.txt", b"Dear diary, ..."))
case("info on a pickle", "info a.pkl", "a.pkl: a pickle, which can run code and is not opened")(
    content("a.pkl", pickle.dumps(Trap())))
case("info on settings that are none", "info config.json", "config.json: damaged settings",
     "expected the config.json of VAEGMM.save")(content("config.json", b'{"config": {"epochs": 0}}'))
case("info on predictions that are none", "info a.csv", "a.csv: damaged predictions",
     "expected the line Predicted_Label")(content("a.csv", b"Predicted_Label\n1\nfour\n"))
case("info on arrays of something else", "info a.npz", "a.npz: an npz file with neither 'data' nor 'format' in it",
     "but 'weights'; expected images")(
    lambda folder: np.savez(folder / "a.npz", weights=np.zeros(3)))
case("info on a file of MNIST, still packed", "info t10k-images-idx3-ubyte.gz", "packed with gzip", "out of gunzip",
     "MNIST/raw")(content("t10k-images-idx3-ubyte.gz", b"\x1f\x8b\x08\0\0\0\0\0\0\x03"))
case("info on a file of MNIST", "info t10k-images-idx3-ubyte", "bytes in the format of MNIST", "MNIST/raw")(
    content("t10k-images-idx3-ubyte", b"\0\0\x08\x03\0\0\x27\x10"))
case("info on images in the last axis", "info train.npz", "has shape (28, 28, 60)", "np.moveaxis(data, -1, 0)")(
    npz("train.npz", data=lambda x: np.moveaxis(x, 0, -1)))
case("info on images of another size", "info train.npz", "train.npz: 'data' has shape (60, 32, 32)",
     "expected images (n, 28, 28)")(
    npz("train.npz", data=np.zeros((60, 32, 32), np.uint8)))
plain("info on a folder", "info .", ".: is a folder", "expected images")
plain("info on nothing", "info nowhere", "nowhere: no such file", "expected images")
if sys.platform == "linux":
    plain("a folder of the system", "train train.npz val.npz --model /proc/vae.pth", "/proc/vae.pth: cannot be written")
    plain("a device for a model", "train train.npz val.npz --model /dev/full",
          "/dev/full: cannot be written, it is a folder or a device")
    plain("a device for images", "train /dev/zero val.npz --model new.pth", "/dev/zero: is not a regular file")
    plain("a file that cannot be read", "info /proc/self/mem", "/proc/self/mem: cannot be read")
    case("a pipe", "info pipe", "pipe: is not a regular file")(lambda folder: os.mkfifo(folder / "pipe"))
    plain("a name that is no text", ["info", b"caf\xe9 \xff"], "no such file", "caf\\udce9 \\udcff")
    plain("a name that is too long", ["info", "n" * 5000], "File name too long")


def no_privileges():
    """For preexec_fn: root, too, has to have permission. (Takes two rights from what a started program may have.)"""
    with suppress(AttributeError, OSError):  # not on Linux
        for right in (1, 2):  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
            ctypes.CDLL(None).prctl(24, right, 0, 0, 0)  # PR_CAPBSET_DROP


def permissions_hold():
    """Whether a program started with `no_privileges` is kept from reading a file without permission."""
    with tempfile.NamedTemporaryFile() as file:
        os.chmod(file.name, 0)
        return subprocess.run(["cat", file.name], preexec_fn=no_privileges, stderr=subprocess.DEVNULL).returncode != 0


if permissions_hold():
    case("no permission to read", "info secret", "secret: cannot be read (Permission denied)",
         preexec_fn=no_privileges)(
        lambda folder: (content("secret", b"1")(folder), (folder / "secret").chmod(0)))
    case("no permission to read TRAIN", TRAIN, "train.npz: cannot be read (Permission denied)", "expected an npz file",
         preexec_fn=no_privileges)(
        lambda folder: (content("train.npz", b"1")(folder), (folder / "train.npz").chmod(0)))
    case("no permission to write", RECON, "vae_reconstructed.npz: cannot be written (Permission denied)",
         preexec_fn=no_privileges)(
        lambda folder: folder.chmod(0o555))
else:
    @pytest.mark.skip(reason="this user may read and write everything, and cannot give up that right")
    def test_permissions():
        """The rows of the table about permissions."""


def state(folder):
    """What can change about the files of a folder: name, size, time, identity, and the content of small ones."""
    def one(path):
        stat = path.lstat()
        small = path.is_file() and os.access(path, os.R_OK) and stat.st_size < 10**6
        return stat.st_size, stat.st_mtime_ns, stat.st_ino, stat.st_mode, path.read_bytes() if small else None
    return {path.name: one(path) for path in sorted(folder.iterdir())}


def drive(name, folder, good):
    """Prepare the folder, run the command: its results, and the folder before and after."""
    words, prepare, _, _, options = CASES[name]
    disk = small_disk(options["disk"]) if "disk" in options else nullcontext()
    folder.mkdir()
    for path in good.iterdir():
        if path.is_file():
            os.link(path, folder / path.name)  # a prepared file replaces the link, never the good file
    prepare(folder)
    before = state(folder)
    with disk:
        result = run(folder, *words, **options) if "preexec_fn" in options else call(folder, *words)
    after = state(folder)
    folder.chmod(0o755)
    return result, before, after


@pytest.mark.parametrize("name", CASES)
def test_wrong_input(name, tmp_path, good):
    _, _, code, expected, _ = CASES[name]
    (exit_code, out, err), before, after = drive(name, tmp_path / "here", good)
    assert exit_code == code, err
    lines = err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("Error: "), err
    for text in expected:
        assert text in err
    assert out == ""
    assert after == before


def test_the_table_is_long_enough():
    assert len(CASES) >= 60


@pytest.mark.parametrize("length", [250, 300])  # too long for the name with what a temporary file adds; for any
def test_names_that_are_too_long(length, tmp_path):
    """From Python, too, a name is refused in one sentence, before any work."""
    from vae_gmm.files import InputError, write_npz
    from vae_gmm.training import fit_vae
    from vae_gmm.vae import VAE
    path = tmp_path / ("n" * length)
    for write in (lambda: fit_vae(VAE(2), np.zeros((5, 28, 28), np.uint8), checkpoint=path),
                  lambda: write_npz(path, data=np.zeros(1))):
        with pytest.raises(InputError, match=r"nnn: cannot be written \(File name too long\)$"):
            write()
    assert not list(tmp_path.iterdir())


def on_small_disk(folder, size, line):
    """Run a line of shell in `folder`, where a file system of this size, seen by nobody else, is mounted at `disk`."""
    (folder / "disk").mkdir(exist_ok=True)
    script = f"mount -t tmpfs -o size={size} none disk && {line}; code=$?; ls -A disk; exit $code"
    done = subprocess.run(["unshare", "-rm", "sh", "-c", script], cwd=folder, capture_output=True, text=True,
                          env=environment())
    return done.returncode, done.stdout, done.stderr


def can_mount():
    """Whether a program may make a small file system for itself."""
    if not shutil.which("unshare"):
        return False
    with tempfile.TemporaryDirectory() as folder:
        return on_small_disk(Path(folder), "4k", "true") == (0, "", "")


@pytest.mark.skipif(not can_mount(), reason="no permission to mount a small disk")
@pytest.mark.parametrize("size, words", [
    ("4k", "test_reconstruction recon.npz --model vae.pth"),
    ("1m", "train train.npz val.npz --epochs 1 --quiet --device cpu"),
    ("40m", "train train.npz val.npz --epochs 1 --quiet --device cpu --checkpoint state"),
])
def test_a_disk_that_is_full(good, size, words):
    """What does not fit leaves nothing behind: no output, and no part of one."""
    code, left, err = on_small_disk(good, size, f"{shlex.quote(sys.executable)} -m vae_gmm {words} --out-dir disk")
    assert code == 1 and left == ""
    assert len(err.splitlines()) == 1 and ": cannot be written (" in err and "No space left on device" in err


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_standard_output_on_a_full_disk(good):
    with open("/dev/full", "w") as full:
        code, _, err = run(good, "info", "train.npz", stdout=full)
    assert code == 1 and err == "Error: standard output: No space left on device\n"


@pytest.fixture
def many(good, tmp_path):
    """A folder with the good files, and with so many training images that they need memory."""
    for path in good.iterdir():
        if path.is_file():  # not the folder or the pipe that another test has put there
            os.link(path, tmp_path / path.name)
    (tmp_path / "train.npz").unlink()
    np.savez(tmp_path / "train.npz", data=np.resize(data(good)["data"], (60_000, 28, 28)))
    return tmp_path


@cache
def peak():
    """Bytes of address space that the modules take."""
    words = "import vae_gmm.classifier, tqdm; print(*[x for x in open('/proc/self/status') if x.startswith('VmPeak')])"
    done = subprocess.run([sys.executable, "-c", words], capture_output=True, text=True, env=environment(), check=True)
    return int(done.stdout.split()[1]) * 1024


@pytest.mark.skipif(sys.platform != "linux", reason="no limit of the address space")
@pytest.mark.parametrize("more", [100, 300])
def test_too_little_memory(many, more):
    """Under a limit of the shell, of so many MB above what the modules take: too little to read, or to train."""
    limit = peak() + more * 2**20
    code, out, err = run(many, *TRAIN.split(), "--epochs", "1", "--batch-size", "512", "--quiet",
                         preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)))
    said = "Error: not enough memory for this; expected fewer images or a smaller --batch-size\n"
    assert (code, out, err) == (1, "", said) and not list(many.glob(".*")) and not list(many.glob("new*"))


def fails_with(error, cause=None):
    def fail():
        raise error from cause
    return fail


def test_words_for_too_little_memory():
    """Those of Python, NumPy, torch and the system; not those in the name of a file."""
    import errno
    import torch
    from vae_gmm.terminal import lacks_memory
    from vae_gmm.files import InputError
    full = OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))
    short = [fails_with(MemoryError()), fails_with(full), fails_with(InputError("a: damaged"), full),
             lambda: np.empty(2**56), lambda: torch.empty(2**60), lambda: bytearray(2**62),
             fails_with(ImportError("a.so: failed to map segment from shared object")),
             fails_with(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"))]
    other = [fails_with(InputError("out of memory.npz: no such file")), fails_with(RuntimeError("shapes differ")),
             fails_with(FileNotFoundError(errno.ENOENT, "No such file", "out of memory")), lambda: np.empty(-1)]
    for function in short + other:
        with pytest.raises(Exception) as caught:
            function()
        assert lacks_memory(caught.value) is (function in short), caught.value
