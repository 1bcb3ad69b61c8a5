"""Tuned hyper-parameters per (agent, environment), each with the source of its numbers. No jax here.

A value that is a schedule or a network is written as in config.json (`runs/config.py`): {"schedule": "Linear", ...}.
"""

import fnmatch
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from polyak import catalogue
from polyak.errors import PolyakError, nearest


@dataclass(frozen=True)
class Preset:
    """Settings that replace the defaults for one environment.

    Attributes:
        source: where the numbers come from.
        steps: the usual length of a run, in environment steps; None where there is no usual one.
        fields: hyper-parameters of the agent.
        n_envs: environments side by side.
        normalised: fields of `Normalised` where observations and rewards are to be normalised, else None.
    """

    source: str
    steps: int | None
    fields: Mapping[str, Any] = field(default_factory=dict[str, Any])
    n_envs: int = 1
    normalised: Mapping[str, Any] | None = None


def linear(start: float, end: float = 0.0) -> dict[str, Any]:
    """From `start` to `end` over the run."""
    return {"schedule": "Linear", "start": start, "end": end, "fraction": 1.0}


def _network(*sizes: int, activation: str = "relu", init: str = "uniform") -> dict[str, Any]:
    return {"network": "MLP", "sizes": list(sizes), "activation": activation, "init": init}


_ZOO = "DLR-RM/rl-baselines3-zoo hyperparams"
_CLEANRL = "vwxyzjn/cleanrl cleanrl"

