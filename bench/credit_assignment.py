"""What each step of the policy-gradient line buys: noise and bias of its estimates, and how its agents then learn.

    python bench/credit_assignment.py [gradient] [curves] [draw] [--anew]

*gradient*: a policy of middling quality is frozen on CartPole-v1, and critics are fitted to it, well and half trained.
Every estimate of the policy gradient is computed on the very same episodes, thousands of batches of them: its variance,
and its distance from the true gradient. *curves*: REINFORCE, ActorCritic, A2C and PPO learn CartPole-v1.

What was measured already is kept, unless `--anew`: an interrupted command goes on, curve by curve. Writes
bench/results/credit-assignment.json and .md, docs/credit-assignment.svg and docs/credit-assignment-curves.svg.
"""

import argparse
import datetime
import json
import math
import platform
import sys
import time
from collections.abc import Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from speed import machine

import polyak
from polyak import cranks
from polyak.core import Spec, Transition
from polyak.envs import resolve
from polyak.heads import ActionValue, Policy, Value
from polyak.nets import MLP, build
from polyak.optim import adam, descend, resolve_schedules
from polyak.returns import ended, gae, lambda_return, n_step_return, td_target
from polyak.statistics import bands, interval, iqm

BENCH = Path(__file__).resolve().parent
OUT = BENCH / "results" / "credit-assignment.json"
FIGURE, CURVES = (BENCH.parent / "docs" / f"credit-assignment{part}.svg" for part in ("", "-curves"))
ENV = "CartPole-v1"

# ------------------------------------------------------------------------------------------------------- the gradient

GAMMA = 1.0  # so that the true gradient is that of the mean return, exactly
QUALITY = 60  # PPO is stopped at this mean return of its last 100 episodes
EPISODES, BATCHES, BLOCK = 4, 2000, 20  # episodes in a batch; batches in all, and in a program's call
LENGTH = 1536  # steps in which a batch's episodes must have ended; the script stops where they have not
N_STEPS, LAMBDAS = (1, 5, 16), (0.0, 0.5, 0.9, 0.95, 0.99, 1.0)
DATA = (64, 12_500)  # worlds and steps of the experience that critics learn from
FIT, ROUNDS = 1500, 4  # gradient steps of a regression; how many of them a well trained V takes
HALF, HALVES = 120, 5  # gradient steps of a half trained critic; how many of these there are
TRACE = 0.95  # λ of V's targets from the second regression on

PLAIN = ("whole return", "G")  # what needs no critic
KINDS = ("G − V", "Q", "Q − V", *(f"n = {n}" for n in N_STEPS), *(f"λ = {lam:g}" for lam in LAMBDAS))
CRITICS = ("well", *(f"half {i + 1}" for i in range(HALVES)))
NAMES = [(kind, "") for kind in PLAIN] + [(kind, critic) for critic in CRITICS for kind in KINDS]
REFERENCE = NAMES.index(("G − V", "well"))  # unbiased whatever V is, and of these the least noisy


class Critics(NamedTuple):
    """What has been learned of the frozen policy."""

    V: Any  # observation ↦ value
    Q: Any  # (observation, action) ↦ value


class Scaled(NamedTuple):
    """A network for targets of any size: mean + scale · net."""

    net: Any
    mean: Array
    scale: Array

    def __call__(self, *inputs: Any) -> Array:
        return self.mean + self.scale * self.net(*inputs)


class Sums(NamedTuple):
    """A block of batches, all that the moments need: of estimates, and of their differences from the reference."""

    total: Any  # [E, P]
    squares: Any  # [E], the sum of |estimate|²
    difference: Any  # [E, P]
    difference_squares: Any  # [E]
    counted: Any  # steps
    cut: Any  # batches whose episodes had not all ended


def so_far(reward: Array, end: Array) -> Array:
    """The rewards of its episode before each step, [T, ...]."""

    def step(total: Array, x: tuple[Array, Array]) -> tuple[Array, Array]:
        return jnp.where(x[1], 0.0, total + x[0]), total

    return lax.scan(step, jnp.zeros_like(reward[0]), (reward, end))[1]


