"""What holds for every agent: probe worlds, knobs that do something, and invariances of a gradient step."""

import dataclasses
import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from polyak.agents import actor_critic, c51, crossq, ddpg, dqn, ppo, sac, tqc
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
from polyak.core import Spec, Transition
from polyak.cranks import agent_key, arrays_of, chunk, init, named
from polyak.envs.classic import GridWorld, MountainCar, Reach
from polyak.envs.probes import (
    Catch,
    DelayedReward,
    Forever,
    ObservedAction,
    ObservedReward,
    ObservedTarget,
    PoisonedReset,
    Target,
)
from polyak.envs.vector import Vector
from polyak.mdp.features import OneHot, Tiles
from polyak.optim import Linear, resolve_schedules
from polyak.spaces import Box, Discrete

MODULES = {
    "ActorCritic": actor_critic, "PPO": ppo, "DQN": dqn, "C51": c51, "SAC": sac, "DDPG": ddpg, "TQC": tqc,
}  # fmt: skip


def _trained(agent, vector, spec, iterations, keys):
    state = init(agent, vector, spec, *keys)
    return chunk(agent, vector, spec, state, iterations)[0].agent


# The compiled crank's program. Float fields are leaves: one compilation serves all their values; and unoptimised, as
# worlds and networks are so small that they compile for longer than they run.
trained = jax.jit(_trained, static_argnums=2, compiler_options={"xla_backend_optimization_level": 0})


def advanced(agent, world, n, iterations, budget=None):
    """The agent's state after some iterations of a run whose budget is given in iterations."""
    vector = Vector(world, n)
    steps, reward = agent.rollout_length * n * (budget or iterations), getattr(world, "goal_reward", None)
    spec = Spec(vector.obs_space, vector.action_space, n, steps, goal_reward=reward)
    return trained(arrays_of(resolve_schedules(agent, spec.steps)), vector, spec, iterations, agent_key(0))


# ------------------------------------------------------------------------------------------------ probe worlds

FEW = {"gamma": 0.9, "network": (16,), "lr": 1e-2}
SMALL = {**FEW, "batch_size": 32}
REPLAY = {"buffer_size": 2000, "learning_starts": 32}
LEARNERS = {
    "reinforce": (REINFORCE(rollout_length=8, baseline="value", critic_lr=1e-2, **FEW), 600),
    "actor-critic": (ActorCritic(rollout_length=8, critic_lr=1e-2, **FEW), 600),
    "a2c": (A2C(rollout_length=8, gae_lambda=0.9, optimizer="adam", **FEW), 600),
    "ppo": (PPO(rollout_length=8, epochs=4, gae_lambda=0.9, **SMALL), 150),
    "trpo": (TRPO(rollout_length=8, critic_epochs=8, gae_lambda=0.9, target_kl=0.02, **SMALL), 150),
    "dqn": (
        DQN(rollout_length=2, updates_per_step=0.5, eps_steps=500, target_update_interval=16, **SMALL, **REPLAY),
        300,
    ),
    "c51": (
        C51(
            rollout_length=2,
            updates_per_step=0.5,
            eps_steps=500,
            target_update_interval=16,
            n_atoms=36,
            v_min=-20.0,
            v_max=120.0,
            **SMALL,
            **REPLAY,
        ),
        600,
    ),
    "sac": (SAC(tau=0.1, ent_coef=0.0, updates_per_step=0.5, **SMALL, **REPLAY), 300),
    "ddpg": (DDPG(tau=0.1, noise_std=0.3, updates_per_step=0.5, **SMALL, **REPLAY), 300),
    "td3": (TD3(tau=0.2, noise_std=0.3, updates_per_step=0.5, **SMALL, **REPLAY), 300),
    "tqc": (TQC(tau=0.1, ent_coef=0.0, n_quantiles=5, updates_per_step=0.5, **SMALL, **REPLAY), 300),
    "crossq": (
        # Some entropy keeps the moments of actions away from 0; a smaller step, as there are no targets.
        CrossQ(
            critic_network=(16,),
            ent_coef=0.01,
            updates_per_step=0.5,
            renorm_warmup=100,
            **SMALL | {"lr": 3e-3},
            **REPLAY,
        ),
        600,
    ),
}
CONTINUOUS = ("sac", "ddpg", "td3", "tqc", "crossq")  # on worlds that take both, with actions of a Box
# world, observations, V in them, how near it must be
VALUES = {
    "observed": (ObservedReward, [[-1.0], [1.0]], [-1.0, 1.0], 0.05),
    "delayed": (DelayedReward, [[0.0], [1.0]], [0.9, 1.0], 0.07),
    "forever": (Forever, [[0.0]], [10.0], 0.3),  # (1 − γ⁸)/(1 − γ) = 5.7 where truncation is taken for an end
    # 59 in the second, where V of the reset observation is believed at the clock's end
    "poisoned": (functools.partial(PoisonedReset, poison=100.0), [[1.0, 0.0], [0.0, 1.0]], [100.0, 0.0], 12.0),
}


