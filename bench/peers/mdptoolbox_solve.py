"""Times one solver of pymdptoolbox, or of mdptoolbox-hiive, on one model of bench/planning.py: prints a line of JSON.

    bench/peers/.venv-hiive/bin/python bench/peers/mdptoolbox_solve.py MODEL.npz METHOD GAMMA EPSILON SECONDS VALUES.npy

The clock holds the solver's constructor and its run(); the import, and the making of the sparse matrices, which are the
form that both libraries take, are outside. Short runs are repeated for a second, and the shortest counts. A run that
takes longer than SECONDS is ended by a signal.

METHOD is one of METHODS. "value iteration, patched" is ValueIteration without what no documented setting can switch
off: `_boundIter`, which looks at every column of every matrix to find out how many iterations it may take, and
pymdptoolbox's check of the model, which makes dense matrices. It shows what the iterations alone take.
"""

import json
import resource
import signal
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from scipy.sparse import csr_matrix

try:
    from hiive.mdptoolbox import mdp

    PEER, PACKAGE = "hiive", "mdptoolbox-hiive"
except ImportError:
    from mdptoolbox import mdp

    PEER, PACKAGE = "mdptoolbox", "pymdptoolbox"

METHODS = {
    "value iteration": "ValueIteration",
    "value iteration, patched": "ValueIteration",
    "Gauss-Seidel value iteration": "ValueIterationGS",
    "modified policy iteration": "PolicyIterationModified",
    "policy iteration": "PolicyIteration",
}


def matrices(model: Any) -> list[Any]:
    """One sparse matrix [S, S] per action."""
    successor, probability = model["successor"], model["probability"]
    n, n_actions, k = successor.shape
    rows = np.repeat(np.arange(n), k)
    return [
        csr_matrix((probability[:, a].ravel(), (rows, successor[:, a].ravel())), shape=(n, n))
        for a in range(n_actions)
    ]  # fmt: skip


def solver(method: str, P: list[Any], R: Any, gamma: float, epsilon: float) -> Any:
    """A solver with its own defaults, without what a documented setting can save."""
    kind = getattr(mdp, METHODS[method])
    settings: dict[str, Any] = {} if method == "policy iteration" else {"epsilon": epsilon}
    if PEER == "hiive":
        settings["skip_check"] = True
        if METHODS[method] in ("ValueIteration", "PolicyIteration"):
            settings["run_stat_frequency"] = 1 << 30  # else it keeps a copy of V of every iteration
    if method == "value iteration, patched":
        kind = type("Patched", (kind,), {"_boundIter": lambda self, epsilon: None})
        mdp._util.check = lambda P, R: None
        settings["max_iter"] = 1 << 30
    return kind(P, R, gamma, **settings)


def peak() -> int:
    """The most memory that this process has had, bytes."""
    status = Path("/proc/self/status")
    rows = status.read_text().splitlines() if status.exists() else []
    found = [int(row.split()[1]) * 1024 for row in rows if row.startswith("VmHWM")]
    return found[0] if found else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main(file: str, method: str, gamma: str, epsilon: str, seconds: str, values: str) -> None:
    with np.load(file, allow_pickle=False) as model:
        P, R = matrices(model), model["reward"]
    times: list[float] = []
    found: Any = None
    while not times or sum(times) + min(times) < 1:
        signal.alarm(round(float(seconds)))
        began = time.perf_counter()
        found = solver(method, P, R, float(gamma), float(epsilon))
        found.run()
        times.append(time.perf_counter() - began)
        signal.alarm(0)
    np.save(values, np.asarray(found.V, np.float64))
    packages = (PACKAGE, "numpy", "scipy")
    row = {"seconds": min(times), "runs": len(times), "sweeps": int(found.iter), "peak": peak()}
    row |= {"versions": {p: version(p) for p in packages}, "python": sys.version.split()[0]}
    print(json.dumps(row))


if __name__ == "__main__":
    main(*sys.argv[1:])
