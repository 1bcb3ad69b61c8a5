"""Updates per second of tabular learning on the compiled crank, beside the textbook's loop in plain Python.

    python bench/tabular.py [--seeds 1 16 256 512 1024 4096] [--rounds 5]

Q-learning and SARSA on FrozenLake8x8-v1, one update a step. Every round runs, one after the other, the textbook's loop
on Gymnasium's environment and, with every number of seeds, the crank and its two limits: the environment alone under
random actions, and a bare loop of updates with transitions drawn beforehand. The figure of a side is its median over
the rounds, beside its best. Compilation is outside. Writes bench/results/tabular.json and tabular.md.
"""

import argparse
import datetime
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import gymnasium as gym
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from speed import machine

import polyak
from polyak import cranks
from polyak.core import Spec
from polyak.envs import resolve
from polyak.envs.vector import Vector

OUT = Path(__file__).resolve().parent / "results" / "tabular.json"
ENV = "FrozenLake8x8-v1"
LR, GAMMA, EPSILON, BAR = 0.1, 0.99, 0.1, 200
DRAWN = 256  # transitions per seed that the bare loop goes round
SECONDS = 0.7  # of one measurement, about

Side = Callable[[int], None]  # runs so many updates of every seed, to the end


# -------------------------------------------------------------------------------------------------- the textbook's loop


def best_of(values: Any, rng: Any) -> int:
    """argmax as the book has it, "breaking ties randomly" (§2.4)."""
    return int(rng.choice(np.flatnonzero(values == values.max())))


def first_of(values: Any, rng: Any) -> int:
    """argmax as NumPy has it: the first of equal ones."""
    del rng
    return int(np.argmax(values))


def q_learning(greedy: Any, env: Any, Q: Any, rng: Any, steps: int) -> None:
    """Q-learning, Sutton & Barto (2018), §6.5."""
    s, _ = env.reset()
    for _ in range(steps):
        a = env.action_space.sample() if rng.random() < EPSILON else greedy(Q[s], rng)
        s_next, r, terminated, truncated, _ = env.step(a)
        Q[s, a] += LR * (r + GAMMA * np.max(Q[s_next]) * (not terminated) - Q[s, a])
        s = env.reset()[0] if terminated or truncated else s_next


def sarsa(greedy: Any, env: Any, Q: Any, rng: Any, steps: int) -> None:
    """SARSA, §6.4."""

    def choose(s: int) -> int:
        return int(env.action_space.sample()) if rng.random() < EPSILON else greedy(Q[s], rng)

    s, _ = env.reset()
    a = choose(s)
    for _ in range(steps):
        s_next, r, terminated, truncated, _ = env.step(a)
        a_next = choose(s_next)
        Q[s, a] += LR * (r + GAMMA * Q[s_next, a_next] * (not terminated) - Q[s, a])
        s, a = s_next, a_next
        if terminated or truncated:
            s, _ = env.reset()
            a = choose(s)


LOOPS: dict[str, Any] = {
    "textbook Q-learning": partial(q_learning, best_of),
    "textbook SARSA": partial(sarsa, best_of),
    "first-argmax Q-learning": partial(q_learning, first_of),
    "first-argmax SARSA": partial(sarsa, first_of),
}


def textbook(loop: Any) -> Side:
    env, rng = gym.make(ENV), np.random.default_rng(0)
    env.reset(seed=0)
    env.action_space.seed(0)
    Q = np.zeros((env.observation_space.n, env.action_space.n))  # pyright: ignore[reportAttributeAccessIssue]
    return lambda steps: loop(env, Q, rng, steps)


# ---------------------------------------------------------------------------------------------------- the compiled side


def crank(agent: Any, seeds: int) -> Side:
    """The compiled crank itself, with all that it does in a run of `polyak`: episodes, metrics, reports."""
    world = resolve(f"jax:{ENV}").world
    vector = Vector(world, 1)
    compiled = cranks.Compiled(agent, world, Spec(vector.obs_space, vector.action_space, 1, 1 << 30), range(seeds))

    def advance(n: int) -> None:
        compiled.advance(n)

    return advance


def environment(seeds: int) -> Side:
    """The world under uniformly random actions."""
    vector = cranks.arrays_of(Vector(resolve(f"jax:{ENV}").world, 1))
    keys = jax.vmap(partial(jax.random.fold_in, jax.random.key(0)))(jnp.arange(seeds))

    @partial(jax.jit, donate_argnums=1)
    @partial(jax.vmap, in_axes=(None, 0, 0, None))
    def run(vector: Vector, state: Any, key: Array, n: Array) -> Any:
        def step(t: Array, carry: Any) -> Any:
            state, total = carry
            k_action, k_world = jax.random.split(jax.random.fold_in(key, t))
            state, _, out = vector.step(state, jax.random.randint(k_action, (1,), 0, 4), k_world)
            return state, total + out.reward.sum()

        return lax.fori_loop(0, n, step, state)

    return repeated(run, vector, (jax.vmap(lambda key: vector.reset(key)[0])(keys), jnp.zeros(seeds)), keys)


