"""Environments outside JAX: our own vector of single Gymnasium environments.

Every episode starts with a seed of its own, every action is logged before it is sent, and what comes back is
hashed. A snapshot is therefore (episode, actions, digest) per environment, and restoring is a reset and a replay
(correctness.md §4.1): exact for any environment that is deterministic given its seed and actions (tier 2).

Everything that an environment returns is checked and copied before anybody else sees it (§6, CT21, CT37): a fault
is one sentence with env, episode, seed and step, and a `repro` that runs it again.

An environment may keep its episode and yet end the learner's (a lost life in an Atari game), or pay the learner a
reward that is not the reported one (clipping). It says so in `info["polyak"]`, a dict with any of `reward` (float),
`terminated` (True) and `obs` (what to act on next, where it differs from the returned successor). Log, digest and
reported statistics keep to the five returned values.
"""

import contextlib
import math
import time
from collections.abc import Callable, Mapping
from hashlib import blake2b
from typing import Any, NamedTuple

import numpy as np

from polyak.envs.gymspaces import (
    ActionLeaf,
    Array,
    ObsLeaf,
    first_fault,
    gym_leaves,
    nested,
    our_space,
    part,
    random_actions,
    structured,
)
from polyak.envs.watchdog import WATCHDOG
from polyak.errors import EnvError, PolyakError
from polyak.spaces import describe

DEADLINE_S = 60.0
_REAL = (int, float, np.integer, np.floating)
_FLAG = (bool, np.bool_)
# The MuJoCo warnings after which `step` has silently reset or skipped the simulation (§6).
_TELEPORTS = ("mjWARN_BADQPOS", "mjWARN_BADQVEL", "mjWARN_BADQACC", "mjWARN_BADCTRL")


class Step(NamedTuple):
    """One step of N environments: fresh numpy arrays that share no memory with any environment.

    obs: [N, ...] what to act on next (after a reset where the episode ended); reward: float32 [N], the learner's;
    next_obs: [N, ...] the true successor; terminated, truncated: bool [N], never both.
    """

    obs: Any
    reward: Array
    next_obs: Any
    terminated: Array
    truncated: Array


class Episode(NamedTuple):
    """A finished episode in the environment's own raw rewards; `ret` is their float64 sum, `success` NaN if unknown."""

    env: int
    episode: int
    seed: int
    ret: float
    length: int
    success: float


class Tier(NamedTuple):
    """How exactly an environment resumes: 1 native state, 2 replay, 3 from the next episode on, with the reason."""

    number: int
    reason: str = ""


class Proof(NamedTuple):
    """What trying an environment out has shown: its tier, and the seconds that a step takes."""

    tier: Tier
    step_s: float


class EnvFault(EnvError):
    """An environment broke its contract. `repro`: env, kwargs, seed, actions, step and error, to run it again."""

    def __init__(self, message: str, repro: dict[str, Any]) -> None:
        EnvError.__init__(self, message)
        self.repro = repro


def episode_seed(seed: int, env: int, episode: int, stream: str = "train") -> int:
    """The reset seed of one episode, 0 … 2³²−1: 4 bytes of BLAKE2b, so that no two episodes of a run are neighbours."""
    name = f"{seed}/{env}/{episode}" if stream == "train" else f"{seed}/{stream}/{env}/{episode}"
    return int.from_bytes(blake2b(name.encode(), digest_size=4).digest(), "little")


def reward_of(reward: Any) -> float | None:
    """A finite reward as a float, or None for what is not one (an array, a bool, a string, NaN)."""
    if isinstance(reward, np.ndarray) and reward.ndim == 0:
        reward = reward[()]
    if isinstance(reward, _REAL) and not isinstance(reward, bool) and math.isfinite(reward):
        return float(reward)
    return None


def success_of(info: Mapping[str, Any]) -> float:
    """`is_success` or `success` of an info as 0 … 1, NaN where it says nothing."""
    value = info.get("is_success", info.get("success"))
    return float(value) if isinstance(value, (bool, np.bool_, *_REAL)) else math.nan


def _unwrapped(env: Any) -> Any:
    return getattr(env, "unwrapped", env)


