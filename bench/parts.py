"""Where the time of a job of `polyak` goes, and what the machine would allow: prints one line of JSON.

    python bench/parts.py sac-halfcheetah

The parts of an iteration are timed alone, each over and over for about a second: the environments' steps, choosing
the actions, the update. Beside them stands the floor: the update's matrix products, counted in its program, at the rate
of this machine's large ones. On the compiled crank the parts are programs of their own, so that what fusing them saves
shows as a sum larger than the whole.
"""

import functools
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from ours import agent

from polyak import cranks
from polyak.runs.plan import Plan, plan

SECONDS = 1.0
SIZE = 2048  # of the matrices whose product says what the machine can do


def planned(job: dict[str, Any]) -> Plan:
    """The job's run, without what is not training."""
    env = f"jax:{job['env']}" if job.get("compiled") else job["env"]
    return plan(agent(job, job["steps"]), env, steps=job["steps"], n_envs=job["n_envs"], eval_freq=0, eval_episodes=0)


def per_call(call: Callable[[], Any]) -> float:
    """Seconds of one call, of many in a row; the first ones, which compile, are outside."""
    for _ in range(3):
        jax.block_until_ready(call())
    calls, began = 0, time.perf_counter()
    while (spent := time.perf_counter() - began) < SECONDS:
        jax.block_until_ready(call())
        calls += 1
    return spent / calls


def flops(jaxpr: Any) -> float:
    """Floating-point operations of the matrix products and convolutions in a program, with its loops unrolled."""
    total = 0.0
    for equation in jaxpr.eqns:
        out = equation.outvars[0].aval
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            total += 2 * out.size * np.prod([equation.invars[0].aval.shape[d] for d in contracted])
        elif equation.primitive.name == "conv_general_dilated":
            kernel = equation.invars[1].aval
            total += 2 * out.size * kernel.size / kernel.shape[equation.params["dimension_numbers"].rhs_spec[0]]
        inner = [flops(program) for program in programs_in(equation.params)]
        if equation.primitive.name == "cond":
            total += max(inner, default=0.0)
        else:
            total += sum(inner) * (equation.params["length"] if equation.primitive.name == "scan" else 1)
    return total


def programs_in(parameters: dict[str, Any]) -> list[Any]:
    """The bodies of loops, branches and calls."""
    values = [x for v in parameters.values() for x in (v if isinstance(v, tuple | list) else [v])]
    programs = [getattr(x, "jaxpr", x) for x in values]
    return [program for program in programs if hasattr(program, "eqns")]


def matmul_rate() -> float:
    """Operations per second of a large product of float32 matrices."""
    x = jax.random.normal(jax.random.key(0), (SIZE, SIZE))
    return 2 * SIZE**3 / per_call(functools.partial(jax.jit(jnp.matmul), x, x))


def host_parts(made: Plan) -> tuple[dict[str, float], Any]:
    """(seconds per iteration of each part, the program of an update) on the host crank, once it learns."""
    crank: Any = made.build()
    T = made.agent.rollout_length
    crank.advance(max(2, -(-getattr(made.agent, "learning_starts", 0) // made.iteration_steps) + 2))
    seed = crank.all[0]
    read = [seed.leaves[i] for i in crank._read]
    action, *_ = crank._act(read, seed.obs, seed.keys.acting, np.int32(0), seed.memory, seed.started)
    action = np.asarray(action)
    act = functools.partial(crank._act, read, seed.obs, seed.keys.acting, np.int32(0), seed.memory, seed.started)
    out, _ = seed.world.step(action, seed.keys.world, np.int32(0))
    record = cranks.Transition(seed.obs, action, out.reward, out.next_obs, out.terminated, out.truncated)
    rollout = cranks.Rollout(cranks._stacked([record] * T), seed.memory)
    counter = cranks._words(seed.iteration + 1)

    def update() -> Any:
        seed.leaves, _, metrics = crank._update(crank.agent, seed.leaves, rollout, seed.keys, counter)
        return metrics

    def step() -> Any:
        return seed.world.step(action, seed.keys.world, np.int32(0))[0].reward

    program = jax.make_jaxpr(crank._update)(crank.agent, seed.leaves, rollout, seed.keys, counter)
    parts = {"environments": T * per_call(step), "act": T * per_call(act), "update": per_call(update)}
    crank.close()
    return parts, program.jaxpr


def compiled_parts(made: Plan) -> tuple[dict[str, float], Any]:
    """The same on the compiled crank: interaction and update as loops of their own."""
    crank: Any = made.build()
    crank.advance(max(2, -(-getattr(made.agent, "learning_starts", 0) // made.iteration_steps) + 2))
    state = crank.seed_state(0)
    learner, vector, spec = crank.agent, crank.vector, made.spec
    n = max(1, 20_000 // made.iteration_steps)  # iterations in one call, so that calls cost nothing

    @jax.jit
    def interact(state: Any) -> Any:
        def one(_: Any, s: Any) -> Any:
            s, rollout, _ = cranks.interact(learner, vector, spec, s)
            # Something of the record is kept, or the compiler would leave it out.
            return s._replace(key=jax.random.fold_in(s.key, jnp.int32(jnp.sum(rollout.steps.reward)) & 1))

        return lax.fori_loop(0, n, one, state)

    _, rollout, _ = jax.jit(functools.partial(cranks.interact, learner, vector, spec))(state)

    @jax.jit
    def update(learned: Any, key: Any) -> Any:
        return lax.fori_loop(0, n, lambda i, s: learner.update(s, rollout, jax.random.fold_in(key, i))[0], learned)

    program = jax.make_jaxpr(lambda s, k: learner.update(s, rollout, k))(state.agent, state.key)
    parts = {
        "act and environments": per_call(lambda: interact(state)) / n,
        "update": per_call(lambda: update(state.agent, state.key)) / n,
    }
    return parts, program.jaxpr


def main(name: str) -> None:
    job = json.loads((Path(__file__).parent / "jobs.json").read_text())[name]
    made = planned(job)
    parts, program = (compiled_parts if job.get("compiled") else host_parts)(made)
    work, rate = flops(program), matmul_rate()
    floor = work / rate
    row = {"job": name, "iteration_steps": made.iteration_steps, "parts_s": parts, "update_flop": work}
    row |= {"matmul_flop_per_s": rate, "floor_s": floor}
    print(json.dumps(row))


if __name__ == "__main__":
    main(*sys.argv[1:])