def bare(seeds: int) -> Side:
    """Q-learning's update alone: transitions drawn beforehand, a gather of Q(s′, ·) and of Q(s, a), and a scatter."""
    rng, shape = np.random.default_rng(0), (DRAWN, seeds)
    drawn = (rng.integers(0, 64, shape), rng.integers(0, 4, shape), rng.random(shape), rng.integers(0, 64, shape))
    s, a, r, after = (jnp.asarray(x, jnp.float32 if x.dtype == float else jnp.int32) for x in drawn)
    going = jnp.asarray(rng.random(shape) > 0.02, jnp.float32)

    @partial(jax.jit, donate_argnums=1)
    @partial(jax.vmap, in_axes=(None, 0, 1, None))
    def run(rates: Array, Q: Array, transitions: Any, n: Array) -> Any:
        def update(t: Array, Q: Array) -> Array:
            s, a, r, after, going = (x[t % DRAWN] for x in transitions)
            delta = r + rates[1] * going * Q[after].max() - Q[s, a]
            return Q.at[s, a].add(rates[0] * delta)

        return lax.fori_loop(0, n, update, Q)

    return repeated(run, jnp.array([LR, GAMMA]), jnp.zeros((seeds, 64, 4)), (s, a, r, after, going))


def repeated(run: Any, fixed: Any, state: Any, rest: Any) -> Side:
    """A compiled loop that goes on from its own state."""
    held = [state]

    def advance(n: int) -> None:
        held[0] = jax.block_until_ready(run(fixed, held[0], rest, np.int32(n)))

    return advance


# ------------------------------------------------------------------------------------------------------------ measuring


class Timed:
    """One side: how many updates it does at once, so that a measurement takes long enough, and its rates so far."""

    def __init__(self, name: str, seeds: int, side: Side) -> None:
        self.name, self.seeds, self.side, self.rates = name, seeds, side, list[float]()
        self.n = 64
        self.seconds()  # compiles
        while (took := self.seconds()) < SECONDS / 2:
            self.n = int(self.n * min(SECONDS / max(took, 1e-4), 16.0))

    def seconds(self) -> float:
        began = time.perf_counter()
        self.side(self.n)
        return time.perf_counter() - began

    def measured(self) -> None:
        self.rates.append(self.n * self.seeds / self.seconds())

    def row(self) -> dict[str, Any]:
        return {
            "side": self.name, "seeds": self.seeds, "updates": self.n * self.seeds, "rates": self.rates,
            "median": statistics.median(self.rates), "best": max(self.rates),
        }  # fmt: skip


def sides(numbers: list[int]) -> list[Timed]:
    """Every side, ready: the textbook's loops once, the others with every number of seeds."""
    found: list[Timed] = []
    settings = {"lr": LR, "gamma": GAMMA, "eps_start": EPSILON, "eps_end": EPSILON}
    makers: dict[str, Callable[[int], Side]] = {
        "Q-learning": partial(crank, polyak.QLearning(**settings)),
        "SARSA": partial(crank, polyak.SARSA(**settings)),
        "environment": environment,
        "bare update": bare,
    }
    for name, loop in LOOPS.items():
        found.append(Timed(name, 1, textbook(loop)))
    for name, maker in makers.items():
        for seeds in numbers:
            found.append(Timed(name, seeds, maker(seeds)))
            print(f"  ready: {name}, {seeds:,} seeds, {found[-1].n:,} updates each", flush=True)
    return found


def measure(numbers: list[int], rounds: int) -> list[dict[str, Any]]:
    """All rows. A round alternates: each textbook loop before each stretch of compiled ones."""
    ready = sides(numbers)
    loops, rest = ready[: len(LOOPS)], ready[len(LOOPS) :]
    for k in range(rounds):
        for loop in loops:
            loop.measured()
        for side in rest:
            side.measured()
        print(f"  round {k + 1} of {rounds}", flush=True)
    return [side.row() for side in ready]


# ------------------------------------------------------------------------------------------------------------- the page


