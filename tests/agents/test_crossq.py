"""CrossQ against its equations: one pass over both batches, modes of training and evaluation, delays, no targets."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from polyak.agents import crossq
from polyak.agents.crossq import CrossQ
from polyak.core import Counter, Rollout, Spec, Transition
from polyak.errors import PolyakError
from polyak.renorm import Running
from polyak.spaces import Box, Discrete, MultiDiscrete

B, D, A = 7, 5, 2  # batch, observation, action: coprime
SPEC = Spec(Box(-1.0, 1.0, (D,)), Box(-1.0, 1.0, (A,)), 3, 1000)
PLAIN = CrossQ(
    network=(8,), critic_network=(6,), gamma=0.9, buffer_size=60, learning_starts=0, batch_size=4, lr=0.01,
    renorm_warmup=0, policy_delay=1,
)  # fmt: skip


@functools.cache
def begun(agent, seed=0):
    """A state whose running moments are no longer those of the start."""
    state = jax.jit(lambda key: agent.init(key, SPEC))(jax.random.key(seed))
    rng = np.random.default_rng(seed)

    def moved(m):
        return Running(
            m.mean + jnp.float32(rng.normal(size=m.mean.shape)), m.std * jnp.float32(rng.uniform(0.2, 2, m.std.shape))
        )

    seen = jax.tree.map(moved, (state.actor_seen, state.critics_seen), is_leaf=lambda x: isinstance(x, Running))
    return state._replace(actor_seen=seen[0], critics_seen=seen[1])


learned = jax.jit(lambda agent, state, batch, key: agent.learn(state, batch, key))
acting = jax.jit(
    lambda agent, state, obs, key, explore: agent.act(state, obs, key, (), explore=explore)[0], static_argnums=4
)


def experience(seed, lead=(B,)):
    rng = np.random.default_rng(seed)
    terminated, truncated = (np.arange(np.prod(lead)).reshape(lead) % 4 == k for k in (1, 2))
    obs, next_obs = (jnp.float32(rng.normal(size=(*lead, D))) for _ in range(2))
    action, reward = jnp.float32(rng.uniform(-1, 1, (*lead, A))), jnp.float32(rng.normal(size=lead))
    return Transition(obs, action, reward, next_obs, jnp.asarray(terminated), jnp.asarray(truncated))


def same(a, b):
    return all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


# ------------------------------------------------------------------------------------------------ NumPy, float64


def f64(x):
    return np.asarray(x, np.float64)


def dense(layer, x):
    return x @ f64(layer.W) + f64(layer.b)


def trained(norm, x, running, warm):
    """(y, moments of the batch, running moments after it)."""
    mean, std = x.mean(0), np.sqrt(((x - x.mean(0)) ** 2).mean(0) + 1e-3)
    mu, sigma = f64(running.mean), f64(running.std)
    r = np.clip(std / sigma, 1 / 3, 3) if warm else 1.0
    d = np.clip((mean - mu) / sigma, -5, 5) if warm else 0.0
    y = f64(norm.scale) * ((x - mean) / std * r + d) + f64(norm.shift)
    return y, (0.99 * mu + 0.01 * mean, 0.99 * sigma + 0.01 * std)


def evaluated(norm, x, running):
    return f64(norm.scale) * (x - f64(running.mean)) / f64(running.std) + f64(norm.shift)


def net_trained(net, x, running, warm):
    x, after = trained(net.norms[0], x, running[0], warm)
    h, second = trained(net.norms[1], np.maximum(dense(net.layers[0], x), 0), running[1], warm)
    return h, (after, second)


def net_evaluated(net, x, running):
    return evaluated(
        net.norms[1], np.maximum(dense(net.layers[0], evaluated(net.norms[0], x, running[0])), 0), running[1]
    )


def given(head, f, noise):
    """(a, log π(a)) with the squashed Gaussian's density written by its definition."""
    mean, log_std = dense(head.mean, f), np.clip(dense(head.log_std, f), -20, 2)
    u = mean + np.exp(log_std) * noise
    log_normal = (-0.5 * noise**2 - log_std - 0.5 * math.log(2 * math.pi)).sum(-1)
    return np.tanh(u), log_normal - np.log(1 - np.tanh(u) ** 2).sum(-1)


