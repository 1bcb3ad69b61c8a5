"""REINFORCE: the policy climbs along the returns that it saw. Williams (1992), Machine Learning 8, pp. 229-256;
Sutton & Barto (2018), §13.3, with a baseline §13.4.

The first of the policy gradients. A table of values is only asked for the best action; here the policy itself is what
learns, so it may be random, continuous, any network. The estimate is unbiased, and noisy: each return carries the luck
of all steps to come. Actor-critic answers that.

    G_t = Σ_k γ^k r_{t+k},   to the end of the episode, or of the rollout where that comes first       (1)
    c_t = 1 if the episode began in this rollout, `horizon` steps or more before its end; else 0       (2)
    θ ← θ + lr ∇ mean[ c_t ( (G_t − b) log π_θ(a_t | s_t) + c_e H(π_θ(· | s_t)) ) ]                    (3)
    b = 0, or the mean of G, or V_w(s_t) with w ← w − lr_w ∇ mean[ c_t (V_w(s_t) − G_t)² ]              (4)

What is exact. Without `horizon` every step counts, c = 1, and step t of a rollout of T climbs the value of the next
T − t steps: where the episode goes on, γ^(T−t) V(s_T) ∇ log π(a_t | s_t) is missing from its term. With a `horizon`
as long as the longest episode nothing is missing: an episode counts as a whole or not at all, which is settled before
it begins, and the expectation of (3) is the gradient of an episode's return times the episodes that count per step.
(To skip those that were cut, instead, would favour short ones.) Of the baselines, 0 and V_w keep this; the mean of the
same returns leans it by about one episode's share of the batch.

Differs from the paper: several episodes a step, of any length, from rollouts of one shape; Adam; an entropy bonus. The
weight γ^t of the episode's t-th step is left out, as almost everywhere, unless `discounted`. Where the clock stops an
episode, the return is what was earned by then: nothing is bootstrapped.

Takes: any observations; actions Discrete, MultiDiscrete, MultiBinary (masked or not) and Box.
"""

from typing import Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from polyak import nets
from polyak.core import Counter, Metrics, Rollout, Spec, flat, hyper, in_range, leading, one_of, refuse_actions, require
from polyak.heads import Policy, Value
from polyak.optim import Schedule, adam, descend, now
from polyak.returns import ended, explained_variance, lambda_return
from polyak.spaces import Box, Discrete, MultiBinary, MultiDiscrete

_NETWORK = nets.MLP((64, 64), "tanh", "orthogonal")


class State(NamedTuple):
    actor: Policy  # θ, the policy that acts
    critic: Any  # w: observation ↦ V; () without
    opts: tuple[Any, Any]  # Adam's moments for actor and critic; () without critic
    age: Array  # [N] steps of the present episodes before the next rollout
    steps: Counter  # environment steps so far


class Batch(NamedTuple):
    """A rollout's steps, [B, ...]."""

    obs: Any
    action: Any
    G: Array  # return from here on
    c: Array  # how much the step counts


