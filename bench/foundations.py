"""The tabular and linear rows of the acceptance benchmarks, P01-P05: exact planning, and the figures of the book.

    python bench/foundations.py              # all rows, a few minutes on two cores
    python bench/foundations.py P03 P04      # some

P01 and P02 compare planners with exact values. P03-P05 repeat figures of Sutton & Barto (2018) with the agents of
`polyak`, on the compiled crank, many runs side by side: the published figures are means of few, which leave much to
chance. Each row names the source of its bar. Writes bench/results/foundations.json and .md.
"""

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

import polyak
from polyak import cranks, mdp
from polyak.core import Spec
from polyak.envs import resolve
from polyak.envs.vector import Vector
from polyak.mdp import planning
from polyak.statistics import interval

RESULTS = Path(__file__).resolve().parent / "results"
CODE = "ShangtongZhang/reinforcement-learning-an-introduction"


class Played(NamedTuple):
    """What a run of whole episodes leaves behind; [runs, ...] each."""

    returns: Any  # mean return of the episodes that count
    lengths: Any  # their mean length
    first: Any  # mean length of the first 50 episodes
    agent: Any  # its state after the last episode


def played(agent: Any, world: Any, runs: int, episodes: int, last: int, seed: int = 0) -> Played:
    """`runs` independent runs of exactly `episodes` episodes each; the last `last` of them count."""
    vector = Vector(world, 1)
    spec = Spec(vector.obs_space, vector.action_space, 1, 1 << 30)
    agent, vector = cranks.arrays_of(agent), cranks.arrays_of(vector)
    keys = [cranks.agent_key(seed + k) for k in range(runs)]
    k_init, k_run = (jnp.stack(list(column)) for column in zip(*keys, strict=True))
    run = partial(whole, spec=spec, episodes=episodes, last=last)
    return jax.jit(jax.vmap(run, in_axes=(None, None, 0, 0)))(agent, vector, k_init, k_run)


def whole(agent: Any, vector: Any, k_init: Any, k_run: Any, *, spec: Spec, episodes: int, last: int) -> Played:
    """One run: iterations of the compiled crank until enough episodes have ended."""

    def going(carry: Any) -> Any:
        return carry[1][0] < episodes

    def turn(carry: Any) -> Any:
        state, (count, returns, lengths, first) = carry
        stepped, rollout, out = cranks.interact(agent, vector, spec, state)
        learned, _ = agent.update(stepped.agent, rollout, cranks.iteration_keys(state.key, state.iteration)[2])
        end = (out.terminated | out.truncated)[0, 0]
        counts = end & (count >= episodes - last)
        length = jnp.where(end, out.episode_length[0, 0].astype(jnp.float32), 0.0)
        tallies = (
            count + end,
            returns + jnp.where(counts, jnp.nan_to_num(out.episode_return[0, 0]), 0.0),
            lengths + jnp.where(counts, length, 0.0),
            first + jnp.where(count < 50, length, 0.0),
        )
        return stepped._replace(agent=learned, iteration=state.iteration.add(1)), tallies

    state = cranks.init(agent, vector, spec, k_init, k_run)
    start = (state, (jnp.int32(0), jnp.float32(0), jnp.float32(0), jnp.float32(0)))
    state, (_, returns, lengths, first) = lax.while_loop(going, turn, start)
    return Played(returns / last, lengths / last, first / 50, state.agent)


def preset(name: str, env: str, which: str = "default") -> Any:
    """An agent with its preset's hyper-parameters."""
    from polyak.runs.config import agent_from

    return agent_from(name, {}, env, which, None)[0]


# ------------------------------------------------------------------------------------------------------------ rows

EXACT = {
    "P01": [
        ("FrozenLake-v1", {}, 0.99, 0.542025932000), ("FrozenLake-v1", {}, 1.0, 14 / 17),
        ("FrozenLake-v1", {}, 0.9, 0.068890904889), ("FrozenLake-v1", {}, 0.95, 0.180471578397),
        ("FrozenLake-v1", {"is_slippery": False}, 0.99, 0.950990049900),
    ],
    "P02": [
        ("CliffWalking-v1", {}, 1.0, -13.0), ("CliffWalking-v1", {}, 0.99, -12.247897700),
        ("CliffWalking-v1", {}, 0.9, -7.458134172),
    ],
}  # fmt: skip


