"""PPO, A2C, SAC, TD3 and DQN against Stable-Baselines3: same weights, same batch, same numbers (§8.6).

The numbers are what SB3's own `train` and `learn` did, kept as arrays by tools/sb3_references.py; nothing of SB3 runs
here. Gradients are read from Adam's first moment, so they are those after clipping. Where we differ on purpose, a line
says how, and the rest is compared. Not compared, because we differ as a whole: the bound on the norm of A2C's gradient
(ours bounds actor and critic apart), and when DQN's target moves (SB3 does that outside of `train`).
"""

import functools
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from numpy.testing import assert_allclose

from polyak import dists
from polyak.agents import ppo, td3
from polyak.agents.a2c import A2C
from polyak.agents.dqn import DQN
from polyak.agents.ppo import PPO
from polyak.agents.sac import SAC
from polyak.agents.td3 import TD3
from polyak.core import Rollout, Spec, Transition
from polyak.heads import Deterministic, Policy, PolicyValue, Squashed, Value
from polyak.nets import Critic, Dense, Stack, Torso
from polyak.spaces import Box, Discrete

FILES = sorted((Path(__file__).parents[1] / "references").glob("*.npz"))
B, T, N, D = 11, 6, 3, 5  # batch; steps and worlds of a rollout; numbers in an observation
OBS = Box(-math.inf, math.inf, (D,))
ACTIONS = {"discrete": Discrete(3), "box": Box(-9.0, 9.0, (2,))}
SQUASHED = Box(-1.0, 1.0, (2,))


@functools.cache
def read(name):
    """A file as a tree: what stands as `a/b` in it is read(name)["a"]["b"]."""
    tree = {}
    (path,) = [path for path in FILES if path.stem == name]
    with np.load(path, allow_pickle=False) as file:
        for key in file.files:
            *above, last = key.split("/")
            functools.reduce(lambda at, room: at.setdefault(room, {}), above, tree)[last] = file[key]
    return tree


def transitions(batch):
    return Transition(*(batch[name] for name in Transition._fields))


# ------------------------------------------------------------------------------------------------ SB3's names in ours


def dense(values, name):
    return Dense(values[f"{name}.weight"].T, values[f"{name}.bias"])  # torch has [out, in]


def stack(values, name, activation="relu"):
    return Stack((dense(values, f"{name}.0"), dense(values, f"{name}.2")), activation)


def torso(values, name, activation="relu"):
    return Torso((), stack(values, name, activation), OBS)


def actor_critic(values, action):
    torso_and_head = torso(values, "mlp_extractor.policy_net", "tanh"), dense(values, "action_net")
    actor = Policy(*torso_and_head, values.get("log_std"), action)
    return PolicyValue(actor, Value(torso(values, "mlp_extractor.value_net", "tanh"), dense(values, "value_net"), True))


def critics(values, name="critic"):
    encoder, layers = Torso((), Stack((), "relu"), OBS), [f"{name}.qf{k}" for k in (0, 1)]
    return tuple(Critic(encoder, stack(values, at), dense(values, f"{at}.4")) for at in layers)


def squashed(values):
    heads = dense(values, "actor.mu"), dense(values, "actor.log_std")
    return Squashed(torso(values, "actor.latent_pi"), *heads, SQUASHED)


def deterministic(values, name="actor"):
    return Deterministic(torso(values, f"{name}.mu"), dense(values, f"{name}.mu.4"), SQUASHED)


def action_values(values, name="q_net"):
    return Value(torso(values, f"{name}.q_net"), dense(values, f"{name}.q_net.4"), False)


# ------------------------------------------------------------------------------------------------ comparing


def equal(ours, theirs):
    """Two trees of the same shapes: rtol 1e-4; atol 1e-6 because terms of order 1, in float32, may nearly cancel."""
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(ours), jax.tree.leaves(theirs), strict=True):
        assert jnp.shape(a) == jnp.shape(b) and np.any(b)
        assert_allclose(a, b, rtol=1e-4, atol=1e-6, err_msg=jax.tree_util.keystr(path))


def moments(opt, params, name="mu"):
    """An optimiser's moment (Adam's first) as the parameters are laid out."""
    leaves, tree = jax.tree.flatten(params)
    ends = np.cumsum([leaf.size for leaf in leaves])[:-1]
    parts = np.split(np.asarray(optax.tree_utils.tree_get(opt, name)), ends)
    return tree.unflatten(part.reshape(leaf.shape) for part, leaf in zip(parts, leaves, strict=True))