def noises(key):
    """The two draws of one `learn`, for the successor's action and for the state's."""
    k_next, k_pi = jax.random.split(key)
    return tuple(f64(jax.random.normal(k, (B, A))) for k in (k_next, k_pi))


def both(state, batch, noise, warm):
    """Of each critic (q, q′, running moments), from one pass over both batches; and log π(a′ | s′)."""
    next_obs = f64(batch.next_obs)
    a_next, log_pi = given(state.actor.head, net_evaluated(state.actor.net, next_obs, state.actor_seen), noise)
    x = np.concatenate([np.concatenate([f64(batch.obs), f64(batch.action)], 1), np.concatenate([next_obs, a_next], 1)])
    found = []
    for Q, running in zip(state.critics, state.critics_seen, strict=True):
        h, after = net_trained(Q.net, x, running, warm)
        q = dense(Q.head, h)[:, 0]
        found.append((q[:B], q[B:], after))
    return found, log_pi


def target(batch, passes, log_pi, alpha):
    V_next = np.minimum(passes[0][1], passes[1][1]) - alpha * log_pi
    return f64(batch.reward) + 0.9 * np.where(batch.terminated, 0, V_next)


@pytest.mark.reuses_keys
@pytest.mark.parametrize("warm", [True, False])
@pytest.mark.parametrize("ent_coef", ["auto", 0.2])
def test_the_losses_equal_numpy(ent_coef, warm):
    """(1)-(5), with the joint statistics of both batches, and the mode that each network is in."""
    agent = dataclasses.replace(PLAIN, ent_coef=ent_coef, ent_coef_init=0.5, lr=0.0, renorm_warmup=0 if warm else 100)
    state, batch, key = begun(agent), experience(0), jax.random.key(3)
    alpha = 0.5 if ent_coef == "auto" else 0.2
    n_next, n_pi = noises(key)
    passes, log_next = both(state, batch, n_next, warm)
    y = target(batch, passes, log_next, alpha)
    critic = sum(0.5 * ((q - y) ** 2).mean() for q, _, _ in passes)
    after, metrics = learned(agent, state, batch, key)
    assert metrics["train/critic_loss"] == pytest.approx(critic, rel=1e-4)
    for got, (_, _, want) in zip(after.critics_seen, passes, strict=True):
        for g, w in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
            assert_allclose(g, w, rtol=1e-4, atol=1e-5)
    obs = f64(batch.obs)
    f, seen = net_trained(state.actor.net, obs, state.actor_seen, warm)
    a, log_pi = given(state.actor.head, f, n_pi)
    Q = [
        dense(Q.head, net_evaluated(Q.net, np.concatenate([obs, a], 1), moments))[:, 0]
        for Q, moments in zip(state.critics, after.critics_seen, strict=True)
    ]
    assert metrics["train/actor_loss"] == pytest.approx((alpha * log_pi - np.minimum(*Q)).mean(), rel=1e-4)
    for g, w in zip(jax.tree.leaves(after.actor_seen), jax.tree.leaves(seen), strict=True):
        assert_allclose(g, w, rtol=1e-4, atol=1e-5)
    assert metrics["train/ent_coef"] == pytest.approx(alpha, rel=1e-6)
    if ent_coef == "auto":
        assert metrics["train/ent_coef_loss"] == pytest.approx(-math.log(0.5) * (log_pi.mean() - A), rel=1e-4)


@pytest.mark.reuses_keys
def test_the_batch_statistics_mix_present_and_next():
    """By hand, of a critic's inputs: the running mean moves by a hundredth towards that of s and s′, a and a′."""
    agent = dataclasses.replace(PLAIN, lr=0.0)
    state, batch = begun(agent), experience(0)
    f = net_evaluated(state.actor.net, f64(batch.next_obs), state.actor_seen)
    a_next, _ = given(state.actor.head, f, noises(jax.random.key(1))[0])
    after, _ = learned(agent, state, batch, jax.random.key(1))
    mean = np.concatenate([(f64(batch.obs) + f64(batch.next_obs)).mean(0), (f64(batch.action) + a_next).mean(0)]) / 2
    for old, new in zip(state.critics_seen, after.critics_seen, strict=True):
        assert_allclose(new[0].mean, 0.99 * f64(old[0].mean) + 0.01 * mean, rtol=1e-5, atol=1e-6)
    # So another successor moves the value of the same (s, a).
    other = batch._replace(next_obs=batch.next_obs + 5.0, terminated=jnp.ones(B, bool))
    ended = batch._replace(terminated=jnp.ones(B, bool))
    losses = [learned(agent, state, b, jax.random.key(1))[1]["train/critic_loss"] for b in (ended, other)]
    assert abs(losses[0] - losses[1]) > 1e-3


