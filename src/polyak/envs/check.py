"""`check_env`: whether an environment keeps its promises, how exactly it resumes, and how fast it is.

Gymnasium's checker steps once; most faults (NaN, aliasing, shared state, values outside the space) need more.
"""

import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from polyak.envs.gymspaces import Array, random_actions
from polyak.envs.host import DEADLINE_S, HostVector, Tier
from polyak.envs.source import Source, resolve
from polyak.errors import EnvError, PolyakError
from polyak.spaces import Box, Space, describe, leaves


class Finding(NamedTuple):
    """One thing that was looked at: a fault (ok is False), or what was found."""

    name: str
    ok: bool
    text: str


class Report(NamedTuple):
    """What `check_env` found; `str(report)` is for reading, `ok` says whether there is no fault."""

    env: str
    findings: tuple[Finding, ...]
    tier: int
    steps_per_s: float

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong; a tier of 3 or an array that is used again is no fault, since polyak copes."""
        return all(finding.ok for finding in self.findings)

    def __str__(self) -> str:
        width = max(len(finding.name) for finding in self.findings)
        lines = [f"{'ok  ' if f.ok else 'FAIL'}  {f.name:<{width}}  {f.text}" for f in self.findings]
        return "\n".join([self.env, *lines])


# Habits show early; after so many steps the witness steps aside, so as not to slow what is being timed.
WITNESSED_STEPS = 100


class Witness:
    """An environment seen from outside: passes everything on and notes habits that polyak's copies make harmless."""

    def __init__(self, env: Any) -> None:
        self.env = env
        self._left = WITNESSED_STEPS
        self.reuses = self.mutates = self.both = False
        self._last: Any = None

    @property
    def observation_space(self) -> Any:
        return self.env.observation_space

    @property
    def action_space(self) -> Any:
        return self.env.action_space

    @property
    def unwrapped(self) -> Any:
        return getattr(self.env, "unwrapped", self.env)

    def reset(self, **options: Any) -> Any:
        """Gymnasium's reset."""
        result = self.env.reset(**options)
        self._note(result[0] if isinstance(result, tuple) and result else None)
        return result

    def step(self, action: Any) -> Any:
        """Gymnasium's step."""
        if not self._left:
            return self.env.step(action)
        self._left -= 1
        before = np.array(action, copy=True) if isinstance(action, np.ndarray) else None
        result = self.env.step(action)
        if before is not None and not np.array_equal(before, action):
            self.mutates = True
        if isinstance(result, tuple) and len(result) == 5:
            self._note(result[0])
            self.both = self.both or (result[2] is True and result[3] is True)
        return result

    def close(self) -> None:
        """Gymnasium's close."""
        self.env.close()

    def _note(self, obs: Any) -> None:
        arrays = [a for a in _arrays(obs) if a.size]
        if self._last is not None and any(np.may_share_memory(a, b) for a, b in zip(arrays, self._last, strict=False)):
            self.reuses = True
        self._last = arrays


def _arrays(obs: Any) -> list[Array]:
    if isinstance(obs, np.ndarray):
        return [obs]
    parts = list(obs.values()) if isinstance(obs, Mapping) else list(obs) if isinstance(obs, tuple) else []
    return [array for inner in parts for array in _arrays(inner)]


def check_env(
    env: Any,
    steps: int = 1000,
    *,
    env_kwargs: Mapping[str, Any] | None = None,
    allow_import: Sequence[str] = (),
    deadline: float = DEADLINE_S,
) -> Report:
    """Plays `steps` random actions with every check on, then proves the tier.

    Args:
        env: whatever `polyak.train` takes: an id, an instance, a factory, a vector env, a JAX world.
        steps: how many actions, at least 1.

    Errors:
        PolyakError: the environment cannot be made at all. Faults of a made one are findings, not errors.
    """
    if steps < 1:
        raise PolyakError(f"check_env needs at least 1 step, not {steps}")
    source = resolve(env, env_kwargs=env_kwargs, allow_import=allow_import, deadline=deadline)
    both = f"observation {describe(source.obs_space)}, action {describe(source.action_space)}"
    spaces = Finding("spaces", True, both)
    if source.kind == "jax":
        return _check_world(source, steps, spaces)
    vector = source.vector(source.n_envs or 1, 0)
    witness = vector.replace_env(0, Witness) if isinstance(vector, HostVector) else None
    played, fault, rate = _play(vector, steps)
    kept = Finding("contract", True, f"{steps:,} steps kept it: shapes, dtypes, bounds, finite")
    untrue = Finding("contract", False, vector.notices[0]) if vector.notices else None
    findings = [spaces, fault or untrue or kept]
    findings += _episodes(played, steps)
    if witness is not None:
        findings += _habits(witness)
    tier: Tier = vector.exactness
    findings.append(Finding("tier", True, _TIERS[tier.number] + (f" ({tier.reason})" if tier.reason else "")))
    findings.append(Finding("speed", True, f"{rate:,.0f} steps/s"))
    vector.close()
    return Report(source.id, tuple(findings), tier.number, rate)


