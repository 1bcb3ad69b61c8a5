"""Schedules, Adam and target networks against closed forms and NumPy in float64."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from polyak import DQN, PPO, Constant, Cosine, Exponential, Linear, Normalised
from polyak.core import Counter
from polyak.errors import PolyakError
from polyak.optim import adam, descend, now, polyak, resolve_schedules

# ----------------------------------------------------------------------------------------------------------- schedules

FORMULAE = {
    "linear": (Linear(3.0, 1.0, steps=200.0), lambda p: 3 - 2 * p),
    "rising": (Linear(0.0, 0.5, steps=200.0), lambda p: 0.5 * p),
    "exponential": (Exponential(1e-2, 1e-4, steps=200.0), lambda p: 10 ** (-2 - 2 * p)),
    "cosine": (Cosine(2.0, 0.5, steps=200.0), lambda p: 0.5 + 1.5 * (1 + math.cos(math.pi * p)) / 2),
    "constant": (Constant(0.7), lambda p: 0.7),
}


@pytest.mark.parametrize("name", FORMULAE)
@pytest.mark.parametrize("step", [0, 1, 50, 100, 199, 200, 201, 10**6, 2**32])
def test_schedules_at_their_start_middle_end_and_beyond(name: str, step: int) -> None:
    schedule, formula = FORMULAE[name]
    want = formula(min(1.0, step / 200))
    assert_allclose(schedule(jnp.float32(step)), want, rtol=2e-6, atol=1e-7)  # float32
    got = now(Normalised(PPO(lr=schedule)), Counter.of(step)).agent.lr
    assert_allclose(got, want, rtol=2e-6, atol=1e-7)


@pytest.mark.parametrize("kind", [Linear, Exponential, Cosine])
def test_a_fraction_becomes_steps_of_the_run(kind: Any) -> None:
    resolved = resolve_schedules(kind(1.0, 0.5, fraction=0.25), 1000)
    assert resolved.steps == 250.0
    assert resolve_schedules(resolved, 77) == resolved  # settled once: a longer run doesn't stretch it
    assert resolve_schedules(kind(1.0, 0.5), 1000).steps == 1000.0
    assert resolve_schedules(kind(1.0, 0.5, fraction=1e-9), 1000).steps == 1.0
    for fraction in (0.0, -0.5, 1.5):
        with pytest.raises(PolyakError, match="fraction"):
            resolve_schedules(kind(1.0, 0.5, fraction=fraction), 1000)
    with pytest.raises(PolyakError, match="no length in steps"):
        kind(1.0, 0.5)(jnp.float32(0))


def test_resolving_finds_schedules_wherever_they_stand_and_touches_nothing_else() -> None:
    agent = Normalised(PPO(lr=Linear(1e-3), clip_range=Cosine(0.2, fraction=0.5), ent_coef=Constant(0.1), vf_coef=0.4))
    resolved = resolve_schedules(agent, 400)
    assert resolved.agent.lr.steps == 400.0 and resolved.agent.clip_range.steps == 200.0
    assert resolved.agent.ent_coef == Constant(0.1)
    back = dataclasses.replace(resolved.agent, lr=agent.agent.lr, clip_range=agent.agent.clip_range)
    assert dataclasses.replace(resolved, agent=back) == agent
    assert resolve_schedules(DQN(), 400) == DQN()


def test_the_agent_as_it_is_now_has_numbers_for_schedules() -> None:
    agent = resolve_schedules(PPO(lr=Linear(1e-3), ent_coef=Constant(0.1), vf_coef=0.4), 100)
    present = jax.jit(now)(agent, Counter.of(25))
    assert_allclose([present.lr, present.ent_coef, present.vf_coef], [7.5e-4, 0.1, 0.4], rtol=1e-6)
    assert all(jnp.ndim(x) == 0 for x in jax.tree.leaves(present))
    assert (present.epochs, present.batch_size) == (agent.epochs, agent.batch_size)


def test_a_schedule_is_swept_without_compiling_again() -> None:
    traces: list[int] = []

    @jax.jit
    def value(agent: PPO, count: Counter) -> Any:
        traces.append(1)
        return now(agent, count).lr

    for start in (1.0, 2.0):
        for steps in (100, 400):
            got = value(resolve_schedules(PPO(lr=Linear(start)), steps), Counter.of(50))
            assert_allclose(got, start * (1 - 50 / steps), rtol=1e-6)
    assert len(traces) == 1
    starts = dataclasses.replace(resolve_schedules(Linear(1.0), 100), start=jnp.arange(3.0))  # pyright: ignore
    axes = jax.tree.structure(starts).unflatten([0, None, None, None])
    got = jax.vmap(lambda s: s(jnp.float32(50.0)), in_axes=(axes,))(starts)
    assert_allclose(got, [0.0, 0.5, 1.0])


@pytest.mark.parametrize(("start", "end"), [(0.0, 1.0), (1.0, 0.0), (-1.0, 1.0)])
def test_an_exponential_through_zero_is_refused(start: float, end: float) -> None:
    with pytest.raises(PolyakError, match="both must be positive"):
        Exponential(start, end)


# ---------------------------------------------------------------------------------------------------------------- Adam


def adam_of_the_paper(x: Any, gradients: Any, lr: float, eps: float, clip: float | None) -> Any:
    """Kingma & Ba (2015), algorithm 1, on a flat vector, after scaling each gradient down to norm `clip`."""
    m, v = np.zeros_like(x), np.zeros_like(x)
    for t, g in enumerate(gradients, start=1):
        if clip is not None and np.linalg.norm(g) > clip:
            g = g * clip / np.linalg.norm(g)
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        x = x - lr * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + eps)
    return x


@pytest.mark.parametrize("eps", [1e-8, 1e-5])
@pytest.mark.parametrize("clip", [None, 0.5, 100.0])
def test_descent_is_adam(eps: float, clip: float | None) -> None:
    rng = np.random.default_rng(0)
    x, gradients = rng.normal(size=11), [rng.normal(size=11) * 10.0**-k for k in (0, 1, 0, 3, 0, 2)]

    def tree(v: Any) -> Any:
        v = jnp.asarray(v, jnp.float32)
        return {"a": v[:6].reshape(2, 3), "b": (v[6:10], v[10])}

    params, rule = tree(x), adam(clip, eps)
    opt = rule.init(params)
    for g in gradients:
        params, opt = jax.jit(lambda g, o, p: descend(rule, 0.01, g, o, p))(tree(g), opt, params)
    got = np.concatenate([np.ravel(params["a"]), params["b"][0], params["b"][1][None]])
    want = adam_of_the_paper(x, gradients, 0.01, eps, clip)
    assert_allclose(got, want, rtol=1e-5, atol=1e-6)  # float32, six steps of size ≤ 0.01
    assert jax.tree.structure(params) == jax.tree.structure(tree(x))


def test_clipping_by_the_norm_keeps_the_direction_and_leaves_short_gradients() -> None:
    """With one step from zero moments Adam forgets the length, so the second step tells: its moments mix both."""
    x = np.array([1.0, -2.0])
    gradients = [np.array([30.0, 40.0]), np.array([0.01, -0.02])]
    clipped, free = (adam_of_the_paper(x, gradients, 0.1, 1e-8, clip) for clip in (0.5, None))
    assert np.abs(clipped - free).max() > 1e-3  # the two can be told apart
    for clip, want in ((0.5, clipped), (None, free)):
        rule, params = adam(clip), jnp.asarray(x, jnp.float32)
        opt = rule.init(params)
        for g in gradients:
            params, opt = descend(rule, 0.1, jnp.asarray(g, jnp.float32), opt, params)
        assert_allclose(params, want, rtol=1e-5)


def test_a_step_goes_downhill_by_the_step_size() -> None:
    """The first step of Adam is lr in every coordinate; a traced lr, and lr = 0, are taken as they are."""
    rule, params = adam(), {"w": jnp.array([1.0, 1.0])}
    grads = {"w": jnp.array([3.0, -0.2])}
    for lr in (0.1, 0.0):
        moved, _ = jax.jit(lambda lr, p: descend(rule, lr, grads, rule.init(p), p))(lr, params)
        assert_allclose(moved["w"], [1 - lr, 1 + lr], rtol=1e-5)


# ------------------------------------------------------------------------------------------------------------- targets


@pytest.mark.parametrize("tau", [0.0, 0.005, 0.3, 1.0])
@pytest.mark.parametrize("k", [1, 2, 50])
def test_a_target_after_k_updates(tau: float, k: int) -> None:
    """CT17: towards a fixed θ, θ′ − θ shrinks by (1 − τ)ᵏ."""
    rng = np.random.default_rng(1)
    target, online = rng.normal(size=(2, 7))
    t, o = ({"w": jnp.asarray(x, jnp.float32)} for x in (target, online))
    for _ in range(k):
        t = polyak(t, o, tau)
    assert_allclose(t["w"], online + (1 - tau) ** k * (target - online), rtol=1e-5, atol=1e-6)
    if tau == 0.0:
        assert_array_equal(t["w"], np.float32(target))


def test_a_target_follows_a_moving_network() -> None:
    """θ′_k = (1 − τ)ᵏ θ′_0 + Σ_i τ (1 − τ)ᵏ⁻ⁱ θ_i."""
    tau, online = 0.2, np.random.default_rng(2).normal(size=(9, 3))
    t = jnp.ones(3)
    for x in online:
        t = polyak(t, jnp.asarray(x, jnp.float32), tau)
    want = 0.8**9 + sum(tau * 0.8 ** (9 - i) * x for i, x in enumerate(online, start=1))
    assert_allclose(t, want, rtol=1e-5, atol=1e-6)
