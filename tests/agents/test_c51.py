"""C51 against the paper: the projection, the gradient in NumPy, tables whose means are DQN's, masks, bad input."""

import dataclasses
import functools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from polyak.agents import c51
from polyak.agents.c51 import C51
from polyak.core import Counter, Rollout, Spec, Transition
from polyak.errors import PolyakError
from polyak.replay import UNIFORM, Drawn
from polyak.returns import categorical_projection
from polyak.spaces import Box, Dict, Discrete, MultiBinary

B, D, K, N = 7, 5, 3, 11  # batch, observation, actions, atoms
OBS = Box(-1.0, 1.0, (D,))
SPEC = Spec(OBS, Discrete(K), 2, 1000)
PLAIN = C51(
    network=(), gamma=0.9, n_atoms=N, v_min=-2.0, v_max=3.0, buffer_size=50, learning_starts=0, rollout_length=2
)
Z = np.linspace(-2.0, 3.0, N)


@functools.cache
def begun(agent, spec=SPEC):
    return jax.jit(lambda key: agent.init(key, spec))(jax.random.key(0))


learned = jax.jit(lambda agent, state, batch, drawn: agent.learn(state, batch, jax.random.key(0), drawn))
projected = jax.jit(categorical_projection)


def gradient(agent, state, batch, drawn=UNIFORM):
    """What `learn` descends along."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(c51, "descend", lambda rule, lr, grads, opt, params: (grads, opt))
        return jax.jit(lambda a, s, b, d: a.learn(s, b, jax.random.key(0), d)[0].Z)(agent, state, batch, drawn)


def linear(state, W, W_target):
    """The state with logits s·W, W [D, K·N]."""

    def logits(net, W):
        return dataclasses.replace(net, head=dataclasses.replace(net.head, W=jnp.float32(W), b=jnp.zeros(W.shape[-1])))

    return state._replace(Z=logits(state.Z, W), Z_target=logits(state.Z_target, W_target))


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def share(value, z):
    """One value brought to the atoms, by the two next to it: algorithm 1 of the paper."""
    m = np.zeros(len(z))
    b = (np.clip(value, z[0], z[-1]) - z[0]) / (z[1] - z[0])
    low, high = int(np.floor(b)), int(np.ceil(b))
    if low == high:
        m[low] = 1.0
    else:
        m[low], m[high] = high - b, b - low
    return m


# -------------------------------------------------------------------------------------------------- the projection


def test_the_projection_by_hand():
    """Atoms 0, 1, 2: 0.25 goes to 0 and 1 as ¾ and ¼; 7 and −3 are cut; an atom keeps its own."""
    z = jnp.array([[0.25, 1.0, 7.0], [-3.0, 1.5, 2.0]])
    p = jnp.array([[0.4, 0.5, 0.1], [0.2, 0.2, 0.6]])
    assert_allclose(projected(z, p, 0.0, 2.0), [[0.3, 0.6, 0.1], [0.2, 0.1, 0.7]], atol=1e-6)


@pytest.fixture(scope="module")
def rlax():
    """A second oracle, by other authors; importing it warns of names that jax has deprecated."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        import rlax
    return rlax


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("atoms", [2, 3, 11, 51, 101])
def test_the_projection_is_that_of_rlax_keeps_mass_and_where_nothing_is_cut_the_mean(rlax, atoms):
    rng = np.random.default_rng(atoms)
    atoms_z = jnp.linspace(-10.0, 10.0, atoms)
    for scale in (3.0, 15.0):
        z = jnp.sort(jnp.float32(rng.normal(0, scale, (40, atoms))), -1)
        p = jax.nn.softmax(jnp.float32(2 * rng.normal(size=(40, atoms))))
        m = projected(z, p, -10.0, 10.0)
        assert_allclose(m, jax.vmap(rlax.categorical_l2_project, (0, 0, None))(z, p, atoms_z), atol=1e-5)
        assert_allclose(m.sum(-1), 1.0, rtol=1e-5)
        inside = (abs(z) <= 10).all(-1)
        assert_allclose((m * atoms_z[None]).sum(-1)[inside], (z * p).sum(-1)[inside], atol=2e-4)
        assert (m >= 0).all()


