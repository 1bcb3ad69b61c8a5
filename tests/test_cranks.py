"""One loop on two cranks: they agree bit for bit, chunks leave no trace, seeds are independent, states come back."""

import dataclasses
import threading

import jax
import numpy as np
import pytest

from polyak import (
    A2C,
    C51,
    DDPG,
    DQN,
    PPO,
    REINFORCE,
    SAC,
    TD3,
    TQC,
    TRPO,
    ActorCritic,
    CrossQ,
    Linear,
    Normalised,
    QLearning,
    cranks,
)
from polyak.core import Spec
from polyak.envs.classic import WORLDS
from polyak.envs.vector import Vector
from polyak.errors import RunError
from polyak.optim import resolve_schedules
from polyak.spaces import Discrete

# The driver folds every iteration into one key per seed, which the checker takes for reuse.
pytestmark = pytest.mark.reuses_keys

STEPS = 100_000
SMALL = (16,)

AGENTS = {
    "ppo": PPO(rollout_length=16, batch_size=16, epochs=2, network=SMALL, lr=Linear(1e-3), target_kl=0.01),
    "trpo": TRPO(rollout_length=16, batch_size=16, critic_epochs=2, network=SMALL),
    "trpo-normalised": Normalised(TRPO(rollout_length=16, batch_size=32, critic_epochs=2, network=SMALL)),
    "ppo-normalised": Normalised(PPO(rollout_length=16, batch_size=32, epochs=2, network=SMALL)),
    "ppo-kl-gru": PPO(
        rollout_length=16,
        batch_size=16,
        epochs=2,
        network=SMALL,
        clip_range=None,
        kl_coef=1.0,
        d_targ=0.01,
        recurrent="gru",
        memory_size=8,
    ),
    "a2c": A2C(network=SMALL, gae_lambda=0.9, critic_lr=1e-3),
    "a2c-lstm": A2C(network=SMALL, recurrent="lstm", memory_size=8, optimizer="adam", shared=True),
    "reinforce": REINFORCE(rollout_length=16, network=SMALL, horizon=10, baseline="value", ent_coef=0.01),
    "actor-critic": ActorCritic(rollout_length=8, network=SMALL),
    "dqn": DQN(
        rollout_length=4, learning_starts=20, batch_size=8, network=SMALL, target_update_interval=24, double=True
    ),
    "dqn-prioritised": DQN(
        rollout_length=4,
        learning_starts=20,
        batch_size=8,
        network=SMALL,
        buffer_size=64,
        updates_per_step=0.5,
        prioritised=0.6,
        is_beta=Linear(0.4, 1.0),
        n_step=3,
        dueling=True,
    ),
    "dqn-lstm": DQN(rollout_length=4, learning_starts=20, batch_size=8, network=SMALL, recurrent="lstm", memory_size=8),
    "sac-gru": SAC(
        rollout_length=4,
        learning_starts=20,
        batch_size=8,
        network=SMALL,
        updates_per_step=0.25,
        recurrent="gru",
        memory_size=8,
    ),
    "sac-discrete": SAC(learning_starts=20, batch_size=8, network=SMALL),
    "c51": C51(rollout_length=4, learning_starts=20, batch_size=8, network=SMALL, prioritised=0.5, n_step=2),
    "sac": SAC(learning_starts=20, batch_size=8, network=SMALL),
    "sac-sde": SAC(learning_starts=20, batch_size=8, network=SMALL, sde=True, rollout_length=8),
    "ddpg": DDPG(learning_starts=20, batch_size=8, network=SMALL, noise="ou"),
    "td3": TD3(learning_starts=20, batch_size=8, network=SMALL, rollout_length=3, policy_delay=2),
    "tqc": TQC(learning_starts=20, batch_size=8, network=SMALL, n_quantiles=5, n_critics=3),
    "crossq": CrossQ(
        learning_starts=20, batch_size=8, network=SMALL, critic_network=SMALL, rollout_length=2, renorm_warmup=15
    ),
}
CASES = [
    ("ppo", "CartPole-v1", 4),
    ("ppo", "Acrobot-v1", 2),
    ("ppo", "GridWorld-v0", 2),
    ("ppo-normalised", "Pendulum-v1", 4),
    ("ppo-normalised", "MountainCar-v0", 2),
    ("trpo", "CartPole-v1", 4),
    ("trpo-normalised", "Pendulum-v1", 2),
    ("ppo-kl-gru", "CartPole-v1", 2),
    ("a2c", "CartPole-v1", 2),
    ("a2c-lstm", "Pendulum-v1", 2),
    ("reinforce", "CartPole-v1", 2),
    ("actor-critic", "Pendulum-v1", 2),
    ("dqn", "CartPole-v1", 2),
    ("dqn-prioritised", "CartPole-v1", 2),
    ("dqn-lstm", "CartPole-v1", 2),
    ("sac-gru", "Pendulum-v1", 2),
    ("sac-discrete", "CartPole-v1", 1),
    ("c51", "CartPole-v1", 2),
    ("sac", "Pendulum-v1", 1),
    ("sac-sde", "Pendulum-v1", 1),
    ("sac-sde", "MountainCarContinuous-v0", 2),
    ("ddpg", "MountainCarContinuous-v0", 2),
    ("td3", "Pendulum-v1", 1),
    ("tqc", "Pendulum-v1", 1),
    ("crossq", "Pendulum-v1", 1),
]


