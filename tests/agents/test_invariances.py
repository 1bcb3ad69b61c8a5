"""What must not change what an agent learns: scales and offsets of rewards, orders, names, copies, batches of seeds.

One gradient step is looked at, of which Adam's first moment keeps the gradient: step sizes are 0, so that nothing has
moved when the next loss is taken. Where a step draws numbers, every transition is given the same: what depends on the
place in a batch is the noise alone, and of it nothing is asked here.
"""

import dataclasses
import functools
import math
import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from numpy.testing import assert_allclose, assert_array_equal

from polyak import dists, replay
from polyak.agents import td3
from polyak.agents.a2c import A2C
from polyak.agents.actor_critic import ActorCritic
from polyak.agents.c51 import C51
from polyak.agents.crossq import CrossQ
from polyak.agents.ddpg import DDPG
from polyak.agents.dqn import DQN
from polyak.agents.ppo import PPO
from polyak.agents.reinforce import REINFORCE
from polyak.agents.sac import SAC
from polyak.agents.td3 import TD3
from polyak.agents.tqc import TQC
from polyak.agents.trpo import TRPO
from polyak.core import Counter, Rollout, Spec, Transition, seed_axes
from polyak.cranks import _stack, _unstack, arrays_of, named
from polyak.normalise import Moments, Normalised
from polyak.replay import Drawn
from polyak.spaces import Box, Dict, Discrete, MultiBinary

pytestmark = pytest.mark.reuses_keys  # two steps are compared under one key

T, N, B, D, K, ATOMS = 3, 4, 8, 4, 5, 7  # no other array has K or K · ATOMS numbers in a row: those are actions
PLAIN = Box(-1.0, 1.0, (D,))
MASKED = Dict({"action_mask": MultiBinary(K), "x": PLAIN})
FAST = {"xla_backend_optimization_level": 0}  # networks are so small that they compile for longer than they run

QUIET = {"network": (6,), "gamma": 0.5, "lr": 0.0, "max_grad_norm": None}
ROLLS = {**QUIET, "rollout_length": T}
WHOLE = {**ROLLS, "batch_size": T * N, "gae_lambda": 0.75}
DRAWS = {
    **ROLLS, "batch_size": B, "buffer_size": T * N, "learning_starts": 0, "updates_per_step": 1 / (T * N),
}  # fmt: skip
SEQUENCES = {**DRAWS, "batch_size": T * N}
GRU = {"recurrent": "gru", "memory_size": 6}
ROLLOUTS = {
    "reinforce": REINFORCE(baseline="value", discounted=True, ent_coef=0.1, critic_lr=0.0, **ROLLS),
    "reinforce-mean": REINFORCE(ent_coef=0.1, **ROLLS),
    "actor-critic": ActorCritic(ent_coef=0.1, critic_lr=0.0, **ROLLS),
    "a2c": A2C(optimizer="adam", gae_lambda=0.75, ent_coef=0.1, **ROLLS),
    "a2c-gru": A2C(optimizer="adam", gae_lambda=0.75, shared=True, normalize_advantage=True, **ROLLS, **GRU),
    "ppo": PPO(epochs=1, ent_coef=0.1, **WHOLE),
    "ppo-raw": PPO(epochs=1, ent_coef=0.1, clip_range_vf=0.2, normalize_advantage=False, **WHOLE),
    # It moves, by steps that are smooth in the gradient, so that ratios leave 1.
    "ppo-twice": PPO(epochs=2, clip_range=0.05, adam_eps=1.0, **WHOLE | {"lr": 0.5}),
    "trpo": TRPO(critic_epochs=1, **WHOLE),
}
BATCHES = {
    "dqn": DQN(double=True, dueling=True, loss="squared", **DRAWS),
    "dqn-gru": DQN(**SEQUENCES, **GRU),
    "c51": C51(double=True, n_atoms=ATOMS, v_min=-3.0, v_max=3.0, **DRAWS),
    "sac-discrete": SAC(**DRAWS),
    "sac": SAC(**DRAWS),
    "ddpg": DDPG(action_l2=0.1, **DRAWS),
    "td3": TD3(action_l2=0.1, policy_delay=1, **DRAWS),
    "tqc": TQC(n_quantiles=3, drop_per_critic=1, **DRAWS),
    "crossq": CrossQ(critic_network=(6,), policy_delay=1, renorm_warmup=0, **DRAWS),
}
CASES = ROLLOUTS | BATCHES
BOXES = ("sac", "ddpg", "td3", "tqc", "crossq")
MODES = ("reinforce-mean", "a2c-gru", "ppo-raw", "ppo-twice", "dqn-gru")  # of an agent that is there without them
AGENTS = [name for name in CASES if name not in MODES]