def gradient(opt, params):
    """The gradient of Adam's first step: its moment is a tenth of it."""
    return jax.tree.map(lambda mu: mu * 10, moments(opt, params))


def logged(metrics, log, *names):
    """Metrics that have SB3's name."""
    equal({name: metrics[f"train/{name}"] for name in names}, {name: log[name] for name in names})


def begun(agent, action, n, **parts):
    """The state of an agent with these networks in place of its own, which must have the same shapes; the rest is 0."""
    state = jax.eval_shape(lambda: agent.init(jax.random.key(0), Spec(OBS, action, n, 1000)))
    own = {name: getattr(state, name) for name in parts}
    assert jax.tree.map(jnp.shape, own) == jax.tree.map(jnp.shape, parts)
    return jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), state)._replace(**parts)


@jax.jit
def learned(agent, state, batch, noise=()):
    """One call of `learn`, in which each draw of normal numbers is the next array of `noise`."""
    drawn = list(noise)[::-1]
    with pytest.MonkeyPatch.context() as patch:
        for module in (dists, td3):
            patch.setattr(module, "normal", lambda key, shape: drawn.pop())
        found = agent.learn(state, batch, jax.random.key(0))
    assert not drawn
    return found


updated = jax.jit(lambda agent, state, steps: agent.update(state, Rollout(steps, ()), jax.random.key(0)))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_file_holds_plain_numbers_and_says_whose(path):
    with np.load(path, allow_pickle=False) as file:
        kinds = {name: file[name].dtype for name in file.files}
    assert str(kinds.pop("versions")).startswith("<U")
    assert {str(kind) for kind in kinds.values()} <= {"float32", "int64", "bool"}
    assert path.stat().st_size < 100_000


# ------------------------------------------------------------------------------------------------ PPO

PPO_SAME = {
    "network": (8, 7), "rollout_length": B, "batch_size": B, "epochs": 1, "ent_coef": 0.03, "vf_coef": 0.6, "lr": 0.01,
    "normalize_advantage": False, "max_grad_norm": None,
}  # fmt: skip
PPO_SETTINGS = {
    ("discrete", "plain"): {},
    ("discrete", "bounded"): {"max_grad_norm": 0.2},
    ("box", "standardised"): {"normalize_advantage": True, "ent_coef": 0.0},
    ("box", "values_clipped"): {"clip_range_vf": 0.3},
}


@pytest.mark.parametrize("space", ACTIONS)
def test_actor_and_critic_say_the_same(space):
    reference = read(f"ppo_{space}")

    @jax.jit
    def said(params, obs, action):
        pi, V, *_ = params.over(obs, None, ())
        common = {"V": V, "log_prob": pi.log_prob(action), "entropy": pi.entropy()}
        if space == "discrete":
            return common | {"p": jax.nn.softmax(pi.logits)}
        return common | {"mean": pi.mean, "std": jnp.exp(pi.log_std)}

    obs, action = (reference["batch"][name] for name in ("obs", "action"))
    equal(said(actor_critic(reference["before"], ACTIONS[space]), obs, action), reference["forward"])


@pytest.mark.parametrize(("space", "setting"), PPO_SETTINGS)
def test_a_gradient_step_of_ppo(space, setting):
    """With ratios and values inside the clipping range and out of it; returns are advantage + old value in both.

    SB3 takes the error of the clipped V, we the larger of both errors, as in OpenAI's baselines. In this batch the
    clipped one is the larger one everywhere.
    """
    reference, action = read(f"ppo_{space}"), ACTIONS[space]
    batch, theirs = reference["batch"], reference[setting]
    agent = PPO(**PPO_SAME | PPO_SETTINGS[space, setting])
    minibatch = ppo.Batch(*(batch[name] for name in ("obs", "action", "log_prob", "value", "advantage")))
    begin = begun(agent, action, 1, params=actor_critic(reference["before"], action))
    state, metrics = learned(agent, begin, minibatch)
    grads = gradient(state.opt, state.params)
    log, their_grads = dict(theirs["log"]), actor_critic(theirs["gradient1"], action)
    if setting == "standardised":
        # SB3 divides advantages by the deviation with B − 1 in it, we with B: ours are greater by this factor, and with
        # them all of the policy's loss, since here no entropy is added to it.
        factor = np.float32(math.sqrt(B / (B - 1)))
        log["loss"] = log["loss"] + (factor - 1) * log["policy_gradient_loss"]
        log["policy_gradient_loss"] = factor * log["policy_gradient_loss"]
        their_grads = PolicyValue(jax.tree.map(lambda g: factor * g, their_grads.actor), their_grads.critic)
    parts = "policy_gradient_loss", "value_loss", "entropy_loss"
    logged(metrics, log, "loss", *parts, "approx_kl", "clip_fraction")
    assert 0.2 < metrics["train/clip_fraction"] < 0.9
    equal(grads, their_grads)
    if setting != "standardised":  # Adam's ε makes the smallest step of a greater gradient a little longer
        equal(state.params, actor_critic(theirs["after"], action))
    norm = optax.tree.norm(grads)
    assert norm == pytest.approx(0.2, rel=1e-4) if setting == "bounded" else norm > 0.3


