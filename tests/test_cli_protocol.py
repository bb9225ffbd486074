"""The course's three lines as a grading program runs them; and what else a process shows: signals, pipes, completion.
"""
import ast
import os
import re
import shlex
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from commands import SECONDS, Forked, call, environment, run, start
from safetensors import safe_open

from vae_gmm.classifier import VAEGMM
from vae_gmm.config import TrainConfig

METRICS = ["accuracy", "precision_macro", "recall_macro", "f1_macro", "f1_micro"]


def predictions(folder):
    """The labels in vae.csv."""
    header, *labels = (folder / "vae.csv").read_text().split("\n")[:-1]
    assert header == "Predicted_Label"
    return np.array([int(label) for label in labels])


def metrics(out):
    """The dictionary that test_classifier prints."""
    return ast.literal_eval(re.search(r"^GMM Performance Metrics: (\{.*\})$", out, re.M)[1])


@pytest.fixture(scope="module")
def course(tmp_path_factory, digits):
    """A folder with an awkward name in which the course's first line has run; its standard output beside it."""
    folder = tmp_path_factory.mktemp("Übung 1, 4 & 8 ")
    images, labels = digits
    val = np.concatenate([np.flatnonzero(labels[60:] == d)[:5] for d in (1, 4, 8)]) + 60
    np.savez(folder / "TRAIN.npz", data=images[:60])
    np.savez(folder / "VAL.npz", data=images[val], labels=labels[val])
    np.savez(folder / "RECON.npz", data=images[100:110])
    np.savez(folder / "TEST.npz", data=images[100:], labels=labels[100:])
    code, out, err = run(folder, *"TRAIN.npz VAL.npz train vae.pth gmm_params.pkl --epochs 2".split())
    assert code == 0, err
    return folder, out, err


def test_train(course):
    folder, out, err = course
    assert {"vae.pth", "gmm_params.pkl"} <= {path.name for path in folder.iterdir()}
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]
    for name in ("vae.pth", "gmm_params.pkl"):  # others may read them, as far as the user lets them read any file
        assert (folder / name).stat().st_mode & 0o777 == (folder / "TRAIN.npz").stat().st_mode & 0o777
    assert "Network: vae.pth" in out and "Mixture: gmm_params.pkl" in out
    assert out.splitlines()[-1].endswith("vae_gmm test_classifier TEST.npz --model vae.pth --gmm gmm_params.pkl")
    assert "\n3 components, named 1, 4, 8 by 15 labelled images.\n" in out
    seen = [re.sub(r"-?\d+\.\d+", "#", line) for line in err.splitlines()]  # plain lines, no bar
    assert seen == [f"epoch {i} of 4: stage {1 + (i > 2)}, training loss #" + ", # min left" * (i < 4)
                    for i in (1, 2, 3, 4)]
    assert "\x1b" not in out + err and "\r" not in out + err


def test_reconstruction(course):
    folder, _, _ = course
    code, out, err = call(folder, *"RECON.npz test_reconstruction vae.pth".split())
    assert (code, err) == (0, "")
    with np.load(folder / "vae_reconstructed.npz", allow_pickle=False) as file, np.load(folder / "RECON.npz") as given:
        y, x = file["data"], given["data"] / 255
    assert y.shape == (10, 28, 28) and y.dtype == np.float32 and y.min() >= 0 and y.max() <= 1
    from skimage.metrics import structural_similarity
    rows = [line.split() for line in out.splitlines()[1:11]]
    for i, (image, ssim, closeness) in enumerate(rows):
        assert int(image) == i
        assert float(ssim) == pytest.approx(structural_similarity(x[i], y[i].astype(float), data_range=1), abs=2e-4)
        assert float(closeness) == pytest.approx(1 - np.mean((x[i] - y[i]) ** 2), abs=1e-4)
    assert out.splitlines()[12:] == ["Network: vae.pth", "Reconstructions: vae_reconstructed.npz"]
    mean = out.splitlines()[11].split()
    assert mean[0] == "mean" and float(mean[1]) == pytest.approx(np.mean([float(row[1]) for row in rows]), abs=1e-4)


