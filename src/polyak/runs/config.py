"""Agents as JSON and back: what config.json and presets hold. Classes come from the lists here, never from a file."""

import dataclasses
from collections.abc import Mapping
from typing import Any, cast

import jax
import numpy as np

from polyak import nets, optim
from polyak.agents.dqn import DQN
from polyak.agents.ppo import PPO
from polyak.agents.sac import SAC
from polyak.errors import PolyakError, RunError, nearest
from polyak.normalise import Normalised
from polyak.presets import preset

AGENTS: dict[str, Any] = {"ppo": PPO, "dqn": DQN, "sac": SAC}
_SCHEDULES: dict[str, Any] = {c.__name__: c for c in (optim.Constant, optim.Linear, optim.Exponential, optim.Cosine)}
_NETWORKS: dict[str, Any] = {c.__name__: c for c in (nets.MLP, nets.CNN)}


def encoded(value: Any) -> Any:
    """A field's value as JSON; a user's own network, which JSON can't hold, as {"custom": its type}."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, np.generic) or (isinstance(value, jax.Array) and value.ndim == 0):
        return value.item()
    if isinstance(value, tuple | list):
        return [encoded(item) for item in value]
    kind = type(value).__name__
    # Types, not their names: Equinox has an MLP as well.
    known = {"schedule": _SCHEDULES, "network": _NETWORKS}
    family = next((name for name, types in known.items() if type(value) in types.values()), None)
    if family is None:
        return {"custom": kind}
    return {family: kind} | {f.name: encoded(getattr(value, f.name)) for f in dataclasses.fields(cast("Any", value))}


def decoded(value: Any, where: str) -> Any:
    """A field's value from JSON."""
    if isinstance(value, list):
        return tuple(decoded(item, where) for item in value)
    if not isinstance(value, Mapping):
        return value
    for family, known in (("schedule", _SCHEDULES), ("network", _NETWORKS)):
        if value.get(family) in known:
            return known[value[family]](**{k: decoded(v, where) for k, v in value.items() if k != family})
    if "custom" in value:
        raise RunError(
            f"{where} is a {value['custom']} of your own, which the run folder can't hold: "
            "give it again, resume(path, agent=...)"
        )
    raise RunError(f"{where} is {dict(value)!r}, which is no schedule and no network")


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
    found = AGENTS.get(name.lower())
    if found is None:
        raise PolyakError(f"there is no algorithm {name!r}{nearest(name, AGENTS)}; there are {', '.join(AGENTS)}")
    return found


def agent_from(
    name: str, overrides: Mapping[str, Any], env: str, preset_name: str | None, normalise: bool | None
) -> Any:
    """(agent, preset or None): the preset's fields, then the user's."""
    kind = agent_class(name)
    chosen = preset(name, env, preset_name)
    fields = {} if chosen is None else {k: decoded(v, k) for k, v in chosen.fields.items()}
    agent = kind(**(fields | dict(overrides)))
    wrapper = chosen.normalised if chosen is not None and chosen.normalised is not None else None
    if normalise is None:
        normalise = wrapper is not None
    return (Normalised(agent, **(wrapper or {"gamma": _plain(agent.gamma)})) if normalise else agent), chosen


def _plain(gamma: Any) -> float:
    return gamma if isinstance(gamma, float) else 0.99
