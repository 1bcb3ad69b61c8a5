"""Vector environments that are not ours, in Gymnasium's three autoreset modes, and EnvPool.

Only this file and `host.py` know about autoreset. Whatever the mode, a `Step` holds N real transitions whose
`next_obs` is the true successor, and `obs` starts the next episode where one ended:

    SAME_STEP   the environment has reset itself; the successor is in `info["final_obs"]`.
    DISABLED    we reset the ended ones at once, by `options={"reset_mask": …}`.
    NEXT_STEP   left alone, the next step would ignore an action and return a reset: a fake transition that, with N
                fixed rows per step, on-policy code could neither use nor leave out. So we do not let it happen: the
                ended ones are reset at once by the same mask, which Gymnasium's Sync and Async vectors, ALE's and
                EnvPool take in this mode as well. A NEXT_STEP vector that takes no mask is refused with a sentence.
                Nothing has to be queued, and the observation that an action answers is always the newest one.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from polyak import spaces
from polyak.envs.gymspaces import (
    ActionLeaf,
    Array,
    ObsLeaf,
    first_fault,
    gym_leaves,
    nested,
    our_space,
    part,
    structured,
)
from polyak.envs.host import DEADLINE_S, EnvFault, Episode, Step, Tier, episode_of, episode_seed
from polyak.envs.watchdog import WATCHDOG
from polyak.errors import EnvError, PolyakError

# In NEXT_STEP mode, the vector envs that are known to reset only the environments of `reset_mask`.
_MASKED = ("SyncVectorEnv", "AsyncVectorEnv", "AtariVectorEnv", "EnvPool")
_NO_EPISODE = -1


class ForeignVector:
    """A vector environment of somebody else behind the interface of `HostVector`.

    Tier 3: its episodes cannot be replayed, so `restore` begins new ones and says so in `notices`. Where it takes a
    reset mask, every episode has a seed of its own, as in `HostVector`; in SAME_STEP mode only the first ones do
    (`Episode.seed` is −1 for the others).

    Args:
        env: a `gymnasium.vector.VectorEnv`, ALE's `AtariVectorEnv` or an `EnvPool`.
        seed, stream: as in `HostVector`.
        owned: whether `close` closes it.

    Errors:
        PolyakError: an autoreset mode or space that cannot be adapted. EnvFault: as in `HostVector`.
    """

    def __init__(
        self,
        env: Any,
        seed: int,
        stream: str = "train",
        *,
        name: str = "vector environment",
        deadline: float = DEADLINE_S,
        owned: bool = True,
    ) -> None:
        self.env, self.seed, self.stream, self.name = env, seed, stream, name
        self.n_envs, self.deadline, self._owned = int(env.num_envs), deadline, owned
        self.notices: list[str] = []
        self.exactness = Tier(3, "tier 3: a foreign vector environment")
        self._mode = self._autoreset_mode()
        observation, action = env.single_observation_space, env.single_action_space
        self._leaves = [ObsLeaf(path, space, self.n_envs) for path, space in gym_leaves(observation, name)]
        self._actions = [ActionLeaf(path, space) for path, space in gym_leaves(action, name)]
        self.own_action_space = action
        self.obs_space = our_space(observation, name)
        self.action_space = our_space(action, name, action=True)
        self.frames = 0
        if type(env.unwrapped).__name__ == "AtariVectorEnv" and len(observation.shape) == 3:
            self._stack_last()
        n = self.n_envs
        self._episode, self._length, self._ret = [0] * n, np.zeros(n, np.int64), np.zeros(n)
        self._seeds = [_NO_EPISODE] * n
        self._done: list[Episode] = []
        self._busy, self._ticks, self._call_name, self._ready = False, 0, "reset", False
        WATCHDOG.watch(self)

    def _autoreset_mode(self) -> str:
        mode = self.env.metadata.get("autoreset_mode")
        mode = str(getattr(mode, "name", mode)).upper()
        if mode not in ("NEXT_STEP", "SAME_STEP", "DISABLED"):
            raise PolyakError(
                f"{self.name} does not say how it resets: its metadata['autoreset_mode'] is {mode}; set it to a "
                "gymnasium.vector.AutoresetMode"
            )
        if mode == "NEXT_STEP" and type(self.env.unwrapped).__name__ not in _MASKED:
            raise PolyakError(
                f"{self.name} ({type(self.env.unwrapped).__name__}) resets on the next step, which puts a fake "
                "transition into the data; make it with autoreset_mode=SAME_STEP or DISABLED, or pass its id"
            )
        return mode

    def _stack_last(self) -> None:
        """ALE stacks frames first, [k, H, W]; ours are last."""
        self.frames, height, width = self.env.single_observation_space.shape
        self.obs_space = spaces.Box(0, 255, (height, width, self.frames), np.uint8)

    @property
    def tier(self) -> int:
        """Always 3: see `exactness`."""
        return self.exactness.number

    # ---- the three verbs

    def reset(self) -> Any:
        """Starts episode 0 of every environment and returns obs [N, ...]."""
        self._episode, self._done = [0] * self.n_envs, []
        return self._start_all()

    def _start_all(self) -> Any:
        n = self.n_envs
        self._seeds = [episode_seed(self.seed, i, self._episode[i], self.stream) for i in range(n)]
        self._length[:], self._ret[:] = 0, 0.0
        obs, _ = self._call("reset", lambda: self.env.reset(seed=self._seed_argument(list(range(n)))), 2)
        self._take(obs, list(range(n)), "reset")
        self._ready = True
        return self._observation()

    def step(self, action: Any) -> Step:
        """As `HostVector.step`; the actions of all N are sent at once."""
        sent = self._sendable(action)
        obs, reward, terminated, truncated, info = self._call("step", lambda: self.env.step(sent), 5)
        everyone = list(range(self.n_envs))
        reward = self._rewards(reward)
        terminated = self._flags("terminated", terminated)
        truncated = self._flags("truncated", truncated) & ~terminated
        self._length += 1
        self._ret += reward
        self._take(obs, everyone, "step")
        ended = np.flatnonzero(terminated | truncated).tolist()
        if self._mode == "SAME_STEP" and ended:
            first = self._observation()
            for i in ended:
                self._put_final(i, info)
            self._refuse_unsound("step")
            next_obs = self._observation()
            for i in ended:
                self._finish(i, info)
            # The scratch rows hold final observations now; nothing reads them before the next step overwrites them.
            return Step(first, reward.astype(np.float32), next_obs, terminated, truncated)
        next_obs = self._observation()
        if ended:
            for i in ended:
                self._finish(i, info)
            self._reset_some(ended)
        return Step(self._observation(), reward.astype(np.float32), next_obs, terminated, truncated)

    def episodes(self) -> list[Episode]:
        """The episodes that finished since the last call."""
        done, self._done = self._done, []
        return done

    def close(self) -> None:
        """Closes the vector environment, unless it is the user's own instance."""
        WATCHDOG.forget(self)
        self._ready = False
        if self._owned:
            self.env.close()

    def render(self, env: int = 0) -> Any:
        """What environment `env` renders now."""
        return self.env.render()[env]

    # ---- ends

    def _reset_some(self, ended: list[int]) -> None:
        """Resets the ended environments only, each with its next episode's seed."""
        mask = np.zeros(self.n_envs, np.bool_)
        mask[ended] = True
        for i in ended:
            self._seeds[i] = episode_seed(self.seed, i, self._episode[i], self.stream)
        seed = self._seed_argument(ended)
        # A new dict each time: Gymnasium pops the mask from it.
        obs, _ = self._call("reset", lambda: self.env.reset(seed=seed, options={"reset_mask": mask}), 2)
        self._take(obs, ended, "reset")

    def _seed_argument(self, who: list[int]) -> Any:
        """Gymnasium takes one seed per environment; ALE an int32 array for those that are reset."""
        if type(self.env.unwrapped).__name__ == "AtariVectorEnv":
            return np.asarray([self._seeds[i] % 2**31 for i in who], np.int32)
        return list(self._seeds)

    def _put_final(self, i: int, info: Mapping[str, Any]) -> None:
        final = info.get("final_obs")
        if final is None:
            raise self._fault(i, "info has no 'final_obs' at an episode's end, as SAME_STEP needs")
        for leaf in self._leaves:
            # Gymnasium: an object array of single observations; others: batched arrays, nested as the space is.
            value = part(final, leaf.path)[i] if isinstance(final, (dict, tuple)) else part(final[i], leaf.path)
            wrong = leaf.put(i, np.asarray(value) if leaf.shape else value)
            if wrong:
                raise self._fault(i, f"{wrong} in info['final_obs']")

    def _finish(self, i: int, info: Mapping[str, Any]) -> None:
        final = info.get("final_info")
        success = _success(final if isinstance(final, Mapping) else info, i)
        length = int(self._length[i])
        self._done.append(Episode(i, self._episode[i], self._seeds[i], float(self._ret[i]), length, success))
        self._episode[i] += 1
        self._length[i], self._ret[i], self._seeds[i] = 0, 0.0, _NO_EPISODE

    # ---- what goes in and out

    def _sendable(self, action: Any) -> Any:
        if not self._ready:
            raise PolyakError(f"{self.name}: call reset() before step()")
        try:
            sent = [leaf.sent(part(action, leaf.path), self.n_envs) for leaf in self._actions]
        except (LookupError, TypeError, ValueError) as error:
            raise EnvError(f"{self.name}: {error}; nothing was sent (seed {self.seed})") from error
        return structured(self.own_action_space, iter(sent))

    def _call(self, name: str, call: Any, size: int) -> Any:
        self._call_name = name
        self._ticks += 1
        self._busy = True
        try:
            result = call()
        except (Exception, SystemExit) as error:
            raise self._fault(None, f"{name} raised {type(error).__name__}: {str(error)[:300]}") from error
        finally:
            self._busy = False
        if type(result) is not tuple or len(result) != size:
            raise self._fault(None, f"{name} returned {type(result).__name__}, not a {size}-tuple")
        return result

    def _take(self, obs: Any, who: list[int], call: str) -> None:
        """Copies rows `who` of a batch of observations, after their shapes and dtypes, and checks their values."""
        for leaf in self._leaves:
            try:
                batch = part(obs, leaf.path)
            except (LookupError, TypeError):
                raise self._fault(None, f"observation has no {leaf.name!r} in {call}") from None
            wrong = leaf.put_batch(batch, who)
            if wrong:
                raise self._fault(None, f"{wrong} in {call}")
        self._refuse_unsound(call)

    def _refuse_unsound(self, call: str) -> None:
        fault = first_fault(self._leaves, self.name, self.notices)
        if fault is not None:
            i, clause = fault
            raise self._fault(i, f"{clause} in {call}")

    def _rewards(self, reward: Any) -> Array:
        array = np.asarray(reward)
        if array.shape != (self.n_envs,) or array.dtype.kind not in "iuf":
            raise self._fault(None, f"reward is {array.dtype} of shape {array.shape}, not {self.n_envs} numbers")
        array = array.astype(np.float64)
        if not np.isfinite(array).all():
            i = int(np.flatnonzero(~np.isfinite(array))[0])
            raise self._fault(i, f"reward is {array[i]} in step")
        return array

    def _flags(self, name: str, flags: Any) -> Array:
        array = np.array(flags)
        if array.shape != (self.n_envs,) or array.dtype != np.bool_:
            raise self._fault(None, f"{name} is {array.dtype} of shape {array.shape}, not {self.n_envs} bools")
        return array

    def _observation(self) -> Any:
        parts = [leaf.out() for leaf in self._leaves]
        if self.frames:
            return np.ascontiguousarray(np.moveaxis(parts[0], 1, -1))
        return nested(self.obs_space, iter(parts))

    def _fault(self, i: int | None, what: str) -> EnvFault:
        self._ready = False
        who = "an environment" if i is None else f"environment {i}, episode {self._episode[i]}, seed {self._seeds[i]}"
        step = int(self._length.max() if i is None else self._length[i])
        message = f"{self.name}: {who}, step {step}: {what}"
        repro = {"env": self.name, "kwargs": {}, "seed": self.seed, "index": i, "step": step, "actions": []}
        return EnvFault(message, {**repro, "error": what})

    # ---- the watchdog's view

    def pulse(self) -> tuple[bool, int]:
        """For the watchdog: whether a call is under way, and its number."""
        return self._busy, self._ticks

    def where(self) -> str:
        """For the watchdog: which call is under way."""
        return (
            f"{self.name}: one of {self.n_envs} environments, episodes {self._episode[:8]}, seed {self.seed}, "
            f"steps {self._length[:8].tolist()}, in {self._call_name}"
        )

    # ---- snapshots

    def snapshot(self) -> dict[str, Any]:
        """The episode numbers and unread statistics; the episodes in flight cannot be kept (tier 3)."""
        return {
            "version": 1,
            "tier": 3,
            "seed": self.seed,
            "stream": self.stream,
            "n_envs": self.n_envs,
            "episode": np.asarray(self._episode, np.int64),
            "length": self._length.copy(),
            "finished": np.asarray(self._done, np.float64).reshape(-1, len(Episode._fields)),
        }

    def restore(self, snapshot: Mapping[str, Any]) -> Any:
        """Begins the episodes after those in flight, and says so in `notices`; returns obs [N, ...]."""
        mine = {"version": 1, "seed": self.seed, "stream": self.stream, "n_envs": self.n_envs}
        for key, value in mine.items():
            if snapshot.get(key) != value:
                raise PolyakError(f"the snapshot of {self.name} has {key} {snapshot.get(key)!r}, this vector {value!r}")
        dropped = np.asarray(snapshot["length"]) > 0
        self._episode = (np.asarray(snapshot["episode"]) + dropped).tolist()
        self._done = [episode_of(row) for row in snapshot["finished"]]
        self.notices.append(
            f"{self.name} is a foreign vector environment (tier 3): {int(dropped.sum())} episodes in flight "
            f"({int(np.sum(snapshot['length']))} steps) were dropped and new ones begun; the run is not exact any more"
        )
        return self._start_all()


