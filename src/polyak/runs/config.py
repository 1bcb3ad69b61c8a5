"""Agents as JSON and back: what config.json and presets hold. Classes come from the lists here, never from a file."""

import dataclasses
from collections.abc import Mapping
from typing import Any, cast

import jax
import numpy as np

from polyak import catalogue, nets, optim
from polyak.agents.a2c import A2C
from polyak.agents.actor_critic import ActorCritic
from polyak.agents.c51 import C51
from polyak.agents.crossq import CrossQ
from polyak.agents.ddpg import DDPG
from polyak.agents.dqn import DQN
from polyak.agents.dyna_q import DynaQ
from polyak.agents.monte_carlo import MonteCarlo
from polyak.agents.ppo import PPO
from polyak.agents.q_learning import QLearning
from polyak.agents.reinforce import REINFORCE
from polyak.agents.sac import SAC
from polyak.agents.sarsa import SARSA
from polyak.agents.td import TD
from polyak.agents.td3 import TD3
from polyak.agents.tqc import TQC
from polyak.agents.trpo import TRPO
from polyak.errors import RunError
from polyak.mdp.features import FEATURES
from polyak.normalise import Normalised
from polyak.presets import preset

AGENTS: dict[str, Any] = {
    "reinforce": REINFORCE, "actor-critic": ActorCritic, "a2c": A2C,
    "ppo": PPO, "trpo": TRPO, "dqn": DQN, "c51": C51,
    "sac": SAC, "ddpg": DDPG, "td3": TD3, "tqc": TQC, "crossq": CrossQ,
    "q-learning": QLearning, "sarsa": SARSA, "td": TD,
    "monte-carlo": MonteCarlo, "dyna-q": DynaQ,
}  # fmt: skip
_SCHEDULES: dict[str, Any] = {c.__name__: c for c in (optim.Constant, optim.Linear, optim.Exponential, optim.Cosine)}
_NETWORKS: dict[str, Any] = {c.__name__: c for c in (nets.MLP, nets.CNN)}
# What a field may hold besides numbers and words: by the key that config.json marks it with.
_FAMILIES: dict[str, dict[str, Any]] = {"schedule": _SCHEDULES, "network": _NETWORKS, "features": FEATURES}
_LARGEST_TABLE = 100_000  # numbers of an array that config.json still holds


def encoded(value: Any) -> Any:
    """A field's value as JSON; a user's own network, which JSON can't hold, as {"custom": its type}."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, np.generic) or (isinstance(value, jax.Array) and value.ndim == 0):
        return value.item()
    if isinstance(value, tuple | list):
        return [encoded(item) for item in value]
    if isinstance(value, np.ndarray | jax.Array) and value.size <= _LARGEST_TABLE:
        return np.asarray(value).tolist()
    kind = type(value).__name__
    # Types, not their names: Equinox has an MLP as well.
    family = next((name for name, types in _FAMILIES.items() if type(value) in types.values()), None)
    if family is None:
        return {"custom": kind}
    return {family: kind} | {f.name: encoded(getattr(value, f.name)) for f in dataclasses.fields(cast("Any", value))}


def decoded(value: Any, where: str) -> Any:
    """A field's value from JSON."""
    if isinstance(value, list):
        return tuple(decoded(item, where) for item in value)
    if not isinstance(value, Mapping):
        return value
    for family, known in _FAMILIES.items():
        if value.get(family) in known:
            return known[value[family]](**{k: decoded(v, where) for k, v in value.items() if k != family})
    if "custom" in value:
        raise RunError(
            f"{where} is a {value['custom']} of your own, which the run folder can't hold: "
            "give it again, resume(path, agent=...)"
        )
    raise RunError(f"{where} is {dict(value)!r}, which is no schedule, no network and no features")


def agent_json(agent: Any) -> dict[str, Any]:
    """An agent with all its fields and their defaults; `normalised` holds the wrapper's fields, or None."""
    inner, wrapper = (agent.agent, agent) if isinstance(agent, Normalised) else (agent, None)
    return {
        "name": type(inner).__name__,
        "fields": {f.name: encoded(getattr(inner, f.name)) for f in dataclasses.fields(inner)},
        "defaults": {f.name: encoded(f.default) for f in dataclasses.fields(inner)},
        "normalised": None
        if wrapper is None
        else {f.name: encoded(getattr(wrapper, f.name)) for f in dataclasses.fields(wrapper) if f.name != "agent"},
    }


def agent_of(config: Mapping[str, Any]) -> Any:
    """The agent that `agent_json` described."""
    kind = agent_class(config["name"])
    agent = kind(**{name: decoded(value, f"{config['name']}.{name}") for name, value in config["fields"].items()})
    return agent if config["normalised"] is None else Normalised(agent, **config["normalised"])


def agent_class(name: str) -> Any:
    """The class of an algorithm by name, whatever its case."""
    return AGENTS[catalogue.algorithm(name).name]


def agent_from(
    name: str, overrides: Mapping[str, Any], env: str, preset_name: str | None, normalise: bool | None
) -> Any:
    """(agent, preset or None): the preset's fields, then the user's; either may be written as in config.json."""
    kind = agent_class(name)
    chosen = preset(name, env, preset_name)
    fields = {} if chosen is None else {k: decoded(v, k) for k, v in chosen.fields.items()}
    given = {k: decoded(v, k) if isinstance(v, Mapping) else v for k, v in overrides.items()}
    agent = kind(**(fields | given))
    wrapper = chosen.normalised if chosen is not None and chosen.normalised is not None else None
    if normalise is None:
        normalise = wrapper is not None
    return (Normalised(agent, **(wrapper or {"gamma": _plain(agent.gamma)})) if normalise else agent), chosen


def _plain(gamma: Any) -> float:
    return gamma if isinstance(gamma, float) else 0.99