def values(name, state, obs):
    match name:
        case "reinforce":
            return state.critic(obs)
        case "actor-critic":
            return (jax.nn.softmax(state.actor(obs).logits) * state.critic.net(obs)).sum(-1)
        case "ppo" | "a2c":
            return state.params.critic(obs)
        case "trpo":
            return state.critic(obs)
        case "dqn":
            return state.Q(obs).max(-1)
        case "c51":
            p = jax.nn.softmax(state.Z(obs).reshape(len(obs), -1, 36))
            return (p @ jnp.linspace(-20.0, 120.0, 36)).max(-1)
        case "ddpg":
            return state.critic(obs, jnp.zeros((len(obs), 1)))
        case "tqc":
            return state.critics[0](obs, jnp.zeros((len(obs), 1))).mean(-1)
        case "crossq":
            best = crossq._policy(state, obs).mode()  # a critic knows no action far from the moments of its batches
            return state.critics[0](state.critics_seen[0], obs, best)
        case _:
            return state.critics[0](obs, jnp.zeros((len(obs), 1)))


@pytest.mark.parametrize("probe", VALUES)
@pytest.mark.parametrize("name", LEARNERS)
def test_values_of_probe_worlds(name, probe):
    world, obs, expected, tolerance = VALUES[probe]
    agent, iterations = LEARNERS[name]
    if (name, probe) == ("reinforce", "forever"):  # nothing is bootstrapped: the mean return of 1 … 8 steps
        expected, tolerance = [3.593], 0.05
    state = advanced(agent, world(continuous=name in CONTINUOUS), 4, iterations)
    assert_allclose(values(name, state, jnp.array(obs)), expected, atol=tolerance)


def greedy(agent, state, obs):
    return np.asarray(agent.act(state, jnp.array(obs), jax.random.key(0), (), explore=False)[0])


@pytest.mark.parametrize("name", [name for name in LEARNERS if name not in CONTINUOUS])
def test_choices_of_probe_worlds(name):
    agent, iterations = LEARNERS[name]
    state = advanced(agent, ObservedAction(), 4, iterations)
    assert_array_equal(greedy(agent, state, [[-1.0], [1.0]]), [0, 1])


@pytest.mark.parametrize("world", [Target, ObservedTarget])
@pytest.mark.parametrize("name", [name for name in LEARNERS if name not in ("dqn", "c51")])
def test_targets_of_probe_worlds(name, world):
    """The best action within asymmetric bounds, and one that follows the observation."""
    agent, iterations = LEARNERS[name]
    state = advanced(agent, world(), 4, 2 * iterations)
    obs, best = ([[0.0]], [-0.35]) if world is Target else ([[-0.4], [0.0], [0.4]], [-0.4, 0.0, 0.4])
    assert_allclose(greedy(agent, state, obs)[:, 0], best, atol=0.12)


# ------------------------------------------------------------------------------------------------ knobs (CT28)

GRID = GridWorld(layout=("S.O", "..G"), slip=0.2, max_steps=5)
HILL = MountainCar(max_steps=5)
NEAR = Reach(threshold=0.5, max_steps=3)
EXPLORING = {"gamma": 0.9, "eps_start": 0.5, "eps_end": 0.2, "eps_steps": 20}
EXPLORES_ELSE = {"eps_start": 0.9, "eps_end": 0.9, "eps_steps": 100}
ACTING = {
    "rollout_length": 2, "updates_per_step": 0.5, "batch_size": 8, "buffer_size": 24, "learning_starts": 4, "lr": 0.05,
    "network": (4,), "max_grad_norm": 5.0, "tau": 0.1,
}  # fmt: skip
ACTS_ELSE = {
    "gamma": 0.5, "action_l2": 0.5, "noise_std": 0.5, "ou_theta": 0.5, "rollout_length": 4, "updates_per_step": 1.0,
    "batch_size": 6, "buffer_size": 12, "learning_starts": 20, "tau": 0.9, "lr": 0.01, "critic_lr": 0.02,
    "max_grad_norm": 0.01, "network": (5,), "hindsight": 3,
}  # fmt: skip

