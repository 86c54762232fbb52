"""The games of detectors of anomalies in tables, against NumPy in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgan import adversarial
from jaxgan.anomaly import alad, contrast, egbad, parts
from tests.runs import compile_quickly

__all__ = ["compile_quickly"]  # a fixture

B, D, Z, WIDTH = 6, 4, 3, 5


def double(tree):
    return jax.tree.map(lambda x: np.asarray(x, np.float64), jax.device_get(tree))


def dense(params, variables, x, train):
    """A layer, and the singular vector that a training pass leaves."""
    w = params["kernel"]
    if not variables:
        return x @ w + params["bias"]
    u = variables["SpectralNorm_0"]["u"]
    v = w @ u / np.linalg.norm(w @ u)
    now = v @ w / np.linalg.norm(v @ w) if train else u
    return x @ w / (v @ w @ now) + params["bias"]


def network(weights, x, train=False):
    """Logits or outputs, and what the last layer sees."""
    params, spectral = weights["params"], weights.get("spectral", {})
    for i in range(3):
        if i:
            x = np.where(x > 0, x, 0.1 * x)
        seen, x = x, dense(params[f"Dense_{i}"], spectral.get(f"Dense_{i}", {}), x, train)
    return x, seen


def softplus(x):
    return np.logaddexp(0, x)


def setting(method):
    networks = method.networks((D,), WIDTH, Z, jnp.float32)
    game = method.game(networks, parts.Plan(1000.0))
    x = jax.random.normal(jax.random.key(1), (B, D))
    batch = {"image": x, "label": jnp.zeros(B, jnp.int32), "row": jnp.arange(B)}

    @jax.jit
    def begin(key):
        state = game.init(key, batch)
        moved = lambda w: w + 0.1 * jnp.cos(jnp.arange(w.size)).reshape(w.shape)  # noqa: E731
        # Biases start at 0, and a sign of one would not show.
        players = {name: p.replace(params=jax.tree.map(moved, p.params)) for name, p in state.players.items()}
        return state.replace(players=players)

    return networks, game, begin(jax.random.key(2)), batch


def losses(method, key, besides=lambda networks, state, batch: {}):
    """Of both moves: {title: (total, metrics, variables)}, the residuals and what is wanted besides, in one program."""
    networks, game, state, batch = setting(method)

    @jax.jit
    def everything(state):
        found = {}
        for move in game.moves:
            params = {name: state.players[name].params for name in move.movers}
            total, (metrics, variables) = move.loss(params, state, batch, key)
            found[move.title] = total, metrics, variables
        return found, method.residuals(networks, parts.of(state), batch["image"]), besides(networks, state, batch)

    weights, x = double(parts.of(state)), np.asarray(batch["image"], np.float64)
    return *jax.device_get(everything(state)), networks, weights, x, batch["row"]


def sides(weights, x, z):
    fake, found = network(weights["gen"], z)[0], network(weights["enc"], x)[0]
    again, back = network(weights["gen"], found)[0], network(weights["enc"], fake)[0]
    shown = {"xz": ((x, found), (fake, z)), "xx": ((x, x), (x, again)), "zz": ((z, z), (z, back))}
    return {name: [np.concatenate(side, 1) for side in both] for name, both in shown.items()}


@pytest.mark.parametrize("method", [alad, egbad])
def test_losses_are_those_of_the_papers(method):
    """arXiv:1812.02288, equations 3 to 5, and arXiv:1802.06222, equation 1; G and E play for the other side's loss."""
    key = jax.random.key(3)
    found, scores, _, networks, weights, x, rows = losses(method, key)
    z = np.asarray(adversarial.latents(key, rows, Z), np.float64)
    shown = sides(weights, x, z)
    names = ("xz", "xx", "zz") if method is alad else ("xz",)
    assert set(networks) == {"gen", "enc", *names}
    disc = gen = 0.0
    for name in names:
        real, fake = (network(weights[name], side, train=True)[0] for side in shown[name])
        disc += -np.log(1 / (1 + np.exp(-real))).mean() - np.log(1 - 1 / (1 + np.exp(-fake))).mean()
        real, fake = (network(weights[name], side)[0] for side in shown[name])
        gen += softplus(real).mean() + softplus(-fake).mean()
        # The move commits the vector of its one power iteration.
        new = found["disc"][2][name]["spectral"]["Dense_0"]["SpectralNorm_0"]["u"]
        w, u = weights[name]["params"]["Dense_0"]["kernel"], weights[name]["spectral"]["Dense_0"]["SpectralNorm_0"]["u"]
        v = w @ u / np.linalg.norm(w @ u)
        np.testing.assert_allclose(new, v @ w / np.linalg.norm(v @ w), rtol=1e-4, atol=1e-5)
    assert found["disc"][0] == pytest.approx(disc, rel=1e-4)
    assert found["gen"][0] == pytest.approx(gen, rel=1e-4)
    enc = network(weights["enc"], x)[0]
    again = network(weights["gen"], enc)[0]
    np.testing.assert_allclose(scores.images, again, rtol=1e-3, atol=1e-4)
    if method is alad:
        features = [network(weights["xx"], np.concatenate([x, y], 1))[1] for y in (x, again)]
        np.testing.assert_allclose(scores.scores["feature"], np.abs(features[0] - features[1]).mean(1), rtol=1e-3)
    else:
        features = [network(weights["xz"], np.concatenate([y, enc], 1))[1] for y in (x, again)]
        expected = 0.9 * np.abs(x - again).sum(1) + 0.1 * np.abs(features[0] - features[1]).sum(1)
        np.testing.assert_allclose(scores.scores["egbad"], expected, rtol=1e-3)