def exact(row: str) -> dict[str, Any]:
    """Value iteration and policy iteration against the exact values, in every state: their largest difference."""
    found: list[dict[str, Any]] = []
    for env, kwargs, gamma, published in EXACT[row]:
        model = mdp.from_gymnasium(env, **kwargs)
        one, two = planning.value_iteration(model, gamma, tol=1e-9), planning.policy_iteration(model, gamma)
        found.append(
            {
                "env": env, "kwargs": kwargs, "gamma": gamma, "published": published, "value": one.start_value,
                "error": abs(one.start_value - published), "between planners": float(abs(one.V - two.V).max()),
                "bound": one.bound, "sweeps": one.sweeps,
            }
        )  # fmt: skip
    worst = max(max(f["error"], f["between planners"]) for f in found)
    return {"what": "largest error", "score": worst, "bar": 1e-6, "passed": bool(worst <= 1e-6), "parts": found}


def cliff(runs: int) -> dict[str, Any]:
    """P03: online return of the last 100 of 500 episodes on the cliff; the greedy policy of Q-learning returns −13."""
    env = "CliffWalking-v1"
    world = resolve(f"jax:{env}").world
    wanted = {
        "SARSA": (preset("sarsa", env), -25.5, 2.6),
        "Q-learning": (preset("q-learning", env), -49.5, 4.0),
        "expected SARSA": (preset("sarsa", env, "expected"), -20.5, 1.0),
    }
    parts: list[dict[str, Any]] = []
    for name, (agent, published, tolerance) in wanted.items():
        ended = played(agent, world, runs, 500, 100)
        returns = np.asarray(ended.returns, np.float64)
        part = described(name, returns) | {"published": published, "tolerance": tolerance}
        part["passed"] = bool(abs(part["mean"] - published) <= tolerance)
        if name == "Q-learning":
            part["greedy"] = greedy_returns(world, np.asarray(ended.agent.Q.W))
            part["passed"] &= part["greedy"] == [-13.0]
        parts.append(part)
    passed = all(part["passed"] for part in parts)
    return {"what": "online return", "score": [p["mean"] for p in parts], "bar": "±2.6 / ±4.0 / ±1.0 of published",
            "passed": passed, "parts": parts, "runs": runs}  # fmt: skip


def greedy_returns(world: Any, tables: Any) -> list[float]:
    """The different undiscounted returns of the greedy policies of many tables [runs, S, A], from the first state."""
    model, found = world.model, set[float]()
    for Q in tables:
        s, total = int(np.argmax(model.start)), 0.0
        for _ in range(1000):
            a = int(np.argmax(Q[s]))
            k = int(np.argmax(model.probability[s, a]))
            total += float(model.reward[s, a, k])
            s, over = int(model.successor[s, a, k]), bool(model.terminated[s, a, k])
            if over:
                break
        found.add(total)
    return sorted(found)


def walk(runs: int) -> dict[str, Any]:
    """P04: the error of TD(0) after 100 episodes of the random walk, over its five states, mean over runs."""
    from polyak.envs.finite import random_walk

    truth, parts = np.arange(1, 6) / 6, []
    for lr, published in ((0.05, 0.0339), (0.1, 0.0540), (0.15, 0.0716)):
        agent = polyak.TD(lr=lr, gamma=1.0, v_init=0.5)
        V = np.asarray(played(agent, random_walk(), runs, 100, 100).agent.V.W, np.float64)[:, 1:6, 0]
        parts.append(
            described(f"TD(0), step size {lr}", np.sqrt(((V - truth) ** 2).mean(1))) | {"published": published}
        )
    score = parts[0]["mean"]
    return {
        "what": "RMS error",
        "score": score,
        "bar": 0.036,
        "passed": bool(score <= 0.036),
        "parts": parts,
        "runs": runs,
    }