def test_a_value_on_an_atom_stays_there():
    for v_min, v_max, atoms in [(-10.0, 10.0, 51), (-100.0, 100.0, 101), (0.0, 0.3, 4)]:
        z = jnp.linspace(v_min, v_max, atoms)
        m = projected(jnp.broadcast_to(z[:, None], (atoms, atoms)), jnp.full((atoms, atoms), 1 / atoms), v_min, v_max)
        assert_allclose(m, np.eye(atoms), atol=1e-5)


# ------------------------------------------------------------------------------------------------ the gradient


def experience(seed, mask=False):
    rng = np.random.default_rng(seed)
    terminated, truncated = (np.arange(B) % 4 == k for k in (1, 2))

    def obs():
        x = jnp.float32(rng.normal(size=(B, D)))
        allowed = rng.integers(0, 2, (B, K))
        allowed[..., 1] |= allowed.sum(-1) == 0
        return {"action_mask": jnp.float32(allowed), "x": x} if mask else x

    action, reward = jnp.int32(rng.integers(0, K, B)), jnp.float32(rng.normal(size=B))
    return Transition(obs(), action, reward, obs(), jnp.asarray(terminated), jnp.asarray(truncated))


@pytest.mark.parametrize("mask", [False, True])
@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("drawn", [False, True])
def test_the_gradient_equals_numpy(double, mask, drawn):
    """(2)-(6) and (9), (11), written out: bootstrapped at the clock's end only, cut at both ends of the support."""
    agent = dataclasses.replace(PLAIN, double=double)
    obs = Dict({"action_mask": MultiBinary(K), "x": OBS}) if mask else OBS
    rng = np.random.default_rng(3)
    W, W_target = rng.normal(0, 0.5, (2, D, K * N))
    state, batch = linear(begun(agent, Spec(obs, Discrete(K), 2, 1000)), W, W_target), experience(1, mask)
    k, w = rng.integers(1, 5, B), rng.uniform(0.2, 1, B)
    how = Drawn(jnp.int32(k), jnp.float32(w)) if drawn else Drawn()
    if not drawn:
        k, w = np.ones(B), np.ones(B)

    x, x_next = (np.float64(o["x"] if mask else o) for o in (batch.obs, batch.next_obs))
    allowed = np.asarray(batch.next_obs["action_mask"]) > 0 if mask else np.ones((B, K), bool)
    W_grad, losses, cut = np.zeros((D, K, N)), np.zeros(B), 0
    for i in range(B):
        p_target = softmax((x_next[i] @ W_target).reshape(K, N))
        chooser = softmax((x_next[i] @ (W if double else W_target)).reshape(K, N)) @ Z
        best = max((a for a in range(K) if allowed[i, a]), key=lambda a: chooser[a])
        m = np.zeros(N)
        for j in range(N):
            value = float(batch.reward[i]) + (0 if batch.terminated[i] else 0.9 ** k[i] * Z[j])
            cut += not Z[0] <= value <= Z[-1]
            m += p_target[best, j] * share(value, Z)
        p = softmax((x[i] @ W).reshape(K, N))[int(batch.action[i])]
        losses[i] = w[i] * -(m * np.log(p)).sum()
        W_grad[:, int(batch.action[i])] += w[i] * np.outer(x[i], p - m) / B
    assert cut > 0
    assert_allclose(gradient(agent, state, batch, how).head.W, W_grad.reshape(D, -1), rtol=1e-3, atol=2e-6)
    assert learned(agent, state, batch, how)[1]["train/loss"] == pytest.approx(losses.mean(), rel=1e-4)


