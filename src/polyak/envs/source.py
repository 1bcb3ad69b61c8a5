"""From what a user names to environments that can be stepped; heavy packages are imported where they are needed.

- `"CartPole-v1"`: Gymnasium's registry;
- `"jax:CartPole-v1"`: our compiled worlds;
- `"ale:Pong"`: Atari with the preprocessing of 2013;
- `"envpool:Ant-v4"`: EnvPool;
- an instance, a factory (of single environments or of vectors), a Gymnasium vector env, or a JAX world.
"""

import contextlib
import functools
import io
import json
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from polyak.errors import PolyakError, nearest
from polyak.spaces import Space, agent_action_space, describe

if TYPE_CHECKING:
    from polyak.envs.foreign import ForeignVector
    from polyak.envs.host import HostVector, Proof
    from polyak.envs.pool import Pool

    AnyVector = HostVector | ForeignVector | Pool

# The extra that holds each package.
_EXTRAS = {
    "gymnasium_robotics": "robotics", "mujoco": "mujoco", "ale_py": "atari", "box2d": "box2d", "envpool": "envpool",
    "pygame": "video",
}  # fmt: skip
_ALE_IDS = re.compile(r"^ALE/|NoFrameskip-v|Deterministic-v")
_ROBOTICS_IDS = re.compile(
    r"^(Fetch(Reach|Push|Slide|PickAndPlace)|Hand(Reach|Manipulate)|AdroitHand|(Point|Ant)Maze_)"
)
_LATER = ("gymnax", "brax")
_DEADLINE_S = 60.0
# Whose environments a fresh process finds registered, or registers by itself.
_AT_HOME = {"gymnasium", "gymnasium_robotics", "ale_py"}
ENDLESS = 1_000  # steps of an evaluation episode in an environment that says it has no time limit
UNKNOWN = 100_000  # the same where an environment of the user's own says nothing
ROUND_S = 300e-6  # what an order to a worker process and its answer cost (bench/scaling.py workers)
WORTH_S = 10.0  # what workers must save of a run before they are started unasked

Make = Callable[..., Any]