# ------------------------------------------------------------------------------------------------ the gradient map


@functools.cache
def gradients():
    """A jitted function (state, batch, key) ↦ (critics' gradient, actor's gradient)."""
    agent = dataclasses.replace(PLAIN, ent_coef=0.2)

    def learn(state, batch, key):
        kept = []

        def keep(rule, lr, grads, opt, params):
            kept.append(grads)
            return params, opt

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(crossq, "descend", keep)
            patch.setattr(crossq.lax, "cond", lambda due, true, false, *args: true(*args))
            agent.learn(state, batch, key)
        return tuple(kept)

    return jax.jit(learn)


@pytest.mark.reuses_keys
def test_each_loss_moves_its_own_network():
    """The critics' gradient has y, r and d held still, and passes the moments of the batch; there is no other path."""
    agent = dataclasses.replace(PLAIN, ent_coef=0.2)
    state, batch, key = begun(agent), experience(0), jax.random.key(0)
    critics, actor = gradients()(state, batch, key)
    noise_next, noise = noises(key)
    passes, log_next = both(state, batch, noise_next, True)
    y = jnp.float32(target(batch, passes, log_next, 0.2))
    f_next = net_evaluated(state.actor.net, f64(batch.next_obs), state.actor_seen)
    a_next, _ = given(state.actor.head, f_next, noise_next)
    x = jnp.concatenate(
        [jnp.concatenate([batch.obs, batch.action], 1), jnp.concatenate([batch.next_obs, jnp.float32(a_next)], 1)]
    )

    def normed(norm, x, running):
        mean, std = x.mean(0), jnp.sqrt(((x - x.mean(0)[None]) ** 2).mean(0) + 1e-3)
        r = jnp.clip(jax.lax.stop_gradient(std) / running.std, 1 / 3, 3)
        d = jnp.clip((jax.lax.stop_gradient(mean) - running.mean) / running.std, -5, 5)
        return norm.scale[None] * ((x - mean[None]) / std[None] * r[None] + d[None]) + norm.shift[None]

    def features(net, x, running):
        return normed(net.norms[1], jax.nn.relu(net.layers[0](normed(net.norms[0], x, running[0]))), running[1])

    def critic_objective(critics):
        pairs = zip(critics, state.critics_seen, strict=True)
        values = [Q.head(features(Q.net, x, running))[:B, 0] for Q, running in pairs]
        return sum(0.5 * ((q - y) ** 2).mean() for q in values)

    def plain(norm, x, running):
        return norm.scale[None] * (x - running.mean[None]) / running.std[None] + norm.shift[None]

    def actor_objective(actor):
        f = features(actor.net, batch.obs, state.actor_seen)
        mean, log_std = actor.head.mean(f), actor.head.log_std(f)
        u = mean + jnp.exp(log_std) * noise
        log_pi = (-0.5 * noise**2 - log_std - 0.5 * math.log(2 * math.pi) - jnp.log(1 - jnp.tanh(u) ** 2)).sum(-1)
        values = []
        for Q, (_, _, seen) in zip(state.critics, passes, strict=True):
            first, second = (Running(*(jnp.float32(v) for v in m)) for m in seen)
            h = plain(Q.net.norms[0], jnp.concatenate([batch.obs, jnp.tanh(u)], 1), first)
            values.append(Q.head(plain(Q.net.norms[1], jax.nn.relu(Q.net.layers[0](h)), second))[:, 0])
        return (0.2 * log_pi - jnp.minimum(*values)).mean()

    for got, objective, params in (
        (critics, critic_objective, state.critics), (actor, actor_objective, state.actor)
    ):  # fmt: skip
        wanted = jax.jit(jax.grad(objective))(params)
        for ours, theirs in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
            assert_allclose(ours, theirs, rtol=2e-3, atol=2e-5)
            assert (np.asarray(ours) != 0).any()