def test_classifier(course):
    folder, _, _ = course
    code, out, err = call(folder, *"TEST.npz test_classifier vae.pth gmm_params.pkl".split())
    assert (code, err) == (0, "")
    predicted, labels = predictions(folder), np.load(folder / "TEST.npz")["labels"]
    assert len(predicted) == 50 and set(predicted) <= {1, 4, 8}
    values = metrics(out)
    assert list(values) == METRICS
    assert values["accuracy"] == values["f1_micro"] == pytest.approx(np.mean(predicted == labels), abs=1e-6)
    said = ["Network: vae.pth", "Mixture: gmm_params.pkl", "Predictions: vae.csv, 50 images"]
    assert out.splitlines()[-3:] == said
    table = [list(map(int, line.split())) for line in out.splitlines() if re.fullmatch(r"[\d ]+", line)]
    counts = [[t, *(int(((labels == t) & (predicted == p)).sum()) for p in (1, 4, 8))] for t in (1, 4, 8)]
    assert table == [[1, 4, 8], *counts]

    with np.load(folder / "TEST.npz") as file:  # without labels, and each image as a row: the same answers
        np.savez(folder / "bare.npz", data=file["data"].reshape(-1, 784))
    code, out, err = call(folder, "test_classifier", folder / "bare.npz", "--model", folder / "vae.pth", "--quiet")
    assert (code, out, err) == (0, "", "")
    np.testing.assert_array_equal(predictions(folder), predicted)


