"""Every agent × space × {plain, recurrent, masked}: what it takes works as a whole, what it can't take is refused."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from polyak import A2C, C51, DDPG, DQN, PPO, REINFORCE, SAC, TD3, TQC, TRPO, ActorCritic, CrossQ, Normalised
from polyak.core import Rollout, Spec, Transition
from polyak.cranks import agent_key, arrays_of, chunk, init
from polyak.envs.probes import Memory
from polyak.envs.vector import Vector
from polyak.errors import PolyakError
from polyak.nets import CNN, MLP, sample_obs
from polyak.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Tuple

OBSERVATIONS = {
    "vector": Box(-1.0, 1.0, (3,)),
    "matrix": Box(-1.0, 1.0, (2, 3)),
    "scalar": Box(-1.0, 1.0, ()),
    "discrete": Discrete(4),
    "multidiscrete": MultiDiscrete((2, 3)),
    "bits": MultiBinary(3),
    "image": Box(0, 255, (12, 12, 2), np.uint8),
    "nested": Dict({"a": Tuple([Discrete(3), Box(-1.0, 1.0, (2,))]), "b": Box(0, 255, (12, 12, 1), np.uint8)}),
    "tuple": Tuple([MultiBinary(2), Dict({"x": Box(-1.0, 1.0, (2, 2))})]),
}
ACTIONS = {
    "discrete": Discrete(3),
    "multidiscrete": MultiDiscrete((2, 3)),
    "bits": MultiBinary(3),
    "box": Box(-1.0, 1.0, (2,)),
    "endless": Box(-math.inf, math.inf, (2,)),
    "dict": Dict({"a": Discrete(2)}),
}
MASKS = {"discrete": 3, "multidiscrete": 5, "bits": 3}
POLICIES = {"discrete", "multidiscrete", "bits", "box", "endless"}
TAKEN = {
    "REINFORCE": POLICIES, "ActorCritic": POLICIES, "A2C": POLICIES, "PPO": POLICIES, "TRPO": POLICIES,
    "DQN": {"discrete"}, "C51": {"discrete"}, "SAC": {"discrete", "box"},
    "DDPG": {"box"}, "TD3": {"box"}, "TQC": {"box"}, "CrossQ": {"box"},
}  # fmt: skip
TINY = CNN(((4, 4, 2),), 8)
REPLAY = {"rollout_length": 4, "batch_size": 4, "buffer_size": 40, "learning_starts": 4, "network": TINY}
AGENTS = {
    "REINFORCE": REINFORCE(rollout_length=4, baseline="value", network=TINY),
    "ActorCritic": ActorCritic(rollout_length=4, network=TINY),
    "A2C": A2C(rollout_length=4, network=TINY),
    "PPO": PPO(rollout_length=4, batch_size=4, network=TINY, kl_coef=1.0, d_targ=0.01),
    "TRPO": TRPO(rollout_length=4, batch_size=4, network=TINY),
    "DQN": DQN(dueling=True, n_step=2, prioritised=0.5, **REPLAY),
    "C51": C51(prioritised=0.5, **REPLAY),
    "SAC": SAC(**REPLAY),
    "DDPG": DDPG(noise="ou", **REPLAY),
    "TD3": TD3(**REPLAY),
    "TQC": TQC(n_quantiles=5, **REPLAY),
    "CrossQ": CrossQ(critic_network=TINY, **REPLAY),
}
MEMORIES = {
    "PPO gru": PPO(rollout_length=4, batch_size=4, network=TINY, recurrent="gru", memory_size=5),
    "PPO lstm": PPO(rollout_length=4, batch_size=2, network=TINY, recurrent="lstm", memory_size=5, shared=True),
    "A2C gru": A2C(rollout_length=4, network=TINY, recurrent="gru", memory_size=5, shared=True),
    "A2C lstm": A2C(rollout_length=4, network=TINY, recurrent="lstm", memory_size=5),
    "DQN gru": DQN(recurrent="gru", memory_size=5, dueling=True, double=True, **REPLAY),
    "DQN lstm": DQN(recurrent="lstm", memory_size=5, **REPLAY),
    "SAC gru": SAC(recurrent="gru", memory_size=5, **REPLAY),
    "SAC lstm": SAC(recurrent="lstm", memory_size=5, **REPLAY),
}


def turned(agent, spec, key):
    """One iteration on observations of zeros, to be traced: (state before, state after, memories, actions [N])."""
    k_init, k_act, k_update = jax.random.split(key, 3)
    state, N, memory = agent.init(k_init, spec), spec.n_envs, agent.memory(spec)
    obs = sample_obs(spec.obs, (N,))
    action, later = agent.act(state, obs, k_act, memory, explore=True)
    flags, reward = jnp.zeros(N, bool), jnp.zeros(N)
    record = Transition(obs, action, reward, obs, flags, ~flags)
    steps = jax.tree.map(lambda x: jnp.broadcast_to(x[None], (agent.rollout_length, *x.shape)), record)
    after, _ = agent.update(state, Rollout(steps, memory), k_update)
    best, last = agent.act(after, obs, key, memory, explore=False)
    return (state, after), (memory, later, last), (action, best)


def assert_one_shape(trees):
    shapes = [jax.tree.map(lambda x: (x.shape, x.dtype), tree) for tree in trees]
    assert all(other == shapes[0] for other in shapes[1:])


def assert_takes(agent, spec):
    """A whole iteration can be traced, keeps the shape of state and memory, and acts in the shape of the space."""
    states, memories, actions = jax.eval_shape(lambda key: turned(agent, spec, key), jax.random.key(0))
    assert_one_shape(states)
    assert_one_shape(memories)
    for a in actions:
        assert a.shape == (spec.n_envs, *spec.action.shape)
        assert np.dtype(a.dtype).kind == spec.action.dtype.kind


def with_mask(obs, n):
    return Dict({"action_mask": MultiBinary(n), "seen": obs})


@pytest.mark.reuses_keys
@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize("name", [*AGENTS, "Normalised"])
def test_every_observation_with_every_action(name, action):
    agent = Normalised(AGENTS["PPO"]) if name == "Normalised" else AGENTS[name]
    for obs in OBSERVATIONS.values():
        spec = Spec(obs, ACTIONS[action], 3, 100)
        if action in TAKEN["PPO" if name == "Normalised" else name]:
            assert_takes(agent, spec)
            continue
        with pytest.raises(PolyakError, match=r"can't take actions .*it takes"):
            jax.eval_shape(lambda key, s=spec: agent.init(key, s), jax.random.key(0))


@pytest.mark.reuses_keys
@pytest.mark.parametrize("action", MASKS)
@pytest.mark.parametrize("name", [*AGENTS, *MEMORIES])
def test_every_discrete_head_with_a_mask(name, action):
    if action not in TAKEN[name.split()[0]]:
        pytest.skip("not its actions: refused above")
    agent = (AGENTS | MEMORIES)[name]
    for obs in ("vector", "image", "nested"):
        assert_takes(agent, Spec(with_mask(OBSERVATIONS[obs], MASKS[action]), ACTIONS[action], 3, 100))


@pytest.mark.reuses_keys
@pytest.mark.parametrize("action", sorted(POLICIES))
@pytest.mark.parametrize("name", MEMORIES)
def test_every_observation_with_a_memory(name, action):
    if action not in TAKEN[name.split()[0]]:
        pytest.skip("not its actions: refused above")
    for obs in OBSERVATIONS.values():
        assert_takes(MEMORIES[name], Spec(obs, ACTIONS[action], 3, 100))


@pytest.mark.reuses_keys
@pytest.mark.parametrize("name", AGENTS)
def test_every_network_with_a_layer_norm(name):
    action = "discrete" if "discrete" in TAKEN[name] else "box"
    agent = dataclasses.replace(AGENTS[name], network=MLP((6, 5), "relu", "uniform", layer_norm=True))
    spec = Spec(OBSERVATIONS["vector"], ACTIONS[action], 3, 100)
    assert_takes(agent, spec)
    state = jax.eval_shape(lambda key: agent.init(key, spec), jax.random.key(0))
    names = {jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(state)}
    assert any("scale" in name for name in names)


# ------------------------------------------------------------------------------------------------ what a memory is for

SMALL = {"network": (16,), "memory_size": 16, "gamma": 0.9, "recurrent": "gru"}
LEARNERS = {
    "ppo": (PPO(rollout_length=12, batch_size=96, epochs=4, lr=1e-2, ent_coef=0.01, **SMALL), 120),
    "a2c": (A2C(rollout_length=12, lr=1e-2, optimizer="adam", ent_coef=0.01, shared=True, **SMALL), 400),
    "dqn": (
        DQN(
            rollout_length=12, batch_size=96, updates_per_step=1 / 12, lr=5e-3, eps_steps=8_000, buffer_size=4_800,
            learning_starts=500, target_update_interval=192, **SMALL,
        ),
        200,
    ),
    "sac": (
        SAC(
            rollout_length=12, batch_size=96, updates_per_step=1 / 12, lr=1e-2, buffer_size=4_800, learning_starts=500,
            tau=0.05, ent_coef=0.02, **SMALL,
        ),
        200,
    ),
}  # fmt: skip


def recalled(agent, iterations, n=8):
    """The mean return of the last training episodes on a world that shows a bit and asks for it three steps later."""
    vector = Vector(Memory(length=3), n)
    spec = Spec(vector.obs_space, vector.action_space, n, agent.rollout_length * n * iterations)

    @jax.jit
    def trained(agent, vector):
        return chunk(agent, vector, spec, init(agent, vector, spec, *agent_key(0)), iterations)[0].recent.returns

    return float(jnp.nanmean(trained(arrays_of(agent), arrays_of(vector))))


@pytest.mark.full
@pytest.mark.reuses_keys
@pytest.mark.parametrize("name", LEARNERS)
def test_a_memory_recalls_what_was_shown(name):
    """CT33: with a memory nearly all answers are right in the end; without one, no policy is right more than half."""
    agent, iterations = LEARNERS[name]
    assert recalled(agent, iterations) > 0.8
    assert recalled(dataclasses.replace(agent, recurrent=None), iterations // 4) < 0.4
