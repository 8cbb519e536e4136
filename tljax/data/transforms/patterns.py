"""Tries a tokenizer's regular expressions, which come out of a file, before they meet a data set."""

import json
import re
import string
import subprocess
import sys
from functools import lru_cache
from pathlib import Path

from tljax.errors import InputError

_SECONDS = 10
_PATTERN = re.compile(r'"Regex"\s*:\s*"((?:[^"\\]|\\.)*)"')
_OUT = "take another tokenizer (task.tokenizer)"
_TRY = """
import json, sys, tokenizers
tokenizer = tokenizers.Tokenizer.from_file(sys.argv[1])
for text in json.load(sys.stdin):
    tokenizer.encode(text)
"""


@lru_cache(maxsize=8)
def check_patterns(file: Path) -> None:
    """Tries the expressions of a `tokenizer.json` on long runs of each character, where they run away if anywhere.

    They are tried in a process of its own: the library gives up on one by a panic that no `except Exception` catches.

    Raises:
        InputError: the tokenizer gives up, or is not done within 10 seconds.
    """
    patterns = "".join(_PATTERN.findall(file.read_text(encoding="utf-8", errors="replace")))
    if not patterns:
        return
    characters = sorted({*string.ascii_letters[::9], *" 1!-é中\n", *(c for c in patterns if c.isprintable())})[:128]
    ends = ("", "!", "!" + "".join(characters))  # an expression that needs a character is not tried without it
    probes = [run * 40 + end for run in (*characters, "a ", "aA", "1,") for end in ends]
    command = [sys.executable, "-c", _TRY, str(file)]
    try:
        subprocess.run(command, input=json.dumps(probes), capture_output=True, text=True, timeout=_SECONDS, check=True)
    except subprocess.TimeoutExpired as error:
        raise InputError(
            f"{file}: its regular expressions take more than {_SECONDS} seconds for a line; {_OUT}"
        ) from error
    except subprocess.CalledProcessError as error:
        if "Regex search error" in error.stderr:
            raise InputError(f"{file}: a regular expression in it runs away on simple texts; {_OUT}") from error
        # Whatever else is wrong, its reader says.
