"""The 2013 preprocessing: pictures, lives, clipping, FIRE, and full games in log, snapshot and statistics (V1, V2)."""

import ale_py
import numpy as np
import pytest
from ale_py import roms

from polyak import spaces
from polyak.envs import resolve
from polyak.envs.atari import AreaAverage, Atari
from polyak.envs.foreign import ForeignVector
from polyak.envs.gymspaces import random_actions
from polyak.envs.host import HostVector, Tier
from polyak.errors import PolyakError


def host(game, n=1, seed=0, **kwargs):
    return HostVector(lambda: Atari(game, **kwargs), n, seed, name=f"ale:{game}", frames=4, tier=Tier(2))


def drive(vector, steps, seed=0):
    rng = np.random.default_rng(seed)
    return [vector.step(random_actions(vector.action_space, vector.n_envs, rng)) for _ in range(steps)]


@pytest.mark.parametrize(("height", "width", "size"), [(210, 160, 84), (250, 160, 84), (7, 5, 3), (4, 4, 4), (6, 3, 3)])
def test_shrinking_is_the_exact_mean_of_the_area(height, width, size):
    picture = np.random.default_rng(0).integers(0, 256, (height, width)).astype(np.uint8)
    # Each pixel repeated `size` times each way: then every output pixel is a whole block.
    rows = np.repeat(picture.astype(np.float64), size, 0).reshape(size, height, width).mean(1)
    mean = np.repeat(rows, size, 1).reshape(size, size, width).mean(2)
    shrunk = AreaAverage(height, width, size)(picture)
    assert shrunk.dtype == np.uint8
    np.testing.assert_array_equal(shrunk, np.floor(mean + 0.5 + 1e-9))


def test_a_picture_is_the_maximum_of_the_last_two_of_four_frames():
    env = Atari("Pong", noop_max=0, fire=False)
    env.reset(seed=0)
    ale = ale_py.ALEInterface()
    ale.setFloat("repeat_action_probability", 0.0)
    ale.setInt("random_seed", 0)
    ale.loadROM(str(roms.get_rom_path("pong")))
    ale.reset_game()
    rng, expected = np.random.default_rng(1), []
    for _ in range(40):
        action = int(rng.integers(6))
        screens, reward = [], 0
        for _ in range(4):
            reward += ale.act(ale.getMinimalActionSet()[action])
            screens.append(ale.getScreenGrayscale().reshape(210, 160))
        expected.append(AreaAverage(210, 160, 84)(np.maximum(screens[2], screens[3])))
        obs, got, *_ = env.step(action)
        assert got == reward
    np.testing.assert_array_equal(obs, np.stack(expected[-4:], -1))


def test_the_stack_is_newest_last_and_starts_with_one_picture_repeated():
    vector = host("Pong")
    obs = vector.reset()
    assert vector.obs_space == spaces.Box(0, 255, (84, 84, 4), np.uint8)
    assert (obs == obs[..., :1]).all()
    before = obs
    for step in drive(vector, 30):
        np.testing.assert_array_equal(step.next_obs[..., :3], before[..., 1:])
        before = step.obs


@pytest.mark.parametrize("frames", [1, 2, 4])
def test_any_number_of_frames_can_be_stacked(frames):
    env = Atari("Pong", frames=frames)
    last, _ = env.reset(seed=0)
    for _ in range(6):
        obs = env.step(2)[0]
        assert obs.shape == (84, 84, frames)
        np.testing.assert_array_equal(obs[..., :-1], last[..., 1:])
        last = obs


def test_a_lost_life_ends_the_learners_episode_and_not_the_game():
    vector = host("Breakout", seed=2)
    obs = vector.reset()
    lost, games = 0, []
    rng = np.random.default_rng(0)
    for _ in range(700):
        step = vector.step(random_actions(vector.action_space, 1, rng))
        np.testing.assert_array_equal(step.next_obs[..., :3], obs[..., 1:])  # the true successor, at a lost life too
        over = vector.episodes()
        games += over
        if step.terminated[0]:
            lost += 1
            assert (step.obs == step.obs[..., :1]).all()
            if not over:
                np.testing.assert_array_equal(step.obs[..., 3], step.next_obs[..., 3])
        obs = step.obs
    assert len(games) >= 2
    assert lost >= 5 * len(games)
    lengths = [game.length for game in games]
    assert min(lengths) > 100  # all five lives