class HostVector:
    """N single environments with the Gymnasium interface (reset/step), stepped one after another.

    Args:
        make: makes one environment; called `n_envs` times and must give a new one each time.
        n_envs: N.
        seed: the run's seed; every episode's seed follows from (seed, stream, env, episode).
        stream: "train" or "eval": disjoint seeds, so that evaluation sees episodes of its own.
        first: the number of the first of them: a worker process has a part of a run's environments.
        name: the environment's id in messages.
        kwargs: what `make` was made with, for `repro`.
        frames: k if observations are k frames stacked on the last axis, else 0.
        tier: known exactness; None proves it here, with two environments of its own (about 400 steps).
        owned: whether `close` closes the environments.
        deadline: seconds that one call may take before the watchdog ends the process; 0 switches it off.

    Errors:
        PolyakError: the factory gives the same environment twice, or a space is not supported.
        EnvFault: an environment raised or broke its contract in `reset`, `step` or `restore`.
    """

    def __init__(
        self,
        make: Callable[[], Any],
        n_envs: int,
        seed: int,
        stream: str = "train",
        *,
        first: int = 0,
        name: str = "environment",
        kwargs: Mapping[str, Any] | None = None,
        frames: int = 0,
        tier: Tier | None = None,
        deadline: float = DEADLINE_S,
        owned: bool = True,
    ) -> None:
        if n_envs < 1:
            raise PolyakError(f"n_envs is {n_envs}; it must be at least 1")
        self.name, self.n_envs, self.seed, self.stream = name, n_envs, seed, stream
        self.first, self.frames, self.kwargs, self.deadline = first, frames, dict(kwargs or {}), deadline
        self.notices: list[str] = []
        self._owned = owned
        self._envs: list[Any] = [make() for _ in range(n_envs)]
        if len({id(_unwrapped(env)) for env in self._envs}) < n_envs:
            raise PolyakError(
                f"the factory of {name} returned the same environment twice; with n_envs={n_envs} it must make a new "
                "one at each call (pass `lambda: MyEnv()`, not `lambda: env`)"
            )
        self._steps = [env.step for env in self._envs]
        self._open_spaces()
        self._open_records()
        self.exactness = prove(make, name=name, deadline=deadline).tier if tier is None else tier
        WATCHDOG.watch(self)

    # ---- construction

    def _open_spaces(self) -> None:
        first = self._envs[0]
        self._gym_spaces = (first.observation_space, first.action_space)
        for i, env in enumerate(self._envs):
            if (env.observation_space, env.action_space) != self._gym_spaces:
                raise PolyakError(f"{self.name}: the spaces of environment {i} differ from those of environment 0")
        self.obs_space = our_space(first.observation_space, self.name)
        self.action_space = our_space(first.action_space, self.name, action=True)
        self._obs = [ObsLeaf(p, s, self.n_envs) for p, s in gym_leaves(first.observation_space, self.name)]
        self._actions = [ActionLeaf(p, s) for p, s in gym_leaves(first.action_space, self.name)]
        self._flat_obs = self._obs[0].put if self._obs[0].path == () else None
        self._flat_action = self._actions[0].path == ()
        self._action_sizes = [1 if a.shape else 0 for a in self._actions]

    def _open_records(self) -> None:
        n = self.n_envs
        # What the digest covers besides the observation: reward, terminated, truncated, packed.
        self._tail = np.zeros(n, np.dtype([("reward", "<f8"), ("terminated", "?"), ("truncated", "?")]))
        self._reward, self._terminated, self._truncated = (self._tail[k] for k in ("reward", "terminated", "truncated"))
        self._tail_bytes = [memoryview(self._tail.view(np.uint8).reshape(n, -1)[i]) for i in range(n)]
        self._hashed = [[*(leaf.bytes[i] for leaf in self._obs), self._tail_bytes[i]] for i in range(n)]
        self._logs = [np.zeros((64, n, *a.shape), a.dtype) for a in self._actions]
        self._t = 0  # rows of the log in use
        self._start = [0] * n  # the log row of each env's first action in its present episode
        self._episode = [0] * n
        self._seeds = [0] * n
        self._ret = [0.0] * n
        self._success = [math.nan] * n
        self._base = [bytes(16)] * n  # the chain up to the present episode
        self._hash = [blake2b(digest_size=16) for _ in range(n)]
        self._done: list[Episode] = []
        self._signals: dict[int, Mapping[str, Any]] = {}
        self._warnings: list[Array | None] = [None] * n
        self._mujoco = False
        self._busy, self._ticks, self._at, self._call_name = False, 0, 0, "reset"
        self._ready = False

    # ---- the three verbs

    def reset(self) -> Any:
        """Starts episode 0 of every environment and returns obs [N, ...]; what ran before is forgotten."""
        self._t, self._done = 0, []
        for i in range(self.n_envs):
            self._base[i] = bytes(16)
            self._begin(i, 0)
        self._refuse_unsound("reset")
        self._ready = True
        return self._observation()

    def step(self, action: Any) -> Step:
        """Sends one action to each environment; resets those whose episode ended.

        Args:
            action: [N, ...] in the agent's view (a bounded Box is [−1, 1], clipped), nested as the action space is.

        Errors:
            EnvError: the action has the wrong shape, is not finite or out of range. EnvFault: see the class.
        """
        row = self._log_action(action)
        self._signals.clear()
        ended = [i for i in range(self.n_envs) if self._advance(i, row)]
        self._refuse_unsound("step")
        self._chain()
        terminated, truncated = self._terminated.copy(), self._truncated.copy()
        reward = self._reward.astype(np.float32)
        next_obs = self._observation()
        if ended:
            for i in ended:
                self._finish(i)
                self._begin(i, self._episode[i] + 1)
            self._refuse_unsound("reset")
        obs = self._observation()
        if self._signals:
            self._apply_signals(obs, reward, terminated, truncated)
        return Step(obs, reward, next_obs, terminated, truncated)

    def episodes(self) -> list[Episode]:
        """The episodes that finished since the last call, in the order in which they did."""
        done, self._done = self._done, []
        return done

    def close(self) -> None:
        """Closes every environment; the first error is raised after all have been tried."""
        WATCHDOG.forget(self)
        self._ready = False
        errors: list[Exception] = []
        for env in self._envs if self._owned else []:
            try:
                env.close()
            except Exception as error:
                errors.append(error)
        if errors:
            raise EnvError(f"{self.name} raised in close(): {type(errors[0]).__name__}: {errors[0]}") from errors[0]

    def replace_env(self, i: int, wrapper: Callable[[Any], Any]) -> Any:
        """Puts `wrapper(env)` in the place of environment i and returns it: how `check_env` watches one."""
        self._envs[i] = wrapper(self._envs[i])
        self._steps[i] = self._envs[i].step
        return self._envs[i]

    def render(self, env: int = 0) -> Any:
        """What environment `env` renders now: an RGB array [H, W, 3] uint8, or None in a window."""
        return self._envs[env].render()

    # ---- one environment

    def _begin(self, i: int, episode: int) -> None:
        """Resets environment i into the given episode; its row holds the first observation, its chain the digest."""
        self._episode[i], self._start[i] = episode, self._t
        self._seeds[i] = seed = episode_seed(self.seed, self.first + i, episode, self.stream)
        self._ret[i], self._success[i] = 0.0, math.nan
        self._at, self._call_name = i, "reset"
        self._ticks += 1
        self._busy = True
        try:
            result = self._envs[i].reset(seed=seed)
        except (Exception, SystemExit) as error:
            raise self._fault(i, f"reset raised {_error_text(error)}") from error
        finally:
            self._busy = False
        if type(result) is not tuple or len(result) != 2 or not isinstance(result[1], Mapping):
            raise self._fault(i, f"reset returned {_kind(result)}, not (obs, info)")
        wrong = self._flat_obs(i, result[0]) if self._flat_obs is not None else self._put_nested(i, result[0])
        if wrong:
            raise self._fault(i, f"{wrong} in reset")
        self._refuse_new_spaces(i)
        self._reward[i], self._terminated[i], self._truncated[i] = 0.0, False, False
        self._hash[i] = blake2b(self._base[i], digest_size=16)
        for row in self._hashed[i]:
            self._hash[i].update(row)
        if self._ticks <= self.n_envs:
            self._find_warnings(i)

    def _advance(self, i: int, row: int) -> bool:
        """Sends the logged action of `row` to environment i and keeps what comes back; whether the episode ended."""
        self._at, self._call_name = i, "step"
        self._ticks += 1
        self._busy = True
        try:
            result = self._steps[i](self._sendable(i, row))
        except (Exception, SystemExit) as error:
            raise self._fault(i, f"step raised {_error_text(error)}") from error
        finally:
            self._busy = False
        if type(result) is not tuple or len(result) != 5:
            raise self._fault(i, f"step returned {_kind(result)}, not (obs, reward, terminated, truncated, info)")
        obs, reward, terminated, truncated, info = result
        if self._mujoco:
            self._refuse_teleport(i)
        wrong = self._flat_obs(i, obs) if self._flat_obs is not None else self._put_nested(i, obs)
        if wrong:
            raise self._fault(i, f"{wrong} in step")
        if type(reward) is not float or not math.isfinite(reward):
            reward = self._scalar(i, reward)
        if type(terminated) is not bool or type(truncated) is not bool:
            self._refuse_flags(i, terminated, truncated)
        if type(info) is not dict and not isinstance(info, Mapping):
            raise self._fault(i, f"info is {_kind(info)}, not a dict, in step")
        self._reward[i] = reward
        self._terminated[i] = terminated
        self._truncated[i] = truncated and not terminated
        self._ret[i] += reward
        if info and "polyak" in info:
            self._signals[i] = info["polyak"]
        if terminated or truncated:
            self._success[i] = success_of(info)
            return True
        return False

    def _sendable(self, i: int, row: int) -> Any:
        """A copy of a logged action for environment i, which may do to it what it likes."""
        if self._flat_action:
            logged = self._logs[0][row, i]
            return logged.copy() if self._actions[0].shape else logged
        parts = [log[row, i].copy() for log in self._logs]
        return structured(self._gym_spaces[1], iter(parts))

    def _refuse_new_spaces(self, i: int) -> None:
        env = self._envs[i]
        for name, known in zip(("observation_space", "action_space"), self._gym_spaces, strict=True):
            space = getattr(env, name)
            if space is not known and space != known:
                raise self._fault(i, f"its {name} changed from {known} to {space} in reset")

    def _put_nested(self, i: int, obs: Any) -> str:
        for leaf in self._obs:
            try:
                value = part(obs, leaf.path)
            except (LookupError, TypeError):
                return f"observation is {_kind(obs)} without {leaf.name!r}"
            wrong = leaf.put(i, value)
            if wrong:
                return wrong
        return ""

    def _scalar(self, i: int, reward: Any) -> float:
        number = reward_of(reward)
        if number is None:
            raise self._fault(i, f"reward is {_kind(reward)}, not a finite number, in step")
        return number

    def _refuse_flags(self, i: int, terminated: Any, truncated: Any) -> None:
        for name, flag in (("terminated", terminated), ("truncated", truncated)):
            if not isinstance(flag, _FLAG):
                raise self._fault(i, f"{name} is {_kind(flag)}, not a bool, in step")

    def _finish(self, i: int) -> None:
        who, length = self.first + i, self._t - self._start[i]
        self._done.append(Episode(who, self._episode[i], self._seeds[i], self._ret[i], length, self._success[i]))
        self._base[i] = self._hash[i].digest()

    # ---- all environments

    def _log_action(self, action: Any) -> int:
        """Checks, converts and logs the actions of this step; the row of the log."""
        if not self._ready:
            raise PolyakError(f"{self.name}: call reset() before step()")
        if self._t == len(self._logs[0]):
            self._free_rows()
        try:
            for leaf, log in zip(self._actions, self._logs, strict=True):
                log[self._t] = leaf.sent(action if self._flat_action else part(action, leaf.path), self.n_envs)
        except (LookupError, TypeError) as error:
            wanted = describe(self.action_space)
            raise EnvError(f"{self.name}: the action is not nested as {wanted} is (seed {self.seed})") from error
        except ValueError as error:
            at = ", ".join(f"{e}/{self._t - s}" for e, s in zip(self._episode[:4], self._start[:4], strict=True))
            raise EnvError(
                f"{self.name}: {error}; nothing was sent (seed {self.seed}; episode/step of the first ones: {at})"
            ) from error
        self._t += 1
        return self._t - 1

    def _free_rows(self) -> None:
        """Drops the log of finished episodes, or doubles it where the episodes in flight need all of it."""
        first = min(self._start)
        if first < self._t // 2:
            self._logs = [np.concatenate([log, np.zeros_like(log)]) for log in self._logs]
            return
        for log in self._logs:
            log[: self._t - first] = log[first : self._t].copy()
        self._t -= first
        self._start = [start - first for start in self._start]

    def _observation(self) -> Any:
        if self._flat_obs is not None:
            return self._obs[0].out()
        return nested(self.obs_space, iter([leaf.out() for leaf in self._obs]))

    def _refuse_unsound(self, call: str) -> None:
        fault = first_fault(self._obs, self.name, self.notices)
        if fault is not None:
            i, clause = fault
            raise self._fault(i, f"{clause} in {call}")

    def _chain(self) -> None:
        for chain, rows in zip(self._hash, self._hashed, strict=True):
            for row in rows:
                chain.update(row)

    def _apply_signals(self, obs: Any, reward: Array, terminated: Array, truncated: Array) -> None:
        """The learner's own reward, end and next observation, where an environment gives them (module docstring)."""
        for i, signal in self._signals.items():
            reward[i] = signal.get("reward", reward[i])
            if terminated[i] or truncated[i]:
                continue
            terminated[i] = signal.get("terminated", False)
            if "obs" in signal:
                obs[i] = signal["obs"]

    # ---- faults

    def _fault(self, i: int, what: str) -> EnvFault:
        step = self._t - self._start[i]
        actions = [log[self._start[i] : self._t, i] for log in self._logs]
        last = blake2b(b"".join(a[-1:].tobytes() for a in actions), digest_size=4).hexdigest()
        message = (
            f"{self.name}: environment {self.first + i}, episode {self._episode[i]}, seed {self._seeds[i]}, "
            f"step {step}: {what}" + (f" (action {last})" if step else "")
        )
        repro: dict[str, Any] = {
            "env": self.name,
            "kwargs": self.kwargs,
            "seed": self._seeds[i],
            "index": self.first + i,
            "episode": self._episode[i],
            "step": step,
            "actions": [structured(self._gym_spaces[1], iter(row)) for row in _lists(actions, step)],
            "error": what,
        }
        self._ready = False
        return EnvFault(message, repro)

    def _find_warnings(self, i: int) -> None:
        """Remembers where MuJoCo counts its warnings, if this is a MuJoCo environment."""
        data: Any = getattr(_unwrapped(self._envs[i]), "data", None)
        if type(data).__name__ == "MjData":
            # A view of MuJoCo's own memory, so that one count_nonzero per step reads it.
            self._warnings[i] = data.warning.number
            self._mujoco = True

    def _refuse_teleport(self, i: int) -> None:
        counts = self._warnings[i]
        if counts is None or not np.count_nonzero(counts):
            return
        import mujoco

        kinds: Any = getattr(mujoco, "mjtWarning")  # noqa: B009  mujoco's stubs do not know it
        names = [name for name in _TELEPORTS if counts[getattr(kinds, name)]]
        if names:
            raise self._fault(i, f"MuJoCo reset the simulation inside step ({', '.join(names)}): it is unstable")

    # ---- the watchdog's view

    def pulse(self) -> tuple[bool, int]:
        """For the watchdog: whether a call is under way, and its number."""
        return self._busy, self._ticks

    def where(self) -> str:
        """For the watchdog: which call is under way."""
        i = self._at
        step = self._t - self._start[i]
        return (
            f"{self.name}: environment {self.first + i}, episode {self._episode[i]}, seed {self._seeds[i]}, "
            f"step {step}, in {self._call_name}"
        )

    # ---- snapshots

    @property
    def tier(self) -> int:
        """1, 2 or 3: how exactly this environment resumes (correctness.md §4.3); `exactness` has the reason."""
        return self.exactness.number

    def digest(self) -> list[str]:
        """Per environment, BLAKE2b-16 over all observations, rewards and flags since `reset`."""
        return [chain.hexdigest() for chain in self._hash]

    def snapshot(self) -> dict[str, Any]:
        """Where every environment is: JSON-able scalars and numpy arrays under flat names; `restore` reads it."""
        lengths = [self._t - start for start in self._start]
        arrays = {
            f"actions/{leaf.name}": np.concatenate([log[s : self._t, i] for i, s in enumerate(self._start)])
            for leaf, log in zip(self._actions, self._logs, strict=True)
        }
        return {
            "version": 1,
            "tier": self.tier,
            "seed": self.seed,
            "stream": self.stream,
            "n_envs": self.n_envs,
            "episode": np.asarray(self._episode, np.int64),
            "length": np.asarray(lengths, np.int64),
            "base": np.frombuffer(b"".join(self._base), np.uint8).reshape(-1, 16).copy(),
            "digest": np.frombuffer(b"".join(h.digest() for h in self._hash), np.uint8).reshape(-1, 16).copy(),
            "finished": np.asarray(self._done, np.float64).reshape(-1, len(Episode._fields)),
            **arrays,
        }

    def restore(self, snapshot: Mapping[str, Any]) -> Any:
        """Puts every environment where the snapshot left it and returns obs [N, ...].

        Tiers 1 and 2 reset and replay the logged actions and compare the digests. Tier 3 cannot: its episodes in
        flight are dropped (no end, no statistics), the next ones begin, and `notices` says so.

        Errors:
            PolyakError: the snapshot is of another vector. EnvFault: the replay went differently.
        """
        self._refuse_foreign(snapshot)
        lengths = [int(k) for k in snapshot["length"]]
        self._done = [episode_of(row) for row in snapshot["finished"]]
        self._base = [row.tobytes() for row in np.asarray(snapshot["base"], np.uint8)]
        episodes = [int(e) for e in snapshot["episode"]]
        if int(snapshot["tier"]) == 3 or self.tier == 3:
            return self._restart(episodes, lengths)
        self._load_log(snapshot, lengths)
        self._signals.clear()
        for i, (episode, length) in enumerate(zip(episodes, lengths, strict=True)):
            self._replay(i, episode, length, np.asarray(snapshot["digest"][i], np.uint8).tobytes())
        self._refuse_unsound("replay")
        self._ready = True
        obs = self._observation()
        for i, signal in self._signals.items():
            if "obs" in signal:
                obs[i] = signal["obs"]
        return obs

    def _refuse_foreign(self, snapshot: Mapping[str, Any]) -> None:
        mine = {"version": 1, "seed": self.seed, "stream": self.stream, "n_envs": self.n_envs}
        for key, value in mine.items():
            if snapshot.get(key) != value:
                raise PolyakError(f"the snapshot of {self.name} has {key} {snapshot.get(key)!r}, this vector {value!r}")
        for leaf in self._actions:
            array = snapshot.get(f"actions/{leaf.name}")
            total = int(np.sum(snapshot["length"]))
            if not isinstance(array, np.ndarray) or array.shape != (total, *leaf.shape) or array.dtype != leaf.dtype:
                raise PolyakError(f"the snapshot of {self.name} does not hold the actions of {leaf.name!r}")

    def _restart(self, episodes: list[int], lengths: list[int]) -> Any:
        self._t = 0
        for i, episode in enumerate(episodes):
            self._begin(i, episode + (lengths[i] > 0))
        self._refuse_unsound("reset")
        self._ready = True
        dropped = sum(k > 0 for k in lengths)
        self.notices.append(
            f"{self.name} does not replay ({self.exactness.reason or 'tier 3'}): {dropped} episodes in flight "
            f"({sum(lengths)} steps) were dropped and new ones begun; the run is not exact from here on"
        )
        return self._observation()

    def _load_log(self, snapshot: Mapping[str, Any], lengths: list[int]) -> None:
        """Lays the logged actions so that all episodes in flight end at the same row, as they do in a live log."""
        self._t = max(lengths)
        capacity = max(64, 1 << self._t.bit_length())
        self._logs = [np.zeros((capacity, self.n_envs, *a.shape), a.dtype) for a in self._actions]
        ends = np.cumsum(lengths)
        for leaf, log in zip(self._actions, self._logs, strict=True):
            actions = snapshot[f"actions/{leaf.name}"]
            for i, length in enumerate(lengths):
                log[self._t - length : self._t, i] = actions[ends[i] - length : ends[i]]

    def _replay(self, i: int, episode: int, length: int, digest: bytes) -> None:
        end = self._t
        self._t -= length  # `_begin` notes where the episode's log starts, `_fault` how far it came
        self._begin(i, episode)
        for row in range(end - length, end):
            self._t = row + 1
            self._signals.pop(i, None)
            ended = self._advance(i, row)
            for piece in self._hashed[i]:
                self._hash[i].update(piece)
            if ended:
                raise self._fault(i, "the replay ended here, the recorded episode did not; it does not replay exactly")
        if self._hash[i].digest() != digest:
            raise self._fault(i, "the digest of its replay differs from the recorded one; it does not replay exactly")


