"""Files of repositories on the Hugging Face hub, brought into its client's cache."""

import os
import socket
import sys
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tljax.errors import InputError, message_of
from tljax.io import sharded_files

# What a repository is looked through for, in this order, and what is brought along where it has it.
WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
WEIGHTS += ("pytorch_model.bin", "pytorch_model.bin.index.json")
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
TOKENIZER_FILES += ("vocab.txt", "vocab.json", "merges.txt", "spm.model", "sentence_bert_config.json")
# Of sentence-transformers; what pools lies in a folder of its own, which is called so in all repositories.
_POOLING_FILES = ("modules.json", "config_sentence_transformers.json", "1_Pooling/config.json")
# A dense layer after the pooling, of repositories whose modules.json has one.
_DENSE_FILES = tuple(f"2_Dense/{name}" for name in ("config.json", "model.safetensors", "pytorch_model.bin"))
_DESCRIPTIONS = ("config.json", "preprocessor_config.json")
COMPANIONS = (*_DESCRIPTIONS, *TOKENIZER_FILES, *_POOLING_FILES)

_PATIENCE = 2.0  # seconds
_REMEMBERED = 30.0  # seconds
_ANSWERS: dict[str, tuple[float, bool]] = {}  # of a hub: when it was tried, and whether it answered


def fetch(uri: str) -> Path:
    """Brings a file of a repository, or its weights with `COMPANIONS` beside them, into the hub client's cache.

    Args:
        uri: `hf://org/repo[/file][@revision]`; without a file, that is the first of `WEIGHTS`.

    Raises:
        InputError: the URI is malformed, or the file cannot be had.
    """
    repo, file, revision = _parsed(uri)
    with _hub_named(uri, repo, revision):
        from huggingface_hub import errors

        try:
            return _download(uri, repo, file, revision)
        except errors.LocalEntryNotFoundError:  # the hub is out of reach, or HF_HUB_OFFLINE is set
            path = next((path for name in _names(file) if (path := _cached(repo, name, revision))), None)
            if path is None:
                raise
            print(f"{uri}: from the cache; HF_HUB_OFFLINE=1 does not wait for the hub", file=sys.stderr, flush=True)
            return path


def fetch_description(uri: str) -> Path:
    """Brings a repository's `config.json`, and what else is read to judge it, without its weights.

    Args:
        uri: `hf://org/repo[@revision]`.

    Returns:
        The folder that they are in; where the repository has none of them, one without them.

    Raises:
        InputError: the repository cannot be had.
    """
    repo, _, revision = _parsed(uri)
    paths = []
    with _hub_named(uri, repo, revision):
        from huggingface_hub import errors

        for name in _DESCRIPTIONS:
            with suppress(errors.LocalEntryNotFoundError):  # out of reach: what is cached will be all there is
                paths.append(_cached(repo, name, revision) or _take(repo, name, revision))
    return next((path.parent for path in paths if path), Path(os.devnull))


def _parsed(uri: str) -> tuple[str, str, str | None]:
    """Returns repository, file and revision."""
    name, _, revision = uri.removeprefix("hf://").partition("@")
    parts = name.split("/")
    if len(parts) < 2 or not all(parts):
        raise InputError(f"{uri}: write hf://org/repo[/file][@revision]")
    return "/".join(parts[:2]), "/".join(parts[2:]), revision or None


@contextmanager
def _hub_named(uri: str, repo: str, revision: str | None) -> Iterator[None]:
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # the client lets through exceptions of an HTTP library that changes with its version
        raise InputError(f"{uri}: the hub did not give it: {_hub_reason(error, repo, revision or '')}") from error


def _names(file: str) -> tuple[str, ...]:
    return (file,) if file else WEIGHTS