# CleanRL halves the squared error of V, which we don't: hence half of its coefficient 0.5.
_CLEANRL_CLASSIC = Preset(
    f"{_CLEANRL}/ppo.py",
    500_000,
    {
        "rollout_length": 128, "batch_size": 128, "epochs": 4, "lr": linear(2.5e-4), "gamma": 0.99, "gae_lambda": 0.95,
        "clip_range": 0.2, "clip_range_vf": 0.2, "ent_coef": 0.01, "vf_coef": 0.25, "max_grad_norm": 0.5,
    },
    n_envs=4,
)  # fmt: skip
_CLEANRL_MUJOCO = Preset(
    f"{_CLEANRL}/ppo_continuous_action.py",
    1_000_000,
    {
        "rollout_length": 2048, "batch_size": 64, "epochs": 10, "lr": linear(3e-4), "clip_range": 0.2,
        "clip_range_vf": 0.2, "ent_coef": 0.0, "vf_coef": 0.25,
    },
    normalised={"gamma": 0.99},
)  # fmt: skip
# Our defaults are those of Stable-Baselines3, whose value loss is the mean squared error times 0.5 as well.
_PPO_SB3 = Preset("DLR-RM/stable-baselines3 stable_baselines3/ppo/ppo.py", 1_000_000)
# The paper gives no initial β; it adapts within a few updates. Both variants are normalised alike; the paper's are not.
_PPO_PAPER = {"rollout_length": 2048, "batch_size": 64, "epochs": 10, "lr": 3e-4, "gamma": 0.99, "gae_lambda": 0.95}
_PPO_PAPER_CLIP = Preset(
    "arXiv 1707.06347, table 3, with normalisation", 1_000_000, {**_PPO_PAPER, "clip_range": 0.2},
    normalised={"gamma": 0.99},
)  # fmt: skip
_PPO_PAPER_KL = Preset(
    "arXiv 1707.06347, table 3 and section 4, with normalisation", 1_000_000,
    {**_PPO_PAPER, "clip_range": None, "kl_coef": 1.0, "d_targ": 0.01},
    normalised={"gamma": 0.99},
)  # fmt: skip
_PAPER = {"paper-clip": _PPO_PAPER_CLIP, "paper-kl": _PPO_PAPER_KL}
_PPO_CARTPOLE = Preset(
    f"{_ZOO}/ppo.yml",
    100_000,
    {
        "rollout_length": 32, "batch_size": 256, "epochs": 20, "gamma": 0.98, "gae_lambda": 0.8, "lr": linear(1e-3),
        "clip_range": linear(0.2), "ent_coef": 0.0,
    },
    n_envs=8,
)  # fmt: skip
_PPO_PENDULUM = Preset(
    f"{_ZOO}/ppo.yml, with independent noise instead of gSDE",
    100_000,
    {
        "rollout_length": 1024,
        "batch_size": 64,
        "epochs": 10,
        "gamma": 0.9,
        "gae_lambda": 0.95,
        "lr": 1e-3,
        "clip_range": 0.2,
    },
    n_envs=4,
)
# The zoo's numbers leave many a seed with a poor final policy. What helped: squared errors with a large step that falls
# to 0, and a target network that follows slowly and always.
_DQN_CARTPOLE = Preset(
    "own tuning on jax:CartPole-v1, seeds 100 and up; never on those of the benchmarks",
    50_000,
    {
        "lr": linear(8e-3), "gamma": linear(0.97, 0.995), "batch_size": 128, "buffer_size": 100_000,
        "learning_starts": 1000, "rollout_length": 8, "updates_per_step": 0.5, "tau": 0.02, "target_update_interval": 1,
        "double": True, "loss": "squared", "max_grad_norm": None, "eps_end": 0.04, "eps_steps": 8000,
        "network": _network(64, 64),
    },
)  # fmt: skip
_DQN_CARTPOLE_ZOO = Preset(
    f"{_ZOO}/dqn.yml",
    50_000,
    {
        "lr": 2.3e-3, "batch_size": 64, "buffer_size": 100_000, "learning_starts": 1000, "rollout_length": 256,
        "updates_per_step": 0.5, "target_update_interval": 10, "eps_end": 0.04, "eps_steps": 8000,
        "network": _network(256, 256),
    },
)  # fmt: skip
_DQN_CLEANRL = Preset(
    f"{_CLEANRL}/dqn.py",
    500_000,
    {
        "lr": 2.5e-4, "batch_size": 128, "buffer_size": 10_000, "learning_starts": 10_000, "rollout_length": 10,
        "updates_per_step": 0.1, "target_update_interval": 500, "eps_end": 0.05, "eps_steps": 250_000,
        "network": _network(120, 84), "loss": "squared", "max_grad_norm": None,
    },
)  # fmt: skip
# A step that falls to 0: with CleanRL's constant one, every seed falls back from 500 now and then, some at the end.
_DQN_CARTPOLE_LONG = Preset(
    "CleanRL's, with own tuning on jax:CartPole-v1, seeds 100 and up; never on those of the benchmarks",
    500_000,
    {**_DQN_CLEANRL.fields, "lr": linear(2.5e-4)},
)
_C51_CLEANRL = Preset(
    f"{_CLEANRL}/c51.py",
    500_000,
    {
        **{name: _DQN_CLEANRL.fields[name] for name in _DQN_CLEANRL.fields if name != "loss"},
        "n_atoms": 101, "v_min": -100.0, "v_max": 100.0, "adam_eps": 0.01 / 128,
    },
)  # fmt: skip
_DQN_BOX2D = Preset(
    f"{_ZOO}/dqn.yml",
    100_000,
    {
        "lr": 6.3e-4, "batch_size": 128, "buffer_size": 50_000, "learning_starts": 0, "rollout_length": 4,
        "updates_per_step": 1.0, "target_update_interval": 250, "eps_end": 0.1, "eps_steps": 12_000,
        "network": _network(256, 256),
    },
)  # fmt: skip
# A lander that hovers until the clock ends its episode loses little within 100 steps, which is as far as γ = 0.99 sees.
# γ = 0.997 sees the fuel, and returns of three steps tell of a landing sooner.
_DQN_LANDER = Preset(
    "own tuning on seeds 100 to 104, from rl-zoo3's; never on those of the benchmarks",
    100_000,
    {
        **_DQN_BOX2D.fields, "gamma": 0.997, "n_step": 3, "double": True, "lr": linear(6.3e-4), "tau": 0.01,
        "target_update_interval": 1, "buffer_size": 100_000, "learning_starts": 1000, "eps_end": 0.05,
        "network": _network(128, 128),
    },
)  # fmt: skip
# AdamW there. Draws by priorities have no importance weights. Four updates after every step of 8 environments.
_DQN_SLM = Preset(
    "kengz/SLM-Lab slm_lab/spec/benchmark_arc/dqn/dqn_box2d_arc.yaml, with Adam",
    300_000,
    {
        "lr": 2.5e-4, "batch_size": 32, "buffer_size": 50_000, "prioritised": 0.6, "is_beta": 0.0, "double": True,
        "learning_starts": 32, "rollout_length": 1, "updates_per_step": 0.5, "target_update_interval": 100,
        "eps_end": 0.01, "eps_steps": 50_000, "network": _network(256, 128),
    },
    n_envs=8,
)  # fmt: skip
# Frames, actions and network of 2013; optimiser and rhythm as CleanRL's dqn_atari.py, the warm-up cut to a short run.
_DQN_ATARI = Preset(
    "arXiv 1312.5602 (preprocessing, network) and vwxyzjn/cleanrl cleanrl/dqn_atari.py; own warm-up for 200k steps",
    200_000,
    {
        "lr": 1e-4, "batch_size": 32, "buffer_size": 1_000_000, "learning_starts": 10_000, "rollout_length": 4,
        "updates_per_step": 0.25, "target_update_interval": 1000, "eps_end": 0.01, "eps_steps": 50_000,
        "network": {"network": "CNN", "filters": [[16, 8, 4], [32, 4, 2]], "dense": 256},
    },
)  # fmt: skip
_DQN_NATURE = Preset(
    f"{_CLEANRL}/dqn_atari.py",
    10_000_000,
    {
        "lr": 1e-4, "batch_size": 32, "buffer_size": 1_000_000, "learning_starts": 80_000, "rollout_length": 4,
        "updates_per_step": 0.25, "target_update_interval": 1000, "eps_end": 0.01, "eps_steps": 1_000_000,
        "loss": "squared", "max_grad_norm": None,
    },
)  # fmt: skip
_PPO_ATARI = Preset(
    f"{_CLEANRL}/ppo_atari.py",
    10_000_000,
    {
        "rollout_length": 128, "batch_size": 256, "epochs": 4, "lr": linear(2.5e-4), "clip_range": 0.1,
        "clip_range_vf": 0.1, "ent_coef": 0.01, "vf_coef": 0.25, "shared": True,
    },
    n_envs=8,
)  # fmt: skip
_SAC_PENDULUM = Preset(f"{_ZOO}/sac.yml", 20_000, {"lr": 1e-3})
_SAC_MOUNTAIN = Preset(
    f"{_ZOO}/sac.yml",
    50_000,
    {
        "lr": 3e-4, "batch_size": 512, "buffer_size": 50_000, "learning_starts": 0, "rollout_length": 32,
        "updates_per_step": 1.0, "gamma": 0.9999, "tau": 0.01, "ent_coef": 0.1, "sde": True, "log_std_init": -3.67,
        "network": _network(64, 64),
    },
)  # fmt: skip
_SAC_MUJOCO = Preset(f"{_ZOO}/sac.yml", 1_000_000, {"learning_starts": 10_000})
_SAC_DOPAMINE = Preset(  # 6 actions, and a target of half as many nats
    "google/dopamine baselines, sac.gin", 1_000_000,
    {"learning_starts": 10_000, "reward_scale": 0.1, "target_entropy": -3.0},
)  # fmt: skip
_TQC_PENDULUM = Preset(f"{_ZOO}/tqc.yml", 20_000, {"lr": 1e-3})
_TQC_MUJOCO = Preset(f"{_ZOO}/tqc.yml", 1_000_000, {"learning_starts": 10_000})
_TQC_HOPPER = Preset(f"{_ZOO}/tqc.yml", 1_000_000, {"learning_starts": 10_000, "drop_per_critic": 5})
# Five wide critics. The numbers of quantiles to drop are the paper's, found per environment.
_TQC_PAPER = {"learning_starts": 10_000, "n_critics": 5, "critic_network": _network(512, 512, 512)}
_TQC_PAPER_CHEETAH = Preset("bayesgroup/tqc_pytorch", 1_000_000, {**_TQC_PAPER, "drop_per_critic": 0})
_TQC_PAPER_HOPPER = Preset("bayesgroup/tqc_pytorch", 1_000_000, {**_TQC_PAPER, "drop_per_critic": 5})
# The published warm-up of 100,000 gradient steps would outlast so short a run.
_CROSSQ_PENDULUM = Preset(
    "own choice: a short run with small critics", 20_000, {"renorm_warmup": 5_000, "critic_network": _network(256, 256)}
)
_CROSSQ_MUJOCO = Preset(
    f"{_ZOO}/crossq.yml", 1_000_000, {"learning_starts": 5_000, "critic_network": _network(2048, 2048)}
)

