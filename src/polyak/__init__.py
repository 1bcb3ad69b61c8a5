"""polyak: reinforcement learning in JAX, from tables to PPO, DQN and SAC, with exact resume and honest statistics.

    import polyak
    run = polyak.train(polyak.PPO(), "CartPole-v1", steps=100_000, seeds=5)

Names are imported when they are first used: `import jax` takes two seconds, which `polyak --help` need not wait for.
"""

from importlib import import_module, metadata
from typing import Any

from polyak import compat

_HOME = {
    "REINFORCE": "agents.reinforce", "ActorCritic": "agents.actor_critic", "A2C": "agents.a2c",
    "PPO": "agents.ppo", "TRPO": "agents.trpo", "DQN": "agents.dqn", "C51": "agents.c51", "SAC": "agents.sac",
    "DDPG": "agents.ddpg", "TD3": "agents.td3", "TQC": "agents.tqc", "CrossQ": "agents.crossq",
    "Normalised": "normalise",
    "QLearning": "agents.q_learning", "SARSA": "agents.sarsa", "TD": "agents.td", "MonteCarlo": "agents.monte_carlo",
    "DynaQ": "agents.dyna_q", "OneHot": "mdp.features", "Tiles": "mdp.features", "Fourier": "mdp.features",
    "Polynomial": "mdp.features", "Radial": "mdp.features",
    "Agent": "core", "Transition": "core", "Rollout": "core", "Spec": "core", "hyper": "core",
    "Constant": "optim", "Linear": "optim", "Exponential": "optim", "Cosine": "optim",
    "MLP": "nets", "CNN": "nets",
    "train": "runs.session", "evaluate": "runs.session", "load": "runs.session", "resume": "runs.session",
    "sweep": "runs.session", "Run": "runs.session", "check_env": "envs.check",
    "PolyakError": "errors", "EnvError": "errors", "RunError": "errors",
}  # fmt: skip
_MODULES = ("nets", "spaces", "envs", "mdp", "report")

__all__ = [*_HOME, *_MODULES, "__version__"]  # pyright: ignore[reportUnsupportedDunderAll]

compat.prepare()


def __getattr__(name: str) -> Any:
    if name in _HOME:
        if _HOME[name] != "errors":
            compat.settle()
        return getattr(import_module(f"polyak.{_HOME[name]}"), name)
    if name in _MODULES:
        return import_module(f"polyak.{name}")
    if name == "__version__":
        return metadata.version("polyak")
    raise AttributeError(f"polyak has no {name!r}; it has {', '.join(sorted(__all__))}")


def __dir__() -> list[str]:
    return sorted(__all__)
