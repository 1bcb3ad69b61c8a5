"""C51: categorical distributional Q-learning. Bellemare, Dabney & Munos (2017), arXiv 1707.06887.
Prioritised: Schaul et al. (2016), arXiv 1511.05952.

A network gives every action a distribution of returns on N fixed atoms, and learns it whole instead of its mean:

    z_i = v_min + i Δ,   Δ = (v_max − v_min) / (N − 1),   i = 0 … N − 1                      (1)
    Q(s, a) = Σ_i z_i p_i(s, a),   p(s, a) = softmax of N logits of the network θ            (2)
    a* = argmax_a′ Q_θ′(s′, a′), where `double` argmax_a′ Q_θ(s′, a′)                        (3)
    T z_j = r + γ (1 − terminated) z_j, cut at v_min and v_max                               (4)
    m_i = Σ_j [1 − |T z_j − z_i| / Δ]₀¹ p_j(s′, a*; θ′)                                      (5)
    θ ← θ − lr ∇ E[ −Σ_i m_i log p_i(s, a; θ) ]                                              (6)
    θ′ ← τ θ + (1 − τ) θ′     every `target_update_interval` steps; τ = 1 copies             (7)
    a = argmax_a Q_θ(s, a), or any action with probability ε                                 (8)
    r is Σ_{i<k} γⁱ r_i, γ is γᵏ, and s′ stands k ≤ `n_step` steps later                     (9)
    i is drawn with P(i) ∝ (KL(m ‖ p(s_i, a_i)) + 10⁻⁴)^α        where `prioritised` is α    (10)
    the loss of i is weighed with (M P(i))^−β over the greatest weight of the batch          (11)

Differs from the paper: gradients may be clipped by their norm. Priorities come from the divergence, as in Rainbow
(arXiv 1710.02298). ε and θ′ change between rollouts, at most once in each.

Takes: any observations; actions Discrete, masked or not.
"""

from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.scipy.special import entr

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
    refuse_actions,
    require,
)
from polyak.dists import mask_of, masked
from polyak.explore import epsilon_at, epsilon_greedy_choice
from polyak.heads import Value
from polyak.optim import Schedule, adam, descend, now, polyak
from polyak.replay import UNIFORM, Drawn, Sampling, check_replay, check_rhythm, replay_update, ring
from polyak.returns import categorical_projection, td_target
from polyak.spaces import Discrete

_NETWORK = nets.MLP((64, 64), "relu", "uniform")


class State(NamedTuple):
    Z: Value  # θ: observation ↦ N logits per action, [..., actions · N]
    Z_target: Value  # θ′
    opt: Any  # Adam's moments
    replay: Any  # transitions, for the whole run
    steps: Counter  # environment steps so far