def _success(info: Mapping[str, Any], i: int) -> float:
    for key in ("is_success", "success"):
        mask = info.get(f"_{key}")
        if key in info and (mask is None or mask[i]):
            return float(info[key][i])
    return math.nan


class EnvPool:
    """EnvPool's environments as a Gymnasium vector env that resets some of its environments on demand.

    EnvPool resets an ended environment at the step after its end, or when it is asked to: `reset(ids)`.

    Args:
        task: EnvPool's name of the environment.
        seed, stream: EnvPool takes one seed for all, drawn from these.
    """

    def __init__(self, task: str, n_envs: int, seed: int, stream: str, kwargs: Mapping[str, Any]) -> None:
        import envpool  # pyright: ignore[reportMissingImports]

        number = episode_seed(seed, 0, 0, stream) % 2**31
        self.pool = envpool.make(task, env_type="gymnasium", num_envs=n_envs, seed=number, **kwargs)
        self.num_envs, self.unwrapped = n_envs, self
        self.metadata = {"autoreset_mode": "NEXT_STEP"}
        self.single_observation_space = self.pool.observation_space
        self.single_action_space = self.pool.action_space
        self._obs: Any = None

    def reset(self, *, seed: Any = None, options: Mapping[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Resets all, or those of `options["reset_mask"]`; returns a batch of all N (the others' rows are zeros)."""
        if options is None:
            obs, _ = self.pool.reset()
            return obs, {}
        ids = np.flatnonzero(options["reset_mask"]).astype(np.int32)
        part_obs, _ = self.pool.reset(ids)
        return _scatter(part_obs, ids, self.num_envs), {}

    def step(self, action: Any) -> tuple[Any, Any, Any, Any, Any]:
        """One step of all N."""
        obs, reward, terminated, truncated, _ = self.pool.step(action)
        # EnvPool's info is nested by its own rules and copied by nobody here: its `is_success` would not be [N].
        return obs, reward, np.asarray(terminated, np.bool_), np.asarray(truncated, np.bool_), {}

    def close(self) -> None:
        """Ends EnvPool's threads."""
        self.pool.close()


def _scatter(batch: Any, ids: Array, n: int) -> Any:
    if isinstance(batch, Mapping):
        return {key: _scatter(value, ids, n) for key, value in batch.items()}
    full = np.zeros((n, *batch.shape[1:]), batch.dtype)
    full[ids] = batch
    return full