# One episode of Pendulum has 200 steps: an update phase per episode, as in the table of 2023.
_DDPG_PENDULUM = Preset(
    f"{_ZOO}/ddpg.yml of April 2023, from which its published table is",
    20_000,
    {
        "lr": 1e-3, "batch_size": 100, "buffer_size": 200_000, "learning_starts": 10_000, "rollout_length": 200,
        "gamma": 0.98, "noise_std": 0.1,
    },
)  # fmt: skip
_DDPG_PENDULUM_ZOO = Preset(
    f"{_ZOO}/ddpg.yml", 20_000, {**_DDPG_PENDULUM.fields, "batch_size": 256, "rollout_length": 1}
)
# Their noise has θ = 0.15, σ = 0.5 and a time step of 0.01: so θ·0.01 and σ·√0.01 per step of ours.
_DDPG_MOUNTAIN = Preset(f"{_ZOO}/ddpg.yml", 300_000, {"lr": 1e-3, "noise": "ou", "noise_std": 0.05, "ou_theta": 0.0015})
_DDPG_MUJOCO = Preset(f"{_ZOO}/ddpg.yml", 1_000_000, {"lr": 1e-3, "learning_starts": 10_000, "noise_std": 0.1})
_TD3_PENDULUM = replace(_DDPG_PENDULUM, source=f"{_ZOO}/td3.yml of April 2023, from which its published table is")
_TD3_PENDULUM_ZOO = replace(_DDPG_PENDULUM_ZOO, source=f"{_ZOO}/td3.yml")
_TD3_MOUNTAIN = replace(_DDPG_MOUNTAIN, source=f"{_ZOO}/td3.yml")
_TD3_MUJOCO = replace(_DDPG_MUJOCO, source=f"{_ZOO}/td3.yml")
_TD3_PAPER = Preset(
    "arXiv 1802.09477 and its code, sfujim/TD3, paper version",
    1_000_000,
    {"lr": 1e-3, "batch_size": 100, "learning_starts": 10_000, "noise_std": 0.1},
)
_TD3_CLEANRL = Preset(
    f"{_CLEANRL}/td3_continuous_action.py",
    1_000_000,
    {"lr": 3e-4, "learning_starts": 25_000, "noise_std": 0.1, "network": _network(256, 256)},
)