@pytest.mark.reuses_keys
def test_the_order_of_a_batch_does_not_matter_and_neither_does_a_second_copy():
    """CT14 holds in this form: statistics couple the batch, so that it is no mean of singletons."""
    state, batch = begun(dataclasses.replace(PLAIN, ent_coef=0.2)), experience(0)
    head = state.actor.head
    last = dataclasses.replace(head.log_std, W=jnp.zeros((8, A)), b=jnp.full(A, -20.0))  # no noise to speak of
    state = state._replace(actor=state.actor._replace(head=dataclasses.replace(head, log_std=last)))
    whole = gradients()(state, batch, jax.random.key(0))
    order = np.random.default_rng(1).permutation(B)
    for other in (jax.tree.map(lambda x: x[order], batch), jax.tree.map(lambda x: jnp.concatenate([x, x]), batch)):
        found = gradients()(state, other, jax.random.key(0))
        for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(whole), strict=True):
            assert_allclose(x, y, rtol=1e-3, atol=1e-4)


def test_the_twins_differ_and_there_are_no_targets():
    """G6, CT15; Adam's moments cover the parameters, and no statistics."""
    state = begun(PLAIN)
    assert not any("target" in name for name in state._fields)
    one, other = (jax.tree.leaves((Q.net.layers, Q.head)) for Q in state.critics)
    assert all((x != y).any() for x, y in zip(one, other, strict=True))
    for part, opt in zip((state.actor, state.critics, state.log_alpha), state.opts, strict=True):
        moments = sum(x.size for x in jax.tree.leaves(opt) if jnp.issubdtype(x.dtype, jnp.floating))
        assert moments == 2 * sum(x.size for x in jax.tree.leaves(part))


@pytest.mark.reuses_keys
def test_the_first_moment_decays_by_its_own_beta():
    state, batch = begun(PLAIN), experience(0)
    for b1 in (0.5, 0.8):
        after, _ = learned(dataclasses.replace(PLAIN, adam_b1=b1), state, batch, jax.random.key(0))
        first, second = (np.asarray(x) for x in jax.tree.leaves(after.opts[1]) if x.ndim)
        # After one step the moments are (1 − β1) g and (1 − β2) g², with β2 = 0.999.
        assert_allclose(np.abs(first), (1 - b1) * np.sqrt(second / 1e-3), rtol=1e-3, atol=1e-7)


# ------------------------------------------------------------------------------------------------ rhythm


@pytest.mark.reuses_keys
@pytest.mark.parametrize("delay", [1, 2, 3])
def test_the_policy_moves_at_every_delayed_step(delay):
    """CT17, G7: with a delay of 3, at the gradient steps 3, 6, ...; the critics at each one."""
    agent = dataclasses.replace(PLAIN, policy_delay=delay)
    state, batch, moved = begun(agent), experience(0), []
    for i in range(1, 8):
        after, metrics = learned(agent, state, batch, jax.random.key(i))
        assert not same(after.critics, state.critics) and not same(after.critics_seen, state.critics_seen)
        parts = [not same(getattr(after, name), getattr(state, name)) for name in ("actor", "actor_seen", "log_alpha")]
        assert parts == [parts[0]] * 3
        assert np.isfinite(metrics["train/actor_loss"]) == parts[0] == np.isfinite(metrics["train/ent_coef_loss"])
        moved += [i] * parts[0]
        state = after
    assert moved == [i for i in range(1, 8) if i % delay == 0]
    assert int(state.updates.low) == 7


@pytest.mark.reuses_keys
def test_the_warm_up_ends_after_its_gradient_steps():
    """With a warm-up of 2 the third step is the first with corrections."""
    short, never = (dataclasses.replace(PLAIN, renorm_warmup=n) for n in (2, 100))
    state, batch, equal = begun(PLAIN), experience(0), []
    for i in range(4):
        one, other = (learned(agent, state, batch, jax.random.key(i))[0] for agent in (short, never))
        equal.append(same(one.critics, other.critics) and same(one.actor, other.actor))
        state = one
    assert equal == [True, True, False, False]


