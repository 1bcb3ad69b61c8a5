"""Films of a trained policy: an episode as a video in the run folder, or played in a window."""

import functools
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from polyak.cranks import arrays_of
from polyak.envs.vector import Vector
from polyak.errors import PolyakError
from polyak.evaluation import STREAM

Frame = np.ndarray[Any, Any]


def film(run: Any, seed: int, steps: int, path: Path | None) -> Path | None:
    """A video of one greedy episode of at most `steps` steps under seed_<k>/videos/, or None where nothing renders."""
    from polyak.report import video

    frames, fps = (
        _compiled_frames(run, seed, steps) if run.plan.source.kind == "jax" else _host_frames(run, seed, steps)
    )
    if frames is None:
        return None
    target = path or run.path / f"seed_{seed}" / "videos" / "episode.mp4"
    target.parent.mkdir(parents=True, exist_ok=True)
    return video.record(frames, target, fps)


def play(run: Any, seed: int, episodes: int, deterministic: bool) -> list[float]:
    """Play episodes in a window; their returns."""
    source = run.plan.source
    world = None if source.kind == "jax" else source.video(seed, "human")
    if world is None:
        raise PolyakError(f"{source.id} can't open a window; `polyak watch RUN --video` writes a film instead")
    act, returns = _acting(run, seed, deterministic), list[float]()
    obs, t = world.reset(), 0
    try:
        while len(returns) < episodes:
            obs = world.step(act(obs, t)).obs
            returns += [episode.ret for episode in world.episodes()]
            t += 1
    finally:
        world.close()
    return returns


def _acting(run: Any, seed: int, deterministic: bool = True) -> Any:
    """(obs [1, ...], step) ↦ actions in the agent's view; agents with memory keep it between the calls."""
    one = replace(run.plan.spec, n_envs=1)
    agent, state = arrays_of(run.agent), run.state(seed)
    key = jax.random.fold_in(jax.random.key(np.uint32(seed % (1 << 32))), STREAM)
    jitted = jax.jit(functools.partial(agent.act, explore=not deterministic))
    box = {"memory": agent.memory(one)}

    def act(obs: Any, t: int) -> np.ndarray[Any, Any]:
        action, box["memory"] = jitted(state, obs, jax.random.fold_in(key, t), box["memory"])
        return np.asarray(action)

    return act


def _host_frames(run: Any, seed: int, steps: int) -> tuple[Iterator[Frame] | None, float]:
    os.environ.setdefault("SDL_VIDEODRIVER", "dummy")  # pygame, which some environments draw with, looks for a screen
    world = run.plan.source.video(seed)
    if world is None:
        return None, 0.0

    def frames() -> Iterator[Frame]:
        act, obs = _acting(run, seed), world.reset()
        try:
            for t in range(steps):
                yield _drawn(run, world)
                obs = world.step(act(obs, t)).obs
                if world.episodes():
                    return
        finally:
            world.close()

    return frames(), 30.0


def _drawn(run: Any, world: Any) -> Frame:
    """A frame. What drawing needs (pygame, OpenGL, a screen) is often missing, and each package says so its own way."""
    try:
        return np.asarray(world.render())
    except Exception as error:
        raise PolyakError(f"{run.plan.source.id} can't be drawn here: {type(error).__name__}: {error}") from error


def _compiled_frames(run: Any, seed: int, steps: int) -> tuple[Iterator[Frame] | None, float]:
    world = run.plan.source.world
    if not callable(getattr(world, "frame", None)):
        return None, 0.0

    def frames() -> Iterator[Frame]:
        vector = arrays_of(Vector(world, 1))
        step, act = jax.jit(vector.step), _acting(run, seed)
        key = jax.random.fold_in(jax.random.key(np.uint32(seed % (1 << 32))), STREAM)
        state, obs = jax.jit(vector.reset)(key)
        for t in range(steps):
            yield np.asarray(world.frame(jax.tree.map(lambda x: np.asarray(x)[0], state.s)))
            state, obs, out = step(state, act(obs, t), jax.random.fold_in(key, t))
            if bool(out.terminated[0] | out.truncated[0]):
                return

    return frames(), 30.0