def test_the_network_in_the_other_folder(course, tmp_path):
    """With --out-dir, files are found where train has put them; of two with one name, none is taken by mistake."""
    folder, _, _ = course
    for name in ("vae.pth", "gmm_params.pkl"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    words = "test_classifier", folder / "TEST.npz", "--out-dir", "new"
    (tmp_path / "new").mkdir()
    code, out, err = call(tmp_path, *words)  # only here
    assert code == 0 and "Network: vae.pth\nMixture: gmm_params.pkl\nPredictions: new/vae.csv" in out, err
    for name in ("vae.pth", "gmm_params.pkl"):
        (tmp_path / name).rename(tmp_path / "new" / name)
    code, out, err = call(tmp_path, *words)  # only there
    assert code == 0 and "Network: new/vae.pth\nMixture: new/gmm_params.pkl\nPredictions: new/vae.csv" in out, err
    (tmp_path / "vae.pth").write_bytes(b"")
    (tmp_path / "new" / "vae.csv").unlink()
    said = f"Error: vae.pth: is here and in new; expected --model new/vae.pth or {tmp_path.resolve() / 'vae.pth'}\n"
    for command in ("test_classifier", "test_reconstruction"):
        assert call(tmp_path, command, *words[1:]) == (1, "", said)
    assert not (tmp_path / "new" / "vae.csv").exists()
    code, out, err = call(tmp_path, *words, "--model", "new/vae.pth")
    assert code == 0 and "Network: new/vae.pth" in out, err


NAMES = ["-week `3`", b"caf\xe9 'x'", b'a\n"$(b)"\t%d\\x']


@pytest.mark.parametrize("name", NAMES, ids=repr)
def test_what_is_printed_can_be_typed(name, tmp_path, monkeypatch):
    """Names that begin with a dash, hold blanks, quotes, or bytes of another encoding."""
    from click.testing import CliRunner
    from vae_gmm.cli import vae_gmm
    name = os.fsdecode(name)
    (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path)
    runner = CliRunner()
    done = runner.invoke(vae_gmm, ["data", "--labels-per-digit", "390", "--out-dir", name], prog_name="vae_gmm")
    typed = done.output.splitlines()[-1].removeprefix("Next: vae_gmm ")
    show = f"{shlex.quote(sys.executable)} -c 'import os, sys; print(list(map(os.fsencode, sys.argv[1:])))' "

    def in_the_shell(typed):  # the words that it makes of a line
        assert typed.isprintable()
        out = subprocess.run(show + typed, shell=True, capture_output=True, text=True, check=True).stdout
        return list(map(os.fsdecode, ast.literal_eval(out)))

    start = "./" * name.startswith("-")
    paths = [f"{start}{name}/mnist_1_4_8_{part}.npz" for part in ("train", "val")]
    assert in_the_shell(typed) == ["train", *paths]
    assert all((tmp_path / path).exists() for path in paths)
    files = f"{name}.pth", f"{name}.pkl"
    words = ["train", *paths, "--model", files[0], "--gmm", files[1], "--epochs", "1", "--out-dir", name]
    done = runner.invoke(vae_gmm, words, prog_name="vae_gmm")
    assert done.exit_code == 0, done.output
    typed = done.output.splitlines()[-1].removeprefix("Next: vae_gmm ")
    (tmp_path / "out").mkdir()
    code, _, err = call(tmp_path, *in_the_shell(typed), "--out-dir", "out")
    assert code == 0 and len(predictions(tmp_path / "out")) == 300, err
    words = ["test_reconstruction", paths[0], "--model", files[0], "--out-dir", name]
    assert runner.invoke(vae_gmm, words).exit_code == 0
    for path in (tmp_path / name).iterdir():
        done = runner.invoke(vae_gmm, ["info", "--", f"{name}/{path.name}"])
        assert done.exit_code == 0, done.output


def test_labels_the_mixture_does_not_know(course):
    folder, _, _ = course
    with np.load(folder / "TEST.npz") as file:
        images, labels = file["data"], file["labels"].copy()
    labels[:3] = 7, 0, -12
    np.savez(folder / "mixed.npz", data=images, labels=labels)
    code, out, err = call(folder, "test_classifier", "mixed.npz")
    assert code == 0 and err.startswith("Note: 3 of 50 images have labels that the mixture does not know (-12, 0, 7)")
    predicted = predictions(folder)
    assert len(predicted) == 50
    assert metrics(out)["accuracy"] == pytest.approx(np.mean(predicted[3:] == labels[3:]), abs=1e-6)
    code, out, err = call(folder, "test_classifier", "mixed.npz", "--keep-labels", "4,7")
    assert code == 0 and "1 of" in err
    np.testing.assert_array_equal(predictions(folder), predicted[np.isin(labels, (4, 7))])


def test_no_label_touches_the_network(course):
    """TRAIN's labels are not read, not even to see what they are; other names for VAL's labels change names only."""
    folder, _, _ = course
    with np.load(folder / "TRAIN.npz") as train, np.load(folder / "VAL.npz") as val:
        np.savez(folder / "labelled.npz", data=train["data"], labels=np.array([{"not": "read"}]))
        np.savez(folder / "renamed.npz", data=val["data"], labels=val["labels"] + 10)
    words = "train labelled.npz renamed.npz --model again.pth --gmm again.pkl --epochs 2 --quiet"
    code, _, err = call(folder, *words.split())
    assert (code, err) == (0, "")
    assert (folder / "again.pth").read_bytes() == (folder / "vae.pth").read_bytes()
    code, out, _ = call(folder, *"test_classifier TEST.npz --model again.pth --gmm again.pkl --quiet".split())
    assert code == 0 and out == ""  # TEST's labels are all unknown to it: nothing to score
    renamed = predictions(folder)
    call(folder, *"test_classifier TEST.npz --quiet".split())
    np.testing.assert_array_equal(renamed, predictions(folder) + 10)


def test_ten_digits_one_label_each_few_images_little_time(tmp_path):
    """Fewer images than a batch, one labelled image of each of ten digits, a time budget that ends after one epoch."""
    from vae_gmm.data import embedded_digits
    images, labels = embedded_digits()
    first = np.array([np.flatnonzero(labels == d)[0] for d in range(10)])
    np.savez(tmp_path / "train.npz", data=images[first + 1])
    np.savez(tmp_path / "val.npz", data=images[first], labels=labels[first].astype(np.uint8))
    words = "train train.npz val.npz --max-minutes 1e-6 --batch-size 500 --latent-dim 3 --recipe course"
    code, out, err = call(tmp_path, *words.split())
    assert code == 0 and out.startswith("Trained for 1 epoch (time budget"), err
    assert "\n10 components" in out  # one a digit
    assert re.fullmatch(r"epoch 1 of 200: training loss .*, validation loss [\d.]+, best so far\n", err)
    _, out, _ = call(tmp_path, "info", "gmm_params.pkl")
    assert out.startswith("gmm_params.pkl: mixture of 10 components in 3 dimensions")
    np.savez(tmp_path / "black.npz", data=np.zeros((5, 28, 28), np.uint8))  # nothing to see is no reason to fail
    words = "train black.npz val.npz --keep-labels 3,5 --epochs 1 --dropout 0 --model b.pth --gmm b.pkl --quiet"
    code, out, err = call(tmp_path, *words.split())
    assert code == 0, err
    from vae_gmm.model_files import load_vae
    assert load_vae(tmp_path / "b.pth").dropout == 0


PROGRAM = "import runpy; runpy.run_module('vae_gmm', run_name='__main__')"


def stop_in_training(folder, number, *options, after=1):
    """Start a training in `folder`, send a signal after so many epochs: (exit code, standard output, error)."""
    words = "train TRAIN.npz VAL.npz --model new.pth --gmm gmm_params.pkl"
    process = Forked(folder, PROGRAM, *words.split(), *(options or ["--epochs", "9999"]))
    first = "".join(process.stderr.readline() for _ in range(after))
    process.send_signal(number)
    out, err = process.communicate(timeout=SECONDS)
    return process.returncode, out, first + err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=lambda n: n.name)