def test_an_update_of_ppo():
    """Advantages over ends of every kind, the old policy's log-probabilities, two epochs, and Adam's two steps."""
    reference, action = read("ppo_update"), ACTIONS["box"]
    agent = PPO(
        network=(8, 7), rollout_length=T, batch_size=T * N, epochs=2, gamma=0.9, gae_lambda=0.8, ent_coef=0.03,
        vf_coef=0.6, lr=0.02, normalize_advantage=False, max_grad_norm=None,
    )  # fmt: skip
    theirs, before = reference["plain"], actor_critic(reference["before"], action)
    state, metrics = updated(agent, begun(agent, action, N, params=before), transitions(reference["batch"]))
    # Of the two epochs SB3 logs the last loss and approx_kl, we the mean; of these it logs the mean too.
    parts = "policy_gradient_loss", "value_loss", "entropy_loss"
    logged(metrics, theirs["log"], *parts, "clip_fraction", "explained_variance")
    first, second = (actor_critic(theirs[f"gradient{k}"], action) for k in (1, 2))
    mu = jax.tree.map(lambda g, h: 0.9 * 0.1 * g + 0.1 * h, first, second)
    equal(moments(state.opt, state.params), mu)
    equal(state.params, actor_critic(theirs["after"], action))


# ------------------------------------------------------------------------------------------------ A2C


@pytest.mark.parametrize("space", ACTIONS)
def test_an_update_of_a2c(space):
    """Advantages over ends of every kind, losses, the size of each gradient in RMSProp's moment, and its step."""
    reference, action = read(f"a2c_{space}"), ACTIONS[space]
    agent = A2C(
        network=(8, 7), rollout_length=T, gamma=0.9, gae_lambda=0.8, ent_coef=0.03, vf_coef=0.6, lr=0.02,
        max_grad_norm=None,
    )  # fmt: skip
    theirs, before = reference["plain"], actor_critic(reference["before"], action)
    state, metrics = updated(agent, begun(agent, action, N, params=before), transitions(reference["batch"]))
    parts = "policy_loss", "value_loss", "entropy_loss", "explained_variance"
    log = {name: theirs["log"][name] for name in parts}
    log["loss"] = log["policy_loss"] + 0.6 * log["value_loss"] + 0.03 * log["entropy_loss"]  # not logged there
    logged(metrics, log, *log)
    squares = moments(state.opts[0], before.actor, "nu"), moments(state.opts[1], before.critic, "nu")
    sizes = jax.tree.map(lambda nu: np.sqrt(nu / 0.01), PolicyValue(*squares))
    equal(sizes, jax.tree.map(abs, actor_critic(theirs["gradient1"], action)))  # the step has their signs
    equal(state.params, actor_critic(theirs["after"], action))


# ------------------------------------------------------------------------------------------------ with a replay

REPLAYED = {
    "network": (8, 7), "gamma": 0.9, "tau": 0.3, "lr": 0.02, "batch_size": B, "buffer_size": B, "learning_starts": 0
}  # fmt: skip


def test_values_of_dqn():
    reference = read("dqn")
    Q = jax.jit(lambda Q, obs: Q(obs))(action_values(reference["before"]), reference["batch"]["obs"])
    equal(Q, reference["forward"]["Q"])


def test_a_gradient_step_of_dqn():
    """Huber's loss on both sides of |δ| = 1; truncated transitions keep their successor's value."""
    reference = read("dqn")
    agent, before, theirs = DQN(**REPLAYED, max_grad_norm=None), reference["before"], reference["plain"]
    networks = {"Q": action_values(before), "Q_target": action_values(before, "q_net_target")}
    state, metrics = learned(agent, begun(agent, ACTIONS["discrete"], 4, **networks), transitions(reference["batch"]))
    logged(metrics, theirs["log"], "loss")
    equal(gradient(state.opt, state.Q), action_values(theirs["gradient1"]))
    equal(state.Q, action_values(theirs["after"]))


