"""Atari games as DQN saw them: the preprocessing of Mnih et al. (2013, arXiv 1312.5602; Nature 518, 2015) over ALE.

Up to 30 no-ops, 4 frames per action with the maximum of the last two, 84 × 84 grey, a stack of 4 on the last axis.
For learning only, a lost life ends an episode and rewards are clipped to their sign; the game goes on, so that log,
snapshot and reported statistics keep to full games in raw points (`envs/host.py` reads `info["polyak"]`).

Differs from the paper: FIRE is pressed where a game waits for it, at the start and after a lost life, in evaluation
as in training, so that a policy which never presses it does not stand still; the picture is shrunk by exact area
averages in integers, not by an image library, so that its bits do not depend on one.
"""

import re
from typing import Any

import ale_py
import numpy as np
from ale_py import roms
from gymnasium import spaces

from polyak.errors import PolyakError, nearest

Array = np.ndarray[Any, np.dtype[Any]]


class Atari:
    """One Atari game with Gymnasium's interface: obs uint8 [size, size, frames], action Discrete, reward in points.

    Args:
        game: "Pong", "SpaceInvaders" or "space_invaders".
        life_loss: a lost life ends the learner's episode (terminated), not the game.
        clip_rewards: the learner is paid the sign of the reward.
        fire: press FIRE at the start and after a lost life, in games that have the button.
        noop_max: the game starts after 1 … noop_max no-ops drawn from the seed; 0 for none.
        frame_skip: emulator frames per action.
        frames: how many pictures are stacked on the last axis.
        size: height and width of the picture.
        sticky: probability, per emulator frame, that the previous action stays (Machado et al. 2018 use 0.25).
        full_action_space: all 18 actions instead of the game's own.
        max_frames: emulator frames after which the game is truncated (108,000 = 30 minutes).
        render_mode: "rgb_array" or None.

    Errors:
        PolyakError: an unknown game, with the nearest name.
    """

    def __init__(
        self,
        game: str,
        *,
        life_loss: bool = True,
        clip_rewards: bool = True,
        fire: bool = True,
        noop_max: int = 30,
        frame_skip: int = 4,
        frames: int = 4,
        size: int = 84,
        sticky: float = 0.0,
        full_action_space: bool = False,
        max_frames: int = 108_000,
        render_mode: str | None = None,
    ) -> None:
        rom = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", game).lower()
        if rom not in roms.get_all_rom_ids():
            raise PolyakError(f"there is no Atari game {game!r}{nearest(rom, roms.get_all_rom_ids())}")
        if frame_skip < 1 or frames < 1 or size < 1:
            raise PolyakError(f"frame_skip, frames and size of ale:{game} must be at least 1")
        if render_mode not in (None, "rgb_array"):
            raise PolyakError(f"ale:{game} renders as rgb_array only, not {render_mode!r}")
        self.life_loss, self.clip_rewards, self.noop_max = life_loss, clip_rewards, noop_max
        self.frame_skip, self.frames, self.sticky, self.max_frames = frame_skip, frames, sticky, max_frames
        self.render_mode, self.polyak_frames = render_mode, frames
        self._load(rom, full_action_space)
        names = [action.name for action in self._buttons]
        self._fire = names.index("FIRE") if fire and "FIRE" in names else None
        self.observation_space = spaces.Box(0, 255, (size, size, frames), np.uint8)
        self.action_space = spaces.Discrete(len(self._buttons))
        height, width = self._ale.getScreenDims()
        self._screens = np.zeros((2, height, width), np.uint8)
        self._shrink = AreaAverage(height, width, size)
        self._rng = np.random.default_rng(0)
        self._stack = np.zeros((size, size, frames), np.uint8)
        self._lives, self._count, self._last, self._fire_due = 0, 0, 0, False

    def _load(self, rom: str, full_action_space: bool) -> None:
        # Before the first interface exists, or ALE writes its banner to stderr.
        ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
        self._ale = ale_py.ALEInterface()
        # Sticky actions are ours, drawn from the episode's seed: ALE reseeds only by loading the game again (67 ms).
        self._ale.setFloat("repeat_action_probability", 0.0)
        self._ale.setInt("random_seed", 0)
        self._ale.loadROM(str(roms.get_rom_path(rom)))
        self._buttons = list(self._ale.getLegalActionSet() if full_action_space else self._ale.getMinimalActionSet())

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Array, dict[str, Any]]:
        """Starts a game: no-ops drawn from `seed`, then FIRE; the stack holds the first picture `frames` times."""
        if seed is not None:
            self._rng = np.random.default_rng(seed)
        self._start()
        for _ in range(int(self._rng.integers(1, self.noop_max + 1)) if self.noop_max else 0):
            self._act(0)
            if self._ale.game_over():
                self._start()
        if self._fire is not None:
            self._press(self._fire)
            if self._ale.game_over():
                self._start()
        else:
            self._ale.getScreenGrayscale(self._screens[0])
            self._screens[1] = self._screens[0]
        self._lives, self._fire_due = self._ale.lives(), False
        self._stack = self._filled()
        return self._stack.copy(), {"lives": self._lives}

    def _start(self) -> None:
        self._ale.reset_game()
        self._count, self._last = 0, 0
        self._ale.getScreenGrayscale(self._screens[0])
        self._screens[1] = self._screens[0]

    def step(self, action: int) -> tuple[Array, float, bool, bool, dict[str, Any]]:
        """Holds a button for `frame_skip` frames; reward in the game's points."""
        reward = 0.0
        if self._fire_due and self._fire is not None:
            reward = self._press(self._fire)
            self._fire_due = False
        if not self._ale.game_over():
            reward += self._press(int(action))
        over, lives = self._ale.game_over(), self._ale.lives()
        # Some games show no lives for a few frames before they are over: that is the end, not a lost life.
        lost = 0 < lives < self._lives and not over
        self._lives, self._fire_due = lives, lost
        self._push(self._picture())
        # Before a lost life starts the stack anew: what is returned is always the true successor.
        obs = self._stack.copy()
        info: dict[str, Any] = {"lives": lives}
        signal = self._signal(reward, lost)
        if signal:
            info["polyak"] = signal
        return obs, reward, over, not over and self._count >= self.max_frames, info

    def _signal(self, reward: float, lost: bool) -> dict[str, Any]:
        """What the learner gets instead of the five returned values, where that differs."""
        signal: dict[str, Any] = {}
        if self.clip_rewards and abs(reward) > 1:
            signal["reward"] = 1.0 if reward > 0 else -1.0
        if self.life_loss and lost:
            signal["terminated"] = True
            # The next life starts as an episode does, with one picture repeated; a replay of single pictures
            # rebuilds the same stack.
            self._stack = np.repeat(self._stack[..., -1:], self.frames, axis=-1)
            signal["obs"] = self._stack.copy()
        return signal

    def render(self) -> Array | None:
        """The emulator's screen, uint8 [210, 160, 3] for most games; None without a render mode."""
        return self._ale.getScreenRGB() if self.render_mode == "rgb_array" else None

    def close(self) -> None:
        """Nothing is held that the interpreter does not free."""

    # ---- the emulator

    def _act(self, button: int) -> float:
        if self.sticky and self._rng.random() < self.sticky:
            button = self._last
        self._last = button
        self._count += 1
        return float(self._ale.act(self._buttons[button]))

    def _press(self, button: int) -> float:
        """Holds a button for `frame_skip` frames and keeps the last two screens."""
        reward = 0.0
        for k in range(self.frame_skip):
            reward += self._act(button)
            over = self._ale.game_over()
            if over or k >= self.frame_skip - 2:
                self._ale.getScreenGrayscale(self._screens[k % 2])
            if over or self.frame_skip == 1:
                self._screens[(k + 1) % 2] = self._screens[k % 2]
            if over:
                break
        return reward

    def _picture(self) -> Array:
        return self._shrink(np.maximum(self._screens[0], self._screens[1]))

    def _filled(self) -> Array:
        return np.repeat(self._picture()[..., None], self.frames, axis=-1)

    def _push(self, picture: Array) -> None:
        """Drops the oldest picture and appends the newest, in a new array."""
        if self.frames == 4:
            # Four bytes side by side are one little-endian word: a shift is 5 µs, interleaved copies are 40.
            words = self._stack.view("<u4")[..., 0]
            stacked = (words >> np.uint32(8)) | (picture.astype("<u4") << np.uint32(24))
            self._stack = stacked[..., None].view(np.uint8)
        else:
            self._stack = np.concatenate([self._stack[..., 1:], picture[..., None]], axis=-1)