def _error_text(error: BaseException) -> str:
    text = str(error).strip().replace("\n", " ")
    return f"{type(error).__name__}: {text[:300]}" if text else type(error).__name__


def _kind(value: Any) -> str:
    """A short description of a wrong value."""
    if isinstance(value, tuple):
        return f"a {len(value)}-tuple"
    text = repr(value).replace("\n", " ")
    return f"{type(value).__name__} ({text[:40]}{'…' if len(text) > 40 else ''})"


def episode_of(row: Array) -> Episode:
    """An episode from its row in a snapshot."""
    env, episode, seed, ret, length, success = (float(x) for x in row)
    return Episode(int(env), int(episode), int(seed), ret, int(length), success)


def _lists(actions: list[Array], steps: int) -> list[list[Any]]:
    """[leaf][step] arrays as JSON-able [step][leaf] lists."""
    columns = [a.tolist() for a in actions]
    return [[column[k] for column in columns] for k in range(steps)]


# ---- tiers

PROOF_STEPS = 120
_PROOF_SEED = 20_130


def prove(make: Callable[[], Any], *, name: str = "environment", deadline: float = DEADLINE_S) -> Proof:
    """Tier 2 if equal seeds and actions give equal bits, in a fresh environment and in one that was used before.

    120 random actions are played three times: in a new environment, in the same one after five other episodes (reset
    purity), and in a second new one. Tier 3 names the first difference. An environment that fails on the way is tier 3;
    its fault is not raised here, because training will meet it and can say in which of its own episodes.

    Args:
        make: makes the environment, wrappers included, since these must replay too.
    """
    envs = [make(), make()]
    # An instance, or a factory of one: there is no fresh environment to compare with, and nothing of ours to close.
    shared = _unwrapped(envs[0]) is _unwrapped(envs[1])
    first, *others = [_lone(env, name, deadline) for env in envs[: 1 if shared else 2]]
    took: list[float] = []

    def played(vector: HostVector) -> list[tuple[str, Step | None]]:
        began = time.perf_counter()
        trace = _trace(vector, PROOF_STEPS)
        took.append((time.perf_counter() - began) / PROOF_STEPS)
        return trace

    reason = ""
    try:
        expected = played(first)
        for _ in range(5):
            first.seed += 1
            _trace(first, 10)
        first.seed = _PROOF_SEED
        reason = _difference(expected, played(first), "in the same environment after other episodes")
        for other in others:
            reason = reason or _difference(expected, played(other), "in a fresh environment")
    except EnvError as fault:
        reason = f"its proof stopped: {fault}"
    finally:
        for vector in [] if shared else [first, *others]:
            with contextlib.suppress(EnvError):  # training closes it again and says so
                vector.close()
    # The least of them: the first trace also pays for what is loaded once.
    return Proof(Tier(3, f"tier 3: env 0, {reason}") if reason else Tier(2), min(took, default=0.0))