def test_signal_in_training(course, number):
    folder, _, _ = course
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    code, out, err = stop_in_training(folder, number)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert out == "" and "Traceback" not in err
    if number == signal.SIGKILL:  # nothing can be said, and nothing is half written
        assert code == -signal.SIGKILL
    else:
        assert code == 1
        *epochs, last = err.splitlines()
        assert all(line.startswith("epoch ") for line in epochs)
        assert re.fullmatch(rf"Error: interrupted after {len(epochs)} epochs?; no model was written \(.*\)", last)


@pytest.mark.parametrize("stopped, said", [
    ("interrupted", "after 0 epochs; no model was written .nor a checkpoint, which follows each epoch"),
    ("the loss is not finite in epoch 1, batch 2", "batch 2; no model was written; expected a smaller --beta")])
def test_a_training_without_anything_to_keep(stopped, said, tmp_path):
    from click import ClickException
    from vae_gmm.cli import train_network
    from vae_gmm.training import History

    class Ended:
        history_ = History(stopped=stopped)
        def fit_vae(self, images, *few, **options): pass

    with pytest.raises(ClickException, match=said):
        train_network(Ended(), None, checkpoint=tmp_path / "state", quiet=True)


def test_interrupted_while_a_module_is_loaded(tmp_path):
    """`python -m` would end with another exit code if Ctrl-C came in the middle of an `exec`, as modules call it."""
    (tmp_path / "program.py").write_text("from vae_gmm.cli import Commands\n"
                                         "commands = Commands('commands')\n"
                                         "@commands.command()\n"
                                         "def stop(): exec('raise KeyboardInterrupt')\n"
                                         "commands(['stop'])\n")
    done = subprocess.run([sys.executable, "-m", "program"], cwd=tmp_path, capture_output=True, text=True,
                          env=environment())
    assert (done.returncode, done.stdout, done.stderr.strip()) == (1, "", "Error: interrupted")


def test_going_on_from_a_checkpoint(course, tmp_path):
    """Stopped in stage two, and once more by its time limit, a run ends with the bits of one that nothing stopped."""
    folder, _, _ = course
    state, words = tmp_path / "state", ["--epochs", "2", "--checkpoint", tmp_path / "state"]
    code, _, err = stop_in_training(folder, signal.SIGTERM, *words, after=3)
    assert code == 1 and f"goes on from {state}" in err
    done = len(err.splitlines()) - 1
    code, out, _ = call(folder, "info", state)
    assert code == 0 and out.startswith(f"{state}: checkpoint after {done} of 4 epochs")
    words = ["train", "TRAIN.npz", "VAL.npz", *words, "--out-dir", tmp_path]
    code, out, err = call(folder, *words, "--max-minutes", "1e-6")
    assert (code, err) == (0, "") and f"Trained for {done} epochs (" in out  # what it has learned until then is kept
    with safe_open(state, "np") as kept, safe_open(tmp_path / "vae.pth", "np") as network:
        for name in network.keys():
            np.testing.assert_array_equal(network.get_tensor(name), kept.get_tensor(f"best.{name}"))
    code, out, err = call(folder, *words)
    assert code == 0 and [line.split()[1] for line in err.splitlines()] == ["4"][done - 3:], err
    assert out.startswith("Trained for 4 epochs (all epochs done)")
    for name in ("vae.pth", "gmm_params.pkl"):
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()
    code, _, err = call(folder, *"train TRAIN.npz VAL.npz --epochs 5 --quiet --checkpoint".split(), state)
    assert code == 1 and "state: belongs to a run with other settings (epochs=2, prior_epochs=2)" in err


def test_a_time_limit_in_stage_one(course, tmp_path):
    """The mixture is then one of k-means and EM."""
    folder, _, _ = course
    code, out, err = call(folder, *"train TRAIN.npz VAL.npz --max-minutes 1e-6 --out-dir".split(), tmp_path)
    epochs = (recipe := TrainConfig.fast()).epochs + recipe.prior_epochs
    assert code == 0 and err.startswith(f"epoch 1 of {epochs}: stage 1, ") and len(err.splitlines()) == 1
    assert out.startswith("Trained for 1 epoch (time budget") and "\n3 components, named 1, 4, 8 by" in out