def test_the_target_has_no_gradient():
    """CT15: θ′ moves by (7) alone, and the loss's derivative by θ holds the target fixed."""
    agent = dataclasses.replace(PLAIN, network=(8,), double=True)
    state, batch = begun(agent), experience(0)
    after, _ = learned(agent, state, batch, Drawn())
    for a, b in zip(jax.tree.leaves(state.Z_target), jax.tree.leaves(after.Z_target), strict=True):
        assert_array_equal(a, b)

    def loss_of(Z, Z_target):
        return agent.learn(state._replace(Z=Z, Z_target=Z_target), batch, jax.random.key(0))[1]["train/loss"]

    semi = jax.jit(jax.grad(loss_of))(state.Z, state.Z_target)
    for a, b in zip(jax.tree.leaves(semi), jax.tree.leaves(gradient(agent, state, batch)), strict=True):
        assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_priorities_are_divergences():
    """(10): KL(m ‖ p), 0 where the network's distribution is the target itself."""
    agent = dataclasses.replace(PLAIN, prioritised=0.5, gamma=0.0)
    batch = experience(2)._replace(reward=jnp.full(B, 0.5), action=jnp.zeros(B, jnp.int32))
    state = begun(agent)
    sure = np.full((K, N), -40.0)
    sure[:, 5] = 0.0  # the atom 0.5
    head = dataclasses.replace(state.Z.head, W=jnp.zeros((D, K * N)), b=jnp.float32(sure.reshape(-1)))
    _, metrics = learned(agent, state._replace(Z=dataclasses.replace(state.Z, head=head)), batch, Drawn())
    assert_allclose(metrics["train/td_error"], np.zeros(B), atol=1e-5)
    flat = dataclasses.replace(head, b=jnp.zeros(K * N))
    _, metrics = learned(agent, state._replace(Z=dataclasses.replace(state.Z, head=flat)), batch, Drawn())
    assert_allclose(metrics["train/td_error"], np.full(B, np.log(N)), rtol=1e-5)
    assert "train/td_error" not in learned(PLAIN, begun(PLAIN), batch, Drawn())[1]


# ------------------------------------------------------------------------------------------------ tables (§8.2)


def model(seed, states=5, actions=2, gamma=0.9):
    """A random MDP with deterministic successors, and room for all its returns between −10 and 10."""
    rng = np.random.default_rng(seed)
    return rng.integers(states, size=(states, actions)), rng.uniform(-1, 1, (states, actions)), gamma


@pytest.mark.parametrize("seed", range(5))
def test_full_sweeps_have_the_means_of_value_iteration_and_contract(seed):
    """Where nothing is cut, C51's Q is the tabular Q, sweep by sweep; ‖Q_{k+1} − Q*‖ ≤ γ ‖Q_k − Q*‖; mass stays 1."""
    nxt, r, gamma = model(seed)
    z = np.linspace(-10, 10, 51)
    Q_star = np.zeros(r.shape)
    for _ in range(2000):
        Q_star = r + gamma * Q_star[nxt].max(-1)
    p = np.zeros((*r.shape, 51))
    p[..., 25] = 1.0
    Q = np.zeros(r.shape)
    for _ in range(30):
        best = (p[nxt] @ z).argmax(-1)
        p_next = np.take_along_axis(p[nxt], best[..., None, None], 2)[:, :, 0]
        p = np.asarray(projected(jnp.float32(r[..., None] + gamma * z), jnp.float32(p_next), -10.0, 10.0), np.float64)
        before, Q = Q, r + gamma * Q[nxt].max(-1)
        assert_allclose(p.sum(-1), 1.0, rtol=1e-5)
        assert_allclose(p @ z, Q, atol=1e-3)
        assert abs(Q - Q_star).max() <= gamma * abs(before - Q_star).max() + 1e-9


def test_the_fixed_point_of_the_sweeps_has_no_gradient():
    """`learn` on all transitions of a table at once, with logits log p of the fixed point."""
    nxt, r, gamma = model(0)
    z, agent = np.linspace(-10, 10, 51), dataclasses.replace(PLAIN, n_atoms=51, v_min=-10.0, v_max=10.0)
    p = np.full((5, 2, 51), 1 / 51)
    for _ in range(300):
        best = (p[nxt] @ z).argmax(-1)
        p_next = np.take_along_axis(p[nxt], best[..., None, None], 2)[:, :, 0]
        p = np.asarray(projected(jnp.float32(r[..., None] + gamma * z), jnp.float32(p_next), -10.0, 10.0), np.float64)
    state = begun(agent, Spec(Discrete(5), Discrete(2), 2, 100))
    s, a = (jnp.int32(x.reshape(-1)) for x in np.indices((5, 2)))
    no = jnp.zeros(10, bool)
    batch = Transition(s, a, jnp.float32(r.reshape(-1)), jnp.int32(nxt.reshape(-1)), no, no)
    W = np.log(np.maximum(p, 1e-12)).reshape(5, 102)
    assert abs(np.asarray(gradient(agent, linear(state, W, W), batch).head.W)).max() < 2e-4
    other = np.random.default_rng(0).normal(size=W.shape)
    assert abs(np.asarray(gradient(agent, linear(state, other, other), batch).head.W)).max() > 1e-2


