"""MiniLM on film reviews: four strategies, and TF-IDF with logistic regression on the same splits, as Markdown.

    .venv/bin/python benchmarks/sentiment.py [--seeds=3] [--workdirs=runs/sentiment]

Each run is a process of its own; one that is finished in its workdir is not run again. The splits are the config's, and
the same for all: a seed decides the order of examples, dropout and the start of what is new. TF-IDF has words and pairs
of words; its C is chosen on the validation split. Needs scikit-learn, which tljax has.
"""

import argparse
import dataclasses
import json
import statistics
import subprocess
import sys
from pathlib import Path

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

from tljax.config.schema import Experiment
from tljax.data import registry, splits

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
from configs.sentiment_bert import STRATEGIES, get_config  # noqa: E402


def train(strategy: str, seed: int, workdir: Path) -> dict:
    if not (workdir / "result.json").exists():
        command = [sys.executable, "-m", "tljax", "train", f"--config=configs/sentiment_bert.py:{strategy}"]
        subprocess.run(
            [*command, f"--config.seed={seed}", f"--workdir={workdir}"], cwd=ROOT, check=True, stdout=subprocess.DEVNULL
        )
    return json.loads((workdir / "result.json").read_text())


def tfidf(shots: int) -> tuple[int, float, float]:
    """Training examples, test accuracy, and the C that was best on the validation split."""
    config = dataclasses.replace(Experiment.from_config(get_config()).task, shots=shots)
    resolved = splits.make_splits(registry.load(config), config)
    texts = {name: [example["text"] for example in split] for name, split in resolved.items()}
    vectorizer = TfidfVectorizer(ngram_range=(1, 2), min_df=2, sublinear_tf=True)
    x = {"train": vectorizer.fit_transform(texts["train"])}
    x |= {name: vectorizer.transform(texts[name]) for name in ("validation", "test")}
    labels = resolved["train"].labels
    models = [LogisticRegression(C=c, max_iter=1000).fit(x["train"], labels) for c in np.logspace(-1, 2, 7)]
    best = max(models, key=lambda model: model.score(x["validation"], resolved["validation"].labels))
    return len(labels), best.score(x["test"], resolved["test"].labels), best.C


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--workdirs", type=Path, default=Path("runs/sentiment"))
    options = parser.parse_args()
    print("| | test accuracy, % | trainable | step FLOPs ÷ full | time, s |\n|---|---|---|---|---|")
    for shots in (get_config().task.shots, 0):
        count, accuracy, c = tfidf(shots)
        print(f"| TF-IDF of {count:,}, logistic regression (C = {c:.3g}) | {100 * accuracy:.1f} | | | |", flush=True)
    for strategy in STRATEGIES:
        results = [train(strategy, seed, options.workdirs / f"{strategy}-{seed}") for seed in range(options.seeds)]
        scores = [100 * result["splits"]["test"]["accuracy"] for result in results]
        spread = f" ± {statistics.stdev(scores):.1f}" if len(scores) > 1 else ""
        cost = results[0]["cost"]
        cells = [f"{statistics.mean(scores):.1f}{spread}", f"{cost['trainable_params']:,}"]
        cells += [f"{cost['step_share_of_full']:.2f}", f"{statistics.mean(r['wall_seconds'] for r in results):.0f}"]
        print(f"| `{strategy}` | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