def test_recipes(course, tmp_path):
    """The course's: a plane, images as they are, one stage. What the help says of both is so."""
    from vae_gmm.cli import vae_gmm
    folder, _, _ = course
    words = "train TRAIN.npz VAL.npz --recipe course --epochs 1 --quiet --out-dir".split()
    code, _, err = call(folder, *words, tmp_path)
    assert (code, err) == (0, "")
    clf, report = (VAEGMM.from_files(there / "vae.pth", there / "gmm_params.pkl") for there in (tmp_path, folder))
    assert (clf.latent_dim, clf.straighten, report.latent_dim, report.straighten) == (2, False, 8, True)
    assert len(clf.mixture_.weights) == 3 and len(set(clf.mixture_.weights.tolist())) == 3  # learned, not all equal
    fast, other = TrainConfig.fast(), TrainConfig()
    stated = {p.name: p.show_default for p in vae_gmm.commands["train"].params if getattr(p, "show_default", "") != ""}
    assert stated["epochs"] == f"{fast.epochs}; course: {other.epochs}" and fast.prior_epochs == fast.epochs
    assert stated["batch_size"] == f"{fast.batch_size}; course: {other.batch_size}"
    assert stated["beta"] == f"{fast.beta}" == f"{other.beta}"
    assert stated["latent_dim"] == f"{report.latent_dim}, or one a label if more; course: {clf.latent_dim}"


def test_a_finished_run_goes_on(course, tmp_path):
    """With more epochs; fewer than there have been are refused."""
    folder, _, _ = course
    words = "train TRAIN.npz VAL.npz --recipe course --checkpoint state --out-dir".split() + [tmp_path]
    for epochs, done in (("1", [1]), ("2", [2])):
        code, _, err = call(folder, *words, "--epochs", epochs)
        assert code == 0 and [int(line.split()[1]) for line in err.splitlines()] == done
    code, out, err = call(folder, *words, "--epochs", "1")
    assert (code, out) == (1, "") and "state: a run of 2 epochs; expected as many epochs or more" in err


def test_reader_gone(course):
    """As in `... | head -1`: no complaint, and the file is there, because it is written first."""
    folder, _, _ = course
    (folder / "vae_reconstructed.npz").unlink(missing_ok=True)
    process = start(folder, "test_reconstruction", "RECON.npz")
    process.stdout.close()
    assert (process.stderr.read(), process.wait(SECONDS)) == ("", 1)
    assert (folder / "vae_reconstructed.npz").exists()


def test_closed_streams(course, tmp_path):
    """Without standard error, or without any stream, a command does its work; no file takes a stream's place."""
    folder, _, _ = course
    options = dict(stdin=None, stdout=None, stderr=None)
    words = [*"train TRAIN.npz VAL.npz --epochs 1 --out-dir".split(), tmp_path]
    code, _, _ = run(folder, *words, **options,
                     preexec_fn=lambda: (os.dup2(os.open(os.devnull, os.O_WRONLY), 1), os.close(2)))
    assert code == 0
    VAEGMM.from_files(tmp_path / "vae.pth", tmp_path / "gmm_params.pkl")
    words = "test_classifier", folder / "TEST.npz", "--out-dir", "."
    code, _, _ = run(tmp_path, *words, **options, preexec_fn=lambda: os.closerange(0, 3))
    assert code == 0 and len(predictions(tmp_path)) == 50


def test_current_folder_deleted(tmp_path):
    (tmp_path / "gone").mkdir()
    code, out, err = run(tmp_path / "gone", "data", preexec_fn=lambda: os.rmdir(tmp_path / "gone"))
    said = "Error: the current folder is no longer there; expected to be started in one that is\n"
    assert (code, out, err) == (1, "", said)


def test_symbolic_links(course, tmp_path):
    """A link is no way around the guard of the inputs; in an output's place, the link is replaced, not its target."""
    folder, _, _ = course
    for name in ("TEST.npz", "vae.pth", "gmm_params.pkl"):
        (tmp_path / name).symlink_to(folder / name)
    (tmp_path / "vae.csv").symlink_to("TEST.npz")
    code, _, err = call(tmp_path, "test_classifier", "TEST.npz")
    assert code == 1 and err.startswith("Error: vae.csv: is an input and would be overwritten")
    (tmp_path / "precious").write_text("kept")
    (tmp_path / "vae.csv").unlink()
    (tmp_path / "vae.csv").symlink_to("precious")
    code, _, err = call(tmp_path, "test_classifier", "TEST.npz", "--quiet")
    assert code == 0, err
    assert len(predictions(tmp_path)) == 50 and (tmp_path / "precious").read_text() == "kept"