def ended_before(end: Array) -> Array:
    """How many episodes ended before each step, [T, ...]."""
    count = jnp.cumsum(end, axis=0)
    return count - end


def weights(steps: Transition, critics: Sequence[Critics]) -> Array:
    """Ψ of every estimate of NAMES for steps [T, N]: [E, T, N]."""
    end, flags = ended(steps), (steps.terminated, steps.truncated)
    G = lambda_return(GAMMA, 1.0, steps.reward, jnp.zeros_like(steps.reward), *flags)
    found = [so_far(steps.reward, end) + G, G]
    for critic in critics:
        V, V_next, Q = critic.V(steps.obs), critic.V(steps.next_obs), critic.Q(steps.obs, steps.action)
        found += [G - V, Q, Q - V]
        found += [n_step_return(GAMMA, n, steps.reward, V_next, *flags) - V for n in N_STEPS]
        found += [gae(GAMMA, lam, steps.reward, V, V_next, *flags) for lam in LAMBDAS]
    return jnp.stack(found)


def gradients(policy: Policy, obs: Array, action: Array, psi: Array) -> Array:
    """Σ_t Ψ_t ∇ log π(a_t | s_t) of one batch, for every Ψ [E, T]: [E, P]."""

    def log_prob(policy: Policy) -> Array:
        return policy(obs).log_prob(action)

    pull = jax.vjp(log_prob, policy)[1]

    def gradient(psi: Array) -> Array:
        return jnp.concatenate([x.ravel() for x in jax.tree.leaves(pull(psi)[0])])

    return lax.map(gradient, psi)


def block(agent: Any, vector: Any, frozen: Any, critics: Sequence[Critics], key: Array, spec: Spec) -> Sums:
    """BLOCK batches: each the first EPISODES whole episodes of a world of its own."""
    steps = experience(agent, vector, frozen, key, spec)
    whole = ended_before(ended(steps)) < EPISODES  # so many from the start: long ones are not favoured
    psi = weights(steps, critics) * (whole / EPISODES)[None]
    inputs = jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), (steps.obs, steps.action))
    found = lax.map(lambda x: gradients(frozen.params.actor, *x), (*inputs, jnp.moveaxis(psi, 2, 0)))  # [N, E, P]
    difference = found - found[:, REFERENCE][:, None]
    cut = (ended(steps).sum(0) < EPISODES).sum()
    return Sums(found.sum(0), (found**2).sum((0, 2)), difference.sum(0), (difference**2).sum((0, 2)), whole.sum(), cut)


def experience(agent: Any, vector: Any, frozen: Any, key: Array, spec: Spec) -> Transition:
    """A rollout of the frozen policy from fresh episodes, [T, N]; its T is the agent's."""
    state = cranks.init(agent, vector, spec, *jax.random.split(key))._replace(agent=frozen)
    return cranks.interact(agent, vector, spec, state)[1].steps


def frozen_policy() -> tuple[Any, dict[str, Any]]:
    """(state of PPO when it was stopped, what is known of it)."""
    agent = polyak.PPO(rollout_length=32, batch_size=256, epochs=10, lr=1e-3, gae_lambda=0.95)
    world = resolve(f"jax:{ENV}").world
    spec = Spec(world.obs_space, world.action_space, 8, 200_000)
    crank, report = cranks.Compiled(agent, world, spec, [0]), None
    while report is None or not report.ep_rew_mean >= QUALITY:
        report = crank.advance(4)[0]
    steps = crank.iterations() * 256
    return crank.agent_state(0), {"steps": steps, "training_return": report.ep_rew_mean}


def actor(length: int, n: int) -> tuple[Any, Any, Spec]:
    """(an agent that acts for so many steps, n worlds without a clock, what it is told of them)."""
    world = resolve(f"jax:{ENV}", env_kwargs={"max_steps": 0}).world
    vector = cranks.arrays_of(cranks.Vector(world, n))
    agent = cranks.arrays_of(polyak.PPO(rollout_length=length, batch_size=length * n))
    return agent, vector, Spec(vector.obs_space, vector.action_space, n, 1 << 30)


