"""Times one job of `polyak`, at the settings of bench/jobs.json: prints one line of JSON.

    python bench/ours.py ppo-cartpole [STEPS] [SEED]

The clock is that of the run's own metrics: from the first row after `warm` steps, when everything is compiled, to the
row of the last step, with all that happens between them. No evaluation and no checkpoints, as with the peers.
"""

import json
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import polyak
from polyak.nets import MLP
from polyak.optim import Linear

SAME = (
    "gamma", "lr", "batch_size", "rollout_length", "epochs", "gae_lambda", "clip_range", "ent_coef", "vf_coef",
    "max_grad_norm", "buffer_size", "learning_starts", "updates_per_step", "tau", "target_update_interval",
    "eps_start", "eps_end", "double", "noise_std", "policy_delay",
)  # fmt: skip
ON_POLICY = ("PPO", "A2C")


def agent(job: dict[str, Any], steps: int) -> Any:
    """The job's agent; `steps` is the length of the run, of which the exploration schedule is a fraction."""
    name = job["agent"]
    found = {field: job[field] for field in SAME if field in job}
    activation, init = ("tanh", "orthogonal") if name in ON_POLICY else ("relu", "uniform")
    found["network"] = MLP(tuple(job["hidden"]), job.get("activation", activation), init)
    if job.get("linear"):
        found |= {"lr": Linear(job["lr"], 0.0), "clip_range": Linear(job["clip_range"], 0.0)}
    if "minibatches" in job:
        found["batch_size"] = job["n_envs"] * job["rollout_length"] // job["minibatches"]
        found["clip_range_vf"] = job["clip_range"]  # as rejax always does
    if "eps_fraction" in job:
        found["eps_steps"] = max(1, round(job["eps_fraction"] * steps))
    return getattr(polyak, name)(**found)


def timed(rows: list[dict[str, Any]], warm: int) -> tuple[int, float]:
    """(steps, seconds) between the first row after `warm` steps and the last row of training."""
    training = [row for row in rows if "time/fps" in row]
    first = next(row for row in training if row["step"] >= warm)
    return training[-1]["step"] - first["step"], training[-1]["time"] - first["time"]


def main(name: str, steps: str = "", seed: str = "0") -> None:
    job = json.loads((Path(__file__).parent / "jobs.json").read_text())[name]
    total = int(steps or job["steps"])
    env = f"jax:{job['env']}" if job.get("compiled") else job["env"]
    with tempfile.TemporaryDirectory() as folder:
        run = polyak.train(
            agent(job, total), env, steps=total, seed=int(seed), n_envs=job["n_envs"], out=Path(folder) / "run",
            eval_freq=0, eval_episodes=0, save_freq=10 * total, log_freq=max(1, total // 20),
            quiet=True, progress=False, tensorboard=False, capture_video=False,
        )  # fmt: skip
        rows = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
        inner = run.summary["time"]["fps"]
    done, seconds = timed(rows, job.get("warm", 1))
    row = {"peer": "polyak", "job": name, "steps": done, "seconds": round(seconds, 3), "fps": round(done / seconds, 1)}
    row |= {"summary_fps": round(inner, 1)}
    packages = ("polyak", "jax", "gymnasium", "numpy", "mujoco")
    row |= {
        "version": version("polyak"),
        "versions": {p: version(p) for p in packages},
        "python": sys.version.split()[0],
    }
    print(json.dumps(row))


if __name__ == "__main__":
    main(*sys.argv[1:])
