"""DQN: deep Q-learning. Mnih et al. (2013), arXiv 1312.5602; Mnih et al. (2015), Nature 518.
Double: van Hasselt, Guez & Silver (2016), arXiv 1509.06461. Prioritised: Schaul et al. (2016), arXiv 1511.05952.
Dueling: Wang et al. (2016), arXiv 1511.06581.

A network Q_θ fits Bellman's optimality equation on transitions replayed at random; targets come from an older copy θ′:

    y = r + γ (1 − terminated) max_a′ Q_θ′(s′, a′)                                            (1)
    y = r + γ (1 − terminated) Q_θ′(s′, argmax_a′ Q_θ(s′, a′))         where `double`         (2)
    θ ← θ − lr ∇ E[ ℓ(Q_θ(s, a) − y) ],   ℓ(δ) = ½ δ² for |δ| ≤ 1, else |δ| − ½   (Huber)      (3)
    θ′ ← τ θ + (1 − τ) θ′     every `target_update_interval` steps; τ = 1 copies              (4)
    a  = argmax_a Q_θ(s, a), or any action with probability ε                                 (5)
    r is Σ_{i<k} γⁱ r_i, γ is γᵏ, and s′ stands k ≤ `n_step` steps later                      (6)
    i is drawn with P(i) ∝ (|δ_i| + 10⁻⁴)^α                       where `prioritised` is α    (7)
    ℓ(δ_i) is weighed with (M P(i))^−β over the greatest weight of the batch                  (8)
    Q(s, a) = V(s) + A(s, a) − mean_a′ A(s, a′)                        where `dueling`        (9)

Differs from the papers: Adam instead of RMSProp; gradients are clipped by their norm; the error may be squared instead
of Huber's (`loss`); V and A are linear in the same features. ε and θ′ change between rollouts, at most once in each.
With a memory, batches are of whole rollouts, from the memory with which they were acted (Kapturowski et al. 2019).

Takes: any observations; actions Discrete, masked or not.
"""

from typing import Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array, lax

from polyak import nets
from polyak.core import (
    Counter,
    Metrics,
    Rhythm,
    Rollout,
    Spec,
    Transition,
    hyper,
    in_range,
    leading,
    one_of,
    refuse_actions,
)
from polyak.dists import mask_of, masked
from polyak.explore import epsilon_at, epsilon_greedy_choice
from polyak.heads import Dueling, Value, action_value, torso_of
from polyak.optim import Schedule, adam, descend, now, polyak
from polyak.recurrent import check_memory, start, step, views
from polyak.replay import UNIFORM, Drawn, Sampling, check_replay, check_rhythm, check_sequences, replay_update, ring
from polyak.returns import td_target
from polyak.spaces import Discrete

_NETWORK = nets.MLP((64, 64), "relu", "uniform")


class State(NamedTuple):
    Q: Value | Dueling  # θ: observation ↦ one value per action
    Q_target: Value | Dueling  # θ′
    opt: Any  # Adam's moments
    replay: Any  # transitions, for the whole run
    steps: Counter  # environment steps so far


