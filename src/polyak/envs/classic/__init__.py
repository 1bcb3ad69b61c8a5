"""The classic worlds, compiled: equal to Gymnasium's of the same name, step for step (tests/envs/test_classic.py)."""

from typing import Any

from polyak.envs.classic.acrobot import Acrobot
from polyak.envs.classic.cartpole import CartPole
from polyak.envs.classic.grid_world import GridWorld
from polyak.envs.classic.mountain_car import MountainCar
from polyak.envs.classic.mountain_car_continuous import MountainCarContinuous
from polyak.envs.classic.pendulum import Pendulum
from polyak.envs.classic.reach import Reach

WORLDS: dict[str, type[Any]] = {
    "Acrobot-v1": Acrobot,
    "CartPole-v1": CartPole,
    "GridWorld-v0": GridWorld,
    "MountainCar-v0": MountainCar,
    "MountainCarContinuous-v0": MountainCarContinuous,
    "Pendulum-v1": Pendulum,
    "Reach-v0": Reach,
}

__all__ = ["WORLDS", "Acrobot", "CartPole", "GridWorld", "MountainCar", "MountainCarContinuous", "Pendulum", "Reach"]