_TIERS = {
    1: "1: resumes from a native snapshot, exactly",
    2: "2: resumes by replay, exactly",
    3: "3: resumes at the next episode, not exactly",
}


def _play(vector: Any, steps: int) -> tuple[list[Any], Finding | None, float]:
    """(finished episodes, the first fault, steps per second of all environments)."""
    rng = np.random.default_rng(0)
    done: list[Any] = []
    fault, k, begin = None, 0, time.perf_counter()
    try:
        obs = vector.reset()
        begin = time.perf_counter()
        while k < steps:
            mask = obs.get("action_mask") if isinstance(obs, dict) else None
            obs = vector.step(random_actions(vector.action_space, vector.n_envs, rng, mask)).obs
            k += vector.n_envs
            done += vector.episodes()
    except EnvError as error:
        fault = Finding("contract", False, str(error))
    return done, fault, k / max(time.perf_counter() - begin, 1e-9)


def _episodes(played: list[Any], steps: int) -> list[Finding]:
    if not played:
        return [Finding("episodes", True, f"none ended in {steps:,} steps; without an end, give it a TimeLimit")]
    lengths = [e.length for e in played]
    returns = np.array([e.ret for e in played])
    text = f"{len(played):,} ended, length {min(lengths)}–{max(lengths)}, random return {returns.mean():.4g}"
    return [Finding("episodes", True, text)]


def _habits(witness: Witness) -> list[Finding]:
    notes = [
        (witness.reuses, "aliasing", "returns memory that it writes to again; polyak copies it"),
        (witness.mutates, "actions", "writes into the action that it is given; polyak passes a copy"),
        (witness.both, "flags", "sets terminated and truncated together; terminated wins"),
    ]
    return [Finding(name, True, text) for found, name, text in notes if found]


# ---- compiled worlds


def _check_world(source: Source, steps: int, spaces: Finding) -> Report:
    """One compiled environment, stepped `steps` times twice with the same keys: finite, in bounds and repeatable."""
    import jax

    from polyak.envs.vector import Vector

    vector = Vector(source.world, 1)
    step = jax.jit(vector.step)
    actions = random_actions(source.action_space, steps, np.random.default_rng(0))
    runs: list[list[Any]] = []
    rate = 0.0
    for _ in range(2):
        k_reset, k_steps = jax.random.split(jax.random.key(0))
        k_step = jax.random.split(k_steps, steps)
        state, obs = jax.jit(vector.reset)(k_reset)
        seen: list[Any] = [obs]
        begin = time.perf_counter()
        for k in range(steps):
            action = jax.tree.map(lambda a, k=k: a[k][None], actions)
            state, obs, outcome = step(state, action, k_step[k])
            seen.append((obs, outcome.next_obs, outcome.reward))
        rate = steps / (time.perf_counter() - begin)
        runs.append(jax.device_get(seen))
    equal = all(np.array_equal(a, b, equal_nan=True) for a, b in zip(*map(jax.tree.leaves, runs), strict=True))
    wrong = _outside(source.obs_space, runs[0][0]) or next(
        (text for _, obs, reward in runs[0][1:] if (text := _outside(source.obs_space, obs) or _infinite(reward))), ""
    )
    findings = (
        spaces,
        Finding("contract", not wrong, wrong or f"{steps:,} steps kept it: bounds, finite"),
        Finding("repeatable", equal, "equal keys give equal bits" if equal else "equal keys give different bits"),
        Finding("speed", True, f"{rate:,.0f} steps/s one at a time (thousands of times more when compiled in a loop)"),
    )
    return Report(source.id, findings, 1, rate)


def _infinite(reward: Any) -> str:
    return "" if np.isfinite(reward).all() else f"reward is {np.asarray(reward).tolist()}"


def _outside(space: Space, obs: Any) -> str:
    """What is wrong with a batch of one simple observation; nested ones are checked leaf by leaf."""
    import jax

    for (name, leaf), array in zip(leaves(space), jax.tree.leaves(obs), strict=True):
        if not isinstance(leaf, Box):
            continue
        low, high = leaf.bounds
        slack = 1e-4 * np.maximum(1, np.abs(np.where(np.isfinite(low), low, 1)))
        if not (np.isfinite(array).all() and (array >= low - slack).all() and (array <= high + slack).all()):
            return f"{name or 'observation'} is {np.asarray(array).tolist()}, outside {leaf.low} … {leaf.high}"
    return ""