@hyper
class DQN:
    # objective
    gamma: float | Schedule = 0.99  # discount γ per step
    n_step: int = 1  # rewards in a target before the value of a successor; fewer where the episode ends
    double: bool = False  # the online network chooses the action that the target network values
    loss: Literal["huber", "squared"] = "huber"  # ℓ
    # exploration
    eps_start: float = 1.0  # ε at the first step
    eps_end: float = 0.05  # ε after eps_steps
    eps_steps: int = 100_000  # environment steps over which ε falls, in a straight line
    # rhythm
    rollout_length: int = 4  # environment steps per environment between updates
    updates_per_step: Rhythm = 0.25  # gradient steps per environment step
    batch_size: int = 32  # transitions per gradient step
    buffer_size: int = 1_000_000  # transitions kept
    prioritised: float | None = None  # α: 0 draws all transitions equally often, 1 in proportion to |δ|; none: uniform
    is_beta: float | Schedule = 0.4  # with prioritised: β, 1 makes up for the uneven draw in full, 0 not at all
    learning_starts: int = 100  # environment steps before the first gradient step; actions are random until then
    tau: float | Schedule = 1.0  # τ: 1 copies the network
    target_update_interval: int = 10_000  # environment steps between target updates; at most one per rollout
    lr: float | Schedule = 1e-4  # step size of Adam
    max_grad_norm: float | Schedule | None = 10.0  # gradients are scaled down to this norm
    adam_eps: float = 1e-8  # ε in Adam's denominator
    # networks
    network: Any = None  # sizes such as 256,256, or a network; none: 64,64 ReLU, and a CNN for images
    recurrent: Literal["gru", "lstm"] | None = None  # a memory of the episode, learned through rollout_length steps
    memory_size: int = 64  # width of that memory
    dueling: bool = False  # the network gives V and A, of which Q is the sum

    on_policy: ClassVar[bool] = False

    def __post_init__(self) -> None:
        in_range(
            self, gamma=(0, 1), tau=(0, 1), eps_start=(0, 1), eps_end=(0, 1), lr=(0, jnp.inf), eps_steps=(1, 1 << 40)
        )
        check_replay(self)
        in_range(self, target_update_interval=(1, 1 << 24), n_step=(1, 1 << 10))
        in_range(self, prioritised=(0, 1), is_beta=(0, 1))
        in_range(self, max_grad_norm=(1e-8, jnp.inf), adam_eps=(1e-20, 1))  # ε = 0 gives NaN where there is no gradient
        check_memory(self)
        one_of(self, loss=("huber", "squared"))

    def init(self, key: Array, spec: Spec) -> State:
        if not isinstance(spec.action, Discrete):
            refuse_actions("DQN", spec.action)
        check_rhythm("DQN", self, spec.n_envs)
        if self.recurrent is not None:
            check_sequences("DQN", self.batch_size, self.rollout_length, self.n_step, self.prioritised)
        k_torso, k_head = jax.random.split(key)
        torso = torso_of(k_torso, self, _NETWORK, spec.obs)
        Q = (Dueling if self.dueling else Value).init(k_head, torso, spec.obs, spec.action.n, "uniform")  # (9)
        plain, memory = self.prioritised is None, self.memory(spec)
        replay = ring(spec, self.buffer_size, self.rollout_length, prioritised=not plain, memory=memory)
        return State(Q, Q, self._rule().init(Q), replay, Counter.of(0))

    def memory(self, spec: Spec) -> Any:
        return start(self.recurrent, self.memory_size, spec.n_envs)

    def act(self, state: State, obs: Any, key: Array, memory: Any, *, explore: bool) -> tuple[Any, Any]:
        features, memory = step(state.Q.torso, obs, memory)
        Q = masked(state.Q.given(features, obs), obs)
        if not explore:
            return jnp.argmax(Q, axis=-1).astype(jnp.int32), memory
        return epsilon_greedy_choice(key, Q, self._epsilon(state), mask_of(obs)), memory  # (5)

    def update(self, state: State, rollout: Rollout, key: Array) -> tuple[State, Metrics]:
        self = now(self, state.steps)
        T, N = leading(rollout.steps, 2)
        due = state.steps.crossed(T * N, self.target_update_interval)
        Q_target = lax.cond(due, lambda s: polyak(s.Q_target, s.Q, self.tau), lambda s: s.Q_target, state)  # (4)
        state, view = state._replace(Q_target=Q_target), Sampling(self.n_step, self.prioritised, self.is_beta)
        state, metrics = replay_update(self, state, rollout, key, view)  # (6) (7) (8)
        return state, metrics | {"rollout/exploration_rate": self._epsilon(state)}

    def learn(self, state: State, batch: Transition, key: Array, drawn: Drawn = UNIFORM) -> tuple[State, Metrics]:
        """One gradient step on a batch of transitions [B], or of rollouts [T, B]."""

        def after(Q: Any) -> Array:
            return masked(Q.given(views(Q.torso, batch, drawn.memory)[1], batch.next_obs), batch.next_obs)

        Q_next = after(state.Q_target)
        best = after(state.Q) if self.double else Q_next
        V_next = jnp.take_along_axis(Q_next, jnp.argmax(best, axis=-1)[..., None], axis=-1)[..., 0]
        y = td_target(self.gamma**drawn.k, batch.reward, batch.terminated, V_next)  # (1) (2) (6)

        def loss(Q: Any) -> tuple[Array, tuple[Array, Array]]:
            Q_sa = action_value(Q, views(Q.torso, batch, drawn.memory)[0], batch.action, batch.obs)
            delta = Q_sa - y
            error = optax.losses.huber_loss(delta) if self.loss == "huber" else 0.5 * delta**2
            return (drawn.weight * error).mean(), (Q_sa.mean(), abs(delta))  # (8)

        (value, (Q_mean, error)), grads = jax.value_and_grad(loss, has_aux=True)(state.Q)
        Q, opt = descend(self._rule(), self.lr, grads, state.opt, state.Q)  # (3)
        metrics = {"train/loss": value, "train/q_mean": Q_mean}
        if self.prioritised is not None:
            metrics["train/td_error"] = error
        return state._replace(Q=Q, opt=opt), metrics

    def _epsilon(self, state: State) -> Array:
        """ε at this point of the run; 1 before learning starts."""
        return jnp.where(state.steps.at_least(self.learning_starts), epsilon_at(self, state.steps), 1.0)

    def _rule(self) -> Any:
        return adam(self.max_grad_norm, self.adam_eps)