def parts(agent, world, n):
    made = WORLDS[world]()
    vector = Vector(made, n)
    return resolve_schedules(AGENTS[agent], STEPS), made, Spec(vector.obs_space, vector.action_space, n, STEPS)


def compiled(agent, world, n, seeds=(0,), mode="vmap"):
    agent, world, spec = parts(agent, world, n)
    return cranks.Compiled(agent, world, spec, seeds, mode)


def host(agent, world, n, seeds=(0,)):
    agent, world, spec = parts(agent, world, n)
    return cranks.Host(agent, lambda seed: cranks.JaxSteps(world, spec, seed), spec, seeds)


def leaves(crank, k=0):
    return cranks.named(crank.agent_state(k), "state")


def assert_same_bits(a, b):
    assert a.keys() == b.keys()
    different = [name for name in a if a[name].tobytes() != b[name].tobytes()]
    assert not different


@pytest.mark.parametrize(("agent", "world", "n"), CASES, ids=lambda x: str(x))
def test_cranks_agree_bit_for_bit(agent, world, n):
    one, two = compiled(agent, world, n), host(agent, world, n)
    first, second = one.advance(30)[0], two.advance(30)[0]
    assert_same_bits(leaves(one), leaves(two))
    assert first.episodes == second.episodes
    assert first.metrics.keys() == second.metrics.keys()
    for tag, (total, count) in first.metrics.items():
        assert count == second.metrics[tag][1]
        assert total == pytest.approx(second.metrics[tag][0], rel=1e-4)  # summed in float32 there, in float64 here
    np.testing.assert_allclose(first.ep_rew_mean, second.ep_rew_mean, rtol=1e-5)


@pytest.mark.parametrize("make", [compiled, host])
def test_chunks_leave_no_trace(make):
    whole, cut = make("ppo", "CartPole-v1", 2), make("ppo", "CartPole-v1", 2)
    whole.advance(13)
    for n in (1, 5, 7):
        cut.advance(n)
    for name, value in whole.snapshot()[0].items():
        assert value.tobytes() == cut.snapshot()[0][name].tobytes(), name


def test_seeds_in_map_mode_and_on_the_host_equal_a_seed_alone():
    for make in (
        lambda seeds: compiled("dqn", "CartPole-v1", 2, seeds, "map"),
        lambda seeds: host("dqn", "CartPole-v1", 2, seeds),
    ):
        many, alone = make((3, 4, 5)), make((4,))
        many.advance(20)
        alone.advance(20)
        assert_same_bits(leaves(many, 1), leaves(alone))


def test_lax_map_over_seeds_equals_a_loop():
    agent, world, spec = parts("ppo", "CartPole-v1", 2)
    keys = [cranks.agent_key(seed) for seed in (0, 1, 2)]
    vector = Vector(world, 2)

    def whole(pair):
        state = cranks.init(agent, vector, spec, *pair)
        return cranks.chunk(agent, vector, spec, state, 5)[0]

    mapped = jax.jit(lambda pairs: jax.lax.map(whole, pairs))(
        (jax.numpy.stack([k[0] for k in keys]), jax.numpy.stack([k[1] for k in keys]))
    )
    for i, pair in enumerate(keys):
        alone = jax.jit(whole)(pair)
        assert_same_bits(cranks.named(alone, ""), cranks.named(jax.tree.map(lambda x, i=i: x[i], mapped), ""))


@pytest.mark.parametrize(
    ("agent", "world", "n"), [("ppo", "CartPole-v1", 2), ("sac", "Pendulum-v1", 1), ("dqn", "CartPole-v1", 2)]
)
def test_vmapped_seeds_are_near_a_seed_alone(agent, world, n):
    iterations = 3 if agent == "ppo" else 24
    many, alone = compiled(agent, world, n, (7, 8)), compiled(agent, world, n, (8,))
    many.advance(iterations)
    alone.advance(iterations)
    for name, value in leaves(alone).items():
        # vmap batches the matrix products, which then add up in another order.
        np.testing.assert_allclose(leaves(many, 1)[name], value, rtol=2e-3, atol=2e-5, err_msg=name)


def test_seeds_differ():
    many = compiled("ppo", "CartPole-v1", 2, (0, 1))
    many.advance(1)
    a, b = leaves(many, 0), leaves(many, 1)
    weights = [name for name in a if name.endswith("/W")]
    assert weights
    assert all((a[name] != b[name]).any() for name in weights)