# For each agent a base, its world, and another value for every field.
KNOBS = {
    "REINFORCE": (
        REINFORCE(rollout_length=8, baseline="value", network=(4,), lr=0.05, critic_lr=0.05),
        Forever(continuous=True, max_steps=3),
        {
            "gamma": 0.9, "discounted": True, "horizon": 5, "baseline": "mean", "ent_coef": 0.1, "rollout_length": 16,
            "lr": 0.01, "critic_lr": 0.01, "critic_epochs": 2, "max_grad_norm": 0.01, "network": (5,),
            "log_std_init": -1.0,
        },
    ),
    "ActorCritic": (
        ActorCritic(rollout_length=4, network=(4,), lr=0.05, critic_lr=0.05),
        PoisonedReset(poison=1.0, continuous=True),
        {
            "gamma": 0.9, "ent_coef": 0.1, "rollout_length": 8, "lr": 0.01, "critic_lr": 0.01, "max_grad_norm": 0.01,
            "network": (5,), "log_std_init": -1.0,
        },
    ),
    "A2C": (
        A2C(rollout_length=4, network=(4,), lr=0.05, critic_lr=0.05),
        PoisonedReset(poison=1.0, continuous=True),
        {
            "gamma": 0.9, "gae_lambda": 0.5, "ent_coef": 0.1, "vf_coef": 0.2, "normalize_advantage": True,
            "rollout_length": 8, "lr": 0.01, "critic_lr": 0.01, "optimizer": "adam", "max_grad_norm": 0.01,
            "opt_eps": 1e-2, "network": (5,), "shared": True, "log_std_init": -1.0,
        },
    ),
    "PPO": (
        PPO(
            rollout_length=8, batch_size=8, epochs=2, network=(4,), lr=0.05, clip_range_vf=0.2, target_kl=0.5,
            kl_coef=0.5, d_targ=1e-4,
        ),
        PoisonedReset(poison=1.0, continuous=True),
        {
            "gamma": 0.9, "gae_lambda": 0.5, "clip_range": 0.05, "clip_range_vf": 0.01, "ent_coef": 0.1,
            "vf_coef": 0.2, "normalize_advantage": False, "rollout_length": 16, "epochs": 3, "batch_size": 16,
            "target_kl": 1e-4, "kl_coef": 2.0, "d_targ": 10.0, "lr": 0.01, "max_grad_norm": 0.01, "adam_eps": 1e-2,
            "network": (5,), "shared": True, "log_std_init": -1.0,
        },
    ),
    "TRPO": (
        TRPO(
            rollout_length=8, batch_size=8, critic_epochs=2, network=(4,), lr=0.05, target_kl=0.5, cg_damping=1e-3,
            max_grad_norm=0.5,
        ),
        PoisonedReset(poison=1.0, continuous=True),
        {
            "gamma": 0.9, "gae_lambda": 0.5, "target_kl": 0.01, "cg_iterations": 1, "cg_damping": 0.5,
            "line_search_steps": 1, "line_search_shrink": 0.5, "rollout_length": 16, "critic_epochs": 3,
            "batch_size": 16, "lr": 0.01, "max_grad_norm": 0.01, "network": (5,), "log_std_init": -1.0,
        },
    ),
    "DQN": (
        DQN(
            rollout_length=2, updates_per_step=0.5, batch_size=8, buffer_size=24, learning_starts=4, eps_steps=20,
            network=(4,), lr=0.05, target_update_interval=8, max_grad_norm=0.5, eps_start=0.9, prioritised=0.6,
        ),
        Catch(rows=4, columns=3),
        {
            "n_step": 3, "prioritised": 0.2, "is_beta": 0.9, "dueling": True,
            "gamma": 0.5, "double": True, "loss": "squared", "eps_start": 0.3, "eps_end": 0.9, "eps_steps": 100,
            "rollout_length": 4, "updates_per_step": 0.25, "batch_size": 6, "buffer_size": 12, "learning_starts": 20,
            "tau": 0.3, "target_update_interval": 20, "lr": 0.01, "max_grad_norm": 0.01, "adam_eps": 1e-2,
            "network": (5,),
        },
    ),
    "C51": (
        C51(
            rollout_length=2, updates_per_step=0.5, batch_size=8, buffer_size=24, learning_starts=4, eps_steps=20,
            network=(4,), lr=0.05, target_update_interval=8, max_grad_norm=0.5, eps_start=0.9, prioritised=0.6,
            v_min=-2.0, v_max=2.0, n_atoms=11,
        ),
        Catch(rows=4, columns=3),
        {
            "gamma": 0.5, "n_step": 3, "n_atoms": 21, "v_min": -3.0, "v_max": 3.0, "double": True, "eps_start": 0.3,
            "eps_end": 0.9, "eps_steps": 100, "rollout_length": 4, "updates_per_step": 0.25, "batch_size": 6,
            "buffer_size": 12, "prioritised": 0.2, "is_beta": 0.9, "learning_starts": 20, "tau": 0.3,
            "target_update_interval": 20, "lr": 0.01, "max_grad_norm": 0.01, "adam_eps": 1e-2, "network": (5,),
        },
    ),
    "SAC": (
        SAC(
            rollout_length=2, updates_per_step=0.5, batch_size=8, buffer_size=24, learning_starts=4, network=(4,),
            lr=0.05, sde=True, max_grad_norm=5.0, tau=0.1,
        ),
        NEAR,
        {
            "gamma": 0.5, "ent_coef": 0.7, "ent_coef_init": 0.1, "target_entropy": 1.0, "reward_scale": 0.5,
            "sde": False, "log_std_init": -1.0, "rollout_length": 4, "updates_per_step": 1.0, "batch_size": 6,
            "buffer_size": 12, "learning_starts": 20, "tau": 0.9, "lr": 0.01, "max_grad_norm": 0.01, "network": (5,),
            "hindsight": 3,
        },
    ),
    "DDPG": (
        DDPG(noise="ou", **ACTING),
        NEAR,
        {"noise": "gaussian", **ACTS_ELSE},
    ),
    "TD3": (
        TD3(noise="ou", **ACTING),
        NEAR,
        {"noise": "gaussian", "target_noise": 0.4, "target_noise_clip": 0.1, "policy_delay": 3, **ACTS_ELSE},
    ),
    "TQC": (
        TQC(n_quantiles=5, **ACTING),
        NEAR,
        {
            "gamma": 0.5, "n_critics": 3, "n_quantiles": 4, "drop_per_critic": 1, "ent_coef": 0.7, "ent_coef_init": 0.1,
            "target_entropy": 1.0, "rollout_length": 4, "updates_per_step": 1.0, "batch_size": 6, "buffer_size": 12,
            "hindsight": 3, "learning_starts": 20, "tau": 0.9, "lr": 0.01, "max_grad_norm": 0.01, "network": (5,),
            "critic_network": (5,),
        },
    ),
    "CrossQ": (
        CrossQ(
            rollout_length=2, updates_per_step=0.5, batch_size=8, buffer_size=24, learning_starts=4, network=(4,),
            critic_network=(4,), lr=0.05, max_grad_norm=5.0, policy_delay=2, renorm_warmup=4,
        ),
        PoisonedReset(poison=1.0, continuous=True),
        {
            "gamma": 0.5, "ent_coef": 0.7, "ent_coef_init": 0.1, "target_entropy": 1.0, "rollout_length": 4,
            "updates_per_step": 1.0, "policy_delay": 3, "batch_size": 6, "buffer_size": 12, "learning_starts": 20,
            "renorm_warmup": 8, "lr": 0.01, "adam_b1": 0.9, "max_grad_norm": 0.01, "network": (5,),
            "critic_network": (5,),
        },
    ),
    "QLearning": (
        QLearning(lr=0.3, features=Tiles(2, 3), **EXPLORING), HILL,
        {"lr": 0.1, "double": True, "q_init": 1.0, "gamma": 0.5, "features": Tiles(3, 3), **EXPLORES_ELSE},
    ),
    "SARSA": (
        SARSA(lr=0.3, features=Tiles(2, 3), **EXPLORING), HILL,
        {
            "lr": 0.1, "expected": True, "n_step": 2, "q_init": 1.0, "gamma": 0.5, "features": Tiles(3, 3),
            **EXPLORES_ELSE,
        },
    ),
    "TD": (
        TD(lr=0.3), GRID,
        {
            "lr": 0.1, "lam": 0.9, "n_step": 3, "policy": ((0.7, 0.1, 0.1, 0.1),) * 6, "v_init": 1.0, "gamma": 0.5,
            "features": OneHot(),
        },
    ),
    "MonteCarlo": (
        MonteCarlo(lr=0.3, **EXPLORING), GRID,
        {
            "lr": None, "first_visit": False, "policy": "uniform", "q_init": 1.0, "gamma": 0.5, "features": OneHot(),
            **EXPLORES_ELSE,
        },
    ),
    "DynaQ": (
        DynaQ(lr=0.3, kappa=0.1, planning_steps=3, **EXPLORING), GRID,
        {"lr": 0.1, "planning_steps": 5, "kappa": 0.3, "q_init": 1.0, "gamma": 0.5, **EXPLORES_ELSE},
    ),
}  # fmt: skip
# A memory of the episode goes neither with priorities nor with hindsight: its fields have bases of their own.
REMEMBERING = {
    name: (dataclasses.replace(base, recurrent="gru", memory_size=3, **apart), world)
    for name, apart, (base, world, _) in (
        (name, {"prioritised": None} if name == "DQN" else {}, KNOBS[name]) for name in ("A2C", "PPO", "DQN", "SAC")
    )
}
# Fields that don't affect training; one-hot features are the table that there is without features.
DEAD: dict[str, set[str]] = {name: set() for name in KNOBS} | {"TD": {"features"}, "MonteCarlo": {"features"}}


