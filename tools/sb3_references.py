"""Reference numbers from Stable-Baselines3 for tests/agents/test_references.py: tests/references/*.npz.

polyak and its tests need neither torch nor SB3. An interpreter that has them writes the files anew:

    python -m venv sb3 && sb3/bin/pip install torch stable-baselines3 && sb3/bin/python tools/sb3_references.py

Small agents get random weights and a fixed batch, and SB3's own `train` or `learn` runs on it. A file holds plain
arrays: `batch/…`, the parameters `before/…`, what the networks say of the batch `forward/…`; and for each setting of
the agent `<setting>/log/…` as SB3 logs it, `<setting>/gradient<k>/…` as the k-th step of a parameter's optimiser finds
it, and the parameters `<setting>/after/…`. Hidden layers of 8 and 7 and batches of 11 leave no transposition unseen.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any
from unittest import mock

import gymnasium as gym
import numpy as np
import torch
from gymnasium.spaces import Box, Discrete
from stable_baselines3 import A2C, DQN, PPO, SAC, TD3
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.vec_env import DummyVecEnv
from torch.optim.optimizer import register_optimizer_step_pre_hook

OUT = Path(__file__).parents[1] / "tests" / "references"
B, D, T = 11, 5, 6  # batch; numbers in an observation; steps of a rollout, in 3 worlds
SEEN = Box(-np.inf, np.inf, (D,))
ACTIONS = {"discrete": Discrete(3), "box": Box(-9.0, 9.0, (2,))}  # so wide that SB3 cuts no action of PPO and A2C
SQUASHED = Box(-1.0, 1.0, (2,))
LAYERS = [8, 7]
UNBOUNDED = 1e9  # a gradient's norm that is never reached
Arrays = dict[str, Any]

PPO_SETTINGS: dict[str, dict[str, Arrays]] = {
    "discrete": {"plain": {}, "bounded": {"max_grad_norm": 0.2}},
    "box": {"standardised": {"normalize_advantage": True, "ent_coef": 0.0}, "values_clipped": {"clip_range_vf": 0.3}},
}
SAC_SETTINGS: dict[str, Arrays] = {"learned": {"ent_coef": "auto_0.3"}, "fixed": {"ent_coef": 0.2}}


class Told(gym.Env):
    """A world whose observations and rewards are random numbers, and whose steps end as told: "t", "c" or "."."""

    def __init__(self, action: gym.Space, ends: str, seed: int) -> None:
        self.observation_space, self.action_space, self.ends = SEEN, action, ends
        self.rng, self.steps = np.random.default_rng(seed), []

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, Any]:
        self.obs = self.rng.normal(size=D).astype(np.float32)
        return self.obs, {}

    def step(self, action: Any) -> Any:
        end, reward = self.ends[len(self.steps)], float(np.float32(self.rng.normal()))
        seen, (self.obs, _) = self.obs, self.reset()
        names = ("obs", "action", "reward", "next_obs", "terminated", "truncated")
        self.steps.append(dict(zip(names, (seen, action, reward, self.obs, end == "t", end == "c"), strict=True)))
        return self.obs, reward, end == "t", end == "c", {}


def worlds(action: gym.Space, *ends: str) -> DummyVecEnv:
    """One for each string of ends; where only the spaces matter, one that is never stepped."""
    return DummyVecEnv([lambda e=e, k=k: Told(action, e, k) for k, e in enumerate(ends or ("",))])


def parameters(model: Any) -> dict[str, torch.Tensor]:
    """All parameters by name, those of targets and the temperature too."""
    named = dict(model.policy.named_parameters())
    learned = getattr(model, "log_ent_coef", None)
    return named if learned is None else named | {"log_ent_coef": learned}


def under(prefix: str, values: Arrays) -> Arrays:
    """Values as float32 arrays (integers and flags as they are), with a prefix to their names."""
    found = {}
    for name, value in values.items():
        value = value.detach().numpy().copy() if isinstance(value, torch.Tensor) else np.asarray(value)
        found[f"{prefix}/{name}"] = value.astype(np.float32) if value.dtype.kind == "f" else value
    return found


def begun(kind: Any, env: DummyVecEnv, spread: float, **fields: Any) -> Any:
    """An SB3 agent with random weights, the same for all settings of a kind; its targets are other networks."""
    model = kind("MlpPolicy", env, policy_kwargs={"net_arch": LAYERS}, seed=0, device="cpu", **fields)
    model.set_logger(Logger(None, []))
    rng = np.random.default_rng(0)
    with torch.no_grad():
        for p in model.policy.parameters():
            p.copy_(torch.as_tensor(spread * rng.normal(size=p.shape)))
    return model


def observed(model: Any, run: Callable[[], Any]) -> Arrays:
    """What `run` does to an agent: each optimiser's gradients, the parameters after, and what was logged."""
    names, found, steps = {id(p): name for name, p in parameters(model).items()}, {}, Counter()

    def note(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        for p in optimizer.param_groups[0]["params"]:
            steps[names[id(p)]] += 1
            found.update(under(f"gradient{steps[names[id(p)]]}", {names[id(p)]: p.grad}))

    hook = register_optimizer_step_pre_hook(note)
    run()
    hook.remove()
    logged = {k.removeprefix("train/"): float(v) for k, v in model.logger.name_to_value.items() if "train/" in k}
    return found | under("after", parameters(model)) | under("log", logged)


def kept(name: str, *parts: Arrays) -> None:
    """Write a file."""
    versions = [f"{package} {version(package)}" for package in ("stable-baselines3", "torch")]
    arrays: Arrays = {"versions": np.array(versions)}
    for part in parts:
        arrays |= part
    OUT.mkdir(exist_ok=True)
    np.savez(OUT / f"{name}.npz", **arrays)
    print(f"{name}.npz: {len(arrays)} arrays, {(OUT / f'{name}.npz').stat().st_size / 1000:.0f} kB, {versions}")


def settings(given: dict[str, Arrays], run: Callable[[Arrays], Arrays]) -> Iterator[Arrays]:
    """What `run` finds with the fields of each setting."""
    for name, fields in given.items():
        yield {f"{name}/{key}": value for key, value in run(fields).items()}


# ------------------------------------------------------------------------------------------------ PPO and A2C


def judged(model: Any, obs: Any, action: Any) -> Arrays:
    """What an actor-critic says of observations, and of actions that were taken there."""
    with torch.no_grad():
        obs = torch.as_tensor(obs)
        V, log_prob, entropy = model.policy.evaluate_actions(obs, torch.as_tensor(action))
        pi = model.policy.get_distribution(obs).distribution
        parts = {"p": pi.probs} if hasattr(pi, "probs") else {"mean": pi.mean, "std": pi.stddev}
        return parts | {"V": V[:, 0], "log_prob": log_prob, "entropy": entropy}


def ppo_minibatch(action: gym.Space, name: str) -> None:
    """One gradient step of PPO, with an old policy and old values that are some way off."""
    same: Arrays = {
        "n_steps": B, "batch_size": B, "n_epochs": 1, "ent_coef": 0.03, "vf_coef": 0.6, "normalize_advantage": False,
        "max_grad_norm": UNBOUNDED, "learning_rate": 0.01,
    }  # fmt: skip
    rng, first = np.random.default_rng(1), begun(PPO, worlds(action), 0.5, **same)
    obs = rng.normal(size=(B, D)).astype(np.float32)
    taken = rng.integers(0, 3, B) if isinstance(action, Discrete) else rng.normal(size=(B, 2)).astype(np.float32)
    forward = {k: v.numpy() for k, v in judged(first, obs, taken).items()}
    V, away = forward["V"], rng.uniform(-0.8, 0.8, B)
    # Returns lie beyond V as seen from the old V: clipping V then makes the error greater, not smaller, everywhere.
    G = V - np.sign(away) * rng.uniform(0.1, 2, B)
    batch = {"obs": obs, "action": taken, "log_prob": forward["log_prob"] + rng.uniform(-0.5, 0.5, B)}
    batch = under("batch", batch | {"value": V + away, "advantage": G - V - away, "return": G})

    def run(fields: Arrays) -> Arrays:
        model = begun(PPO, worlds(action), 0.5, **same | fields)
        into = model.rollout_buffer
        stored = ("observations", "actions", "log_probs", "values", "advantages", "returns")
        for attribute, array in zip(stored, batch.values(), strict=True):
            held = getattr(into, attribute)
            held[:] = array.reshape(held.shape)
        into.full = True
        return observed(model, model.train)

    parts = batch, under("before", parameters(first)), under("forward", forward)
    kept(f"ppo_{name}", *parts, *settings(PPO_SETTINGS[name], run))


def rollout(kind: Any, action: gym.Space, name: str, **fields: Any) -> None:
    """A whole update from a rollout in three worlds, whose last episodes go on, are cut and are over at its end."""
    env = worlds(action, "..t...", ".c...c", "...c.t")
    same = {"gamma": 0.9, "gae_lambda": 0.8, "ent_coef": 0.03, "vf_coef": 0.6, "normalize_advantage": False}
    model = begun(kind, env, 0.5, n_steps=T, max_grad_norm=UNBOUNDED, learning_rate=0.02, **same | fields)
    before = under("before", parameters(model))
    found = observed(model, lambda: model.learn(3 * T))
    steps = [world.steps for world in model.env.envs]
    batch = {k: np.stack([[steps[n][t][k] for n in range(3)] for t in range(T)]) for k in steps[0][0]}
    kept(name, under("batch", batch), before, {f"plain/{k}": v for k, v in found.items()})


# ------------------------------------------------------------------------------------------------ with a replay


def remembered(model: Any) -> Arrays:
    """A batch, put into the agent's replay, which from now on gives this batch and no other."""
    rng, space = np.random.default_rng(2), model.action_space
    ends = ["tc..."[i % 5] for i in range(B)]
    discrete = isinstance(space, Discrete)
    batch: Arrays = {
        "obs": rng.normal(size=(B, D)).astype(np.float32),
        "action": rng.integers(0, space.n, B) if discrete else rng.uniform(-1, 1, (B, 2)).astype(np.float32),
        "reward": (2 * rng.normal(size=B)).astype(np.float32),
        "next_obs": rng.normal(size=(B, D)).astype(np.float32),
        "terminated": np.array([e == "t" for e in ends]),
        "truncated": np.array([e == "c" for e in ends]),
    }
    for obs, action, reward, after, terminated, truncated in zip(*batch.values(), strict=True):
        ended = np.array([terminated or truncated])
        model.replay_buffer.add(
            obs[None], after[None], action[None], reward[None], ended, [{"TimeLimit.truncated": bool(truncated)}]
        )
    model.replay_buffer.sample = lambda *_, **__: model.replay_buffer._get_samples(np.arange(B))
    return under("batch", batch)


REPLAYED: Arrays = {"gamma": 0.9, "tau": 0.3, "learning_rate": 0.02, "batch_size": B, "buffer_size": B}


def replayed(kind: Any, action: gym.Space, spread: float, **fields: Any) -> tuple[Any, Arrays]:
    """(an agent, its batch); of two target critics, each is the smaller one in some of the successors."""
    model = begun(kind, worlds(action), spread, **REPLAYED | fields)
    batch = remembered(model)
    if kind is not DQN:
        with torch.no_grad():
            one, two = model.critic_target(*(torch.as_tensor(batch[f"batch/{k}"]) for k in ("next_obs", "action")))
            model.critic_target.qf1[-1].bias += (one - two).median()
    return model, batch


def dqn() -> None:
    model, batch = replayed(DQN, ACTIONS["discrete"], 0.5, max_grad_norm=UNBOUNDED)
    forward = under("forward", {"Q": model.q_net(torch.as_tensor(batch["batch/obs"]))})
    before = under("before", parameters(model))
    found = observed(model, lambda: model.train(1, B))
    kept("dqn", batch, before, forward, {f"plain/{k}": v for k, v in found.items()})


def td3() -> None:
    """Two gradient steps on the same batch: the second moves the policy and all targets."""
    # Short steps: the second gradient has the rounding of the first step in it.
    fields = {"policy_delay": 2, "target_policy_noise": 0.4, "target_noise_clip": 0.3, "learning_rate": 0.002}
    model, batch = replayed(TD3, SQUASHED, 0.5, **fields)
    noise = np.random.default_rng(3).normal(size=(2, B, 2)).astype(np.float32)
    obs, action = (torch.as_tensor(batch[f"batch/{k}"]) for k in ("obs", "action"))
    Q, drawn = model.critic(obs, action), iter(torch.as_tensor(noise))
    forward = under("forward", {"mu": model.actor(obs), "Q1": Q[0][:, 0], "Q2": Q[1][:, 0]})
    before = under("before", parameters(model))
    with mock.patch.object(torch.Tensor, "normal_", lambda x, mean, std: x.copy_(mean + std * next(drawn))):
        found = observed(model, lambda: model.train(2, B))
    kept("td3", batch | {"batch/noise": noise}, before, forward, {f"plain/{k}": v for k, v in found.items()})


def sac() -> None:
    """One gradient step of all three; the noise is weak, because float32 knows little of 1 − tanh² near 0."""
    noise = (0.4 * np.random.default_rng(3).normal(size=(2, B, 2))).astype(np.float32)  # in states, in their successors

    def begin(fields: Arrays) -> tuple[Any, Arrays]:
        model, batch = replayed(SAC, SQUASHED, 0.3, **fields)
        model.actor.action_dist.epsilon = 0.0  # the density itself, not with 1e-6 beside 1 − tanh²
        return model, batch

    def drawing() -> Any:
        return mock.patch("torch.distributions.normal._standard_normal", side_effect=list(torch.as_tensor(noise)))

    def run(fields: Arrays) -> Arrays:
        model, _ = begin(fields)
        with drawing():
            return observed(model, lambda: model.train(1, B))

    model, batch = begin({"ent_coef": "auto_0.3"})
    obs, action = (torch.as_tensor(batch[f"batch/{k}"]) for k in ("obs", "action"))
    mean, log_std, _ = model.actor.get_action_dist_params(obs)
    with drawing():
        a, log_prob = model.actor.action_log_prob(obs)
    given = model.actor.action_dist.proba_distribution(mean, log_std).log_prob(action)
    Q = model.critic(obs, action)
    forward = {"mean": mean, "log_std": log_std, "a": a, "log_prob": log_prob, "log_prob_of_action": given}
    forward |= {"Q1": Q[0][:, 0], "Q2": Q[1][:, 0]}
    parts = batch | {"batch/noise": noise}, under("before", parameters(model)), under("forward", forward)
    kept("sac", *parts, *settings(SAC_SETTINGS, run))


def main() -> None:
    torch.set_num_threads(1)
    for name, action in ACTIONS.items():
        ppo_minibatch(action, name)
        rollout(A2C, action, f"a2c_{name}")
    rollout(PPO, ACTIONS["box"], "ppo_update", batch_size=3 * T, n_epochs=2)
    dqn()
    td3()
    sac()


if __name__ == "__main__":
    main()