def test_contrast_adds_what_it_says():
    key = jax.random.key(4)
    z_key, noise_key, length_key, move_key = jax.random.split(key, 4)
    other_key, other_noise_key = jax.random.split(key)

    def bases(networks, state, batch):
        """The losses that it adds to."""
        plain = {name: network for name, network in networks.items() if name != "near"}
        judges, players = ({n: state.players[n].params for n in names} for names in (alad.PAIRS, ("gen", "enc")))
        z, other = (adversarial.latents(key, batch["row"], Z) for key in (z_key, other_key))
        judged, _ = alad.judged(plain, judges, state, batch["image"], z)
        confused, _ = alad.confused(plain, players, state, batch["image"], other)
        return judged, confused

    found, residuals, (judged, confused), _, weights, x, rows = losses(contrast, key, bases)
    seen = x + 0.2 * np.asarray(contrast.normal(noise_key, rows, (D,)), np.float64)
    length = np.asarray(contrast.lengths(length_key, rows), np.float64)
    noise = np.asarray(contrast.normal(move_key, rows, (D,)), np.float64)
    far = seen.copy()
    for i in range(B):  # row i moves along the two before it, or by noise
        far[i] += length[i] * (noise[i] if i % 2 == 0 else (seen[i - 1] - seen[i - 2]) / np.sqrt(2))
    real, fake = (network(weights["near"], np.concatenate([y, np.log(length)], 1))[0] for y in (seen, far))
    expected = judged + softplus(-real).mean() + softplus(fake).mean()
    assert found["disc"][0] == pytest.approx(expected, rel=1e-4)
    noisy = x + 0.5 * np.asarray(contrast.normal(other_noise_key, rows, (D,)), np.float64)
    latent = network(weights["enc"], noisy)[0]
    row = np.square(x - network(weights["gen"], latent)[0]).mean()
    prior = np.square(latent.mean(0)).mean() + np.square(np.cov(latent.T, bias=True) - np.eye(Z)).sum() / Z
    assert found["gen"][0] == pytest.approx(confused + row + prior, rel=1e-4)
    scores = residuals.scores
    told = [network(weights["near"], np.concatenate([x, np.full((B, 1), np.log(s))], 1))[0] for s in (1, 2, 4)]
    np.testing.assert_allclose(scores["contrast"], np.mean([softplus(-t[:, 0]) for t in told], 0), rtol=1e-3)
    np.testing.assert_allclose(scores["latent"], np.square(network(weights["enc"], x)[0]).mean(1), rtol=1e-3)


def test_lengths_and_moves():
    rows = jnp.arange(4000)
    length = np.log(np.asarray(contrast.lengths(jax.random.key(0), rows)))[:, 0]
    assert np.log(0.1) <= length.min() < np.log(0.11) and np.log(4.9) < length.max() <= np.log(5)
    assert length.mean() == pytest.approx(np.log(0.5) / 2, abs=0.05)
    # Those along differences have the covariance of the rows.
    x = np.random.default_rng(0).normal(size=(4000, 2)) @ np.array([[1.0, 0.9], [0.0, 0.2]])
    x = x.astype(np.float32)
    moves = np.asarray(contrast.moved(jnp.asarray(x), jnp.ones((4000, 1)), jnp.zeros((4000, 2)))) - x
    np.testing.assert_allclose(np.cov(moves[1::2].T), np.cov(x.T), atol=0.05)
    assert not moves[::2].any()
