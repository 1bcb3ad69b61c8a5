"""Times one job of Stable-Baselines3, or of SBX (the same interface in JAX): prints one line of JSON.

    bench/peers/.venv-sb3/bin/python bench/peers/stable_baselines.py sb3 ppo-cartpole [STEPS] [SEED]
    bench/peers/.venv-sbx/bin/python bench/peers/stable_baselines.py sbx ppo-cartpole [STEPS] [SEED]

The settings are those of bench/jobs.json. The clock starts at the first rollout after `warm` environment steps, when
imports, compilation and the first updates are done, and stops when `learn` returns. No evaluation, no checkpoints, no
log output.
"""

import json
import sys
import time
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.noise import NormalActionNoise

PACKAGES = {"sb3": ("stable_baselines3", "torch"), "sbx": ("sbx-rl", "jax")}
MODULES = {"sb3": "stable_baselines3", "sbx": "sbx"}


class Clock(BaseCallback):
    """Notes the time and the step count at the first rollout after `warm` steps."""

    def __init__(self, warm: int) -> None:
        super().__init__()
        self.warm, self.began, self.first = warm, 0.0, -1

    def _on_rollout_start(self) -> None:
        if self.first < 0 and self.num_timesteps >= self.warm:
            self.began, self.first = time.perf_counter(), self.num_timesteps

    def _on_step(self) -> bool:
        return True


def settings(job: dict[str, Any]) -> dict[str, Any]:
    """The job's settings under the names of Stable-Baselines3."""
    same = (
        "batch_size", "gamma", "buffer_size", "learning_starts", "tau", "gae_lambda", "ent_coef", "vf_coef",
        "target_update_interval", "policy_delay",
    )  # fmt: skip
    found = {name: job[name] for name in same if name in job}
    found |= {"learning_rate": job["lr"], "policy_kwargs": {"net_arch": job["hidden"]}}
    if job["agent"] == "A2C":
        return found | {"n_steps": job["rollout_length"], "max_grad_norm": job["max_grad_norm"]}
    if job["agent"] == "PPO":
        found |= {"n_steps": job["rollout_length"], "n_epochs": job["epochs"], "max_grad_norm": job["max_grad_norm"]}
        found |= {"learning_rate": lambda left: left * job["lr"], "clip_range": lambda left: left * job["clip_range"]}
        return found
    gradient_steps = round(job["rollout_length"] * job["updates_per_step"])
    found |= {"train_freq": job["rollout_length"], "gradient_steps": gradient_steps}
    if job["agent"] == "TD3":
        found["action_noise"] = gaussian(job)
    if job["agent"] == "DQN":
        found |= {"exploration_initial_eps": job["eps_start"], "exploration_final_eps": job["eps_end"]}
        found |= {"exploration_fraction": job["eps_fraction"]}
    return found


def gaussian(job: dict[str, Any]) -> NormalActionNoise:
    """The noise with which TD3 explores."""
    env = gymnasium.make(job["env"])
    shape = env.action_space.shape
    env.close()
    return NormalActionNoise(np.zeros(shape), np.full(shape, job["noise_std"]))


def main(peer: str, name: str, steps: str = "", seed: str = "0") -> None:
    job = json.loads((Path(__file__).parent.parent / "jobs.json").read_text())[name]
    algorithm = getattr(import_module(MODULES[peer]), job["agent"])
    env = make_vec_env(job["env"], n_envs=job["n_envs"], seed=int(seed))
    model = algorithm("MlpPolicy", env, device="cpu", seed=int(seed), **settings(job))
    clock = Clock(job["warm"])
    model.learn(int(steps or job["steps"]), callback=clock)
    seconds = time.perf_counter() - clock.began
    timed = model.num_timesteps - clock.first
    row = {"peer": peer, "job": name, "steps": timed, "seconds": round(seconds, 3), "fps": round(timed / seconds, 1)}
    packages = (*PACKAGES[peer], "gymnasium", "numpy", "mujoco")
    row |= {
        "version": version(packages[0]),
        "versions": {p: version(p) for p in packages},
        "python": sys.version.split()[0],
    }
    print(json.dumps(row))


if __name__ == "__main__":
    main(*sys.argv[1:])
