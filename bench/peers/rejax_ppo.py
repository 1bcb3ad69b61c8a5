"""Times one compiled PPO job of rejax: prints one line of JSON.

    bench/peers/.venv-rejax/bin/python bench/peers/rejax_ppo.py compiled-ppo-cartpole [STEPS] [SEED]

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
from rejax import PPO


def algorithm(job: dict[str, Any], steps: int) -> Any:
    """rejax's PPO with the job's settings, and an evaluation that does nothing."""
    same = ("gamma", "gae_lambda", "ent_coef", "vf_coef", "max_grad_norm")
    ppo = PPO.create(
        env=job["env"],
        agent_kwargs={"activation": job["activation"], "hidden_layer_sizes": tuple(job["hidden"])},
        num_envs=job["n_envs"],
        num_steps=job["rollout_length"],
        num_epochs=job["epochs"],
        num_minibatches=job["minibatches"],
        learning_rate=job["lr"],
        clip_eps=job["clip_range"],
        total_timesteps=steps,
        eval_freq=steps,
        skip_initial_evaluation=True,
        **{name: job[name] for name in same},
    )
    return ppo.replace(eval_callback=lambda algo, state, key: ())


def main(name: str, steps: str = "", seed: str = "0") -> None:
    job = json.loads((Path(__file__).parent.parent / "jobs.json").read_text())[name]
    iteration = job["n_envs"] * job["rollout_length"]
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