@pytest.mark.reuses_keys
def test_several_gradient_steps_per_update():
    agent = dataclasses.replace(PLAIN, policy_delay=3, updates_per_step=0.5, rollout_length=4)
    state = jax.jit(lambda key: agent.init(key, SPEC))(jax.random.key(0))
    update = jax.jit(lambda state, rollout, key: agent.update(state, rollout, key))
    after, metrics = update(state, Rollout(experience(1, (4, 3)), ()), jax.random.key(0))
    assert int(after.updates.low) == 6
    assert all(np.isfinite(v) for v in metrics.values())  # means over the steps at which a loss was there
    assert not same(after.actor, state.actor)


@pytest.mark.reuses_keys
@pytest.mark.parametrize("above", [True, False])
def test_alpha_rises_where_the_entropy_is_below_its_target(above):
    """CT12; and a given α stays."""
    agent = dataclasses.replace(PLAIN, target_entropy=-9.0 if above else 9.0, ent_coef_init=0.3)
    state, batch = begun(agent), experience(0)
    after, _ = learned(agent, state, batch, jax.random.key(0))
    assert (after.log_alpha < state.log_alpha) == above
    assert abs(after.log_alpha - state.log_alpha) == pytest.approx(0.01, rel=1e-3)  # Adam's first step is lr
    fixed = dataclasses.replace(agent, ent_coef=0.3)
    assert learned(fixed, state, batch, jax.random.key(0))[0].log_alpha == state.log_alpha


# ------------------------------------------------------------------------------------------------ acting, refusals


@pytest.mark.reuses_keys
def test_acting_is_evaluation():
    """Random before learning starts; the policy's action depends on its observation alone, not on the others."""
    agent = dataclasses.replace(PLAIN, learning_starts=10)
    state, obs = begun(agent), experience(0, (3,)).obs
    early = np.stack([acting(agent, state, obs, jax.random.key(i), True) for i in range(200)])
    assert abs(early.mean()) < 0.1 and early.std() == pytest.approx(1 / math.sqrt(3), rel=0.1)
    greedy = acting(agent, state, obs, jax.random.key(0), False)
    assert_array_equal(greedy, acting(agent, state, obs, jax.random.key(1), False))
    f = net_evaluated(state.actor.net, f64(obs), state.actor_seen)
    assert_allclose(greedy, np.tanh(dense(state.actor.head.mean, f)), rtol=1e-4, atol=1e-5)
    other = acting(agent, state, obs.at[1:].add(7.0), jax.random.key(0), False)
    assert_allclose(other[0], greedy[0], rtol=1e-5)
    late = state._replace(steps=Counter.of(10))
    sampled = acting(agent, late, obs, jax.random.key(0), True)
    _, k_pi = jax.random.split(jax.random.key(0))
    noise = f64(jax.random.normal(k_pi, (3, A)))
    assert_allclose(sampled, given(state.actor.head, f, noise)[0], rtol=1e-4, atol=1e-5)


def test_a_batch_of_one_is_finite():
    """G11."""
    after, metrics = learned(PLAIN, begun(PLAIN), experience(0, (1,)), jax.random.key(0))
    assert all(np.isfinite(x).all() for x in jax.tree.leaves((after.actor, after.critics, metrics)))


@pytest.mark.parametrize("action", [Discrete(3), MultiDiscrete((2, 2)), Box(-math.inf, math.inf, (2,))])
def test_other_actions_are_refused(action):
    with pytest.raises(PolyakError, match=r"CrossQ can't take .*it takes Box with finite bounds; .*PPO.* can take"):
        PLAIN.init(jax.random.key(0), Spec(SPEC.obs, action, 1, 100))


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"policy_delay": 0}, "policy_delay is 0, and must lie in"),
        ({"renorm_warmup": -1}, "renorm_warmup is -1"),
        ({"adam_b1": 1.0}, "adam_b1 is 1"),
        ({"updates_per_step": 0.5, "rollout_length": 1}, "gradient steps per update"),
        ({"ent_coef": "auto_0.1"}, "ent_coef is 'auto_0.1'"),
        ({"tau": 0.1}, "CrossQ has no tau"),
        ({"critic_network": "big"}, "give sizes such as"),
    ],
)
def test_what_makes_no_sense_is_refused(fields, sentence):
    with pytest.raises(PolyakError, match=sentence):
        CrossQ(**fields).init(jax.random.key(0), SPEC)