# There, 40 updates follow two episodes, and then τ is 0.05; ours are spread evenly, with τ per update. Their targets
# are clipped, and 30 % of their actions random to the end.
_DDPG_FETCH = Preset(
    "openai/baselines baselines/her/experiment/config.py, with own rhythm and τ",
    5_000,
    {
        "hindsight": 4, "gamma": 0.98, "lr": 1e-3, "action_l2": 1.0, "noise_std": 0.2, "learning_starts": 500,
        "rollout_length": 2, "updates_per_step": 0.5, "tau": 0.02, "network": _network(256, 256, 256),
    },
    normalised={"reward": False},
)  # fmt: skip
_SAC_FETCH = Preset(
    f"{_ZOO}/sac.yml",
    20_000,
    {"hindsight": 4, "gamma": 0.95, "lr": 1e-3, "learning_starts": 1_000, "network": _network(64, 64)},
    normalised={"gamma": 0.95},
)
_TQC_FETCH = replace(_SAC_FETCH, source=f"{_ZOO}/tqc.yml", fields={**_SAC_FETCH.fields, "n_critics": 1})
# Own choice: a world that small needs small networks, and few steps.
_SAC_REACH = Preset(
    "own choice, for a small world",
    4_000,
    {
        "hindsight": 4, "gamma": 0.95, "lr": 1e-3, "batch_size": 128, "learning_starts": 200, "tau": 0.02,
        "network": _network(64, 64),
    },
)  # fmt: skip
_DDPG_REACH = replace(_SAC_REACH, fields={**_SAC_REACH.fields, "noise_std": 0.2})