def regression(net: Scaled, inputs: Any, target: Array, key: Array, n: int, of: int, lr: float) -> Scaled:
    """The first n of `of` steps of Adam on squared errors, in minibatches; over all, the step size falls to 0."""
    rule, rows = adam(), target.shape[0]

    def loss(params: Any, batch: Any, y: Array) -> Array:
        return ((params(*batch) - y) ** 2).mean()

    def step(t: Array, carry: Any) -> Any:
        params, opt = carry
        chosen = jax.random.randint(jax.random.fold_in(key, t), (1024,), 0, rows)
        batch, y = jax.tree.map(lambda x: x[chosen], (inputs, (target - net.mean) / net.scale))
        return descend(rule, lr * (1.0 - t / of), jax.grad(loss)(params, batch, y), opt, params)

    return net._replace(net=lax.fori_loop(0, n, step, (net.net, rule.init(net.net)))[0])


def fitted(frozen: Any, key: Array) -> tuple[list[Critics], dict[str, Any]]:
    """(the critics of the frozen policy, as CRITICS has them; what they are worth)."""
    agent, vector, spec = actor(DATA[1], DATA[0])
    k_data, k_net, k_fit = jax.random.split(key, 3)
    steps = jax.jit(partial(experience, spec=spec))(agent, vector, frozen, k_data)
    flags, last = (steps.terminated, steps.truncated), np.asarray(ended(steps))
    known = np.logical_or.accumulate(last[::-1], axis=0)[::-1]  # steps of episodes that were seen to end
    obs, action = steps.obs[known], steps.action[known]
    G = lambda_return(GAMMA, 1.0, steps.reward, jnp.zeros_like(steps.reward), *flags)
    fit = jax.jit(regression, static_argnums=(4, 5))

    def half(i: int) -> Critics:
        V, Q = fresh(jax.random.fold_in(k_net, i), spec, G[known])
        k_i = jax.random.fold_in(k_fit, i)
        return Critics(
            fit(V, (obs,), G[known], k_i, HALF, FIT, 3e-3), fit(Q, (obs, action), G[known], k_i, HALF, FIT, 3e-3)
        )

    halves = [half(i + 1) for i in range(HALVES)]
    V, Q = fresh(jax.random.fold_in(k_net, 0), spec, G[known])
    value = jax.jit(lambda V: V(steps.next_obs))
    for i in range(ROUNDS):  # first from whole returns, then from what it believes itself, with less noise
        y = lambda_return(GAMMA, TRACE if i else 1.0, steps.reward, value(V), *flags)
        V = fit(V, (obs,), y[known], jax.random.fold_in(k_fit, 100 + i), FIT, FIT, 1e-3 if i else 3e-3)
    y = td_target(GAMMA, steps.reward, steps.terminated, value(V))
    for i in range(2):  # the world is deterministic: r + V(s′) is Q, without noise
        Q = fit(Q, (obs, action), y[known], jax.random.fold_in(k_fit, 200 + i), FIT, FIT, 3e-3)
    critics = [Critics(V, Q), *halves]
    return critics, worth(critics, steps, known, G, y)


def fresh(key: Array, spec: Spec, target: Array) -> tuple[Scaled, Scaled]:
    """Untrained (V, Q), with the networks of the agents."""
    k_torso, k_V, k_Q = jax.random.split(key, 3)
    plan = MLP((64, 64), "tanh", "orthogonal")
    V = Value.init(k_V, build(None, plan, k_torso, spec.obs), spec.obs)
    Q = ActionValue.init(k_Q, None, plan, spec.obs, spec.action)
    return Scaled(V, target.mean(), target.std()), Scaled(Q, target.mean(), target.std())