def test_one_set_of_images_in_many_forms(digits, tmp_path):
    """Types, byte and memory order, compression, a member too many make no difference; nor a name like an option's."""
    import io
    import zipfile
    from vae_gmm.data import load_npz
    images, labels = (array[:20] for array in digits)
    forms = dict(fortran=np.asfortranarray(images), big=images.astype(">u2"), wide=images.astype(np.int64),
                 flat=images.reshape(-1, 784))
    for name, form in forms.items():
        np.savez(tmp_path / name, data=form, labels=labels.astype(">i4"))
    np.savez_compressed(tmp_path / "more", data=images, labels=labels.astype(np.uint8),
                        more=np.array([{"not": "read"}]))
    for name, method in (("bzip2", zipfile.ZIP_BZIP2), ("lzma", zipfile.ZIP_LZMA)):
        with zipfile.ZipFile(tmp_path / f"{name}.npz", "w", method) as archive:
            for key, array in (("data", images), ("labels", labels)):
                np.save(out := io.BytesIO(), array)
                archive.writestr(f"{key}.npy", out.getvalue())
    for name in (*forms, "more", "bzip2", "lzma"):
        found = load_npz(tmp_path / f"{name}.npz")
        np.testing.assert_array_equal(found.images, images, name)
        np.testing.assert_array_equal(found.labels, labels, name)
        assert found.images.dtype == np.uint8 and found.labels.dtype == np.int64
    (tmp_path / "more.npz").rename(tmp_path / "-more.npz")
    code, out, err = call(tmp_path, "info", "--", "-more.npz")
    assert (code, err) == (0, "") and out.startswith("-more.npz: images")


def test_many_labels(tmp_path):
    """Of many labels the first few are named, not all."""
    np.savez(tmp_path / "many.npz", data=np.zeros((500, 28, 28), np.uint8), labels=np.arange(500))
    code, out, _ = call(tmp_path, "info", "many.npz")
    assert code == 0 and out.splitlines()[2].endswith("1 x 18, 1 x 19, ...")
    code, _, err = call(tmp_path, "test_classifier", "many.npz", "--keep-labels", "-1")
    assert code == 1 and err.endswith(f"its labels are {', '.join(map(str, range(20)))}, ...\n")


WRITE_ON = """
import os, sys
from pathlib import Path
from vae_gmm.classifier import VAEGMM
from vae_gmm.cli import write_classifier
runs = [VAEGMM.from_files(f"{name}.pth", f"{name}.pkl") for name in ("a", "b")]
for _ in sys.stdin:  # a line for each process that is wanted
    if pid := os.fork():
        print(pid, flush=True)
        os.waitpid(pid, 0)
        print("gone", flush=True)
        continue
    for _ in range(300):  # far longer than it is left to live
        for clf in runs:
            write_classifier(clf, Path("out.pth"), Path("out.pkl"))
"""


def test_killed_while_writing(course, tmp_path):
    """Two classifiers, written in turn under one name, killed at 12 random moments: each file is one of the two."""
    folder, _, _ = course
    (tmp_path / "a.pth").write_bytes((folder / "vae.pth").read_bytes())
    (tmp_path / "a.pkl").write_bytes((folder / "gmm_params.pkl").read_bytes())
    words = "train TRAIN.npz VAL.npz --epochs 1 --seed 1 --quiet --model b.pth --gmm b.pkl --out-dir"
    code, _, err = call(folder, *words.split(), tmp_path)
    assert code == 0, err
    good = {end: [(tmp_path / f"{name}.{end}").read_bytes() for name in "ab"] for end in ("pth", "pkl")}
    for end in good:
        (tmp_path / f"out.{end}").write_bytes(good[end][0])
    rng, halves = np.random.default_rng(0), 0
    parent = subprocess.Popen([sys.executable, "-c", WRITE_ON], cwd=tmp_path, stdin=subprocess.PIPE, text=True,
                              stdout=subprocess.PIPE, env=environment())
    for _ in range(12):
        parent.stdin.write("\n")
        parent.stdin.flush()
        pid = int(parent.stdout.readline())
        while not list(tmp_path.glob(".out.*.part")) and parent.poll() is None:
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.15))
        os.kill(pid, signal.SIGKILL)
        assert parent.stdout.readline() == "gone\n"
        halves += len(list(tmp_path.glob(".out.*.part")))
        for end, choices in good.items():
            assert (tmp_path / f"out.{end}").read_bytes() in choices
        for part in tmp_path.glob(".out.*.part"):
            part.unlink()
    parent.communicate(timeout=SECONDS)
    assert halves  # it was killed in the middle of writing, too