def test_a_distribution_and_not_its_mean_is_learned():
    """Rewards of −1 or 1 at the end: two atoms with ½ each, though the mean is 0."""
    agent = dataclasses.replace(PLAIN, n_atoms=5, v_min=-2.0, v_max=2.0, lr=0.05, adam_eps=1e-8)
    state = begun(agent, Spec(Box(-1.0, 1.0, (1,)), Discrete(2), 2, 100))
    x, yes = jnp.ones((2, 1)), jnp.ones(2, bool)
    batch = Transition(x, jnp.zeros(2, jnp.int32), jnp.array([-1.0, 1.0]), x, yes, ~yes)
    many = jax.jit(lambda s: jax.lax.fori_loop(0, 400, lambda _, s: agent.learn(s, batch, jax.random.key(0))[0], s))
    p = jax.nn.softmax(many(state).Z(x[:1]).reshape(2, 5))[0]
    assert_allclose(p, [0, 0.5, 0, 0.5, 0], atol=0.01)


# --------------------------------------------------------------------------------------------- acting, rhythm, refusals


def test_it_acts_by_the_mean_of_what_is_allowed():
    """(2), (8): the mean decides, not the likeliest atom; forbidden actions never, explored or not."""
    agent = dataclasses.replace(PLAIN, n_atoms=3, v_min=0.0, v_max=10.0, eps_start=0.5, eps_end=0.5)
    state = begun(agent, Spec(Dict({"action_mask": MultiBinary(3), "x": OBS}), Discrete(3), 2, 1000))
    p = np.array([[0.6, 0.0, 0.4], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])  # means 4, 5, 10
    head = dataclasses.replace(
        state.Z.head, W=jnp.zeros((D, 9)), b=jnp.log(jnp.float32(np.maximum(p, 1e-9))).reshape(-1)
    )
    state = state._replace(Z=dataclasses.replace(state.Z, head=head), steps=Counter.of(10))
    obs = {"action_mask": jnp.broadcast_to(jnp.array([1.0, 1.0, 0.0]), (2000, 3)), "x": jnp.zeros((2000, D))}
    best, _ = agent.act(state, obs, jax.random.key(0), (), explore=False)
    assert (best == 1).all()
    tried, _ = agent.act(state, obs, jax.random.key(0), (), explore=True)
    assert_allclose(np.bincount(tried, minlength=3) / 2000, [0.25, 0.75, 0.0], atol=0.04)


@pytest.mark.parametrize("fields", [{}, {"n_step": 3}, {"prioritised": 0.6, "n_step": 2}])
def test_an_update_learns_and_the_target_follows_at_its_interval(fields):
    agent = dataclasses.replace(
        PLAIN, rollout_length=4, updates_per_step=0.5, batch_size=6, target_update_interval=16, lr=0.05, **fields
    )
    state = begun(agent)
    update = jax.jit(lambda state, rollout, key: agent.update(state, rollout, key))
    for i in range(4):
        steps = jax.tree.map(lambda x: jnp.stack([x[:2]] * 4), experience(i))
        before = state
        state, metrics = update(state, Rollout(steps, ()), jax.random.key(i))
        assert np.isfinite(float(metrics["train/loss"]))
        assert (state.Z.head.W != before.Z.head.W).any()
        assert_allclose(state.Z_target.head.W, (before.Z if i % 2 else before.Z_target).head.W, atol=1e-6)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"v_min": 3.0}, "v_min is 3.0, and must be less than v_max"),
        ({"n_atoms": 1}, "n_atoms is 1"),
        ({"n_step": 0}, "n_step is 0"),
        ({"prioritised": 1.5}, "prioritised is 1.5"),
        ({"is_beta": -0.1}, "is_beta is -0.1"),
        ({"updates_per_step": 0.3}, "gradient steps per update"),
    ],
)
def test_what_makes_no_sense_is_refused(fields, sentence):
    with pytest.raises(PolyakError, match=sentence):
        dataclasses.replace(PLAIN, **fields).init(jax.random.key(0), SPEC)


def test_other_actions_are_refused():
    with pytest.raises(PolyakError, match="it takes Discrete, masked or not"):
        PLAIN.init(jax.random.key(0), Spec(OBS, Box(-1.0, 1.0, (2,)), 1, 100))