_TRPO_CARTPOLE = Preset(
    f"{_ZOO}/trpo.yml",
    100_000,
    {
        "rollout_length": 512, "batch_size": 512, "critic_epochs": 20, "lr": 1e-3, "gamma": 0.99, "gae_lambda": 0.98,
        "target_kl": 0.01, "cg_iterations": 15, "cg_damping": 1e-3,
    },
    n_envs=2,
)  # fmt: skip
_TRPO_LANDER = Preset(
    f"{_ZOO}/trpo.yml",
    200_000,
    {
        "rollout_length": 512, "batch_size": 128, "critic_epochs": 15, "lr": 1e-3, "gamma": 0.99, "gae_lambda": 0.98,
        "target_kl": 0.01, "cg_iterations": 15, "cg_damping": 0.01,
    },
    n_envs=2,
)  # fmt: skip
_TRPO_MUJOCO = Preset(
    f"{_ZOO}/trpo.yml",
    1_000_000,
    {
        "rollout_length": 1024, "batch_size": 128, "critic_epochs": 20, "lr": 1e-3, "gamma": 0.99, "gae_lambda": 0.95,
        "target_kl": 0.01, "cg_iterations": 25, "cg_damping": 0.1,
    },
    n_envs=2,
    normalised={"gamma": 0.99},
)  # fmt: skip
# A step that is large at first and small at last, and a longer horizon: a hop pays over some hundred steps.
_TRPO_HOPPER = replace(
    _TRPO_MUJOCO,
    source="own tuning on seeds 100 to 102, from rl-zoo3's; never on those of the benchmarks",
    fields={**_TRPO_MUJOCO.fields, "gamma": 0.995, "target_kl": linear(0.02, 0.002)},
)
_TRPO_CHEETAH = replace(_TRPO_MUJOCO, fields={**_TRPO_MUJOCO.fields, "target_kl": 0.04})

_BOOK = "Sutton & Barto (2018)"
_CLIFF = Preset(f"{_BOOK}, Example 6.6", 20_000, {"lr": 0.5, "gamma": 1.0, "eps_start": 0.1, "eps_end": 0.1})
_CLIFF_EXPECTED = Preset(f"{_BOOK}, Figure 6.3", 20_000, {**_CLIFF.fields, "expected": True})
# The goal is at 0.5, so that the tiles end there.
_HILL = Preset(
    f"{_BOOK}, Example 10.1",
    100_000,
    {
        "lr": 0.5 / 8, "gamma": 1.0, "eps_start": 0.0, "eps_end": 0.0,
        "features": {"features": "Tiles", "tilings": 8, "tiles": 8, "low": [-1.2, -0.07], "high": [0.5, 0.07]},
    },
)  # fmt: skip
_WALK = Preset(f"{_BOOK}, Example 6.2", 10_000, {"lr": 0.05, "gamma": 1.0, "v_init": 0.5})
# Own choice: a slippery lake needs a small step size at the end, and much exploration before anything is found.
_LAKE = Preset(
    "own choice, for a slippery lake", 500_000,
    {
        "lr": {"schedule": "Exponential", "start": 0.5, "end": 0.005, "fraction": 1.0}, "gamma": 0.99,
        "eps_start": 1.0, "eps_end": 0.1, "eps_steps": 400_000,
    },
)  # fmt: skip