@hyper
class C51:
    # objective
    gamma: float | Schedule = 0.99  # discount γ per step
    n_step: int = 1  # rewards in a target before the value of a successor; fewer where the episode ends
    n_atoms: int = 51  # N, values that a return may have
    v_min: float = -10.0  # the least of them
    v_max: float = 10.0  # the greatest of them
    double: bool = False  # the online network chooses the action whose distribution the target network gives
    # exploration
    eps_start: float = 1.0  # ε at the first step
    eps_end: float = 0.05  # ε after eps_steps
    eps_steps: int = 100_000  # environment steps over which ε falls, in a straight line
    # rhythm
    rollout_length: int = 4  # environment steps per environment between updates
    updates_per_step: Rhythm = 0.25  # gradient steps per environment step
    batch_size: int = 32  # transitions per gradient step
    buffer_size: int = 1_000_000  # transitions kept
    prioritised: float | None = None  # α: 0 draws all transitions equally often, 1 in proportion to KL; none: uniform
    is_beta: float | Schedule = 0.4  # with prioritised: β, 1 makes up for the uneven draw in full, 0 not at all
    learning_starts: int = 100  # environment steps before the first gradient step; actions are random until then
    tau: float | Schedule = 1.0  # τ: 1 copies the network
    target_update_interval: int = 10_000  # environment steps between target updates; at most one per rollout
    lr: float | Schedule = 2.5e-4  # step size of Adam
    max_grad_norm: float | Schedule | None = None  # gradients are scaled down to this norm; none: never
    adam_eps: float = 3.125e-4  # ε in Adam's denominator: 0.01 over the paper's batch of 32
    # networks
    network: Any = None  # sizes such as 256,256, or a network; none: 64,64 ReLU, and a CNN for images

    on_policy: ClassVar[bool] = False

    def __post_init__(self) -> None:
        in_range(
            self, gamma=(0, 1), tau=(0, 1), eps_start=(0, 1), eps_end=(0, 1), lr=(0, jnp.inf), eps_steps=(1, 1 << 40)
        )
        check_replay(self)
        in_range(self, target_update_interval=(1, 1 << 24), n_step=(1, 1 << 10))
        in_range(self, prioritised=(0, 1), is_beta=(0, 1), n_atoms=(2, 1 << 16))
        in_range(self, max_grad_norm=(1e-8, jnp.inf), adam_eps=(1e-20, 1))  # ε = 0 gives NaN where there is no gradient
        known = isinstance(self.v_min, float) and isinstance(self.v_max, float)  # traced values are not
        sentence = f"C51: v_min is {self.v_min}, and must be less than v_max, which is {self.v_max}"
        require(not known or self.v_min < self.v_max, sentence)

    def init(self, key: Array, spec: Spec) -> State:
        if not isinstance(spec.action, Discrete):
            refuse_actions("C51", spec.action)
        check_rhythm("C51", self, spec.n_envs)
        k_torso, k_head = jax.random.split(key)
        torso = nets.build(self.network, _NETWORK, k_torso, spec.obs)
        Z = Value.init(k_head, torso, spec.obs, spec.action.n * self.n_atoms, "uniform")
        replay = ring(spec, self.buffer_size, self.rollout_length, prioritised=self.prioritised is not None)
        return State(Z, Z, self._rule().init(Z), replay, Counter.of(0))

    def memory(self, spec: Spec) -> tuple[()]:
        return ()

    def act(self, state: State, obs: Any, key: Array, memory: Any, *, explore: bool) -> tuple[Any, Any]:
        Q = masked(self._means(self._logits(state.Z, obs)), obs)
        if not explore:
            return jnp.argmax(Q, axis=-1).astype(jnp.int32), memory
        return epsilon_greedy_choice(key, Q, self._epsilon(state), mask_of(obs)), memory  # (8)

    def update(self, state: State, rollout: Rollout, key: Array) -> tuple[State, Metrics]:
        self = now(self, state.steps)
        T, N = leading(rollout.steps, 2)
        due = state.steps.crossed(T * N, self.target_update_interval)
        Z_target = lax.cond(due, lambda s: polyak(s.Z_target, s.Z, self.tau), lambda s: s.Z_target, state)  # (7)
        state, view = state._replace(Z_target=Z_target), Sampling(self.n_step, self.prioritised, self.is_beta)
        state, metrics = replay_update(self, state, rollout, key, view)  # (9) (10) (11)
        return state, metrics | {"rollout/exploration_rate": self._epsilon(state)}

    def learn(self, state: State, batch: Transition, key: Array, drawn: Drawn = UNIFORM) -> tuple[State, Metrics]:
        """One gradient step on a batch of transitions."""
        logits_next = self._logits(state.Z_target, batch.next_obs)
        best = self._logits(state.Z, batch.next_obs) if self.double else logits_next
        a_next = jnp.argmax(masked(self._means(best), batch.next_obs), axis=-1)  # (3)
        gamma = jnp.reshape(self.gamma**drawn.k, (-1, 1))  # (9)
        Tz = td_target(gamma, batch.reward[:, None], batch.terminated[:, None], self._atoms()[None])  # (4)
        m = categorical_projection(Tz, jax.nn.softmax(_of(logits_next, a_next)), self.v_min, self.v_max)  # (4) (5)

        def loss(Z: Value) -> tuple[Array, tuple[Array, Array]]:
            logits = _of(self._logits(Z, batch.obs), batch.action)
            error = -(m * jax.nn.log_softmax(logits)).sum(-1)  # (6)
            return (drawn.weight * error).mean(), (self._means(logits).mean(), error)  # (11)

        (value, (Q_mean, error)), grads = jax.value_and_grad(loss, has_aux=True)(state.Z)
        Z, opt = descend(self._rule(), self.lr, grads, state.opt, state.Z)  # (6)
        metrics = {"train/loss": value, "train/q_mean": Q_mean}
        if self.prioritised is not None:
            metrics["train/td_error"] = error - entr(m).sum(-1)  # (10)
        return state._replace(Z=Z, opt=opt), metrics

    def _atoms(self) -> Array:
        """The returns z [N]."""
        return self.v_min + (self.v_max - self.v_min) / (self.n_atoms - 1) * jnp.arange(self.n_atoms)  # (1)

    def _logits(self, Z: Value, obs: Any) -> Array:
        """The logits of every action's distribution, [..., actions, N]."""
        out = Z(obs)
        return out.reshape((*out.shape[:-1], -1, self.n_atoms))

    def _means(self, logits: Array) -> Array:
        """Q [...] from logits [..., N]."""
        return jax.nn.softmax(logits) @ self._atoms()  # (2)

    def _epsilon(self, state: State) -> Array:
        """ε at this point of the run; 1 before learning starts."""
        return jnp.where(state.steps.at_least(self.learning_starts), epsilon_at(self, state.steps), 1.0)

    def _rule(self) -> Any:
        return adam(self.max_grad_norm, self.adam_eps)


def _of(logits: Array, action: Array) -> Array:
    """The logits [B, N] of one action each, from those of all [B, actions, N]."""
    return jnp.take_along_axis(logits, action[:, None, None], axis=1)[:, 0]