def _lone(env: Any, name: str, deadline: float) -> HostVector:
    return HostVector(lambda: env, 1, _PROOF_SEED, "proof", name=name, tier=Tier(2), deadline=deadline)


def _trace(vector: HostVector, steps: int) -> list[tuple[str, Step | None]]:
    """The digest and the outcome after reset and after each of `steps` random actions (the same ones in each call)."""
    rng = np.random.default_rng(_PROOF_SEED)
    obs = vector.reset()
    trace: list[tuple[str, Step | None]] = [(vector.digest()[0], None)]
    for _ in range(steps):
        mask = obs.get("action_mask") if isinstance(obs, dict) else None
        step = vector.step(random_actions(vector.action_space, 1, rng, mask))
        trace.append((vector.digest()[0], step))
        obs = step.obs
    return trace


def _difference(a: list[tuple[str, Step | None]], b: list[tuple[str, Step | None]], where: str) -> str:
    """ "" for equal traces, else a clause with the first step that differs and its field."""
    for k, ((left, one), (right, two)) in enumerate(zip(a, b, strict=True)):
        if left == right:
            continue
        field = "observation"
        if one is not None and two is not None:
            for name in ("reward", "terminated", "truncated"):
                if getattr(one, name)[0] != getattr(two, name)[0]:
                    field = name
        return f"first difference at step {k}, field {field} ({where})"
    return ""