def test_info(course, tmp_path):
    """Each kind of file that there is."""
    folder, _, _ = course
    call(folder, *"test_reconstruction RECON.npz --quiet".split())
    call(folder, *"test_classifier TEST.npz --quiet".split())
    VAEGMM.from_files(folder / "vae.pth", folder / "gmm_params.pkl").save(tmp_path)
    call(folder, *"train TRAIN.npz VAL.npz --epochs 1 --quiet --checkpoint state --out-dir".split(), tmp_path)
    kinds = {
        folder / "VAL.npz": r"images\n  data: \(15, 28, 28\) uint8\n  labels: 5 x 1, 5 x 4, 5 x 8",
        folder / "TRAIN.npz": r"images\n  data: \(60, 28, 28\) uint8\n  labels: none",
        folder / "vae_reconstructed.npz": r"images as fractions, such as test_reconstruction writes\n"
                                          r"  data: \(10, 28, 28\) float32",
        folder / "vae.pth": r"network with 8 latent dimensions and ([\d,]+) parameters\n  images: straightened\n"
                            r"  name: \w+\n  architecture: .+\n  pixels: .+\n  written by: vae_gmm \d",
        folder / "gmm_params.pkl": r"mixture of 3 components in 8 dimensions\n  labels: .*\n"
                                   r"  belongs to the network: \w+",
        folder / "vae.csv": r"predictions of test_classifier for 50 images\n  labels: \d+ x",
        tmp_path / "state": r"checkpoint after 2 of 2 epochs, best 2\n  settings: epochs=1, ",
        tmp_path / "config.json": r"settings of a classifier\n  training: epochs=\d+, .*\n  mixture: ",
    }
    for path, text in kinds.items():
        code, out, err = call(folder, "info", path)
        match = re.fullmatch(f"{re.escape(str(path))}: {text}.*\n", out, re.S)
        assert (code, err) == (0, "") and match, out
        if match.groups():
            assert int(match[1].replace(",", "")) <= 20_000_000


def test_files_of_the_package_and_of_torch(course, tmp_path):
    """What VAEGMM.save and torch.save(state_dict) write serves as --model and --gmm, with the same predictions."""
    folder, _, _ = course
    clf = VAEGMM.from_files(folder / "vae.pth", folder / "gmm_params.pkl")
    clf.vae_.straightened = False  # torch's files do not tell, and the course takes images as they are
    expected = clf.predict(np.load(folder / "TEST.npz")["data"])
    clf.save(tmp_path)
    torch.save({name.replace("logvar", "log_sigma"): v for name, v in clf.vae_.state_dict().items()},
               tmp_path / "course.pth")
    for model, gmm in (("vae.safetensors", "gmm.npz"), ("course.pth", "gmm.npz")):
        code, _, err = call(tmp_path, "test_classifier", folder / "TEST.npz", "--model", model, "--gmm", gmm, "--quiet")
        assert code == 0, err
        np.testing.assert_array_equal(predictions(tmp_path), expected)
    assert call(tmp_path, "info", "course.pth")[1].startswith("course.pth: network with 8 latent dimensions")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_trained_on_a_gpu_used_on_a_cpu(course, tmp_path):
    folder, _, _ = course
    code, _, err = call(folder, *"train TRAIN.npz VAL.npz --epochs 2 --quiet --device cuda --out-dir".split(), tmp_path)
    assert code == 0, err
    labels = {}
    for device in ("cuda", "cpu"):
        words = f"test_classifier TEST.npz --quiet --device {device} --model".split()
        code, _, err = call(folder, *words, tmp_path / "vae.pth", "--gmm", tmp_path / "gmm_params.pkl", "--out-dir",
                           tmp_path)
        assert code == 0, err
        labels[device] = predictions(tmp_path)
    assert np.mean(labels["cuda"] == labels["cpu"]) >= 0.98  # an image on the border may fall on either side


def test_help_is_quick():
    """--help and mistakes in the words are answered without loading what computes."""
    code = ("import sys; from vae_gmm.cli import vae_gmm\n"
            "heavy = {'torch', 'sklearn', 'scipy', 'numpy', 'matplotlib'}\n"
            "try: vae_gmm(sys.argv[1:])\n"
            "finally: print(*sorted(heavy & set(sys.modules)), 'loaded')")
    for words, exit_code in ((["--help"], 0), (["train", "--help"], 0), (["--version"], 0), ([], 0), (["train"], 2)):
        done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, env=environment())
        assert done.returncode == exit_code and done.stdout.splitlines()[-1] == "loaded"