def test_evaluation_plays_whole_games_for_raw_points():
    source = resolve("ale:SpaceInvaders")
    assert source.frames == 4
    training, evaluation = source.vector(1, 0), source.vector(1, 0, "eval")
    for vector in (training, evaluation):
        vector.reset()
    learnt, raw = drive(training, 700), drive(evaluation, 700)
    assert {float(s.reward[0]) for s in learnt} == {0.0, 1.0}
    assert max(float(s.reward[0]) for s in raw) >= 5
    games, whole = training.episodes(), evaluation.episodes()
    assert sum(s.terminated[0] for s in learnt) > len(games)
    assert sum(s.terminated[0] for s in raw) == len(whole) >= 1
    # What training reports is the raw score of the whole game too.
    assert games[0].ret >= 5
    assert games[0].ret == pytest.approx(games[0].ret // 5 * 5)


def test_training_reports_the_raw_score_that_the_same_actions_earn():
    clipped, plain = host("SpaceInvaders"), host("SpaceInvaders", life_loss=False, clip_rewards=False)
    for vector in (clipped, plain):
        vector.reset()
        drive(vector, 700)
    games = clipped.episodes()
    assert games
    np.testing.assert_equal(games, plain.episodes())


def test_no_ops_are_drawn_from_the_seed_and_bounded():
    env = Atari("Pong", fire=False)
    counts = set()
    for seed in range(40):
        env.reset(seed=seed)
        counts.add(env._count)
    assert min(counts) >= 1
    assert max(counts) <= 30
    assert len(counts) > 10
    first = env.reset(seed=5)[0]
    env.reset(seed=6)
    np.testing.assert_array_equal(first, env.reset(seed=5)[0])


def test_fire_is_pressed_at_the_start_and_after_a_lost_life():
    env = Atari("Breakout", noop_max=0)
    pressed = []
    act = env._act
    env._act = lambda button: pressed.append(button) or act(button)
    env.reset(seed=0)
    fire = env._fire
    assert pressed == [fire] * 4
    lives = 5
    for _ in range(400):
        pressed.clear()
        info = env.step(0)[-1]
        if lives > info["lives"] > 0:
            pressed.clear()
            env.step(0)
            assert pressed == [fire] * 4 + [0] * 4
            return
        assert pressed == [0] * 4
        lives = info["lives"]
    pytest.fail("no life was lost")


@pytest.mark.parametrize("cut", [0, 1, 130, 333])
def test_a_game_is_restored_in_the_middle_also_right_after_a_lost_life(cut):
    through = host("Breakout", 2, seed=2)
    last = through.reset()
    for step in drive(through, cut):
        last = step.obs
    while cut == 130 and not step.terminated[0]:
        (step,) = drive(through, 1)
        last = step.obs
    fresh = host("Breakout", 2, seed=2)
    np.testing.assert_array_equal(fresh.restore(through.snapshot()), last)
    for a, b in zip(drive(through, 60, 3), drive(fresh, 60, 3), strict=True):
        for x, y in zip(a, b, strict=True):
            np.testing.assert_array_equal(x, y)
    assert through.digest() == fresh.digest()


def test_sticky_actions_come_from_the_seed():
    def screens(seed):
        vector = host("Pong", seed=seed, sticky=0.25, noop_max=0)
        vector.reset()
        return drive(vector, 40)[-1].obs

    np.testing.assert_array_equal(screens(0), screens(0))
    assert (screens(0) != screens(1)).any()


def test_the_tier_of_a_game_is_2_and_a_long_game_is_truncated():
    assert resolve("ale:pong", env_kwargs={"max_frames": 400}).vector(1, 0).tier == 2
    vector = host("Pong", max_frames=120, noop_max=0)
    vector.reset()
    ends = [k for k, step in enumerate(drive(vector, 60)) if step.truncated[0]]
    assert ends[0] == 28  # FIRE took the first four of 120 frames
    assert not any(step.terminated[0] for step in drive(vector, 5))


def test_wrong_settings_are_sentences():
    with pytest.raises(PolyakError, match="did you mean 'space_invaders'"):
        Atari("SpaceInvader")
    with pytest.raises(PolyakError, match="at least 1"):
        Atari("Pong", frame_skip=0)
    with pytest.raises(PolyakError, match=r"cannot be made with .*colour"):
        resolve("ale:Pong", env_kwargs={"colour": True})


def test_video_shows_the_emulators_screen():
    vector = resolve("ale:Pong").video(0)
    vector.reset()
    assert vector.render().shape == (210, 160, 3)


@pytest.mark.parametrize("mode", ["NextStep", "SameStep"])
def test_ales_own_vector_keeps_its_stack_last_and_its_successors_true(mode):
    from ale_py.vector_env import AtariVectorEnv

    env = AtariVectorEnv("pong", 2, autoreset_mode=mode, max_num_frames_per_episode=25, noop_max=0, num_threads=1)
    vector = ForeignVector(env, 0, name="pong")
    assert vector.frames == 4
    obs = vector.reset()
    assert obs.shape == (2, 84, 84, 4)
    ends = 0
    for step in drive(vector, 40):
        np.testing.assert_array_equal(step.next_obs[..., :3], obs[..., 1:])
        obs, ends = step.obs, ends + int((step.terminated | step.truncated).sum())
    episodes = vector.episodes()
    assert len(episodes) == ends >= 2
    vector.close()
