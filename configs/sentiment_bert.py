"""MiniLM on sentences from film reviews: are they positive?

    tljax train --config=sentiment_bert:lora --workdir=runs/sentiment_lora
    python benchmarks/sentiment.py      # all four strategies, three seeds each, and TF-IDF with logistic regression

9,173 sentences with at least a point on either side of neutral (Hutto & Gilbert 2014), of which 20% are the test set,
and 500 of each class train: the case of few labels. 125 steps each; test accuracy, mean and standard deviation of three
seeds on a CPU with 2 cores, jax 0.10.2:

    full           .833 ± .008   22,566,146 parameters train
    lora, rank 8   .839 ± .001       74,498
    last_k, k=2    .820 ± .004    3,549,698
    linear_probe   .780 ± .006          770
    TF-IDF with logistic regression, on the same splits   .712
"""

from tljax.config import default
from tljax.errors import InputError

STRATEGIES = {
    "linear_probe": (1e-2, {}),
    "last_k": (3e-4, {"k": 2}),
    "lora": (2e-3, {"rank": 8}),
    "full": (1e-4, {}),
}


def get_config(arg: str = "full"):
    if arg not in STRATEGIES:
        raise InputError(f"configs/sentiment_bert.py:{arg}: there are {', '.join(f':{name}' for name in STRATEGIES)}")
    rate, arguments = STRATEGIES[arg]
    config = default()
    config.backbone.weights = "minilm_l6.gt_all"
    config.task.update(dataset="movie_sentiment", train="train[:70%]", validation="train[70%:80%]", test="train[80%:]")
    config.task.update(max_tokens=64, token_multiple=16, batch_size=32, shots=500)
    config.epochs = 4.0
    config.optim.update(learning_rate=rate, warmup_steps=20, clip_norm=1.0, weight_decay=0.01)
    config.regularize.dropout = 0.1
    config.tuning.update(strategy=arg, **arguments)
    return config