# ------------------------------------------------------------------------------------------------ one gradient step


class Experience(NamedTuple):
    """All that a step learns from; on policy and with a memory [T, N], else [B]."""

    state: Any
    steps: Transition
    memory: Any


def spec_of(name):
    obs, action = (PLAIN, Box(-1.0, 1.0, (2,))) if name in BOXES else (MASKED, Discrete(K))
    return Spec(obs, action, N, 1000)


def path_of(path):
    return jax.tree_util.keystr(path, simple=True, separator="/")


def mapped(f, tree):
    """f(name, leaf) of every leaf."""
    return jax.tree_util.tree_map_with_path(lambda path, x: f(path_of(path), x), tree)


def away(agent, spec, rng):
    """A state away from the start: weights at random, nothing in the optimiser and the replay."""

    def leaf(name, x):
        if re.search(r"(W|b|scale|shift|log_std)$", name) and "opt" not in name:
            return np.float32(rng.normal(0.0, 0.5, x.shape)) + np.float32(name.endswith("scale"))
        if name.endswith("log_alpha"):
            return np.full(x.shape, -0.7, x.dtype)
        return (np.ones if name.endswith("std") else np.zeros)(x.shape, x.dtype)  # running deviations; all else

    return mapped(leaf, jax.eval_shape(lambda key: agent.init(key, spec), jax.random.key(0)))


def seen(spec, lead, rng):
    x = np.float32(rng.normal(size=(*lead, D)))
    return {"action_mask": np.int32(rng.random((*lead, K)) < 0.7), "x": x} if spec.obs is MASKED else x


def recorded(name, spec, lead, rng):
    """Transitions of no world in particular: the clock ends some, the world some, and every action was allowed."""
    obs, next_obs = seen(spec, lead, rng), seen(spec, lead, rng)
    action = np.int32(rng.integers(0, K, lead))
    if name in BOXES:
        action = np.float32(rng.uniform(-1, 1, (*lead, 2)))
    else:
        np.put_along_axis(obs["action_mask"], action[..., None], 1, -1)
        next_obs["action_mask"][..., 1] = 1
    at, reward = np.arange(math.prod(lead)).reshape(lead) % 5, np.float32(rng.normal(size=lead))
    return Transition(obs, action, reward, next_obs, at == 0, at == 2)


def experience(name, seed=0):
    agent, spec, rng = CASES[name], spec_of(name), np.random.default_rng(seed)
    state = away(agent, spec, rng)
    if name.startswith("reinforce"):
        state = state._replace(age=np.int32([0, 3, 1, 5]))
    plain = name in BATCHES and "gru" not in name
    memory = jax.eval_shape(lambda: agent.memory(spec))
    memory = jax.tree.map(lambda m: np.float32(rng.uniform(-1, 1, m.shape)), memory)
    return Experience(state, recorded(name, spec, (B,) if plain else (T, N), rng), memory)


def watched(state):
    """(name, parameters, optimiser's state) of all that Adam moves."""
    opts = state.opts if "opts" in state._fields else (state.opt,)
    if "params" in state._fields:  # PPO's are one tree for one optimiser
        both = (("actor/", state.params.actor), ("critic/", state.params.critic))
        trees = [("", state.params)] if len(opts) == 1 else both
    else:
        names = [name for name in ("actor", "critic", "critics", "Q", "Z", "log_alpha") if name in state._fields]
        trees = [(f"{name}/", getattr(state, name)) for name in names[-len(opts) :]]  # not TRPO's actor
    return [(name, tree, opt) for (name, tree), opt in zip(trees, opts, strict=True)]


