"""The words by which other libraries, and people, call what a key of the config says."""

import re

_NO_STOPPING = (
    "there is no early stopping: config.steps or config.epochs end a run, the best step by validation is kept"
    " (config.eval_every says how often it is looked for), and --step=best reads it"
)
_WORKDIR = "there is no such key: a run's folder is --workdir=DIR on the command line, and an argument of tljax.train"
_DEVICES = "there is no such key: JAX takes all devices; CUDA_VISIBLE_DEVICES or JAX_PLATFORMS=cpu choose among them"
_CLASSES = "there is no such key: the data say it; config.task.classes names the classes where they do not"
# What stands for each word -> the words. It begins with a key, or is a sentence with a way out.
_WORDS = {
    "config.optim.learning_rate": "lr learning_rate base_lr peak_lr max_lr init_lr blr lr0",
    "config.epochs": "epoch epochs num_epochs n_epochs nb_epochs max_epochs num_train_epochs train_epochs",
    "config.steps": "step steps max_steps num_steps n_steps total_steps train_steps training_steps num_train_steps"
    " iters iterations max_iter max_iters num_iterations",
    "config.task.batch_size, of all devices together": "batch batch_size batchsize bs train_batch_size"
    " per_device_train_batch_size per_device_batch_size global_batch_size",
    "config.task.eval_batch_size": "eval_batch_size val_batch_size test_batch_size per_device_eval_batch_size",
    "config.backbone.weights (pretrained ones by name or path), or config.backbone.name (the network alone)": "model"
    " model_name model_name_or_path pretrained_model_name_or_path model_id arch architecture network net encoder",
    "config.backbone.weights": "pretrained weights pretrained_weights pretrained_path init_from initial_checkpoint ckpt"
    " checkpoint_path weights_path load_from",
    "config.backbone.pool": "pool pooling global_pool",
    "config.tuning.strategy (linear_probe, last_k, lora, full …)": "strategy freeze frozen freeze_backbone"
    " freeze_layers freeze_encoder unfreeze trainable trainable_layers finetune fine_tune full_finetune linear_probe"
    " method peft peft_type peft_config",
    "config.tuning.rank, with config.tuning.strategy=lora": "r rank lora_r lora_rank lora",
    "config.tuning.alpha, with config.tuning.strategy=lora": "alpha lora_alpha",
    "config.tuning.dropout, with config.tuning.strategy=lora": "lora_dropout",
    "config.tuning.targets, with config.tuning.strategy=lora": "target_modules lora_targets lora_target",
    "config.tuning.decay, with config.tuning.strategy=layer_decay": "layer_decay llrd layerwise_lr_decay"
    " layer_wise_lr_decay lr_decay",
    "config.task.dataset": "data dataset dataset_name dataset_path data_dir data_path datadir train_dir train_file"
    " train_data image_folder",
    "config.task.train (train[:80%])": "train train_split",
    "config.task.validation (train[80%:])": "val valid validation val_split valid_split validation_split eval_split"
    " val_size val_fraction",
    "config.task.test (train[90%:])": "test test_split test_size",
    "config.task.problem": "task_type problem_type problem multilabel multi_label regression",
    "config.task.shots": "shots num_shots n_shots k_shot few_shot",
    "config.task.fraction": "fraction subset train_fraction data_fraction",
    "config.task.image_size": "image_size img_size imgsz im_size input_size resolution",
    "config.task.channels": "channels in_chans in_channels num_channels",
    "config.task.max_tokens": "max_tokens max_length max_len max_seq_length max_seq_len seq_len sequence_length",
    "config.task.tokenizer": "tokenizer tokenizer_name",
    "config.task.text": "text_column text_field sentence_column",
    "config.task.image": "image_column image_field",
    "config.task.label": "label_column label_field target target_column",
    "config.task.augment, and config.task.crop": "augment augmentation augmentations aug transform transforms"
    " data_augmentation auto_augment autoaugment randaugment rand_augment",
    "config.task.crop": "crop random_crop random_resized_crop",
    "config.task.flip_test": "flip_test tta test_time_augmentation",
    "config.task.class_weights, or config.task.balance": "class_weight class_weights balanced balance",
    "config.optim.name": "optimizer optimizer_name optim_name opt",
    "config.optim.weight_decay": "weight_decay wd",
    "config.optim.warmup_steps, in steps": "warmup warmup_steps num_warmup_steps warmup_ratio warmup_epochs"
    " warmup_proportion warmup_iters",
    "config.optim.schedule": "schedule scheduler sched lr_schedule lr_scheduler lr_scheduler_type",
    "config.optim.momentum": "momentum",
    "config.optim.b1, config.optim.b2": "betas beta1 beta2 adam_beta1 adam_beta2",
    "config.optim.args, with an optimizer of optax's (config.optim.name=optax:adamw)": "eps epsilon adam_epsilon",
    "config.optim.clip_norm": "clip clip_norm clip_grad clip_grad_norm grad_clip grad_clip_norm max_grad_norm"
    " gradient_clip gradient_clip_val gradient_clipping",
    "config.optim.accumulate, parts of config.task.batch_size": "accumulate gradient_accumulation"
    " gradient_accumulation_steps accumulate_grad_batches accumulation_steps grad_accum grad_accum_steps accum_iter",
    "config.optim.average (ema), with config.optim.average_decay": "ema use_ema model_ema ema_decay",
    "config.optim.average (swa), with config.optim.average_start": "swa use_swa",
    "config.optim.sam_rho": "sam sam_rho rho",
    "config.regularize.label_smoothing": "label_smoothing label_smoothing_factor smoothing",
    "config.regularize.dropout": "dropout dropout_rate drop drop_rate hidden_dropout",
    "config.regularize.drop_path": "drop_path drop_path_rate stochastic_depth",
    "config.regularize.mixup": "mixup mixup_alpha",
    "config.regularize.cutmix": "cutmix cutmix_alpha",
    "config.regularize.l2_sp": "l2_sp l2sp",
    "config.compute_dtype (bfloat16)": "precision dtype torch_dtype compute_dtype fp16 bf16 half amp use_amp"
    " mixed_precision autocast",
    "config.remat": "remat gradient_checkpointing grad_checkpointing activation_checkpointing use_checkpoint",
    "config.eval_every, in steps": "eval_every eval_steps eval_interval eval_freq evaluation_strategy eval_strategy"
    " validation_steps val_interval val_check_interval validate_every check_val_every_n_epoch",
    "config.log_every": "log_every logging_steps log_steps log_interval log_freq print_freq",
    "config.log.trackers": "tracker trackers report_to logger wandb tensorboard mlflow",
    "config.checkpoint.every, in steps": "save_steps save_every save_interval save_freq save_strategy checkpoint_every"
    " checkpoint_interval ckpt_interval",
    "config.checkpoint.keep": "save_total_limit max_to_keep keep_last",
    "config.checkpoint.best, and --step=best of evaluate and predict": "load_best_model_at_end metric_for_best_model"
    " best_metric monitor save_best save_top_k",
    "config.input.workers": "workers num_workers n_workers dataloader_num_workers num_proc",
    "config.mesh.fsdp": "fsdp",
    "config.seed": "seed random_seed random_state manual_seed",
    "config.loss (module:name of your own), or config.task.problem": "criterion loss loss_fn loss_function objective",
    "config.metrics": "metric metrics eval_metric compute_metrics",
    _NO_STOPPING: "patience early_stop early_stopping early_stopping_patience earlystopping",
    _CLASSES: "num_classes n_classes nb_classes num_labels class_names id2label",
    _WORKDIR: "output output_dir out_dir outdir save_dir work_dir workdir logdir log_dir logging_dir run_dir",
    _DEVICES: "device devices gpu gpus n_gpu num_gpus cuda accelerator",
    "there is no such key: the same command, with its run's folder, goes on": "resume resume_from"
    " resume_from_checkpoint",
    "there is no such key: TLJAX_CACHE, in the environment, says where": "cache_dir",
}
SYNONYMS = {word: text for text, words in _WORDS.items() for word in words.split()}
"""What stands for each word: a key, with what belongs to it, or a sentence."""


def advice(word: str) -> str:
    """Returns where to find what a word means, `it is config.optim.learning_rate`; empty of a word not known.

    Case, and `-` for `_`, make no difference; of a dotted word the last part counts.
    """
    text = SYNONYMS.get(re.sub(r"[- ]", "_", word.rpartition(".")[2].lower()), "")
    return f"it is {text}" if text.startswith("config.") else text