class Source:
    """Where environments come from: `vector` makes as many as a run needs, each time it is asked.

    Attributes:
        id: the name that a user gave, or one made from the class.
        kind: "jax" (compiled: `world` is set) or "host" (`vector` makes them).
        obs_space, action_space: as the agent sees them; a bounded Box of actions is Box(−1, 1).
        kwargs: what the environments are made with.
        world: the JAX world of kind "jax", else None.
        frames: k where an observation is k frames stacked on the last axis, else 0.
        n_envs: the only number of environments that this source has (1 for an instance), None for any number.
        once: whether the environments exist once, so that only one seed can train on them.
        goal_reward: (achieved, desired) ↦ reward of one pair of goals, None where it is not known.
        evaluates: whether it can make environments for evaluation besides those for training.
        recipe: how another process makes one of the environments, as JSON (see `makers`); None where it can't, with the
            reason in `alone`.
    """

    def __init__(
        self,
        id: str,
        spaces: tuple[Space, Space],
        *,
        world: Any = None,
        train: "Callable[..., AnyVector] | None" = None,
        evaluation: "Callable[..., AnyVector] | None" = None,
        proof: "Callable[[], Proof] | None" = None,
        recipe: Mapping[str, Any] | str = "it is not made of single environments",
        video: Callable[[str], Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        frames: int = 0,
        n_envs: int | None = None,
        own_action_space: Any = None,
        once: bool = False,
        goal_reward: Any = None,
    ) -> None:
        self.once, self._own_action_space, self.goal_reward = once, own_action_space, goal_reward
        self.id, self.kind, self.world = id, "host" if world is None else "jax", world
        self.obs_space, self.action_space = spaces
        self.kwargs, self.frames, self.n_envs = dict(kwargs or {}), frames, n_envs
        self.evaluates = world is not None or evaluation is not None
        self._train, self._evaluation, self._video, self._proof = train, evaluation, video, proof
        self.recipe, self.alone = (None, recipe) if isinstance(recipe, str) else (dict(recipe), "")

    def vector(self, n_envs: int, seed: int, stream: str = "train", workers: int = 0) -> "AnyVector":
        """`n_envs` environments with the episodes of (seed, stream); stream is "train" or "eval".

        Args:
            workers: processes that share them, at most one for each; 0: they live in this one.

        Errors:
            PolyakError: there is only another number of them, or none for evaluation (with what to do).
        """
        with_workers: dict[str, int] = {"workers": min(workers, n_envs)} if workers else {}
        if self.kind == "jax":
            raise PolyakError(f"{self.id} is compiled: use envs.vector.Vector(source.world, n_envs)")
        if stream == "train":
            _refuse_count(self, n_envs)
            assert self._train is not None
            return self._train(n_envs, seed, **with_workers)
        if self._evaluation is None:
            raise PolyakError(
                f"{self.id} exists once and cannot be made again, so evaluating it would disturb its training; pass a "
                "factory (`lambda: MyEnv()`) or a registered id, or switch evaluation off"
            )
        return self._evaluation(n_envs, seed, **with_workers)

    def refuse_workers(self) -> None:
        """Raise PolyakError where the environments can't live in processes of their own."""
        if self.recipe is None:
            raise PolyakError(f"{self.id} can't be shared among worker processes: {self.alone}")

    def workers(self, n_envs: int, seeds: int, steps: int) -> int:
        """How many worker processes serve the environments of each seed best; 0 where this process alone does.

        Args:
            steps: environment steps of each seed, all of which must be worth the start of processes.
        """
        if self.recipe is None or self._proof is None:
            return 0
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        each = min(n_envs, max(1, cores // seeds))
        step_s = self._proof().step_s
        # All seeds take a step: one environment after another, or on all cores at once.
        alone = seeds * n_envs * step_s
        shared = alone / min(cores, seeds * each) + seeds * ROUND_S
        return each if (alone - shared) * steps / n_envs > WORTH_S else 0

    def video_env(self, mode: str = "rgb_array") -> Any:
        """A single environment that renders in this mode ("rgb_array" or "human"), or None where there is none."""
        return None if self._video is None else self._video(mode)

    def video(self, seed: int, mode: str = "rgb_array") -> "HostVector | None":
        """A vector of one environment of the evaluation stream that renders; None where the source cannot.

        `vector.render()` gives the frame after `reset` or `step`: [H, W, 3] uint8, or None in a window.
        """
        from polyak.envs.host import HostVector, Tier

        env = self.video_env(mode)
        if env is None:
            return None
        options: dict[str, Any] = {"name": self.id, "kwargs": self.kwargs, "frames": self.frames}
        return HostVector(lambda: env, 1, seed, "eval", tier=Tier(3, "not proved"), **options)

    def env_action(self, action: Any) -> Any:
        """Actions [N, ...] in the agent's view as the environment takes them: in its own bounds, dtype and start."""
        if self.world is not None:
            from polyak.envs.vector import world_action

            return np.asarray(world_action(self.world.action_space, action))
        from polyak.envs.gymspaces import ActionLeaf

        return ActionLeaf((), self._own_action_space).sent(action, len(action))

    def describe(self) -> str:
        """One line: id, kind and spaces."""
        kind = "compiled" if self.kind == "jax" else "host"
        return f"{self.id} ({kind}; observation {describe(self.obs_space)}, action {describe(self.action_space)})"

    def __repr__(self) -> str:
        return f"<Source {self.describe()}>"


def resolve(
    env: Any,
    *,
    env_kwargs: Mapping[str, Any] | None = None,
    allow_import: Sequence[str] = (),
    n_envs: int | None = None,
    deadline: float = _DEADLINE_S,
) -> Source:
    """What `env` names, ready to make environments.

    Args:
        env: see the module's list.
        env_kwargs: passed on when the environments are made.
        allow_import: packages to import first, which register environments of their own. Importing runs their code,
            so the names come from the user's own command line or call, never from a file.
        n_envs: how many the run wants, to refuse what exists only in another number.
        deadline: seconds that one call into an environment may take; 0 for ever.

    Errors:
        PolyakError: unknown (with the nearest name), not installed (with the command), or not a usable environment.
    """
    for package in allow_import:
        _import_named(package)
    kwargs = dict(env_kwargs or {})
    named = isinstance(env, str)
    source = _named(env, kwargs, deadline, allow_import) if named else _given(env, kwargs, deadline)
    if n_envs is not None:
        _refuse_count(source, n_envs)
    return source


def _refuse_count(source: Source, n_envs: int) -> None:
    if source.n_envs is None or n_envs == source.n_envs:
        return
    what = "one environment" if source.n_envs == 1 else f"a vector of {source.n_envs} environments"
    raise PolyakError(
        f"{source.id} is {what}, so n_envs must be {source.n_envs}, not {n_envs}; pass a factory "
        "(`lambda: MyEnv()`) or an id for any number"
    )


def _import_named(package: str) -> None:
    import importlib

    if not re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", package):
        raise PolyakError(f"--allow-import takes the name of a package, not {package!r}")
    try:
        importlib.import_module(package)
    except ImportError as error:
        raise PolyakError(f"--allow-import {package}: {_line(error)}; is it installed here?") from error


def _line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def _need(package: str, name: str) -> None:
    """Imports an optional package, or says how to install it."""
    import importlib.util

    if importlib.util.find_spec(package) is None:
        raise PolyakError(f'{name} needs {package}, which is not installed: pip install "polyak[{_EXTRAS[package]}]"')


def _gymnasium(name: str) -> Any:
    try:
        import gymnasium
    except ImportError as error:
        raise PolyakError(f"{name} needs gymnasium, which is not installed: pip install gymnasium") from error
    return gymnasium


# ---- names


def _named(name: str, kwargs: dict[str, Any], deadline: float, packages: Sequence[str]) -> Source:
    prefix, colon, rest = name.partition(":")
    if not colon:
        return _registered(name, kwargs, deadline, packages)
    known = {"jax": _compiled, "ale": _atari, "envpool": _envpool}
    if prefix in known:
        return known[prefix](rest, kwargs, deadline)
    if prefix in _LATER:
        raise PolyakError(f"{name}: {prefix} environments are not part of this version; see `polyak list`")
    raise PolyakError(
        f"{name!r} is no id: an id never imports a module; use `--allow-import {prefix.split('.')[0]}` with the id "
        f"{rest!r}, or one of the prefixes jax:, ale:, envpool:{nearest(prefix, known)}"
    )


def _compiled(name: str, kwargs: dict[str, Any], deadline: float) -> Source:
    from polyak.envs.classic import WORLDS
    from polyak.envs.finite import FINITE

    every: dict[str, Callable[..., Any]] = WORLDS | FINITE
    if name not in every:
        known = ", ".join(sorted(every))
        raise PolyakError(f"there is no compiled world jax:{name}{nearest(name, every)} (there are {known})")
    try:
        world = every[name](**kwargs)
    except TypeError as error:
        raise PolyakError(f"jax:{name} cannot be made with {kwargs}: {error}") from error
    return _world(f"jax:{name}", world, kwargs)


def _world(id: str, world: Any, kwargs: dict[str, Any]) -> Source:
    spaces, reward = (world.obs_space, agent_action_space(world.action_space)), getattr(world, "goal_reward", None)
    return Source(id, spaces, world=world, kwargs=kwargs, goal_reward=reward, recipe="it runs inside the compiled step")


def _registered(name: str, kwargs: dict[str, Any], deadline: float, packages: Sequence[str]) -> Source:
    make, remake = _registered_makers(name, kwargs)
    recipe = _recipe(kwargs, id=name, packages=packages)
    registrar = str(_gymnasium(name).spec(name).entry_point).partition(":")[0].partition(".")[0]
    if registrar not in _AT_HOME and not packages:
        recipe = f"its id was registered here, by {registrar}; name the package that does it with --allow-import"
    return _singles(name, make, remake, kwargs, deadline, video=_with_mode(make), recipe=recipe)


def _registered_makers(name: str, kwargs: dict[str, Any]) -> tuple[Make, Make]:
    gym = _gymnasium(name)
    if _ALE_IDS.search(name):
        _need("ale_py", name)
        import ale_py

        gym.register_envs(ale_py)
    if _ROBOTICS_IDS.search(name) and name not in gym.registry:
        _register_robotics(gym, name)
    try:
        gym.spec(name)
    except gym.error.Error as error:
        raise PolyakError(
            f"there is no environment {name!r} (one that another package registers needs `--allow-import PKG` with "
            f"that package's name){nearest(name, gym.registry)}"
        ) from error

    def make(**mode: Any) -> Any:
        return _made(lambda: gym.make(name, disable_env_checker=True, **{**kwargs, **mode}), name, kwargs)

    return make, make if _ALE_IDS.search(name) else _bounded(make, ENDLESS)


def _register_robotics(gym: Any, name: str) -> None:
    _need("gymnasium_robotics", name)
    # Importing it prints a notice about its AdroitHand environments, which is of no use to others.
    loud = name.startswith("AdroitHand")
    with contextlib.nullcontext() if loud else contextlib.redirect_stderr(io.StringIO()):
        import gymnasium_robotics
    gym.register_envs(gymnasium_robotics)


def _bounded(make: Make, most: int) -> Make:
    """Environments for evaluation that end: where they have no time limit of their own, after `most` steps.

    A greedy policy may walk in a circle for ever (CliffWalking has no limit), and its evaluation would too.
    """

    def made(**mode: Any) -> Any:
        from gymnasium.wrappers import TimeLimit

        env = inner = make(**mode)
        while inner is not None:
            if isinstance(inner, TimeLimit):
                return env
            inner = getattr(inner, "env", None)
        limit = getattr(getattr(env, "spec", None), "max_episode_steps", None)
        return env if limit is not None else TimeLimit(env, most)

    return made


def _atari(game: str, kwargs: dict[str, Any], deadline: float) -> Source:
    name = f"ale:{game}"
    make, whole = _atari_makers(game, kwargs)
    return _singles(name, make, whole, kwargs, deadline, video=_with_mode(whole), recipe=_recipe(kwargs, id=name))


def _atari_makers(game: str, kwargs: dict[str, Any]) -> tuple[Make, Make]:
    name = f"ale:{game}"
    _need("ale_py", name)
    _gymnasium(name)
    from polyak.envs.atari import Atari

    def make(**mode: Any) -> Any:
        return _made(lambda: Atari(game, **{**kwargs, **mode}), name, kwargs)

    def whole(**mode: Any) -> Any:
        # Full games in raw points: a lost life does not end them, and no reward is clipped.
        return make(life_loss=False, clip_rewards=False, **mode)

    return make, whole


def _envpool(task: str, kwargs: dict[str, Any], deadline: float) -> Source:
    name = f"envpool:{task}"
    _need("envpool", name)
    from polyak.envs.foreign import EnvPool, ForeignVector

    def vector(n_envs: int, seed: int, stream: str) -> Any:
        pool = _made(lambda: EnvPool(task, n_envs, seed, stream, kwargs), name, kwargs)
        return ForeignVector(pool, seed, stream, name=name, deadline=deadline)

    probe = vector(1, 0, "train")
    probe.close()
    return Source(
        name,
        (probe.obs_space, probe.action_space),
        train=lambda n, seed: vector(n, seed, "train"),
        evaluation=lambda n, seed: vector(n, seed, "eval"),
        kwargs=kwargs,
        frames=probe.frames,
        own_action_space=probe.own_action_space,
    )


def _made(make: Callable[[], Any], name: str, kwargs: dict[str, Any]) -> Any:
    """An environment, or a sentence for what stopped it: a missing package with its extra, wrong arguments, a crash."""
    try:
        return make()
    except (ImportError, TypeError) as error:
        raise PolyakError(f"{name} cannot be made with {kwargs}: {_line(error)}") from error
    except PolyakError:
        raise
    except Exception as error:
        text = str(error).lower()
        missing = "not installed" in text or "no module" in text or type(error).__name__ == "DependencyNotInstalled"
        extra = next((e for package, e in _EXTRAS.items() if package in text), None)
        if missing and extra:
            raise PolyakError(f'{name} needs a package that is not installed: pip install "polyak[{extra}]"') from error
        raise PolyakError(f"{name} could not be made with {kwargs}: {_line(error)}") from error


def _with_mode(make: Make) -> Callable[[str], Any]:
    """A maker of rendering environments; None for those that do not render in the mode."""

    def video(mode: str) -> Any:
        try:
            return make(render_mode=mode)
        except PolyakError:
            return None

    return video


# ---- objects


def _given(env: Any, kwargs: dict[str, Any], deadline: float) -> Source:
    if isinstance(env, type):
        return _factory(env, kwargs, deadline)
    if hasattr(env, "obs_space") and hasattr(env, "max_steps"):
        return _world(type(env).__name__, env, kwargs)
    if hasattr(env, "single_observation_space"):
        return _vectors(env, None, deadline)
    if hasattr(env, "step") and hasattr(env, "observation_space"):
        return _instance(env, deadline)
    if callable(env):
        return _factory(env, kwargs, deadline)
    raise PolyakError(
        f"{type(env).__name__} is not an environment: pass an id, a Gymnasium environment or vector environment, a "
        "factory of one, or a JAX world"
    )


def _name_of(env: Any) -> str:
    spec = getattr(env, "spec", None)
    return spec.id if spec is not None else type(getattr(env, "unwrapped", env)).__name__


def _factory(factory: Make, kwargs: dict[str, Any], deadline: float) -> Source:
    """A factory is called twice here, to know that it makes a new environment each time; both are used first."""
    label = getattr(factory, "__name__", type(factory).__name__)
    spares = [_made(lambda: factory(**kwargs), label, kwargs)]
    first = spares[0]
    if hasattr(first, "obs_space") and hasattr(first, "max_steps"):
        return _world(type(first).__name__, first, kwargs)
    spares.append(_made(lambda: factory(**kwargs), label, kwargs))
    if spares[1] is first or getattr(spares[1], "unwrapped", 1) is getattr(first, "unwrapped", 2):
        source = _given(first, {}, deadline)
        source.id = f"{source.id} (from a factory that returned the same environment twice)"
        return source

    def make() -> Any:
        return spares.pop(0) if spares else _made(lambda: factory(**kwargs), label, kwargs)

    if hasattr(first, "single_observation_space"):
        return _vectors(make(), make, deadline)
    video, recipe = _rendering(factory, kwargs), _recipe(kwargs, factory=factory)
    name, remake = _name_of(first), _bounded(make, UNKNOWN)
    return _singles(name, make, remake, kwargs, deadline, video=video, probe=first, recipe=recipe)


def _rendering(factory: Make, kwargs: dict[str, Any]) -> Callable[[str], Any]:
    def video(mode: str) -> Any:
        env = factory(**kwargs)
        if getattr(env, "render_mode", None) == mode:
            return env
        env.close()
        return None

    return video


def _instance(env: Any, deadline: float) -> Source:
    gym = _gymnasium("an environment instance")
    name, spec = _name_of(env), getattr(env, "spec", None)

    def again(**mode: Any) -> Any:
        return _made(lambda: gym.make(spec, disable_env_checker=True, **mode), name, {})

    evaluation, video = (None, None) if spec is None else (_bounded(again, UNKNOWN), _with_mode(again))
    recipe = "it was given as an instance, which exists once; pass a factory or an id"
    about: dict[str, Any] = {"video": video, "probe": env, "n_envs": 1, "owned": False, "recipe": recipe}
    return _singles(name, lambda: env, evaluation, {}, deadline, **about)


def _singles(
    name: str,
    make: Make,
    remake: Make | None,
    kwargs: dict[str, Any],
    deadline: float,
    *,
    video: Callable[[str], Any] | None,
    recipe: Mapping[str, Any] | str,
    probe: Any = None,
    n_envs: int | None = None,
    owned: bool = True,
) -> Source:
    """A source of single environments for `HostVector` or `Pool`; without a probe, one is made to read the spaces."""
    from polyak.envs.goals import goal_reward
    from polyak.envs.gymspaces import our_space

    env = make() if probe is None else probe
    spaces = our_space(env.observation_space, name), our_space(env.action_space, name, action=True)
    reward = goal_reward(env, name, spaces[0])
    frames = getattr(getattr(env, "unwrapped", env), "polyak_frames", 0)
    if probe is None:
        env.close()
    options: dict[str, Any] = {"name": name, "kwargs": kwargs, "frames": frames, "deadline": deadline}
    streams = _streams(make, remake, recipe, (env.observation_space, env.action_space), spaces, owned, options)
    about: dict[str, Any] = {"kwargs": kwargs, "frames": frames, "n_envs": n_envs, "once": not owned, "recipe": recipe}
    return Source(name, spaces, **streams, video=video, own_action_space=env.action_space, goal_reward=reward, **about)


def _streams(
    make: Make,
    remake: Make | None,
    recipe: Mapping[str, Any] | str,
    gym_spaces: tuple[Any, Any],
    spaces: tuple[Space, Space],
    owned: bool,
    options: dict[str, Any],
) -> dict[str, Any]:
    """`train`, `evaluation` and `proof` of a source of single environments, in this process or in workers."""
    from polyak.envs.host import HostVector, Tier, prove
    from polyak.envs.pool import Pool

    # One proof serves all seeds of a run.
    proof = functools.cache(lambda: prove(make, name=options["name"], deadline=options["deadline"]))

    def pool(n: int, seed: int, stream: str, workers: int) -> Pool:
        assert not isinstance(recipe, str)
        return Pool(recipe, gym_spaces, spaces, n, seed, stream, workers=workers, tier=proof().tier, **options)

    def train(n: int, seed: int, workers: int = 0) -> HostVector | Pool:
        if workers:
            return pool(n, seed, "train", workers)
        return HostVector(make, n, seed, tier=proof().tier, owned=owned, **options)

    def evaluation(n: int, seed: int, workers: int = 0) -> HostVector | Pool:
        if workers:
            return pool(n, seed, "eval", workers)
        assert remake is not None
        # An evaluation starts at episode 0 and is never resumed half-way, so nothing needs proof.
        return HostVector(remake, n, seed, "eval", tier=Tier(3, "not proved"), **options)

    return {"train": train, "evaluation": None if remake is None else evaluation, "proof": proof}


# ---- in another process


def _recipe(
    kwargs: dict[str, Any], *, id: str = "", packages: Sequence[str] = (), factory: Make | None = None
) -> dict[str, Any] | str:
    """How a worker process makes an environment of this id or factory, as JSON; or why it can't."""
    try:
        json.dumps(kwargs, allow_nan=False)
    except (TypeError, ValueError):
        return "its env_kwargs are more than JSON can hold"
    if factory is None:
        return {"id": id, "kwargs": kwargs, "packages": list(packages)}
    module, name = str(getattr(factory, "__module__", "")), str(getattr(factory, "__qualname__", ""))
    named = name.isidentifier() and getattr(sys.modules.get(module), name, None) is factory
    if not named or module == "__main__":
        return "its factory must be at the top of a module, not of the main program, for other processes to import it"
    return {"factory": name, "module": module, "kwargs": kwargs}


def makers(recipe: Mapping[str, Any]) -> tuple[Make, Make]:
    """(for training, for evaluation): makers of one environment in a worker process, from `Source.recipe`."""
    import importlib

    kwargs: dict[str, Any] = recipe["kwargs"]
    if "factory" in recipe:
        # The user's own factory, which the trainer has called already: both names are read off the object.
        factory = getattr(importlib.import_module(recipe["module"]), recipe["factory"])

        def make(**mode: Any) -> Any:
            return _made(lambda: factory(**kwargs, **mode), recipe["factory"], kwargs)

        return make, _bounded(make, UNKNOWN)
    for package in recipe["packages"]:
        _import_named(package)
    prefix, colon, rest = recipe["id"].partition(":")
    return _atari_makers(rest, kwargs) if colon and prefix == "ale" else _registered_makers(recipe["id"], kwargs)


def _vectors(env: Any, make: Make | None, deadline: float) -> Source:
    """A Gymnasium vector env, or a factory of them, whose first one is `env`."""
    from polyak.envs.foreign import ForeignVector
    from polyak.envs.host import HostVector, Tier

    name = _name_of(env)
    first = ForeignVector(env, 0, "train", name=name, deadline=deadline, owned=make is not None)
    unused = [first]

    def train(n: int, seed: int) -> ForeignVector:
        if unused:
            vector = unused.pop()
            vector.seed = seed
            return vector
        if make is None:
            # One instance serves one seed after another: each starts with its own reset.
            return ForeignVector(env, seed, "train", name=name, deadline=deadline, owned=False)
        return ForeignVector(make(), seed, "train", name=name, deadline=deadline)

    def from_factory(n: int, seed: int) -> ForeignVector:
        assert make is not None
        return ForeignVector(make(), seed, "eval", name=name, deadline=deadline)

    def from_parts(n: int, seed: int) -> HostVector:
        one = env.unwrapped.env_fns[0]
        return HostVector(one, n, seed, "eval", name=name, tier=Tier(3, "not proved"), deadline=deadline)

    evaluation = from_factory if make is not None else from_parts if hasattr(env.unwrapped, "env_fns") else None
    spaces = first.obs_space, first.action_space
    about: dict[str, Any] = {"frames": first.frames, "n_envs": first.n_envs, "once": make is None}
    own = env.single_action_space
    return Source(name, spaces, train=train, evaluation=evaluation, own_action_space=own, **about)
