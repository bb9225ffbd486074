"""Residual blocks and self-attention: what they compute, how they start, and their way through files and commands."""
import hashlib
import json
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.base import clone
from torch import nn

from tests.commands import call
from vae_gmm.checkpoint import described
from vae_gmm.classifier import VAEGMM
from vae_gmm.config import TrainConfig
from vae_gmm.devices import RecordedStep
from vae_gmm.files import InputError
from vae_gmm.gmm import MixturePrior
from vae_gmm.model_files import load_vae, model_id, safetensors_header, save_vae
from vae_gmm.networks import NETWORKS, ResidualBlock, SelfAttention
from vae_gmm.small import small_bytes
from vae_gmm.terminal import OPTIONS
from vae_gmm.training import fit_vae, prior_step, train_step
from vae_gmm.vae import VAE, posterior, vae_loss

OTHERS = [name for name in NETWORKS if name != "course"]
every = pytest.mark.parametrize("network", NETWORKS)
other = pytest.mark.parametrize("network", OTHERS)


def made(network="course", latent_dim=3, seed=0, dropout=0.2):
    """A network with the weights that the seed draws."""
    torch.manual_seed(seed)
    return VAE(latent_dim, dropout, network)


def shaken(network, **how):
    """The same, with no weight left at zero, in evaluation mode."""
    model = made(network, **how).eval()
    with torch.no_grad():
        for block in (*model.encoder_blocks, *model.decoder_blocks):
            for weight in block.parameters():
                weight.add_(0.05 * torch.randn_like(weight))
    return model


def images(n=4, seed=0):
    """Noise in the form of images."""
    return torch.rand(n, 1, 28, 28, generator=torch.Generator().manual_seed(seed))


# --- the course's network stays what it was -------------------------------------------------------------------------
def test_the_courses_network_is_as_before_there_were_others():
    model, digest = made(latent_dim=2), hashlib.sha256()
    for name, weight in model.state_dict().items():
        digest.update(name.encode() + weight.contiguous().numpy().tobytes())
    assert digest.hexdigest()[:16] == "70af97966cde9021" and model_id(model) == "3b5e122e0d9f2664"
    assert torch.rand(1).item() == pytest.approx(0.1025, abs=1e-4)  # as many random numbers were drawn
    five = range(1, 6)
    names = [*(f"conv{i}" for i in five), "fc1", "fc_mu", "fc_logvar", "fc2", *(f"deconv{i}" for i in five)]
    assert list(model.state_dict()) == [f"{name}.{part}" for name in names for part in ("weight", "bias")]
    assert model.network == VAE().network == VAEGMM().network == "course"


@other
def test_the_others_begin_as_the_courses_function_with_its_weights(network):
    course, model = made().eval(), made(network).eval()
    for name, weight in course.state_dict().items():
        assert torch.equal(weight, model.state_dict()[name]), name
    for ours, theirs in zip(model(images()), course(images())):
        assert torch.equal(ours, theirs)
    assert not torch.allclose(shaken(network)(images())[0], course(images())[0], atol=1e-3)


def test_a_network_costs_at_most_thrice_the_courses():
    """Weights of convolutions times pixels."""
    def products(model):
        total = []
        for layer in model.modules():
            if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
                layer.register_forward_hook(lambda layer, given, out: total.append(
                    layer.weight.numel() * max(out[0, 0].numel() if out.ndim == 4 else out[0, ..., 0].numel(), 1)))
        model.eval()(images(1))
        return sum(total)
    course, *rest = (products(made(network)) for network in NETWORKS)
    assert all(course < cost < 3 * course for cost in rest)


# --- what the blocks compute ----------------------------------------------------------------------------------------
def test_a_residual_block_is_its_equation():
    torch.manual_seed(1)
    block, h = ResidualBlock(6), torch.randn(3, 6, 5, 7)
    assert torch.equal(block(h), h.relu())
    with torch.no_grad():
        for weight in block.parameters():
            weight.normal_(std=0.2)
    inner = F.conv2d(F.conv2d(h, block.conv1.weight, block.conv1.bias, padding=1).clamp(min=0), block.conv2.weight,
                     block.conv2.bias, padding=1)
    torch.testing.assert_close(block(h), (h + inner).clamp(min=0))