def gradients_in(before, after):
    """By name what a step from one state to the other went along: Adam's first moments; TRPO's step itself."""
    found = {}
    for name, params, opt in watched(after):
        for adam in (x for x in jax.tree.leaves(opt, is_leaf=lambda x: hasattr(x, "mu")) if hasattr(x, "mu")):
            tree = ravel_pytree(params)[1](adam.mu)
            found |= {name + path_of(path): g for path, g in jax.tree_util.tree_leaves_with_path(tree)}
    if not any(name.startswith(("actor", "Q", "Z")) for name in found):
        step = jax.tree.map(jnp.subtract, after.actor, before.actor)
        found |= {f"actor/{path_of(path)}": g for path, g in jax.tree_util.tree_leaves_with_path(step)}
    return found


def same_noise(key, shape):
    """Instead of normal numbers: the same ones for every transition."""
    return jnp.broadcast_to(jnp.linspace(-0.7, 0.4, shape[-1])[(None,) * (len(shape) - 1)], shape)


def stepped(agent, given, key):
    """(gradients by name, metrics) of one step, without jit."""
    state, steps, memory = given
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dists, "normal", same_noise)
        patch.setattr(td3, "normal", same_noise)
        patch.setattr(dists.Categorical, "sample", lambda self, key: self.mode())
        if agent.on_policy:
            after, metrics = agent.update(state, Rollout(steps, memory), key)
        else:
            after, metrics = agent.learn(
                state, steps, key, *([Drawn(memory=memory)] if jax.tree.leaves(memory) else [])
            )
    return gradients_in(state, after), metrics


step = jax.jit(stepped, compiler_options=FAST)


def learnable(agent, given):
    """The agent with all that is given as its minibatch."""
    return dataclasses.replace(agent, batch_size=given.steps.reward.size) if isinstance(agent, PPO | TRPO) else agent


def learned(agent, given):
    """(gradients by name, metrics) of one step."""
    return jax.device_get(step(arrays_of(learnable(agent, given)), given, jax.random.key(0)))


@functools.cache
def usual(name):
    return learned(CASES[name], experience(name))


# Conjugate gradients, whose 15 steps carry roundings on.
TOLERANCE = {"trpo": 1e-3}


def assert_same(got, wanted, rtol=1e-5):
    """Gradients agree, relative to the largest of their network; and no network has none."""
    assert got.keys() == wanted.keys()
    for part in sorted({name.split("/")[0] for name in wanted}):
        names = [name for name in wanted if name.split("/")[0] == part]
        scale = max(abs(wanted[name]).max() for name in names)
        assert scale > 1e-4, part
        for name in names:
            assert_allclose(got[name], wanted[name], rtol=rtol, atol=rtol * scale, err_msg=name)


@pytest.mark.full
@pytest.mark.parametrize("name", CASES)
def test_learning_is_the_same_without_jit(name):
    """The compiler fuses and orders sums anew, and changes nothing else."""
    given = jax.tree.map(jnp.asarray, experience(name))
    with jax.disable_jit():
        plain, _ = stepped(learnable(CASES[name], given), given, jax.random.key(0))
    assert_same(jax.device_get(plain), usual(name)[0], TOLERANCE.get(name, 1e-4))


# ------------------------------------------------------------------------------------------------ orders and copies


def chosen(given, which):
    """The experience of some environments, or the transitions of a batch, in the order given."""
    state, steps, memory = given
    if "age" in state._fields:
        state = state._replace(age=state.age[which])
    axis = steps.reward.ndim - 1
    steps = jax.tree.map(lambda x: np.take(x, which, axis), steps)
    return Experience(state, steps, jax.tree.map(lambda m: m[which], memory))


def size_of(given):
    return given.steps.reward.shape[-1]