class AreaAverage:
    """Shrinks a grey picture [height, width] to [size, size]: each pixel is the rounded mean of the area it covers.

    Each output pixel is a sum of a few input pixels with small whole weights, so the result is exact.
    """

    def __init__(self, height: int, width: int, size: int) -> None:
        self._rows, row_total = _taps(height, size)
        self._columns, column_total = _taps(width, size)
        self._total = np.uint32(row_total * column_total)
        self._half = np.uint32(int(self._total) // 2)

    def __call__(self, picture: Array) -> Array:
        wide = picture.astype(np.uint32)
        rows = sum(wide[index] * weight[:, None] for index, weight in self._rows)
        # Columns as rows of the transposed picture: whole rows are gathered several times faster than columns.
        across = np.ascontiguousarray(np.asarray(rows).T)
        both = sum(across[index] * weight[:, None] for index, weight in self._columns)
        return np.ascontiguousarray(((np.asarray(both) + self._half) // self._total).astype(np.uint8).T)


def _taps(old: int, new: int) -> tuple[list[tuple[Array, Array]], int]:
    """The few input pixels that each output pixel covers, as (indices, whole weights), and the sum of the weights."""
    edges = np.arange(new) * old
    first = edges // new
    taps: list[tuple[Array, Array]] = []
    for k in range(-(-old // new) + 1):
        index = first + k
        overlap = np.minimum((index + 1) * new, edges + old) - np.maximum(index * new, edges)
        weight = np.maximum(overlap, 0)
        taps.append((np.minimum(index, old - 1), weight))
    shared = int(np.gcd.reduce([old, *(int(w) for _, weight in taps for w in weight)]))
    return [(i, (w // shared).astype(np.uint32)) for i, w in taps if w.any()], old // shared