def learned_bits(agent, world):
    """What was learned in 24 iterations (PPO: 3): every leaf of the state but the replay and the counters."""
    state = advanced(agent, world, 2, 3 if isinstance(agent, PPO | TRPO) else 24, 1000)
    parts = named(state, "")
    return b"".join(x.tobytes() for name, x in parts.items() if "/replay/" not in name and "/steps/" not in name)


@pytest.mark.full
@pytest.mark.reuses_keys
@pytest.mark.parametrize("name", KNOBS)
def test_no_knob_is_dead(name):
    base, world, others = KNOBS[name]
    fields = {field.name for field in dataclasses.fields(base)} - {"recurrent", "memory_size"}
    assert set(others) == fields, "every hyper-parameter stands in the table"
    start = learned_bits(base, world)
    same = {f for f, value in others.items() if learned_bits(dataclasses.replace(base, **{f: value}), world) == start}
    assert same == DEAD[name]


@pytest.mark.full
@pytest.mark.reuses_keys
@pytest.mark.parametrize("name", REMEMBERING)
def test_no_knob_of_a_memory_is_dead(name):
    base, world = REMEMBERING[name]
    others = ({}, {"recurrent": "lstm"}, {"memory_size": 4}, {"recurrent": None})
    assert len({learned_bits(dataclasses.replace(base, **other), world) for other in others}) == len(others)