def hill(runs: int) -> dict[str, Any]:
    """P05: steps per episode of semi-gradient SARSA on the mountain car without a time limit, last 100 of 500."""
    world = resolve("jax:MountainCar-v0", env_kwargs={"max_steps": 0}).world
    ended = played(preset("sarsa", "MountainCar-v0"), world, runs, 500, 100)
    part = described("8 tilings, step size 0.5 / 8", np.asarray(ended.lengths, np.float64)) | {"published": 116.7}
    part["first 50 episodes"] = float(np.mean(ended.first))
    score = polyak.statistics.iqm(np.asarray(ended.lengths, np.float64))
    return {"what": "steps per episode, IQM", "score": float(score), "bar": 121, "passed": bool(score <= 121),
            "parts": [part], "runs": runs}  # fmt: skip


def described(name: str, values: Any) -> dict[str, Any]:
    """Mean of many runs with the standard error, and the spread of the runs."""
    low, high = interval(values[:200])
    return {
        "name": name, "mean": float(values.mean()), "se": float(values.std(ddof=1) / np.sqrt(len(values))),
        "sd": float(values.std(ddof=1)), "median": float(np.median(values)), "runs": len(values),
        "iqm_of_200": [float(low), float(high)],
    }  # fmt: skip


ROWS: dict[str, tuple[str, Callable[[], dict[str, Any]]]] = {
    "P01": ("value and policy iteration, FrozenLake-v1", lambda: exact("P01")),
    "P02": ("value and policy iteration, CliffWalking-v1", lambda: exact("P02")),
    "P03": (f"SARSA, Q-learning, expected SARSA, cliff ({CODE}, chapter06)", lambda: cliff(1000)),
    "P04": (f"TD(0), 5-state random walk ({CODE}, chapter06)", lambda: walk(5000)),
    "P05": (f"semi-gradient SARSA, mountain car ({CODE}, chapter10)", lambda: hill(20)),
}


def table(results: dict[str, Any]) -> str:
    """The page of all rows."""
    lines = [
        "# Exact foundations", "",
        "Written by `python bench/foundations.py`; every figure with its spread is in",
        "[foundations.json](foundations.json).", "",
        "| row | what | measured | published or exact | bar | seconds | result |",
        "|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for name, result in results["rows"].items():
        measured, published = texts(result)
        verdict = "**passed**" if result["passed"] else "**failed**"
        lines.append(
            f"| {name} | {ROWS[name][0]}: {result['what']} | {measured} | {published} | {result['bar']} "
            f"| {result['seconds']:.0f} | {verdict} |"
        )
    packages = ", ".join(f"{k} {v}" for k, v in results["versions"].items())
    return "\n".join([*lines, "", f"{packages}; {results['cores']} cores.", ""])


def texts(result: dict[str, Any]) -> tuple[str, str]:
    """(what was measured, what was published), the parts of a row one after the other."""
    parts = result["parts"]
    if "error" in parts[0]:
        return f"{result['score']:.1e} in {len(parts)} problems", " / ".join(f"{p['published']:.9g}" for p in parts)
    measured = " / ".join(f"{p['mean']:.4g} ± {p['se']:.1g} ({p['runs']} runs)" for p in parts)
    return measured, " / ".join(f"{p['published']:g}" for p in parts)


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="bench/foundations.py", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"default: all ({', '.join(ROWS)})")
    chosen = parser.parse_args(arguments).rows or list(ROWS)
    unknown = [name for name in chosen if name not in ROWS]
    if unknown:
        parser.error(f"there is no row {unknown[0]!r}: there are {', '.join(ROWS)}")
    path = RESULTS / "foundations.json"
    old = json.loads(path.read_text())["rows"] if path.exists() else {}
    packages = ("polyak", "jax", "jaxlib", "numpy", "gymnasium")
    for name in chosen:
        began = time.perf_counter()
        old[name] = ROWS[name][1]() | {"command": f"python bench/foundations.py {name}"}
        old[name]["seconds"] = round(time.perf_counter() - began, 1)
        print(f"{name}: {'passed' if old[name]['passed'] else 'failed'}, {texts(old[name])[0]}", flush=True)
        results = {
            "rows": {row: old[row] for row in ROWS if row in old},
            "versions": {"python": platform.python_version()} | {p: version(p) for p in packages},
            "cores": os.cpu_count(),
        }
        path.write_text(json.dumps(results, indent=1) + "\n")
        (RESULTS / "foundations.md").write_text(table(results))
    return int(not all(old[name]["passed"] for name in chosen))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