COMMANDS = "anomalies", "data", "explore", "info", "sample", "show", "test_classifier", "test_reconstruction", "train"
HELP = """
from click.testing import CliRunner
from vae_gmm.cli import vae_gmm
for words in [["--help"], *([name, "--help"] for name in vae_gmm.commands)]:
    print(CliRunner().invoke(vae_gmm, words).output)
"""


def test_help_without_docstrings():
    """`python -OO` drops docstrings; the help is none."""
    outs = [subprocess.run([sys.executable, *options, "-c", HELP], capture_output=True, text=True,
                           env=environment()).stdout for options in ([], ["-OO"])]
    assert outs[0] == outs[1] and len(outs[0]) > 5000


def test_help_names_every_command(tmp_path):
    """So does the answer to a misspelt one, wherever it stands; each command's own help says what each option does."""
    from vae_gmm.cli import vae_gmm
    _, out, _ = call(tmp_path, "--help")
    assert tuple(sorted(vae_gmm.commands)) == COMMANDS
    for name in COMMANDS:
        assert re.search(rf"^  {name} +\w", out, re.M), name
        code, text, err = call(tmp_path, name, "--help")
        assert (code, err) == (0, "") and text.startswith(f"Usage: python -m vae_gmm {name} ")
        assert all(param.help for param in vae_gmm.commands[name].params if param.param_type_name == "option")
    code, _, err = call(tmp_path, *"TEST.npz test_classifer vae.pth gmm_params.pkl".split())
    assert code == 2 and f"expected one of {', '.join(COMMANDS)}" in err


def test_shell_completion(tmp_path):
    program = [sys.executable, "-c", "from vae_gmm.cli import vae_gmm; vae_gmm(prog_name='vae_gmm')"]
    done = subprocess.run(program, capture_output=True, text=True, env=environment(_VAE_GMM_COMPLETE="zsh_source"))
    assert done.returncode == 0 and done.stdout.startswith("#compdef vae_gmm")
    env = environment(_VAE_GMM_COMPLETE="bash_complete", COMP_WORDS="vae_gmm train --e", COMP_CWORD="2")
    done = subprocess.run(program, capture_output=True, text=True, env=env)
    assert done.stdout.split() == ["plain,--epochs"]


@pytest.mark.skipif(sys.platform == "win32", reason="no pseudo-terminals")
def test_on_a_terminal(course):
    """A progress bar and colour on a terminal, no colour where NO_COLOR asks for none."""
    import fcntl
    import pty
    import struct
    import termios
    folder, _, _ = course

    def on_terminal(*words, **changes):
        master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("4H", 24, 80, 0, 0))  # lines and columns
        process = start(folder, *words, stdout=slave, stderr=slave, env=environment(TERM="xterm", **changes))
        os.close(slave)
        seen = b""
        while True:
            try:
                piece = os.read(master, 10_000)
            except OSError:  # the other end is closed
                break
            if not piece:
                break
            seen += piece
        os.close(master)
        return process.wait(SECONDS), seen.decode()

    code, seen = on_terminal(*"train TRAIN.npz VAL.npz --model t.pth --gmm t.pkl --epochs 1".split())
    assert code == 0 and "\r" in seen and "2/2" in seen and "epoch 1 of 2" not in seen and "\x1b[1m" in seen
    code, seen = on_terminal("info", "nowhere")
    assert code == 1 and "\x1b[31m" in seen
    code, seen = on_terminal("info", "nowhere", NO_COLOR="1")
    assert code == 1 and "\x1b" not in seen


@pytest.mark.parametrize("images, epochs", [(15, 3), (6, 1)])
def test_the_shortest_trainings(tmp_path, digits, images, epochs):
    """So few steps that the schedule hardly has a rise and a fall."""
    data, labels = digits
    few = np.concatenate([np.flatnonzero(labels == d)[:images // 3] for d in (1, 4, 8)])
    inverted = images == 6  # the warning of that is said once, not by each who reads them
    np.savez(tmp_path / "few.npz", data=255 - data[few] if inverted else data[few], labels=labels[few])
    words = "train", "few.npz", "few.npz", "--epochs", str(epochs)
    code, out, err = Forked(tmp_path, PROGRAM, *words).result() if inverted else call(tmp_path, *words)
    assert code == 0 and "Traceback" not in err and err.count("Warning: ") == inverted, err
    assert {"vae.pth", "gmm_params.pkl"} <= {path.name for path in tmp_path.iterdir()}
