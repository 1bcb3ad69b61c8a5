"""Names of hyper-parameters: what peers call ours, and the sentence for a name that does not exist. No jax here."""

from collections.abc import Iterable

from polyak.errors import nearest

# A peer's name and ours; where one name has had several meanings, the first of ours that an algorithm has.
PEERS: dict[str, tuple[str, ...]] = {
    # the run (arguments of `train`)
    "total_timesteps": ("steps",),
    "n_timesteps": ("steps",),
    "timesteps": ("steps",),
    "num_timesteps": ("steps",),
    "num_envs": ("n_envs",),
    "num_env": ("n_envs",),
    "num_seeds": ("seeds",),
    "n_seeds": ("seeds",),
    "n_eval_episodes": ("eval_episodes",),
    "num_eval_episodes": ("eval_episodes",),
    "log_dir": ("log_folder",),
    "save_dir": ("log_folder",),
    "logdir": ("log_folder",),
    "normalize": ("normalise",),
    "save_frequency": ("save_freq",),
    "eval_frequency": ("eval_freq",),
    "progress_bar": ("progress",),
    # optimisation
    "learning_rate": ("lr",),
    "step_size": ("lr",),
    "policy_lr": ("lr",),
    "q_lr": ("critic_lr", "lr"),
    "actor_lr": ("lr",),
    "anneal_lr": ("lr",),
    "minibatch_size": ("batch_size",),
    "mini_batch_size": ("batch_size",),
    "num_minibatches": ("batch_size",),
    "n_minibatches": ("batch_size",),
    "sgd_minibatch_size": ("batch_size",),
    "n_epochs": ("epochs",),
    "num_epochs": ("epochs",),
    "update_epochs": ("epochs",),
    "num_sgd_iter": ("epochs",),
    "noptepochs": ("epochs",),
    "n_critic_updates": ("critic_epochs",),
    "cg_max_steps": ("cg_iterations",),
    "cg_iters": ("cg_iterations",),
    "line_search_max_iter": ("line_search_steps",),
    "line_search_shrinking_factor": ("line_search_shrink",),
    "max_kl": ("target_kl",),
    "grad_clip": ("max_grad_norm",),
    "max_gradient_norm": ("max_grad_norm",),
    # rhythm
    "n_steps": ("n_step", "rollout_length"),
    "num_steps": ("rollout_length",),
    "rollout_steps": ("rollout_length",),
    "unroll_length": ("rollout_length",),
    "rollout_fragment_length": ("rollout_length",),
    "train_freq": ("rollout_length",),
    "train_frequency": ("rollout_length",),
    "gradient_steps": ("updates_per_step",),
    "utd_ratio": ("updates_per_step",),
    "replay_ratio": ("updates_per_step",),
    "n_sampled_goal": ("hindsight",),
    "replay_k": ("hindsight",),
    "target_network_frequency": ("target_update_interval",),
    "target_update_freq": ("target_update_interval",),
    "target_network_update_freq": ("target_update_interval",),
    # objective
    "discount": ("gamma",),
    "discount_factor": ("gamma",),
    "lambda_": ("gae_lambda", "lam"),
    "trace_decay": ("lam",),
    "gae_lam": ("gae_lambda",),
    "clip_coef": ("clip_range",),
    "clip_param": ("clip_range",),
    "clip_eps": ("clip_range",),
    "cliprange": ("clip_range",),
    "clip_vloss": ("clip_range_vf",),
    "vf_clip_param": ("clip_range_vf",),
    "norm_adv": ("normalize_advantage",),
    "normalise_advantage": ("normalize_advantage",),
    "entropy_coef": ("ent_coef",),
    "entropy_coeff": ("ent_coef",),
    "ent_coeff": ("ent_coef",),
    "alpha": ("ent_coef", "lr"),
    "autotune": ("ent_coef",),
    "value_coef": ("vf_coef",),
    "vf_loss_coeff": ("vf_coef",),
    "value_loss_coef": ("vf_coef",),
    "double_q": ("double",),
    # replay and exploration
    "replay_size": ("buffer_size",),
    "replay_capacity": ("buffer_size",),
    "prioritized": ("prioritised",),
    "prioritized_replay": ("prioritised",),
    "per_alpha": ("prioritised",),
    "per_beta": ("is_beta",),
    "num_atoms": ("n_atoms",),
    "warmup_steps": ("learning_starts",),
    "start_steps": ("learning_starts",),
    "polyak": ("tau",),
    "exploration_initial_eps": ("eps_start",),
    "exploration_final_eps": ("eps_end",),
    "exploration_fraction": ("eps_steps",),
    "start_e": ("eps_start",),
    "end_e": ("eps_end",),
    "use_sde": ("sde",),
    "exploration_noise": ("noise_std",),
    "expl_noise": ("noise_std",),
    "action_noise": ("noise",),
    "policy_noise": ("target_noise",),
    "target_policy_noise": ("target_noise",),
    "noise_clip": ("target_noise_clip",),
    "policy_freq": ("policy_delay",),
    "policy_frequency": ("policy_delay",),
    "epsilon": ("eps_start",),
    "initial_q": ("q_init",),
    "n_planning": ("planning_steps",),
    "planning": ("planning_steps",),
    # networks
    "net_arch": ("network",),
    "hidden_sizes": ("network",),
    "hidden_dims": ("network",),
    "policy_kwargs": ("network",),
}

# The arguments of `train` that a user may well give to an algorithm.
RUN_ARGUMENTS = ("steps", "seed", "seeds", "n_envs", "eval_freq", "eval_episodes", "save_freq", "normalise")


def ours(name: str, known: Iterable[str]) -> str | None:
    """What a peer's name is called here, if it is a peer's name and the thing exists among `known`."""
    have = set(known)
    return next((candidate for candidate in PEERS.get(name.lower(), ()) if candidate in have), None)


def unknown_field(algorithm: str, name: str, fields: Iterable[str]) -> str:
    """The sentence that refuses a field: a peer's name gets ours, anything else the nearest one."""
    known = list(fields)
    if (field := ours(name, known)) is not None:
        return f"{algorithm} has no {name}; here it is {field}"
    if name in RUN_ARGUMENTS:
        return f"{algorithm} has no {name}; it is an argument of train"
    if (argument := ours(name, RUN_ARGUMENTS)) is not None:
        return f"{algorithm} has no {name}; here it is {argument}, an argument of train"
    return f"{algorithm} has no {name}{nearest(name, known)}"