def worth(critics: Sequence[Critics], steps: Transition, known: Any, G: Array, y: Array) -> dict[str, Any]:
    """What the critics are worth on their own data: root mean square errors beside the spread of what they learn."""
    V, returns, target = (np.asarray(x)[known] for x in (critics[0].V(steps.obs), G, y))

    def error(a: Any, b: Any) -> float:
        return float(np.sqrt(((np.asarray(a)[known] - b) ** 2).mean()))

    return {
        "steps": int(known.sum()), "sd of returns": float(returns.std()), "sd of V": float(V.std()),
        "sd of advantages": float((target - V).std()),
        "V, well, from the returns": error(critics[0].V(steps.obs), returns),
        "Q, well, from its target": error(critics[0].Q(steps.obs, steps.action), target),
        "V, half, from V, well": [error(c.V(steps.obs), V) for c in critics[1:]],
        "Q, half, from its target": [error(c.Q(steps.obs, steps.action), target) for c in critics[1:]],
    }  # fmt: skip


def squared_length(total: Any, squares: Any, n: int) -> float:
    """|mean|² of n independent vectors without their own noise, from their sum [P] and the sum of their |x|².

    The mean of x_i · x_j over all i ≠ j. It has no bias, and may come out below 0 where the mean is almost 0.
    """
    return float((total @ total - squares) / (n * (n - 1)))


def variance(total: Any, squares: Any, n: int) -> float:
    """The trace of the covariance of n independent vectors, from their sum [P] and the sum of their |x|²."""
    return float((squares - total @ total / n) / (n - 1))


def jackknifed(statistic: Any, totals: Any, squares: Any, size: int) -> tuple[float, float]:
    """(a statistic of blocks [K, P] and [K], of `size` vectors each; its standard error, leaving each out in turn)."""
    K, total, square = len(totals), totals.sum(0, dtype=np.float64), squares.sum(dtype=np.float64)
    left = [statistic(total - t, square - q, (K - 1) * size) for t, q in zip(totals, squares, strict=True)]
    return statistic(total, square, K * size), math.sqrt((K - 1) ** 2 / K * np.var(left))


def noise_at_zero(totals: Any, size: int) -> float:
    """The standard error of `squared_length` where the mean is 0, √(2 tr Σ²) / n, from sums of `size` vectors [K, P].

    There the jackknife is no guide: the noise is one-sided, and small where the value happens to be low.
    """
    K = len(totals)
    x = totals - totals.mean(0)
    products = x @ x.T
    trace = (np.sum(products**2) - np.sum(np.diag(products) ** 2)) / (K * (K - 1)) / size**2  # of Σ²
    return math.sqrt(2.0 * trace) / (K * size)


def estimates(blocks: Sequence[Sums]) -> list[dict[str, Any]]:
    """Variance and bias of every estimate of NAMES, relative to the true gradient's squared length and length."""
    totals, squares = np.stack([b.total for b in blocks], 1), np.stack([b.squares for b in blocks], 1)
    apart, apart_squares = (np.stack([getattr(b, f) for b in blocks], 1) for f in ("difference", "difference_squares"))
    true, true_se = jackknifed(squared_length, totals[REFERENCE], squares[REFERENCE], BLOCK)
    rows = [{"kind": "true gradient", "critic": "", "squared_length": true, "se": true_se}]
    for k, (kind, critic) in enumerate(NAMES):
        noise, noise_se = jackknifed(variance, totals[k], squares[k], BLOCK)
        bias, bias_se = jackknifed(squared_length, apart[k], apart_squares[k], BLOCK)  # 0, 0 for the reference
        bias_se = max(bias_se, noise_at_zero(apart[k], BLOCK))
        low, middle, high = (math.sqrt(max(bias + z * bias_se, 0.0) / true) for z in (-1.96, 0.0, 1.96))
        rows.append({
            "kind": kind, "critic": critic, "variance": noise / true, "variance_se": noise_se / true,
            "bias": middle, "low": low, "high": high, "squared_bias": bias / true, "squared_bias_se": bias_se / true,
        })  # fmt: skip
    return rows