def verdicts(rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """For both methods the best number of seeds, its ratio to the textbook's loop, and what the limits are there."""
    found: dict[str, dict[str, Any]] = {}
    for name in ("Q-learning", "SARSA"):
        best = max((row for row in rows if row["side"] == name), key=lambda row: row["median"])
        loop, quick = (
            next(row for row in rows if row["side"] == f"{kind} {name}") for kind in ("textbook", "first-argmax")
        )
        there = {r["side"]: r for r in rows if r["seeds"] == best["seeds"]}
        ratio = best["median"] / loop["median"]
        found[name] = {
            "seeds": best["seeds"], "rate": best["median"], "textbook": loop["median"], "ratio": ratio,
            "ratio_to_first_argmax": best["median"] / quick["median"],
            "ratio_of_bests": best["best"] / loop["best"], "bar": BAR, "met": ratio >= BAR,
            "of_environment": best["median"] / there["environment"]["median"],
            "of_bare_update": best["median"] / there["bare update"]["median"],
        }  # fmt: skip
    return found


def page(results: dict[str, Any]) -> str:
    """The Markdown page."""
    at, rows = results["machine"], results["rows"]
    lines = [
        "# Tabular learning", "",
        f"Written by `{results['command']}` on {results['date']}; every round is in [tabular.json](tabular.json).",
        f"{at['cores']} cores, {at['cpu']} {at['vector']}, no GPU; load before {results['load_before']}.", "",
        f"{ENV}, one update a step, α = {LR}, γ = {GAMMA}, ε = {EPSILON}. Updates of all seeds together; median of",
        f"{results['rounds']} rounds, which alternate between the sides. Compilation is outside.", "",
        "| | seeds | updates/s, median | best | ns per update | times the textbook's loop |",
        "|---|---|---|---|---|---|",
        *[line(row, rows) for row in rows], "",
        "- *textbook*: the book's loop in Python and NumPy on Gymnasium's environment, with its argmax, which",
        "  breaks ties at random, as ours does. *first-argmax*: the same with NumPy's, the first of equal values:",
        "  it is quicker, but from zeros it takes the first action everywhere, and learns nothing on this lake.",
        "- *Q-learning*, *SARSA*: `polyak`'s compiled crank, seeds side by side, with its metrics and episodes.",
        "- *environment*: the same compiled world under random actions, nothing learned: steps, not updates.",
        f"- *bare update*: Q-learning's gather and scatter alone, over {DRAWN} transitions per seed drawn beforehand.",
        "", *[sentence(name, found) for name, found in results["verdicts"].items()], "",
        ", ".join(f"{name} {v}" for name, v in results["versions"].items()) + ".",
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def line(row: dict[str, Any], rows: list[dict[str, Any]]) -> str:
    loop = next((r for r in rows if r["side"] == f"textbook {row['side']}"), None)
    ratio = f"{row['median'] / loop['median']:,.0f}×" if loop else ""
    return (
        f"| {row['side']} | {row['seeds']:,} | {row['median']:,.0f} | {row['best']:,.0f} "
        f"| {1e9 / row['median']:,.3g} | {ratio} |"
    )


def sentence(name: str, found: dict[str, Any]) -> str:
    bar = f" (bar {found['bar']}×: {'met' if found['met'] else 'missed'})"
    return (
        f"- {name}: {found['rate'] / 1e6:.1f} million updates a second with {found['seeds']:,} seeds, "
        f"{found['ratio']:,.0f}× the textbook's loop{bar}, {found['ratio_to_first_argmax']:,.0f}× the one that "
        f"takes the first of equal values; {found['of_environment']:.0%} of the steps of the "
        f"environment alone, {found['of_bare_update']:.0%} of the bare updates."
    )


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="bench/tabular.py", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 16, 256, 512, 1024, 4096], help="numbers of seeds")
    parser.add_argument("--rounds", type=int, default=5, help="how often each side is measured (default 5)")
    chosen = parser.parse_args(arguments)
    load = round(os.getloadavg()[0], 2)
    if load > 0.7:
        print(f"tabular.py: the machine is busy (load {load}); the figures will be rough.", file=sys.stderr)
    rows = measure(chosen.seeds, chosen.rounds)
    packages = ("polyak", "jax", "numpy", "gymnasium")
    results = {
        "command": " ".join(["python bench/tabular.py", *arguments]), "date": datetime.date.today().isoformat(),
        "machine": machine(), "load_before": load, "rounds": chosen.rounds, "verdicts": verdicts(rows), "rows": rows,
        "versions": {"Python": platform.python_version()} | {p: version(p) for p in packages},
    }  # fmt: skip
    OUT.write_text(json.dumps(results, indent=1) + "\n")
    OUT.with_suffix(".md").write_text(page(results))
    print("\n" + page(results))


if __name__ == "__main__":
    main(sys.argv[1:])