def test_a_branch_on_a_counter_stays_a_branch_under_vmap():
    many = compiled("dqn", "CartPole-v1", 2, (0, 1))
    text = many._chunk.lower(many.agent, many.vector, many.states[0], np.int32(1)).as_text()
    assert "stablehlo.case" in text or "stablehlo.if" in text


@pytest.mark.parametrize("make", [compiled, host])
@pytest.mark.parametrize(
    ("agent", "world", "n"),
    [("ppo-normalised", "Pendulum-v1", 2), ("dqn", "CartPole-v1", 2), ("sac-sde", "Pendulum-v1", 1)],
)
def test_a_restored_crank_goes_on_bit_for_bit(make, agent, world, n):
    whole = make(agent, world, n)
    whole.advance(17)
    first = make(agent, world, n)
    first.advance(6)
    arrays, meta = first.snapshot()
    arrays = {name: value.copy() for name, value in arrays.items()}
    second = make(agent, world, n)
    second.advance(2)  # what it held before must not matter
    second.restore(arrays, meta)
    assert second.iterations() == 6
    second.advance(11)
    ours, theirs = second.snapshot()[0], whole.snapshot()[0]
    assert_same_bits(ours, theirs)


def test_a_checkpoint_of_another_agent_is_refused_by_name():
    crank = compiled("ppo", "CartPole-v1", 2)
    arrays, meta = crank.snapshot()
    with pytest.raises(RunError, match="another agent"):
        compiled("dqn", "CartPole-v1", 2).restore(arrays, meta)


@pytest.mark.parametrize("make", [compiled, host])
def test_a_refused_restore_leaves_room_for_an_older_checkpoint(make):
    """The old state is dropped before the new one comes, and the next attempt needs only its shapes."""
    first = make("dqn", "CartPole-v1", 2)
    first.advance(3)
    arrays, meta = first.snapshot()
    arrays = {name: value.copy() for name, value in arrays.items()}
    second = make("dqn", "CartPole-v1", 2)
    torn = dict(arrays)
    del torn[max(torn)]
    with pytest.raises((RunError, KeyError)):
        second.restore(torn, meta)
    second.restore(arrays, meta)
    first.advance(3), second.advance(3)
    assert_same_bits(leaves(second), leaves(first))


def test_an_iteration_given_up_in_the_middle_is_repeated_exactly():
    """A stop in the middle of a long rollout saves the state before it, and the repeat equals the uninterrupted run."""
    whole, stopped = host("ppo", "CartPole-v1", 2), host("ppo", "CartPole-v1", 2)
    whole.advance(8)
    stopped.advance(3)
    event, seed = threading.Event(), stopped.all[0]
    step, calls = seed.world.step, []

    def stopping(*args):
        calls.append(0)
        if len(calls) == 9:
            event.set()
        return step(*args)

    seed.world.step = stopping
    stopped.advance(5, event)
    assert stopped.iterations() == 3
    assert len(calls) == 9
    arrays, meta = stopped.snapshot()
    again = host("ppo", "CartPole-v1", 2)
    again.restore(arrays, meta)
    again.advance(5)
    assert_same_bits(leaves(again), leaves(whole))


def test_recent_episodes_are_the_last_hundred():
    crank = compiled("ppo", "CartPole-v1", 4)
    report = crank.advance(60)[0]
    shadow = host("ppo", "CartPole-v1", 4)
    episodes = [episode.ret for episode in shadow.advance(60)[0].finished]
    assert report.episodes == len(episodes) > cranks.WINDOW
    assert report.ep_rew_mean == pytest.approx(np.mean(episodes[-cranks.WINDOW :]), rel=1e-6)


def test_act_is_handed_only_what_it_reads():
    crank = host("sac", "Pendulum-v1", 1)
    names = list(cranks.named(crank.agent_state(0), ""))
    read = [names[i] for i in crank._read]
    assert read
    assert all("/actor/" in name or "steps" in name for name in read)


def test_agents_are_plain_values():
    agent = AGENTS["ppo"]
    assert dataclasses.replace(agent) == agent
    assert hash(jax.tree.structure(agent)) == hash(jax.tree.structure(dataclasses.replace(agent)))


def test_many_seeds_in_two_groups_learn_what_they_learn_in_one(monkeypatch):
    """A table's arithmetic is the same in any batch: bit for bit, also after a snapshot."""
    n, world, spec = cranks.MANY + 1, WORLDS["GridWorld-v0"](), Spec(Discrete(40), Discrete(4), 1, 1000)

    def crank():
        return cranks.Compiled(QLearning(), world, spec, range(n))

    two, again = crank(), crank()
    reports = two.advance(60)
    again.restore(*two.snapshot())
    monkeypatch.setattr(cranks, "MANY", n + 1)
    one = crank()
    assert (len(one.states), len(two.states), len(reports)) == (1, 2, n)
    assert [r.episodes for r in one.advance(60)] == [r.episodes for r in reports]
    for each in (one, two, again):
        each.advance(40)
    for k in range(n):
        assert_same_bits(leaves(one, k), leaves(two, k))
        assert_same_bits(leaves(one, k), leaves(again, k))