def _download(uri: str, repo: str, file: str, revision: str | None) -> Path:
    """Returns the weights in the hub client's cache, with all that belongs to them beside."""
    from huggingface_hub import try_to_load_from_cache

    candidates = ((name, path) for name in _names(file) if (path := _take(repo, name, revision)))
    name, path = next(candidates, ("", None))
    if path is None:
        names = " or ".join(_names(file))
        raise InputError(f"{uri}: the hub did not give it: {repo} has no {names}; name a file it has")
    taken = [path]
    for shard in sorted(set(sharded_files.weight_map(path).values())) if sharded_files.is_index(path) else []:
        taken.append(_take(repo, name.removesuffix(path.name) + shard, revision))
        if taken[-1] is None:
            raise InputError(f"{uri}: the hub did not give it: {repo} lacks {shard}, which {name} names")
    for companion in () if file else (*COMPANIONS, *_DENSE_FILES):
        if companion in _DENSE_FILES and not _has_dense(_cached(repo, "modules.json", revision)):
            continue
        if try_to_load_from_cache(repo, companion, revision=revision) is None:  # neither there nor known to be missing
            taken.append(_take(repo, companion, revision))
    if any(other and path.parent not in other.parents for other in taken):
        raise InputError(f"{uri}: the repository changed while it was fetched; run it again, or pin a @revision")
    return path


def _has_dense(modules: Path | None) -> bool:
    """Returns whether a repository's `modules.json`, if it has one, names a dense layer."""
    return modules is not None and b'"2_Dense"' in modules.read_bytes()


def _take(repo: str, name: str, revision: str | None) -> Path | None:
    """Returns the file in the hub client's cache, fetched if need be; None where the repository has none."""
    from huggingface_hub import errors, hf_hub_download

    if not _can_be_asked():
        raise errors.LocalEntryNotFoundError(f"{name} is not cached")
    try:
        return Path(hf_hub_download(repo, name, revision=revision, tqdm_class=_bounded_progress()))
    except errors.EntryNotFoundError as error:
        if isinstance(error, errors.LocalEntryNotFoundError):
            raise
        return None


def _can_be_asked() -> bool:
    """Returns whether something answers where the hub is; the client itself would ask five times."""
    from huggingface_hub import constants

    hub = urllib.parse.urlsplit(constants.ENDPOINT)
    proxied = urllib.request.getproxies().get(hub.scheme) and not urllib.request.proxy_bypass(hub.hostname)
    if constants.HF_HUB_OFFLINE or proxied:  # the client goes by its cache alone, or by the proxy
        return True
    since, answered = _ANSWERS.get(hub.netloc, (0.0, False))
    if since and time.monotonic() - since < _REMEMBERED:
        return answered
    answers: list[bool] = []

    def connect() -> None:
        port = hub.port or (80 if hub.scheme == "http" else 443)
        with suppress(OSError), socket.create_connection((hub.hostname, port), timeout=_PATIENCE):
            answers.append(True)

    thread = threading.Thread(target=connect, daemon=True)  # looking up a name knows no timeout
    thread.start()
    thread.join(_PATIENCE)
    _ANSWERS[hub.netloc] = time.monotonic(), bool(answers)
    return bool(answers)


def _cached(repo: str, name: str, revision: str | None) -> Path | None:
    """Returns the file in the hub client's cache, as an earlier run left it; None if it is not there."""
    from huggingface_hub import try_to_load_from_cache

    path = try_to_load_from_cache(repo, name, revision=revision)
    return Path(path) if isinstance(path, str) else None


def _bounded_progress() -> type:
    """Returns a progress bar that ends a download which never does.

    The client counts its retries anew whenever bytes arrive: a server that breaks off and knows no ranges is asked
    for the same bytes for ever.
    """
    from huggingface_hub.utils import tqdm

    class Progress(tqdm):
        received = 0

        def update(self, n: float | None = 1) -> bool | None:
            self.received += max(n, 0)
            if self.total and self.received > 2 * self.total:
                raise OSError("the connection breaks off again and again")
            return super().update(n)

    return Progress


def _hub_reason(error: Exception, repo: str, revision: str) -> str:
    """Returns what went wrong and the way out, in one line."""
    from huggingface_hub import constants, errors

    hub = constants.ENDPOINT
    if isinstance(error, errors.GatedRepoError):
        return f"{repo} is gated: ask for access at {hub}/{repo}, then set HF_TOKEN (or `hf auth login`)"
    if isinstance(error, errors.RepositoryNotFoundError):
        return f"no repository {repo} at {hub}, or a private one: check the name, or set HF_TOKEN (or `hf auth login`)"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{repo} has no branch, tag or commit {revision!r}: see {hub}/{repo}/commits"
    if isinstance(error, errors.LocalEntryNotFoundError):
        return f"{hub} is out of reach (or HF_HUB_OFFLINE is set), and it is not in {constants.HF_HUB_CACHE}"
    return f"{type(error).__name__}: {message_of(error)}; nothing half-fetched was kept, run it again"
