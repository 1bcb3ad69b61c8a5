"""GridWorld-v0: walk through a maze to the goal, past pits, on a floor that may be slippery.

The gridworld of R. S. Sutton and A. G. Barto, "Reinforcement Learning: An Introduction" (2nd edition, 2018, §3.5 and
§4.1), drawn as text. Actions 0, 1, 2, 3 mean left, down, right, up, the order of Gymnasium's FrozenLake, which is
this world with `slip=2/3` and its own map and rewards:

    P(direction a) = 1 − slip,   P(a turned left) = P(a turned right) = slip / 2

A step into a wall or over the rim stays where it is. Entering a goal or a pit terminates.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import NDArray

from polyak.core import hyper
from polyak.envs.classic import raster
from polyak.errors import PolyakError
from polyak.spaces import Discrete

_MOVES = ((0, -1), (1, 0), (0, 1), (-1, 0))  # (row, column) of left, down, right, up
_MAZE = (
    "S...#..",
    ".##.#..",
    ".#O....",
    "...##.O",
    "O.....G",
)


@hyper
class GridWorld:
    """Observation: the cell's number, row · columns + column, Discrete(rows · columns); action Discrete(4).

    `layout` is one string a row: S start (one or several, drawn uniformly), G goal, O pit, # wall, . floor.
    """

    layout: tuple[str, ...] = _MAZE
    slip: float = 0.0  # probability that the floor turns the step by a right angle, either way alike
    step_reward: float = -0.01  # for entering a plain cell, and for bumping into a wall
    goal_reward: float = 1.0
    pit_reward: float = -1.0
    max_steps: int = 100

    def __post_init__(self) -> None:
        widths = {len(row) for row in self.layout}
        cells = "".join(self.layout)
        if len(widths) != 1 or not cells:
            raise PolyakError(f"GridWorld: the rows of the layout have the lengths {sorted(widths)}, and must be equal")
        if set(cells) - set("SGO#."):
            raise PolyakError(
                f"GridWorld: the layout has {sorted(set(cells) - set('SGO#.'))}, and takes S, G, O, # and ."
            )
        if "S" not in cells:
            raise PolyakError("GridWorld: the layout has no start; mark one cell S")
        if isinstance(self.slip, float) and not 0.0 <= self.slip <= 1.0:
            raise PolyakError(f"GridWorld: slip is {self.slip}, and must lie in [0, 1]")

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, columns)."""
        return len(self.layout), len(self.layout[0])

    @property
    def obs_space(self) -> Discrete:
        return Discrete(self.shape[0] * self.shape[1])

    @property
    def action_space(self) -> Discrete:
        return Discrete(4)

    def reset(self, key: Array) -> tuple[Array, Array]:
        """A start cell; the state is the cell's number, int32, and so is the observation."""
        starts = np.flatnonzero(_cells(self.layout) == "S").astype(np.int32)
        s = jnp.asarray(starts)[jax.random.randint(key, (), 0, len(starts))]
        return s, s

    def step(self, s: Array, action: Array, key: Array) -> tuple[Array, Array, Array, Array]:
        u = jax.random.uniform(key)
        turn = jnp.where(u < self.slip / 2, -1, jnp.where(u < self.slip, 1, 0))
        stays = jnp.asarray(_stays(self.layout))
        after = jnp.asarray(successors(self.layout))[s, (action + turn) % 4]
        cells = _cells(self.layout)
        plain_or_pit = jnp.where(cells == "O", self.pit_reward, self.step_reward)
        rewards = jnp.where(cells == "G", self.goal_reward, plain_or_pit)  # for entering each cell, [cells]
        reward = jnp.where(stays[s], 0.0, rewards[after])
        return after, after, reward, stays[after]

    def outcomes(self) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any]]:
        """The world as a finite Markov decision process, for planners: (successor, probability, reward, terminated).

        Each is [cells, 4, 3]: the step goes straight on, or turns left or right. Goals, pits, walls lead to themselves.
        """
        slip, after, stays = float(self.slip), successors(self.layout), _stays(self.layout)
        entered = {"G": float(self.goal_reward), "O": float(self.pit_reward)}
        rewards = np.array([entered.get(str(cell), float(self.step_reward)) for cell in _cells(self.layout)])
        directions = (np.arange(4)[:, None] + np.array([0, -1, 1])[None]) % 4
        to = after[:, directions]
        probability = np.broadcast_to(np.array([1 - slip, slip / 2, slip / 2]), to.shape)
        resting = stays[:, None, None]
        return to, probability, np.where(resting, 0.0, rewards[to]), stays[to] & ~resting

    def transitions(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """The same as P[s, a, s'] and the expected reward r[s, a]: simple to read, and large where the maze is."""
        to, probability, reward, _ = self.outcomes()
        P = np.zeros((len(to), 4, len(to)))
        s, a = np.arange(len(to))[:, None, None], np.arange(4)[None, :, None]
        np.add.at(P, (s, a, to), probability)
        return P, (probability * reward).sum(-1)

    def frame(self, s: Array) -> NDArray[np.uint8]:
        """A picture of one state, uint8 [48 · rows, 48 · columns, 3]; computed with NumPy, outside jit."""
        rows, columns = self.shape
        canvas = raster.blank(48 * rows, 48 * columns, raster.PALE)
        colours = {"#": raster.INK, "G": raster.GREEN, "O": raster.RED}
        for i, cell in enumerate(_cells(self.layout)):
            y, x = 48 * (i // columns), 48 * (i % columns)
            raster.rectangle(canvas, x + 1, y + 1, x + 47, y + 47, colours.get(str(cell), raster.WHITE))
        row, column = divmod(int(s), columns)
        raster.disc(canvas, (48 * column + 24, 48 * row + 24), 15, raster.BLUE)
        return raster.picture(canvas)


def _cells(layout: tuple[str, ...]) -> NDArray[Any]:
    return np.array(list("".join(layout)))


def _stays(layout: tuple[str, ...]) -> NDArray[np.bool_]:
    """Which cells end the episode: goals and pits, [cells]."""
    return np.isin(_cells(layout), ["G", "O"])


def successors(layout: tuple[str, ...]) -> NDArray[np.int32]:
    """Where a step in each direction leads from each cell, [cells, 4]; goals, pits and walls lead to themselves."""
    rows, columns = len(layout), len(layout[0])
    cells, here = _cells(layout).reshape(rows, columns), np.arange(rows * columns).reshape(rows, columns)
    ways: list[NDArray[Any]] = []
    for down, right in _MOVES:
        row = np.clip(np.arange(rows) + down, 0, rows - 1)[:, None]
        there = here[row, np.clip(np.arange(columns) + right, 0, columns - 1)[None]]
        free = np.isin(cells, ["S", "."]) & (cells.ravel()[there] != "#")
        ways.append(np.where(free, there, here).ravel())
    return np.stack(ways, axis=1).astype(np.int32)