@hyper
class REINFORCE:
    # objective
    gamma: float | Schedule = 0.99  # discount γ per step
    discounted: bool = False  # weigh the t-th step of an episode by γ^t, as the theorem does
    horizon: int | None = None  # only episodes that begin so many steps before the rollout's end; none: every step
    baseline: Literal["none", "mean", "value"] = "mean"  # b, taken off returns: nothing, their mean, a learned V
    ent_coef: float | Schedule = 0.0  # c_e, weight of the entropy bonus
    # rhythm
    rollout_length: int = 1024  # environment steps per environment between updates
    lr: float | Schedule = 1e-3  # step size of Adam
    critic_lr: float | Schedule = 1e-3  # step size of Adam for V, with the baseline "value"
    critic_epochs: int = 1  # gradient steps of V on each rollout
    max_grad_norm: float | Schedule | None = 0.5  # gradients are scaled down to this norm; none: never
    # networks
    network: Any = None  # sizes such as 256,256, or a network; none: 64,64 tanh, and a CNN for images
    log_std_init: float = 0.0  # log σ of a Box policy at the start

    on_policy: ClassVar[bool] = True

    def __post_init__(self) -> None:
        in_range(self, gamma=(0, 1), ent_coef=(0, jnp.inf), lr=(0, jnp.inf), critic_lr=(0, jnp.inf))
        in_range(self, rollout_length=(1, 1 << 24), horizon=(1, 1 << 24), critic_epochs=(1, 1 << 16))
        in_range(self, max_grad_norm=(1e-8, jnp.inf))
        one_of(self, baseline=("none", "mean", "value"))
        fits = self.horizon is None or self.horizon <= self.rollout_length
        longer = f"REINFORCE: horizon {self.horizon} needs a rollout_length as long, not {self.rollout_length}"
        require(fits, f"{longer}: no episode would count")

    def init(self, key: Array, spec: Spec) -> State:
        if not isinstance(spec.action, Discrete | MultiDiscrete | MultiBinary | Box):
            refuse_actions("REINFORCE", spec.action)
        k_actor, k_head, k_critic, k_value = jax.random.split(key, 4)
        torso = nets.build(self.network, _NETWORK, k_actor, spec.obs)
        actor = Policy.init(k_head, torso, spec.obs, spec.action, self.log_std_init)
        critic, critic_opt = (), ()
        if self.baseline == "value":
            critic = Value.init(k_value, nets.build(self.network, _NETWORK, k_critic, spec.obs), spec.obs)
            critic_opt = self._rule().init(critic)
        opts = self._rule().init(actor), critic_opt
        return State(actor, critic, opts, jnp.zeros(spec.n_envs, jnp.int32), Counter.of(0))

    def memory(self, spec: Spec) -> tuple[()]:
        return ()

    def act(self, state: State, obs: Any, key: Array, memory: Any, *, explore: bool) -> tuple[Any, Any]:
        pi = state.actor(obs)
        return pi.sample(key) if explore else pi.mode(), memory

    def update(self, state: State, rollout: Rollout, key: Array) -> tuple[State, Metrics]:
        self, steps = now(self, state.steps), rollout.steps
        T, N = leading(steps, 2)
        worthless = jnp.zeros((T, N))  # whatever follows: nothing is bootstrapped
        G = lambda_return(self.gamma, 1.0, steps.reward, worthless, steps.terminated, steps.truncated)  # (1)
        age, ages = _ages(state.age, ended(steps))
        batch = flat(Batch(steps.obs, steps.action, G, self._counted(ages)))
        state, metrics = self.learn(state, batch)
        return state._replace(age=age, steps=state.steps.add(T * N)), metrics

    def learn(self, state: State, batch: Batch, key: Array | None = None) -> tuple[State, Metrics]:
        """One gradient step on a rollout."""
        G, c = batch.G, batch.c
        valued = self.baseline == "value"
        b = state.critic(batch.obs) if valued else jnp.zeros_like(G)  # (4)
        if self.baseline == "mean":
            b = b + (c * G).sum() / jnp.maximum(c.sum(), 1e-8)

        def actor_loss(actor: Policy) -> tuple[Array, tuple[Array, Array]]:
            pi = actor(batch.obs)
            L, H = -(c * (G - b) * pi.log_prob(batch.action)).mean(), (c * pi.entropy()).mean()
            return L - self.ent_coef * H, (L, H)  # (3)

        def critic_loss(critic: Any) -> Array:
            return (c * (critic(batch.obs) - G) ** 2).mean()  # (4)

        grads, (L, H) = jax.grad(actor_loss, has_aux=True)(state.actor)
        actor, actor_opt = descend(self._rule(), self.lr, grads, state.opts[0], state.actor)
        metrics = {"train/policy_loss": L, "train/entropy_loss": -H, "train/learning_rate": jnp.asarray(self.lr)}
        metrics["train/steps_counted"] = (c > 0).mean()
        critic, critic_opt = state.critic, state.opts[1]
        if valued:

            def fit(learner: tuple[Any, Any], _: None) -> tuple[tuple[Any, Any], Array]:
                critic, opt = learner
                error, grads = jax.value_and_grad(critic_loss)(critic)
                return descend(self._rule(), self.critic_lr, grads, opt, critic), error  # (4)

            (critic, critic_opt), errors = lax.scan(fit, (critic, critic_opt), length=self.critic_epochs)
            metrics |= {"train/value_loss": errors[0], "train/explained_variance": explained_variance(G, b)}
        return state._replace(actor=actor, critic=critic, opts=(actor_opt, critic_opt)), metrics

    def _counted(self, ages: Array) -> Array:
        """c of every step [T, N], from how many steps of its episode went before it."""
        T = ages.shape[0]
        began = jnp.arange(T)[:, None] - ages  # the step of the rollout with which its episode began; below 0: earlier
        whole = jnp.ones(ages.shape, bool) if self.horizon is None else (began >= 0) & (began <= T - self.horizon)
        return whole * (self.gamma**ages if self.discounted else 1.0)  # (2)

    def _rule(self) -> Any:
        return adam(self.max_grad_norm)


def _ages(first: Array, end: Array) -> tuple[Array, Array]:
    """(steps of the present episodes before the next rollout [N], steps of its episode before each step [T, N])."""
    return lax.scan(lambda age, end: (jnp.where(end, 0, age + 1), age), first, end)