def attention_in_loops(layer, h):
    """softmax(Q K^T / sqrt(d)) V, an image, a head and a place at a time, in double precision."""
    (B, C, H, W), d = h.shape, h.shape[1] // layer.heads
    w = {name: weight.detach().double().numpy() for name, weight in layer.named_parameters()}
    h, out = h.double().numpy(), h.double().numpy().copy()
    for b in range(B):
        x = h[b].reshape(C, -1).T
        x = (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 1e-5)
        x = x * w["norm.weight"] + w["norm.bias"] + w["position"]
        q, k, v = np.split(x @ w["qkv.weight"].T + w["qkv.bias"], 3, axis=1)
        for i in range(H * W):
            answer = np.zeros(C)
            for head in range(layer.heads):
                own = slice(head * d, (head + 1) * d)
                fit = [math.exp(sum(q[i, own] * k[j, own]) / math.sqrt(d)) for j in range(H * W)]
                answer[own] = sum(f / sum(fit) * v[j, own] for j, f in enumerate(fit))
            out[b, :, i // W, i % W] += w["out.weight"] @ answer + w["out.bias"]
    return torch.from_numpy(out).float()


@pytest.mark.parametrize("channels, size, heads", [(8, 3, 2), (12, 4, 3), (6, 2, 1)])
def test_attention_is_its_equation(channels, size, heads):
    torch.manual_seed(2)
    layer, h = SelfAttention(channels, size, heads), torch.randn(2, channels, size, size)
    assert torch.equal(layer(h), h)
    with torch.no_grad():
        for weight in layer.parameters():
            weight.normal_(std=0.5)
    torch.testing.assert_close(layer(h), attention_in_loops(layer, h), atol=1e-4, rtol=1e-4)


def test_attention_brings_what_is_far_away():
    torch.manual_seed(3)
    layer, h = SelfAttention(8, 7, 2), torch.randn(1, 8, 7, 7, requires_grad=True)
    with torch.no_grad():
        for weight in layer.parameters():
            weight.normal_(std=0.5)
    layer(h)[0, :, 0, 0].sum().backward()
    assert (h.grad[0].abs().sum(0) > 0).all()  # one corner has heard of every place
    block, h = ResidualBlock(8), torch.rand(1, 8, 7, 7, requires_grad=True)
    with torch.no_grad():
        for weight in block.parameters():
            weight.normal_(std=0.5)
    block(h)[0, :, 0, 0].sum().backward()
    assert h.grad[0, :, 3:].abs().max() == h.grad[0, :, :, 3:].abs().max() == 0  # of its neighbours


# --- the whole networks ---------------------------------------------------------------------------------------------
@every
@pytest.mark.parametrize("latent_dim, n", [(2, 1), (8, 5)])
def test_shapes(network, latent_dim, n):
    model = made(network, latent_dim)
    logits, mu, logvar = model(images(n))
    assert logits.shape == (n, 1, 28, 28) and mu.shape == logvar.shape == (n, latent_dim)
    assert logits.dtype == mu.dtype == torch.float32
    with pytest.raises(ValueError, match="28, 28"):
        model(torch.rand(2, 1, 14, 14))


@every
def test_a_gradient_reaches_every_weight(network):
    model = shaken(network)
    logits, mu, logvar = model(images())
    vae_loss(logits, images(), mu, logvar).loss.backward()
    for name, weight in model.named_parameters():
        assert weight.grad is not None and weight.grad.abs().max() > 0, name


@other
def test_layers_that_begin_at_zero_learn(network):
    model = made(network)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    fit_vae(model, images(8), config=TrainConfig.fast(epochs=2, prior_epochs=0, batch_size=4, precision="float32"))
    for name, weight in model.state_dict().items():
        assert not torch.equal(weight, before[name]), name


@other
def test_the_seed_decides(network):
    first, again, another = (made(network, seed=seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["conv1.weight"], another["conv1.weight"])
    clfs = [VAEGMM(2, config=TrainConfig.fast(epochs=1, prior_epochs=0), random_state=seed, network=network)
            for seed in (0, 0, 1)]
    one, two, three = (model_id(clf.fit_vae(images(12)).vae_) for clf in clfs)
    assert one == two != three


@every
def test_double_half_steps_and_layouts(network):
    model, x = shaken(network), images()
    expected = model(x)[0]
    torch.testing.assert_close(model(x.contiguous(memory_format=torch.channels_last))[0], expected)
    with torch.autocast("cpu", torch.bfloat16):
        short = model(x)[0]
    assert (short.float() - expected).abs().max() < 0.1 * expected.abs().max()
    assert all(w.is_contiguous(memory_format=torch.channels_last) for w in model.parameters() if w.ndim == 4)
    assert model.conv5(model.conv4(model.conv3(model.conv2(model.conv1(x))))).is_contiguous(
        memory_format=torch.channels_last)
    block = model.encoder_blocks[4]
    h = torch.rand(2, 256, 7, 7).contiguous(memory_format=torch.channels_last)
    assert block(h).is_contiguous(memory_format=torch.channels_last)  # no copy before the next convolution
    torch.testing.assert_close(model.double()(x.double())[0].float(), expected, atol=1e-4, rtol=1e-3)


@every
def test_on_no_device_and_in_inference_mode(network):
    with torch.device("meta"):
        assert VAE(2, network=network).state_dict().keys() == made(network).state_dict().keys()
    with torch.inference_mode():
        model = VAE(2, network=network)
    assert not any(weight.is_inference() for weight in model.parameters())


@every
def test_a_recorded_step_is_a_step(network):
    """As on a GPU: the same work on the same tensors, again and again; nothing in it asks for a number."""
    config, results = TrainConfig.fast(epochs=1, batch_size=4, precision="float32"), []
    for wrap in (lambda step: step, lambda step: RecordedStep(step, 4, record=lambda f: f, beside=lambda f: f())):
        model, step = made(network), wrap(train_step)
        optimizer = torch.optim.Adam(model.parameters(), 1e-3)
        torch.manual_seed(5)
        for i in range(6):
            step(model.train(), images(4, i), optimizer, config, 0.5)
        results.append(model_id(model))
    assert results[0] == results[1]
    assert results[0] != model_id(made(network))


@other
def test_stage_two(network):
    prior, model = MixturePrior(2), shaken(network)
    prior.start(torch.randn(20, 3))
    optimizer = torch.optim.Adam(model.parameters())
    terms = prior_step(model.train(), images(), optimizer, TrainConfig.fast(precision="bfloat16"), 0.5, prior=prior)
    assert terms.shape == (3,) and terms.isfinite().all()


# --- names ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("wrong", ["resnet", "", "Course", None, 3, ["course"], {}, np.array(["course"])])
def test_unknown_names(wrong):
    with pytest.raises(ValueError, match="network must be 'course' or 'residual' or 'attention', got"):
        VAE(network=wrong)
    clf = VAEGMM(network=wrong)
    with pytest.raises(InputError, match="^network is .*; expected 'course' or 'residual' or 'attention'$"):
        clf.fit(images(6), [0, 1, 0, 1, 0, 1])
    assert not [name for name in vars(clf) if name.endswith("_")]


def test_the_command_line_knows_all_names():
    option = OPTIONS["layers"](lambda: None).__click_params__[0]
    assert list(option.type.choices) == list(NETWORKS)


def test_a_network_is_kept_under_its_own_name():
    names = {described((VAEGMM(network=network), images())) for network in NETWORKS}
    assert len(names) == len(NETWORKS)
    assert clone(VAEGMM(network="residual")).network == "residual"


# --- files ----------------------------------------------------------------------------------------------------------
@every
def test_a_file_tells_the_network(network, tmp_path):
    model = shaken(network)
    save_vae(model, tmp_path / "vae")
    assert safetensors_header(tmp_path / "vae")[0]["network"] == network
    torch.save(model.state_dict(), tmp_path / "vae.pt")
    for name in ("vae", "vae.pt"):
        again = load_vae(tmp_path / name)
        assert again.network == network and model_id(again) == model_id(model)
        assert torch.equal(posterior(again, images())[0], posterior(model, images())[0])


def header(path, **changes):
    """Write another description into a model file, with None for an entry to be taken out."""
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    whole = json.loads(data[8:8 + size])
    meta = json.loads(whole["__metadata__"]["vae_gmm"]) | changes
    whole["__metadata__"]["vae_gmm"] = json.dumps({k: v for k, v in meta.items() if v is not None})
    text = json.dumps(whole).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + size:])


