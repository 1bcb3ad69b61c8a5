"""The work of `polyak solve`: a model, a method, and a folder with the solution, its numbers and its page.

Importing it imports neither NumPy nor jax, so that `polyak solve --help` answers at once.
"""

import math
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from polyak.errors import PolyakError, RunError, nearest

if TYPE_CHECKING:
    from rich.live import Live

    from polyak.mdp.model import Model
    from polyak.mdp.solution import Solution

METHODS = (
    "value-iteration", "gauss-seidel", "prioritised-sweeping", "policy-iteration", "modified-policy-iteration",
    "linear-program", "q-value-iteration", "finite-horizon",
)  # fmt: skip
"""The names of `polyak.mdp.METHODS`; a test compares them."""

EXACT = ("policy-iteration", "linear-program", "finite-horizon")  # they end with the answer, whatever the tolerance
AT_ONCE = ("linear-program", "finite-horizon")  # they have no sweeps to show
TOLERANCE = 1e-6

FRAMES = 24  # pictures of the film, and
FRAME_BYTES = 256 << 20  # the most memory that they take
PATIENCE, REDRAW = 0.5, 0.1  # seconds until the live line appears, and between its drawings


def solve(
    method: str | None,
    env: str | None,
    *,
    gamma: float = 0.99,
    tol: float | None = None,
    horizon: int | None = None,
    env_kwargs: Mapping[str, Any] | None = None,
    allow_import: Sequence[str] = (),
    out: Path | None = None,
    log_folder: Path = Path("runs"),
    command: str = "",
    progress: bool = True,
) -> Path:
    """Solves an environment's model, writes the solution's folder, prints the result, and returns the folder.

    `tol` None is TOLERANCE for the methods that have a tolerance.

    Errors:
        PolyakError: an unknown method or environment, a number out of its range, a model that can't be known.
        RunError: `out` is not empty, or cannot be written.
    """
    method, env = _words(method, env)
    options = _options(method, gamma, tol, horizon)
    _refuse_occupied(out)
    model = model_of(env, dict(env_kwargs or {}), allow_import)
    print(f"{env}: {model.n_states:,} states, {model.n_actions} actions, {model.transitions:,} transitions", flush=True)
    from polyak import mdp

    with Meter(f"{method} on {env}", options.get("tol", 0.0), shown=progress) as meter:
        if method not in AT_ONCE:
            keep = max(3, min(FRAMES, FRAME_BYTES // (8 * model.n_states)))
            options |= {"keep": keep, "progress": meter}
        begun = time.perf_counter()
        solution = mdp.METHODS[method](model, gamma=gamma, **options)
        seconds = time.perf_counter() - begun
    print(f"start value {_exact(solution.start_value)}")
    error = f"error at most {solution.bound:.3g}" if math.isfinite(solution.bound) else "no bound on the error"
    print(f"{solution.sweeps:,} sweep{'s' * (solution.sweeps != 1)} in {seconds:.2f} s, {error}", flush=True)
    kwargs = {k: v if isinstance(v, int | float | str) else repr(v) for k, v in (env_kwargs or {}).items()}
    asked = {"env": env, "env_kwargs": kwargs, "tol": options.get("tol"), "horizon": horizon}
    command = command or shlex.join(["polyak", "solve", method, env])
    place = _place(out, log_folder, method, env)
    _write(place, model, solution, {"command": command, **asked, "seconds": round(seconds, 6)})
    print(place / "solution.html")
    return place


def model_of(env: str, kwargs: dict[str, Any], allow_import: Sequence[str] = ()) -> "Model":
    """The model of what a user named: an id of Gymnasium with a transition table, or a compiled world `jax:…`.

    Errors:
        PolyakError: there is no such environment, or its model can't be known.
    """
    from polyak.mdp import from_gymnasium, from_world

    if ":" in env or allow_import:
        from polyak import compat

        compat.settle()
        from polyak.envs.finite import FiniteWorld
        from polyak.envs.source import resolve

        source = resolve(env, env_kwargs=kwargs, allow_import=allow_import)
        if isinstance(source.world, FiniteWorld):  # it was made of its model
            return replace(source.world.model, name=env)
        if source.world is not None:
            return from_world(source.world, name=env)
    return from_gymnasium(env, **kwargs)


def _words(method: str | None, env: str | None) -> tuple[str, str]:
    """The method as it is spelled here, and the environment."""
    if method is None or env is None:
        raise PolyakError(
            "solve needs a method and an environment: polyak solve value-iteration FrozenLake-v1; "
            f"the methods are {', '.join(METHODS)}"
        )
    spelled = method.lower().replace("_", "-")
    if spelled not in METHODS:
        if env.lower().replace("_", "-") in METHODS:
            raise PolyakError(f"the method comes first: polyak solve {env} {method}")
        raise PolyakError(f"there is no method {method!r}{nearest(spelled, METHODS)}; there are {', '.join(METHODS)}")
    return spelled, env


def _options(method: str, gamma: float, tol: float | None, horizon: int | None) -> dict[str, Any]:
    """What the planner is given besides model and discount: a tolerance, a horizon, or neither."""
    if not 0 <= gamma <= 1:
        raise PolyakError(f"--gamma is {gamma:g}, and must lie between 0 and 1")
    if tol is not None and method in EXACT:
        raise PolyakError(f"{method} takes no --tol: it computes the answer itself, up to rounding errors")
    if tol is not None and not 0 < tol < math.inf:
        raise PolyakError(f"--tol is {tol:g}, and must be larger than 0")
    if horizon is not None and method != "finite-horizon":
        raise PolyakError(f"--horizon is for finite-horizon, and the method is {method}")
    if method == "finite-horizon" and horizon is None:
        raise PolyakError("finite-horizon needs the number of steps that are left: --horizon 100")
    if horizon is not None and horizon < 1:
        raise PolyakError(f"--horizon is {horizon}, and must be at least 1")
    if method == "finite-horizon":
        return {"horizon": horizon}
    return {} if method in EXACT else {"tol": TOLERANCE if tol is None else tol}


def _exact(value: float) -> str:
    """Nine decimals, or nine digits where the value is tiny."""
    return f"{value:.9e}" if 0 < abs(value) < 1e-3 else f"{value:.9f}"


# ------------------------------------------------------------------------------------------------------------- folder


def _refuse_occupied(out: Path | None) -> None:
    """Refuses a folder that holds something, before any work is done."""
    if out is None or not out.exists():
        return
    free = next(name for n in range(2, 1_000_000) if not (name := out.with_name(f"{out.name}_{n}")).exists())
    if not out.is_dir():
        raise RunError(f"{out} is a file; choose a folder, for instance --out {free}")
    if any(out.iterdir()):
        raise RunError(f"{out} is not empty; choose a new name, for instance --out {free}")


def _place(out: Path | None, log_folder: Path, method: str, env: str) -> Path:
    """The folder of the solution, which exists then: `out`, or the next free runs/solve/<method>_<Env>_<n>."""
    from polyak.runs import folder

    return folder.create(out, log_folder, "solve", f"{method}_{env}")


def _write(place: Path, model: "Model", solution: "Solution", about: dict[str, Any]) -> None:
    """solution.npz, solution.json and solution.html."""
    import io

    import numpy as np

    from polyak.report.solution import Facts, numbers, write_solution
    from polyak.runs import disk

    arrays = io.BytesIO()
    np.savez_compressed(arrays, V=solution.V, Q=solution.Q, policy=solution.policy, errors=solution.errors)
    versions = {"python": sys.version.split()[0], **{name: metadata.version(name) for name in ("polyak", "numpy")}}
    with suppress(metadata.PackageNotFoundError):  # a world written in JAX needs no gymnasium
        versions["gymnasium"] = metadata.version("gymnasium")
    try:
        disk.write_atomic(place / "solution.npz", arrays.getvalue())
    except OSError as error:
        raise RunError(f"{place / 'solution.npz'} cannot be written: {disk.reason(error)}.") from error
    disk.write_json(place / "solution.json", {**about, **numbers(model, solution), "versions": versions})
    tol = math.nan if about["tol"] is None else about["tol"]
    facts = Facts(about["command"], about["seconds"], tol, versions)
    write_solution(place / "solution.html", model, solution, facts)


# ------------------------------------------------------------------------------------------------------------- progress


class Meter:
    """The live line of a long solve, on a terminal: sweeps, the error that is left, time. Nothing elsewhere.

    Args:
        title: what is solved, in front of the line.
        tol: where the error has to go.
        shown: False switches it off.
    """

    def __init__(self, title: str, tol: float, shown: bool = True) -> None:
        self._title, self._tol, self._shown = title, tol, shown and sys.stderr.isatty()
        self._begun = self._drawn = time.monotonic()
        self._first = math.nan
        self._live: Live | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        if self._live is not None:
            with suppress(OSError):  # a terminal that was closed
                self._live.stop()

    def __call__(self, sweep: int, bound: float) -> None:
        """After a sweep: how many there were, and the bound on the error (NaN where there is none)."""
        now = time.monotonic()
        if math.isnan(self._first) and 0 < bound < math.inf:
            self._first = bound
        if not self._shown or now - self._begun < PATIENCE or now - self._drawn < REDRAW:
            return
        self._drawn = now
        try:
            self._draw(sweep, bound, now - self._begun)
        except OSError:  # the terminal was closed: there is nobody to tell, and the work goes on
            self._live, self._shown = None, False

    def share(self, bound: float) -> float:
        """How much of the way from the first bound to the tolerance lies behind, in orders of magnitude."""
        if not (0 < bound < math.inf and self._first > self._tol > 0):
            return 0.0
        return min(1.0, max(0.0, math.log(self._first / bound) / math.log(self._first / self._tol)))

    def _draw(self, sweep: int, bound: float, seconds: float) -> None:
        from rich.console import Console
        from rich.live import Live
        from rich.progress_bar import ProgressBar
        from rich.table import Table

        if self._live is None:
            self._live = Live(console=Console(stderr=True), auto_refresh=False, transient=True)
            self._live.start()
        line = Table.grid(padding=(0, 2, 0, 0))
        error = f"error ≤ {bound:.2e}" if math.isfinite(bound) else ""
        bar = ProgressBar(1.0, self.share(bound), 24, style="grey30", complete_style="cyan")
        line.add_row(bar, f"{sweep:,} sweeps", error, f"{seconds:.0f} s", self._title)
        self._live.update(line, refresh=True)