_REINFORCE_CARTPOLE_SLM = Preset(
    "kengz/SLM-Lab slm_lab/spec/benchmark_arc/reinforce/reinforce_arc.yaml",
    200_000,
    {
        "rollout_length": 512, "lr": 2e-3, "gamma": 0.99, "baseline": "mean", "ent_coef": linear(1e-3),
        "max_grad_norm": 0.5, "network": _network(128, 128, activation="tanh", init="orthogonal"),
    },
    n_envs=4,
)  # fmt: skip
# Against noise: a V that is fitted to each rollout, and steps that fall.
_REINFORCE_CARTPOLE = Preset(
    "SLM-Lab's, with own tuning on jax:CartPole-v1, seeds 100 and up; never on those of the benchmarks",
    200_000,
    {
        **_REINFORCE_CARTPOLE_SLM.fields, "baseline": "value", "critic_lr": 1e-2, "critic_epochs": 20,
        "lr": linear(4e-3),
    },
    n_envs=4,
)  # fmt: skip
_A2C_CARTPOLE_SLM = Preset(
    "kengz/SLM-Lab slm_lab/spec/benchmark_arc/a2c/a2c_classic_arc.yaml",
    200_000,
    {
        "rollout_length": 32, "lr": 1e-3, "critic_lr": 3e-3, "optimizer": "adam", "opt_eps": 1e-8, "gamma": 0.99,
        "gae_lambda": 0.95, "ent_coef": linear(0.01), "vf_coef": 0.5, "max_grad_norm": 0.5,
    },
    n_envs=4,
)  # fmt: skip
# What made the seeds alike: steps that fall to 0, and λ = 1.
_A2C_CARTPOLE = Preset(
    "SLM-Lab's, with own tuning on jax:CartPole-v1, seeds 100 and up; never on those of the benchmarks",
    200_000,
    {**_A2C_CARTPOLE_SLM.fields, "lr": linear(1.5e-3), "critic_lr": linear(5e-3), "gae_lambda": 1.0},
    n_envs=4,
)
_A2C_CARTPOLE_ZOO = Preset(f"{_ZOO}/a2c.yml", 500_000, n_envs=8)
_A2C_LANDER = Preset(f"{_ZOO}/a2c.yml", 200_000, {"gamma": 0.995, "lr": linear(8.3e-4), "ent_coef": 1e-5}, n_envs=8)
_A2C_MUJOCO = Preset(f"{_ZOO}/a2c.yml", 1_000_000, normalised={"gamma": 0.99})
_A2C_ATARI = Preset(f"{_ZOO}/a2c.yml", 10_000_000, {"ent_coef": 0.01, "vf_coef": 0.25, "shared": True}, n_envs=16)
# A step so small that the actor doesn't run away before the critic knows the difference between two actions.
_ACTOR_CRITIC_CARTPOLE = Preset(
    "own tuning on jax:CartPole-v1, seeds 100 and up; never on those of the benchmarks",
    200_000,
    {"lr": linear(3e-4), "critic_lr": linear(1e-2), "gamma": 0.98, "ent_coef": 0.02},
    n_envs=4,
)