@pytest.mark.parametrize("name", CASES)
def test_the_order_of_environments_does_not_matter(name):
    """Nor that of a batch, of transitions or of sequences."""
    given = experience(name)
    other, _ = learned(CASES[name], chosen(given, np.arange(size_of(given))[::-1]))
    assert_same(other, usual(name)[0], TOLERANCE.get(name, 1e-5))


@pytest.mark.parametrize("name", CASES)
def test_a_batch_that_is_there_twice_is_learned_from_once(name):
    """The same gradients and the same losses, also where the statistics of a batch enter."""
    half = chosen(experience(name), np.arange(size_of(experience(name)) // 2))
    (once, losses), (twice, again) = (
        learned(CASES[name], x) for x in (half, chosen(half, np.tile(np.arange(size_of(half)), 2)))
    )
    assert_same(twice, once, TOLERANCE.get(name, 1e-5))
    assert losses.keys() == again.keys()
    for tag, value in losses.items():
        assert_allclose(again[tag], value, rtol=1e-4, atol=1e-6, err_msg=tag)


# What is coupled: by the mean of returns, by standardised advantages (TRPO's step is no mean either), by the ratios
# that a first half step has left behind, by batch renormalisation.
COUPLED = ("reinforce-mean", "a2c-gru", "ppo", "ppo-twice", "trpo", "crossq")


@pytest.mark.parametrize("name", [name for name in CASES if name not in COUPLED])
def test_the_gradient_of_a_batch_is_the_mean_of_those_of_its_halves(name):
    given = experience(name)
    n = size_of(given) // 2
    halves = [learned(CASES[name], chosen(given, np.arange(n) + start))[0] for start in (0, n)]
    assert_same({part: (halves[0][part] + halves[1][part]) / 2 for part in halves[0]}, usual(name)[0])


# ------------------------------------------------------------------------------------------------ rewards

VALUES = re.compile(r"^(params/)?(critic|critics|critic_target|critic_targets|targets|Q|Q_target)/")
LAST = re.compile(r"/(head|value|advantage)/[Wb]$")


def is_value_head(name):
    return bool(VALUES.search(name) and LAST.search(name))


def scaled(agent, given, c):
    """Rewards · c in a world where all that is counted in units of reward is · c too."""
    units = ("v_min", "v_max", "clip_range_vf", "action_l2")
    # Entropy has a price in units of reward, unless advantages are standardised.
    units += ("ent_coef",) if not isinstance(agent, SAC | TQC | CrossQ) and not standardises(agent) else ()
    fields = {name: getattr(agent, name) for name in units if hasattr(agent, name)}
    agent = dataclasses.replace(agent, **{name: c * value for name, value in fields.items() if value is not None})

    def leaf(name, x):
        if name == "log_alpha":
            return x + np.float32(math.log(c))
        return x * np.float32(c) if is_value_head(name) and not isinstance(agent, C51) else x

    state, steps, memory = given
    return agent, Experience(mapped(leaf, state), steps._replace(reward=steps.reward * np.float32(c)), memory)


def standardises(agent):
    return isinstance(agent, TRPO) or getattr(agent, "normalize_advantage", False)


def power(name, agent):
    """How often a gradient is multiplied by c where rewards are: values are linear in their heads."""
    if isinstance(agent, C51) or name.startswith("log_alpha"):
        return 0  # distributions are on the same atoms; entropies are what they were
    if name.startswith("actor"):
        return 0 if standardises(agent) else 1
    return 1 if is_value_head(name) else 2


# Without what has no scale: a torso under both losses, ratios of a step that went by Adam's ε, Huber's bend at 1.
SCALABLE = [name for name in CASES if name not in ("a2c-gru", "ppo-twice", "dqn-gru")]


@pytest.mark.parametrize("name", SCALABLE)
def test_rewards_on_another_scale_scale_the_gradients(name):
    """A loss of values is · c², a policy's · c, or not changed at all where advantages are standardised.

    So a step size divided by the same factor takes the same step; Adam's steps don't ask.
    """
    agent, given = CASES[name], experience(name)
    if name == "tqc":  # down to where its loss is squared
        agent, given = scaled(agent, given, 1 / 64)
    one, before = learned(agent, given)
    four, after = learned(*scaled(agent, given, 4.0))
    if name == "tqc":  # in units in which the parts are large enough to be compared
        one, four = ({n: 4096 * g for n, g in gradients.items()} for gradients in (one, four))
    assert_same({n: g / 4.0 ** power(n, agent) for n, g in four.items()}, one, TOLERANCE.get(name, 1e-5))
    squared = {"train/value_loss", "train/critic_loss"} | ({"train/loss"} if name == "dqn" else set())
    for tag in sorted(squared & before.keys()):
        assert_allclose(after[tag], 16 * before[tag], rtol=1e-5, err_msg=tag)


def test_rewards_in_other_units_by_the_reward_scale():
    agent, (state, steps, memory) = CASES["sac"], experience("sac")
    other, _ = learned(
        dataclasses.replace(agent, reward_scale=0.25),
        Experience(state, steps._replace(reward=4 * steps.reward), memory),
    )
    assert_same(other, usual("sac")[0])


def raised(agent, given, constant, gamma):
    """Rewards + constant in a world without end, whose values are all worth constant / (1 − γ) more."""
    state, steps, memory = given
    more = np.float32(constant / (1 - gamma))
    if isinstance(agent, C51):
        agent = dataclasses.replace(agent, v_min=agent.v_min + more, v_max=agent.v_max + more)
    else:
        lifted = re.compile(r"/(head|value)/b$")  # a duel's advantages stay
        state = mapped(lambda name, x: x + more if VALUES.search(name) and lifted.search(name) else x, state)
    return agent, Experience(state, steps._replace(reward=steps.reward + np.float32(constant)), memory)


@pytest.mark.parametrize("name", [name for name in CASES if name != "reinforce"])
def test_a_constant_on_top_of_all_rewards_changes_no_gradient(name):
    """Worlds go on, or the clock stops them. REINFORCE bootstraps nothing, and is asked for γ = 0 alone.

    A critic of actions has no baseline: the actor is pushed by the constant's worth times mean ∇ log π(a | s), whose
    expectation is 0, and by nothing else.
    """
    agent, (state, steps, memory) = CASES[name], experience(name)
    gamma = 0.0 if name == "reinforce-mean" else 0.5
    agent = dataclasses.replace(agent, gamma=gamma)
    given = Experience(state, steps._replace(terminated=np.zeros_like(steps.terminated)), memory)
    assert given.steps.truncated.any()
    (one, _), (other, _) = learned(agent, given), learned(*raised(agent, given, 1.0, gamma))
    if name == "actor-critic":

        def score(actor, obs, action):
            return -1.0 / (1 - gamma) * actor(obs).log_prob(action).mean()

        push = jax.jit(jax.grad(score), compiler_options=FAST)(state.actor, steps.obs, steps.action)
        for path, g in jax.tree_util.tree_leaves_with_path(push):
            other[f"actor/{path_of(path)}"] = other[f"actor/{path_of(path)}"] - 0.1 * np.asarray(g)  # 1 − β1
    assert_same(other, one, max(TOLERANCE.get(name, 0), 2e-5))


# ------------------------------------------------------------------------------------------------ actions

DISCRETE = [name for name in CASES if name not in BOXES and name != "reinforce-mean"]


def relabelled(tree, order):
    """Whatever has a number for each action, with these in another order; the action j was order[j] before."""

    def leaf(x):
        if np.ndim(x) and x.shape[-1] == K:
            return np.asarray(x)[..., order]
        if np.ndim(x) and x.shape[-1] == K * ATOMS:
            return np.asarray(x).reshape(*x.shape[:-1], K, ATOMS)[..., order, :].reshape(x.shape)
        return x

    return jax.tree.map(leaf, tree)


@pytest.mark.parametrize("name", DISCRETE)
def test_the_names_of_actions_do_not_matter(name):
    """The head's columns, the mask and what was done under other numbers: gradients under these numbers."""
    order = np.array([3, 0, 4, 1, 2])
    state, steps, memory = experience(name)
    action = np.argsort(order).astype(np.int32)[steps.action]
    other, _ = learned(
        CASES[name], Experience(relabelled(state, order), relabelled(steps, order)._replace(action=action), memory)
    )
    assert_same(other, relabelled(usual(name)[0], order), TOLERANCE.get(name, 1e-5))


def column(x):
    """What belongs to the first action."""
    return x.reshape(*x.shape[:-1], K, -1)[..., 0, :] if x.shape[-1] == K * ATOMS else x[..., :1]


@pytest.mark.parametrize("name", DISCRETE)
def test_an_action_that_is_masked_everywhere_neither_learns_nor_counts(name):
    """Its own gradients are exactly 0; its value or its logit may be anything, and no bit of the others follows it."""
    state, steps, memory = experience(name)
    action = np.where(steps.action == 0, 1, steps.action)
    for obs in (steps.obs, steps.next_obs):
        obs["action_mask"][..., 0] = 0
        obs["action_mask"][..., 1] = 1
    given = Experience(state, steps._replace(action=action), memory)
    one, _ = learned(CASES[name], given)
    heads = [n for n, g in one.items() if g.shape and g.shape[-1] in (K, K * ATOMS)]
    assert heads
    for n in heads:
        assert_array_equal(column(one[n]), 0.0, err_msg=n)
        assert one[n].any()

    def huge(n, x):
        if n.endswith("/b") and "opt" not in n and x.shape[-1] == K:
            return x + np.float32([1e6, 0, 0, 0, 0])
        if n.endswith("/b") and "opt" not in n and x.shape[-1] == K * ATOMS:
            return x + np.float32([0] * (ATOMS - 1) + [1e3] + [0] * ATOMS * (K - 1))  # it gives v_max for certain
        return x

    other, _ = learned(CASES[name], given._replace(state=mapped(huge, state)))
    for n in one:
        assert_array_equal(other[n], one[n], err_msg=n)


# ------------------------------------------------------------------------------------------------ observations


@functools.partial(jax.jit, compiler_options=FAST)
def normalised_step(agent, state, steps, key):
    """Gradients of the agent inside `Normalised`, of one update."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dists, "normal", same_noise)
        patch.setattr(td3, "normal", same_noise)
        after, _ = agent.update(state, Rollout(steps, ()), key)
    return gradients_in(state.agent, after.agent)


@pytest.mark.parametrize("what", ["observations", "rewards"])
@pytest.mark.parametrize("name", AGENTS)
def test_units_do_not_matter_under_the_normaliser(name, what):
    """Observations a x + b, in statistics and rollout, are the same observations; rewards · 4 the same rewards."""
    agent, spec, rng = arrays_of(Normalised(CASES[name], gamma=0.5)), spec_of(name), np.random.default_rng(2)
    state, steps = away(agent, spec, rng), recorded(name, spec, (T, N), rng)
    a, b = np.float32([0.25, 8.0, 2.0, 1.0]), np.float32([0.0, 3.0, -1.5, 0.5])
    count = Counter(np.int32(0), np.int32(50))
    mean, var = np.float32(rng.normal(size=D)), np.float32(rng.uniform(0.5, 2.0, D))
    G = np.float32(rng.normal(size=N))

    def step_of(a, b, c):
        def moved(obs):
            return obs | {"x": a * obs["x"] + b} if isinstance(obs, dict) else a * obs + b

        moments = tuple(Moments(a * mean + b, a**2 * var, count) if m else m for m in state.obs)
        given = state._replace(
            obs=moments, returns=Moments(c * np.float32(0.3), c**2 * np.float32(1.7), count), G=c * G
        )
        told = steps._replace(obs=moved(steps.obs), next_obs=moved(steps.next_obs), reward=c * steps.reward)
        return jax.device_get(normalised_step(agent, given, told, jax.random.key(0)))

    one = np.float32(1)
    other = step_of(a, b, one) if what == "observations" else step_of(one, np.float32(0), np.float32(4))
    assert_same(other, step_of(one, np.float32(0), one), TOLERANCE.get(name, 2e-5))


# ------------------------------------------------------------------------------------------------ seeds and chunks

UPDATES = 4
SEEDED = {
    name: dataclasses.replace(
        CASES[name], lr=1e-3, **({"updates_per_step": 2 / (T * N)} if name in BATCHES else {}),
        **({"batch_size": T * N // 2} if name in ("ppo", "trpo") else {}),
    )
    for name in AGENTS
}  # fmt: skip


def bits(tree):
    return {name: x.tobytes() for name, x in named(tree, "").items()}


@pytest.mark.full
@pytest.mark.parametrize("name", SEEDED)
def test_seeds_side_by_side_and_chunks_learn_what_one_seed_learns_step_by_step(name):
    """Of three seeds, two of them the same: k updates under vmap, in one program (lax.map over lax.scan), one by one.

    The cranks around it are compared in test_cranks.py.
    """
    agent, spec = arrays_of(SEEDED[name]), spec_of(name)

    def begun(seed):
        rng = np.random.default_rng(seed)
        state = jax.tree.map(jnp.asarray, away(agent, spec, rng))
        rollouts = [Rollout(recorded(name, spec, (T, N), rng), agent.memory(spec)) for _ in range(UPDATES)]
        return state, jax.tree.map(lambda *x: jnp.stack(x), *rollouts), jax.random.split(jax.random.key(seed), UPDATES)

    def update(state, rollout, key):
        return agent.update(state, rollout, key)[0]

    def loop(update, state, rollouts, keys):
        for i in range(UPDATES):
            state = update(state, *jax.tree.map(lambda x, i=i: x[i], (rollouts, keys)))
        return state

    @functools.partial(jax.jit, compiler_options=FAST)
    def chunks(states, rollouts, keys):
        def chunk(seed):
            return jax.lax.scan(lambda state, x: (update(state, *x), ()), seed[0], seed[1:])[0]

        return jax.lax.map(chunk, (states, rollouts, keys))

    alone = jax.jit(update, compiler_options=FAST)
    seeds = [begun(seed) for seed in (3, 3, 4)]
    states, rollouts, keys = (jax.tree.map(lambda *x: jnp.stack(x), *parts) for parts in zip(*seeds, strict=True))
    loops = [loop(alone, *seed) for seed in seeds[1:]]
    together = chunks(states, rollouts, keys)
    for i, one in ((1, loops[0]), (2, loops[1])):
        assert bits(jax.tree.map(lambda x, i=i: x[i], together)) == bits(one)
    assert bits(loops[0]) != bits(loops[1])

    counters = seed_axes(seeds[0][0])
    vmapped = jax.jit(jax.vmap(update, in_axes=(counters, 0, 0), out_axes=counters), compiler_options=FAST)
    steps = jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), (rollouts, keys))
    many = loop(vmapped, _stack([state for state, *_ in seeds]), *steps)
    many = [_unstack(many, counters, i) for i in range(3)]
    assert bits(many[0]) == bits(many[1])
    for mine, one in zip(many[1:], loops, strict=True):
        for n, x in named(one, "").items():
            assert_allclose(named(mine, "")[n], x, rtol=1e-5, atol=1e-7, err_msg=n)


# ------------------------------------------------------------------------------------------------ places in a replay

ROWS, WORLDS, STACK = 12, 2, 2
GOALS = Dict(dict.fromkeys(("achieved_goal", "desired_goal", "observation"), PLAIN))
RINGS = {
    "plain": (PLAIN, {}),
    "frames": (Box(0, 255, (3, 3, STACK), np.uint8), {}),
    "prioritised": (PLAIN, {"prioritised": True}),
    "sequences": (PLAIN, {"memory": jnp.zeros((WORLDS, 2))}),
    "hindsight": (GOALS, {"goals": 2}),
}


def happened(obs, rng):
    """A rollout [T, WORLDS] whose last step ends all episodes, so that what follows it begins anew."""

    def leaf(x):
        return (
            np.asarray(rng.integers(0, 255, x.shape), x.dtype)
            if x.dtype == np.uint8
            else np.float32(rng.normal(size=x.shape))
        )

    lead = (T, WORLDS)
    seen = [jax.tree.map(leaf, replay.sample_obs(obs, lead)) for _ in range(2)]
    terminated, truncated = rng.random(lead) < 0.2, rng.random(lead) < 0.2
    truncated[-1] = True
    reward, action = np.float32(rng.normal(size=lead)), np.int32(rng.integers(0, K, lead))
    return Transition(seen[0], action, reward, seen[1], terminated, truncated)


# Sequences and hindsight know single steps only.
@pytest.mark.parametrize(("kind", "n_step"), [*((kind, 1) for kind in RINGS), *((kind, 4) for kind in list(RINGS)[:3])])
def test_a_place_in_the_replay_says_nothing(kind, n_step):
    """The same rollouts, after more and more others: every place leads to what stood at the place before it.

    So does every window of n steps, every sequence with its memory, every goal and every priority. A draw of frames
    counts from the oldest row, and brings the same for the same key.
    """
    obs, options = RINGS[kind]
    spec = Spec(obs, Discrete(K), WORLDS, 1000, STACK if kind == "frames" else 0, lambda a, b: ((a - b) ** 2).sum())
    rng = np.random.default_rng(0)
    others, held = ([happened(obs, rng) for _ in range(n)] for n in (7, ROWS // T))
    # One episode runs over the border between two rollouts.
    held[1].truncated[-1, 0] = held[1].terminated[-1, 0] = False
    if kind == "hindsight":
        held[2] = jax.tree.map(np.copy, held[2])
        for key, _ in GOALS.items:
            held[2].obs[key][0, 0] = held[1].next_obs[key][-1, 0]
    memories = [np.float32(rng.normal(size=(WORLDS, 2))) for _ in held]
    errors, chance = (
        jnp.float32(rng.uniform(0.1, 9.0, ROWS * WORLDS)),
        jnp.int32(rng.integers(0, 1 << 24, ROWS * WORLDS)),
    )
    agent = CASES["dqn"]
    add = jax.jit(replay.add, compiler_options=FAST)

    @functools.partial(jax.jit, compiler_options=FAST)
    def read(ring, places, chance):
        if kind == "hindsight":
            places = jnp.stack([places, chance])
        return replay._read(ring, places, spec.frames, n_step, agent, T)

    def told(before):
        """(what places lead to, in order of time; priorities; what one key draws, in order of time)."""
        ring = replay.ring(spec, ROWS * WORLDS, T, **options)
        for steps in others[:before]:
            ring = add(ring, steps, memories[0])
        for steps, memory in zip(held, memories, strict=True):
            ring = add(ring, steps, memory)
        first = STACK if kind == "frames" else 0  # of the rows whose stacks are whole
        rows = np.arange(first, ROWS)[:: T if kind == "sequences" else 1]
        places = ((rows + before * T) % ROWS * WORLDS)[:, None] + np.arange(WORLDS)[None]
        places = jnp.int32(places.reshape(-1))
        priorities = drawn = ()
        if kind == "prioritised":
            ring = replay.reprioritised(ring, places, errors, 0.5)
            priorities = ring.sums[-1][places]
        if kind == "frames":
            drawn = (replay.draw(ring, jax.random.key(1), (20,)) - before * T * WORLDS) % (ROWS * WORLDS)
        return jax.device_get((read(ring, places, chance[: len(places)]), priorities, drawn))

    wanted = told(0)
    if n_step > 1:
        assert len(np.unique(wanted[0][1].k)) > 2
    for before in (1, 2, 3, 4, 7):
        for x, y in zip(jax.tree.leaves(told(before)), jax.tree.leaves(wanted), strict=True):
            assert_array_equal(x, y)