# ------------------------------------------------------------------------------------------------ one gradient step

B, D, K = 7, 5, 3
OBS = Box(-1.0, 1.0, (D,))
STEPS = {
    "PPO": PPO(
        network=(8,), normalize_advantage=False, ent_coef=0.1, clip_range_vf=0.2, clip_range=0.1, max_grad_norm=None
    ),
    "ActorCritic": ActorCritic(network=(8,), gamma=0.0, ent_coef=0.1, max_grad_norm=None),  # a′ is drawn per batch
    "DQN": DQN(network=(8,), double=True, max_grad_norm=None, buffer_size=10, rollout_length=4),
    "C51": C51(network=(8,), double=True, buffer_size=10, rollout_length=4, v_min=-3.0, v_max=3.0),
    "SAC": SAC(network=(8,), ent_coef=0.0, buffer_size=10),
    "DDPG": DDPG(network=(8,), critic_lr=0.0, buffer_size=10),
    "TQC": TQC(network=(8,), ent_coef=0.0, buffer_size=10, n_quantiles=5),
}  # REINFORCE, whose V may take several steps: test_invariances.py. Not CrossQ: a batch's statistics couple it


def prepared(name, seed=0):
    """(state, batch [B]) away from the start. SAC's policy is (nearly) deterministic: its noise is drawn per batch."""
    agent, rng = STEPS[name], np.random.default_rng(seed)
    box = name in ("SAC", "DDPG", "TQC")
    action = Box(-1.0, 1.0, (2,)) if box else Discrete(K)
    state = jax.jit(lambda key: agent.init(key, Spec(OBS, action, 1, 100)))(jax.random.key(seed))
    obs, next_obs = (jnp.float32(rng.normal(size=(B, D))) for _ in range(2))
    a = jnp.float32(rng.uniform(-1, 1, (B, 2))) if box else jnp.int32(rng.integers(0, K, B))
    x, y, z = (jnp.float32(rng.normal(size=B)) for _ in range(3))
    if name == "PPO":
        head = dataclasses.replace(state.params.actor.head, W=jax.random.normal(jax.random.key(2), (8, K)))
        actor = dataclasses.replace(state.params.actor, head=head)
        state = state._replace(params=dataclasses.replace(state.params, actor=actor))
        log_prob = state.params.actor(obs).log_prob(a) + 0.1 * x
        return agent, state, ppo.Batch(obs, a, log_prob, y, z)
    if name == "ActorCritic":
        head = dataclasses.replace(state.actor.head, W=jax.random.normal(jax.random.key(2), (8, K)))
        state = state._replace(actor=dataclasses.replace(state.actor, head=head))
    if name in ("SAC", "TQC"):
        last = dataclasses.replace(state.actor.log_std, W=jnp.zeros((8, 2)), b=jnp.full(2, -30.0))
        state = state._replace(actor=dataclasses.replace(state.actor, log_std=last))
    end = jnp.arange(B) % 3 == 0
    return agent, state, Transition(obs, a, x, next_obs, end, ~end)


