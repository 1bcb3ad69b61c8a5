"""Times one compiled job of rejax: prints one line of JSON.

    bench/peers/.venv-rejax/bin/python bench/peers/rejax_train.py compiled-ppo-cartpole [STEPS] [SEED]

The settings are those of bench/jobs.json. The program is compiled and run once before the clock starts; then
one whole training run is timed, initialisation included (milliseconds). rejax's evaluation is switched off.
"""

import json
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import rejax


def settings(job: dict[str, Any]) -> dict[str, Any]:
    """The job's settings under the names of rejax."""
    same = ("gamma", "gae_lambda", "ent_coef", "vf_coef", "max_grad_norm", "batch_size", "buffer_size", "eps_start")
    found = {name: job[name] for name in same if name in job}
    network = {"activation": job["activation"]}
    if job["agent"] == "PPO":
        found |= {"num_steps": job["rollout_length"], "num_epochs": job["epochs"], "clip_eps": job["clip_range"]}
        found |= {"num_minibatches": job["minibatches"]}
    else:  # one step of every environment, then so many updates
        found |= {"fill_buffer": job["learning_starts"], "num_epochs": round(job["updates_per_step"] * job["n_envs"])}
        found |= {"polyak": 1 - job["tau"]}
    if job["agent"] == "DQN":
        found |= {"eps_end": job["eps_end"], "exploration_fraction": job["eps_fraction"], "ddqn": job["double"]}
    if job["agent"] == "SAC":
        found |= {"hidden_layer_sizes": tuple(job["hidden"])}
    elif job["agent"] == "PPO":
        network |= {"hidden_layer_sizes": tuple(job["hidden"])}
    return found | {"agent_kwargs": network}


def algorithm(job: dict[str, Any], steps: int) -> Any:
    """rejax's algorithm with the job's settings, and an evaluation that does nothing."""
    made = getattr(rejax, job["agent"]).create(
        env=job["env"],
        num_envs=job["n_envs"],
        learning_rate=job["lr"],
        total_timesteps=steps,
        eval_freq=steps,
        skip_initial_evaluation=True,
        **settings(job),
    )
    return made.replace(eval_callback=lambda algo, state, key: ())


def main(name: str, steps: str = "", seed: str = "0") -> None:
    job = json.loads((Path(__file__).parent.parent / "jobs.json").read_text())[name]
    iteration = job["n_envs"] * job["rollout_length"]  # of which a run is a whole number
    total = int(steps or job["steps"]) // iteration * iteration
    train = jax.jit(algorithm(job, total).train)
    jax.block_until_ready(train(jax.random.PRNGKey(int(seed) + 1)))
    began = time.perf_counter()
    state, _ = jax.block_until_ready(train(jax.random.PRNGKey(int(seed))))
    seconds = time.perf_counter() - began
    done = int(state.global_step)
    row = {"peer": "rejax", "job": name, "steps": done, "seconds": round(seconds, 3), "fps": round(done / seconds, 1)}
    packages = ("rejax", "jax", "gymnax", "flax", "numpy")
    row |= {
        "version": version("rejax"),
        "versions": {p: version(p) for p in packages},
        "python": sys.version.split()[0],
    }
    print(json.dumps(row))


if __name__ == "__main__":
    main(*sys.argv[1:])