def test_an_old_file_holds_the_courses_network(tmp_path):
    save_vae(made(), tmp_path / "vae")
    header(tmp_path / "vae", network=None)
    assert load_vae(tmp_path / "vae").network == "course"


@pytest.mark.parametrize("told, words", [
    ("resnet", "network='resnet'"), (["course"], "network="), (7, "network=7"), ({}, "network="),
    ("attention", "expected shape .* in the attention network"), ("course", "expected no such tensor")])
def test_files_that_tell_another_network(told, words, tmp_path):
    save_vae(made("residual"), tmp_path / "vae")
    header(tmp_path / "vae", network=told)
    with pytest.raises(InputError, match=words) as caught:
        load_vae(tmp_path / "vae")
    assert str(caught.value).startswith(str(tmp_path / "vae")) and "\n" not in str(caught.value)


@other
def test_a_classifier_comes_back(network, tmp_path, digits):
    X, y = digits
    clf = VAEGMM(4, config=TrainConfig.fast(epochs=1), network=network).fit_labelled(X[:40], X[40:80], y[40:80])
    clf.save(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["network"] == network
    again = VAEGMM.load(tmp_path)
    assert again.network == again.vae_.network == network
    assert np.array_equal(again.predict_proba(X), clf.predict_proba(X))
    for use in (again.anomaly_score, again.reconstruct):
        assert np.isfinite(use(X[:3])).all()
    assert again.sample(2)[0].shape == (2, 1, 28, 28)
    again.set_params(config=clf.config, random_state=0).fit_labelled(X[:40], X[40:80], y[40:80])  # of the same kind
    assert again.vae_.network == network and model_id(again.vae_) == model_id(clf.vae_)


@other
def test_there_is_no_small_form(network):
    with pytest.raises(InputError, match=f"^the VAE: is the network '{network}', which has no small form; expected"):
        small_bytes(made(network))


@other
def test_a_checkpoint_goes_on_with_its_network_only(network, tmp_path):
    path, config = tmp_path / "state", TrainConfig.fast(epochs=1, batch_size=4, precision="float32")
    whole = made(network)
    fit_vae(whole, images(8), config=config, prior=MixturePrior(2))

    def stop(history):
        raise KeyboardInterrupt
    assert fit_vae(made(network), images(8), config=config, prior=MixturePrior(2), checkpoint=path,
                   callback=stop).stopped == "interrupted"
    for name in NETWORKS:
        if name != network:
            with pytest.raises(InputError, match=rf"other settings \(network={network}\)"):
                fit_vae(made(name), images(8), config=config, prior=MixturePrior(2), checkpoint=path, resume=True)
    model = made(network, seed=9)
    assert len(fit_vae(model, images(8), config=config, prior=MixturePrior(2), checkpoint=path, resume=True).rows) == 2
    assert model_id(model) == model_id(whole)


# --- the command ----------------------------------------------------------------------------------------------------
def test_train_with_another_network(good, tmp_path):
    words = f"{good}/train.npz {good}/val.npz --epochs 1 --network residual --out-dir {tmp_path} --checkpoint state"
    code, out, err = call(tmp_path, "train", *words.split())
    assert code == 0, err
    assert load_vae(tmp_path / "vae.pth").network == "residual"
    code, out, err = call(tmp_path, "test_classifier", f"{good}/test.npz")
    assert code == 0 and "accuracy" in out, err
    code, out, err = call(tmp_path, "info", "vae.pth")
    assert out.startswith("vae.pth: residual network with 8 latent dimensions and 8,389,777 parameters")
    code, out, err = call(tmp_path, "train", *words.replace("residual", "attention").split())
    assert code == 1 and "network=residual" in err and err.count("\n") == 1, err
    code, out, err = call(tmp_path, "explore", "--no-open")
    assert code == 1 and "has no small form" in err and not (tmp_path / "explorer.html").exists()


def test_train_with_an_unknown_network(good, tmp_path):
    code, out, err = call(tmp_path, "train", good / "train.npz", good / "val.npz", "--network", "resnet")
    assert code == 2 and "'course', 'residual', 'attention'" in err and not list(tmp_path.iterdir())