PRESETS: dict[tuple[str, str], dict[str, Preset]] = {
    ("a2c", "CartPole-v1"): {"default": _A2C_CARTPOLE, "slm": _A2C_CARTPOLE_SLM, "zoo": _A2C_CARTPOLE_ZOO},
    ("a2c", "LunarLander-v3"): {"default": _A2C_LANDER},
    ("a2c", "HalfCheetah-v[45]"): {"default": _A2C_MUJOCO},
    ("a2c", "Hopper-v[45]"): {"default": _A2C_MUJOCO},
    ("a2c", "ale:*"): {"default": _A2C_ATARI},
    ("reinforce", "CartPole-v1"): {"default": _REINFORCE_CARTPOLE, "slm": _REINFORCE_CARTPOLE_SLM},
    ("actor-critic", "CartPole-v1"): {"default": _ACTOR_CRITIC_CARTPOLE},
    ("q-learning", "CliffWalking-v1"): {"default": _CLIFF},
    ("q-learning", "FrozenLake*"): {"default": _LAKE},
    ("sarsa", "CliffWalking-v1"): {"default": _CLIFF, "expected": _CLIFF_EXPECTED},
    ("sarsa", "MountainCar-v0"): {"default": _HILL},
    ("td", "RandomWalk-v0"): {"default": _WALK},
    ("ppo", "CartPole-v1"): {"default": _PPO_CARTPOLE, "cleanrl": _CLEANRL_CLASSIC},
    ("ppo", "Acrobot-v1"): {"default": _CLEANRL_CLASSIC},
    ("ppo", "Pendulum-v1"): {"default": _PPO_PENDULUM},
    ("ppo", "HalfCheetah-v[45]"): {"default": _CLEANRL_MUJOCO, **_PAPER},
    ("ppo", "Hopper-v[45]"): {"default": _CLEANRL_MUJOCO, "sb3": _PPO_SB3, **_PAPER},
    ("ppo", "InvertedPendulum-v[45]"): _PAPER,
    ("ppo", "InvertedDoublePendulum-v[45]"): _PAPER,
    ("ppo", "Reacher-v[45]"): _PAPER,
    ("ppo", "Swimmer-v[45]"): _PAPER,
    ("ppo", "Walker2d-v[45]"): _PAPER,
    ("ppo", "ale:*"): {"default": _PPO_ATARI},
    ("trpo", "CartPole-v1"): {"default": _TRPO_CARTPOLE},
    ("trpo", "LunarLander-v3"): {"default": _TRPO_LANDER},
    ("trpo", "HalfCheetah-v[45]"): {"default": _TRPO_CHEETAH},
    ("trpo", "Hopper-v[45]"): {"default": _TRPO_HOPPER, "zoo": _TRPO_MUJOCO},
    ("dqn", "CartPole-v1"): {
        "default": _DQN_CARTPOLE,
        "long": _DQN_CARTPOLE_LONG,
        "zoo": _DQN_CARTPOLE_ZOO,
        "cleanrl": _DQN_CLEANRL,
    },
    ("c51", "CartPole-v1"): {"default": _C51_CLEANRL},
    ("dqn", "Acrobot-v1"): {"default": _DQN_BOX2D},
    ("dqn", "LunarLander-v3"): {"default": _DQN_LANDER, "zoo": _DQN_BOX2D, "slm": _DQN_SLM},
    ("dqn", "ale:*"): {"default": _DQN_ATARI, "nature": _DQN_NATURE},
    ("ddpg", "FetchReach-v*"): {"default": _DDPG_FETCH},
    ("ddpg", "Reach-v0"): {"default": _DDPG_REACH},
    ("ddpg", "Pendulum-v1"): {"default": _DDPG_PENDULUM, "zoo": _DDPG_PENDULUM_ZOO},
    ("ddpg", "MountainCarContinuous-v0"): {"default": _DDPG_MOUNTAIN},
    ("ddpg", "HalfCheetah-v[45]"): {"default": _DDPG_MUJOCO},
    ("ddpg", "Hopper-v[45]"): {"default": _DDPG_MUJOCO},
    ("td3", "Pendulum-v1"): {"default": _TD3_PENDULUM, "zoo": _TD3_PENDULUM_ZOO},
    ("td3", "MountainCarContinuous-v0"): {"default": _TD3_MOUNTAIN},
    ("td3", "HalfCheetah-v[45]"): {"default": _TD3_MUJOCO, "paper": _TD3_PAPER, "cleanrl": _TD3_CLEANRL},
    ("td3", "Hopper-v[45]"): {"default": _TD3_MUJOCO},
    ("sac", "FetchReach-v*"): {"default": _SAC_FETCH},
    ("sac", "Reach-v0"): {"default": _SAC_REACH},
    ("sac", "Pendulum-v1"): {"default": _SAC_PENDULUM},
    ("sac", "MountainCarContinuous-v0"): {"default": _SAC_MOUNTAIN},
    ("sac", "HalfCheetah-v[45]"): {"default": _SAC_MUJOCO, "dopamine": _SAC_DOPAMINE},
    ("sac", "Hopper-v[45]"): {"default": _SAC_MUJOCO},
    ("tqc", "FetchReach-v*"): {"default": _TQC_FETCH},
    ("tqc", "Pendulum-v1"): {"default": _TQC_PENDULUM},
    ("tqc", "HalfCheetah-v[45]"): {"default": _TQC_MUJOCO, "paper": _TQC_PAPER_CHEETAH},
    ("tqc", "Hopper-v[45]"): {"default": _TQC_HOPPER, "paper": _TQC_PAPER_HOPPER},
    ("crossq", "Pendulum-v1"): {"default": _CROSSQ_PENDULUM},
    ("crossq", "HalfCheetah-v[45]"): {"default": _CROSSQ_MUJOCO},
    ("crossq", "Hopper-v[45]"): {"default": _CROSSQ_MUJOCO},
}


def presets(algorithm: str, env: str) -> dict[str, Preset]:
    """The presets for an environment by name, {} where there are none; our compiled worlds share Gymnasium's."""
    kind, name = catalogue.algorithm(algorithm).name, env.removeprefix("jax:")
    return next((found for (a, e), found in PRESETS.items() if a == kind and fnmatch.fnmatchcase(name, e)), {})


def preset(algorithm: str, env: str, name: str | None) -> Preset | None:
    """The named preset; None for no name, or for the name "default" where the environment has none.

    Raises:
        PolyakError: there is no preset of this name; the sentence gives those that there are.
    """
    found = presets(algorithm, env)
    if name is None or name in found:
        return found.get(name or "")
    if name == "default":
        return None
    have = f"there is {', '.join(found)}" if found else f"there is none for {algorithm} on {env}"
    raise PolyakError(f"there is no preset {name!r}: {have}{nearest(name, found)}")