@functools.cache
def gradients_of(name):
    """A jitted function (state, batch) ↦ all that one `learn` descends along."""

    def gradients(agent, state, batch):
        kept = []

        def keep(rule, lr, grads, opt, params):
            kept.append(grads)
            return params, opt

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(MODULES[name], "descend", keep)
            agent.learn(state, batch, jax.random.key(0))
        return kept

    return jax.jit(gradients)


def assert_same_gradients(a, b):
    scale = max(float(abs(x).max()) for x in jax.tree.leaves(b))
    assert scale > 0.01
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert_allclose(x, y, rtol=1e-4, atol=1e-5 * scale)


@pytest.mark.reuses_keys
@pytest.mark.parametrize("name", STEPS)
def test_a_batch_is_the_mean_of_its_transitions(name):
    """CT13, CT14: the gradient of a batch is the mean of those of its transitions, in any order, doubled or not."""
    agent, state, batch = prepared(name)
    gradients = gradients_of(name)
    whole = gradients(agent, state, batch)
    singles = [gradients(agent, state, jax.tree.map(lambda x, i=i: x[i : i + 1], batch)) for i in range(B)]
    assert_same_gradients(jax.tree.map(lambda *g: sum(g) / B, *singles), whole)
    order = np.random.default_rng(1).permutation(B)
    assert_same_gradients(gradients(agent, state, jax.tree.map(lambda x: x[order], batch)), whole)
    twice = jax.tree.map(lambda x: jnp.concatenate([x, x]), batch)
    assert_same_gradients(gradients(agent, state, twice), whole)


# Where `lr` moves only a part of the weights.
MOVED_BY_LR = {"TRPO": "/critic/", "REINFORCE": "/actor/", "ActorCritic": "/actor/", "A2C": "/actor/"}


@pytest.mark.reuses_keys
@pytest.mark.parametrize("name", [name for name, (base, *_) in KNOBS.items() if "network" in vars(base)])
def test_a_schedule_takes_the_value_of_the_step(name):
    """A learning rate that has come down to 0 moves nothing, one that hasn't moves everything that `lr` is of."""
    base, world, _ = KNOBS[name]
    length = 0.5 if name == "PPO" else 0.75
    agent = dataclasses.replace(base, lr=Linear(0.05, 0.0, length))
    iterations, weights = 8, []
    for n in range(1, iterations + 1):
        parts = named(advanced(agent, world, 2, n, iterations), "")
        parts = {n: x for n, x in parts.items() if MOVED_BY_LR.get(name, "") in n}
        weights.append(b"".join(x.tobytes() for n, x in parts.items() if n.endswith("/W") and "arget" not in n))
    moved = [a != b for a, b in itertools.pairwise(weights)]
    last = math.ceil(length * iterations) - 1  # weights[i] is after iteration i, taken with the rate of step i
    assert all(moved[:last]) and not any(moved[last:])