@jax.jit
def both(Qs, obs, action):
    return {"Q1": Qs[0](obs, action), "Q2": Qs[1](obs, action)}


def test_policy_and_values_of_td3():
    reference = read("td3")
    obs, action = (reference["batch"][name] for name in ("obs", "action"))
    mu = jax.jit(lambda actor, obs: actor(obs))(deterministic(reference["before"]), obs)
    equal({"mu": mu, **both(critics(reference["before"]), obs, action)}, reference["forward"])


def test_two_gradient_steps_of_td3():
    """The first moves the critics; the second also the actor, against the critics as they then are, and all targets."""
    reference = read("td3")
    agent = TD3(**REPLAYED | {"lr": 0.002}, target_noise=0.4, target_noise_clip=0.3, policy_delay=2)

    def parts(values):
        actors = {name: deterministic(values, name) for name in ("actor", "actor_target")}
        return actors | {"critics": critics(values), "critic_targets": critics(values, "critic_target")}

    theirs, batch = reference["plain"], transitions(reference["batch"])
    begin = begun(agent, SQUASHED, 1, **parts(reference["before"]))
    first, second = reference["batch"]["noise"]  # ε of (1) before σ̃ and c
    middle, one = learned(agent, begin, batch, (first,))
    end, two = learned(agent, middle, batch, (second,))
    metrics = {"train/critic_loss": (one["train/critic_loss"] + two["train/critic_loss"]) / 2}  # SB3 logs the mean
    logged(metrics | {"train/actor_loss": two["train/actor_loss"]}, theirs["log"], "critic_loss", "actor_loss")
    equal(gradient(middle.opts[1], begin.critics), critics(theirs["gradient1"]))
    mu, old = (moments(state.opts[1], begin.critics) for state in (end, middle))
    equal(jax.tree.map(lambda mu, old: 10 * (mu - 0.9 * old), mu, old), critics(theirs["gradient2"]))
    equal(gradient(end.opts[0], begin.actor), deterministic(theirs["gradient1"]))
    equal({name: getattr(end, name) for name in parts(theirs["after"])}, parts(theirs["after"]))


def test_policy_and_values_of_sac():
    """SB3 adds 1e-6 to 1 − a² in the density; its references are made with 0 in that place, as the density has it."""
    reference = read("sac")
    before, batch = reference["before"], reference["batch"]

    @jax.jit
    def said(actor, obs, action):
        pi = actor(obs)
        a, log_prob = pi.sample_and_log_prob(jax.random.key(0))
        found = {"mean": pi.mean, "log_std": pi.log_std, "a": a, "log_prob": log_prob}
        return found | {"log_prob_of_action": pi.log_prob(action)}

    obs, action = (batch[name] for name in ("obs", "action"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dists, "normal", lambda key, shape: jnp.asarray(batch["noise"][0]))
        found = said(squashed(before), obs, action)
    equal(found | both(critics(before), obs, action), reference["forward"])


@pytest.mark.parametrize(("setting", "ent_coef"), [("learned", "auto"), ("fixed", 0.2)])
def test_a_gradient_step_of_sac(setting, ent_coef):
    """Critics by the old temperature; the actor against the critics as they then are; temperature; targets."""
    reference = read("sac")
    agent = SAC(**REPLAYED, ent_coef=ent_coef, ent_coef_init=0.3)

    def parts(values):
        return {"actor": squashed(values), "critics": critics(values), "targets": critics(values, "critic_target")}

    before, theirs, batch = reference["before"], reference[setting], transitions(reference["batch"])
    begin = begun(agent, SQUASHED, 1, **parts(before), log_alpha=before["log_ent_coef"][0])  # SB3's has one element
    noise, noise_next = reference["batch"]["noise"]
    state, metrics = learned(agent, begin, batch, (noise_next, noise))  # we draw for the successors first
    logged(metrics, theirs["log"], "actor_loss", "critic_loss", "ent_coef")
    equal(gradient(state.opts[0], begin.actor), squashed(theirs["gradient1"]))
    equal(gradient(state.opts[1], begin.critics), critics(theirs["gradient1"]))
    equal({name: getattr(state, name) for name in parts(before)}, parts(theirs["after"]))
    if setting == "learned":
        logged(metrics, theirs["log"], "ent_coef_loss")
        equal(gradient(state.opts[2], begin.log_alpha), theirs["gradient1"]["log_ent_coef"][0])
        equal(state.log_alpha, theirs["after"]["log_ent_coef"][0])