def gradient_part() -> dict[str, Any]:
    """The first measurement."""
    began = time.perf_counter()
    frozen, found = frozen_policy()
    critics, found["critics"] = fitted(frozen, jax.random.key(1))
    print(f"  a policy and {len(critics)} critics, {time.perf_counter() - began:.0f} s", flush=True)
    agent, vector, spec = actor(LENGTH, BLOCK)
    run = jax.jit(partial(block, spec=spec))
    blocks: list[Sums] = []
    for i in range(BATCHES // BLOCK):
        sums = run(agent, vector, frozen, critics, jax.random.fold_in(jax.random.key(2), i))
        blocks.append(jax.tree.map(np.asarray, sums))
        if (i + 1) % 10 == 0:
            print(f"  {(i + 1) * BLOCK:,} of {BATCHES:,} batches, {time.perf_counter() - began:.0f} s", flush=True)
    cut = int(sum(b.cut for b in blocks))
    if cut:
        raise SystemExit(f"credit_assignment.py: {cut} batches of {BATCHES} were not over after {LENGTH} steps")
    found["mean_return"] = float(sum(b.counted for b in blocks)) / (BATCHES * EPISODES)  # the reward is 1 a step
    settings = {"gamma": GAMMA, "episodes": EPISODES, "batches": BATCHES, "half": HALF, "data": DATA, "trace": TRACE}
    return found | {
        "settings": settings,
        "rows": estimates(blocks),
        "seconds": round(time.perf_counter() - began),
    }


# --------------------------------------------------------------------------------------------------- learning curves

STEPS, STRETCH, SEEDS = 200_000, 4096, 10  # of a run; of a point of its curve; from seed 0
LINE: dict[str, tuple[str, str, dict[str, Any]]] = {  # agent, preset, and what differs from it
    "REINFORCE, b = 0": ("reinforce", "slm", {"baseline": "none"}),
    "REINFORCE, b = mean G": ("reinforce", "slm", {"baseline": "mean"}),
    "REINFORCE, b = V": ("reinforce", "slm", {"baseline": "value", "critic_lr": 2e-3}),
    "REINFORCE, b = V, fitted": ("reinforce", "default", {}),
    "ActorCritic": ("actor-critic", "default", {}),
    "A2C, λ = 0": ("a2c", "slm", {"gae_lambda": 0.0}),
    "A2C, λ = 0.95": ("a2c", "slm", {"gae_lambda": 0.95}),
    "A2C, λ = 1": ("a2c", "slm", {"gae_lambda": 1.0}),
    "PPO": ("ppo", "default", {}),
}
PANELS = {
    "REINFORCE: the baseline": [name for name in LINE if name.startswith("REINFORCE")],
    "A2C: λ": ["A2C, λ = 0", "A2C, λ = 0.95", "A2C, λ = 1"],
    "The line": ["REINFORCE, b = V, fitted", "ActorCritic", "A2C, λ = 0.95", "PPO"],
}


def newest(returns: Any, before: int, after: int) -> Any:
    """Of the ring of the last returns, those of the episodes that ended between two counts."""
    n = min(after - before, len(returns))
    return returns[np.arange(after - n, after) % len(returns)]


def curve(name: str) -> dict[str, Any]:
    """One agent's curve: [SEEDS] lists of mean returns of the episodes that ended in each stretch of steps."""
    from polyak.runs.config import agent_from

    began, (kind, named, fields) = time.perf_counter(), LINE[name]
    agent, preset = agent_from(kind, fields, ENV, named, None)
    world = resolve(f"jax:{ENV}").world
    spec = Spec(world.obs_space, world.action_space, preset.n_envs, STEPS)
    crank = cranks.Compiled(resolve_schedules(agent, STEPS), world, spec, range(SEEDS))
    size = agent.rollout_length * preset.n_envs
    steps, values, counts = list[int](), list[list[float]](), [0] * SEEDS
    while (left := STEPS // size - crank.iterations()) > 0:
        crank.advance(min(left, STRETCH // size))
        recent = [crank.seed_state(k).recent for k in range(SEEDS)]
        ends = [int(r.episodes) for r in recent]
        rows = [newest(np.asarray(r.returns), b, e) for r, b, e in zip(recent, counts, ends, strict=True)]
        values.append([float(x.mean()) if len(x) else math.nan for x in rows])
        steps.append(crank.iterations() * size)
        counts = ends
    last = [row for n, row in zip(steps, values, strict=True) if n > 0.9 * STEPS]
    final = np.nanmean(last, axis=0)
    seconds = round(time.perf_counter() - began)
    print(f"  {name:24} {iqm(final):5.0f} at the end, {seconds} s", flush=True)
    return {
        "agent": kind, "fields": fields, "preset": preset.source, "n_envs": preset.n_envs, "seeds": SEEDS,
        "final": final.tolist(), "iqm": iqm(final), "interval": interval(final), "steps": steps,
        "values": np.round(values, 2).T.tolist(), "seconds": seconds,
    }  # fmt: skip


# -------------------------------------------------------------------------------------------------------- the figures

GROUPS = {
    "REINFORCE": PLAIN, "+ baseline": ("G − V",), "critic of\nactions": ("Q", "Q − V"),
    "n steps": tuple(f"n = {n}" for n in N_STEPS), "GAE": tuple(f"λ = {x:g}" for x in LAMBDAS),
}  # fmt: skip
STYLE = {"svg.hashsalt": "polyak", "font.size": 10, "axes.spines.top": False, "axes.spines.right": False}
BLUE, RED, GREEN, VIOLET = "#1b6ca8", "#d1495b", "#2e933c", "#8d5a97"
ORANGE, GREY, INK = "#e0912f", "#777777", "#222222"
COLOURS = dict(zip(LINE, (GREY, ORANGE, BLUE, INK, VIOLET, GREY, GREEN, ORANGE, RED), strict=True))


def spread(rows: Sequence[dict[str, Any]], kind: str, critic: str) -> tuple[Any, Any] | None:
    """((variance, low, high), (bias, low, high)) of a kind with critics of one name; of several, mean and range."""
    chosen = [row for row in rows if row["kind"] == kind and row["critic"].partition(" ")[0] == critic]
    if not chosen:
        return None
    noise = [row["variance"] for row in chosen]
    bias = [row["bias"] for row in chosen]
    middle = math.sqrt(max(float(np.mean([row["squared_bias"] for row in chosen])), 0.0))
    if len(chosen) == 1:
        return (noise[0], noise[0], noise[0]), (middle, chosen[0]["low"], chosen[0]["high"])
    return (float(np.mean(noise)), min(noise), max(noise)), (middle, min(bias), max(bias))


def drawn_gradient(part: dict[str, Any], path: Path) -> None:
    """Variance and bias of every estimate side by side."""
    plt = pyplot()
    figure, sides = plt.subplots(1, 2, figsize=(9.5, 5.6), sharey=True, layout="constrained")
    y, places = 0.0, dict[str, float]()
    for name, group in GROUPS.items():
        across = sides[1].get_yaxis_transform()
        sides[1].text(1.02, y - (len(group) - 1) / 2, name, transform=across, va="center", color=GREY)
        for kind in group:
            places[kind], y = y, y - 1.0
        for axis in sides:
            axis.axhline(y + 0.25, color="#dddddd", lw=0.8)
        y -= 0.5
    looks = {"": ("no critic", GREY, "D"), "well": ("well trained critic", BLUE, "o"),
             "half": (f"half trained critics: mean and range of {HALVES}", RED, "s")}  # fmt: skip
    for critic, (label, colour, marker) in looks.items():
        for kind, place in places.items():
            found = spread(part["rows"], kind, critic)
            for axis, value in zip(sides, found or (), strict=False):
                at = place + {"": 0.0, "well": 0.16, "half": -0.16}[critic]
                bar = [[max(value[0] - value[1], 0.0)], [max(value[2] - value[0], 0.0)]]
                axis.errorbar(value[0], at, xerr=bar, fmt=marker, ms=5, color=colour, lw=1.2, label=label)
    sides[0].set_xscale("log")
    sides[0].set_xlabel("variance of a batch / |∇J|²")
    sides[1].set_xlabel("|bias| / |∇J|")
    sides[1].set_xlim(left=-0.02)
    sides[0].set_yticks(list(places.values()), list(places))
    sides[0].set_ylim(y + 0.9, 0.7)
    for axis in sides:
        axis.grid(axis="x", color="#eeeeee")
        axis.set_axisbelow(True)
    handles = dict(zip(*reversed(sides[0].get_legend_handles_labels()), strict=True))
    figure.legend(handles.values(), handles.keys(), loc="outside upper center", ncols=3, frameon=False)
    saved(figure, path)


def drawn_curves(part: dict[str, Any], path: Path) -> None:
    """Mean returns over steps: IQM and interval over seeds."""
    plt = pyplot()
    figure, axes = plt.subplots(1, len(PANELS), figsize=(11, 4.6), sharey=True, layout="constrained")
    for axis, (title, members) in zip(axes, PANELS.items(), strict=True):
        for name in (m for m in members if m in part):
            row, colour = part[name], COLOURS[name]
            found = bands([row["steps"]] * len(row["values"]), row["values"])
            axis.plot(found.steps / 1000, found.iqm, color=colour, lw=1.8, label=name)
            axis.fill_between(found.steps / 1000, found.low, found.high, color=colour, alpha=0.13, lw=0)
        axis.set_title(title, fontsize=11)
        axis.set_xlabel("environment steps, thousands")
        axis.set_ylim(0, 510)
        axis.grid(color="#eeeeee")
        axis.legend(frameon=False, fontsize=9, loc="upper center", bbox_to_anchor=(0.5, -0.18))
    axes[0].set_ylabel("return of an episode in training")
    saved(figure, path)


def pyplot() -> Any:
    """matplotlib without a window, in our style."""
    import matplotlib as mpl

    mpl.use("Agg")
    mpl.rcParams.update(STYLE)
    from matplotlib import pyplot

    return pyplot


def saved(figure: Any, path: Path) -> None:
    """The same bytes for the same figures."""
    figure.savefig(path, metadata={"Date": None}, facecolor="white")


# ----------------------------------------------------------------------------------------------------------- the page


def page(results: dict[str, Any]) -> str:
    """The Markdown page."""
    at = results["machine"]
    lines = [
        "# Credit assignment", "",
        f"Written by `{results['command']}` on {results['date']}; all figures are in",
        "[credit-assignment.json](credit-assignment.json), and what they mean in",
        f"[docs/credit-assignment.md](../../docs/credit-assignment.md). {at['cores']} cores, {at['cpu']}.", "",
    ]  # fmt: skip
    if results.get("gradient"):
        lines += gradient_page(results["gradient"])
    if results.get("curves"):
        lines += curves_page(results["curves"])
    return "\n".join([*lines, ", ".join(f"{k} {v}" for k, v in results["versions"].items()) + ".", ""])


def gradient_page(part: dict[str, Any]) -> list[str]:
    """The table of estimates."""
    worth, settings = part["critics"], part["settings"]
    V, Q = (np.mean(worth[name]) for name in ("V, half, from V, well", "Q, half, from its target"))
    lines = [
        "## One policy, one set of episodes", "",
        f"CartPole-v1 without a clock, γ = {settings['gamma']:g}. PPO was stopped after {part['steps']:,} steps; its",
        f"policy, sampled, has a mean return of {part['mean_return']:.0f}. {settings['batches']:,} batches of",
        f"{settings['episodes']} episodes. The well trained V differs from the returns by "
        f"{worth['V, well, from the returns']:.0f} (RMS), of a spread of {worth['sd of returns']:.0f};",
        f"the half trained ones, after {settings['half']} gradient steps, from it by {V:.0f}, of a spread of "
        f"{worth['sd of V']:.0f}. The well trained Q is {worth['Q, well, from its target']:.1f} from",
        f"r + V(s'), the half trained ones {Q:.0f}; advantages have a spread of {worth['sd of advantages']:.1f}.", "",
        "Variance: trace of the covariance of a batch's gradient over the true one's squared length. Bias: its length",
        f"over the true one's, noise subtracted, with a 95 % interval. Half trained: mean and range of {HALVES}.",
        "",
        "| Ψ | variance | bias | variance, half trained | bias, half trained |", "|---|---|---|---|---|",
    ]  # fmt: skip
    for kind in (*PLAIN, *KINDS):
        cells = [spread(part["rows"], kind, critic) for critic in ("" if kind in PLAIN else "well", "half")]
        lines.append(f"| {kind} | " + " | ".join(cell for found in cells for cell in texts(found)) + " |")
    return [*lines, ""]


def texts(found: tuple[Any, Any] | None) -> tuple[str, str]:
    """(variance, bias) as a table shows them."""
    if found is None:
        return "", ""
    noise, bias = found
    around = f" ({noise[1]:.3g} to {noise[2]:.3g})" if noise[1] < noise[2] else ""
    return f"{noise[0]:.3g}{around}", f"{bias[0]:.2f} ({bias[1]:.2f} to {bias[2]:.2f})"


def curves_page(part: dict[str, Any]) -> list[str]:
    """The table of runs."""
    lines = [
        "## Learning", "",
        f"jax:{ENV}, {STEPS:,} steps, seeds 0 to {SEEDS - 1}; mean return of the training episodes that ended in the",
        "last tenth, IQM over seeds with a 95 % interval. Each is its agent's preset, with what is named changed.", "",
        "| | changed | preset from | environments | return | |", "|---|---|---|---|---|---|",
    ]  # fmt: skip
    for name, row in part.items():
        changed = ", ".join(f"`{k}` {v}" for k, v in row["fields"].items())
        low, high = row["interval"]
        lines.append(
            f"| {name} | {changed} | {row['preset']} | {row['n_envs']} | {row['iqm']:.0f} | {low:.0f} to {high:.0f} |"
        )
    return [*lines, ""]


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="bench/credit_assignment.py", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("parts", nargs="*", metavar="PART", help="gradient, curves, draw; default: all")
    parser.add_argument("--anew", action="store_true", help="measure again what is there already")
    chosen = parser.parse_args(arguments)
    parts = chosen.parts or ["gradient", "curves", "draw"]
    unknown = [part for part in parts if part not in ("gradient", "curves", "draw")]
    if unknown:
        parser.error(f"there is no part {unknown[0]!r}: there are gradient, curves and draw")
    if "gradient" in parts and (chosen.anew or not results()["gradient"]):
        written({"gradient": gradient_part()})
    for name in LINE if "curves" in parts else ():
        if chosen.anew or name not in results()["curves"]:
            written({"curves": {name: curve(name)}})
    if results()["gradient"]:
        drawn_gradient(results()["gradient"], FIGURE)
    if results()["curves"]:
        drawn_curves(results()["curves"], CURVES)


def results() -> dict[str, Any]:
    """What has been measured so far."""
    old = json.loads(OUT.read_text()) if OUT.exists() else {}
    return {"gradient": old.get("gradient"), "curves": old.get("curves", {})}


def written(new: dict[str, Any]) -> None:
    """Adds to the files what was measured; two parts may be under way at once."""
    old = results()
    curves = old["curves"] | new.get("curves", {})
    packages = ("polyak", "jax", "jaxlib", "numpy")
    whole = {
        "command": "python bench/credit_assignment.py", "date": datetime.date.today().isoformat(), "machine": machine(),
        "versions": {"python": platform.python_version()} | {p: version(p) for p in packages},
        "gradient": new.get("gradient", old["gradient"]),
        "curves": {name: curves[name] for name in LINE if name in curves},
    }  # fmt: skip
    OUT.write_text(json.dumps(whole, indent=1) + "\n")
    OUT.with_suffix(".md").write_text(page(whole))


if __name__ == "__main__":
    main(sys.argv[1:])
